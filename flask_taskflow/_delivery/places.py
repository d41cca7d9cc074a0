"""Where attempts run: in threads that are kept, so many at once, and some that wait for one of them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Protocol

from .attempts import Attempt

#: What is claimed ahead takes about so long by the running mean, seconds.
_AHEAD = 0.005
_AHEAD_MAX = 64
#: The weight of the last attempt in the running mean.
_WEIGHT = 0.1
#: What waits is given back when nothing began for so long, seconds.
_LIES = 0.1


class Room(Protocol):
    """How many places there are."""

    @property
    def threads(self) -> int:
        """How many attempts run at once."""

    @property
    def most_threads(self) -> int:
        """How many may run with those that were written off."""

    @property
    def ahead(self) -> bool:
        """Whether deliveries are claimed while no place is free."""


class Places:
    """The places of one engine, and the attempts that take them or wait for them.

    An attempt that was written off gives its place free, while its thread may still run: the number of these
    is bounded, too.

    :param name: what the engine does, for the names of threads.
    :param work: runs an attempt to its end, and raises nothing.
    :param done: is called after that, when the place is free.
    :param room: how many there are.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Attempt], None],
        done: Callable[[], None],
        room: Room,
    ) -> None:
        self.name = name
        self._work, self._done = work, done
        self._most, self._most_threads, self._ahead = room.threads, room.most_threads, room.ahead
        self._held: set[Attempt] = set()
        self._waiting: SimpleQueue[Attempt | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._idle = threading.Condition()
        self._mean = math.inf
        self._began = 0.0

    def all(self) -> list[Attempt]:
        """Return the attempts that run, and those that wait."""
        return list(self._held)

    def held(self) -> list[Attempt]:
        """Return the same without those that were written off."""
        return [attempt for attempt in self.all() if not attempt.written_off]

    def running(self) -> list[Attempt]:
        """Return the attempts that run and were not written off."""
        return [attempt for attempt in self.held() if attempt.has_begun]

    def free(self) -> int:
        """Return how many more attempts may begin at once."""
        return max(min(self._most - len(self.held()), self._most_threads - len(self._held)), 0)

    def room_ahead(self) -> int:
        """Return how many more may wait: so many as begin within a moment, none if attempts take long."""
        if not self._ahead or self._waiting.qsize() > self._low():
            return 0
        return max(self._target() - self._waiting.qsize(), 0)

    def _target(self) -> int:
        return min(int(_AHEAD * self._most / max(self._mean, 1e-6)), _AHEAD_MAX)

    def _low(self) -> int:
        return self._target() // 2

    @property
    def wants_more(self) -> bool:
        """Whether an attempt that ends should be reported at once: few wait for its place."""
        return self._waiting.qsize() <= self._low()

    @property
    def any_waits(self) -> bool:
        """Whether an attempt waits for a place."""
        return not self._waiting.empty()

    def hanging(self) -> int:
        """Return how many attempts hang past their time, if nothing can begin for them; else 0."""
        return len(self._held) if self.free() < 1 and not self.held() else 0

    def put(self, attempts: Iterable[Attempt]) -> None:
        """Let attempts run, in order.

        :raises RuntimeError: if the system has no thread for them now: they wait.
        """
        if self._waiting.empty():
            self._began = time.monotonic()
        for attempt in attempts:
            self._held.add(attempt)
            self._waiting.put(attempt)
        hang = sum(attempt.written_off for attempt in list(self._held))
        # What an app lets Python do in a new thread, as by `threading.settrace`, may have ended one.
        self._threads.difference_update([each for each in list(self._threads) if not each.is_alive()])
        while len(self._threads) < min(self._most, len(self._held) - hang) + hang:
            thread = threading.Thread(target=self._run, name=f"taskflow-{self.name}-runs", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                if len(self._threads) <= hang:
                    raise
                return

    def take_back(self) -> list[Attempt]:
        """Return those that wait, which begin no more."""
        taken: list[Attempt] = []
        try:
            while True:
                attempt = self._waiting.get_nowait()
                if attempt is not None:
                    taken.append(attempt)
        except Empty:
            for attempt in taken:
                self._end(attempt)
        return taken

    def take_back_if_lying(self) -> list[Attempt]:
        """Return those that wait, if that takes longer than it should have."""
        if self._waiting.empty() or time.monotonic() - self._began < _LIES:
            return []
        return self.take_back()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs, at most ``timeout`` seconds; return whether that is so."""
        with self._idle:
            return self._idle.wait_for(lambda: not self.held(), max(timeout, 0))

    def close(self, timeout: float) -> None:
        """End the threads that run nothing."""
        threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        busy, deadline = bool(self._held), time.monotonic() + (0.0 if self._held else timeout)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.01 if busy else 0.0))

    def _run(self) -> None:
        thread = threading.current_thread()
        try:
            while (attempt := self._waiting.get()) is not None:
                self._began = attempt.started = time.monotonic()
                try:
                    self._work(attempt)
                finally:
                    self._learn(time.monotonic() - attempt.started)
                    self._end(attempt)
                    self._done()
                if attempt.written_off and len(self._threads) > self._most:
                    # Another one has taken its place.
                    break
        finally:
            self._threads.discard(thread)

    def _learn(self, seconds: float) -> None:
        known = self._mean if self._mean < math.inf else seconds
        self._mean = known + _WEIGHT * (seconds - known)

    def _end(self, attempt: Attempt) -> None:
        with self._idle:
            self._held.discard(attempt)
            if not self._held:
                self._idle.notify_all()
