"""A key that an app gives to a task names it as long as it is kept; then it is free for a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flask_taskflow import OTPRejected, Task, task_verified
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.stage import Stage
from tests.support.tasks import lock, refused

DAY = 86400.0


def add(stage: Stage, data: str, **options: Any) -> Task[object]:
    return stage.add(data=data, key="invoice-991", recipient={"email": "ann@example.com"}, **options)


def die(stage: Stage, task: Task[object]) -> None:
    stage.verify(task)
    stage.run()
    travel(DAY + 601)


def wait_for_long(stage: Stage, task: Task[object]) -> None:
    stage.taskflow.operations.pause("q")
    stage.verify(task)
    travel(DAY + 601)


def be_erased(stage: Stage, task: Task[object]) -> None:
    stage.verify(task)
    stage.taskflow.erase(task.id)


@pytest.mark.parametrize("leave", [die, wait_for_long, be_erased], ids=lambda leave: leave.__name__)
def test_each_code_runs_what_it_was_typed_for(
    stage: Stage, leave: Callable[[Stage, Task[object]], None]
) -> None:
    """What an earlier task of the key has left to run is neither run for the new one nor lost by it."""
    work = stage.work(ValueError("the bank is away"), max_attempts=1)
    stage.app()
    old = add(stage, "old")
    leave(stage, old)

    new = add(stage, "new")
    stage.verify(new)
    stage.taskflow.operations.resume("q")
    stage.run()
    for letter in stage.taskflow.operations.dead("q"):
        stage.taskflow.operations.replay(letter.id)
    stage.run()

    assert new.id != old.id
    ran = [(task.id, task.data) for task in work.tasks]
    assert set(ran) == {(old.id, "old"), (new.id, "new")}
    # The first attempt failed.
    assert len(ran) == 3


def test_key_is_free_once_its_task_is_erased(stage: Stage) -> None:
    """Nothing of the old one counts: not its wrong codes, and not that its signal has fired."""
    verified = stage.hear(task_verified)
    stage.app(eager=True)
    for end in (lambda task: lock(stage.taskflow, task, stage.box[-1].otp), stage.verify, stage.verify):
        task = add(stage, "1")
        end(task)
        refused(OTPRejected, stage.taskflow.verify, task.id, "EMAIL", stage.box[-1].otp)
        stage.taskflow.erase(task.id)
        assert task.id not in inside.dump(stage.redis)

    assert len(set(verified.tasks(2))) == 2


def test_key_names_a_task_as_long_as_that_is_kept(stage: Stage) -> None:
    stage.app()
    task = add(stage, "1", ttl=60)
    stage.verify(task)

    travel(DAY - 60)
    assert add(stage, "1", ttl=60).id == task.id
    travel(120)
    assert add(stage, "1", ttl=60).id != task.id
