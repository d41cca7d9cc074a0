"""What happened to a task, and what became of its callbacks: noted by the steps, whatever stands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import Event, Outcome, Reject, Retry, Task, TaskNotFound
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.leaks import leaks_in
from tests.support.sending import Post
from tests.support.stage import Stage
from tests.support.tasks import guess_wrong, keys_like, lock, refused

#: Each with what follows the task's beginning.
LIVES: dict[str, tuple[Callable[[Post, Task[Any]], object], str]] = {
    "verified": (
        lambda post, task: (post.confirms(task), post.run()),
        "verified EMAIL, claimed work -, done work",
    ),
    "resent": (
        lambda post, task: [post.run(after=31), post.taskflow.resend_otp(task.id, "EMAIL")],
        "resent EMAIL",
    ),
    "sent by another method": (lambda post, task: post.taskflow.resend_otp(task.id, "SMS"), "posted SMS"),
    "a wrong code": (
        lambda post, task: guess_wrong(post.taskflow, task, post.sent[0].otp),
        "refused EMAIL wrong_code",
    ),
    "locked": (
        lambda post, task: lock(post.taskflow, task, post.sent[0].otp),
        "refused EMAIL wrong_code, " * 5 + "locked",
    ),
    "cancelled": (lambda post, task: post.taskflow.cancel_task(task.id), "cancelled"),
    "rejected": (
        lambda post, task: post.taskflow.reject_task(task.id, "EMAIL", post.sent[0].otp),
        "rejected",
    ),
    "readdressed": (
        lambda post, task: post.taskflow.update_recipient(task.id, {"email": "bob@example.com"}),
        "recipient_changed b****@example.com, resent EMAIL",
    ),
    "expired": (lambda post, task: [post.run(after=601), inside.store().trim("q", [])], "expired"),
}


def told(stage: Stage, task: Task[Any]) -> list[str]:
    """Return the course of a task, a line an entry, without times."""
    rows = [astuple(replace(entry, at=None)) for entry in stage.taskflow.get_course(task.id)]
    return [" ".join(str(each) for each in row if each is not None) for row in rows]


@pytest.mark.parametrize("life", LIVES)
def test_course_tells_what_happened_in_order(post: Post, life: str) -> None:
    post.work()
    post.app()
    task = post.add_for()
    post.run()

    act, expected = LIVES[life]
    act(post, task)

    begun = ["added", "posted EMAIL", "claimed EMAIL -", "sent EMAIL"]
    assert told(post, task) == [*begun, *expected.split(", ")]
    times = [entry.at for entry in post.taskflow.get_course(task.id) if entry.at]
    assert times == sorted(times)


def test_course_tells_why_a_code_never_came(post: Post) -> None:
    """Refused for now, then for good, then by the next method: nobody is left."""
    post.app(send_fallback=0)
    task = post.add_for()
    post.email.moods = [Retry("later"), Reject("no such mailbox")]
    post.sms.moods = [Reject("no such number")]

    post.run()
    post.run(after=300)

    assert [line for line in told(post, task) if not line.startswith(("claimed", "retried"))] == [
        "added",
        "posted EMAIL",
        "send_failed EMAIL Retry",
        "given_up EMAIL Reject",
        "posted SMS",
        "given_up SMS Reject",
        "task_failed",
    ]


def test_course_and_outcome_of_a_callback_that_fails(stage: Stage) -> None:
    """The error's class and the app's own line, nothing that it says; each state in its turn."""
    seen: list[object] = []

    def look(task: Task[Any]) -> None:
        found = stage.taskflow.get_task(task.id)
        outcomes = found.outcomes
        seen.append(" ".join([str(found.outcome), *(outcomes[name].state for name in sorted(outcomes))]))

    def fail(task: Task[Any]) -> None:
        look(task)
        raise ValueError("the data of the task, No. 4711")

    stage.work(fail, fail, fail, look, name="pay", max_attempts=2, backoff_time=5)
    stage.work(name="log")
    stage.app()
    task = stage.add(data={"number": 4711})
    look(task)
    look(stage.verify(task))
    stage.run()
    look(task)
    stage.run(after=6)
    look(task)
    stage.taskflow.operations.replay(f"{task.id}:pay")
    look(task)
    stage.run()
    stage.taskflow.operations.purge("q", "pay")
    look(task)

    shown = [line for line in told(stage, task) if " pay" in line]
    failed = f"pay ValueError {__name__}:"
    number = fail.__code__.co_firstlineno + 2
    assert shown == [
        "claimed pay -",
        f"failed {failed}{number}",
        "retried pay -",
        f"dead {failed}{number}",
        "replayed pay",
        "claimed pay -",
        f"failed {failed}{number}",
        "discarded pay",
    ]
    assert "No. 4711" not in str(stage.taskflow.get_course(task.id))
    assert seen == [
        "None",
        "waiting waiting waiting",
        "running done running",
        "retrying done retrying",
        "running done running",
        "dead done dead",
        "waiting done waiting",
        "running done running",
        "discarded done discarded",
    ]


def test_outcome_tells_when_it_is_tried_again_and_how_often_it_was(stage: Stage) -> None:
    stage.work(Retry(after=60))
    stage.app()
    task = stage.verified()
    stage.run()

    (retrying,) = stage.taskflow.get_task(task.id).outcomes.values()
    stage.run(after=61)
    (done,) = stage.taskflow.get_task(task.id).outcomes.values()

    assert retrying.next_at is not None
    assert 59 <= (retrying.next_at - retrying.since).total_seconds() <= 60
    assert (retrying.attempts, done.attempts, done.next_at) == (1, 2, None)


def test_outcome_of_a_task_that_no_callback_was_registered_for(stage: Stage) -> None:
    app = stage.app()
    task = stage.verified()
    before = stage.taskflow.get_task(task.id)
    stage.work(name="late")
    del app
    stage.run()

    assert (before.outcome, before.outcomes) == (Outcome.NONE, {})
    assert stage.taskflow.get_task(task.id).outcome is Outcome.DONE


def test_process_that_vanishes_again_and_again_is_told(stage: Stage) -> None:
    stage.work()
    stage.app(max_lost=1)
    task = stage.verified()
    outcomes = []
    for _ in range(2):
        inside.store().claim("q", ["work"], 1)
        travel(31)
        inside.store().claim("q", ["work"], 0)
        outcomes.append(stage.taskflow.get_task(task.id).outcome)

    assert told(stage, task)[-5:] == [
        "claimed work -",
        "lost work",
        "retried work -",
        "lost work",
        "dead work Lost",
    ]
    assert outcomes == ["retrying", "dead"]


def test_course_is_cut_in_its_middle_and_says_so(stage: Stage, redis: Redis) -> None:
    stage.app(max_sends=200, recipient_max_sends=200, resend_cooldown=0)
    task = stage.add()
    for _ in range(120):
        stage.taskflow.resend_otp(task.id, "EMAIL")
    stage.taskflow.cancel_task(task.id)

    lines = told(stage, task)

    assert len(lines) == 100
    resent = ["resent EMAIL"] * 48
    assert lines == ["added", "posted EMAIL", *resent, "cut 24", *resent, "cancelled"]


@pytest.mark.parametrize(
    "junk",
    ["", "junk", "\0\x1b", "12", "x done work", "12 paid", f"{10**30} done", "1 cut x"],
)
def test_entry_that_something_else_wrote_is_unreadable(stage: Stage, redis: Redis, junk: str) -> None:
    stage.app()
    task = stage.add()
    (key,) = keys_like(redis, "*:course:*")
    redis.lset(key, 1, junk)

    added, unreadable = stage.taskflow.get_course(task.id)

    assert (added.event, unreadable.event, unreadable.at) == (Event.ADDED, Event.UNREADABLE, None)


@pytest.mark.parametrize("value", ["", "done", "done x 1", f"done 1 {10**30}", "paid 1 1"])
def test_outcome_that_something_else_wrote_is_left_out(stage: Stage, redis: Redis, value: str) -> None:
    stage.work()
    stage.app()
    task = stage.verified()
    redis.hset(keys_like(redis, "*:task:*")[0], "after.work", value)

    assert stage.taskflow.get_task(task.id).outcomes == {}
    assert stage.run() == 1


def test_course_that_cannot_be_written_holds_nothing_up(stage: Stage, redis: Redis) -> None:
    work = stage.work()
    stage.app()
    task = stage.add()
    (key,) = keys_like(redis, "*:course:*")
    redis.set(key, "of something else")

    stage.verify(task)

    assert stage.run() == len(work.tasks) == 1


def test_course_is_kept_for_the_retention_after_its_last_entry(stage: Stage, redis: Redis) -> None:
    stage.work()
    stage.app(retention=1000)
    pending, verified = stage.add(ttl=3600), stage.verified(ttl=3600)

    def left(task: Task[Any]) -> int:
        return round(float(str(redis.pttl(f"{keys_like(redis, f'*:course:{task.id}')[0]}"))) / 100_000)

    before = left(pending), left(verified)
    stage.run(after=500)
    after = left(verified)
    travel(1001)
    refused(TaskNotFound, stage.taskflow.get_course, verified.id)
    refused(TaskNotFound, stage.taskflow.get_course, "x")

    assert (before, after) == ((46, 10), 10)
    assert stage.taskflow.get_course(pending.id)


def test_course_and_outcome_take_little_memory(stage: Stage, redis: Redis) -> None:
    """The course, and what its task grows by."""
    stage.work()
    stage.app(send="background")
    task = stage.add()
    stage.run()
    stage.verify(task)
    stage.run()
    (course,), (key,) = keys_like(redis, "*:course:*"), keys_like(redis, "*:task:*")
    before = int(str(redis.memory_usage(key)))
    redis.hdel(key, "after.work")

    assert int(str(redis.memory_usage(course))) + before - int(str(redis.memory_usage(key))) <= 700


@pytest.mark.promise("S14")
def test_course_holds_no_code_no_address_and_no_data(post: Post) -> None:
    post.work()
    post.app()
    task = post.add_for(data={"secret": "of the app"})
    post.run()
    code = post.sent[0].otp
    post.taskflow.update_recipient(task.id, {"email": "bob@example.org"})
    post.run()
    post.confirms(task)
    post.run()

    shown = str(post.taskflow.get_course(task.id))

    assert leaks_in(shown.encode(), code) == []
    secrets = ("bob@", "a@example.com", "+84901234567", "of the app")
    assert not [secret for secret in secrets if secret in shown]
