"""Send codes in the background: a send is a delivery of the same engine as callbacks are.

Nothing recoverable waits in Redis: a send says which task and method, and its code is derived when it runs.
One that is refused for now is tried while the task lives, and after a time the task's next method beside it.
One that is refused for good falls back to that; if none is left, the task has failed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from flask import current_app
from redis import RedisError

from .. import _journal as journal
from .._interrupts import is_a, is_interrupt
from .._log import Logger
from .._store.deliveries import DeliveryStore
from .._store.keys import Consumer
from .._store.queues import Queues
from .._store.records import Claimed, Code, Due
from .._store.sends import CodeStore, Delay, Why
from ..errors import KeyMissing, TaskTampered
from .all_queues import AllQueues
from .attempts import Attempt, Report, ReportOnce, compute_backoff, lost_text
from .sender import Failure, Sender

logger = Logger(__name__)


class SendSettings(NamedTuple):
    """What is asked of the sends by one method; durations in seconds.

    :param method: the method.
    :param timeout: for one attempt; a built-in strategy ends by itself before.
    :param backoff: the first wait, doubled by each failure.
    :param backoff_max: the longest wait.
    :param fallback: refusals for now for so long let the next method be tried as well; ``None``: never.
    :param max_lost: how often a send may be lost with its process.
    :param hanging_max: so many may hang; what comes then fails without a try, and falls back.
    """

    method: str
    timeout: float
    backoff: float
    backoff_max: float
    fallback: float | None
    max_lost: int
    hanging_max: int


class SendRunner(AllQueues):
    """Send codes by one method, and report how that ended.

    :param settings: the method, and what is asked of it.
    :param sender: derives codes and calls strategies.
    :param codes: tells what is to be sent, and falls back.
    :param deliveries: takes the other reports.
    :param queues: the queues that are served.
    :param post: called with task and method when a send waits.
    """

    def __init__(
        self,
        settings: SendSettings,
        sender: Sender,
        codes: CodeStore,
        deliveries: DeliveryStore,
        queues: Queues,
        post: Callable[[str, str], None],
    ) -> None:
        super().__init__(Consumer.sending(settings.method), queues, deliveries)
        self._settings = settings
        self._method = settings.method
        self._sender = sender
        self._codes = codes
        self._post = post
        self._inside: set[Attempt] = set()

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""
        return Attempt(item, self._settings.timeout)

    def execute(self, attempt: Attempt, report: Report) -> None:
        """Send a code, unless none is to be sent any more."""
        item = attempt.item
        try:
            due = self._due(item, report)
        except KeyMissing as error:
            fingerprint = error.fingerprint
            report(lambda: self._deliveries.leave(item, fingerprint))
            return
        if attempt.written_off:
            # Redis was away for so long; the next attempt is another's.
            return
        if due is None:
            report(lambda: self._deliveries.ack(item, again=True))
            return
        ends = time.monotonic() + due.left
        if due.needless is not None:
            self._drop(item, due.needless, report)
            return
        if item.lost > self._settings.max_lost:
            # Given up here, where it is tried until Redis took it.
            self._give_up(item, _lost(item), report)
            return
        outcome = self._try(attempt, due)
        # While Redis is away what comes now is late, but has not failed by that.
        attempt.timeout = math.inf
        attempt.reported = True
        if isinstance(outcome, Failure):
            self._fail(item, outcome, report, left=ends - time.monotonic())
        elif outcome is None:
            report(lambda: self._deliveries.release(item))
        elif not report(lambda: self._sent(attempt, outcome)):
            logger.info("The code of task %s by %s may be sent twice.", item.task_id, self._method)

    def fail(self, attempt: Attempt, error: BaseException, report: Report) -> None:
        """Report a failed attempt. One that took too long is repeated once: its code may have arrived."""
        item, cause, late = attempt.item, type(error).__name__, is_a(error, TimeoutError)
        failure = Failure(None, cause, str(error) if late else cause, unknown=late, recorded=False)
        if not self._postpone(item, failure, report):
            self._give_up(item, failure, report)

    def end_lost(self, item: Claimed) -> None:
        """Give up a send that was lost with its process, and then with those that were to give it up."""
        try:
            self._give_up(item, _lost(item), ReportOnce(self._deliveries))
        except RedisError as error:
            # What was claimed beside it must not wait for that.
            cause = type(error).__name__
            logger.error("Sending task %s by %s ends here: %s.", item.task_id, self._method, cause)

    def _sent(self, attempt: Attempt, code: Code) -> bool:
        attempt.acks += 1
        item = attempt.item
        return self._codes.sent(item.task_id, item.queue, item.token, code, again=attempt.acks > 1)

    def _try(self, attempt: Attempt, due: Due) -> Code | Failure | None:
        hanging = sum(each.written_off for each in list(self._inside))
        if hanging >= self._settings.hanging_max:
            return Failure(due.code, "TimeoutError", f"{hanging} earlier sends hang", recorded=False)
        self._inside.add(attempt)
        try:
            outcome = self._send(due)
        except Exception as error:
            # Nothing that a strategy raises comes here. Whether it was called is not known.
            cause = type(error).__name__
            return Failure(None, cause, cause, unknown=True, recorded=False)
        finally:
            self._inside.discard(attempt)
        if isinstance(outcome, Failure) and outcome.ended is not None and is_interrupt(outcome.ended):
            raise outcome.ended
        return outcome

    def _send(self, due: Due) -> Code | Failure | None:
        """Send a code in an app context of its own, whose teardown functions are told if that failed.

        The error that they are given has no frame, and so no code.
        """
        outcome: Code | Failure | None = None
        try:
            with cast(Any, current_app).app_context():
                outcome = self._sender.try_to_send(due.task, due.code)
                if isinstance(outcome, Failure):
                    raise _Unsent(outcome.reason)
        except _Unsent:
            pass
        except BaseException as error:
            if outcome is None or is_interrupt(error):
                raise
            # What became of the message is known, whatever becomes of what was done beside it.
            logger.exception("A teardown function failed after a send of task %s.", due.task.id)
        return outcome

    def _due(self, item: Claimed, report: Report) -> Due | None:
        try:
            due = report(lambda: self._codes.due(item.task_id, self._method))
        except TaskTampered:
            # Who tampered with the task was told of where it was noticed: nothing is sent.
            return None
        return due if due is not None and due.task.queue == item.queue else None

    def _fail(self, item: Claimed, failure: Failure, report: Report, *, left: float = math.inf) -> None:
        if failure.final:
            self._give_up(item, failure, report)
        else:
            self._postpone(item, failure, report, left=left)

    def _postpone(self, item: Claimed, failure: Failure, report: Report, *, left: float = math.inf) -> bool:
        """Let a send be tried again later; false if it was written off before."""
        failures, settings = item.failures + 1, self._settings
        backoff = compute_backoff("exponential", settings.backoff, failures, cap=settings.backoff_max)
        wait, patience = backoff if failure.after is None else failure.after, settings.fallback
        if wait >= left:
            # There is no other try: another method may be in time. What waits until the end is void then.
            wait, patience = max(left, 0.0), 0.0
        delay = Delay(wait, patience, failure.reason, failure.cause, hung=failure.unknown)
        codes = self._new_codes(item)
        postponed = report(lambda: self._codes.postpone(item, delay, codes))
        if postponed.word == "again":
            return False
        if postponed.word == "stale":
            return True
        self._tell(item, failure)
        # This was no turn of the engine: it has to learn when the send is due.
        self._post(item.task_id, self._method)
        following = postponed.following
        logger.warning(
            "Attempt %d to send task %s by %s failed: %s; next in %.3g s.%s",
            failures,
            item.task_id,
            self._method,
            failure.reason,
            wait,
            f" {following} is tried as well." if following else "",
        )
        if following is not None:
            journal.send_fallback(item.task_id, queue=item.queue, method=self._method, following=following)
            self._post(item.task_id, following)
        return True

    def _tell(self, item: Claimed, failure: Failure) -> None:
        if not failure.recorded:
            tell = journal.send_unknown if failure.unknown else journal.send_failed
            tell(item.task_id, queue=item.queue, method=self._method, cause=failure.cause)

    def _new_codes(self, item: Claimed) -> list[Code]:
        return [self._sender.new_code(item.task_id, method) for method in self._sender.methods]

    def _drop(self, item: Claimed, cause: str, report: Report) -> None:
        codes, method = self._new_codes(item), self._method
        dropped = report(
            lambda: self._codes.give_up(item.task_id, item.token, method, codes, [], "dropped", cause)
        )
        if dropped is not None:
            journal.send_dropped(item.task_id, queue=item.queue, method=method, cause=cause)
            logger.debug("No code of task %s is sent by %s any more: %s.", item.task_id, method, cause)

    def _give_up(self, item: Claimed, failure: Failure, report: Report) -> None:
        codes, devices = self._new_codes(item), self._sender.devices
        why: Why = "unknown" if failure.unknown else "refused"
        given_up = report(
            lambda: self._codes.give_up(
                item.task_id, item.token, self._method, codes, devices, why, failure.cause
            )
        )
        if given_up is None:
            return
        self._tell(item, failure)
        following, failed = given_up.following, given_up.failed
        logger.error(
            "Sending task %s by %s is given up: %s.%s",
            item.task_id,
            self._method,
            failure.reason,
            f" {following} is tried." if following else "",
        )
        journal.send_given_up(item.task_id, queue=item.queue, method=self._method, following=following)
        if following is not None:
            self._post(item.task_id, following)
        elif failed is not None:
            journal.task_failed(failed)


class _Unsent(Exception):
    """Tells teardown functions that a code was not sent, and why."""


def _lost(item: Claimed) -> Failure:
    return Failure(None, "Lost", lost_text(item), unknown=True)
