"""A code is nowhere but in what ``send`` receives: one long life of an app, every sink of it watched."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import smtplib
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from email.message import EmailMessage
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from blinker import NamedSignal
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from redis import Redis, RedisError

import flask_taskflow
from flask_taskflow import Delivery, OutboxStrategy, Task, TaskFlow, current_delivery, signals
from flask_taskflow._otp import OTP
from flask_taskflow._service import current_service
from flask_taskflow.errors import SendFailed, TaskFlowError
from flask_taskflow.testing import redis_server, travel
from tests.conftest import SECRET_KEY
from tests.support.leaks import everything, leaks_in
from tests.support.mail import Handler, mail_server
from tests.support.tasks import NEW_EMAIL, Tap, add

PACKAGE = str(Path(flask_taskflow.__file__).parent)
# In no time stamp and no HMAC by chance.
LENGTH = 16


class Mail(Tap):
    """Sends by SMTP to a server that quotes what it refuses; keeps what a traceback inside `send` shows."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.shown: list[str] = []

    def send(self, task: Task[Any], otp: str) -> None:
        super().send(task, otp)
        message = EmailMessage()
        message["To"], message["From"] = task.recipient.email, "app@example.com"
        message.set_content(f"Your code is {otp}")
        try:
            with smtplib.SMTP("localhost", self.port) as smtp:
                smtp.send_message(message)
        except OSError as error:
            self.shown.append(with_locals(error))
            raise


