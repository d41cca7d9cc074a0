"""The operator's view of schedules, in Python and by the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from flask_taskflow import Reject, TargetNotFound, TaskFlow, every
from flask_taskflow.testing import travel
from tests.operator.test_cli import run
from tests.support.stage import Stage


@pytest.fixture
def stopped(stage: Stage) -> list[datetime]:
    """A schedule whose runs end at once; the ticks that it ran for."""
    ticks: list[datetime] = []

    @stage.taskflow.on_schedule("0 9 * * MON", name="payouts", timezone="Europe/Paris")
    def payouts(tick: datetime) -> None:
        ticks.append(tick)
        if len(ticks) == 2:
            raise Reject("closed")

    stage.app()
    stage.run()
    return ticks


def test_list_shows_the_next_five_ticks_and_how_the_last_one_ended(
    stage: Stage, stopped: list[datetime]
) -> None:
    (before,) = stage.taskflow.operations.schedules()
    outcomes = []
    for _ in range(2):
        travel(7 * 86400)
        stage.run()
        outcomes.append(stage.taskflow.operations.schedules()[0].outcome)

    (found,) = json.loads(run("schedules", "--json"))

    assert (before.name, before.when, before.timezone) == ("payouts", "0 9 * * MON", "Europe/Paris")
    assert {after - tick for tick, after in zip(before.ticks, before.ticks[1:], strict=False)} <= {
        timedelta(days=7)
    }
    assert (len(before.ticks), before.last, before.outcome) == (5, None, None)
    assert outcomes == ["done", "dead"]
    assert datetime.fromisoformat(found["last"]) == stopped[-1]
    assert datetime.fromisoformat(found["ticks"][0]) == stopped[-1] + timedelta(days=7)
    assert "0 9 * * MON" in run("schedules")


def test_pause_resume_and_run_by_the_command(stage: Stage, stopped: list[datetime]) -> None:
    said = [run("schedules", *words, "payouts") for words in (["pause"], ["run"])]
    paused = stage.taskflow.operations.schedules()[0].paused
    stage.run()
    said.append(run("schedules", "resume", "payouts"))

    assert "does not tick" in said[0]
    assert said[1].startswith("payouts:20")
    assert paused
    assert not stage.taskflow.operations.schedules()[0].paused
    assert abs(stopped[0] - datetime.now(UTC)) < timedelta(minutes=1)


def test_show_tells_of_a_run(stage: Stage, stopped: list[datetime], caplog: pytest.LogCaptureFixture) -> None:
    stopped.append(datetime.now(UTC))
    ran = run("schedules", "run", "payouts").split()[0]
    stage.run()
    waits = run("schedules", "run", "payouts").split()[0]

    (found,) = json.loads(run("show", ran, "--json"))
    (told,) = stage.taskflow.operations.schedules()

    assert (told.last, told.by_hand_outcome) == (None, "ready")
    assert f"payouts:{told.by_hand:%Y-%m-%dT%H:%M:%S}" == waits[:27]
    assert f"{told.by_hand:%Y-%m-%dT%H:%M:%S}+00:00 ready" in run("schedules")
    assert (found["id"], found["state"]) == (ran, "dead")
    assert waits in run("show", waits)
    assert "done, or never was" in run("show", "payouts:2026-01-01T00:00:00Z", code=1)
    assert f"Schedule payouts at {ran.removeprefix('payouts:')} failed" in caplog.text


def test_schedule_that_this_process_lacks_is_listed_and_can_be_forgotten(
    stage: Stage, stopped: list[datetime]
) -> None:
    stage.app(TaskFlow())

    (found,) = json.loads(run("schedules", "--json"))
    run("forget", "@schedules", "payouts", "--yes")

    assert (found["when"], len(found["ticks"])) == (None, 1)
    assert json.loads(run("schedules", "--json")) == []


@pytest.mark.usefixtures("stopped")
def test_schedule_that_is_not_there_is_named(stage: Stage) -> None:
    with pytest.raises(TargetNotFound, match="there are: payouts"):
        stage.taskflow.operations.pause_schedule("payout")
    assert "no schedule payout" in run("schedules", "run", "payout", code=1)
    run("schedules", "pause", code=2)


def test_process_serves_the_queues_of_its_patterns(stage: Stage) -> None:
    works = {queue: stage.work(queue=queue) for queue in ("pay.in", "pay.out", "mail", "payments")}
    stage.app(queues=["pay.*", "mail"])
    for queue in works:
        stage.verified(queue)

    stage.run()

    assert [queue for queue, work in works.items() if work.tasks] == ["pay.in", "pay.out", "mail"]


def test_process_of_other_queues_leaves_schedules_to_others(stage: Stage) -> None:
    stage.work()
    stage.taskflow.on_schedule(every(60), name="payouts")(print)
    stage.app(queues=["q"])

    counts = [stage.run(), stage.run(after=600)]

    assert counts == [0, 0]
    assert stage.keys("schedules") == []
