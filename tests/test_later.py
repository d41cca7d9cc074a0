"""Tasks that run later than they are confirmed, or whose codes go out later than they are added."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flask_taskflow import (
    CodeExpired,
    InvalidTask,
    KeyMissing,
    ResendTooSoon,
    Status,
    TaskExpired,
    TaskFlow,
    TaskFlowError,
    TaskNotPending,
)
from flask_taskflow.testing import travel
from tests.support.fleet import wait_until
from tests.support.sending import Post
from tests.support.stage import Stage
from tests.support.tasks import guess_wrong, refused

DAY = 86400


def later(days: float = 2) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def test_verified_task_runs_at_its_time(stage: Stage) -> None:
    work, at = stage.work(), later()
    stage.app(task_ttl=600)
    task = stage.verified(run_at=at)

    counts = [stage.run(), stage.run(after=DAY), stage.run(after=DAY + 1)]

    assert counts == [0, 0, 1]
    assert [each.run_at for each in (task, stage.taskflow.get_task(task.id), *work.tasks)] == [at] * 3


def test_callback_that_registers_later_waits_for_the_time_too(stage: Stage) -> None:
    stage.app()
    task = stage.verified(run_at=later())

    work = stage.work()
    counts = [stage.run(), stage.run(after=2 * DAY)]

    assert counts == [0, 1]
    assert work.tasks[0].id == task.id


def test_owner_has_a_task_until_it_has_run(stage: Stage) -> None:
    stage.app()
    task = stage.verified(run_at=later(14), owner="ann")
    travel(13 * DAY)

    assert [each.id for each in stage.taskflow.tasks_of("ann")] == [task.id]


@pytest.mark.parametrize("served", [True, False])
def test_task_is_cancelled_until_it_runs(stage: Stage, served: bool) -> None:
    if served:
        stage.work(name="one")
        stage.work(name="two")
    app = stage.app()
    task = stage.verified(run_at=later())
    # A process that knows of no callback asks what there is.
    other = TaskFlow()
    with stage.make_app(other).app_context():
        cancelled = other.cancel_task(task.id)
    with app.app_context():
        again = refused(TaskNotPending, stage.taskflow.cancel_task, task.id)
        stage.work(name="three")
        ran = stage.run(after=2 * DAY + 10)

    assert (cancelled.status, again.status, ran) == (Status.CANCELLED, Status.CANCELLED, 0)


@pytest.mark.parametrize("others", [0, 1])
def test_task_is_cancelled_after_its_callback_was_renamed(stage: Stage, others: int) -> None:
    for number in range(others):
        stage.work(name=f"other{number}")
    stage.work(name="pay")
    stage.app()
    task = stage.verified(run_at=later())
    renamed = TaskFlow()
    renamed.on_task_verified("q", name="transfer", aliases=["pay"])(lambda task: None)
    with stage.make_app(renamed).app_context():
        renamed.run_due()
        cancelled = renamed.cancel_task(task.id)
        travel(2 * DAY + 10)
        ran = renamed.run_due()

    assert (cancelled.status, ran, stage.run()) == (Status.CANCELLED, 0, 0)


def test_cancelled_task_that_was_to_run_later_is_followed(stage: Stage) -> None:
    followed: list[str] = []
    stage.taskflow.on_task_ended("q", statuses=["CANCELLED"])(lambda task: followed.append(task.status))
    stage.work()
    stage.app()
    stage.run()
    task = stage.verified(run_at=later())

    stage.taskflow.cancel_task(task.id)
    stage.run()

    assert followed == ["CANCELLED"]


def test_task_that_was_to_run_later_is_not_cancelled_without_its_key(stage: Stage) -> None:
    work = stage.work()
    app = stage.app()
    task = stage.verified(run_at=later())
    stranger = TaskFlow()
    with stage.make_app(stranger, SECRET_KEY="another secret key, as long as the first one").app_context():
        refused(KeyMissing, stranger.cancel_task, task.id)
    with app.app_context():
        stage.run(after=2 * DAY + 1)

    assert len(work.tasks) == 1


def test_task_that_has_begun_is_not_cancelled(stage: Stage) -> None:
    stage.work(ValueError("not yet"), backoff_time=60)
    stage.app()
    task = stage.verified(run_at=later())
    stage.run(after=2 * DAY + 1)

    refused(TaskNotPending, stage.taskflow.cancel_task, task.id)

    assert stage.run(after=100) == 1


def test_verified_task_without_a_time_is_not_cancelled(stage: Stage) -> None:
    stage.work()
    stage.app()
    task = stage.verified()

    assert refused(TaskNotPending, stage.taskflow.cancel_task, task.id).status is Status.SUCCESS
    assert stage.run() == 1


@pytest.mark.promise("S31")
def test_task_whose_time_was_changed_in_redis_does_not_run(stage: Stage) -> None:
    work = stage.work()
    stage.app()
    task = stage.add(run_at=later())
    (key,) = stage.redis.scan_iter(match=f"*task:{task.id}")
    stage.redis.hset(key, "run_at", 1)
    stage.verify(task)

    stage.run()

    assert work.tasks == []
    assert len(stage.taskflow.operations.dead()) == 1


@pytest.mark.parametrize("at", [later().replace(tzinfo=None), "2026-12-24", 1795000000, later(DAY)])
def test_time_that_is_none_is_refused(stage: Stage, at: Any) -> None:
    stage.app()

    with pytest.raises(InvalidTask, match="run_at must be an aware datetime"):
        stage.add(run_at=at)


def test_code_goes_out_at_its_time_and_the_life_of_the_task_begins_then(post: Post) -> None:
    post.app()
    at = later(1 / 24)
    task = post.add_for("EMAIL", send_at=at, ttl=300)

    counts = [post.run(), post.run(after=3590), post.run(after=15)]

    assert counts == [0, 0, 1]
    assert (task.send_at, task.expires_at) == (at, at + timedelta(seconds=300))
    assert post.confirms(task)


@pytest.mark.parametrize(("ttl", "ended"), [(19, TaskExpired), (3 * DAY, CodeExpired)])
def test_code_that_goes_out_later_lasts_as_any_other(
    post: Post, ttl: int, ended: type[TaskFlowError]
) -> None:
    post.app()
    task = post.add_for("EMAIL", send_at=later(20), ttl=ttl)
    post.run(after=20 * DAY)
    code = post.sent[0].otp

    guess_wrong(post.taskflow, task, code)
    travel(min(ttl, 600))

    refused(ended, post.taskflow.verify, task.id, "EMAIL", code)


def test_until_its_time_no_code_of_a_task_goes_out(post: Post) -> None:
    """A resend is too soon by any method, a new address gets the code alone, an end ends all."""
    app = post.app()
    blueprint = post.taskflow.create_blueprint(routes=["status"], decorators=[lambda view: view])
    app.register_blueprint(blueprint)
    at = later(1 / 24)
    moved, cancelled = post.add_for(send_at=at), post.add_for(send_at=at)
    waits = [
        refused(ResendTooSoon, post.taskflow.resend_otp, moved.id, method).retry_after
        for method in ("SMS", "EMAIL")
    ]
    post.taskflow.update_recipient(moved.id, {"email": "new@example.com"})
    post.taskflow.cancel_task(cancelled.id)
    body = app.test_client().get(f"/tasks/{moved.id}").get_json()
    early = post.run()

    post.run(after=3600)

    assert 3500 < waits[0] <= 3600 < waits[1] <= 3630
    assert datetime.fromisoformat(body["send_at"]) == at
    assert [each["resend_after"] > 3500 for each in body["methods"]] == [True, True]
    assert (early, [message.addresses[0] for message in post.sent]) == (0, ["new@example.com"])
    assert post.confirms(moved)
    assert post.status(cancelled) is Status.CANCELLED


def test_threads_send_at_the_time_without_a_poll(post: Post) -> None:
    post.start(poll=60)
    at = datetime.now(UTC) + timedelta(seconds=0.5)

    post.add_for("EMAIL", send_at=at)
    wait_until(lambda: post.sent)

    assert datetime.now(UTC) >= at


def test_call_that_is_repeated_by_its_key_after_the_time_returns_the_task(post: Post) -> None:
    post.app()
    options: dict[str, Any] = {"key": "once", "send_at": later(1 / 24), "ttl": DAY}
    task = post.add_for("EMAIL", **options)
    post.run(after=7200)

    assert post.add_for("EMAIL", **options).id == task.id
    assert len(post.sent) == 1


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (later().replace(tzinfo=None), "an aware datetime"), ("2026-12-24", "an aware datetime"),
        (1795000000, "an aware datetime"), (later(DAY), "an aware datetime"),
        (later(-1), "not be over"), (later(-1 / 24 / 30), "not be over"), (later(31), "30 days ahead"),
    ],
)  # fmt: skip
def test_time_to_send_that_is_none_is_refused(post: Post, at: Any, said: str) -> None:
    post.app()

    with pytest.raises(InvalidTask, match=f"send_at must .*{said}"):
        post.add_for(send_at=at)
    assert post.redis.keys("*task:*") == []


def test_who_sends_inline_sends_at_once(stage: Stage) -> None:
    stage.app()

    with pytest.raises(InvalidTask, match='send_at needs TASKFLOW_SEND = "background"'):
        stage.add(send_at=later())
