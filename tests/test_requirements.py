"""Every row of the requirements has a test that bears its id, and a line in ``docs/security.md``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flask_taskflow._config import PREFIX, Config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = {
    cells[0]: cells
    for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines())
    if re.fullmatch(r"S\d+", cells[0])
}

IDS = re.findall(
    r"S\d+",
    """
S1 S2 S3 S4 S5 S6 S7 S9 S10 S11 S12 S13 S14 S17 S18 S19 S20 S22 S23 S24 S25 S26 S27 S28 S29 S30 S31 S32 S33
S34 S35 S36 S37 S38 S40 S41 S43 S46 S47 S48 S52 S53 S55 S58 S60
""",
)


def _tests_by_id() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in re.findall(r"\bS\d+\b", ast.get_docstring(node) or ""):
                    found.setdefault(row, set()).add(node.name)
    return found


TESTS = _tests_by_id()


def test_page_has_a_row_for_each_id_and_no_other() -> None:
    assert list(ROWS) == IDS


@pytest.mark.parametrize("row", IDS)
def test_row_names_a_test_that_bears_its_id(row: str) -> None:
    _, promise, source, test, _ = ROWS[row]

    assert promise.endswith(".")
    assert source
    assert test.strip("`") in TESTS[row]


@pytest.mark.parametrize("row", IDS)
def test_row_names_settings_that_exist(row: str) -> None:
    settings = re.findall(r"`(\w+)`", ROWS[row][4])

    assert settings or ROWS[row][4] == "–"
    Config.read({PREFIX + name: getattr(Config(), name.lower()) for name in settings})


def test_tests_bear_no_id_that_is_not_required() -> None:
    assert set(TESTS) <= set(IDS)
