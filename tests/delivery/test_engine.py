"""The engine: order, what is no delivery, timeouts, and its threads in a serving process."""

from __future__ import annotations

import threading
import time
from itertools import accumulate
from typing import Any, cast

import pytest

from flask_taskflow import OutboxStrategy, Reject, Task, TaskFlow, callback_failed, callback_succeeded
from flask_taskflow._store.deliveries import End, Wanted
from flask_taskflow._store.records import Claimed
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.fleet import Fleet, wait_until
from tests.support.stage import Stage


def test_order_is_by_priority_then_first_in_first_out(stage: Stage) -> None:
    work = stage.work()
    stage.app()
    for number, priority in enumerate([0, 5, 0, -5, 5]):
        stage.verified(data=f"{priority}/{number}", priority=priority)

    count = stage.run()

    assert count == 5
    assert [task.data for task in work.tasks] == ["5/1", "5/4", "0/0", "0/2", "-5/3"]


def test_more_due_than_one_call_may_move_keeps_the_order(stage: Stage) -> None:
    stage.work()
    stage.app()
    inside.fill(stage.redis, stage.verified(priority=-1), "delay", 2000, due=1)
    store = inside.store()
    moving = 0

    while not (claim := store.claim("q", ["work"], 16)).deliveries:
        assert claim.again
        moving += 1

    assert moving > 0
    lines = [stage.redis.hget(stage.keys("meta")[0], item.task_id) for item in claim.deliveries]
    found = [(int(line.split()[2]), int(line.split()[1], 16)) for line in lines if line]
    assert found == [(9, 9 + 10 * number) for number in range(16)]


@pytest.mark.promise("F17")
def test_callback_of_another_process_waits_for_one_that_has_it(stage: Stage) -> None:
    ran: list[str] = []
    other = TaskFlow()
    other.on_task_verified("q", name="new")(lambda task: ran.append(task.id))
    other_app = stage.make_app(other)
    with other_app.app_context():
        other.run_due()
        inside.engine()._housekeeping.tidy()

    stage.app()
    task = stage.verified()
    stage.run()
    before = list(ran)
    with other_app.app_context():
        other.run_due()

    assert before == []
    assert ran == [task.id]


@pytest.mark.promise("S31", "F20")
def test_tampered_body_is_a_dead_letter_and_runs_nothing(stage: Stage) -> None:
    work = stage.work()
    stage.app()
    for replace in (b'"data":1', b""), (b"7:expires", b"x"):
        task = stage.verified(data=1)
        (body,) = stage.keys("body")
        stage.redis.hset(body, task.id, stage.redis.hget(body, task.id).replace(*replace))
        stage.run()

    assert work.tasks == []
    assert stage.redis.zcard(stage.keys("dead")[0]) == 2
    assert b"tampered" in stage.redis.hvals(stage.keys("error")[0])[0]


@pytest.mark.promise("F20")
def test_unreadable_meta_is_dropped_and_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    work = stage.work()
    stage.app()
    task = stage.verified()
    stage.redis.hset(stage.keys("meta")[0], task.id, "nonsense")

    stage.run()

    assert work.tasks == []
    assert "Dropped 1 unreadable deliveries of queue q" in caplog.text
    assert stage.keys("ready", "body") == []


def test_old_dead_letters_are_forgotten(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.work(Reject)
    stage.app(dead_retention=3600)
    stage.verified()
    stage.run()
    travel(3599)
    inside.engine()._housekeeping.tidy()
    kept = stage.keys("dead")
    travel(2)
    inside.engine()._housekeeping.tidy()

    assert len(kept) == 1
    assert stage.keys("dead", "error") == []
    assert "Forgot 1 dead letters of queue q" in caplog.text


def fail(task: Task[Any]) -> None:
    raise Reject("no")


@pytest.mark.parametrize("ending", [False, True])
def test_old_dead_letters_of_what_no_release_has_are_forgotten(stage: Stage, ending: bool) -> None:
    old = TaskFlow()
    old.register_strategy("EMAIL")(OutboxStrategy(messages=stage.box))
    if ending:
        old.on_task_ended("q", name="old", statuses=["CANCELLED"], max_attempts=1)(fail)
    else:
        old.on_task_verified("q", name="old", max_attempts=1)(fail)
    with stage.make_app(old).app_context():
        old.run_due()
        task = old.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})
        if ending:
            old.cancel_task(task.id)
        else:
            old.verify(task.id, "EMAIL", stage.box[-1].otp)
        assert old.run_due() == 1
        assert len(old.operations.dead("q")) == 1
    stage.work(name="new")
    stage.app(dead_retention=3600)

    travel(3601)
    engine = inside.engine()
    engine._housekeeping.tidy()

    assert stage.keys("dead", "error", "body") == []


