"""Learn which test shows which row: ``@pytest.mark.promise("S1")`` for security, ``"F1"`` for failures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
#: Of the requirements; a number that is missing was dropped there.
SECURITY = [
    f"S{number}"
    for number in (*range(1, 64), 65, 66, 67, 68, 69, 70, 71, 72, 73, 75, 80)
    if number not in {8, 15, 16, 21, 39, 42, 44, 45, 49, 50, 51, 54, 56, 57, 59}
]
FAILURES = [f"F{number}" for number in range(1, 24)]
ROWS = [*SECURITY, *FAILURES]

#: Names of tests by row, of all that were collected.
Promises = Mapping[str, set[str]]
_shown = pytest.StashKey[Promises]()
_whole = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promise", metavar="ROW", help="run the tests that show a row, as S1 or F1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(*rows): rows of the requirements that a test shows")


def _rows(item: pytest.Item) -> list[str]:
    return [row for mark in item.iter_markers("promise") for row in mark.args]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note the rows before anything is deselected; a row that there is not is an error."""
    asked = config.getoption("promise")
    shown: dict[str, set[str]] = {row: set() for row in ROWS}
    for item in items:
        for row in _rows(item):
            if row not in shown:
                raise pytest.UsageError(f"{item.nodeid} shows {row}, which is no row")
            shown[row].add(getattr(item, "originalname", item.name))
    config.stash[_shown] = shown
    if asked is not None:
        items[:] = [item for item in items if asked in _rows(item)]
    config.stash[_whole] = {item.path for item in items} >= set(TESTS.rglob("test_*.py"))


@pytest.fixture(scope="session")
def promises(pytestconfig: pytest.Config) -> Promises:
    """The tests that show each row; known if all of the suite is collected, however little of it runs."""
    if not pytestconfig.stash[_whole]:
        pytest.skip("only a part of the suite was collected")
    return pytestconfig.stash[_shown]
