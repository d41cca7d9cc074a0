"""Do in a thread of its own what may take long, and logs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .. import signals
from .._log import Logger, Work

logger = Logger(__name__)


class Asides:
    """Work that nothing else waits for.

    :param name: what the engine does, for the names of threads.
    :param hand: lets another thread call the receivers of signals.
    """

    def __init__(self, name: str, hand: Callable[[Work], None]) -> None:
        self._hand = hand
        self._name = f"taskflow-{name}-ends"
        self._refused: deque[Callable[[], None]] = deque()

    def put(self, work: Callable[[], None]) -> None:
        """Do something at once; or at :meth:`retry`, if the system has no thread for it now."""
        try:
            threading.Thread(target=self._call, args=(work,), name=self._name, daemon=True).start()
        except RuntimeError:
            self._refused.append(work)

    def retry(self) -> None:
        """Try again what could not be done."""
        for _ in range(len(self._refused)):
            self.put(self._refused.popleft())

    def _call(self, work: Callable[[], None]) -> None:
        signals.call_by(self._hand)
        try:
            work()
        except BaseException:
            logger.exception("The end of an attempt could not be told.")
