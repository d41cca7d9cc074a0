"""Let attempts run, each in a context of the app, and report how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from redis import RedisError

from .._interrupts import is_a, is_for_caller
from .._log import Logger
from .._store.deliveries import DeliveryStore, End
from .._store.records import Claimed
from .asides import Asides
from .attempts import Attempt, Report, Runner, T
from .outbox import Ended, Outbox
from .turns import is_spoiled

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

_REPORT_RETRY_MAX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The attempts of one engine, as they run.

    :param app: in whose context.
    :param runner: runs them.
    :param report: tells Redis how they ended.
    :param asides: does what the scheduler's thread may not wait for.
    :param wake: lets it look at once what is due.
    """

    app: Flask
    runner: Runner
    report: Report
    asides: Asides
    wake: Callable[[], object]

    def work(self, attempt: Attempt) -> None:
        """Run an attempt to its end, and raise nothing."""
        entered = False
        try:
            with self.app.app_context():
                entered = True
                self.runner.execute(attempt, self.report)
        except BaseException as error:
            logger.exception("An attempt at %s could not be ended.", attempt.item)
            # What Redis did not take until the end is left to the lease.
            refused = entered and is_a(error, RedisError)
            if not (attempt.reported or attempt.written_off or refused):
                with suppress(BaseException):
                    self._fail(attempt, error)

    def _fail(self, attempt: Attempt, error: BaseException) -> None:
        """Report a failed attempt, also if it is the app's context that fails."""
        with ExitStack() as stack:
            with suppress(Exception):
                stack.enter_context(self.app.app_context())
            self.runner.fail(attempt, error, self.report)

    def time_out(self, attempt: Attempt) -> None:
        """Report, in a thread of its own, that an attempt took too long."""
        error = TimeoutError(f"timed out after {attempt.timeout:g} s")

        def tell() -> None:
            self._fail(attempt, error)
            # Now it is known when the next attempt is due.
            self.wake()

        self.asides.put(tell)

    def end_lost_soon(self, items: Iterable[Claimed]) -> None:
        """End, in a thread of its own, what was lost too often."""
        self.asides.put(partial(self.end_lost, items))

    def end_lost(self, items: Iterable[Claimed]) -> None:
        """End what was lost with its process too often."""
        for item in items:
            try:
                with self.app.app_context():
                    self.runner.end_lost(item)
            except BaseException as error:
                if is_for_caller(error):
                    raise
                logger.exception("The end of %s could not be told.", item)


@dataclass(frozen=True, slots=True)
class ReportUntil:
    """Report again and again until Redis took it, or the engine was stopped.

    :param store: takes the ends that come after that.
    :param outbox: keeps the others for the next turn.
    :param stopped: is set once there are no more turns.
    """

    store: DeliveryStore
    outbox: Outbox
    stopped: threading.Event

    def __call__(self, step: Callable[[], T], /) -> T:
        """Take a step."""
        wait = 0.1
        while True:
            try:
                return step()
            except RedisError as error:
                if is_spoiled(error) or self.stopped.wait(wait):
                    raise
                wait = min(2 * wait, _REPORT_RETRY_MAX)

    def end(self, attempt: Attempt, end: End, tell: Callable[[bool], None], /) -> None:
        """Let the next turn report how an attempt ended."""
        ended = Ended(attempt, end, tell)
        self.outbox.put(ended)
        # Looked at afterwards: no turn comes any more that would see it.
        if self.stopped.is_set() and self.outbox.withdraw(ended):
            tell(self.store.end(end))
