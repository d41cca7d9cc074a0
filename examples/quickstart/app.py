"""A transfer that waits for a one-time code, on a page and in the terminal.

    flask --app examples/quickstart/app.py run     # open the address that it prints
    flask --app examples/quickstart/app.py demo    # the same story without a browser

There is nothing to configure: the server is embedded and keeps its data in the instance folder.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
from blinker import NamedSignal
from flask import Blueprint, Flask, abort, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from flask_taskflow import (
    InvalidTask,
    Method,
    OTPRejected,
    OutboxStrategy,
    SendLimitReached,
    Task,
    TaskFlow,
    TaskNotFound,
    TaskTampered,
    current_delivery,
    signals,
)

taskflow = TaskFlow()
inbox = OutboxStrategy()  # keeps the codes that a real strategy would e-mail
taskflow.register_strategy(Method.EMAIL)(inbox)


@taskflow.on_task_verified("transfers", max_attempts=3, backoff_strategy="fixed", backoff_time=2.0)
def pay(task: Task[Any]) -> None:
    time.sleep(0.5)  # the bank takes its time
    if current_delivery.attempt == 1:
        raise ConnectionError("the bank did not answer (on purpose)")


# What the page and the terminal tell of each signal, filled in from its arguments.
TEXTS = {
    signals.task_added: "Task stored: {task.summary}. Nothing is paid yet.",
    signals.otp_sent: "A code is on its way by {method}.",
    signals.otp_rejected: "Code refused: {cause}.",
    signals.task_verified: "Signal task_verified arrived: the task is {task.status}.",
    signals.callback_failed: "Attempt {delivery.attempt} to pay failed: {error}. Next in about 2 s.",
    signals.callback_dead: "Attempt {delivery.attempt} to pay failed: {error}. It was the last one.",
    signals.callback_succeeded: "Attempt {delivery.attempt} to pay succeeded.",
}
# Kept in this process: a page is shown what the process that answers it has heard.
events: list[dict[str, str]] = []
ended = threading.Event()


def tell(signal: NamedSignal, text: str) -> None:
    def receiver(app: Flask, **about: Any) -> None:
        task_id = about["task"].id if "task" in about else about["task_id"]
        events.append(event(task_id, signal.name, text.format(**about), datetime.now(UTC)))
        say(events[-1]["text"])
        if signal in (signals.callback_dead, signals.callback_succeeded):
            ended.set()

    signal.connect(receiver, weak=False)


for signal, text in TEXTS.items():
    tell(signal, text)


def event(task_id: str, name: str, text: str, at: datetime) -> dict[str, str]:
    return {"task_id": task_id, "name": name, "text": text, "at": at.isoformat(timespec="milliseconds")}


def say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {text}")


page = Blueprint("page", __name__, cli_group=None)


@page.get("/")
def index() -> str:
    return render_template("page.html", task=None if "new" in request.args else current_task())


@page.post("/transfers")
def transfer() -> ResponseReturnValue:
    try:
        task = add_transfer(request.form["amount"], request.form["email"])
    except InvalidTask:
        return render_template("page.html", problem="The code cannot be sent to this address."), 422
    except SendLimitReached as error:
        problem = f"This address has had enough codes for now. Try again in {error.retry_after:.0f} s."
        return render_template("page.html", problem=problem), 429
    session["task_id"] = task.id
    return redirect(url_for("page.index"), 303)


def add_transfer(amount: str, email: str) -> Task[Any]:
    if not (amount.isdecimal() and 1 <= int(amount) <= 10_000):
        abort(422, "The amount must be from 1 to 10000 euros.")
    return taskflow.add_task(
        "transfers",
        {"amount": int(amount)},
        allowed_methods=[Method.EMAIL],
        recipient={"email": email},
        summary=f"Transfer of {int(amount)} € to Ada Lovelace",
        next_url="/",
    )


def current_task() -> Task[Any] | None:
    with suppress(TaskNotFound, TaskTampered):
        return taskflow.get_task(session.get("task_id", ""))
    return None


@page.get("/status")
def status() -> dict[str, Any]:
    task = current_task()
    if task is None:
        return {"status": None, "codes": [], "events": []}
    told = [known for known in list(events) if known["task_id"] == task.id]
    if task.verified_at is not None:
        told.append(event(task.id, "verified", "The code was right: the task is verified.", task.verified_at))
    return {
        "status": task.status,
        "codes": [message.otp for message in list(inbox.messages) if message.task.id == task.id],
        "events": sorted(told, key=lambda known: known["at"]),
    }


codes = taskflow.create_blueprint(routes=["verify", "resend", "page"])


@codes.before_request
def only_the_owner() -> None:
    # A browser's preflight bears no cookie, and acts on nothing; styles and scripts are of no task.
    mine, asked = session.get("task_id"), (request.view_args or {}).get("task_id")
    if request.method != "OPTIONS" and asked != mine and request.endpoint != "taskflow.asset":
        abort(404)


def create_app(**settings: Any) -> Flask:
    app = Flask(__name__)
    # Everybody has this key: it is fit for trying out on your own machine, and for nothing else.
    app.config["SECRET_KEY"] = "the key of the quickstart, known to all"
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", TASKFLOW_REDIS_URL="embedded://")
    app.config["TASKFLOW_PAGE_HOLDER"] = False  # only_the_owner() sees to that
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY=..., FLASK_TASKFLOW_REDIS_URL=...
    app.config.update(settings)
    taskflow.init_app(app)
    app.register_blueprint(codes, url_prefix="/taskflow")
    app.register_blueprint(page)
    taskflow.register_error_handlers(app)  # what no view above catches
    return app


@page.cli.command("demo")
def demo() -> None:
    """Play the whole story in the terminal."""
    # The failure on purpose is told below; its traceback would only interrupt.
    logging.getLogger("flask_taskflow").setLevel(logging.CRITICAL)
    # Keys of its own: a quickstart that runs beside it must not run its callback.
    with create_app(TASKFLOW_KEY_PREFIX=f"demo-{uuid.uuid4().hex}").app_context():
        taskflow.start()
        say("You ask for a transfer.")
        task = add_transfer("120", "you@example.com")
        code = inbox.messages[-1].otp
        say(f"The development inbox has a message: your code is {code}.")
        for typed in (f"{(int(code) + 1) % 1_000_000:06}", code):
            say(f"You type {typed}.")
            with suppress(OTPRejected):
                taskflow.verify(task.id, Method.EMAIL, typed)
                ended.wait(20)
        taskflow.stop()
    missing = {signal.name for signal in TEXTS} - {known["name"] for known in events} - {"callback-dead"}
    if missing:
        raise click.ClickException(f"This did not happen: {', '.join(sorted(missing))}.")
    click.echo(
        "\nWhat happened: the wrong code changed nothing, the right one verified the task once,\n"
        "the signal arrived, and the callback failed, waited and succeeded."
    )
