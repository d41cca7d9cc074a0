"""The Python half of the page for those who come from NestJS; ``tests/test_bridge.py`` has the other half."""

from __future__ import annotations

from typing import Any

import pytest

from flask_taskflow.errors import ResendTooSoon
from flask_taskflow.testing import outbox, travel
from tests.docs.conftest import Load
from tests.support.tasks import refused


@pytest.fixture
def shown(load: Load) -> Any:
    return load(
        "nestjs.md",
        "configure",
        "environment",
        "strategy",
        "add",
        "verify",
        "handle",
        "resend",
        "update",
        "run",
        "bridge",
    )


def test_examples_run_one_after_another(
    shown: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    app = shown.create_app_beside_the_original(**settings, TASKFLOW_EAGER=True)

    with app.app_context(), outbox(shown.taskflow) as box:
        task = shown.add_task()
        refused(ResendTooSoon, shown.resend, task.id)
        travel(31)
        shown.resend(task.id)
        shown.update_recipient(task.id)
        shown.verify(task.id, "000000")
        shown.verify(task.id, box[-1].otp)

    assert [message.addresses for message in box] == [("user@example.com",)] * 2 + [("newemail@example.com",)]
    told = capsys.readouterr().out
    for line in (
        "Task created: Task(",
        "OTP resent successfully.",
        "Not verified: wrong_code",
        f"{task.id} was verified by this app",
        f"Task {task.id} verified in queue QUEUE_NAME",
        "Task verified successfully.",
    ):
        assert line in told


def test_strategy_sends_and_the_environment_configures(
    shown: Any, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"SECRET_KEY": "for this test only: replace it", "TASKFLOW_REDIS_URL": server, "TESTING": "true"}
    for name, value in {**values, "TASKFLOW_JOB_TIMEOUT": "60"}.items():
        monkeypatch.setenv(f"FLASK_{name}", value)

    with shown.create_app_from_the_environment().app_context():
        task = shown.add_task()

    assert task.timeout == 60
    assert "to user@example.com" in capsys.readouterr().out


def test_service_confirms_in_one_process_and_runs_in_another(
    shown: Any, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"SECRET_KEY": "for this test only: replace it", "TASKFLOW_REDIS_URL": server, "TESTING": "true"}
    for name, value in {**values, "TASKFLOW_AUTOSTART": "false"}.items():
        monkeypatch.setenv(f"FLASK_{name}", value)
    worker = shown.create_web_app()
    monkeypatch.setenv("FLASK_TASKFLOW_QUEUES", "[]")
    web = shown.create_web_app()
    client = web.test_client()

    with outbox(shown.taskflow) as box:
        task_id = client.post("/tasks").get_json()["id"]
        body = {"method": "EMAIL", "otp": box[-1].otp}
        answer = client.post(f"/taskflow/tasks/{task_id}/verify", json=body)
    ran = []
    for app in (web, worker):
        with app.app_context():
            ran.append(shown.taskflow.run_due())

    assert answer.status_code == 200
    assert ran == [0, 1]
    assert f"Task {task_id} verified in queue QUEUE_NAME" in capsys.readouterr().out