def test_queues_of_the_config_are_the_only_ones_served(stage: Stage) -> None:
    one, two = stage.work(), stage.work(queue="two")
    stage.app(queues=["two"])
    for queue in ("q", "two"):
        stage.verified(queue)

    stage.run()

    assert (len(one.tasks), len(two.tasks)) == (0, 1)


# In threads, as in a serving process.


def test_threads_run_a_callback_at_its_bell_and_retry_by_themselves(stage: Stage) -> None:
    succeeded = stage.hear(callback_succeeded)
    work = stage.work(ValueError, ValueError, backoff_time=0.05)
    # Longer than the test waits: nothing but the bell tells of the task.
    stage.start(poll=60)

    task = stage.verified()

    assert succeeded.tasks() == [task.id]
    assert work.attempts == [1, 2, 3]


@pytest.mark.promise("F13")
def test_attempt_past_its_timeout_fails_and_frees_its_place(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    work = stage.work(lambda task: release.wait(60), backoff_time=0.05)
    stage.start(callback_threads=1, poll=0.1)

    stage.verified(timeout=0.4)
    runs = [work.begun.acquire(timeout=60) for _ in range(2)]
    release.set()

    assert runs == [True, True]
    wait_until(lambda: "timed out after 0.4 s" in caplog.text)


def test_attempt_that_takes_long_is_told_of_at_half_its_time(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    work = stage.work(lambda task: release.wait(60))
    stage.start(poll=0.1)
    stage.verified(timeout=100)
    assert work.begun.acquire(timeout=60)
    engine = inside.service().runtime._engine

    (attempt,) = cast(Any, engine)._places.running()
    attempt.started -= 60

    wait_until(lambda: "has used half of its 100 s" in caplog.text)
    release.set()


def test_late_success_after_a_timeout_ends_the_delivery(stage: Stage) -> None:
    release = threading.Event()
    failed, succeeded = stage.hear(callback_failed), stage.hear(callback_succeeded)
    stage.work(lambda task: release.wait(60), backoff_time=60)
    stage.start(poll=0.1)

    task = stage.verified(timeout=0.2)
    timed_out = failed.tasks()
    release.set()

    assert timed_out == succeeded.tasks() == [task.id]
    assert stage.keys("meta") == []


@pytest.mark.promise("F13")
def test_threads_that_never_end_are_bounded(stage: Stage) -> None:
    release = threading.Event()
    work = stage.work(*[lambda task: release.wait(60)] * 9, max_attempts=9, backoff_time=0.01)
    stage.start(callback_threads=1, poll=0.05)

    stage.verified(timeout=0.1)
    allowed = [work.begun.acquire(timeout=60) for _ in range(2)]
    # Ten times as long as the third one would have had to wait.
    beyond = work.begun.acquire(timeout=0.5)
    release.set()

    assert allowed == [True, True]
    assert not beyond


def test_stop_waits_for_what_runs(stage: Stage) -> None:
    release = threading.Event()
    work = stage.work(lambda task: release.wait(60))
    stage.start()
    stage.verified()
    assert work.begun.acquire(timeout=60)
    threading.Timer(0.2, release.set).start()

    stage.taskflow.stop()

    assert release.is_set()
    assert stage.keys("meta") == []


@pytest.mark.slow
@pytest.mark.parametrize("queues", [1, 20])
@pytest.mark.parametrize("ends", [False, True])
def test_idle_process_sends_one_command_a_poll(stage: Stage, queues: int, ends: bool) -> None:
    """Also where it sends in the background."""
    for number in range(queues):
        if ends:
            stage.taskflow.on_task_ended(f"q{number}", statuses=["EXPIRED"])(lambda task: None)
        else:
            stage.work(queue=f"q{number}")

    def sent() -> int:
        stats = stage.redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "ping"))

    first = sent()
    stage.start(poll=0.05, send="background")
    # The start sends a few, and one for each queue whose ends are followed.
    wait_until(lambda: sent() - first >= 20 + 2 * queues * ends)
    began, before = time.monotonic(), sent()
    wait_until(lambda: sent() - before >= 20)
    used, taken = sent() - before, time.monotonic() - began

    assert used - 4 <= taken / 0.05


def test_full_queues_starve_no_other_queue(stage: Stage) -> None:
    """A turn takes 64 deliveries at most; then another queue has its turn, though it was filled last."""
    ran: list[str] = []
    for queue in ("full", "fuller", "quiet"):
        stage.taskflow.on_task_verified(queue)(lambda task: ran.append(task.queue))
    stage.app(callback_threads=1)
    for queue, count in {"full": 150, "fuller": 150, "quiet": 3}.items():
        for _ in range(count):
            stage.verified(queue)

    stage.taskflow.start()
    wait_until(lambda: len(ran) == 303)

    assert "quiet" in ran[:150]


