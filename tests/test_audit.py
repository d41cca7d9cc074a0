"""Each event of the audit log: one record, its fields, never a code."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask

from flask_taskflow import BaseStrategy, Method, OTPRejected, Reject, Task, TaskFlow, TaskFlowError
from flask_taskflow.testing import Outbox, travel

PAGE = (Path(__file__).parent.parent / "docs" / "audit.md").read_text("utf-8")
ADDRESS = "somebody@example.com"
MASKED = "so****@example.com"

Records = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Records:
    """Return what the records so far hold beyond what every log record has."""
    caplog.set_level(logging.INFO, "flask_taskflow.audit")
    plain = {"message", "asctime", *vars(logging.makeLogRecord({}))}

    def read() -> list[dict[str, Any]]:
        return [
            {name: value for name, value in vars(item).items() if name not in plain}
            for item in caplog.records
            if item.name == "flask_taskflow.audit"
        ]

    return read


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given = {"allowed_methods": ["EMAIL", "SMS"], "recipient": {"email": ADDRESS}, **options}
    return taskflow.add_task("q", **given)


def wrong(box: Outbox) -> str:
    return f"{(int(box.last_code(ADDRESS)) + 1) % 10**6:06d}"


def test_added_and_sent_task_is_recorded(
    app: Flask, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    task = add(taskflow)

    assert records() == [
        {"event": "task_added", "task_id": task.id, "queue": "q", "addresses": {"email": MASKED}},
        {"event": "code_sent", "task_id": task.id, "queue": "q", "method": "EMAIL", "address": MASKED},
    ]


def test_failed_send_is_recorded_by_the_class_of_its_error(
    app: Flask, taskflow: TaskFlow, records: Records
) -> None:
    @taskflow.register_strategy(Method.EMAIL)
    class Broken(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            raise ConnectionError(f"could not send {otp}")

    with pytest.raises(TaskFlowError):
        add(taskflow)

    (failed,) = (item for item in records() if item["event"] == "send_failed")
    assert failed["cause"] == "ConnectionError"
    assert failed["address"] == MASKED


def test_refused_resend_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)

    with pytest.raises(TaskFlowError):
        taskflow.resend_otp(task.id, "EMAIL")

    last = records()[-1]
    assert last.pop("retry_after") == pytest.approx(30, abs=1)
    assert last == {
        "event": "resend_refused",
        "task_id": task.id,
        "method": "EMAIL",
        "cause": "resend_too_soon",
    }


def test_refused_add_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    for _ in range(5):
        add(taskflow)

    with pytest.raises(TaskFlowError):
        add(taskflow)

    last = records()[-1]
    assert (last["event"], last["cause"], last["queue"]) == ("send_refused", "send_limit", "q")


def test_accepted_code_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)

    taskflow.verify(task.id, "EMAIL", box.last_code(ADDRESS))

    assert records()[-1] == {"event": "code_accepted", "task_id": task.id, "queue": "q", "method": "EMAIL"}


def test_refused_code_and_lock_are_recorded_with_the_cause(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    with make_app(otp_max_attempts=2).app_context():
        task = add(taskflow)
        guess = wrong(box)
        for _ in range(3):
            with pytest.raises(OTPRejected):
                taskflow.verify(task.id, "EMAIL", guess)

    events = [(item["event"], item.get("cause")) for item in records()[2:]]
    assert events == [
        ("code_refused", "wrong_code"),
        ("code_refused", "task_locked"),
        ("task_locked", None),
        ("code_refused", "task_locked"),
    ]


def test_expiry_on_use_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)
    travel(601)

    with pytest.raises(OTPRejected):
        taskflow.verify(task.id, "EMAIL", box.last_code(ADDRESS))

    events = [(item["event"], item.get("cause")) for item in records()[2:]]
    assert events == [("code_refused", "task_expired"), ("task_expired", None)]


def test_changed_recipient_is_recorded_masked(
    app: Flask, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    task = add(taskflow)

    taskflow.update_recipient(task.id, {"email": "other@example.com"})

    (changed,) = (item for item in records() if item["event"] == "recipient_changed")
    assert changed == {
        "event": "recipient_changed",
        "task_id": task.id,
        "queue": "q",
        "old": {"email": MASKED},
        "new": {"email": "ot****@example.com"},
    }


def test_cancelled_task_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)

    taskflow.cancel_task(task.id)

    assert records()[-1] == {"event": "task_cancelled", "task_id": task.id, "queue": "q"}


def test_tampered_task_is_recorded(
    app: Flask, taskflow: TaskFlow, box: Outbox, records: Records, redis: Any
) -> None:
    """S31."""
    task = add(taskflow)
    (key,) = redis.scan_iter(match="*:task:*")
    redis.hset(key, "fixed", "{}")

    with pytest.raises(TaskFlowError):
        taskflow.get_task(task.id)

    assert records()[-1] == {"event": "task_tampered", "task_id": task.id}


def test_dead_callback_is_recorded(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    @taskflow.on_task_verified("q", name="work")
    def work(task: Task[Any]) -> None:
        raise Reject("no")

    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box.last_code(ADDRESS))

    assert records()[-1] == {
        "event": "callback_dead",
        "task_id": task.id,
        "queue": "q",
        "callback": "work",
        "delivery": f"{task.id}:work",
        "attempt": 1,
        "cause": "Reject",
    }


def test_record_in_a_request_tells_who_asked(
    app: Flask, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    app.register_blueprint(taskflow.blueprint)
    task = add(taskflow)

    app.test_client().post(
        f"/tasks/{task.id}/verify",
        json={"method": "EMAIL", "otp": wrong(box)},
        headers={"User-Agent": "x" * 300},
    )

    last = records()[-1]
    assert (last["event"], last["remote_addr"], last["user_agent"]) == (
        "code_refused",
        "127.0.0.1",
        "x" * 200,
    )


def test_no_record_holds_a_code(app: Flask, taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow, send_via=["EMAIL"])
    code = box.last_code(ADDRESS)

    with pytest.raises(OTPRejected):
        taskflow.verify(task.id, "SMS", code)
    taskflow.verify(task.id, "EMAIL", code)

    assert code not in str(records())


def test_page_lists_every_event_and_no_other() -> None:
    package = Path(__file__).parent.parent / "flask_taskflow"
    source = "".join(path.read_text("utf-8") for path in package.glob("*.py"))
    written = set(re.findall(r'(?:record|_record_limit)\(\s*"(\w+)"', source))

    listed = set(re.findall(r"^\| `(\w+)` \| (?:INFO|WARNING|ERROR) ", PAGE, re.MULTILINE))

    assert len(written) == 15
    assert listed == written
