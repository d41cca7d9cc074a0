"""Say now and then what would otherwise be said without end."""

from __future__ import annotations

import time


class Seldom:
    """Tell whether a subject may be spoken of again.

    :param period: seconds between two times.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._last: dict[str, float] = {}

    def __call__(self, subject: str = "") -> bool:
        """Return whether the last time that this was true for a subject lies a period back."""
        now = time.monotonic()
        if now - self._last.get(subject, -self._period) < self._period:
            return False
        self._last[subject] = now
        return True
