"""What an app says of its tasks: one line a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from flask import current_app, has_app_context

from ._course import CourseEntry
from ._erasure import erase
from ._new_task import NewTask
from ._otp import OTP
from ._people import unblock
from ._service import Service, current_service
from ._tasks import Recipient, Task


class Calls:
    """The calls on tasks, inside an app context; :class:`~flask_taskflow.TaskFlow` has them."""

    def add_task(
        self,
        queue: str,
        data: Any = None,
        *,
        allowed_methods: Iterable[str],
        recipient: Recipient | Mapping[str, str | None],
        summary: str | None = None,
        priority: int = 0,
        ttl: float | timedelta | None = None, timeout: float | timedelta | None = None,
        send_via: Iterable[str] | None = None,
        locale: str | None = None,
        holder: bool = False, owner: str | None = None, key: str | None = None, replace: bool = False,
        next_url: str | None = None, run_at: datetime | None = None, send_at: datetime | None = None,
        remind: Sequence[float | timedelta] = (),
    ) -> Task[Any]:  # fmt: skip
        """Store a task and send a code for it.

        :param queue: ``[A-Za-z0-9_.-]{1,64}``; callbacks are registered for it.
        :param data: any JSON value, for the app.
        :param allowed_methods: the methods by which it may be confirmed; each needs a strategy.
        :param recipient: the addresses, each optional; at least one allowed method needs its own.
        :param summary: one line saying what is being confirmed.
        :param priority: within ±2^31, callbacks of higher ones run first.
        :param ttl: seconds to live, default ``TASKFLOW_TASK_TTL``.
        :param timeout: seconds for one attempt of a callback, default ``TASKFLOW_JOB_TIMEOUT``.
        :param send_via: the methods to send by now; default the first one that has its address.
        :param locale: the language of its messages, as ``vi``; default that of the request, by Flask-Babel.
        :param holder: whether the task carries a secret, ``holder``, that its codes need; see ``hold``.
        :param owner: whose task and wrong codes these are, a text such as ``user:17``; see :meth:`tasks_of`.
        :param key: names the action of the owner: the same call returns its task, unsent, while that is kept.
        :param replace: end the owner's other tasks of this queue, as :meth:`cancel_tasks` does.
        :param next_url: where its person goes on after the code: a path, or a URL of ``TASKFLOW_NEXT_HOSTS``.
        :param run_at: when its callbacks run, an aware time; until then :meth:`cancel_task` cancels it.
        :param send_at: when its codes go out, an aware time of the next 30 days; ``ttl`` counts from then on.
            Only where codes are sent in the background.
        :param remind: how many seconds before its end the signal ``task_expiring`` fires if it is pending.
        :raises InvalidTask: for an unusable argument; nothing was stored or sent.
        :raises KeyReused: if there is a task of that key with other arguments; nothing was stored or sent.
        :raises SendLimitReached: if a recipient had enough; nothing was stored or sent.
        :raises SendFailed: if a strategy raised; the task exists.
        :raises redis.RedisError: if Redis did not answer; the task may exist, unsent.
        """
        new = NewTask(
            queue=queue, data=data, allowed_methods=allowed_methods, recipient=recipient, summary=summary,
            priority=priority, ttl=ttl, timeout=timeout, send_via=send_via, locale=locale,
            owner=owner, key=key, replace=replace, next_url=next_url, holder=holder, run_at=run_at,
            send_at=send_at, remind=remind,
        )  # fmt: skip
        return self._service().add_task(new).task

    def verify(self, task_id: str, method: str, otp: str, *, holder: str | None = None) -> Task[Any]:
        """Consume a code: the task becomes ``SUCCESS`` once, and its callbacks are stored to run.

        The code that ended a task, sent again by the same method within a minute, returns the same task, and
        nothing runs twice: a form was submitted twice, or the first answer was lost. So act in a callback,
        not after this call.

        :param task_id: the task.
        :param method: how the code was sent.
        :param otp: what was typed; spaces, hyphens and digits of other scripts are understood.
        :param holder: what ``add_task(holder=True)`` returned as ``task.holder``.
        :raises InvalidCode: if it cannot be a code; no attempt was used.
        :raises OTPRejected: if it was not accepted; the subclass says why.
        :raises redis.RedisError: if Redis did not answer; the code may have been consumed.
        """
        if isinstance(otp, str):
            # A traceback that shows locals shows this frame's, too.
            otp = OTP(otp)
        return self._service().verify(task_id, method, otp, holder)

    def resend_otp(self, task_id: str, method: str, *, holder: str | None = None) -> Task[Any]:
        """Send a code again: the same one while it lasts a minute more, else a new one.

        :param task_id: a pending task.
        :param method: one of its methods.
        :param holder: what ``add_task(holder=True)`` returned as ``task.holder``.
        :raises OTPRejected: if the task takes no code by this method.
        :raises ResendTooSoon: during the cooldown.
        :raises SendLimitReached: if the task or the recipient had enough.
        :raises SendFailed: if the strategy raised; a resend may follow at once.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().resend(task_id, method, holder).task

    def update_recipient(self, task_id: str, recipient: Recipient | Mapping[str, str | None]) -> Task[Any]:
        """Change addresses of a pending task: codes sent to the old ones die, new ones go out.

        :param task_id: a pending task.
        :param recipient: the addresses that change; the others stay.
        :raises InvalidTask: for an unusable recipient.
        :raises OTPRejected: if the task is not pending.
        :raises SendLimitReached: if the task or a recipient had enough; nothing was changed.
        :raises SendFailed: if a strategy raised; the addresses are changed.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().update_recipient(task_id, recipient)

    def get_task(self, task_id: str) -> Task[Any]:
        """Return a task.

        :raises TaskNotFound: if there is none, or it was forgotten.
        :raises TaskTampered: if it was changed in Redis from outside.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().get_task(task_id)

    def get_course(self, task_id: str) -> list[CourseEntry]:
        """Return what happened to a task, its codes and its deliveries, the oldest first.

        No entry holds a code, an address in clear, or data. There are at most 100: of more, one in the middle
        says how many were left out. They are kept as long as the task, and ``TASKFLOW_RETENTION`` after the
        last of them.

        :raises TaskNotFound: if there is no such task, or its course was forgotten.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().get_course(task_id)

    def cancel_task(self, task_id: str) -> Task[Any]:
        """End a pending task; its codes are worth nothing any more.

        A task that failed and could be sent a code again is ended, too, and one that is verified and runs
        later, by ``run_at``, unless a callback has begun.

        :raises OTPRejected: if it is none of these.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().cancel_task(task_id)

    def reject_task(self, task_id: str, method: str, otp: str, *, holder: str | None = None) -> Task[Any]:
        """End a task by its code, as ``REJECTED``: whom it was sent to has asked for nothing.

        The code counts as used, and a wrong one as an attempt, as those of :meth:`verify`. No callback runs.

        :param task_id: a pending task.
        :param method: how the code was sent.
        :param otp: what was typed.
        :param holder: ``task.holder``, if the task has one.
        :raises InvalidCode: if it cannot be a code; no attempt was used.
        :raises OTPRejected: if it was not accepted.
        :raises redis.RedisError: if Redis did not answer; the task may be ended.
        """
        if isinstance(otp, str):
            otp = OTP(otp)
        return self._service().reject(task_id, method, otp, holder)

    def tasks_of(self, owner: str, *, queue: str | None = None) -> list[Task[Any]]:
        """Return the tasks of an owner that are kept, whatever became of them, the newest first.

        :param owner: as it was given to :meth:`add_task`.
        :param queue: only those of one queue, which asks Redis once and not for each queue.
        :raises InvalidTask: if it can be no owner.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().tasks_of(owner, queue)

    def cancel_tasks(self, owner: str, *, queue: str | None = None) -> list[Task[Any]]:
        """End the tasks of an owner that are pending or may be again; return those that were ended.

        :param owner: as it was given to :meth:`add_task`.
        :param queue: only those of one queue.
        :raises InvalidTask: if it can be no owner.
        :raises redis.RedisError: if Redis did not answer; some may be ended.
        """
        return self._service().cancel_tasks(owner, queue)

    def erase(self, task_id: str | None = None, *, owner: str | None = None) -> list[str]:
        """Erase what is kept of a task, or of all tasks of an owner; a pending one is cancelled before.

        The task goes with its data, summary and addresses, its course, and its dead letters. A delivery that
        is to run stays, since a verification is not forgotten: call this again once it is done.

        :param task_id: the task; its dead letters are erased also if it is forgotten by now.
        :param owner: as it was given to :meth:`add_task`.
        :return: the ids of the deliveries that stay.
        :raises TaskNotFound: if nothing is kept of the task.
        :raises InvalidTask: if neither or both are given, or that can be no owner.
        :raises redis.RedisError: if Redis did not answer; some may be erased.
        """
        return erase(self._service(), task_id, owner)

    def unblock(self, address: str) -> int:
        """Lift the limits of an address, a device or an owner, over all queues; return how many it had.

        What it was sent, and the wrong codes that were typed for it, are forgotten. Locked tasks stay locked.

        :param address: an e-mail address, a telephone number, a device's id or an owner, as tasks have it.
        :raises InvalidTask: if it cannot be one.
        :raises redis.RedisError: if Redis did not answer.
        """
        return unblock(self._service(), address)

    def run_due(self) -> int:
        """Run the sends and callbacks that are due in this thread; return how many attempts ran. For tests.

        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().runtime.run_due()

    def _service(self) -> Service:
        """Return the service of the current app.

        :raises RuntimeError: without an app context, or if the app has another extension or none.
        """
        if has_app_context() and current_app.extensions.get("taskflow") is not self:
            raise RuntimeError("this TaskFlow does not know the app: call taskflow.init_app(app) first")
        return current_service()
