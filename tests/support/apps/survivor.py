"""An app for tests that take Redis away: it tells what happens in a file, one line for each event."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask

from flask_taskflow import (
    Method,
    OutboxStrategy,
    Reject,
    Retry,
    Task,
    TaskFlow,
    callback_dead,
    callback_succeeded,
    current_delivery,
    task_verified,
)

ATTEMPTS = int(os.environ.get("SURVIVOR_ATTEMPTS", "2"))
MAX_RUNNING = int(os.environ["SURVIVOR_MAX_RUNNING"]) if "SURVIVOR_MAX_RUNNING" in os.environ else None

taskflow = TaskFlow()
taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())


def directory() -> Path:
    return Path(os.environ["SURVIVOR"])


def tell(event: str, **details: Any) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic(), **details})
    with (directory() / "events").open("a") as file:
        file.write(f"{line}\n")


def wait_for_go() -> None:
    deadline, tick = time.monotonic() + 30, threading.Event()
    while not (directory() / "go").exists() and time.monotonic() < deadline:
        tick.wait(0.02)


@taskflow.on_task_verified(
    "fleet", name="work", max_attempts=ATTEMPTS, backoff_time=0.3, max_running=MAX_RUNNING
)
def work(task: Task[Any]) -> None:
    attempt = current_delivery.attempt
    tell("begun", task=task.id, attempt=attempt, delivery=current_delivery.id)
    match task.data:
        case "wait" | {"do": "wait"}:
            wait_for_go()
        case "busy":
            threading.Event().wait(0.05)
        case "fail":
            raise ValueError("as told")
        case "exit":
            raise SystemExit(3)
        case "retry":
            raise Retry(after=0.6)
        case "reject":
            raise Reject("as told")
        case "kill" if attempt == 1:
            tell("done", task=task.id)
            os.kill(os.getpid(), signal.SIGKILL)
    tell("done", task=task.id)


@taskflow.on_task_ended("fleet", statuses=("EXPIRED", "CANCELLED"), name="end", backoff_time=0.3)
def end(task: Task[Any]) -> None:
    if task.data == "kill" and current_delivery.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    tell("ended", task=task.id, status=task.status)


@task_verified.connect
def on_verified(app: Flask, task: Task[Any], **_: Any) -> None:
    if app.extensions["taskflow"] is taskflow:
        tell("signal", task=task.id)


@callback_succeeded.connect
def on_success(app: Flask, task: Task[Any], **_: Any) -> None:
    if app.extensions["taskflow"] is taskflow:
        tell("acked", task=task.id)


@callback_dead.connect
def on_dead(app: Flask, task: Task[Any], **details: Any) -> None:
    if app.extensions["taskflow"] is taskflow:
        tell("dead", task=task.id, error=str(details["error"]))


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "a secret key of the test suite, long enough"
    app.config.from_prefixed_env()
    taskflow.init_app(app)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")

    @app.cli.command()
    def add() -> None:
        taskflow.add_task("fleet", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        print(
            "threads", [thread.name for thread in threading.enumerate() if thread.name.startswith("taskflow")]
        )

    @app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    return app
