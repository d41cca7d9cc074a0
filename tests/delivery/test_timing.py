"""When schedules tick: expressions in zones whose clocks are set, restarts, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from flask_taskflow import ConfigError, every
from flask_taskflow._delivery.timing import last_ticks, read_timing, read_zone

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
ZONES = [
    "Europe/Paris", "America/New_York", "America/St_Johns", "Australia/Lord_Howe",
    "Africa/Casablanca", "America/Santiago", "Asia/Kolkata", "UTC",
]  # fmt: skip
#: Expressions, each with the days on which it ticks, and at what time or at which ones.
DAILY: dict[str, tuple[Callable[[date], bool], time]] = {
    "30 2 * * *": (lambda day: True, time(2, 30)),
    "0 9 * * MON": (lambda day: day.weekday() == 0, time(9)),
    "15 0 1 * *": (lambda day: day.day == 1, time(0, 15)),
    "59 1 8-14 3,4,10,11 SUN": (
        lambda day: day.month in (3, 4, 10, 11) and (8 <= day.day <= 14 or day.weekday() == 6),
        time(1, 59),
    ),
}
DENSE = {
    "*/15 * * * *": lambda local: local.minute % 15 == 0,
    "0 */2 * * *": lambda local: local.minute == 0 and local.hour % 2 == 0,
}


def minutes(begin: datetime, end: datetime) -> Iterator[datetime]:
    while begin < end:
        yield begin
        begin += MINUTE


def exists(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo) == local


def expected_daily(expression: str, zone: tzinfo) -> list[datetime]:
    """Each day's time: one that the day has twice the first time, one that it lacks as soon as can be."""
    matches, at = DAILY[expression]
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(365)]
    found = []
    for local in (datetime.combine(day, at, zone) for day in days if matches(day)):
        while not exists(local):
            local += MINUTE
        found.append(local.astimezone(UTC))
    return found


def windows(zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
    """The days on which a zone's clock is set in 2026, or one without that."""
    days = [datetime(2026, 1, 2, tzinfo=UTC) + DAY * number for number in range(362)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    turns = [day for day, one, other in zip(days, offsets, offsets[1:], strict=False) if one != other]
    for turn in turns or [days[0]]:
        yield turn, turn + DAY


def ticks(expression: str, zone: tzinfo, begin: datetime, end: datetime) -> list[datetime]:
    timing = read_timing(expression, zone)
    found, at = [], int(begin.timestamp() * 1000) - 1
    while (at := timing.after(at)) < end.timestamp() * 1000:
        found.append(datetime.fromtimestamp(at / 1000, UTC))
    # Wherever one begins to count, the next tick is the same.
    for before, tick in pairwise(found):
        for moment in (before, before + (tick - before) / 2, tick - timedelta(milliseconds=1)):
            assert timing.after(int(moment.timestamp() * 1000)) == tick.timestamp() * 1000
    return found


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", DAILY)
def test_day_has_its_tick_once_whatever_the_clock_does(expression: str, zone: str) -> None:
    begin, end = datetime(2025, 12, 31, 12, tzinfo=UTC), datetime(2027, 1, 1, 12, tzinfo=UTC)
    found = ticks(expression, read_zone(zone), begin, end)
    local = [tick for tick in found if tick.astimezone(ZoneInfo(zone)).year == 2026]

    assert local == expected_daily(expression, ZoneInfo(zone))


HALF = pytest.mark.xfail(strict=True, reason="cronsim steps whole hours over a shift of half an hour")


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        pytest.param(each, zone, marks=HALF if (each[0], zone) == ("0", "Australia/Lord_Howe") else ())
        for each in DENSE
        for zone in ZONES
    ],
)
def test_stars_are_each_minute_and_hour_that_passes(expression: str, zone: str) -> None:
    for begin, end in windows(ZoneInfo(zone)):
        found = ticks(expression, read_zone(zone), begin, end)

        assert found == [
            minute for minute in minutes(begin, end) if DENSE[expression](minute.astimezone(ZoneInfo(zone)))
        ]


@pytest.mark.parametrize(
    ("when", "ticked"),
    [
        ("@hourly", "2026-01-01T01:00"), ("@daily", "2026-01-02T00:00"), ("@weekly", "2026-01-04T00:00"),
        ("@monthly", "2026-02-01T00:00"), ("@yearly", "2027-01-01T00:00"), (every(90), "2026-01-01T00:01:30"),
        (every(timedelta(days=1)), "2026-01-02T00:00"), ("0 0 29 2 *", "2028-02-29T00:00"),
    ],
)  # fmt: skip
def test_next_tick(when: object, ticked: str) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    after = read_timing(when, UTC).after(int(begin.timestamp() * 1000))

    assert datetime.fromtimestamp(after / 1000, UTC) == datetime.fromisoformat(f"{ticked}Z")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "days"),
    [("*/9 * * * *", 3), ("7 * * * *", 50), ("0 0 1 * *", 500), ("0 0 29 2 *", 5000), (every(7), 1)],
)
@pytest.mark.parametrize("most", [1, 100])
def test_last_ticks_are_those_that_one_by_one_would_give(when: object, days: int, most: int) -> None:
    timing = read_timing(when, UTC)
    first = timing.after(int(datetime(2025, 9, 1, tzinfo=UTC).timestamp() * 1000))
    until = first + days * 86_400_000
    one_by_one = [first]
    while (tick := timing.after(one_by_one[-1])) <= until:
        one_by_one.append(tick)

    assert last_ticks(timing, first, until, most) == one_by_one[-most:]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("0 0 31 2 *", "no schedule"), ("0 0 31 4,6 *", "no schedule"), ("0 0 */29 2 MON#5", "never ticks"),
        ("* * * * * *", "minute, hour, day"), ("@reboot", "@hourly, @daily"), ("61 * * * *", "minute"),
        (60, "cron expression or every"), (None, "cron expression or every"), ("", "minute, hour, day"),
    ],
)  # fmt: skip
def test_no_timing_is_refused(when: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_timing(when, UTC)


@pytest.mark.parametrize("seconds", [0.5, 0, -1, float("nan"), "60", 10**9, True])
def test_every_takes_a_second_to_a_year(seconds: object) -> None:
    with pytest.raises(ConfigError, match="1 to 31622400 seconds"):
        every(seconds)  # type: ignore[arg-type]  # That is the point.


@pytest.mark.parametrize("name", ["Europe/Atlantis", "Europe", "../etc/passwd", "", None, 1])
def test_zone_without_data_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"extra \[schedule\]"):
        read_zone(name)


def test_expression_without_the_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)

    with pytest.raises(ConfigError, match=r"flask-taskflow\[schedule\]"):
        read_timing("@daily", UTC)
    assert read_timing(every(60), UTC).after(0) == 60_000
