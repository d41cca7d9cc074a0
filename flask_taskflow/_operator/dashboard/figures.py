"""What the counters mean: how many codes were typed of those sent, how long people and callbacks take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import add

from ..._http.metrics import BOUNDS
from ..._store.operations import SERIES, CallbackStats, Moment, QueueStats, Span
from .graphs import Graph, Line

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Period:
    """A span that graphs are drawn of.

    :param name: as it stands in a URL.
    :param label: as people say it.
    :param span: its moments.
    """

    name: str
    label: str
    span: Span

    def moments(self, now: datetime) -> list[datetime]:
        """Return when each of its moments began."""
        length = self.span.length
        last = int(now.timestamp()) // length * length
        first = last - (self.span.count - 1) * length
        return [datetime.fromtimestamp(at, UTC) for at in range(first, last + 1, length)]


PERIODS = {
    period.name: period
    for period in (
        Period("hour", "last hour", Span(60, 60)),
        Period("day", "last 24 hours", Span(3600, 24)),
        Period("month", "last 30 days", Span(86400, 30)),
    )
}


@dataclass(frozen=True, slots=True)
class Method:
    """How codes of one method went, since they are counted.

    :param name: the method.
    :param sent: messages, 0 for one whose codes a device makes.
    :param verified: tasks that a code of it verified.
    :param rejected: codes that were refused.
    :param median: seconds from a task to its right code, half of them at most.
    :param slow: the same for 95 of 100.
    """

    name: str
    sent: int
    verified: int
    rejected: int
    median: float | None
    slow: float | None

    @property
    def conversion(self) -> float | None:
        """The share of messages whose code was typed, at most 1; ``None`` if none was sent."""
        return min(self.verified / self.sent, 1.0) if self.sent else None


def methods_of(counts: Counts) -> list[Method]:
    """Return the methods that were used."""
    words = (name.split(" ") for name in counts)
    names = {found[1] for found in words if len(found) == 3 and found[0] in ("codes", "verify")}
    return [_method(counts, name) for name in sorted(names)]


def _method(counts: Counts, name: str) -> Method:
    buckets = buckets_of(counts, "verify", name)
    return Method(
        name,
        counts.get(f"codes {name} posted", 0),
        sum(buckets),
        sum(count for word, count in counts.items() if word.startswith(f"rejected {name} ")),
        *(quantile("verify", buckets, share) for share in (0.5, 0.95)),
    )


def buckets_of(counts: Counts, kind: str, label: str | None = None) -> list[int]:
    """Return a histogram: how many fell between each bound and the one before it, and beyond the last.

    :param label: the method or callback; all of them together without one.
    """
    found: Counter[str] = Counter()
    for name, count in counts.items():
        words = name.split(" ")
        if words[0] == kind and len(words) == 3 and label in (None, words[1]):
            found[words[2]] += count
    return [found[str(bound)] for bound in (*BOUNDS[kind], "inf")]


def quantile(kind: str, buckets: Sequence[int], share: float) -> float | None:
    """Estimate below how many seconds a share of all is; ``None`` if there is nothing to judge by.

    What is beyond the last bound is infinite.
    """
    wanted, below, seen = share * sum(buckets), 0.0, 0
    if not wanted:
        return None
    for bound, count in zip(BOUNDS[kind], buckets, strict=False):
        if count and seen + count >= wanted:
            return below + (bound - below) * (wanted - seen) / count
        seen, below = seen + count, bound
    return float("inf")


def sums(history: Iterable[Moment]) -> dict[str, int]:
    """Return what all moments had, by the names of the series."""
    totals = [0] * len(SERIES)
    for moment in history:
        totals = list(map(add, totals, moment.counts))
    return dict(zip(SERIES, totals, strict=True))


@dataclass(frozen=True)
class Row:
    """One queue, and what it had in a period.

    :param stats: how it stands.
    :param history: its moments.
    """

    stats: QueueStats
    history: Sequence[Moment]

    @cached_property
    def had(self) -> dict[str, int]:
        """What it had in the period, by the names of the series."""
        return sums(self.history)

    @cached_property
    def methods(self) -> list[Method]:
        """How codes went, by their method, since they are counted."""
        return methods_of(self.stats.counts)

    @cached_property
    def times(self) -> tuple[float | None, float | None]:
        """Seconds to verify, which half of all tasks, and 95 of 100, took at most."""
        buckets = buckets_of(self.stats.counts, "verify")
        return quantile("verify", buckets, 0.5), quantile("verify", buckets, 0.95)

    @cached_property
    def conversion(self) -> float | None:
        """The share of codes sent in the period that were typed; ``None`` if none was sent."""
        return min(self.had["verified"] / self.had["sent"], 1.0) if self.had["sent"] else None

    def all(self, state: str) -> int:
        """Return how many deliveries are in a state."""
        return sum(getattr(item, state) for item in self.stats.callbacks)

    @property
    def oldest(self) -> float | None:
        """Seconds that the oldest of those waits that could run now."""
        return max((item.oldest for item in self.stats.callbacks if item.oldest is not None), default=None)


@dataclass(frozen=True)
class ConsumerRow:
    """How attempts of a callback, or of the sends by a method, ended since they are counted.

    :param name: the callback, or ``@`` and the method.
    :param stats: where its deliveries stand; ``None`` if it has none.
    :param counts: the queue's counters.
    :param seen: when a process last said that it has the callback; ``None`` of sends.
    """

    name: str
    stats: CallbackStats | None
    counts: Counts = field(repr=False)
    seen: datetime | None = None

    def state(self, name: str) -> int:
        """Return how many deliveries are in a state."""
        return getattr(self.stats, name) if self.stats else 0

    @property
    def oldest(self) -> float | None:
        """Seconds that the oldest of those waits that could run now."""
        return self.stats.oldest if self.stats else None

    def ended(self, outcome: str) -> int:
        """Return how many attempts ended so: ``done``, ``failed``, ``dead``, ``lost``."""
        return self.counts.get(f"run {self.name} {outcome}", 0)

    def took(self, kind: str, share: float) -> float | None:
        """Return how many seconds a share of all attempts ran (``took``) or waited (``wait``) at most."""
        return quantile(kind, buckets_of(self.counts, kind, self.name), share)


def graphs_of(period: Period, history: Iterable[Moment], now: datetime) -> list[Graph]:
    """Return the graphs of a period, of one queue's history or of several."""
    moments = period.moments(now)
    totals = {int(at.timestamp()): [0] * len(SERIES) for at in moments}
    for moment in history:
        if (known := totals.get(moment.at)) is not None:
            totals[moment.at] = list(map(add, known, moment.counts))
    counted = dict(zip(SERIES, zip(*totals.values(), strict=True), strict=True))
    return [
        Graph(
            key,
            f"{title}, {period.label}",
            moments,
            [Line(name.capitalize(), counted[name]) for name in names],
        )
        for key, title, names in (
            ("tasks", "Tasks and codes", ("added", "verified", "sent", "rejected")),
            ("ends", "Tasks without success", ("expired", "locked", "failed")),
            ("deliveries", "Callbacks and sends", ("done", "dead")),
        )
    ]


def seconds_text(seconds: float | None) -> str:
    """Return a duration as people say it: ``850 ms``, ``12 s``, ``3 min``, ``2 h``, ``4 d``; or ``-``."""
    if seconds is None:
        return "-"
    if seconds == float("inf"):
        return "over 1 h"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129600)):
        if seconds < most:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / timedelta(days=1).total_seconds():.0f} d"
