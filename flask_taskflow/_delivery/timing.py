"""When a schedule ticks: cron expressions in a time zone, and every so many seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from .._checks import in_seconds, shown
from ..errors import ConfigError

#: What stands for an expression.
_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_INSTALL = "pip install 'flask-taskflow[schedule]'"
_EVERY_MAX = 366 * 86400.0
_HOUR = 3_600_000
#: How far back the last ticks are looked for, ms: cron expressions may be dense or rare.
_BACK = (_HOUR, 24 * _HOUR, 32 * 24 * _HOUR, 366 * 24 * _HOUR)


class Timing(Protocol):
    """When something ticks; times are milliseconds since 1970."""

    @property
    def text(self) -> str:
        """How it was written."""

    def after(self, time: int) -> int:
        """Return the first tick after a time, wherever one begins to count."""


@dataclass(frozen=True, slots=True)
class Every:
    """Tick each time that so many milliseconds of the clock are over, counted from 1970 on."""

    milliseconds: int

    @property
    def text(self) -> str:
        """How it was written."""
        return f"every({self.milliseconds / 1000:g})"

    def after(self, time: int) -> int:
        """Return the first tick after a time."""
        return (time // self.milliseconds + 1) * self.milliseconds


def every(seconds: float | timedelta) -> Every:
    """Return what lets a schedule tick each time that so many seconds are over.

    They are counted from 1970 on, so that it makes no difference when a process starts: ``every(3600)`` ticks
    at full hours, UTC.

    :param seconds: at least one.
    :raises ConfigError: for less, and for more than a year.
    """
    number = in_seconds(seconds)
    if number is None or not 1 <= number <= _EVERY_MAX:
        raise ConfigError(f"every() takes 1 to {_EVERY_MAX:.0f} seconds, not {shown(seconds)}")
    return Every(round(number * 1000))


@dataclass(frozen=True, slots=True)
class Cron:
    """Tick when a zone's clock shows what a cron expression says.

    A time that the zone skips, as when summer begins, counts once, at the next that there is; one that the
    zone has twice counts once, the first time. ``*`` in minutes or hours means every one that passes.
    """

    text: str
    expression: str
    zone: tzinfo

    def after(self, time: int) -> int:
        """Return the first tick after a time.

        :raises ConfigError: if there is none in 50 years.
        """
        from cronsim import CronSim

        for tick in CronSim(self.expression, datetime.fromtimestamp(time / 1000, self.zone)):
            found = int(tick.timestamp()) * 1000
            # Where the clock is set back, the count begins at the first of two equal times.
            if found > time:
                return found
        raise ConfigError(f"the schedule {self.text!r} never ticks: no calendar has such a day")


def read_timing(when: object, zone: tzinfo) -> Timing:
    """Return when a schedule ticks.

    :param when: a cron expression of five fields, or one of ``@hourly``, ``@daily``, ``@weekly``,
        ``@monthly`` and ``@yearly``, or what :func:`every` returned.
    :param zone: whose clock an expression means.
    :raises ConfigError: if that is none, or never, and without the extra.
    """
    if isinstance(when, Every):
        return when
    if not isinstance(when, str):
        raise ConfigError(f"a schedule is a cron expression or every(seconds), not {shown(when)}")
    expression = _NAMED.get(when, when)
    if len(expression.split()) != 5:
        named = ", ".join(_NAMED)
        raise ConfigError(
            f"{shown(when)} is no schedule: use minute, hour, day, month and day of the week, as in "
            f"'0 9 * * MON', or one of {named}, or every(seconds)"
        )
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise ConfigError(f"cron expressions need the extra [schedule]: {_INSTALL}") from None
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ConfigError(f"{shown(when)} is no schedule: {error}") from None
    cron = Cron(when, expression, zone)
    cron.after(0)
    return cron


def read_zone(name: object) -> tzinfo:
    """Return a time zone by its name in the zones' data.

    :raises ConfigError: if there is no such one, or no data.
    """
    if name == "UTC":
        return UTC
    try:
        if not isinstance(name, str):
            raise ValueError
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ConfigError(
            f"the time zone {shown(name)} is not known: use a name as 'Europe/Paris'. The zones' data come "
            f"with the extra [schedule]: {_INSTALL}"
        ) from None


def digest_of(timing: Timing, zone: tzinfo) -> str:
    """Return what tells one definition from another in Redis."""
    return hashlib.sha256(f"{timing.text} {zone}".encode()).hexdigest()[:16]


def last_ticks(timing: Timing, first: int, until: int, most: int) -> list[int]:
    """Return the last ticks, in order, from a first one on until a time.

    :param first: a tick itself; not after ``until``.
    :param most: how many at most.
    """
    for back in (*_BACK, until - first):
        begin = max(first, until - back)
        ticks = [first] if begin == first else []
        ticks += _ticks(timing, begin, until)
        if begin == first or len(ticks) >= most:
            break
    return ticks[-most:]


def _ticks(timing: Timing, after: int, until: int) -> Iterator[int]:
    tick = timing.after(after)
    while tick <= until:
        yield tick
        tick = timing.after(tick)
