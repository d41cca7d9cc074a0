"""The engine: claim deliveries, keep their leases, watch the time.

Each attempt runs in a thread of its own, at most ``CALLBACK_THREADS`` at a time; one scheduler thread
claims, keeps leases alive and watches the time. An attempt past its timeout is written off: it counts as
failed and gives its place free, while its thread may still report a late success.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from redis import RedisError, ResponseError

from ._callbacks import Attempt, Reporter
from ._config import Config
from ._deliveries import Claimed, DeliveryStore, Suspect
from ._seldom import Seldom

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)

_HEARTBEAT = 1.0
_EMPTY_PAUSE = 0.02
_HOUSEKEEPING = 30.0
_RETRY_MAX = 1.0
_REPORT_RETRY_MAX = 5.0
#: After a lost connection, how long the leases of others are let alone: until they tried again and beat.
_GRACE = _RETRY_MAX + _HEARTBEAT
_LOG = 2.0
_COMPLAIN = 60.0
_LOOK = 1.0
_LOOK_AGAIN = 2.0


class Presence(Protocol):
    """What an engine must know of the listener beside it."""

    @property
    def present_owner(self) -> str:
        """The name under which this process leases."""

    @property
    def may_look(self) -> bool:
        """Whether this process can tell which others live."""


class Runner(Protocol):
    """What an engine runs deliveries by; it may be asked by several threads at once."""

    def refresh(self) -> None:
        """Learn which queues there are."""

    def queues(self) -> Iterable[str]:
        """Return the queues that may have deliveries."""

    def names(self, queue: str) -> list[str]:
        """Return the names under which a queue's deliveries stand."""

    def announce(self, queue: str) -> None:
        """Say in Redis that this process runs a queue's deliveries."""

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""

    def run(self, attempt: Attempt, report: Reporter) -> None:
        """Run an attempt to its end and report how it ended."""

    def fail(self, attempt: Attempt, error: BaseException, report: Reporter) -> None:
        """Report a failed attempt."""

    def mourn(self, item: Claimed) -> None:
        """Give up a delivery that was lost with its process too often."""


