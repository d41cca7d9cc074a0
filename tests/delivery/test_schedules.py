"""Schedules: each tick runs once in the fleet, whatever happens to processes, clocks and definitions."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flask_taskflow import ConfigError, Retry, TaskFlow, current_delivery, every, schedule_dead
from flask_taskflow._operator.doctor import examine
from flask_taskflow.testing import travel, travel_on
from tests.support import inside
from tests.support.fleet import Fleet, wait_until
from tests.support.stage import Stage

HOUR, DAY = 3600, 86400


class Clock:
    """A function that keeps the ticks that it ran for, and raises what it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.ticks: list[datetime] = []
        self.ids: list[str] = []
        self._errors = list(errors)

    def __call__(self, tick: datetime) -> None:
        self.ticks.append(tick)
        self.ids.append(current_delivery.id)
        if self._errors:
            raise self._errors.pop(0)


def release(stage: Stage, when: Any = "0 9 * * *", **options: Any) -> tuple[Any, Clock]:
    """Return a process of a release of its own, which runs what is due, and its schedule."""
    extension, clock = TaskFlow(), Clock()
    extension.on_schedule(when, **{"name": "payouts", **options})(clock)
    app = stage.make_app(extension)

    def run(after: float = 0) -> int:
        with app.app_context():
            if after:
                travel_on(stage.server, after)
            return extension.run_due()

    run()
    return run, clock


def to_phase(period: int, phase: int) -> int:
    """Return the seconds until the server's clock is so far into a period."""
    return (phase - int(time.time())) % period


def test_tick_runs_once_in_a_fleet_and_knows_its_time(stage: Stage) -> None:
    one, here = release(stage, "0 9 * * MON", timezone="Europe/Paris")
    other, there = release(stage, "0 9 * * MON", timezone="Europe/Paris")

    counts = [one(7 * DAY), other(), one()]

    assert counts == [1, 0, 0]
    (tick,) = here.ticks + there.ticks
    assert tick.tzinfo == ZoneInfo("Europe/Paris")
    assert (tick.weekday(), tick.hour, tick.minute) == (0, 9, 0)
    assert here.ids == [f"payouts:{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"]


@pytest.mark.parametrize(
    ("catch_up", "runs"), [("latest", [-1]), ("none", []), ("all", [-6, -5, -4, -3, -2, -1])]
)
def test_fleet_that_was_down_catches_up_as_told(stage: Stage, catch_up: str, runs: list[int]) -> None:
    run, clock = release(stage, every(600), catch_up=catch_up)
    run(to_phase(600, 300))
    clock.ticks.clear()

    run(HOUR)

    last = clock.ticks[-1] if clock.ticks else None
    assert [round((tick - last).total_seconds() / 600) - 1 for tick in clock.ticks if last] == runs


def test_catching_up_on_all_has_a_bound(stage: Stage) -> None:
    run, clock = release(stage, every(1), catch_up="all")

    run(DAY)

    assert len(clock.ticks) == 100
    assert clock.ticks == sorted(clock.ticks)
    assert clock.ticks[-1] - clock.ticks[0] == timedelta(seconds=99)


def test_failed_run_is_tried_again_then_dead_and_replayed(stage: Stage) -> None:
    clock, ear = Clock(Retry(after=1), ValueError("no money")), stage.hear(schedule_dead)
    stage.taskflow.on_schedule("@daily", name="payouts", max_attempts=2)(clock)
    stage.app()
    stage.run()

    for wait in (DAY, 2):
        stage.run(wait)
    (dead,) = stage.taskflow.operations.dead()
    heard = ear.next()
    stage.taskflow.operations.replay(dead.id)
    stage.run()

    assert clock.ids == [dead.id] * 3
    assert [heard[name] for name in ("schedule", "tick")] == ["payouts", clock.ticks[0]]
    assert "no money" in dead.error
    assert stage.taskflow.operations.dead() == []


def test_jitter_puts_runs_off(stage: Stage) -> None:
    run, clock = release(stage, "@daily", jitter=HOUR)

    ran = run(DAY)
    waits = stage.redis.zrange(stage.keys("delay")[0], 0, -1, withscores=True)
    run(HOUR)

    assert ran == 0
    assert 0 < waits[0][1] / 1000 - time.time() <= HOUR
    assert len(clock.ticks) == 1


