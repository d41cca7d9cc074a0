"""Graphs as SVG, drawn here: they stretch with the page, take its colours, and can be read aloud.

All that is text stands beside the drawing, in HTML, and the template has the same numbers in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from markupsafe import Markup

_HEIGHT = 100


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of a graph shows.

    :param name: what is counted.
    :param counts: a number for each moment.
    """

    name: str
    counts: Sequence[int]

    @property
    def total(self) -> int:
        """The sum over all moments."""
        return sum(self.counts)


@dataclass(frozen=True)
class Graph:
    """A graph of what was counted in moments of equal length.

    :param key: names it among those of a page.
    :param title: what it is about.
    :param moments: when each began.
    :param lines: at most five.
    """

    key: str
    title: str
    moments: Sequence[datetime]
    lines: Sequence[Line]

    @cached_property
    def top(self) -> int:
        """The number at the upper end of the scale."""
        most = max((count for line in self.lines for count in line.counts), default=0)
        step = int(10 ** (len(str(most)) - 1))
        return max(-(-most // step) * step, 2)

    @property
    def summary(self) -> str:
        """What somebody is told who does not see it."""
        return "; ".join(f"{line.name}: {line.total}" + self._peak(line) for line in self.lines)

    def _peak(self, line: Line) -> str:
        if not line.total:
            return ""
        most = max(line.counts)
        return f" in all, at most {most} at {self.moments[line.counts.index(most)]:%Y-%m-%d %H:%M} UTC"

    @property
    def drawing(self) -> Markup:
        """The drawing, an ``svg`` with its name and its description."""
        name, told = f"graph-{self.key}", f"graph-{self.key}-told"
        width = max(len(self.moments) - 1, 1)
        parts = [
            Markup('<svg class="graph" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img"').format(
                width, _HEIGHT
            ),
            Markup(' aria-labelledby="{0} {1}"><title id="{0}">{2}</title><desc id="{1}">{3}</desc>').format(
                name, told, self.title, self.summary
            ),
            *(Markup('<path class="grid" d="M0 {0}H{1}"/>').format(y, width) for y in (1, _HEIGHT // 2)),
            *(
                Markup('<path class="line line-{}" d="{}"/>').format(number, self._path(line))
                for number, line in reversed(list(enumerate(self.lines, 1)))
            ),
            Markup("</svg>"),
        ]
        return Markup("").join(parts)

    def _path(self, line: Line) -> str:
        points = (
            f"{x} {_HEIGHT - count * (_HEIGHT - 2) / self.top:.1f}" for x, count in enumerate(line.counts)
        )
        return "M" + "L".join(points)
