"""Tell what happened to deliveries: signals and log lines, in a thread of their own.

Receivers and log filters are an app's: they raise, wait for ever and end threads. Nothing that reports or
claims waits for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._log import Logger
from .._seldom import Seldom

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

#: So much waits to be told at most; then the oldest is dropped.
_WAITING_MAX = 10_000
_COMPLAIN = 60.0

Work = Callable[[], object]


class Teller:
    """A thread that calls what it is given, one after the other, each in an app context of its own.

    :param app: the app.
    :param name: what the engine does, for the name of the thread.
    """

    def __init__(self, app: Flask, name: str) -> None:
        self._app = app
        self._name = f"taskflow-{name}-signals"
        self._waiting: deque[Work] = deque()
        self._rung = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._ended = False
        self._dropped = 0
        self._complain = Seldom(_COMPLAIN)
        self._thread: threading.Thread | None = None

    def put(self, work: Work) -> None:
        """Let something be called soon; if too much waits, the oldest of it is dropped."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(work)
        self._idle.clear()
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self._rung.set()

    def _start(self) -> None:
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

    def _run(self) -> None:
        ended = False
        while not ended:
            self._rung.wait()
            self._rung.clear()
            # Read before: what was given until then is told, too.
            ended = self._ended
            while self._waiting:
                self._call(self._waiting.popleft())
                self._tell_of_dropped()
            self._idle.set()

    def _call(self, work: Work) -> None:
        try:
            with self._app.app_context():
                work()
        except BaseException:
            logger.exception("Something was not told by %s.", self._name)

    def _tell_of_dropped(self) -> None:
        if self._dropped and self._complain():
            count, self._dropped = self._dropped, 0
            self._call(lambda: logger.warning("Receivers are too slow: %d signals were dropped.", count))
