"""A process that its environment configures, and that adds, verifies and runs when it is told to."""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow

taskflow = TaskFlow()
sent = OutboxStrategy()
taskflow.register_strategy(Method.EMAIL)(sent)
app = Flask("app")
app.config.from_prefixed_env()
taskflow.init_app(app)


@taskflow.on_task_verified("q")
def work(task: Task[Any]) -> None:
    print("ran", task.id)


with app.app_context():
    for line in sys.stdin:
        match line.split():
            case ["add"]:
                recipient = {"email": "ann@example.com"}
                task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient=recipient)
                print("added", task.id, sent.messages[-1].otp)
            case ["verify", task_id, otp]:
                print("verified", taskflow.verify(task_id, "EMAIL", otp).id)
            case ["run"]:
                print("done", taskflow.run_due())
