"""What happens is told here, once: by a record in the audit log, and by a signal where there is one.

Whoever calls does so inside an app context; that app is the sender of the signals. The records go to the
logger ``flask_taskflow.audit``. The message is the event's name; everything else is in ``extra`` fields,
which ``docs/audit.md`` lists. No record holds a code; addresses are masked; what a stranger wrote is inert.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from blinker import NamedSignal
from flask import Flask, current_app, has_request_context, request

from . import signals
from ._inert import inert
from ._log import Logger
from ._tasks import Status, Task, mask, mask_all
from .errors import OTPRejected, ResendTooSoon, SendLimitReached, TaskExpired

logger = Logger("flask_taskflow.audit")
# Where logging is not set up, Python would print the bare event names.
logger.logger.addHandler(logging.NullHandler())

_USER_AGENT_MAX = 200
_TASK_ID_MAX = 64


def record(event: str, task_id: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one record.

    :param event: its name, from the list in ``docs/audit.md``.
    :param task_id: the task it is about, as the caller gave it.
    :param level: ``INFO`` for what was asked for, ``WARNING`` for what somebody should look at.
    :param fields: more, without codes and with addresses masked.
    """
    if not logger.isEnabledFor(level):
        return
    told = {"task_id": _shortened(task_id), **fields}
    if has_request_context():
        told["remote_addr"] = request.remote_addr
        told["user_agent"] = request.user_agent.string[:_USER_AGENT_MAX]
    extra = {name: _made_inert(value) for name, value in told.items()}
    logger.log(level, event, extra={"event": event, **extra})


def _shortened(task_id: object) -> str:
    return str(task_id)[:_TASK_ID_MAX]


def _made_inert(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _made_inert(item) for name, item in value.items()}
    return inert(value) if isinstance(value, str) else value


def _emit(signal: NamedSignal, **arguments: Any) -> None:
    signals.emit(signal, _app(), **arguments)


def _emit_apart(signal: NamedSignal, **arguments: Any) -> None:
    signals.emit_apart(signal, _app(), **arguments)


def _app() -> Flask:
    return cast(Flask, cast(Any, current_app)._get_current_object())


class Delivery(Protocol):
    """What is told of a delivery: its id and the number of the attempt."""

    @property
    def id(self) -> str:
        """The same for all attempts."""

    @property
    def attempt(self) -> int:
        """Counts from 1."""


def task_added(task: Task[Any]) -> None:
    """Tell that a task was stored; its code is not sent yet."""
    record("task_added", task.id, queue=task.queue, addresses=task.recipient.masked())
    _emit(signals.task_added, task=task)


def code_accepted(task: Task[Any], method: str) -> None:
    """Tell that a code ended its task. The signal is the listener's: it fires in every process."""
    record("code_accepted", task.id, queue=task.queue, method=method)


def code_repeated(task: Task[Any], method: str) -> None:
    """Tell that the code that ended a task came again: nothing was done, and no signal fires."""
    record("code_repeated", task.id, queue=task.queue, method=method)


def code_refused(task_id: str, method: str, error: OTPRejected) -> None:
    """Tell that a code was not accepted; it may have locked its task, or come too late for it."""
    record("code_refused", task_id, level=logging.WARNING, method=method, cause=error.code)
    if error.attempts_left == 0:
        record("task_locked", task_id, level=logging.WARNING, method=method)
    elif isinstance(error, TaskExpired):
        record("task_expired", task_id, method=method)
    # Receivers log it, too.
    _emit(signals.otp_rejected, task_id=inert(_shortened(task_id)), method=method, cause=error.code)


def check_failed(task_id: str, method: str, cause: str) -> None:
    """Tell that a strategy could not tell whether a code is right; the attempt counts.

    :param cause: the exception's class.
    """
    record("check_failed", task_id, level=logging.ERROR, method=method, cause=cause)


def send_refused(task_id: str, error: OTPRejected | SendLimitReached, **fields: str) -> None:
    """Tell that a limit, or the task's state, forbade a first message to an address."""
    _record_refusal("send_refused", task_id, error, **fields)


def resend_refused(task_id: str, method: str, error: OTPRejected | ResendTooSoon | SendLimitReached) -> None:
    """Tell that a limit, or the task's state, forbade a repeated message."""
    _record_refusal("resend_refused", task_id, error, method=method)


