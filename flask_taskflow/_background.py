"""Send codes in the background: a send is a delivery of the same engine as callbacks are.

Nothing recoverable waits in Redis: a send says which task and method, and its code is derived when it runs.
One that is given up falls back to the task's next method; if none is left, the task has failed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from redis import RedisError, ResponseError

from . import signals
from ._audit import record
from ._callbacks import AFTER_MAX, Attempt, Reporter, compute_backoff
from ._codes import CodeStore, Due, GivenUp
from ._config import Config
from ._deliveries import Claimed, DeliveryStore
from ._keys import SENDS, Queues
from ._seldom import Seldom
from ._sending import Failure, Sender
from ._store import Code
from .errors import TaskTampered

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)

_COMPLAIN = 60.0


class SendRunner:
    """Send codes by one method, and report how that ended.

    :param app: whose context strategies run in, and the sender of signals.
    :param method: the method.
    :param sender: derives codes and calls strategies.
    :param codes: tells what is to be sent, and falls back.
    :param deliveries: takes the other reports.
    :param config: attempts, backoff and timeout.
    :param queues: the queues that are served.
    :param post: called with task and method when a fall-back waits.
    """

    def __init__(
        self,
        app: Flask,
        method: str,
        sender: Sender,
        codes: CodeStore,
        deliveries: DeliveryStore,
        config: Config,
        queues: Queues,
        post: Callable[[str, str], None],
    ) -> None:
        self._app = app
        self._method = method
        self._sender = sender
        self._codes = codes
        self._deliveries = deliveries
        self._config = config
        self._queues = queues
        self._post = post
        #: So many sends may hang; what comes then fails without a try, and falls back.
        self.hanging_max = 2 * config.send_threads
        self._lock = threading.Lock()
        self._inside: set[Attempt] = set()
        self._complain = Seldom(_COMPLAIN)

    def refresh(self) -> None:
        """Hear of the queues that other processes add tasks to."""
        try:
            self._queues.refresh()
        except ResponseError as error:
            # Codes of the queues that are known are sent all the same.
            if self._complain("queues"):
                logger.error("The list of queues in Redis cannot be read: %s", error)

    def queues(self) -> list[str]:
        """Return every queue that this process has heard of."""
        return self._queues.names()

    def names(self, queue: str) -> list[str]:
        """Return the name under which the method's sends stand in each queue."""
        return [SENDS + self._method]

    def announce(self, queue: str) -> None:
        """List the queue: it may have no callback that is registered there."""
        self._queues.add(queue)

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now; a built-in strategy ends by itself before its time is over."""
        return Attempt(item, self._config.send_timeout + 2 * self._config.redis_timeout)

    def run(self, attempt: Attempt, report: Reporter) -> None:
        """Send a code, unless none is to be sent any more."""
        item = attempt.item
        with self._app.app_context():
            due = self._due(item, report)
            if attempt.written_off:
                # Redis was away for so long; the next attempt is another's.
                return
            if due is None:
                report(lambda: self._deliveries.ack(item, again=True))
                return
            ends = time.monotonic() + due.left
            if item.lost > self._config.max_lost:
                # Given up here, where it is tried until Redis took it.
                self._give_up(item, _lost(item), report)
                return
            outcome = self._try(attempt, due)
            # While Redis is away what comes now is late, but has not failed by that.
            attempt.timeout = math.inf
            if isinstance(outcome, Failure):
                self._fail(item, outcome, report, left=ends - time.monotonic())
            elif outcome is None:
                report(lambda: self._deliveries.release(item))
            elif not report(lambda: self._sent(attempt, outcome)):
                logger.info("The code of task %s by %s may be sent twice.", item.task_id, self._method)

    def fail(self, attempt: Attempt, error: BaseException, report: Reporter) -> None:
        """Report an attempt that took too long."""
        self._fail(attempt.item, Failure(None, type(error).__name__, str(error), told=False), report)

    def mourn(self, item: Claimed) -> None:
        """Give up a send that was lost with its process, and then with those that were to give it up."""
        with self._app.app_context():
            try:
                self._give_up(item, _lost(item), lambda step: step())
            except RedisError as error:
                # What was claimed beside it must not wait for that.
                cause = type(error).__name__
                logger.error("Sending task %s by %s ends here: %s.", item.task_id, self._method, cause)

    def _sent(self, attempt: Attempt, code: Code) -> bool:
        attempt.acks += 1
        item = attempt.item
        return self._codes.sent(item.task_id, item.queue, item.token, code, again=attempt.acks > 1)

    def _try(self, attempt: Attempt, due: Due) -> Code | Failure | None:
        with self._lock:
            hanging = sum(each.written_off for each in self._inside)
            if hanging >= self.hanging_max:
                return Failure(due.code, "TimeoutError", f"{hanging} earlier sends hang", told=False)
            self._inside.add(attempt)
        try:
            return self._sender.try_to_send(due.task, due.code)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A thread that ended by it would tell nobody, or show its text, which may hold the code.
            cause = type(error).__name__
        finally:
            with self._lock:
                self._inside.discard(attempt)
        return Failure(due.code, cause, f"{cause} ended the strategy", told=False)

    def _due(self, item: Claimed, report: Reporter) -> Due | None:
        found: list[Due] = []

        def look() -> bool:
            # Who tampered with the task was told of where it was noticed: nothing is sent.
            with suppress(TaskTampered):
                due = self._codes.due(item.task_id, self._method)
                found.extend([] if due is None or due.task.queue != item.queue else [due])
            return True

        report(look)
        return found[-1] if found else None

    def _fail(self, item: Claimed, failure: Failure, report: Reporter, *, left: float = math.inf) -> None:
        failures, config = item.failures + 1, self._config
        backoff = compute_backoff("exponential", config.send_backoff, failures, cap=config.backoff_max)
        delay = _read_after(failure.after, backoff)
        # What comes after the task's end comes never: another method may be in time.
        if failure.final or failures >= config.send_attempts or delay >= left:
            self._give_up(item, failure, report)
        elif report(lambda: self._deliveries.fail(item, delay, failure.reason)):
            self._tell(item, failure)
            logger.warning(
                "Attempt %d of %d to send task %s by %s failed (%s); next in %.3g s.",
                failures,
                config.send_attempts,
                item.task_id,
                self._method,
                failure.reason,
                delay,
            )

    def _tell(self, item: Claimed, failure: Failure) -> None:
        if not failure.told:
            fields = {"cause": failure.cause, "queue": item.queue, "method": self._method}
            record("send_failed", item.task_id, level=logging.WARNING, **fields)

    def _give_up(self, item: Claimed, failure: Failure, report: Reporter) -> None:
        codes = [self._sender.new_code(item.task_id, method) for method in self._sender.methods]
        devices = self._sender.devices
        outcome: list[GivenUp | None] = []

        def step() -> bool:
            outcome[:] = [self._codes.give_up(item.task_id, item.token, self._method, codes, devices)]
            return outcome[0] is not None

        if not report(step) or outcome[0] is None:
            return
        self._tell(item, failure)
        following, failed = outcome[0].following, outcome[0].failed
        logger.error(
            "Sending task %s by %s is given up: %s.%s",
            item.task_id,
            self._method,
            failure.reason,
            f" {following} is tried." if following else "",
        )
        record(
            "send_given_up",
            item.task_id,
            level=logging.ERROR,
            queue=item.queue,
            method=self._method,
            following=following,
        )
        if following is not None:
            self._post(item.task_id, following)
        elif failed is not None:
            record("task_failed", item.task_id, level=logging.ERROR, queue=item.queue)
            signals.emit(signals.task_failed, self._app, task=failed)


def _lost(item: Claimed) -> Failure:
    return Failure(None, "Lost", f"lost with its process {item.lost} times")


def _read_after(after: object, backoff: float) -> float:
    """Return the seconds that a strategy asked for, or the backoff if that is no number of seconds."""
    if isinstance(after, int | float) and after == after:
        return min(max(float(min(after, AFTER_MAX)), 0.0), AFTER_MAX)
    return backoff
