"""What the benchmarks that compare are built on: other trees of the package, and calls that are counted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.start import judge
from benchmarks.trees import REPOSITORY, run_in, tree_of
from benchmarks.walks import BORDERS, count_calls, list_borders, sums

HALL = """
from functools import reduce

from rooms import kitchen

def walk():
    cook()
    list(kitchen.serve())
    [kitchen.wash(n) for n in (1, 2)]
    (lambda: kitchen.wash(3))()
    reduce(lambda one, other: cook(), [1, 2])

def cook():
    pass
"""
KITCHEN = """
def serve():
    yield wash(1)
    yield 2

def wash(n):
    pass
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "rooms"
    root.mkdir()
    for name, text in {"__init__": "", "hall": HALL, "kitchen": KITCHEN}.items():
        (root / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "rooms"]:
        del sys.modules[name]


def test_calls_of_a_walk_are_counted_by_caller_and_callee(house: Path) -> None:
    calls = count_calls(house, importlib.import_module("rooms.hall").walk)

    hall, kitchen = "hall.py", "kitchen.py"
    walk, serve, wash = (hall, "walk"), (kitchen, "serve"), (kitchen, "wash")
    # The generator begins and goes on twice. Comprehensions and lambdas call in their module's name.
    by_file = {
        (caller and caller[0], callee): count
        for (caller, callee), count in calls.items()
        if callee not in (wash, (hall, "cook"))
    }
    assert by_file == {(None, walk): 1, (hall, serve): 3}
    assert calls[serve, wash] == 1
    assert calls[walk, (hall, "cook")] == 1
    assert sum(count for (_, callee), count in calls.items() if callee == wash) == 4
    assert sums(calls) == (1 + 3 + 4 + 2, 2, 1 + 3 + 3)
    crossed = list_borders(calls)
    assert crossed[0] == "   1  elsewhere -> hall.py: walk"
    assert "   3  hall.py: walk -> kitchen.py: serve" in crossed
    assert not any("cook" in line for line in crossed)
    assert sum(int(line.split()[0]) for line in crossed) == 1 + 3 + 3


def test_calls_out_of_the_package_count_nothing(house: Path) -> None:
    assert count_calls(house, lambda: json.dumps({"a": [1]})).total() == 0


def test_calls_are_counted_no_more_afterwards(house: Path) -> None:
    before = sys.getprofile()

    with pytest.raises(ZeroDivisionError):
        count_calls(house, lambda: 1 // 0)

    assert sys.getprofile() is before


@pytest.mark.slow
def test_walks_are_the_same_each_time_and_as_short_as_planned() -> None:
    with tree_of() as tree:
        first, second = (json.loads(run_in(tree, "benchmarks.walks", "--here")) for _ in range(2))

    assert first == second
    assert list(BORDERS) == list(first)
    walks = {name: walk for name, (walk, _) in first.items()}
    assert all(calls > 10 and modules > 5 and borders > 5 for calls, modules, borders in walks.values())
    too_long = {
        name: first[name][1] for name, most in BORDERS.items() if most is not None and walks[name][2] > most
    }
    assert not too_long


def test_package_of_another_tree_is_the_one_that_runs(tmp_path: Path) -> None:
    package = tmp_path / "flask_taskflow"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "hello.py").write_text(
        "import sys, benchmarks.trees\nprint('hello', *sys.argv[1:])\n", "utf-8"
    )

    with tree_of(str(tmp_path)) as tree:
        (package / "hello.py").write_text("print('edited meanwhile')\n", "utf-8")
        said = run_in(tree, "flask_taskflow.hello", "there")

    assert said == "hello there\n"


def test_tree_that_is_none_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit, match="is no revision of this repository, and no folder"),
        tree_of("no-such"),
    ):
        pass


def test_run_that_fails_is_no_result() -> None:
    with pytest.raises(SystemExit, match="failed with"):
        run_in(REPOSITORY, "flask_taskflow.no_such_module")


def test_ratio_above_the_bound_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [judge([0.9, 1.05], 1.05), judge([1.06, 0.9], 1.05)]

    assert statuses == [0, 1]
    assert capsys.readouterr().out.splitlines() == [
        "at most 1.05 is wanted: as required",
        "at most 1.05 is wanted: NOT AS REQUIRED",
    ]
