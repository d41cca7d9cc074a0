"""A lock that is of use wherever it was made: before a fork, or before gevent's patch."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any


class Lock(AbstractContextManager[None]):
    """A lock that is made where it is taken.

    A forked child has no thread that would release its parent's, whether or not the fork ran Python's hooks.
    A native one from before gevent's patch, as an app that a server preloads has, blocks all of a worker.
    """

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}

    def acquire(self) -> None:
        """Take this process's lock; wait until it is free."""
        here = os.getpid(), threading.Lock
        lock = self._made.get(here)
        if lock is None:
            # Two threads that come first together are given the same one.
            lock = self._made.setdefault(here, threading.Lock())
        lock.acquire()

    def release(self) -> None:
        """Let go of this process's lock."""
        self._made[os.getpid(), threading.Lock].release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()