def test_only_so_many_attempts_run_at_once_and_hold_up_no_other_callback(stage: Stage) -> None:
    stage.work(max_running=3, name="few")
    stage.work(name="many")
    stage.app()
    for _ in range(5):
        stage.verified()
    store = inside.store()
    names = inside.engine().served()["q"]

    def claim(most: int = 64, places: int = 64) -> list[str]:
        claimed = store.turn("q", names, ends, Wanted(most, places), owner="-")
        taken.extend(claimed.deliveries)
        assert claimed.most_urgent is None or len(claimed.deliveries) == most
        return [item.callback for item in claimed.deliveries]

    ends: list[End] = []
    taken: list[Claimed] = []
    first = [claim(3), claim(), claim()]
    few = [item for item in taken if item.callback == "few"]
    ends = [End(few[0], "ack")]
    ahead, ends = claim(places=0), [End(few[1], "fail", 0)]
    second, ends = claim(), [End(few[2], "release")]

    assert [len(each) for each in first] == [3, 5, 0]
    assert sum(each.count("few") for each in first) == 3
    assert (ahead, second, claim()) == ([], ["few", "few"], ["few"])


@pytest.mark.slow
def test_processes_that_are_killed_never_run_more_than_may_and_do_not_stall(fleet: Fleet) -> None:
    # One that is slow keeps its leases; that one was killed is seen by its connection.
    few: dict[str, Any] = {"environment": {"SURVIVOR_MAX_RUNNING": "3"}, "lease": 20, "redis_timeout": 10}
    processes = [fleet.worker(**few) for _ in range(3)]
    tasks = {fleet.verify("busy").id for _ in range(90)}
    for victim in range(2):
        fleet.wait("begun", 20 * (victim + 1))
        processes[victim].kill()
        processes[victim] = fleet.worker(**few)

    # A process that is killed once Redis knows of an end may tell nobody of it.
    wait_until(lambda: not list(fleet.redis.scan_iter(match="*:meta")), 240)
    assert {event["task"] for event in fleet.events("done")} == tasks
    events = sorted(fleet.events("begun", "done"), key=lambda event: event["at"])
    ended = {(event["task"], event["pid"]) for event in events if event["event"] == "done"}
    # What was killed did not tell when it ended.
    told = [event["event"] for event in events if (event["task"], event["pid"]) in ended]
    assert max(accumulate(1 if event == "begun" else -1 for event in told)) == 3


@pytest.mark.slow
def test_delivery_that_waits_for_a_place_lets_the_scheduler_sleep(stage: Stage) -> None:
    """It was lost before it began, so it is not claimed ahead; meanwhile heartbeats must go on."""
    goes_on = threading.Event()
    work = stage.work(lambda task: None, lambda task: goes_on.wait(60))
    stage.start(callback_threads=1)
    # Attempts that take a moment are claimed ahead, from the first one on.
    stage.verified()
    wait_until(lambda: not stage.redis.hlen(inside.key_of("q", "work", "meta")))
    inside.service().operations.pause("q")
    spared = stage.verified()
    line = stage.redis.hget(inside.key_of("q", "work", "meta"), spared.id)
    stage.redis.hset(inside.key_of("q", "work", "meta"), spared.id, line.rpartition(b" ")[0] + b" ~gone")
    stage.verified(priority=1)
    inside.service().operations.resume("q")
    wait_until(lambda: len(work.tasks) == 2)

    def sent() -> int:
        return int(stage.redis.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = sent()
    for _ in range(1000):
        stage.redis.ping()
    used = sent() - before
    goes_on.set()
    assert used < 50
    wait_until(lambda: len(work.tasks) == 3)


def as_user(stage: Stage, name: str, *rules: str) -> str:
    """Make a user who may use all keys; return the server's URL for it."""
    stage.redis.execute_command("ACL SETUSER", name, "reset", "on", "nopass", "~*", *rules)
    return f"{stage.server}{'&' if '?' in stage.server else '?'}username={name}&password=any"


def test_send_whose_bell_was_lost_goes_out_at_a_poll(stage: Stage) -> None:
    stage.start(poll=0.1, send="background")
    stage.add()
    url = as_user(stage, "mute", "+@all")

    # A user who may publish nothing rings no bell.
    with stage.make_app(send="background", autostart=False, redis_url=url).app_context():
        stage.add()

    wait_until(lambda: len(stage.box) == 2)
    stage.redis.acl_deluser("mute")


def test_chores_that_the_server_refuses_hold_up_no_callback(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    work = stage.work(name="work")
    stage.taskflow.on_schedule("@hourly", name="hourly")(lambda tick: None)
    # What schedules need, and nothing else that goes on here.
    url = as_user(stage, "half", "&*", "+@all", "-hexists")
    with stage.make_app(redis_url=url, poll=0.1).app_context():
        with stage.make_app(autostart=False).app_context():
            stage.verified()
        stage.taskflow.start()

        assert work.begun.acquire(timeout=60)
        wait_until(lambda: "Redis refuses what taskflow-callbacks does now and then" in caplog.text)
        stage.taskflow.stop()
    stage.redis.acl_deluser("half")