class Engine:
    """Run deliveries of one app in one process.

    :param app: whose context they run in.
    :param store: the engine's steps.
    :param runner: runs them.
    :param config: lease, poll and queues.
    :param presence: tells whether this process and others can be seen to live.
    :param threads: how many run at once.
    :param most_threads: how many there may be with those that were written off and still run.
    """

    def __init__(
        self,
        app: Flask,
        store: DeliveryStore,
        runner: Runner,
        config: Config,
        presence: Presence,
        *,
        threads: int,
        most_threads: int,
    ) -> None:
        self._presence = presence
        self._app = app
        self._store = store
        self._runner = runner
        self._config = config
        self._threads, self._most_threads = threads, most_threads
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._attempts: set[Attempt] = set()
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._claim_at = self._pause_until = self._reap_at = 0.0
        self._beat_at = self._tidy_at = 0.0
        self._look_at = math.inf
        self._suspects: dict[str, dict[Suspect, float]] = {}
        self._errors = 0
        self._seldom, self._complain = Seldom(_LOG), Seldom(_COMPLAIN)

    def start(self) -> None:
        """Start the scheduler thread."""
        self._thread = threading.Thread(target=self._run, name="taskflow-callbacks", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Claim at once: something may be due."""
        self._asked.set()
        self._wake.set()

    def refresh(self) -> None:
        """Learn at once which queues there are, and claim."""
        self._tidy_at = 0.0
        self.wake()

    def resync(self) -> None:
        """Claim at once, but take over nothing yet: Redis was away, or this process was."""
        self._reap_at = time.monotonic() + _GRACE
        self._store.relist()
        self.refresh()

    def drain(self) -> None:
        """Claim nothing more."""
        self._draining.set()
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Claim nothing more, wait for what runs, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.drain()
        self._wait_idle(timeout)
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._config.redis_timeout + 1)
        # What the last claim began meanwhile.
        self._wait_idle(deadline - time.monotonic())

    def _wait_idle(self, timeout: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._running(), max(timeout, 0))

    def queues(self) -> list[str]:
        """Return the queues that this engine serves: the runner's, or fewer as configured."""
        wanted = self._config.queues
        return [queue for queue in self._runner.queues() if wanted is None or queue in wanted]

    def run_due(self) -> int:
        """Run what is due in this thread, most urgent first; return the number of attempts."""
        count = 0
        self._runner.refresh()
        for queue in self.queues():
            while True:
                claim = self._store.claim(queue, self._runner.names(queue), 1)
                for item in claim.dead:
                    self._runner.mourn(item)
                for item in claim.deliveries:
                    self._runner.run(self._runner.begin(item), _once)
                    count += 1
                if not claim.deliveries and not claim.again:
                    break
        return count

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                wait = self._turn()
                if self._errors:
                    self._errors = 0
                    logger.info("Redis answers again: callbacks go on.")
                    self.resync()
                    wait = 0.0
            except RedisError as error:
                wait = self._trouble(error)
            except Exception:
                logger.exception("The callback scheduler failed; it goes on.")
                wait = _HEARTBEAT
            self._wake.wait(wait)
            self._wake.clear()

    def _trouble(self, error: RedisError) -> float:
        self._errors += 1
        wait: float = min(_RETRY_MAX, 0.1 * 2 ** min(self._errors, 10))
        wait *= secrets.SystemRandom().uniform(0.5, 1)
        if self._errors == 1 and self._seldom():
            logger.warning("Callbacks wait for Redis: %s: %s", type(error).__name__, error)
        # Living owners could not renew their leases either.
        self._reap_at = time.monotonic() + wait + _GRACE
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
        if now >= self._look_at:
            self._look()
        soonest = min(self._claim_at, self._tidy_at, self._look_at)
        if self._running():
            soonest = min(soonest, self._beat_at, *(attempt.look_at for attempt in self._running()))
        return max(soonest - time.monotonic(), 0.0)

    def _claim(self) -> float:
        wait = self._config.poll
        reap = time.monotonic() >= self._reap_at
        for queue in self.queues():
            free = self._free()
            if free < 1:
                # The end of an attempt wakes the scheduler.
                return wait
            with self._apart(queue):
                wait = min(wait, self._claim_from(queue, free, reap))
        if wait:
            self._pause_until = time.monotonic() + _EMPTY_PAUSE
        return wait

    def _claim_from(self, queue: str, free: int, reap: bool) -> float:
        asked, owner = time.monotonic(), self._presence.present_owner
        claim = self._store.claim(queue, self._runner.names(queue), free, owner=owner, reap=reap)
        for item in claim.dead:
            self._runner.mourn(item)
        if self._draining.is_set() or time.monotonic() - asked >= self._config.lease:
            # This process ends, or it or the reply was held up and others may run these already.
            for item in claim.deliveries:
                self._store.release(item)
            return 0.0
        for item in claim.deliveries:
            self._begin(self._runner.begin(item))
        self._look_soon(queue, claim.held)
        if claim.again or claim.deliveries:
            return 0.0
        # What is over may have to wait for its owner first.
        return math.inf if claim.wait is None else max(claim.wait, _EMPTY_PAUSE)

    @contextmanager
    def _apart(self, queue: str) -> Iterator[None]:
        # A queue whose keys something else has spoiled must not stop the others.
        try:
            yield
        except ResponseError as error:
            if not _is_spoiled(error):
                raise
            if self._complain(queue):
                logger.error("Queue %s stands still, its keys in Redis were spoiled: %s", queue, error)

    def _look_soon(self, queue: str, held: int) -> None:
        ours = sum(attempt.item.queue == queue for attempt in self._running())
        if held > ours:
            self._look_at = min(self._look_at, time.monotonic() + _LOOK)

    def _look(self) -> None:
        """Take over the leases of processes that vanished: seen so in two looks, not renewed between."""
        self._look_at = math.inf
        if not self._presence.may_look:
            self._look_at = time.monotonic() + _LOOK
            return
        for queue in self.queues():
            with self._apart(queue):
                self._look_at_leases(queue)

    def _look_at_leases(self, queue: str) -> None:
        now, names = time.monotonic(), self._runner.names(queue)
        before = self._suspects.get(queue, {})
        old = [suspect for suspect, since in before.items() if now - since >= _LOOK_AGAIN]
        look = self._store.look(queue, names, self._presence.present_owner, old)
        self._suspects[queue] = {item: before.get(item, now) for item in look.suspects}
        if look.taken:
            logger.warning("Took over %d deliveries of a process that vanished.", look.taken)
            self._asked.set()
        self._look_soon(queue, look.held)

    def _free(self) -> int:
        return min(self._threads - len(self._running()), self._most_threads - len(self._attempts))

    def _tidy(self) -> bool:
        more = False
        self._runner.refresh()
        for queue in self.queues():
            with self._apart(queue):
                self._runner.announce(queue)
                more |= self._store.trim(queue, self._runner.names(queue))
        return more

    def _beat(self, running: list[Attempt]) -> None:
        for queue in {attempt.item.queue for attempt in running}:
            ours = [attempt for attempt in running if attempt.item.queue == queue]
            lost = self._store.extend(queue, [attempt.item for attempt in ours])
            for attempt in ours:
                # One whose success is on its way may be done already.
                if attempt.item in lost and not (attempt.robbed or attempt.acks):
                    attempt.robbed = True
                    logger.warning(
                        "The lease of %s on task %s was lost: it may run twice.",
                        attempt.item.callback,
                        attempt.item.task_id,
                    )

    def _running(self) -> list[Attempt]:
        return [attempt for attempt in list(self._attempts) if not attempt.written_off]

    def _watch(self, now: float) -> None:
        for attempt in self._running():
            age, item = now - attempt.started, attempt.item
            if age >= attempt.timeout:
                error = TimeoutError(f"timed out after {attempt.timeout:g} s")
                with self._app.app_context():
                    self._runner.fail(attempt, error, _once)
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

    def _begin(self, attempt: Attempt) -> None:
        self._attempts.add(attempt)
        name = f"taskflow-{attempt.item.callback}"
        threading.Thread(target=self._work, args=(attempt,), name=name, daemon=True).start()

    def _work(self, attempt: Attempt) -> None:
        try:
            self._runner.run(attempt, self._until_stopped)
        except Exception:
            logger.exception("An attempt of callback %s could not be ended.", attempt.item.callback)
        finally:
            with self._idle:
                self._attempts.discard(attempt)
                self._idle.notify_all()
            self.wake()

    def _until_stopped(self, report: Callable[[], bool]) -> bool:
        wait = 0.1
        while True:
            try:
                return report()
            except RedisError as error:
                if _is_spoiled(error) or self._stopped.wait(wait):
                    raise
                wait = min(2 * wait, _REPORT_RETRY_MAX)


def _is_spoiled(error: RedisError) -> bool:
    # A script met a key of a wrong type or a value that it cannot read; a full memory, a replica or a
    # server that still loads have classes of their own.
    return type(error) is ResponseError and "script" in str(error)


def _once(report: Callable[[], bool]) -> bool:
    return report()
