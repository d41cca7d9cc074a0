"""Whatever a writer of Redis does to counters, one process compares so many codes of a task and no more."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import BaseStrategy, CodeRepeated, OTPRejected, Task, TaskFlow, TaskLocked, _keyring
from flask_taskflow._keyring import Backstop
from flask_taskflow.testing import Outbox
from tests.conftest import SECRET_KEY, MakeApp
from tests.support.tasks import add, at_once, key_of, keys_like, other, refused

MINUTE = 60_000


class Device(BaseStrategy):
    """Takes one code; counts what it compares."""

    address = "device_id"
    code_pattern = "[0-9]{6}"
    compared = 0

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        Device.compared += 1
        return task.id if otp == "000000" else None


@pytest.fixture(params=["EMAIL", "DEVICE"])
def method(request: pytest.FixtureRequest, taskflow: TaskFlow) -> str:
    taskflow.register_strategy("DEVICE")(Device())
    return str(request.param)


def added(taskflow: TaskFlow, box: Outbox, method: str) -> tuple[Task[Any], str]:
    """Add a task; return its code as well."""
    task = add(taskflow, allowed_methods=[method], recipient={"email": "a@example.com", "device_id": "phone"})
    return task, "000000" if method == "DEVICE" else str(box[-1].otp)


@pytest.mark.promise("S65")
@pytest.mark.parametrize("way", ["counters", "task", "flush"])
def test_counters_that_are_set_back_give_no_more_guesses(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, method: str, way: str
) -> None:
    """In two processes twice as many, the right one among the last is refused; nor does a lost task help."""
    Device.compared = 0
    apps = [make_app() for _ in range(2)]
    with apps[0].app_context():
        task, code = added(taskflow, box, method)
    key, kept = key_of(redis, task), redis.dump(key_of(redis, task))

    def set_back() -> None:
        if way == "flush":
            redis.flushall()
        elif way == "counters":
            redis.hset(key, "attempts", 0)
            redis.delete("", *keys_like(redis, "*recipients*"))
        else:
            redis.restore(key, 0, kept, replace=True)  # type: ignore[arg-type]  # It was there.

    for app in apps:
        with app.app_context():
            for number in range(12):
                set_back()
                refused(OTPRejected, taskflow.verify, task.id, method, other(code, number + 1))
            redis.restore(key, 0, kept, replace=True)  # type: ignore[arg-type]  # As above.
            refused(OTPRejected, taskflow.verify, task.id, method, code)
    assert Device.compared <= 5 * len(apps)


@pytest.mark.usefixtures("app")
def test_code_that_comes_again_is_no_other_guess(taskflow: TaskFlow, box: Outbox, method: str) -> None:
    task, code = added(taskflow, box, method)
    for number in range(4):
        refused(OTPRejected, taskflow.verify, task.id, method, other(code, number + 1))
    taskflow.verify(task.id, method, code)

    for _ in range(12):
        refused(CodeRepeated, taskflow.verify, task.id, method, code)


@pytest.mark.promise("S71")
@pytest.mark.usefixtures("app")
def test_process_that_dies_after_the_count_leaves_no_sixth_guess(
    server: str, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    taskflow.register_strategy("DEVICE")(Device())
    task, code = added(taskflow, box, "DEVICE")
    script = str(Path(__file__).parents[1] / "support" / "apps" / "dying.py")
    command, environment = [sys.executable, script, task.id, SECRET_KEY], {**os.environ, "REDIS_URL": server}

    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    refused(TaskLocked, taskflow.verify, task.id, "DEVICE", code)

    assert told.stdout.split() == ["9"] * 5


@pytest.mark.promise("S65")
def test_threads_together_have_no_guess_more(make_app: MakeApp, taskflow: TaskFlow) -> None:
    backstop, admitted = Backstop(most=5, memory=600), []

    def guess(number: int) -> None:
        if backstop.admit("id", str(number), held=False, now=0):
            admitted.append(number)

    at_once(make_app(), [lambda number=number: guess(number) for number in range(50)])  # type: ignore[misc]  # Bound.

    assert len(admitted) == 5


@pytest.mark.parametrize(("minutes", "admitted"), [(0, 0), (10, 0), (11, 5), (99, 5)])
def test_guess_is_remembered_for_as_long_as_a_code_lives(minutes: int, admitted: int) -> None:
    backstop = Backstop(most=5, memory=600)
    # The turn of its two halves is at no code's end.
    backstop.admit("other", "x", held=False, now=0)
    fresh = map(str, count())

    def guesses(now: float) -> int:
        return sum(backstop.admit("id", next(fresh), held=False, now=now) for _ in range(8))

    assert guesses(9 * MINUTE) == 5
    assert guesses((9 + minutes) * MINUTE) == admitted


def test_holder_has_guesses_of_its_own() -> None:
    backstop = Backstop(most=5, memory=600)

    for held in (False, True):
        assert sum(backstop.admit("id", f"{held} {i}", held=held, now=0) for i in range(9)) == 5


def test_sketch_is_never_too_low_and_seldom_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many guesses at other tasks as it has cells; with fewer, so that this does not take long."""
    assert _keyring._WIDTH * _keyring._DEPTH >= 500_000
    monkeypatch.setattr(_keyring, "_WIDTH", 2**13)
    chance = random.Random(7)
    backstop = Backstop(most=5, memory=600)
    ids = [f"{chance.getrandbits(128):032x}" for _ in range(2**13)]
    for number, task_id in enumerate(ids):
        backstop.admit(task_id, str(number), held=False, now=0)

    refused_first = sum(not backstop.admit(f"new {i}", f"n{i}", held=False, now=0) for i in range(2000))
    left = [sum(backstop.admit(one, f"{one} {i}", held=False, now=0) for i in range(6)) for one in ids[:500]]

    assert refused_first <= 2
    assert max(left) <= 4
