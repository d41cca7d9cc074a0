"""Send codes in the background: a send is a delivery of the same engine as callbacks are.

Nothing recoverable waits in Redis: a send says which task and method, and its code is derived when it runs.
One that is given up falls back to the task's next method; if none is left, the task has failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import signals
from ._audit import record
from ._callbacks import Attempt, Reporter, compute_backoff
from ._codes import CodeStore, GivenUp
from ._config import Config
from ._deliveries import Claimed, DeliveryStore
from ._keys import SENDS, Queues
from ._sending import Failure, Sender
from ._store import Code
from .errors import TaskTampered

if TYPE_CHECKING:
    from flask import Flask

    from ._task import Task

logger = logging.getLogger(__name__)


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
        self._inside = 0

    def refresh(self) -> None:
        """Hear of the queues that other processes add tasks to."""
        self._queues.refresh()

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
        item, sent = attempt.item, False
        with self._app.app_context():
            due = self._due(item, report)
            if due is not None:
                failure = self._try(*due)
                if failure is not None:
                    self._fail(item, failure, report)
                    return
                sent = True
            attempt.acks += 1
            if not report(lambda: self._deliveries.ack(item, again=True)) and sent:
                logger.info("The code of task %s by %s may be sent twice.", item.task_id, self._method)

    def fail(self, attempt: Attempt, error: BaseException, report: Reporter) -> None:
        """Report an attempt that took too long."""
        item, cause = attempt.item, type(error).__name__
        record(
            "send_failed",
            item.task_id,
            level=logging.WARNING,
            cause=cause,
            queue=item.queue,
            method=self._method,
        )
        self._fail(item, Failure(None, cause, str(error)), report)

    def mourn(self, item: Claimed) -> None:
        """Give up a send that was lost with its process too often."""
        with self._app.app_context():
            self._give_up(item, f"lost with its process {item.lost} times", lambda step: step())

    def _try(self, task: Task[Any], code: Code) -> Failure | None:
        with self._lock:
            if self._inside >= self.hanging_max:
                return Failure(code, "TimeoutError", f"{self._inside} earlier sends hang")
            self._inside += 1
        try:
            return self._sender.try_to_send(task, code)
        finally:
            with self._lock:
                self._inside -= 1

    def _due(self, item: Claimed, report: Reporter) -> tuple[Task[Any], Code] | None:
        found: list[tuple[Task[Any], Code]] = []

        def look() -> bool:
            # Who tampered with the task was told of where it was noticed: nothing is sent.
            with suppress(TaskTampered):
                due = self._codes.due(item.task_id, self._method)
                found.extend([] if due is None else [due])
            return True

        report(look)
        return found[0] if found else None

    def _fail(self, item: Claimed, failure: Failure, report: Reporter) -> None:
        failures, config = item.failures + 1, self._config
        if failure.final or failures >= config.send_attempts:
            self._give_up(item, failure.reason, report)
            return
        backoff = compute_backoff("exponential", config.send_backoff, failures, cap=config.backoff_max)
        delay = backoff if failure.after is None else failure.after
        if report(lambda: self._deliveries.fail(item, delay, failure.reason)):
            logger.warning(
                "Attempt %d of %d to send task %s by %s failed (%s); next in %.3g s.",
                failures,
                config.send_attempts,
                item.task_id,
                self._method,
                failure.reason,
                delay,
            )

    def _give_up(self, item: Claimed, reason: str, report: Reporter) -> None:
        codes = [self._sender.new_code(item.task_id, method) for method in self._sender.methods]
        outcome: list[GivenUp | None] = []

        def step() -> bool:
            outcome[:] = [self._codes.give_up(item.task_id, item.token, self._method, codes)]
            return outcome[0] is not None

        if not report(step) or outcome[0] is None:
            return
        following, failed = outcome[0].following, outcome[0].failed
        logger.error(
            "Sending task %s by %s is given up: %s.%s",
            item.task_id,
            self._method,
            reason,
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