def with_locals(error: BaseException, *, ours_only: bool = False) -> str:
    """A traceback as error reporters make it, with its causes and the locals of each frame."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    if not ours_only:
        return "".join(whole.format())
    ours = [frame for frame in whole.stack if frame.filename.startswith(PACKAGE)]
    return "\n".join(f"{frame.name}: {frame.locals}" for frame in ours)


class Reporter(logging.Handler):
    """Keeps each record whole, and the locals of our frames at that moment, as error reporters do."""

    def __init__(self, sinks: dict[str, list[str]]) -> None:
        super().__init__(logging.DEBUG)
        self.sinks = sinks

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "mail.log":
            # The mail server, in this process for once, tells what it received.
            return
        error = record.exc_info[1] if record.exc_info else None
        text = f"{record.name} {record.getMessage()} {vars(record)} {with_locals(error) if error else ''}"
        kept = "audit log" if record.name == "flask_taskflow.audit" else "logs at DEBUG"
        self.sinks[kept].append(text)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self.sinks["our locals at each record"].append(f"{frame.f_code.co_name}: {frame.f_locals!r}")
            frame = frame.f_back


SINKS = [
    "HTTP answers",
    "JSON",
    "MONITOR",
    "Redis",
    "append-only file",
    "audit log",
    "errors, their causes and locals",
    "logs at DEBUG",
    "our locals at each record",
    "pickle",
    "repr",
    "server's log",
    "signals",
    "slow log",
    "standard output and error, warnings",
    "str",
    "whole traceback of a failed send",
]


class Life:
    """An app in whose life every code could leak, and what each sink got of it."""

    def __init__(self, url: str, port: int) -> None:
        self.sinks: dict[str, list[str]] = {sink: [] for sink in SINKS}
        self.url = url
        self.mail, self.tap = Mail(port), Tap()
        self.taskflow = TaskFlow()
        self.taskflow.register_strategy("EMAIL")(self.mail)
        self.taskflow.register_strategy("SMS")(self.tap)
        self.taskflow.on_task_verified("q", name="act")(self._act)
        self.app = self._make_app(url)
        self.objects: list[Any] = []

    def _make_app(self, url: str) -> Flask:
        app = Flask("app")
        app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=url)
        app.config.update(TASKFLOW_OTP_LENGTH=LENGTH, TASKFLOW_EAGER=True, TASKFLOW_RECIPIENT_MAX_SENDS=100)
        self.taskflow.init_app(app)
        app.register_blueprint(self.taskflow.blueprint, url_prefix="/taskflow")
        return app

    def _act(self, task: Task[Any]) -> None:
        self.objects += [task, Delivery(current_delivery.id, current_delivery.attempt)]
        raise ValueError("the callback fails")

    def live(self) -> None:
        """Go through it, with everything that can be watched watched."""
        sinks, out = self.sinks, io.StringIO()
        with ExitStack() as stack, Redis.from_url(self.url) as redis:
            redis.config_set("slowlog-log-slower-than", 0)
            redis.config_set("slowlog-max-len", 10_000)
            warned = self._watch(stack, out)
            monitor = stack.enter_context(redis.monitor())
            with self.app.app_context():
                self._steps()
            redis.echo("the end")
            while not sinks["MONITOR"] or "the end" not in sinks["MONITOR"][-1]:
                sinks["MONITOR"].append(str(monitor.next_command()["command"]))
            sinks["slow log"] = [str(entry) for entry in redis.slowlog_get(10_000)]
            sinks["Redis"] = [text.decode("latin-1") for text in everything(redis)]
            folder = Path(redis.config_get("dir")["dir"])
        for path in (path for path in folder.rglob("*") if path.is_file()):
            if "aof" in path.name or path.name == "log":
                sink = "server's log" if path.name == "log" else "append-only file"
                sinks[sink].append(path.read_text("latin-1"))
        sinks["standard output and error, warnings"] = ["watched", out.getvalue(), *map(str, warned)]
        self._show_objects()

    def _watch(self, stack: ExitStack, out: io.StringIO) -> list[warnings.WarningMessage]:
        """Watch logs, signals, output and warnings; return the list that warnings come to."""

        def receive(sender: Flask, **arguments: Any) -> None:
            self.sinks["signals"].append(f"{arguments!r} {arguments}")

        for signal in (item for item in vars(signals).values() if isinstance(item, NamedSignal)):
            stack.enter_context(signal.connected_to(receive))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(out))
        root, reporter = logging.getLogger(), Reporter(self.sinks)
        stack.callback(root.setLevel, root.level)
        root.setLevel(logging.DEBUG)
        root.addHandler(reporter)
        stack.callback(root.removeHandler, reporter)
        return warned or []

    def _steps(self) -> None:
        client, taskflow, tap = self.app.test_client(), self.taskflow, self.tap
        errors: list[Any] = []

        def post(task: Task[Any], step: str, **body: str) -> None:
            answer = client.post(f"/taskflow/tasks/{task.id}/{step}", json=body)
            self.sinks["HTTP answers"].append(f"{answer.status} {answer.headers} {answer.text}")

        def refuse(call: Callable[..., Any], *arguments: Any) -> Any:
            with pytest.raises((TaskFlowError, RedisError)) as caught:
                call(*arguments)
            errors.append(caught.value)
            return caught.value

        task = refuse(add, taskflow).task
        by_sms = add(taskflow, send_via=["SMS"])
        code, sms = self.mail.codes[0], tap.codes[0]
        post(task, "resend", method="EMAIL")
        for typed in (code, f"{code}.", f" {code} "):
            post(task, "verify", method="EMAIL", otp=typed)
        refuse(taskflow.verify, task.id, "EMAIL", code)
        refuse(taskflow.verify, by_sms.id, "SMS", f"{sms}.")
        refuse(taskflow.verify, "a" * 34, "SMS", sms)
        refuse(taskflow.update_recipient, task.id, {"email": NEW_EMAIL})
        tap.error = OSError(f"550 cannot deliver {sms}")
        travel(30)
        refuse(taskflow.resend_otp, by_sms.id, "SMS")
        post(by_sms, "resend", method="SMS")
        tap.error = None
        taskflow.resend_otp(by_sms.id, "SMS")
        with self._make_app("unix:///nowhere/redis.sock").app_context():
            refuse(taskflow.verify, by_sms.id, "SMS", sms)
        for _ in range(2):
            post(by_sms, "verify", method="SMS", otp=sms)
        self.objects += [by_sms, by_sms.recipient, taskflow.get_task(by_sms.id), taskflow, *errors]
        self.objects.append(current_service().config)
        self.sinks["errors, their causes and locals"] = [
            f"{error!r} {error.__cause__!r} {error.__context__!r} {with_locals(error, ours_only=True)}"
            for error in errors
        ]
        sent = [error for error in errors if isinstance(error, SendFailed)]
        self.sinks["whole traceback of a failed send"] = [with_locals(error) for error in sent]

    def _show_objects(self) -> None:
        kept = OutboxStrategy()
        kept.send(self.objects[0], self.mail.codes[0])
        self.objects += [kept, kept.messages, OTP(self.mail.codes[0])]
        self.sinks["repr"] = [repr(item) for item in self.objects]
        others = [item for item in self.objects if not isinstance(item, str)]
        self.sinks["str"] = [str(item) for item in others]
        jsonify = DefaultJSONProvider(Flask("app")).dumps
        self.sinks["JSON"] = [_try(jsonify, item) for item in others]
        self.sinks["pickle"] = [_try(lambda it: pickle.dumps(it, 0).decode("latin-1"), it) for it in others]


def _try(write: Callable[[Any], str], item: Any) -> str:
    try:
        return write(item)
    except (TypeError, AttributeError, pickle.PicklingError, RuntimeError) as error:
        return f"cannot be written: {error}"


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    with ExitStack() as stack:
        url = stack.enter_context(redis_server("--appendonly", "yes", "--appendfsync", "always"))
        life = Life(url, stack.enter_context(mail_server(Handler(failures=99))))
        life.live()
        yield life


@pytest.mark.promise("S14")
@pytest.mark.parametrize("sink", SINKS)
def test_code_is_in_no_sink(life: Life, sink: str) -> None:
    text = "\n".join(life.sinks[sink])

    assert text
    for code in {*life.mail.codes, *life.tap.codes}:
        leaks = leaks_in(text.encode("latin-1", "replace"), code)
        assert not leaks, f"{leaks} in {text[text.find(code) - 200 :][:300]!r}"


@pytest.mark.promise("S70")
def test_code_is_in_no_event_of_an_error_tracker(server: str) -> None:
    """Sentry, which shows the locals of every frame, under an app whose own strategy is passed through."""
    script = str(Path(__file__).parents[1] / "support" / "apps" / "tracked.py")
    environment = {**os.environ, "REDIS_URL": server}

    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout)

    assert list(found) == ["ValueError", "SystemExit", "KeyboardInterrupt", "Timeout"]
    for end, told_of in found.items():
        events = told_of["events"]
        assert f'"type": "{end}"' in events.replace('":"', '": "') or "SendFailed" in events
        assert '"vars"' in events
        assert not leaks_in(events.encode(), told_of["code"])


@pytest.mark.promise("S14")
def test_every_sink_was_watched(life: Life) -> None:
    """And a traceback inside `send` would have shown the code."""
    assert list(life.sinks) == SINKS
    assert len(life.mail.codes) == len(life.mail.shown) == 3
    for code, shown in zip(life.mail.codes, life.mail.shown, strict=True):
        assert code in shown
        assert "otp = OTP('******')" in shown
    task_id = life.objects[0].id
    silent = {"server's log", "standard output and error, warnings"}
    assert {sink for sink in SINKS if task_id not in "\n".join(life.sinks[sink])} == silent
