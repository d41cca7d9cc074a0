"""Callbacks: what they are, how one attempt runs, when the next one is due."""

from __future__ import annotations

import inspect
import logging
import math
import random
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from werkzeug.local import LocalProxy

from . import signals
from ._audit import record
from ._config import Config
from ._deliveries import Claimed, DeliveryStore
from ._task import check_name, check_seconds
from .errors import ConfigError, InvalidTask

if TYPE_CHECKING:
    from blinker import NamedSignal
    from flask import Flask

    from ._task import Task

logger = logging.getLogger(__name__)

STRATEGIES: Mapping[str, Callable[[int], int]] = {
    "fixed": lambda failures: 1,
    "linear": lambda failures: failures,
    "exponential": lambda failures: 2 ** min(failures - 1, 63),
}
_JITTER = 0.1
#: The longest that a Retry may ask for, seconds.
AFTER_MAX = 30 * 86400.0
_RANDOM: random.Random = secrets.SystemRandom()

#: Makes a report to Redis: at once, or again and again until it got through.
Reporter = Callable[[Callable[[], bool]], bool]


class Retry(Exception):
    """Raise it in a callback to try again; the attempt counts.

    :param message: why, for the log and the operator.
    :param after: seconds until then, instead of the callback's backoff.
    """

    def __init__(self, message: str = "retry", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Reject(Exception):
    """Raise it in a callback to make the delivery a dead letter at once.

    :param reason: why, for the log and the operator.
    """

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Delivery:
    """One callback's share of a verified task, as :data:`current_delivery` shows it.

    :param id: the same for all attempts, unique and stable: the idempotency key.
    :param attempt: counts from 1, lost processes included.
    """

    id: str
    attempt: int


_current: ContextVar[Delivery] = ContextVar("flask_taskflow.delivery")

#: The :class:`Delivery` that runs, inside a callback.
current_delivery = cast(
    Delivery,
    LocalProxy(_current, unbound_message="current_delivery is only there inside a callback"),
)


@dataclass(frozen=True, slots=True)
class Callback:
    """A function that runs, in one process of the fleet, after a task was verified.

    :param queue: whose tasks.
    :param name: unique in the queue, the same in every release that should serve its deliveries.
    :param function: called with the task.
    :param max_attempts: runs until it counts as dead.
    :param backoff_strategy: ``fixed``, ``linear`` or ``exponential``.
    :param backoff_time: seconds, the base of the backoff.
    """

    queue: str
    name: str
    function: Callable[[Task[Any]], object]
    max_attempts: int = 3
    backoff_strategy: str = "fixed"
    backoff_time: float = 1.0

    def __post_init__(self) -> None:
        _check_function(self.function)
        try:
            check_name(self.queue, "a queue")
            check_name(self.name, "a callback's name (set name=...)")
            check_seconds(self.backoff_time, "backoff_time", maximum=30 * 86400)
        except InvalidTask as error:
            raise ConfigError(str(error)) from None
        if self.backoff_strategy not in STRATEGIES:
            raise ConfigError(
                f"backoff_strategy of {self.name} must be one of {sorted(STRATEGIES)}, "
                f"not {self.backoff_strategy!r}"
            )
        attempts = self.max_attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise ConfigError(f"max_attempts of {self.name} must be an integer from 1")


def _check_function(function: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError("a callback must be a plain function: an async one would never run")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ConfigError("a callback is called with one argument, the task") from None
    except ValueError:
        # Some built-in functions do not tell their arguments.
        return


def compute_backoff(
    strategy: str, base: float, failures: int, *, cap: float, jitter: float = _JITTER
) -> float:
    """Return the seconds to wait after a failed attempt.

    :param strategy: ``fixed``, ``linear`` or ``exponential``.
    :param base: seconds.
    :param failures: attempts that failed so far, from 1.
    :param cap: the longest wait before jitter, in seconds.
    :param jitter: the largest share that is added at random, so that retries do not come in step.
    """
    wait = min(cap, base * STRATEGIES[strategy](failures))
    return wait * (1 + _RANDOM.uniform(0, jitter))


@dataclass(slots=True, eq=False)
class Attempt:
    """A delivery that runs in this process.

    :param item: the delivery.
    :param timeout: seconds that it may take.
    :param started: by the monotonic clock.
    :param warned: whether the log has told that it takes long.
    :param written_off: whether it counts as failed although it still runs.
    :param robbed: whether the log has told that another process may run it.
    :param acks: how often its success was reported.
    """

    item: Claimed
    timeout: float
    started: float = field(default_factory=time.monotonic)
    warned: bool = False
    written_off: bool = False
    robbed: bool = False
    acks: int = 0

    @property
    def look_at(self) -> float:
        """When its time must be looked at next, by the monotonic clock."""
        return self.started + (self.timeout if self.warned else self.timeout / 2)

    @property
    def delivery(self) -> Delivery:
        """What ``current_delivery`` shows."""
        item = self.item
        return Delivery(f"{item.task_id}:{item.callback}", item.failures + item.lost + 1)


class Runner:
    """Run attempts of one app's callbacks and report how they ended.

    :param app: whose context callbacks run in.
    :param store: takes the reports.
    :param config: the cap of the backoff.
    :param callbacks: queue -> name -> callback, read anew at each turn.
    """

    def __init__(
        self,
        app: Flask,
        store: DeliveryStore,
        config: Config,
        callbacks: Mapping[str, Mapping[str, Callback]],
    ) -> None:
        self._app = app
        self._store = store
        self._config = config
        self._callbacks = callbacks

    def refresh(self) -> None:
        """Do nothing: callbacks are known from their registration on."""

    def queues(self) -> list[str]:
        """Return the queues that have callbacks."""
        return list(self._callbacks)

    def names(self, queue: str) -> list[str]:
        """Return the names of a queue's callbacks, sorted."""
        return sorted(self._callbacks[queue])

    def announce(self, queue: str) -> None:
        """Say in Redis which callbacks of a queue this process has."""
        self._store.register(queue, self.names(queue))

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""
        return Attempt(item, item.task.timeout if item.task else math.inf)

    def run(self, attempt: Attempt, report: Reporter) -> None:
        """Run a callback once in this thread and report how it ended."""
        item = attempt.item
        with self._app.app_context():
            if item.task is None:
                self.fail(attempt, Reject("tampered: changed in Redis from outside"), report)
                return
            mark = _current.set(attempt.delivery)
            error: BaseException | None = None
            try:
                self._callback(item).function(item.task)
            except (Exception, SystemExit) as raised:
                error = raised
            finally:
                _current.reset(mark)
            if error is not None:
                self.fail(attempt, error, report)
            elif report(lambda: self._ack(attempt)):
                self._emit(signals.callback_succeeded, attempt, None)
            else:
                logger.warning(
                    "Callback %s on task %s succeeded, but its delivery was lost or taken: it may run twice.",
                    item.callback,
                    item.task_id,
                )

    def _ack(self, attempt: Attempt) -> bool:
        attempt.acks += 1
        return self._store.ack(attempt.item, again=attempt.acks > 1)

    def fail(self, attempt: Attempt, error: BaseException, report: Reporter) -> None:
        """Report a failed attempt: again later, or a dead letter."""
        item, callback = attempt.item, self._callback(attempt.item)
        failures, text = item.failures + 1, _describe(error)
        if isinstance(error, Reject) or failures >= callback.max_attempts:
            signal, then = signals.callback_dead, "it is a dead letter"
            accepted = report(lambda: self._store.bury(item, text))
        else:
            delay = self._delay(callback, failures, error)
            signal, then = signals.callback_failed, f"next in {delay:.3g} s"
            accepted = report(lambda: self._store.fail(item, delay, text))
        if not accepted:
            logger.info("The late failure of %s on task %s is void.", item.callback, item.task_id)
            return
        logger.error(
            "Callback %s on task %s failed, attempt %d of %d; %s.",
            item.callback,
            item.task_id,
            failures,
            callback.max_attempts,
            then,
            exc_info=error,
        )
        self._emit(signal, attempt, error)

    def _delay(self, callback: Callback, failures: int, error: BaseException) -> float:
        if isinstance(error, Retry) and error.after is not None:
            return min(max(error.after, 0.0), AFTER_MAX)
        return compute_backoff(
            callback.backoff_strategy,
            callback.backoff_time,
            failures,
            cap=self._config.backoff_max,
        )

    def mourn(self, item: Claimed) -> None:
        """Tell of a delivery that was lost with its process too often."""
        error = RuntimeError(f"lost with its process {item.lost} times")
        logger.error("Callback %s on task %s is dead: %s.", item.callback, item.task_id, error)
        with self._app.app_context():
            self._emit(signals.callback_dead, self.begin(item), error)

    def _callback(self, item: Claimed) -> Callback:
        return self._callbacks[item.queue][item.callback]

    def _emit(self, signal: NamedSignal, attempt: Attempt, error: BaseException | None) -> None:
        item = attempt.item
        if signal is signals.callback_dead:
            record(
                "callback_dead",
                item.task_id,
                level=logging.ERROR,
                queue=item.queue,
                callback=item.callback,
                delivery=attempt.delivery.id,
                attempt=attempt.delivery.attempt,
                cause=type(error).__name__,
            )
        if attempt.item.task is not None:
            signals.emit(
                signal,
                self._app,
                task=attempt.item.task,
                callback=attempt.item.callback,
                delivery=attempt.delivery,
                error=error,
            )


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} (at {frames[-1].filename}:{frames[-1].lineno})" if frames else text
