"""What is kept of a person goes when the app says so, but for what is still to run."""

from __future__ import annotations

import logging

import pytest

from flask_taskflow import InvalidTask, Task, TaskNotFound, task_ended
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.stage import Stage
from tests.support.tasks import refused

OWNER = "user:17"
ANN = {"email": "ann@example.com"}


def add(stage: Stage, owner: str = OWNER) -> Task[object]:
    return stage.taskflow.add_task(
        "q",
        {"to": "a secret friend"},
        allowed_methods=["EMAIL"],
        recipient=ANN,
        summary="for a secret friend",
        owner=owner,
    )


def verify(stage: Stage, task: Task[object]) -> None:
    (otp,) = [message.otp for message in stage.box if message.task.id == task.id]
    stage.taskflow.verify(task.id, "EMAIL", otp)


def test_erased_task_is_nowhere(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Neither one that died, nor one that waits for its code."""
    caplog.set_level(logging.INFO, "flask_taskflow.audit")
    stage.work(ValueError("no"), name="pay", max_attempts=1)
    stage.app()
    dead, pending = add(stage), add(stage)
    verify(stage, dead)
    stage.taskflow.run_due()
    kept = inside.dump(stage.redis)

    assert stage.taskflow.erase(dead.id) == stage.taskflow.erase(owner=OWNER) == []

    left = inside.dump(stage.redis)
    for text in ("friend", "a****@", dead.id, pending.id):
        assert text not in left
        assert text in kept or text == "a****@"
    assert stage.taskflow.tasks_of(OWNER) == []
    for call in (stage.taskflow.erase, stage.taskflow.get_task, stage.taskflow.get_course):
        refused(TaskNotFound, call, dead.id)
    told = [record.msg for record in caplog.records]
    assert (told.count("task_erased"), told.count("task_cancelled")) == (2, 1)


def test_dead_letter_of_a_forgotten_task_is_erased_by_its_id(stage: Stage) -> None:
    stage.work(ValueError("no"), name="pay", max_attempts=1)
    stage.app()
    task = add(stage)
    verify(stage, task)
    stage.taskflow.run_due()
    travel(2 * 86400)

    refused(TaskNotFound, stage.taskflow.get_task, task.id)
    assert stage.taskflow.erase(task.id) == []
    assert task.id not in inside.dump(stage.redis)


def test_delivery_that_is_to_run_stays_and_is_told(stage: Stage) -> None:
    """It runs with what it needs, and then nothing is left."""
    work = stage.work(name="pay")
    stage.app()
    task = add(stage)
    verify(stage, task)

    assert stage.taskflow.erase(task.id) == [f"{task.id}:pay"]
    refused(TaskNotFound, stage.taskflow.get_task, task.id)
    assert stage.taskflow.run_due() == 1

    assert [each.data for each in work.tasks] == [{"to": "a secret friend"}]
    assert task.id not in inside.dump(stage.redis)


def test_task_that_was_tampered_with_is_erased(stage: Stage) -> None:
    stage.app()
    task = add(stage)
    (key,) = inside.service().keys.task(task.id)
    stage.redis.hset(key, "fixed", "{}")

    assert stage.taskflow.erase(task.id) == []
    # The list of an owner whom nobody reads keeps a bare id, until it would be forgotten anyway.
    assert "friend" not in inside.dump(stage.redis)
    assert "task:" not in inside.dump(stage.redis)


def test_erase_of_an_owner_goes_on_when_a_task_goes_meanwhile(stage: Stage) -> None:
    stage.app()
    waiting = {add(stage).id for _ in range(4)}

    def erase_another(_: object, task: Task[object]) -> None:
        if task.id in waiting:
            waiting.remove(task.id)
            another = waiting.pop()
            waiting.clear()
            stage.taskflow.erase(another)

    with task_ended.connected_to(erase_another):
        assert stage.taskflow.erase(owner=OWNER) == []

    assert stage.taskflow.tasks_of(OWNER) == []


def test_erase_wants_a_task_or_an_owner(stage: Stage) -> None:
    stage.app()

    refused(InvalidTask, stage.taskflow.erase)
    with pytest.raises(InvalidTask, match="either"):
        stage.taskflow.erase("x", owner=OWNER)
    for unknown in ("x", 5):
        refused(TaskNotFound, stage.taskflow.erase, unknown)
        refused(TaskNotFound, stage.taskflow.operations.erase, unknown)
    assert stage.taskflow.erase(owner="nobody") == []
