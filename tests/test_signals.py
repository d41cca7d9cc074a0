from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, current_app

from flask_taskflow import TaskFlow, signals, task_verified
from flask_taskflow.testing import Outbox


def test_receivers_when_one_raises_are_isolated(
    app: Flask, taskflow: TaskFlow, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def broken(sender: Flask, **_: Any) -> None:
        raise RuntimeError("broken receiver")

    def sound(sender: Flask, task: Any, **_: Any) -> None:
        heard.append((sender, task.id, current_app.name))

    with task_verified.connected_to(broken), task_verified.connected_to(sound):
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        taskflow.verify(task.id, "EMAIL", box.last_code("a@example.com"))

    assert heard == [(app, task.id, "app")]
    assert "A receiver of the signal task-verified raised" in caplog.text


def test_signals_of_the_module_are_all_documented() -> None:
    names = {name for name in dir(signals) if name.startswith(("task_", "otp_", "callback_", "recip"))}

    assert len(names) == 11