def recipient_changed(task: Task[Any], old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Tell that addresses of a task were changed.

    :param old: what they were, by field, in clear.
    :param new: what they are.
    """
    before, after = mask_all(old), mask_all(new)
    record("recipient_changed", task.id, queue=task.queue, old=before, new=after)
    _emit(signals.recipient_updated, task=task, old=before, new=after)


def recipient_unblocked(address: str, queues: Sequence[str]) -> None:
    """Tell that an operator lifted the limits of an address or an owner.

    :param address: in clear.
    :param queues: where something was counted for it, `*` for what counts over all.
    """
    record("recipient_unblocked", "", level=logging.WARNING, address=mask(address), queues=list(queues))


def operated(action: str, *, by: str, task_id: str = "", **fields: object) -> None:
    """Tell that an operator changed something.

    :param action: what was done, as the call is named.
    :param by: who did it.
    """
    record("operated", task_id, level=logging.WARNING, action=action, by=by, **fields)


def task_erased(task_id: str, left: Sequence[str]) -> None:
    """Tell that what was kept of a task is erased.

    :param left: the deliveries that stay, since they are to run.
    """
    record("task_erased", task_id, level=logging.WARNING, left=list(left))


def task_ended(task: Task[Any]) -> None:
    """Tell that a call ended a pending task without success; ``code_refused`` told of one that it locked."""
    if task.status is Status.CANCELLED:
        record("task_cancelled", task.id, queue=task.queue)
    elif task.status is Status.REJECTED:
        record("task_rejected", task.id, level=logging.WARNING, queue=task.queue)
    _emit(signals.task_ended, task=task)


def code_sent(task: Task[Any], method: str, *, address: str, message_id: str | None) -> None:
    """Tell that a strategy took a code.

    :param address: masked; empty if the method has none.
    :param message_id: what its provider calls the message, if the strategy says it.
    """
    named: dict[str, Any] = {} if message_id is None else {"message_id": message_id}
    record("code_sent", task.id, queue=task.queue, method=method, address=address, **named)
    _emit(signals.otp_sent, task=task, method=method)


def send_failed(task_id: str, *, queue: str, method: str, cause: str, address: str | None = None) -> None:
    """Tell that an attempt to send a code failed.

    :param cause: the exception's class.
    :param address: masked; ``None`` if the strategy did not come to an end.
    """
    at = {} if address is None else {"address": address}
    record("send_failed", task_id, level=logging.WARNING, queue=queue, method=method, cause=cause, **at)


def send_unknown(task_id: str, *, queue: str, method: str, cause: str, address: str | None = None) -> None:
    """Tell that a code was handed over and nobody knows whether it was taken: it is valid.

    :param cause: the exception's class.
    :param address: masked; ``None`` if the strategy did not come to an end.
    """
    at = {} if address is None else {"address": address}
    record("send_unknown", task_id, level=logging.WARNING, queue=queue, method=method, cause=cause, **at)


def send_fallback(task_id: str, *, queue: str, method: str, following: str) -> None:
    """Tell that a method was refused for now for so long that another one is tried as well."""
    record("send_fallback", task_id, level=logging.WARNING, queue=queue, method=method, following=following)


def send_dropped(task_id: str, *, queue: str, method: str, cause: str) -> None:
    """Tell that a code was not sent because nobody needs it any more.

    :param cause: ``too_late`` or ``delivered_otherwise``.
    """
    record("send_dropped", task_id, queue=queue, method=method, cause=cause)


def send_given_up(task_id: str, *, queue: str, method: str, following: str | None) -> None:
    """Tell that a method refused for good, or lost its processes too often.

    :param following: the method that is tried next, if any.
    """
    fields = {"queue": queue, "method": method, "following": following}
    record("send_given_up", task_id, level=logging.ERROR, **fields)


def task_failed(task: Task[Any]) -> None:
    """Tell that a task failed: no method of sending was left."""
    record("task_failed", task.id, level=logging.ERROR, queue=task.queue)
    _emit_apart(signals.task_failed, task=task)
    _emit_apart(signals.task_ended, task=task)


def task_expiring(task: Task[Any], left: float) -> None:
    """Tell that a pending task is about to end.

    :param left: in how many seconds.
    """
    record("task_expiring", task.id, queue=task.queue)
    _emit_apart(signals.task_expiring, task=task, left=left)


def task_verified(task: Task[Any], **more: bool) -> None:
    """Tell, in a process that listens, that a task was verified somewhere.

    :param more: ``bridged=True`` for one of another service, that nothing proves.
    """
    _emit_apart(signals.task_verified, task=task, **more)


def callback_succeeded(
    task_id: str, task: Task[Any] | None, *, queue: str, callback: str, delivery: Delivery
) -> None:
    """Tell that a callback returned and its delivery is done.

    :param task: ``None`` for a schedule, which has none: then no receiver is called.
    """
    record("callback_done", task_id, **_run(queue, callback, delivery))
    if task is not None:
        _emit_apart(signals.callback_succeeded, task=task, callback=callback, delivery=delivery, error=None)


def callback_failed(
    task_id: str,
    task: Task[Any] | None,
    *,
    queue: str,
    callback: str,
    delivery: Delivery,
    error: BaseException,
) -> None:
    """Tell that an attempt failed and will be repeated.

    :param task: ``None`` for a schedule, which has none: then no receiver is called.
    """
    told = _run(queue, callback, delivery)
    record("callback_failed", task_id, level=logging.WARNING, cause=type(error).__name__, **told)
    if task is not None:
        _emit_apart(signals.callback_failed, task=task, callback=callback, delivery=delivery, error=error)


def callback_dead(
    task_id: str,
    task: Task[Any] | None,
    *,
    queue: str,
    callback: str,
    delivery: Delivery,
    error: BaseException,
) -> None:
    """Tell that a delivery was given up and is a dead letter.

    :param task: ``None`` if it was changed from outside: then no receiver is called.
    """
    told = _run(queue, callback, delivery)
    record("callback_dead", task_id, level=logging.ERROR, cause=type(error).__name__, **told)
    if task is not None:
        _emit_apart(signals.callback_dead, task=task, callback=callback, delivery=delivery, error=error)


def _run(queue: str, callback: str, delivery: Delivery) -> dict[str, Any]:
    return {"queue": queue, "callback": callback, "delivery": delivery.id, "attempt": delivery.attempt}


def schedule_dead(schedule: str, tick: object, delivery: Delivery, error: BaseException) -> None:
    """Tell that a run of a schedule was given up and is a dead letter; ``callback_dead`` recorded it."""
    _emit_apart(signals.schedule_dead, schedule=schedule, tick=tick, delivery=delivery, error=error)


def _record_refusal(
    event: str, task_id: str, error: OTPRejected | ResendTooSoon | SendLimitReached, **fields: str
) -> None:
    wait = getattr(error, "retry_after", None)
    record(event, task_id, level=logging.WARNING, cause=error.code, retry_after=wait, **fields)
