"""What the commands print: tables for people, JSON for programs. Nothing else writes to the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from .._inert import inert


def text_of(time: datetime | None) -> str | None:
    """Return a time in ISO 8601, to the second."""
    return None if time is None else time.isoformat(timespec="seconds")


def jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose times are text."""
    return {name: text_of(value) if isinstance(value, datetime) else value for name, value in row.items()}


def print_rows(as_json: bool, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print some columns of rows as a table, or all of them as JSON."""
    print_table(as_json, rows, columns, [[row[column] for column in columns] for row in rows])


def print_table(as_json: bool, data: object, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or other data as JSON.

    :param data: what is printed as JSON.
    :param head: the table's first line.
    :param rows: its other lines, a cell for each of ``head``.
    """
    if as_json:
        print_json(data)
        return
    lines = [tuple(head), *(tuple(text_of_cell(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def text_of_cell(value: object) -> str:
    """Return a value as people read it: a dash where there is none."""
    return "-" if value is None else inert(value)


def print_json(data: object) -> None:
    """Print JSON; whatever a terminal would act on is an escape in it."""
    # JSON itself lets the control character DEL pass as it is.
    click.echo(json.dumps(data, indent=2).replace("\x7f", "\\u007f"))


def say(line: str = "") -> None:
    """Print one line, whoever wrote what it tells."""
    click.echo(inert(line))
