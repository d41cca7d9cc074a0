"""Secret keys are exchanged while a fleet works: nothing is lost, whatever the order."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import KeyMissing, Method, OutboxStrategy, Task, TaskFlow, TaskTampered
from flask_taskflow._service import current_service
from flask_taskflow.testing import travel
from tests.support.stage import Stage
from tests.support.tasks import EMAIL, key_of

OLD, NEW = "the old key of the fleet, long", "the new key of the fleet, long"
#: The keys of two processes, step by step.
RECIPE = [([OLD], [OLD]), ([OLD], [OLD, NEW]), ([NEW, OLD], [OLD, NEW]), ([NEW, OLD], [NEW, OLD])]
WRONG_ORDER = [([OLD], [OLD]), ([NEW, OLD], [OLD]), ([NEW, OLD], [NEW, OLD])]


class Process:
    """An app with an extension of its own, some keys and one callback."""

    def __init__(self, stage: Stage, keys: list[str], box: OutboxStrategy, **settings: Any) -> None:
        self.taskflow = TaskFlow()
        self.taskflow.register_strategy(Method.EMAIL)(box)
        self.taskflow.on_task_verified("q", name="work")(self._run)
        self.ran: list[str] = []
        self.app: Flask = stage.make_app(
            self.taskflow, SECRET_KEY=keys[0], SECRET_KEY_FALLBACKS=keys[1:], **settings
        )

    def _run(self, task: Task[Any]) -> None:
        self.ran.append(task.id)

    def add(self, address: str = EMAIL) -> Task[Any]:
        with self.app.app_context():
            return self.taskflow.add_task("q", 1, allowed_methods=["EMAIL"], recipient={"email": address})

    def verify(self, task: Task[Any], otp: str) -> Task[Any]:
        with self.app.app_context():
            return self.taskflow.verify(task.id, "EMAIL", otp)

    def run(self, times: int = 1, *, every: float = 0) -> int:
        count = 0
        with self.app.app_context():
            for _ in range(times):
                count += self.taskflow.run_due()
                if every:
                    travel(every)
        return count

    def dead(self) -> int:
        with self.app.app_context():
            return len(list(current_service().operations.dead("q", 100)))


@pytest.fixture
def mails() -> OutboxStrategy:
    return OutboxStrategy()


@pytest.mark.promise("S67")
@pytest.mark.parametrize("send", ["inline", "background"])
@pytest.mark.parametrize("steps", [RECIPE, WRONG_ORDER], ids=["recipe", "wrong order"])
def test_rolling_rotation_loses_nothing(
    bare_stage: Stage, mails: OutboxStrategy, send: str, steps: list[tuple[list[str], list[str]]]
) -> None:
    """Another process confirms what one added; where that lacks the key, the user tries again."""
    added: list[Task[Any]] = []
    ran: Counter[str] = Counter()
    processes: list[Process] = []
    for keys in steps:
        processes = [Process(bare_stage, own, mails, send=send) for own in keys]
        for number in range(6):
            one, two = processes[number % 2], processes[(number + 1) % 2]
            added.append(one.add(f"{len(added)}@example.com"))
            for process in (two, one):
                process.run(3, every=3)
            otp = next(mail.otp for mail in mails.messages if mail.task.id == added[-1].id)
            try:
                two.verify(added[-1], otp)
            except KeyMissing:
                one.verify(added[-1], otp)
        for process in processes * 3:
            process.run(3, every=3)
            ran.update(process.ran)
            process.ran.clear()

    assert ran == Counter(task.id for task in added)
    assert Counter(mail.task.id for mail in mails.messages) == ran
    assert processes[0].dead() == 0


@pytest.mark.promise("S67")
def test_delivery_of_another_key_waits_for_it_and_counts_nothing(
    bare_stage: Stage, mails: OutboxStrategy, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Process(bare_stage, [OLD], mails), Process(bare_stage, [NEW, OLD], mails)
    task = new.add()
    new.verify(task, mails.messages[0].otp)
    caplog.set_level(logging.INFO, "flask_taskflow")

    assert old.run(10, every=3) == 0

    said = [line for line in caplog.messages if "SECRET_KEY" in line]
    with new.app.app_context():
        fingerprint = current_service().keyring.fingerprints[0]
        placed = current_service().operations.find("q", "work", task.id)
    assert said == [line for line in said if fingerprint in line][:1], "once, and which one"
    assert not [record for record in caplog.records if record.name == "flask_taskflow.audit"]
    assert placed is not None
    assert (placed.failures, placed.lost, placed.error) == (0, 0, "")
    new.run(3, every=3)
    assert (old.ran, new.ran) == ([], [task.id])


@pytest.mark.promise("S67")
def test_send_of_another_key_waits_for_it_and_counts_nothing(
    bare_stage: Stage, mails: OutboxStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (Process(bare_stage, keys, mails, send="background") for keys in ([OLD], [NEW, OLD]))
    task = new.add()

    old.run(10, every=3)

    assert mails.messages == []
    assert len([line for line in caplog.messages if "@EMAIL" in line and "SECRET_KEY" in line]) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    new.run(3, every=3)
    assert [mail.task.id for mail in mails.messages] == [task.id]


@pytest.mark.promise("S67")
def test_own_deliveries_run_behind_those_of_another_key(bare_stage: Stage, mails: OutboxStrategy) -> None:
    old, new = Process(bare_stage, [OLD], mails), Process(bare_stage, [NEW], mails)
    for process in [new] * 20 + [old]:
        task = process.add(f"{len(mails.messages)}@example.com")
        process.verify(task, mails.messages[-1].otp)

    old.run()

    assert old.ran == [task.id]


@pytest.mark.promise("S67")
@pytest.mark.parametrize("change", ["fixed", "address.email"])
def test_change_under_a_known_key_is_tampering_beside_an_unknown_one(
    bare_stage: Stage, mails: OutboxStrategy, redis: Redis, change: str
) -> None:
    """The seal of the task is of one key, that of its address of another."""
    old, new, both = (Process(bare_stage, keys, mails) for keys in ([OLD], [NEW], [NEW, OLD]))
    task = old.add()
    with both.app.app_context():
        both.taskflow.update_recipient(task.id, {"email": "bob@example.com"})
    known, other = (old, new) if change == "fixed" else (new, old)

    for process in (old, new):
        with process.app.app_context(), pytest.raises(KeyMissing):
            process.taskflow.get_task(task.id)
    redis.hset(key_of(redis, task), change, "changed")
    with known.app.app_context(), pytest.raises(TaskTampered):
        known.taskflow.get_task(task.id)
    with other.app.app_context(), pytest.raises(KeyMissing):
        other.taskflow.get_task(task.id)


@pytest.mark.promise("S67")
def test_keys_of_a_kms_are_fetched_once_and_take_over(
    stage: Stage, mails: OutboxStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    """From ``SECRET_KEY`` to ``TASKFLOW_KEYS``; a service that does not answer is asked again."""
    answers: list[str | None] = [None, NEW]

    def fetch() -> str:
        answer = answers.pop(0)
        if answer is None:
            raise OSError("no answer")
        return answer

    old = Process(stage, [OLD], mails)
    task = old.add()
    app = stage.make_app(old.taskflow, SECRET_KEY=None, keys={"2026-11": fetch, "2025-11": OLD})
    with app.app_context():
        with pytest.raises(OSError, match="no answer"):
            old.taskflow.get_task(task.id)
        assert old.taskflow.get_task(task.id) == task
        added = old.taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": EMAIL})
        assert old.taskflow.verify(task.id, "EMAIL", mails.messages[0].otp).status == "SUCCESS"
        assert answers == []
    new = Process(stage, [NEW], mails)
    assert new.verify(added, mails.messages[1].otp).status == "SUCCESS"
