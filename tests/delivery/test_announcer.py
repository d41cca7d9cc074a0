"""Bells: every listening process fires ``task_verified`` once, for tasks that are verified indeed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import task_verified
from flask_taskflow.testing import travel
from tests.conftest import Spawn
from tests.support.stage import BELL, Ear, Stage


@pytest.fixture
def ear(stage: Stage) -> Ear:
    """What the app hears whose threads run."""
    stage.start()
    return stage.hear(task_verified)


def test_verification_fires_the_signal_in_the_apps_context(stage: Stage, ear: Ear) -> None:
    task = stage.verified()

    told = ear.next()

    assert told["task"] == task
    assert (told["context"], told["thread"]) == ("app", "taskflow-signals")
    assert told["app"].extensions["taskflow"] is stage.taskflow


@pytest.mark.promise("F9")
def test_receiver_that_raises_silences_no_other(
    stage: Stage, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(sender: Flask, **_: Any) -> None:
        raise RuntimeError("broken receiver")

    with task_verified.connected_to(broken):
        # One that is called before it, and one after.
        ears = [ear, stage.hear(task_verified)]
        ids = [stage.verified().id for _ in range(3)]

        assert [each.tasks(3) for each in ears] == [ids, ids]
    assert "broken receiver" in caplog.text


@pytest.mark.promise("F9")
def test_receiver_that_is_slow_delays_receivers_only(stage: Stage, ear: Ear) -> None:
    entered, release, work = threading.Event(), threading.Event(), stage.work()

    def slow(sender: Flask, **_: Any) -> None:
        entered.set()
        release.wait(60)

    with task_verified.connected_to(slow):
        ids = [stage.verified().id]
        assert entered.wait(60)
        ids.append(stage.verified().id)
        assert [work.begun.acquire(timeout=60) for _ in ids] == [True, True], "callbacks go on"
        assert stage.listeners() == 1
        release.set()

        assert ear.tasks(2) == ids


@pytest.mark.promise("S46")
def test_bell_that_is_forged_fires_nothing(stage: Stage, ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    """Of an unknown, a pending and a cancelled task."""
    work = stage.work()
    cancelled = stage.taskflow.cancel_task(stage.add().id)
    void = ["a" * 34, stage.add().id, cancelled.id]

    for task_id in void:
        stage.redis.publish(BELL, f"1 {task_id}")
    task = stage.verified()

    assert ear.tasks() == [task.id]
    assert ear.rest() == []
    assert work.begun.acquire(timeout=60)
    assert work.tasks == [task]
    for task_id in void:
        assert f"task {task_id} is void" in caplog.text


@pytest.mark.promise("S46")
def test_bell_that_is_replayed_fires_once(stage: Stage, ear: Ear) -> None:
    first = stage.verified()
    for _ in range(20):
        stage.redis.publish(BELL, f"1 {first.id}")
    second = stage.verified()

    assert ear.tasks(2) == [first.id, second.id]
    assert ear.rest() == []


@pytest.mark.promise("S46")
def test_bell_that_is_old_fires_nothing_in_a_new_process(stage: Stage) -> None:
    """A process that never fired for the task cannot be made to long afterwards."""
    stage.app()
    old = stage.verified()
    travel(601)
    ear = stage.hear(task_verified)
    stage.start()

    stage.redis.publish(BELL, f"1 {old.id}")
    fresh = stage.verified()

    assert ear.tasks() == [fresh.id]
    assert ear.rest() == []


def test_every_listening_process_fires_once(stage: Stage, ear: Ear, spawn: Spawn) -> None:
    processes = [spawn("alone"), spawn("alone")]
    pids = [process.lines(1)[0][1] for process in processes]

    verified = [stage.verified().id for _ in range(2)]
    for task_id in verified:
        stage.redis.publish(BELL, f"1 {task_id}")

    for process, pid in zip(processes, pids, strict=True):
        assert process.lines(2) == [["heard", pid, task_id] for task_id in verified]
        assert process.close() == 0
        assert process.rest() == []
    assert ear.tasks(2) == verified
