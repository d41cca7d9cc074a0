"""The app that the benchmarks measure: its queues and strategies, served and run by real processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from flask import Flask

from flask_taskflow import Method, OutboxStrategy, SmartOTPStrategy, Task, TaskFlow

QUEUE = "benchmark"
_STARTED_WITHIN = 60.0
_DEVICE, _SECRET = "device", SmartOTPStrategy.new_secret()

# Without a handler, the audit log would go to the terminal.
logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())


def create_app(**settings: Any) -> Flask:
    """Return an app with routes on the server that ``FLASK_TASKFLOW_REDIS_URL`` names."""
    app = _make_app(**settings)
    taskflow: TaskFlow = app.extensions["taskflow"]
    routes = ("verify", "resend", "openapi", "page")
    app.register_blueprint(taskflow.create_blueprint(routes=routes), url_prefix="/taskflow")
    return app


def _make_app(**settings: Any) -> Flask:
    """Return an app without routes: an older package that is compared may lack some of them."""
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
    taskflow.register_strategy(Method.SMART_OTP)(SmartOTPStrategy(_secret_of))

    @taskflow.on_task_verified(QUEUE)
    def done(task: Task[Any]) -> None:
        pass

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(settings, SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)
    return app


@contextmanager
def app_on(url: str, **settings: Any) -> Iterator[TaskFlow]:
    """Push the context of an app on a server that starts no thread; yield its extension.

    :param url: the server's.
    :param settings: more of the app's configuration.
    """
    app = _make_app(TASKFLOW_REDIS_URL=url, TASKFLOW_AUTOSTART=False, **settings)
    with app.app_context():
        taskflow: TaskFlow = app.extensions["taskflow"]
        yield taskflow


def environment(url: str) -> dict[str, str]:
    """Return the environment of a process that serves :func:`create_app` on a Redis server.

    :param url: the Redis server's.
    """
    return {**os.environ, "FLASK_TASKFLOW_REDIS_URL": url}


@contextmanager
def gunicorn(url: str, app: str, *options: str, **variables: str) -> Iterator[int]:
    """Serve an app by gunicorn; yield the port.

    :param url: the Redis server's.
    :param app: as gunicorn is told it.
    :param variables: more of the environment.
    """
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", *options, app]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env={**environment(url), **variables}, stdout=log, stderr=log)
        try:
            yield _port(log)
        finally:
            process.terminate()
            process.wait(30)


def _port(log: IO[str]) -> int:
    deadline = time.monotonic() + _STARTED_WITHIN
    while time.monotonic() < deadline:
        log.seek(0)
        if "Listening at: " in (told := log.read()):
            return int(told.partition("Listening at: ")[2].split()[0].rpartition(":")[2])
        time.sleep(0.05)
    raise RuntimeError("gunicorn did not start")


def scripts_of(redis: Any) -> int:
    """Return how many scripts a server has run."""
    told = redis.info("commandstats")
    return sum(int(told.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha"))


def add(taskflow: TaskFlow, number: int, method: str = Method.EMAIL, owner: str | None = None) -> str:
    """Add a task with a recipient of its own and return its id.

    :param number: makes the recipient.
    :param owner: whose task it is.
    """
    recipient = {"email": f"user{number}@example.com", "device_id": f"{_DEVICE}{number}"}
    # An older package that is compared may know no owners.
    more: dict[str, Any] = {} if owner is None else {"owner": owner}
    return taskflow.add_task(QUEUE, allowed_methods=[method], recipient=recipient, **more).id


def _secret_of(device_id: str) -> str | None:
    return _SECRET if device_id.startswith(_DEVICE) else None
