"""Tell what happened to deliveries: log lines and signals, each in a thread of their own.

Receivers and log filters are an app's: they raise, wait for ever and end threads. Nothing that reports or
claims waits for them, and no log line waits for a receiver.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from .. import signals
from .._lock import Lock
from .._log import Logger, Work
from .._seldom import Seldom

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

#: So much waits to be told at most; then the oldest is dropped.
_WAITING_MAX = 10_000
_COMPLAIN = 60.0
#: Seconds after which a call is told of.
_LONG = 5.0


class _Call(NamedTuple):
    work: Work
    began: float


class WatchedCalls:
    """The calls of a thread, seen by another one: a call may hang.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._present: _Call | None = None
        self._told: _Call | None = None
        self._complain = Seldom(_COMPLAIN)

    def call(self, work: Work) -> None:
        """Call something in this thread."""
        self._present = _Call(work, time.monotonic())
        try:
            work()
        finally:
            self._present = None

    def look(self, now: float, waiting: int) -> bool:
        """Return whether a call takes long, and tell of that once.

        :param now: by the monotonic clock.
        :param waiting: how many calls wait for it.
        """
        present = self._present
        if present is None or now - present.began < _LONG:
            return False
        if present is not self._told and self._complain():
            self._told = present
            logger.warning(
                "%s has run for %d s in %s, where %d calls wait for it. Let what it calls have a time limit.",
                present.work,
                now - present.began,
                self._name,
                waiting,
            )
        return True


class Teller:
    """A thread that calls what it is given, one after the other, each in an app context of its own.

    :param app: the app.
    :param name: of the thread.
    :param receivers: calls the receivers of signals.
    """

    def __init__(self, app: Flask, name: str, receivers: Teller | None = None) -> None:
        self._app, self._name, self._receivers = app, name, receivers
        self._waiting: deque[Work] = deque()
        self._rung = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._ended = False
        self._dropped = 0
        self._complain = Seldom(_COMPLAIN)
        self._calls = WatchedCalls(name)
        self._thread: threading.Thread | None = None
        #: Held while it starts: several threads give it something.
        self._starting = Lock()

    def put(self, work: Work) -> None:
        """Let something be called soon; if too much waits, the oldest of it is dropped."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(work)
        self._idle.clear()
        self.start()
        self._rung.set()

    @property
    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if not self._runs:
            with self._starting:
                self._start()

    def _start(self) -> None:
        if self._runs:
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # A limit of the container, as it may be: what comes next tries again.
            return
        self._thread = thread

    def stop(self, timeout: float) -> None:
        """Wait until all is told, at most ``timeout`` seconds, and end the thread."""
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._idle.wait(max(timeout, 0.0))
        self._ended = True
        self._rung.set()
        if self._idle.is_set():
            self._thread.join(1.0)

    def look(self, now: float) -> None:
        """Tell, from a thread that does not wait for it, of a call that takes long, and of what was dropped.

        :param now: by the monotonic clock.
        """
        if self._calls.look(now, len(self._waiting)):
            self._tell_of_dropped()

    def _run(self) -> None:
        if self._receivers is not None:
            # Along with this one: Python 3.12 starts none while it ends.
            self._receivers.start()
            signals.call_by(self._receivers.put)
        ended = False
        while not ended:
            self._rung.wait()
            self._rung.clear()
            # Read before: what was given until then is told, too.
            ended = self._ended
            while self._waiting:
                self._call(self._waiting.popleft())
                if self._dropped:
                    self._call(self._tell_of_dropped)
            self._idle.set()

    def _call(self, work: Work) -> None:
        try:
            with self._app.app_context():
                self._calls.call(work)
        except BaseException:
            logger.exception("Something was not told by %s.", self._name)

    def _tell_of_dropped(self) -> None:
        if self._dropped and self._complain():
            count, self._dropped = self._dropped, 0
            logger.warning("What %s calls is too slow: %d calls were dropped.", self._name, count)
