"""The callback engine: claim deliveries, run callbacks, back off, give up.

Each attempt runs in a thread of its own, at most ``CALLBACK_THREADS`` at a time; one scheduler thread
claims, keeps leases alive and watches the time. An attempt past its timeout is written off: it counts as
failed and gives its place free, while its thread may still report a late success.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redis import RedisError
from werkzeug.local import LocalProxy

from . import signals
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
_HEARTBEAT = 1.0
_EMPTY_PAUSE = 0.02
_HOUSEKEEPING = 30.0
_RETRY_MAX = 5.0
_RETRY_AFTER_MAX = 30 * 86400.0
_RANDOM: random.Random = secrets.SystemRandom()

_Reporter = Callable[[Callable[[], bool]], bool]


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
class _Attempt:
    item: Claimed
    callback: Callback
    started: float = field(default_factory=time.monotonic)
    warned: bool = False
    written_off: bool = False

    @property
    def timeout(self) -> float:
        return self.item.task.timeout if self.item.task else math.inf

    @property
    def delivery(self) -> Delivery:
        item = self.item
        return Delivery(f"{item.task_id}:{item.callback}", item.failures + item.lost + 1)


class Engine:
    """Run the callbacks of one app in one process.

    :param app: whose context callbacks run in.
    :param store: the engine's steps.
    :param callbacks: queue -> name -> callback, read anew at each turn.
    :param config: threads, lease, poll and backoff.
    """

    def __init__(
        self,
        app: Flask,
        store: DeliveryStore,
        callbacks: Mapping[str, Mapping[str, Callback]],
        config: Config,
    ) -> None:
        self._app = app
        self._store = store
        self._callbacks = callbacks
        self._config = config
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._attempts: set[_Attempt] = set()
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._claim_at = self._pause_until = self._reap_at = 0.0
        self._beat_at = self._tidy_at = 0.0
        self._errors = 0

    def start(self) -> None:
        """Start the scheduler thread."""
        self._thread = threading.Thread(target=self._run, name="taskflow-callbacks", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Claim at once: something may be due."""
        self._asked.set()
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Claim nothing more, wait for what runs, at most ``timeout`` seconds."""
        self._draining.set()
        self._wake.set()
        with self._idle:
            self._idle.wait_for(lambda: not self._running(), timeout)
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._config.redis_timeout + 1)

    def run_due(self) -> int:
        """Run what is due in this thread, most urgent first; return the number of attempts."""
        count = 0
        for queue in list(self._callbacks):
            while True:
                names = sorted(self._callbacks[queue])
                claim = self._store.claim(queue, names, 1)
                self._mourn(claim.dead)
                for item in claim.deliveries:
                    attempt = _Attempt(item, self._callbacks[queue][item.callback])
                    self._attempt(attempt, self._report_once)
                    count += 1
                if not claim.deliveries and not claim.again:
                    break
        return count

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                wait = self._turn()
                if self._errors:
                    logger.info("Redis answers again: callbacks go on.")
                self._errors = 0
            except RedisError as error:
                wait = self._trouble(error)
            except Exception:
                logger.exception("The callback scheduler failed; it goes on.")
                wait = _HEARTBEAT
            self._wake.wait(wait)
            self._wake.clear()

    def _trouble(self, error: RedisError) -> float:
        self._errors += 1
        wait: float = min(_RETRY_MAX, 0.1 * 2 ** min(self._errors, 10)) * _RANDOM.uniform(0.5, 1)
        if self._errors == 1:
            logger.warning("Callbacks wait for Redis: %s: %s", type(error).__name__, error)
        # Living owners could not renew their leases either: give them one heartbeat first.
        self._reap_at = time.monotonic() + wait + _HEARTBEAT
        self._beat_at = 0.0
        self._asked.set()
        return wait

    def _turn(self) -> float:
        now = time.monotonic()
        self._watch(now)
        running = self._running()
        if running and now >= self._beat_at:
            self._beat(running)
            self._beat_at = now + min(_HEARTBEAT, self._config.lease / 3)
        if now >= self._tidy_at:
            self._tidy_at = now + (0.0 if self._tidy() else _HOUSEKEEPING)
        if self._draining.is_set():
            return _HEARTBEAT / 4
        if self._asked.is_set() or now >= self._claim_at:
            if now < self._pause_until:
                return self._pause_until - now
            self._asked.clear()
            self._claim_at = time.monotonic() + self._claim()
        soonest = min(self._claim_at, self._tidy_at)
        if self._running():
            soonest = min(soonest, self._beat_at)
        return max(soonest - time.monotonic(), 0.0)

    def _claim(self) -> float:
        wait = self._config.poll
        reap = time.monotonic() >= self._reap_at
        for queue in list(self._callbacks):
            free = self._free()
            if free < 1:
                # The end of an attempt wakes the scheduler.
                return wait
            names = sorted(self._callbacks[queue])
            claim = self._store.claim(queue, names, free, reap=reap)
            self._mourn(claim.dead)
            for item in claim.deliveries:
                self._begin(_Attempt(item, self._callbacks[queue][item.callback]))
            if claim.again or claim.deliveries:
                wait = 0.0
            elif claim.wait is not None:
                wait = min(wait, claim.wait)
        if wait:
            self._pause_until = time.monotonic() + _EMPTY_PAUSE
        return wait

    def _free(self) -> int:
        # Threads that were written off may never end: at most as many of them as of the others.
        threads = self._config.callback_threads
        return min(threads - len(self._running()), 2 * threads - len(self._attempts))

    def _tidy(self) -> bool:
        more = False
        for queue in list(self._callbacks):
            names = sorted(self._callbacks[queue])
            self._store.register(queue, names)
            more |= self._store.trim(queue, names)
        return more

    def _beat(self, running: list[_Attempt]) -> None:
        for queue in {attempt.item.queue for attempt in running}:
            items = [attempt.item for attempt in running if attempt.item.queue == queue]
            for item in self._store.extend(queue, items):
                logger.warning(
                    "The lease of %s on task %s was lost: it may run twice.",
                    item.callback,
                    item.task_id,
                )

    def _running(self) -> list[_Attempt]:
        return [attempt for attempt in list(self._attempts) if not attempt.written_off]

    def _watch(self, now: float) -> None:
        for attempt in self._running():
            age, item = now - attempt.started, attempt.item
            if age >= attempt.timeout:
                error = TimeoutError(f"timed out after {attempt.timeout:g} s")
                with self._app.app_context():
                    self._failed(attempt, error, self._report_once)
                attempt.written_off = True
                self._asked.set()
            elif age >= attempt.timeout / 2 and not attempt.warned:
                attempt.warned = True
                logger.warning(
                    "Callback %s on task %s has used half of its %g s.",
                    item.callback,
                    item.task_id,
                    attempt.timeout,
                )

    def _begin(self, attempt: _Attempt) -> None:
        self._attempts.add(attempt)
        name = f"taskflow-{attempt.item.callback}"
        threading.Thread(target=self._work, args=(attempt,), name=name, daemon=True).start()

    def _work(self, attempt: _Attempt) -> None:
        try:
            self._attempt(attempt, self._report_until_stopped)
        except Exception:
            logger.exception("An attempt of callback %s could not be ended.", attempt.item.callback)
        finally:
            with self._idle:
                self._attempts.discard(attempt)
                self._idle.notify_all()
            self.wake()

    def _attempt(self, attempt: _Attempt, report: _Reporter) -> None:
        item = attempt.item
        with self._app.app_context():
            if item.task is None:
                self._failed(attempt, Reject("tampered: changed in Redis from outside"), report)
                return
            mark = _current.set(attempt.delivery)
            error: BaseException | None = None
            try:
                attempt.callback.function(item.task)
            except (Exception, SystemExit) as raised:
                error = raised
            finally:
                _current.reset(mark)
            if error is not None:
                self._failed(attempt, error, report)
            elif report(lambda: self._store.ack(item)):
                self._emit(signals.callback_succeeded, attempt, None)
            else:
                logger.warning(
                    "Callback %s on task %s succeeded after its delivery was taken over: it may run twice.",
                    item.callback,
                    item.task_id,
                )

    def _failed(self, attempt: _Attempt, error: BaseException, report: _Reporter) -> None:
        item, callback = attempt.item, attempt.callback
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
            return min(max(error.after, 0.0), _RETRY_AFTER_MAX)
        return compute_backoff(
            callback.backoff_strategy,
            callback.backoff_time,
            failures,
            cap=self._config.backoff_max,
        )

    def _mourn(self, dead: Sequence[Claimed]) -> None:
        for item in dead:
            logger.error(
                "Callback %s on task %s was lost with its process %d times: it is a dead letter.",
                item.callback,
                item.task_id,
                item.lost,
            )
            error = RuntimeError(f"lost with its process {item.lost} times")
            attempt = _Attempt(item, self._callbacks[item.queue][item.callback])
            with self._app.app_context():
                self._emit(signals.callback_dead, attempt, error)

    def _emit(self, signal: NamedSignal, attempt: _Attempt, error: BaseException | None) -> None:
        if attempt.item.task is not None:
            signals.emit(
                signal,
                self._app,
                task=attempt.item.task,
                callback=attempt.item.callback,
                delivery=attempt.delivery,
                error=error,
            )

    def _report_once(self, report: Callable[[], bool]) -> bool:
        return report()

    def _report_until_stopped(self, report: Callable[[], bool]) -> bool:
        wait = 0.1
        while True:
            try:
                return report()
            except RedisError:
                if self._stopped.wait(wait):
                    raise
                wait = min(2 * wait, _RETRY_MAX)


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} (at {frames[-1].filename}:{frames[-1].lineno})" if frames else text
