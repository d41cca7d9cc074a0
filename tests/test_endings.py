"""How a task ends without success: once, and who hears of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import (
    CodeRepeated,
    ConfigError,
    Reject,
    Status,
    Task,
    TaskExpired,
    TaskFlow,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    WrongCode,
    task_ended,
)
from flask_taskflow.testing import Outbox, travel
from tests.conftest import Hear
from tests.support import inside
from tests.support.fleet import Fleet, wait_until
from tests.support.sending import Post
from tests.support.stage import Stage
from tests.support.tasks import add, at_once, guess_wrong, lock, other, refused, with_settings


def test_holder_of_a_right_code_rejects_the_task(
    app: Flask, taskflow: TaskFlow, box: Outbox, hear: Hear
) -> None:
    ended, task = hear(task_ended), add(taskflow)
    refused(WrongCode, taskflow.reject_task, task.id, "EMAIL", other(box[0].otp))

    assert taskflow.reject_task(task.id, "EMAIL", box[0].otp).status is Status.REJECTED

    assert [call["task"].status for call in ended.rest()] == ["REJECTED"]
    for call, error in (taskflow.verify, TaskNotPending), (taskflow.reject_task, CodeRepeated):
        assert refused(error, call, task.id, "EMAIL", box[0].otp).status == "REJECTED"
    travel(61)
    assert refused(TaskNotPending, taskflow.reject_task, task.id, "EMAIL", box[0].otp).status == "REJECTED"
    assert not ended.rest()


def test_rejecting_needs_a_code_that_is_not_used(stage: Stage) -> None:
    stage.app()
    work, task = stage.work(), stage.add()
    stage.verify(task)

    error = refused(TaskNotPending, stage.taskflow.reject_task, task.id, "EMAIL", stage.box[0].otp)

    assert error.status == "SUCCESS"
    refused(CodeRepeated, stage.taskflow.verify, task.id, "EMAIL", stage.box[0].otp)
    stage.taskflow.reject_task(stage.add().id, "EMAIL", stage.box[1].otp)
    assert stage.run() == 1
    assert [each.id for each in work.tasks] == [task.id]


@with_settings(recipient_max_sends=1000)
def test_task_that_is_verified_and_rejected_at_once_ends_once(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    for number in range(20):
        task = add(taskflow)
        code = box[number].otp
        calls = [partial(call, task.id, "EMAIL", code) for call in (taskflow.verify, taskflow.reject_task)]

        won = [item.status for item in at_once(app, calls * 4) if not isinstance(item, Exception)]

        assert won == [taskflow.get_task(task.id).status]


@pytest.mark.usefixtures("app")
def test_wrong_code_of_a_rejection_counts_and_locks(taskflow: TaskFlow, box: Outbox, hear: Hear) -> None:
    ended, task = hear(task_ended), add(taskflow)
    guess_wrong(taskflow, task, box[0].otp, times=4)

    refused(TaskLocked, taskflow.reject_task, task.id, "EMAIL", other(box[0].otp))
    taskflow.cancel_task(add(taskflow).id)

    assert [call["task"].status for call in ended.rest()] == ["LOCKED", "CANCELLED"]


#: How each end comes about.
ENDS: dict[str, Callable[[Post, Task[Any]], object]] = {
    "EXPIRED": lambda post, task: post.run(after=601),
    "LOCKED": lambda post, task: lock(post.taskflow, task, post.sent[-1].otp),
    "CANCELLED": lambda post, task: post.taskflow.cancel_task(task.id),
    "REJECTED": lambda post, task: post.taskflow.reject_task(task.id, "EMAIL", post.sent[-1].otp),
    "SUCCESS": lambda post, task: post.confirms(task),
}


def follow(stage: Stage, *statuses: str, queue: str = "q", **options: Any) -> list[str]:
    """Register what follows some ends of tasks; return how those ended that it ran for."""
    seen: list[str] = []
    stage.taskflow.on_task_ended(queue, statuses=statuses or [*list(ENDS)[:-1], "FAILED"], **options)(
        lambda task: seen.append(f"{task.id} {task.status}")
    )
    return seen


@pytest.mark.parametrize("end", ENDS)
def test_what_follows_an_end_runs_once_with_the_task_as_it_ended(post: Post, end: str) -> None:
    work, seen, others = post.work(), follow(post), follow(post, "FAILED", name="other")
    post.app()
    task = post.add_for("EMAIL")
    post.run()

    ENDS[end](post, task)
    runs = post.run(), post.run(after=1)

    assert (seen, others) == ([] if end == "SUCCESS" else [f"{task.id} {end}"], [])
    assert len(work.tasks) == (end == "SUCCESS")
    assert sum(runs) == (end != "EXPIRED")


def test_end_of_a_task_that_had_failed_before_is_followed_too(post: Post) -> None:
    seen: list[str] = []

    def end(task: Task[Any]) -> None:
        seen.append(task.status)
        if task.status == "FAILED":
            raise Reject("as told")

    post.taskflow.on_task_ended("q", statuses=["FAILED", "CANCELLED"])(end)
    post.app()
    post.email.moods = [Reject("no such mailbox")]
    task = post.add_for("EMAIL")
    post.run()
    post.run()
    post.taskflow.resend_otp(task.id, "EMAIL")

    post.taskflow.cancel_task(task.id)
    post.run()

    assert seen == ["FAILED", "CANCELLED"]


def failed(post: Post) -> Task[Any]:
    """Return a task whose only method refused for good; what follows that end waits."""
    post.app(resend_cooldown=0)
    post.email.moods = [Reject("no such mailbox")]
    task = post.add_for("EMAIL", ttl=60)
    inside.engine("EMAIL").run_due()
    assert post.status(task) is Status.FAILED
    return task


@pytest.mark.parametrize(
    "error", [None, ValueError("try again"), Reject("no use")], ids=["done", "failed", "dead"]
)
def test_end_while_what_follows_an_earlier_one_runs_is_followed_too(
    post: Post, error: Exception | None
) -> None:
    seen = []

    @post.taskflow.on_task_ended("q", statuses=["FAILED", "CANCELLED"])
    def end(task: Task[Any]) -> None:
        seen.append(task.status)
        if task.status == "FAILED":
            post.taskflow.resend_otp(task.id, "EMAIL")
            post.taskflow.cancel_task(task.id)
            if error is not None:
                raise error

    task = failed(post)
    post.run()
    post.run(after=2)

    assert seen == ["FAILED", "CANCELLED"]
    assert not post.keys("h:+q:meta")
    assert [entry.event for entry in post.taskflow.get_course(task.id)][-1] == "done"


@pytest.mark.parametrize("vanishes", [False, True])
def test_no_report_of_an_earlier_end_ends_what_follows_the_last_one(post: Post, vanishes: bool) -> None:
    """Neither one that comes twice, nor one of a process that was thought to be gone."""
    seen = follow(post, "FAILED", "CANCELLED")
    task, store = failed(post), inside.store()
    (item,) = store.claim("q", ["+q"], 1).deliveries
    post.taskflow.resend_otp(task.id, "EMAIL")
    post.taskflow.cancel_task(task.id)
    if vanishes:
        travel(31)
        store.claim("q", ["+q"], 0)

    accepted = [store.ack(item), store.ack(item)]
    post.run()

    assert accepted == [not vanishes, False]
    assert seen == [f"{task.id} CANCELLED"]


@pytest.mark.parametrize(
    "end",
    [
        lambda taskflow, task: taskflow.cancel_task(task.id),
        lambda taskflow, task: taskflow.cancel_tasks("user:17"),
        lambda taskflow, task: add(taskflow, owner="user:17", replace=True),
    ],
    ids=["cancel_task", "cancel_tasks", "replace"],
)
def test_failed_task_that_may_live_again_is_ended_for_good(
    post: Post, end: Callable[[TaskFlow, Task[Any]], object]
) -> None:
    ended, seen = post.hear(task_ended), follow(post, "CANCELLED")
    post.app(resend_cooldown=0)
    post.email.moods = [Reject("no such mailbox")]
    task = post.add_for("EMAIL", owner="user:17")
    post.run()
    assert post.status(task) is Status.FAILED

    end(post.taskflow, task)

    assert refused(TaskNotPending, post.taskflow.resend_otp, task.id, "EMAIL").status == "CANCELLED"
    assert ended.next()["task"].status is Status.FAILED
    assert ended.next()["task"].status is Status.CANCELLED
    post.run()
    assert seen == [f"{task.id} CANCELLED"]


def test_failed_task_whose_life_is_over_stays_as_it_is(post: Post) -> None:
    post.app()
    post.email.moods = [Reject("no such mailbox")]
    task = post.add_for("EMAIL", owner="user:17", ttl=60)
    post.run()
    post.run(after=61)

    assert refused(TaskNotPending, post.taskflow.cancel_task, task.id).status == "FAILED"
    assert post.taskflow.cancel_tasks("user:17") == []
    add(post.taskflow, owner="user:17", replace=True)

    assert post.status(task) is Status.FAILED


def test_end_of_a_task_that_could_not_be_sent_is_followed(post: Post) -> None:
    seen = follow(post, "FAILED")
    post.app()
    post.email.moods = [Reject("no such mailbox")]
    task = post.add_for("EMAIL")

    post.run()

    assert seen == [f"{task.id} FAILED"]


@with_settings(eager=True)
@pytest.mark.usefixtures("app")
def test_end_is_followed_at_once_in_eager_tests(bare_stage: Stage) -> None:
    seen = follow(bare_stage)

    cancelled = bare_stage.taskflow.cancel_task(bare_stage.add().id)
    bare_stage.add(owner="ann")
    bare_stage.add(owner="ann", replace=True)

    assert [row.split()[1] for row in seen] == ["CANCELLED", "CANCELLED"]
    assert seen[0].startswith(cancelled.id)


def test_expired_task_is_followed_within_the_poll_and_stays_expired(stage: Stage) -> None:
    seen = follow(stage, "EXPIRED")
    stage.start(poll=0.05)
    task = stage.add()
    travel(601)
    wait_until(lambda: seen)

    assert seen == [f"{task.id} EXPIRED"]
    refused(TaskExpired, stage.taskflow.verify, task.id, "EMAIL", stage.box[-1].otp)
    refused(TaskExpired, stage.taskflow.cancel_task, task.id)
    assert stage.taskflow.get_task(task.id).status is Status.EXPIRED
    assert [entry.event for entry in stage.taskflow.get_course(task.id)][2] == "expired"


def test_all_that_expire_at_once_are_followed(stage: Stage) -> None:
    """More than one step takes, in more queues than one turn looks into."""
    seen: list[str] = []
    queues = {f"q{number}": 1 for number in range(12)} | {"full": 230}
    for queue in queues:
        stage.taskflow.on_task_ended(queue, statuses=["EXPIRED"])(lambda task: seen.append(task.queue))
    stage.app(poll=600)
    for queue, count in queues.items():
        for _ in range(count):
            stage.add(queue)
    travel(601)
    stage.taskflow.start()
    wait_until(lambda: len(seen) >= sum(queues.values()))

    assert Counter(seen) == queues


@pytest.mark.slow
def test_right_code_at_the_end_of_a_task_has_one_ending(stage: Stage, redis: Redis) -> None:
    """Each task is verified within a millisecond of its end, while another thread takes out what expired."""
    work, seen = stage.work(), follow(stage, "EXPIRED")
    app, count = stage.app(recipient_max_sends=1000), 150
    tasks = [stage.add(ttl=2, send_via=["EMAIL"]) for _ in range(count)]
    codes = {message.task.id: message.otp for message in stage.box}
    verified, done, pause = [], threading.Event(), threading.Event()

    def housekeeping() -> None:
        with app.app_context():
            while not done.is_set():
                stage.taskflow.run_due()

    thread = threading.Thread(target=housekeeping)
    thread.start()
    for number, task in enumerate(tasks):
        early = task.expires_at.timestamp() - (0.0015 if number % 2 else 0.0)
        seconds, micros = redis.time()
        pause.wait(max(early - seconds - micros / 1e6, 0))
        with suppress(TaskExpired):
            verified.append(stage.taskflow.verify(task.id, "EMAIL", codes[task.id]).id)
    wait_until(lambda: len(seen) + len(work.tasks) >= count)
    done.set()
    thread.join()

    ended = [row.split()[0] for row in seen]
    assert sorted([*ended, *(task.id for task in work.tasks)]) == sorted(task.id for task in tasks)
    assert sorted(task.id for task in work.tasks) == sorted(verified)


def test_end_right_after_the_start_is_followed(stage: Stage) -> None:
    """A task may end before the first turn of a thread that has just started."""
    stage.taskflow.on_task_ended("q", statuses=["CANCELLED"], name="end")(print)
    stage.start()

    (handlers,) = stage.keys("handlers")
    assert b"+end" in stage.redis.hkeys(handlers)


@pytest.mark.slow
def test_endings_outlive_processes_that_are_killed(fleet: Fleet) -> None:
    # Who is killed is missed at once; who is only slow on a busy machine is not.
    patient = {"lease": 20, "redis_timeout": 10}
    fleet.worker(**patient)
    # A server that is slow to answer may let it start before it has registered.
    wait_until(
        lambda: [key for key in fleet.redis.scan_iter("*:handlers") if fleet.redis.hexists(key, "+end")]
    )
    tasks = [fleet.add("kill" if number % 7 == 3 else None) for number in range(12)]
    with fleet.app.app_context():
        for task in tasks:
            fleet.taskflow.cancel_task(task.id)
            # Whoever runs an order to kill dies by it.
            if task.data == "kill":
                fleet.worker(**patient)

    # Who could not be seen yet to live when it was killed is missed once its lease is over.
    wait_until(
        lambda: {event["task"] for event in fleet.events("ended")} == {task.id for task in tasks}, within=240
    )
    assert not list(fleet.redis.scan_iter(match="*:h:+end:dead"))


@pytest.mark.parametrize("statuses", [[], ["SUCCESS"], ["EXPIRED", "PENDING"], "LOCK", [None], "A,B", None])
def test_status_that_ends_no_task_is_refused(taskflow: TaskFlow, statuses: Any) -> None:
    error = refused(ConfigError, lambda: taskflow.on_task_ended("q", statuses=statuses))

    assert "statuses must be some of LOCKED, EXPIRED, CANCELLED, FAILED, REJECTED, not " in str(error)


def test_what_follows_an_end_has_a_name_of_its_own(stage: Stage) -> None:
    stage.taskflow.on_task_verified("q")(print)
    follow(stage, "LOCKED")

    register = stage.taskflow.on_task_ended("q", statuses=["EXPIRED"], name="other")
    error = refused(ConfigError, register, print)

    assert "set name=... of each" in str(error)


def test_forged_ending_of_a_verified_task_is_not_followed(stage: Stage, redis: Redis) -> None:
    """And no callback runs for a task that ended in another way."""
    work, seen = stage.work(), follow(stage, "LOCKED", name="end")
    stage.app()
    task = stage.verified()
    (body,) = redis.scan_iter(match="*:h:work:body")
    for kind in ("ready", "meta", "body"):
        name = body.replace(b":body", f":{kind}".encode())
        redis.copy(name, name.replace(b":work:", b":+end:"))

    assert stage.run() == 2
    assert (len(work.tasks), seen) == (1, [])
    assert [item.id for item in stage.taskflow.operations.dead()] == [f"{task.id}:+end"]


@pytest.mark.parametrize("end", ENDS)
def test_task_is_kept_for_the_retention_after_its_end(post: Post, end: str) -> None:
    post.app(retention=1000)
    task = post.add_for("EMAIL")
    post.run()

    ENDS[end](post, task)
    travel(990)
    kept = post.taskflow.get_task(task.id).status
    travel(20)

    assert kept == end
    refused(TaskNotFound, post.taskflow.get_task, task.id)
    refused(TaskNotFound, post.taskflow.get_course, task.id)
