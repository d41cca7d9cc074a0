"""Tasks whose app is reminded before they end: ``add_task(remind=...)`` and the signal ``task_expiring``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flask_taskflow import InvalidTask, Task, otp_sent, task_expiring
from flask_taskflow._delivery.attempts import ReportOnce
from flask_taskflow.testing import travel
from tests.conftest import watch
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.sending import Post
from tests.support.stage import Ear, Stage
from tests.support.tasks import lock

HOUR = 3600
REMINDERS = "%reminders"


def lefts(ear: Ear) -> list[int]:
    """Return how long before its end each reminder came, in hours: so busy is no machine."""
    return [round(heard["left"] / HOUR) for heard in ear.rest()]


def test_app_is_reminded_before_a_pending_task_ends(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_expiring)
    task = stage.add(ttl=24 * HOUR, remind=(2 * HOUR, timedelta(hours=10)))

    heard = []
    for hours in (13, 2, 4, 4, 2):
        stage.run(after=hours * HOUR)
        heard.append(lefts(ear))

    assert heard == [[], [9], [], [1], []]
    assert task.remind == stage.taskflow.get_task(task.id).remind == (10 * HOUR, 2 * HOUR)
    assert stage.keys("h:%*") == []


def test_receiver_offers_the_code_again(post: Post) -> None:
    app = post.app()
    contexts = []

    @task_expiring.connect_via(app)
    def offer(app: object, task: Task[Any], left: float, **extra: Any) -> None:
        contexts.append((task.attempts_left, task.resend_after, left < 600))
        post.taskflow.resend_otp(task.id, "EMAIL")

    task = post.add_for("EMAIL", ttl=HOUR, remind=[600])
    counts = [post.run(), post.run(after=3010)]
    post.run()

    assert counts[0] == 1
    assert contexts == [(5, {"EMAIL": 0.0}, True)]
    assert len(post.sent) == 2
    assert post.confirms(task)


def test_several_that_are_overdue_are_told_once(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_expiring)
    stage.add(ttl=24 * HOUR, remind=(12 * HOUR, 6 * HOUR, 3 * HOUR))

    stage.run(after=22 * HOUR)

    assert lefts(ear) == [2]


def move_end(stage: Stage, task: Task[Any]) -> None:
    (key,) = stage.redis.scan_iter(match=f"*task:{task.id}")
    stage.redis.hset(key, "expires", int(stage.redis.hget(key, "expires")) - 20 * HOUR * 1000)
    delay = inside.key_of("q", REMINDERS, "delay")
    (member,) = stage.redis.zrange(delay, 0, -1)
    stage.redis.zincrby(delay, -20 * HOUR * 1000, member)


def change(stage: Stage, task: Task[Any]) -> None:
    (key,) = stage.redis.scan_iter(match=f"*task:{task.id}")
    fixed = stage.redis.hget(key, "fixed")
    stage.redis.hset(key, "fixed", fixed.replace(b'"remind":[600.0,', b'"remind":[6000.0,'))


#: What comes of a task, and how many seconds later its reminder is due.
ENDS: dict[str, tuple[Callable[[Stage, Task[Any]], object], float]] = {
    "verified": (lambda stage, task: stage.verify(task), 24 * HOUR - 300),
    "cancelled": (lambda stage, task: stage.taskflow.cancel_task(task.id), 24 * HOUR - 300),
    "locked": (lambda stage, task: lock(stage.taskflow, task, stage.box[-1].otp), 24 * HOUR - 300),
    "erased": (lambda stage, task: stage.taskflow.erase(task.id), 24 * HOUR - 300),
    "expired": (lambda stage, task: None, 25 * HOUR),
    "changed in Redis": (change, 24 * HOUR - 300),
    "moved in Redis": (move_end, 4 * HOUR - 300),
}


@pytest.mark.parametrize("what", ENDS)
def test_task_that_is_over_or_was_changed_reminds_nobody(stage: Stage, what: str) -> None:
    end, later = ENDS[what]
    stage.app()
    ear = stage.hear(task_expiring)
    task = stage.add(ttl=24 * HOUR, remind=(600, 60))
    end(stage, task)

    ran = stage.run(after=later)

    assert ran == (0 if what == "erased" else 1)
    assert ear.rest() == []


def test_nobody_is_reminded_of_a_task_that_did_not_ask(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_expiring)
    asks, silent = stage.add(ttl=HOUR, remind=[1800]), stage.add(ttl=HOUR)
    # As who writes to Redis can, but has no key.
    for kind in ("meta", "body"):
        key = inside.key_of("q", REMINDERS, kind)
        stage.redis.hset(key, silent.id, stage.redis.hget(key, asks.id))
    delay = inside.key_of("q", REMINDERS, "delay")
    ((member, at),) = stage.redis.zrange(delay, 0, -1, withscores=True)
    stage.redis.zadd(delay, {member.decode().replace(asks.id, silent.id): at})

    ran = stage.run(after=1900)

    assert ran == 2
    assert [heard["task"].id for heard in ear.rest()] == [asks.id]


def test_reminders_that_are_lost_too_often_end(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.app(max_lost=1)
    ear = stage.hear(task_expiring)
    task = stage.add(ttl=24 * HOUR, remind=[23 * HOUR, 60])
    travel(HOUR)
    dies = inside.store(REMINDERS)

    claimed = []
    for _ in range(4):
        travel(40)
        # The second loss is followed by a pause.
        claimed += [item.lost for item in dies.claim("q", [REMINDERS], 1).deliveries]
    ran = [stage.run(after=40), stage.run(after=40)]

    assert (claimed, ran, ear.rest()) == ([0, 1, 2], [0, 1], [])
    assert f"The reminders of task {task.id} end here: lost with its process 3 times" in caplog.text
    assert stage.keys("h:%*") == []


def test_reminder_of_a_process_that_died_comes_again(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_expiring)
    stage.add(ttl=HOUR, remind=[600])
    travel(3010)
    inside.store(REMINDERS).claim("q", [REMINDERS], 1)

    ran = [stage.run(), stage.run(after=40)]

    assert (ran, len(ear.rest())) == ([0, 1], 1)


def test_receivers_that_raise_or_hang_hold_up_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    app = stage.app(job_timeout=0.2, callback_threads=1)
    release, hang = threading.Event(), Ear()

    @task_expiring.connect_via(app)
    def fail(app: object, **extra: Any) -> None:
        raise ValueError("no")

    @task_expiring.connect_via(app)
    def wait(app: Any, **details: Any) -> None:
        hang(app, **details)
        release.wait(60)

    stage.add(ttl=24 * HOUR, remind=(10 * HOUR, 2 * HOUR))
    travel(15 * HOUR)
    stage.taskflow.start()
    try:
        first = hang.next()["left"]
        wait_until(lambda: stage.redis.zcard(inside.key_of("q", REMINDERS, "delay")) == 1)
        travel(8 * HOUR)
        second = hang.next()["left"]
    finally:
        release.set()

    assert (round(first / HOUR), round(second / HOUR)) == (9, 1)
    assert "timed out after 0.2 s" in caplog.text


def test_reminder_that_nobody_was_told_in_time_comes_again(stage: Stage) -> None:
    """As where Redis did not answer for so long."""
    stage.app()
    ear = stage.hear(task_expiring)
    stage.add(ttl=HOUR, remind=[1800])
    travel(1900)
    store, runner = inside.store(REMINDERS), inside.engine(REMINDERS)._runner
    (item,) = store.claim("q", [REMINDERS], 1).deliveries
    runner.fail(runner.begin(item), TimeoutError(), ReportOnce(store))

    assert stage.run(after=2) == 1
    assert len(ear.rest()) == 1


def test_reminders_go_on_while_the_queue_is_paused(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_expiring)
    stage.add(ttl=HOUR, remind=[1800])
    stage.taskflow.operations.pause("q")

    stage.run(after=1900)

    assert len(ear.rest()) == 1


def test_process_without_receivers_runs_no_reminders(stage: Stage) -> None:
    stage.start()
    without = {thread.name for thread in threading.enumerate()}
    ear = stage.hear(task_expiring)
    stage.taskflow.start()
    task = stage.add("another", ttl=HOUR, remind=[1800])
    travel(1900)

    assert ear.next()["task"].id == task.id
    assert "taskflow-reminders" not in without
    assert "taskflow-reminders" in {thread.name for thread in threading.enumerate()}


def test_reminders_that_nobody_hears_are_forgotten(stage: Stage) -> None:
    stage.app()
    for _ in range(12):
        stage.add(ttl=HOUR, remind=[1800])
    body = inside.key_of("q", REMINDERS, "body")
    # The body says when a task ends.
    stage.redis.hset(body, mapping=dict.fromkeys(stage.redis.hkeys(body), 1))
    travel(1900)

    counts = []
    for _ in range(2):
        stage.add(ttl=HOUR, remind=[1800])
        counts.append(stage.redis.hlen(body))

    assert counts == [3, 2]
    assert all(stage.redis.pttl(key) > 0 for key in stage.keys("h:%*"))


def test_task_without_reminders_costs_no_command_more(stage: Stage) -> None:
    stage.app()
    stage.add()

    sent, ran = watch(stage.redis, stage.add)
    more, ran_more = watch(stage.redis, lambda: stage.add(remind=[60]))

    assert [command.split()[0] for command in (*sent, *more)] == ["EVALSHA", "EVALSHA"]
    assert not [command for command in map(str, ran) if REMINDERS in command]
    assert [command for command in map(str, ran_more) if REMINDERS in command]


def test_key_with_reminders_is_spoiled_and_the_task_is_added(stage: Stage) -> None:
    stage.app()
    stage.redis.set(inside.key_of("q", REMINDERS, "delay"), "junk")

    task = stage.add(remind=[60])

    assert stage.verify(task).remind == (60,)


@pytest.mark.parametrize("value", ["600", 600, [0], [-1], ["60"], [float("nan")], list(range(1, 12)), {60}])
def test_reminders_that_are_none_are_refused(stage: Stage, value: Any) -> None:
    stage.app()

    with pytest.raises(InvalidTask, match="remind must be"):
        stage.add(remind=value)


def test_reminder_before_its_task_is_left_out(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.app()

    task = stage.add(ttl=600, remind=(600, 60))

    assert task.remind == (60,)
    assert "lives for 600 s: it is added without the reminders 600 s before" in caplog.text


def test_reminder_is_of_the_audit_log_and_the_signal_only(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.app()
    stage.hear(task_expiring), stage.hear(otp_sent)
    caplog.set_level("DEBUG")
    task = stage.add(ttl=HOUR, remind=[1800])
    stage.run(after=1900)

    (told,) = [each for each in caplog.records if getattr(each, "event", "") == "task_expiring"]
    assert (told.__dict__["task_id"], told.__dict__["queue"]) == (task.id, "q")
    assert [entry.callback for entry in stage.taskflow.get_course(task.id) if entry.process] == [REMINDERS]
    assert stage.box[0].otp not in caplog.text
    assert str(task.recipient.email) not in caplog.text
