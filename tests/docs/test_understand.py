"""What the pages say of how it works: lives are lived, money moves, and the tests that they name exist."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from docs.draw import Step
from flask_taskflow import Reject, Task
from flask_taskflow._service import current_service
from flask_taskflow.errors import TaskLocked
from flask_taskflow.testing import travel
from tests.docs.conftest import Bank, Load
from tests.support.docs import PAGES, ROOT, block, read
from tests.support.sending import Post
from tests.support.stage import Stage
from tests.support.tasks import guess_wrong, refused


def steps(page: str, name: str) -> list[tuple[str, str, str]]:
    """Return the lines of a life: from where to where, and by what."""
    read_ = [Step.read(line) for line in block(page, name).splitlines()]
    return [(step.source, step.target, step.what) for step in read_]


# why.md


def live_as_a_task(stage: Stage, told: str) -> tuple[str, str]:
    task, taskflow = stage.add(ttl=60), stage.taskflow
    otp, before = stage.box[-1].otp, stage.taskflow.get_task(task.id).status
    match told.split():
        case ["verify", *_]:
            taskflow.verify(task.id, "EMAIL", otp)
        case ["reject_task", *_]:
            taskflow.reject_task(task.id, "EMAIL", otp)
        case ["the", "fifth", *_]:
            guess_wrong(taskflow, task, otp, 4)
            refused(TaskLocked, taskflow.verify, task.id, "EMAIL", "000000")
        case ["cancel_task"]:
            taskflow.cancel_task(task.id)
        case ["its", "ttl", *_]:
            travel(61)
    return before, taskflow.get_task(task.id).status


def test_task_lives_as_the_page_tells(stage: Stage) -> None:
    stage.app(eager=True)

    for one, two, told in steps("why.md", "walk task"):
        if "FAILED" not in (one, two):
            assert live_as_a_task(stage, told) == (one, two)


def test_task_fails_and_comes_back_as_the_page_tells(post: Post) -> None:
    lines = [line for line in steps("why.md", "walk task") if "FAILED" in line]
    post.app(resend_cooldown=0)
    task = post.add()
    seen = [post.taskflow.get_task(task.id).status]
    post.email.moods += [Reject("no such mailbox")] * 2
    post.taskflow.run_due()
    seen.append(post.taskflow.get_task(task.id).status)
    post.taskflow.resend_otp(task.id, "EMAIL")
    seen.append(post.taskflow.get_task(task.id).status)
    post.taskflow.run_due()
    seen += [post.taskflow.get_task(task.id).status, post.taskflow.cancel_task(task.id).status]

    assert lines == [
        (seen[0], seen[1], "no method can send its code"),
        (seen[1], seen[2], "resend_otp, within its ttl"),
        (seen[3], seen[4], "cancel_task, within its ttl"),
    ]


def test_delivery_lives_as_the_page_tells(stage: Stage) -> None:
    life = {line[:2] for line in steps("why.md", "walk delivery")}
    seen: list[tuple[str, str]] = []
    work = stage.work(max_attempts=2, backoff_time=1)
    stage.app(eager=True)
    operations = current_service().operations

    def state(task: Task[Any]) -> str:
        placed = operations.find("q", "work", task.id)
        return "gone" if placed is None else placed.state

    def see(before: str, task: Task[Any]) -> str:
        seen.append((before, state(task)))
        return state(task)

    def paused() -> Task[Any]:
        operations.pause("q")
        task = stage.verified()
        operations.resume("q")
        return task

    task = paused()
    assert see("verify", task) == "ready"
    work.moods[:] = [lambda task: see("ready", task)]
    stage.run()
    assert (see("running", task), seen.pop()) == ("gone", ("running", "gone"))
    seen.append(("running", "done"))

    def fail(task: Task[Any]) -> None:
        raise ValueError

    task = paused()
    work.moods[:] = [fail, fail]
    stage.run()
    assert see("running", task) == "delayed"
    assert stage.run() == 0
    assert stage.run(after=2) == 1
    assert see("running", task) == "dead"
    stage.taskflow.operations.pause("q")
    stage.taskflow.operations.replay(f"{task.id}:work")
    assert see("dead", task) == "ready"
    stage.taskflow.operations.purge("q")
    assert see("ready", task) == "gone"
    operations.resume("q")
    task = paused()
    work.moods[:] = [Reject("no")]
    stage.run()
    stage.taskflow.operations.discard(f"{task.id}:work")
    assert see("dead", task) == "gone"

    # A backoff that is over and a process that vanished show in the attempt that follows.
    assert life - set(seen) == {("delayed", "ready"), ("running", "ready")}
    assert set(seen) <= life


def test_callback_runs_although_nobody_rang(stage: Stage) -> None:
    """The process that runs it may not listen, so it looks by itself."""
    deaf = {"enabled": True, "nopass": True, "categories": ["+@all"], "keys": ["*"], "reset_channels": True}
    stage.redis.acl_setuser("deaf", **deaf)
    work = stage.work()
    url = stage.server.replace("unix://", "unix://deaf:@")
    stage.start(poll=0.1, redis_url=url)
    with stage.make_app(autostart=False).app_context():
        task = stage.verified()

    assert work.begun.acquire(timeout=60)
    assert work.tasks == [task]
    stage.taskflow.stop(0)
    stage.redis.acl_deluser("deaf")


# once.md


def test_money_moves_once_where_the_id_is_stored_with_it(
    load: Load, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, path = load("once.md", "pay"), str(tmp_path / "bank.sqlite")
    told: list[str] = []

    def tell(user: str) -> None:
        told.append(user)
        if len(told) % 3:
            raise ConnectionError

    monkeypatch.setattr(shown, "tell", tell)

    def paid(queue: str) -> int:
        with closing(sqlite3.connect(path)) as database, database:
            database.executescript(
                "DROP TABLE IF EXISTS accounts; CREATE TABLE accounts (cents);"
                "INSERT INTO accounts VALUES (0);"
                "CREATE TABLE IF NOT EXISTS payments (delivery PRIMARY KEY);"
            )
        bank.confirm(box, queue, {"user": "ann", "cents": 50})
        for _ in range(2):
            travel(60)
            bank.taskflow.run_due()
        with closing(sqlite3.connect(path)) as database:
            return -int(database.execute("SELECT cents FROM accounts").fetchone()[0])

    with bank.app(DATABASE=path) as (_, box):
        assert (paid("careless"), paid("careful")) == (150, 50)
    assert len(told) == 6


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_are_there(page: str) -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

    for name in re.findall(r"`(test_\w+)`", read(page)):
        assert f"def {name}(" in tests
