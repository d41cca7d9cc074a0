"""What the package holds besides its rooms: its Lua files, its public names, its types."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest

import flask_taskflow

ROOT = Path(flask_taskflow.__file__).parent
SOURCES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
LUA = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(ROOT.rglob("*.lua"))}


def room(path: Path) -> str:
    """What directly in the package holds a file or is it."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


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
    public = {room(path) for path in SOURCES if not room(path).startswith("_")}

    assert public == {"errors", "signals", "strategies", "testing"}


def test_package_says_that_it_is_typed() -> None:
    assert (files("flask_taskflow") / "py.typed").is_file()


def test_no_module_prints_but_the_strategy_that_must() -> None:
    printing = {
        room(path)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }

    assert printing <= {"strategies"}