def test_confirmed_tick_adds_its_task_once_and_the_callback_waits_for_the_code(stage: Stage) -> None:
    paid, asked = stage.work(queue="salaries"), Clock()

    @stage.taskflow.on_schedule("0 18 28 * *", name="salaries", confirm="salaries")
    def salaries(tick: datetime) -> dict[str, Any]:
        asked(tick)
        return {"data": len(asked.ticks), "recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}

    app = stage.app()
    errors: list[Exception] = [ValueError("after the task was added")]

    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        if asked.ticks and errors:
            raise errors.pop()

    stage.run()
    for wait in (31 * DAY, 2):
        stage.run(wait)
    before = list(paid.tasks)
    stage.verify(stage.box[-1].task)
    stage.run()

    assert len(asked.ticks) == 2
    assert (len(stage.box), before, [task.data for task in paid.tasks]) == (1, [], [1])


def test_code_of_a_confirmed_tick_that_could_not_be_sent_is_sent_again(stage: Stage) -> None:
    given = {"recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}
    stage.taskflow.on_schedule("@daily", name="salaries", confirm="salaries")(lambda tick: given)
    stage.app()
    stage.run()
    stage.box.fail(OSError("no mail today"))

    for wait in (DAY, 2):
        stage.run(wait)

    assert len(stage.box) == 1


def test_code_of_a_confirmed_tick_is_sent_whatever_is_asked_for_the_second_time(stage: Stage) -> None:
    asked = Clock()

    @stage.taskflow.on_schedule("@daily", name="salaries", confirm="salaries")
    def salaries(tick: datetime) -> dict[str, Any]:
        asked(tick)
        return {"data": len(asked.ticks), "recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}

    stage.app()
    stage.run()
    stage.box.fail(OSError("no mail today"))

    for wait in (DAY, 2):
        stage.run(wait)

    assert [message.task.data for message in stage.box] == [1]


def test_code_of_a_confirmed_tick_is_sent_after_a_replay(stage: Stage) -> None:
    given = {"recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"], "ttl": HOUR}
    stage.taskflow.on_schedule("@daily", name="salaries", confirm="salaries", max_attempts=1)(
        lambda tick: given
    )
    stage.app()
    stage.run()
    stage.box.fail(OSError("no mail today"))
    stage.run(DAY)
    (letter,) = stage.taskflow.operations.dead("@schedules")

    stage.taskflow.operations.replay(letter.id)
    stage.run()

    assert len(stage.box) == 1


@pytest.mark.parametrize("cooldown", [0, 300])
def test_code_of_a_confirmed_tick_is_sent_if_its_process_was_killed_before(
    stage: Stage, cooldown: int
) -> None:
    given = {"recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}
    # No tick of its own comes near.
    month = (datetime.now(UTC).month + 5) % 12 + 1
    stage.taskflow.on_schedule(f"0 0 1 {month} *", name="salaries", confirm="salaries")(lambda tick: given)
    stage.app(resend_cooldown=cooldown)
    stage.run()
    # What that process did, but for the message.
    tick = stage.taskflow.operations.run_schedule("salaries")
    inside.store().claim("@schedules", ["salaries"], 1)
    task = stage.add("salaries", key=tick, **given)
    stage.box.clear()

    for wait in (31, cooldown):
        stage.run(wait)

    assert [message.task.id for message in stage.box] == [task.id]


@pytest.mark.parametrize("limits", [{"resend_cooldown": 0}, {"max_sends": 1}])
def test_code_of_a_confirmed_tick_is_sent_once_if_a_process_died_before_it_did_anything(
    stage: Stage, limits: dict[str, Any]
) -> None:
    given = {"recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}
    # No tick of its own comes near.
    month = (datetime.now(UTC).month + 5) % 12 + 1
    stage.taskflow.on_schedule(f"0 0 1 {month} *", name="salaries", confirm="salaries")(lambda tick: given)
    stage.app(**limits)
    stage.run()
    stage.taskflow.operations.run_schedule("salaries")
    inside.store().claim("@schedules", ["salaries"], 1)

    for wait in (31, 2, 2, 2):
        stage.run(wait)

    assert len(stage.box) == 1
    assert stage.taskflow.operations.dead("@schedules") == []


def test_code_of_a_confirmed_tick_that_may_not_be_sent_again_says_so(
    stage: Stage,
) -> None:
    given = {"recipient": {"email": "a@b.c"}, "allowed_methods": ["EMAIL"]}
    stage.taskflow.on_schedule("@daily", name="salaries", confirm="salaries")(lambda tick: given)
    stage.app(max_sends=1)
    stage.run()
    stage.box.fail(OSError("no mail today"))

    for wait in (DAY, 2, 2):
        stage.run(wait)

    (letter,) = stage.taskflow.operations.dead("@schedules")
    assert "may have no more messages" in letter.error


def test_only_the_newest_definition_ticks(stage: Stage) -> None:
    old, early = release(stage, every(60))
    new, late = release(stage, every(45))

    for _ in range(9):
        old(30)
        new()

    assert early.ticks == []
    assert {tick.timestamp() % 45 for tick in late.ticks} == {0}
    # Seven, if the test's own time takes it over the next one.
    assert len(late.ticks) in (6, 7)


def test_older_definition_ticks_again_once_nobody_has_the_newer_one(stage: Stage) -> None:
    old, early = release(stage, "0 9 * * *")
    release(stage, "30 21 * * *")

    old(60)
    before = stage.redis.hget(stage.keys("schedules")[0], "payouts")
    old(60)
    old(DAY)

    assert before.split()[0] != stage.redis.hget(stage.keys("schedules")[0], "payouts").split()[0]
    assert len(early.ticks) == 1


def test_tick_that_was_due_under_the_old_definition_is_not_lost(stage: Stage) -> None:
    old, _ = release(stage, every(HOUR))
    new, clock = release(stage, every(2 * HOUR))
    stage.redis.delete(*stage.keys("schedules"))
    old()

    new(HOUR)

    assert len(clock.ticks) == 1


@pytest.mark.parametrize("kind", ["state", "not text", "due in no year", "body"])
def test_what_was_changed_in_redis_runs_nothing(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, clock = release(stage, "@daily", jitter=HOUR if kind == "body" else 0)
    if kind == "not text":
        (key,) = stage.keys("schedules")
        stage.redis.hset(key, mapping={b"payouts": b"\xff", b"\xff": b"1"})
        said = stage.app().test_cli_runner().invoke(args=["taskflow", "schedules"])
        assert said.exit_code == 0, said.exception
    elif kind == "body":
        run(DAY)
        (body,) = stage.keys("body")
        (tick,) = stage.redis.hkeys(body)
        stage.redis.hset(body, tick, stage.redis.hget(body, tick)[:-1] + b"A")
    else:
        (key,) = stage.keys("schedules")
        digest, _, tick, *rest = stage.redis.hget(key, "payouts").decode().split()
        due, tick = ("0", "1") if kind == "state" else ("9" * 400, tick)
        stage.redis.hset(key, "payouts", " ".join([digest, due, tick, *rest]))

    run(HOUR)

    assert clock.ticks == []
    assert "changed in Redis from outside" in caplog.text


def test_redis_that_was_emptied_begins_anew(stage: Stage) -> None:
    run, clock = release(stage, "@daily")
    stage.redis.flushall()

    counts = [run(), run(DAY)]

    assert counts == [0, 1]
    assert len(clock.ticks) == 1


@pytest.mark.parametrize("what", ["schedule", "queue", "all"])
def test_pause_holds_ticks_until_they_are_resumed(stage: Stage, what: str) -> None:
    clock = Clock()
    stage.taskflow.on_schedule("@hourly", name="payouts")(clock)
    stage.app()
    stage.run()
    operations: Any = stage.taskflow.operations
    pause, resume, name = {
        "schedule": (operations.pause_schedule, operations.resume_schedule, "payouts"),
        "queue": (operations.pause, operations.resume, "@schedules"),
        "all": (operations.pause, operations.resume, "*"),
    }[what]

    pause(name)
    held = stage.run(DAY)
    resume(name)
    stage.run()

    assert (held, len(clock.ticks)) == (0, 1)


def test_schedule_that_is_new_while_all_are_paused_waits_and_holds_up_nothing(stage: Stage) -> None:
    known, new = Clock(), Clock()
    stage.taskflow.on_schedule("@hourly", name="payouts")(known)
    work = stage.work()
    stage.app()
    stage.run()
    stage.taskflow.operations.pause("@schedules")
    stage.taskflow.on_schedule("@hourly", name="new")(new)

    stage.verified()
    held = stage.run(HOUR)
    stage.taskflow.operations.resume("@schedules")
    stage.run()
    stage.run(HOUR)

    assert (held, len(work.tasks)) == (1, 1)
    assert (len(known.ticks), len(new.ticks)) == (2, 1)


@pytest.mark.parametrize("shift", [-3600, 3600])
def test_clock_of_the_process_makes_no_difference(
    stage: Stage, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + shift * 10**9)
    run, clock = release(stage, every(600))

    counts = [run(), run(600), run()]

    assert counts == [0, 1, 0]
    assert abs(clock.ticks[0].timestamp() - real() - 600) <= 600


@pytest.mark.slow
def test_threads_sleep_until_the_next_tick(stage: Stage) -> None:
    clock = Clock()
    stage.taskflow.on_schedule(every(1), name="beat", catch_up="all")(clock)
    stage.start(poll=60)
    wait_until(lambda: clock.ticks)
    before = stage.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    seen = len(clock.ticks)
    wait_until(lambda: len(clock.ticks) >= seen + 2)
    calls = stage.redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    ticks = len(clock.ticks) - seen

    assert {after - tick for tick, after in zip(clock.ticks, clock.ticks[1:], strict=False)} == {
        timedelta(seconds=1)
    }
    # A tick is offered, claimed and reported.
    assert calls <= 4 * (ticks + 1)


def test_schedule_that_no_process_has_is_told_by_the_doctor(stage: Stage) -> None:
    release(stage, "@daily")
    stage.app(TaskFlow())

    travel(120)

    (found,) = [item for item in examine(inside.service()) if item.subject == "@schedules"]
    assert found.text.startswith("payouts: no process has it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"when": "0 0 31 2 *"}, "no schedule"), ({"name": "a b"}, "must match"), ({"timeout": 0}, "timeout"),
        ({"catch_up": "some"}, "catch_up"), ({"jitter": -1}, "jitter"), ({"jitter": "1"}, "jitter"),
        ({"confirm": "a b"}, "confirm"), ({"timezone": "Mars"}, "time zone"), ({"max_attempts": 0}, "max"),
        ({"catch_up": ["all"]}, "catch_up"),
    ],
)  # fmt: skip
def test_malformed_schedules_are_refused(taskflow: TaskFlow, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        taskflow.on_schedule(**{"when": "@daily", "name": "payouts", **options})(print)


def test_two_schedules_of_one_name_are_refused(taskflow: TaskFlow) -> None:
    taskflow.on_schedule("@daily", name="payouts")(print)

    with pytest.raises(ConfigError, match="payouts already"):
        taskflow.on_schedule("@daily", name="payouts")(repr)


@pytest.mark.slow
def test_no_tick_is_lost_or_doubled_while_processes_are_killed(fleet: Fleet) -> None:
    options: dict[str, Any] = {"app": "ticking", "lease": 1, "poll": 0.2, "redis_timeout": 0.5}
    processes = [fleet.serve(until="Serving", **options) for _ in range(3)]
    fleet.wait("ran")
    for _ in range(6):
        fleet.settle(0.3)
        victim = random.randrange(len(processes))
        processes[victim].kill()
        processes[victim].wait()
        processes[victim] = fleet.serve(until="Serving", **options)

    def ticks() -> list[float]:
        return sorted({event["tick"] for event in fleet.events("ran")})

    wait_until(lambda: len(ticks()) > 8 and len(ticks()) == ticks()[-1] - ticks()[0] + 1)
    firsts = sorted(event["tick"] for event in fleet.events("ran") if event["attempt"] == 1)
    assert firsts == sorted(set(firsts))
