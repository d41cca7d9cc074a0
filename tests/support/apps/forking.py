"""An app whose code forks, and whose children come out of it in each way; it tells how they end."""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask

from flask_taskflow import OutboxStrategy, Task, TaskFlow


class Forking(OutboxStrategy):
    """Forks where it sends."""

    def send(self, task: Task[Any], otp: str) -> None:
        super().send(task, otp)
        if task.data == "send":
            fork("send", ValueError(otp))


def fork(way: str, error: BaseException | None = None) -> None:
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"{way} {status}\n".encode())
    elif error is not None:
        raise error


taskflow, strategy = TaskFlow(), Forking()
taskflow.register_strategy("EMAIL")(strategy)
app = Flask(__name__)
app.config.update(
    SECRET_KEY="a secret key of the test suite, long enough",
    TASKFLOW_REDIS_URL=os.environ["REDIS_URL"],
    TASKFLOW_RECIPIENT_MAX_SENDS=100,
)
taskflow.init_app(app)


@taskflow.on_task_verified("q", max_attempts=1)
def callback(task: Task[Any]) -> None:
    errors = {"raise": ValueError("in the child"), "exit": SystemExit(3), "say": SystemExit("why")}
    if task.data != "send":
        fork(task.data, errors.get(task.data))


with app.app_context():
    taskflow.start()
    for data in ("return", "raise", "exit", "say", "send"):
        task = taskflow.add_task(
            "q", data, allowed_methods=["EMAIL"], recipient={"email": f"{data}@example.com"}
        )
        taskflow.verify(task.id, "EMAIL", strategy.messages[-1].otp)
    sys.stdin.read()
    taskflow.stop()
