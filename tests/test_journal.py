"""Each event of the audit log: one record, its fields, never a code."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from redis import Redis

import flask_taskflow
from flask_taskflow import BaseStrategy, CodeRepeated, OTPRejected, Reject, Task, TaskFlow, TaskFlowError
from flask_taskflow.testing import Outbox, travel
from tests.conftest import MakeApp
from tests.support.docs import read as read_page
from tests.support.tasks import EMAIL, add, other, refused

MASKED = "a****@example.com"

Records = Callable[[], list[dict[str, Any]]]

pytestmark = pytest.mark.usefixtures("app")


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


def events(records: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(item["event"], item.get("cause")) for item in records]


@pytest.mark.usefixtures("box")
def test_added_and_sent_task_is_recorded(taskflow: TaskFlow, records: Records) -> None:
    task = add(taskflow)

    assert records() == [
        {
            "event": "task_added",
            "task_id": task.id,
            "queue": "q",
            "addresses": {"email": MASKED, "phone_number": "+12****10"},
        },
        {"event": "code_sent", "task_id": task.id, "queue": "q", "method": "EMAIL", "address": MASKED},
    ]


def test_failed_send_is_recorded_by_the_class_of_its_error(taskflow: TaskFlow, records: Records) -> None:
    @taskflow.register_strategy("EMAIL")
    class Broken(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            raise ConnectionError(f"could not send {otp}")

    refused(TaskFlowError, add, taskflow)

    (failed,) = (item for item in records() if item["event"] == "send_failed")
    assert (failed["cause"], failed["address"]) == ("ConnectionError", MASKED)


@pytest.mark.usefixtures("box")
def test_refused_resend_is_recorded(taskflow: TaskFlow, records: Records) -> None:
    task = add(taskflow)

    refused(TaskFlowError, taskflow.resend_otp, task.id, "EMAIL")

    last = records()[-1]
    assert 0 < last.pop("retry_after") <= 30
    expected = {"event": "resend_refused", "task_id": task.id, "method": "EMAIL", "cause": "resend_too_soon"}
    assert last == expected


@pytest.mark.usefixtures("box")
def test_refused_add_is_recorded(taskflow: TaskFlow, records: Records) -> None:
    for _ in range(5):
        add(taskflow)

    refused(TaskFlowError, add, taskflow)

    last = records()[-1]
    assert (last["event"], last["cause"], last["queue"]) == ("send_refused", "send_limit", "q")


def test_code_that_comes_again_is_recorded_as_that(taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box[0].otp)
    refused(CodeRepeated, taskflow.verify, task.id, "EMAIL", box[0].otp)

    assert records()[-1] == {"event": "code_repeated", "task_id": task.id, "queue": "q", "method": "EMAIL"}


def test_refused_code_and_lock_are_recorded_with_the_cause(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    with make_app(otp_max_attempts=2).app_context():
        task = add(taskflow)
        for _ in range(3):
            refused(OTPRejected, taskflow.verify, task.id, "EMAIL", other(box.last_code(EMAIL)))

    assert events(records()[2:]) == [
        ("code_refused", "wrong_code"),
        ("code_refused", "task_locked"),
        ("task_locked", None),
        ("code_refused", "task_locked"),
    ]


def test_expiry_on_use_is_recorded(taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow)
    travel(601)

    refused(OTPRejected, taskflow.verify, task.id, "EMAIL", box.last_code(EMAIL))

    assert events(records()[2:]) == [("code_refused", "task_expired"), ("task_expired", None)]


@pytest.mark.parametrize(
    ("call", "record"),
    [
        (
            lambda taskflow, task, code: taskflow.verify(task.id, "EMAIL", code),
            {"event": "code_accepted", "method": "EMAIL"},
        ),
        (lambda taskflow, task, code: taskflow.cancel_task(task.id), {"event": "task_cancelled"}),
        (
            lambda taskflow, task, code: taskflow.update_recipient(task.id, {"email": "other@example.com"}),
            {"event": "recipient_changed", "old": {"email": MASKED}, "new": {"email": "ot****@example.com"}},
        ),
    ],
    ids=["verified", "cancelled", "changed"],
)
def test_change_of_a_task_is_recorded_masked(
    taskflow: TaskFlow, box: Outbox, records: Records, call: Callable[..., object], record: dict[str, Any]
) -> None:
    task = add(taskflow)

    call(taskflow, task, box.last_code(EMAIL))

    (told,) = (item for item in records() if item["event"] == record["event"])
    assert told == {"task_id": task.id, "queue": "q", **record}


@pytest.mark.promise("S31")
@pytest.mark.usefixtures("box")
def test_tampered_task_is_recorded(taskflow: TaskFlow, records: Records, redis: Redis) -> None:
    task = add(taskflow)
    (key,) = redis.scan_iter(match="*:task:*")
    redis.hset(key, "fixed", "{}")

    refused(TaskFlowError, taskflow.get_task, task.id)

    assert records()[-1] == {"event": "task_tampered", "task_id": task.id}


def test_each_end_of_a_callbacks_attempt_is_recorded(
    taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    moods: list[Exception | None] = [ValueError(f"{EMAIL} has no money"), None, Reject("no")]

    @taskflow.on_task_verified("q", name="work", backoff_time=60)
    def work(task: Task[Any]) -> None:
        if (mood := moods.pop(0)) is not None:
            raise mood

    tasks = [add(taskflow), add(taskflow)]
    taskflow.verify(tasks[0].id, "EMAIL", box[0].otp)
    travel(100)
    taskflow.run_due()
    taskflow.verify(tasks[1].id, "EMAIL", box[1].otp)

    expected = [
        {"event": "callback_failed", "task_id": tasks[0].id, "attempt": 1, "cause": "ValueError"},
        {"event": "callback_done", "task_id": tasks[0].id, "attempt": 2},
        {"event": "callback_dead", "task_id": tasks[1].id, "attempt": 1, "cause": "Reject"},
    ]
    told = [item for item in records() if item["event"].startswith("callback")]
    work_of = {"queue": "q", "callback": "work"}
    assert told == [{**item, **work_of, "delivery": f"{item['task_id']}:work"} for item in expected]


Name = Callable[[str, str], object]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (lambda otp, address: "SM0f-17", True),
        (lambda otp, address: f"<3{address}>", True),
        (lambda otp, address: f"<{address.upper()}>", False),
        (lambda otp, address: f"m-{otp[:3]}-{otp[3:]}", False),
        (lambda otp, address: otp, False),
        (lambda otp, address: "two\nlines", False),
        (lambda otp, address: "x" * 201, False),
        (lambda otp, address: "", False),
        (lambda otp, address: 17, False),
    ],
    ids=["name", "other word", "address", "code apart", "code", "lines", "long", "empty", "number"],
)
def test_message_is_recorded_by_the_name_that_its_provider_gave_it(
    taskflow: TaskFlow, records: Records, name: Name, kept: bool
) -> None:
    names: list[object] = []

    @taskflow.register_strategy("EMAIL")
    class Provider(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> str:
            names.append(name(str(otp), EMAIL))
            return names[-1]  # type: ignore[return-value]  # an app may return anything

    add(taskflow)

    (sent,) = (item for item in records() if item["event"] == "code_sent")
    assert sent.get("message_id") == (names[0] if kept else None)
    assert ("message_id" in sent) is kept


def test_record_in_a_request_tells_who_asked(
    app: Flask, taskflow: TaskFlow, box: Outbox, records: Records
) -> None:
    app.register_blueprint(taskflow.blueprint)
    task = add(taskflow)
    body = {"method": "EMAIL", "otp": other(box.last_code(EMAIL))}

    app.test_client().post(f"/tasks/{task.id}/verify", json=body, headers={"User-Agent": "x" * 300})

    last = records()[-1]
    asked = (last["event"], last["remote_addr"], last["user_agent"])
    assert asked == ("code_refused", "127.0.0.1", "x" * 200)


def test_no_record_holds_a_code(taskflow: TaskFlow, box: Outbox, records: Records) -> None:
    task = add(taskflow, send_via=["EMAIL"])
    code = box.last_code(EMAIL)

    refused(OTPRejected, taskflow.verify, task.id, "SMS", code)
    taskflow.verify(task.id, "EMAIL", code)

    assert code not in str(records())


def test_page_lists_every_event_and_no_other() -> None:
    package = Path(flask_taskflow.__file__).parent
    source = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    written = set(re.findall(r'(?:record|_record_refusal)\(\s*"(\w+)"', source))

    listed = set(re.findall(r"^\| `(\w+)` \| (?:INFO|WARNING|ERROR) ", read_page("audit.md"), re.MULTILINE))

    assert len(written) == 27
    assert listed == written
