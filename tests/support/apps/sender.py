"""The same app, but its codes are sent in the background, by providers that do as the task says."""

from __future__ import annotations

import os
import signal
from typing import Any

from flask import Flask

from flask_taskflow import BaseStrategy, Reject, Task, task_failed
from tests.support.apps.survivor import create_app, directory, taskflow, tell, wait_for_go

__all__ = ["create_app"]


class Provider(BaseStrategy):
    """Tell of each code, and of when the provider took it."""

    def __init__(self, method: str) -> None:
        self.method = method

    def send(self, task: Task[Any], otp: str) -> None:
        about = {"task": task.id, "method": self.method, "otp": str(otp)}
        tell("sending", **about)
        if task.data == "wait":
            wait_for_go()
        if task.data == "refuse":
            raise Reject
        tell("took", **about)
        if task.data == "kill" and is_first(task):
            os.kill(os.getpid(), signal.SIGKILL)


def is_first(task: Task[Any]) -> bool:
    try:
        (directory() / f"killed-{task.id}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


for name in ("EMAIL", "SMS"):
    taskflow.register_strategy(name)(Provider(name))


@task_failed.connect
def on_failed(app: Flask, task: Task[Any], **_: Any) -> None:
    if app.extensions["taskflow"] is taskflow:
        tell("failed", task=task.id)
