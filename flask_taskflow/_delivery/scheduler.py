"""The thread of an engine that watches the clock and calls Redis, and nothing else."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Protocol

from redis import RedisError

from .._log import Logger, Work, tell_by
from .._seldom import Seldom

logger = Logger(__name__)

#: The longest wait for a server that is away, seconds.
RETRY_MAX = 1.0
_LOG = 2.0
_COMPLAIN = 60.0
_AGAIN = 1.0


class Chores(Protocol):
    """What a scheduler does."""

    def turn(self) -> float:
        """Do what is due; return the seconds until something is again, unless it is woken."""

    def lost(self, wait: float) -> None:
        """Take note that Redis is away, and is tried again in a while."""

    def resync(self) -> None:
        """Make up for what was missed: Redis was away, or this process was."""


class Scheduler:
    """A thread that does its chores for ever, whatever happens to it.

    :param chores: what is done.
    :param name: what the engine does, for the name of the thread.
    :param hand: lets another thread log what this one has to say.
    """

    def __init__(self, chores: Chores, name: str, hand: Callable[[Work], None]) -> None:
        self._chores, self._name, self._hand = chores, name, hand
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        #: Held while it starts.
        self._starting = threading.Lock()
        self._errors = 0
        self._seldom, self._complain = Seldom(_LOG), Seldom(_COMPLAIN)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._starting:
            if not self.runs:
                thread = threading.Thread(target=self._run, name=f"taskflow-{self._name}", daemon=True)
                thread.start()
                # Last: whoever supervises it meanwhile would find it dead.
                self._thread = thread

    def wake(self) -> None:
        """Let the next turn come at once."""
        self._wake.set()

    @property
    def stopped(self) -> threading.Event:
        """Is set once there are no more turns."""
        return self._stopped

    @property
    def runs(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float) -> bool:
        """Take no more turns; wait for the one that runs, at most so long; return whether it ended."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self.runs

    def supervise(self) -> None:
        """Start the thread anew if something ended it."""
        if self._thread is not None and not self.runs and not self._stopped.is_set():
            logger.error("The scheduler of taskflow-%s had ended; it is started again.", self._name)
            self.start()

    def _run(self) -> None:
        tell_by(self._hand)
        while not self._stopped.is_set():
            wait = self._turn()
            self._wake.wait(wait)
            self._wake.clear()

    def _turn(self) -> float:
        try:
            wait = self._chores.turn()
            if not self._errors:
                return wait
            self._errors = 0
            logger.info("Redis answers again: callbacks go on.")
            self._chores.resync()
            return 0.0
        except RedisError as error:
            return self._back_off(error)
        except BaseException:
            logger.exception("The callback scheduler failed; it goes on.")
            return _AGAIN

    def _back_off(self, error: RedisError) -> float:
        self._errors += 1
        wait: float = min(RETRY_MAX, 0.1 * 2 ** min(self._errors, 10))
        wait *= secrets.SystemRandom().uniform(0.5, 1)
        if self._complain("away") or (self._errors == 1 and self._seldom()):
            logger.warning("Callbacks wait for Redis: %s: %s", type(error).__name__, error)
        self._chores.lost(wait)
        return wait
