"""Draw the walks of the pages: each is told as text on its page, and drawn from that text.

``python docs/draw.py`` draws them anew; with ``--check`` it only tells whether they are up to date.

A step of a walk is a line ``from > to: what``; what somebody does alone is ``who: what``. A drawing has a
column for each wing, so that an arrow is a border that is crossed; what happens inside a wing is a dot.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = [DOCS / "architecture.md", DOCS / "what.md", DOCS / "why.md"]

_LETTER = 6.4
_ROW = 34
_TOP = 64
_MARGIN = 12
_INK, _LINE, _PAPER, _BOX = "#1f2933", "#9aa5b1", "#ffffff", "#e4ecf7"
_WALK = re.compile(r"^<!-- test: walk (\w+) -->\n```text\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Step:
    """A call from one wing to another, or what happens inside one."""

    source: str
    target: str
    what: str

    @classmethod
    def read(cls, line: str) -> Step:
        """Read a line of a walk.

        :raises ValueError: if it is none.
        """
        found = re.fullmatch(r"(?P<source>[^:>]+)(?: > (?P<target>[^:>]+))?: (?P<what>.+)", line)
        if found is None:
            raise ValueError(f"not a step of a walk: {line!r}")
        wing, _, file = found["source"].rpartition("/")
        source = target = wing or file
        what = found["what"]
        if found["target"]:
            wing, _, file = found["target"].rpartition("/")
            target = wing or file
            what = f"{file}: {what}" if wing else what
        return cls(source, target, what)


def walks(page: str) -> dict[str, str]:
    """Return the walks that a page tells, by name."""
    return dict(_WALK.findall(page))


def columns(steps: list[Step]) -> list[str]:
    """Return who takes part, in the order of their entry."""
    return list(dict.fromkeys(name for step in steps for name in (step.source, step.target)))


def draw(walk: str) -> str:
    """Return a walk as a drawing, in SVG."""
    steps = [Step.read(line) for line in walk.splitlines() if line.strip()]
    names = columns(steps)
    centres = _places(names, steps)
    ends = [centres[step.source] + 26 + _width(step.what) for step in steps if step.source == step.target]
    width = max([centres[names[-1]] + _width(names[-1]) / 2 + 8, *ends]) + _MARGIN
    height = _TOP + _ROW * len(steps) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="10.5">',
        f'<rect width="100%" height="100%" rx="6" fill="{_PAPER}"/>',
        *(_life_line(name, centres[name], height) for name in names),
        *(_arrow(step, centres, _TOP + _ROW * (i + 0.8)) for i, step in enumerate(steps)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _width(text: str) -> float:
    return len(text) * _LETTER


def _places(names: list[str], steps: list[Step]) -> dict[str, float]:
    """Place the columns so far apart that their names and what they say to each other fit between them."""
    gaps = [(_width(one) + _width(other)) / 2 + 30 for one, other in pairwise(names)]
    # Short arrows first: what they need, long ones have already.
    spans = [(names.index(step.source), names.index(step.target), _width(step.what) + 24) for step in steps]
    for one, other, needed in sorted(spans, key=lambda span: abs(span[1] - span[0])):
        first, last = min(one, other), max(one, other)
        missing = needed - sum(gaps[first:last])
        for i in range(first, last):
            gaps[i] += max(missing, 0) / (last - first)
    starts = [_MARGIN + 8 + _width(names[0]) / 2]
    for gap in gaps:
        starts.append(starts[-1] + gap)
    return dict(zip(names, starts, strict=True))


def _text(what: str, x: float, y: float, *, anchor: str = "middle") -> str:
    # With a halo, since texts cross the lines of those between.
    halo = f'stroke="{_PAPER}" stroke-width="4" paint-order="stroke"'
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{_INK}" {halo}>{escape(what)}</text>'


def _life_line(name: str, x: float, height: float) -> str:
    left, width = x - _width(name) / 2 - 8, _width(name) + 16
    return (
        f'<line x1="{x:.0f}" y1="40" x2="{x:.0f}" y2="{height - 6:.0f}" stroke="{_LINE}" '
        f'stroke-dasharray="3 3"/>'
        f'<rect x="{left:.0f}" y="14" width="{width:.0f}" height="26" rx="4" fill="{_BOX}" stroke="{_LINE}"/>'
        f'<text x="{x:.0f}" y="31" text-anchor="middle" fill="{_INK}">{escape(name)}</text>'
    )


def _arrow(step: Step, centres: dict[str, float], y: float) -> str:
    start, end = centres[step.source], centres[step.target]
    if step.source == step.target:
        return (
            f'<circle cx="{start:.0f}" cy="{y - 8:.0f}" r="3.5" fill="{_INK}"/>'
            f"{_text(step.what, start + 10, y - 4, anchor='start')}"
        )
    way = 1 if end > start else -1
    tip = f"{end:.0f},{y:.0f} {end - 7 * way:.0f},{y - 4:.0f} {end - 7 * way:.0f},{y + 4:.0f}"
    return (
        f'<line x1="{start:.0f}" y1="{y:.0f}" x2="{end - 6 * way:.0f}" y2="{y:.0f}" stroke="{_INK}"/>'
        f'<polygon points="{tip}" fill="{_INK}"/>'
        f"{_text(step.what, (start + end) / 2, y - 6)}"
    )


def main(arguments: list[str]) -> str | None:
    """Draw all walks, or check the drawings; return what is wrong."""
    stale = []
    for name, walk in walks("".join(page.read_text("utf-8") for page in PAGES)).items():
        path, drawing = DOCS / "pictures" / f"{name}.svg", draw(walk)
        if "--check" not in arguments:
            path.write_text(drawing, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != drawing:
            stale.append(path.name)
    return f"not as the page tells: {', '.join(stale)}; run python docs/draw.py" if stale else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
