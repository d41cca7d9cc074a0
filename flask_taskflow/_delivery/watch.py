"""The time that attempts take: tell of long ones, write off those past their timeout."""

from __future__ import annotations

import math
from collections.abc import Callable

from .._log import Logger
from .attempts import Attempt
from .places import Places

logger = Logger(__name__)


class Watch:
    """Watch the attempts of one engine.

    :param places: where they run.
    :param time_out: reports one that was written off; its thread may go on.
    """

    def __init__(self, places: Places, time_out: Callable[[Attempt], None]) -> None:
        self._places = places
        self._time_out = time_out

    def look(self, now: float) -> None:
        """Write off what is past its time, and warn at half of it."""
        for attempt in self._places.running():
            age = now - attempt.started
            if age >= attempt.timeout:
                attempt.written_off = True
                self._time_out(attempt)
            elif age >= attempt.timeout / 2 and not attempt.warned:
                attempt.warned = True
                logger.warning("%s has used half of its %g s.", attempt.item, attempt.timeout)

    @property
    def next_at(self) -> float:
        """When the next look is due, by the monotonic clock."""
        return min((attempt.look_at for attempt in self._places.running()), default=math.inf)
