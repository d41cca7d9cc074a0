"""Every row of the requirements has a test that shows it, and a line in ``docs/security.md``."""

from __future__ import annotations

import re

import pytest

from flask_taskflow._config.config import PREFIX, Config
from tests.promises.breaks import BREAKS, ROOT, Break
from tests.promises.plugin import ROWS, SECURITY, TESTS, Promises

PAGE = (TESTS.parent / "docs" / "security.md").read_text("utf-8")
TABLE = {
    cells[0]: cells
    for cells in re.findall(r"^\| (S\d+) \| (.+\.) \| (.+) \| `(\w+)` \| (.+) \|$", PAGE, re.M)
}


def test_page_has_a_line_for_each_row_and_no_other() -> None:
    assert list(TABLE) == SECURITY


@pytest.mark.parametrize("row", ROWS)
def test_row_is_shown(promises: Promises, row: str) -> None:
    assert promises[row]


@pytest.mark.parametrize("row", SECURITY)
def test_page_names_a_test_that_shows_the_row(promises: Promises, row: str) -> None:
    assert TABLE[row][3] in promises[row]


@pytest.mark.parametrize("row", SECURITY)
def test_page_names_settings_that_exist(row: str) -> None:
    settings = re.findall(r"`(\w+)`", TABLE[row][4])

    assert settings or TABLE[row][4] == "–"
    Config.read({PREFIX + name: getattr(Config(), name.lower()) for name in settings})


def test_each_row_has_a_break() -> None:
    assert set(ROWS) - {broken.row for broken in BREAKS} == set()


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: f"{broken.row} {broken.file}")
def test_break_follows_the_package(broken: Break) -> None:
    """Whether it dies is shown by ``python -m tests.promises.breaks``."""
    text = (ROOT / "flask_taskflow" / broken.file).read_text("utf-8")

    assert broken.apply(text) != text
    assert (ROOT / "tests" / broken.tests).is_file()
