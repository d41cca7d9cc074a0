"""An app for tests with several processes: it tells what happens in the Redis list ``events``."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from flask import Flask
from redis import Redis

from flask_taskflow import (
    ConsoleStrategy,
    Method,
    Task,
    TaskFlow,
    callback_dead,
    current_delivery,
    task_verified,
)

taskflow = TaskFlow()
taskflow.register_strategy(Method.EMAIL)(ConsoleStrategy)


def client() -> Any:
    return Redis.from_url(os.environ["FLASK_TASKFLOW_REDIS_URL"])


def tell(event: str, **details: Any) -> None:
    with client() as redis:
        redis.rpush("events", json.dumps({"event": event, "pid": os.getpid(), **details}))


@taskflow.on_task_verified("fleet", name="work", max_attempts=2, backoff_time=0.1)
def work(task: Task[Any]) -> None:
    tell("callback", task=task.id, attempt=current_delivery.attempt, delivery=current_delivery.id)
    if task.data == "wait":
        with client() as redis:
            redis.blpop(["go"], timeout=30)
    elif task.data == "fail":
        raise ValueError("as told")
    tell("done", task=task.id)


@task_verified.connect
def on_verified(app: Flask, task: Task[Any], **_: Any) -> None:
    tell("signal", task=task.id)


@callback_dead.connect
def on_dead(app: Flask, task: Task[Any], **_: Any) -> None:
    tell("dead", task=task.id)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "a secret key of the test suite, long enough"
    app.config.from_prefixed_env()
    taskflow.init_app(app)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")

    @app.cli.command()
    def add() -> None:
        taskflow.add_task("fleet", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        names = [thread.name for thread in threading.enumerate()]
        print("threads", [name for name in names if name.startswith("taskflow")])

    @app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    return app
