"""The house keeps its plan: imports run down, parts are small; and what breaks a rule is seen to break it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import flask_taskflow
from benchmarks.house import MODELS, PLAN, figures, table
from benchmarks.shape import RULES, Shape, Way, arrows_up

#: The floors, the highest first. An arrow may lead down, or to the side as long as it closes no circle.
FLOORS = (
    ("testing",),
    ("_extension",),
    ("_decorators",),
    ("_calls",),
    ("_operator", "_http", "_erasure", "_people"),
    ("_service",),
    ("_delivery", "_new_task"),
    ("_bridge",),
    ("_store", "_redis", "strategies"),
    ("_config", "_keyring"),
    ("_journal", "_checks", "_mailbox", "_otp", "_seldom", "_lock"),
    ("errors", "signals"),
    ("_tasks", "_inert", "_log", "_interrupts"),
    ("_course",),
)

Rule = Callable[[Shape], list[str]]
ALL: dict[str, Rule] = {**RULES, "no arrow up": lambda shape: arrows_up(shape, FLOORS)}

#: A house that keeps every rule; each break adds to it or replaces a file.
SOUND = {
    "__init__.py": "from ._extension import TaskFlow\n",
    "_extension.py": "from flask import Flask\n\nfrom . import _store\nfrom ._store.tasks import TaskStore\n",
    "_store/__init__.py": "from .tasks import TaskStore\n",
    "_store/tasks.py": "from .._config import config\nfrom .records import Record\n",
    "_store/records.py": "from ..errors import TaskFlowError\n",
    "_config/__init__.py": "",
    "_config/config.py": "import re\n\nfrom flask_taskflow import errors\n",
    "errors.py": "",
}
PARAMETERS = ", ".join(f"p{number}" for number in range(8))

#: What a newcomer might build -> the rules that it breaks -> what is said of it.
BREAKS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "circle in a wing": (
        {"_store/records.py": "from .tasks import TaskStore\n"},
        {
            "no circle at import": "_store.records <-> _store.tasks",
            "no circle with imports in functions": "_store.records <-> _store.tasks",
            "no circle with imports for types": "_store.records <-> _store.tasks",
            "no circle of folders": "_store.records <-> _store.tasks",
        },
    ),
    "circle through the wing itself": (
        {"_store/records.py": "from . import TaskStore\n"},
        {
            "no circle at import": "_store <-> _store.records <-> _store.tasks",
            "no circle with imports in functions": "_store <-> _store.records <-> _store.tasks",
            "no circle with imports for types": "_store <-> _store.records <-> _store.tasks",
        },
    ),
    "circle by an import in a function": (
        {"_store/records.py": "class Record:\n    def read(self):\n        from . import tasks\n"},
        {
            "no circle with imports in functions": "_store.records <-> _store.tasks",
            "no circle with imports for types": "_store.records <-> _store.tasks",
            "no circle of folders": "_store.records <-> _store.tasks",
        },
    ),
    "circle by import_module in a function": (
        {"_store/records.py": "def read():\n    importlib.import_module('flask_taskflow._store.tasks')\n"},
        {
            "no circle with imports in functions": "_store.records <-> _store.tasks",
            "no circle with imports for types": "_store.records <-> _store.tasks",
            "no circle of folders": "_store.records <-> _store.tasks",
        },
    ),
    "circle for types": (
        {"_store/records.py": "if TYPE_CHECKING:\n    from .tasks import TaskStore\n"},
        {
            "no circle with imports for types": "_store.records <-> _store.tasks",
            "no circle of folders": "_store.records <-> _store.tasks",
        },
    ),
    "folders both ways, no circle of modules": (
        {
            "_redis/__init__.py": "",
            "_redis/connector.py": "from .._store.records import Record\n",
            "_redis/cluster.py": "",
            "_store/__init__.py": "",
            "_store/tasks.py": "from .._redis.cluster import Cluster\n",
        },
        {"no circle of folders": "_redis <-> _store"},
    ),
    "three folders in a ring": (
        {
            "_redis/__init__.py": "",
            "_redis/connector.py": "from ..strategies.sms import SMSStrategy\n",
            "_redis/cluster.py": "",
            "strategies/__init__.py": "",
            "strategies/email.py": "from .._store.records import Record\n",
            "strategies/sms.py": "",
            "_store/__init__.py": "",
            "_store/tasks.py": "from .._redis.cluster import Cluster\n",
        },
        {"no circle of folders": "_redis <-> _store <-> strategies"},
    ),
    "folders inside a wing both ways": (
        {
            "_store/one/__init__.py": "",
            "_store/one/a.py": "from ..two.b import B\n",
            "_store/one/c.py": "",
            "_store/two/__init__.py": "",
            "_store/two/b.py": "",
            "_store/two/d.py": "from ..one.c import C\n",
        },
        {"no circle of folders": "_store.one <-> _store.two"},
    ),
    "arrow up": (
        {
            "_config/config.py": "from .._keyring import Keyring\nfrom .._redis import url\n",
            "_redis.py": "",
            "_keyring.py": "",
        },
        {"no arrow up": "_config.config -> _redis"},
    ),
    "arrow up in a function": (
        {"_config/config.py": "def f():\n    from .. import _redis\n", "_redis.py": ""},
        {"no arrow up": "_config.config -> _redis"},
    ),
    "arrow up for types": (
        {"_config/config.py": "if TYPE_CHECKING:\n    from .. import _redis\n", "_redis.py": ""},
        {"no arrow up": "_config.config -> _redis"},
    ),
    "arrow to the package itself, for types": (
        {"testing.py": "from . import TaskFlow\n"},
        {"no arrow up": "testing -> flask_taskflow itself"},
    ),
    "room that is not on the plan": (
        {"utils.py": ""},
        {"no arrow up": "utils stands on no floor"},
    ),
    "class of 405 lines": (
        {"_store/records.py": "class Record:\n" + "    x = 1\n" * 404},
        {"classes under 300 lines": "_store.records.Record: 405 lines"},
    ),
    "class of 300 lines": (
        {"_store/records.py": "class Record:\n" + "    x = 1\n" * 299},
        {"classes under 300 lines": "_store.records.Record: 300 lines"},
    ),
    "method of 80 lines": (
        {"_store/records.py": "class Record:\n    def read(self):\n" + "        x = 1\n" * 79},
        {"functions of at most 50 lines": "_store.records.Record.read: 80 lines"},
    ),
    "function of 51 lines": (
        {"_store/records.py": "async def read():\n" + "    x = 1\n" * 50},
        {"functions of at most 50 lines": "_store.records.read: 51 lines"},
    ),
    "eight parameters": (
        {"_store/records.py": f"def read({PARAMETERS}): ...\n"},
        {"signatures of at most 7 parameters": "_store.records.read: 8 parameters"},
    ),
    "eight parameters of a method, by name and by stars": (
        {"_store/records.py": "class Record:\n    def read(self, a, b, /, c, *d, e, f, g, **h): ...\n"},
        {"signatures of at most 7 parameters": "_store.records.Record.read: 8 parameters"},
    ),
    "numpy": (
        {"_store/records.py": "import numpy\n"},
        {
            "only required packages at import": "_store.records: numpy",
            "only packages that setup.cfg names": "_store.records: numpy",
        },
    ),
    "numpy in a function": (
        {"_store/records.py": "def read():\n    from numpy.linalg import det\n"},
        {"only packages that setup.cfg names": "_store.records: numpy"},
    ),
    "extra at import": (
        {"_store/records.py": "try:\n    import pyotp\nexcept ImportError:\n    pass\n"},
        {"only required packages at import": "_store.records: pyotp"},
    ),
    "extra of two owners": (
        {"errors.py": "def f():\n    import segno\n", "_store/records.py": "def f():\n    import segno\n"},
        {"one owner an extra": "segno: _store.records, errors"},
    ),
}


@pytest.fixture(scope="module")
def ours() -> Shape:
    return Shape(Path(flask_taskflow.__file__).parent)


def make(folder: Path, files: Mapping[str, str]) -> Shape:
    package = folder / "flask_taskflow"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Shape(package)


@pytest.mark.parametrize("rule", ALL)
def test_package_keeps_rule(ours: Shape, rule: str) -> None:
    assert ALL[rule](ours) == []


def test_all_of_the_package_is_read(ours: Shape) -> None:
    files = list(Path(flask_taskflow.__file__).parent.rglob("*.py"))

    assert len(ours.modules) == len(files) > 40
    assert len(ours.functions) > 400
    assert {"_extension", "errors"} <= ours.imports(Way.AT_IMPORT)[""]


def test_sound_house_breaks_no_rule(tmp_path: Path) -> None:
    shape = make(tmp_path, SOUND)

    assert {name: rule(shape) for name, rule in ALL.items() if rule(shape)} == {}
    assert shape.imports(Way.AT_IMPORT) == {
        "": {"_extension"},
        "_extension": {"_store", "_store.tasks"},
        "_store": {"_store.tasks"},
        "_store.tasks": {"_config", "_config.config", "_store.records"},
        "_store.records": {"errors"},
        "_config": set(),
        "_config.config": {"errors"},
        "errors": set(),
    }


@pytest.mark.parametrize("name", BREAKS)
def test_break_is_seen(tmp_path: Path, name: str) -> None:
    files, expected = BREAKS[name]

    shape = make(tmp_path, SOUND | files)

    found = {rule: "; ".join(check(shape)) for rule, check in ALL.items() if check(shape)}
    assert found == expected


def test_what_is_at_its_bound_breaks_no_rule(tmp_path: Path) -> None:
    """Public calls may be wide: their arguments are given by name."""
    files = {
        "_store/records.py": "class Record:\n" + "    x = 1\n" * 298,
        "_store/tasks.py": "def read():\n" + "    x = 1\n" * 49,
        "_config/config.py": "class Config:\n    def read(self, a, b, c, d, e, f, g): ...\n",
        "_extension.py": f"class Calls:\n    def add_task(self, {PARAMETERS}): ...\n",
    }

    shape = make(tmp_path, SOUND | files)

    assert {name: rule(shape) for name, rule in ALL.items() if rule(shape)} == {}


def test_lines_are_counted_by_what_they_are(tmp_path: Path) -> None:
    text = (
        '"""One.\n\nThree.\n"""\n# A comment.\nx = "# none"  # beside code\n\n\ndef f():\n    """Four."""\n'
    )

    assert make(tmp_path, {"__init__.py": text}).line_counts() == (10, 5, 1)


def test_folder_without_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no __init__\.py"):
        Shape(tmp_path)


def test_figures_are_those_of_the_tree(tmp_path: Path) -> None:
    circle = {"_store/records.py": "def read(a):\n    from .tasks import TaskStore\n\n\ndef write(): ...\n"}

    measured = figures(make(tmp_path, SOUND | circle))

    assert measured == {
        "modules": "8",
        "folders": "3",
        "lines": "16",
        "longest module": "5",
        "floors of imports": "6",
        "functions": "2",
        "function, median": "1.5",
        "function, 90%": "<= 2",
        "longest function": "2",
        "largest class": "0",
        "widest signature": "1",
        "circles at import": "0",
        "  with imports in functions": "1",
        "  with imports for types": "1",
        "circles of folders": "1",
        "docstrings": "0.0 %",
        "comments": "0.0 %",
    }
    assert {row for column in (PLAN, *MODELS.values()) for row in column} <= set(measured)


def test_table_leaves_empty_what_is_not_known() -> None:
    assert table({"is": {"a": "1", "long": "22"}, "model": {"long": "3"}}) == (
        "      is  model\na      1\nlong  22      3"
    )
