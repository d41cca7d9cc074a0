"""The Lua steps: what they are made of, and how they are run."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from redis import Redis

from flask_taskflow._store.steps import Steps, text_of
from flask_taskflow.errors import TaskNotFound

FOLDER = files("flask_taskflow._store") / "lua"
LUA = {
    f"{folder.name}/{path.name.removesuffix('.lua')}": path.read_text("utf-8")
    for folder in FOLDER.iterdir()
    for path in folder.iterdir()
}
STEPS = sorted(name for name in LUA if not name.startswith("shared/"))
SHARED = sorted(name.removeprefix("shared/") for name in LUA if name.startswith("shared/"))


def needs_of(name: str) -> list[str]:
    found = re.findall(r"^-- Needs: (.+)$", LUA[name], re.MULTILINE)
    return found[0].split(", ") if found else []


def code_of(name: str) -> str:
    return re.sub(r"--.*", "", LUA[name])


DEFINES = r"^(?:local function|local|function) "


def names_in(part: str) -> set[str]:
    return set(re.findall(rf"{DEFINES}([\w.]+)", LUA[f"shared/{part}"], re.MULTILINE))


def definition_of(name: str) -> str:
    return rf"{DEFINES}{re.escape(name)}(?![\w.])"


@pytest.mark.parametrize("name", sorted(LUA))
def test_lua_file_names_just_the_shared_parts_that_it_uses(name: str) -> None:
    own = set(re.findall(r"local function (\w+)", LUA[name]))
    words = set(re.findall(r"\b\w+\b", code_of(name))) - own

    used = {part for part in SHARED if words & names_in(part)} - {name.removeprefix("shared/")}

    assert needs_of(name) == sorted(used)


@pytest.mark.parametrize("step", STEPS)
def test_step_sends_what_it_calls_once_and_in_order(step: str) -> None:
    text = text_of(step)

    for name in {name for part in SHARED for name in names_in(part)}:
        defined = [found.end() for found in re.finditer(definition_of(name), text, re.MULTILINE)]
        called = re.search(rf"(?<![\w.:]){re.escape(name)}\(", text)
        assert len(defined) <= 1
        assert called is None or (defined and defined[0] <= called.end()), name


def test_step_sends_nothing_that_it_does_not_need() -> None:
    text = text_of("tasks/get")

    assert re.findall(r"^local function (\w+)", text, re.MULTILINE) == ["now_ms", "int", "answer"]
    assert "--" not in text


@pytest.mark.parametrize("part", SHARED)
def test_shared_definition_is_needed_by_some_step(part: str) -> None:
    for name in names_in(part):
        assert any(re.search(definition_of(name), text_of(step), re.MULTILINE) for step in STEPS), name


def test_list_is_passed_as_its_length_and_its_items(redis: Redis) -> None:
    steps = Steps(redis)

    for own in (["one", "two"], []):
        keys = ["handlers", "unclaimed", "pending", "recipients:expiry", "budgets:expiry"]
        reply = steps.run("deliveries/register", keys, 1000, 1, 0, own, [], [])
        assert reply == ["ok", [b"one", b"two"], [], [], 0]


def test_word_of_a_step_that_must_succeed_becomes_its_error(redis: Redis) -> None:
    steps = Steps(redis)

    assert steps.run("tasks/get", ["task"]) == ["unknown"]
    with pytest.raises(TaskNotFound):
        steps.succeed("tasks/get", ["task"])
