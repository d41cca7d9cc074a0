"""The app that the benchmarks measure: its queues and strategies, served and run by real processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow

QUEUE = "benchmark"

# Without a handler, the audit log would go to the terminal.
logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())


def create_app(**settings: Any) -> Flask:
    """Return an app on the server that ``FLASK_TASKFLOW_REDIS_URL`` names."""
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())

    @taskflow.on_task_verified(QUEUE)
    def done(task: Task[Any]) -> None:
        pass

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(settings, SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)
    routes = ("verify", "resend", "openapi")
    app.register_blueprint(taskflow.create_blueprint(routes=routes), url_prefix="/taskflow")
    return app


@contextmanager
def app_on(url: str) -> Iterator[TaskFlow]:
    """Push the context of an app on a server that starts no thread; yield its extension.

    :param url: the server's.
    """
    app = create_app(TASKFLOW_REDIS_URL=url, TASKFLOW_AUTOSTART=False)
    with app.app_context():
        taskflow: TaskFlow = app.extensions["taskflow"]
        yield taskflow


def environment(url: str) -> dict[str, str]:
    """Return the environment of a process that serves :func:`create_app` on a Redis server.

    :param url: the Redis server's.
    """
    return {**os.environ, "FLASK_TASKFLOW_REDIS_URL": url}


def add(taskflow: TaskFlow, number: int) -> str:
    """Add a task with a recipient of its own and return its id.

    :param number: makes the recipient.
    """
    recipient = {"email": f"user{number}@example.com"}
    return taskflow.add_task(QUEUE, allowed_methods=[Method.EMAIL], recipient=recipient).id
