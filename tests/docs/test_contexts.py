"""The page on contexts: where each kind of an app's code runs is looked at, and compared with its table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
from blinker import NamedSignal
from flask import Flask, g, has_request_context
from redis import Redis
from sqlalchemy import select

from flask_taskflow import BaseStrategy, Task, TaskFlow, signals
from flask_taskflow.errors import WrongCode
from flask_taskflow.testing import outbox
from tests.docs.conftest import ANN, Load
from tests.support.docs import rows
from tests.support.stage import Stage
from tests.support.tasks import refused

WITHIN = 60.0


class Places:
    """Where each kind of code ran: in whose thread, in which request, in which app context."""

    def __init__(self) -> None:
        self._caller = threading.get_ident()
        self._seen: dict[str, tuple[str, str, str]] = {}
        self._news = threading.Condition()

    def note(self, kind: str) -> None:
        mine = threading.get_ident() == self._caller
        thread = "the caller's" if mine else "the extension's"
        request = "the caller's" if has_request_context() else "none"
        context = "its own" if "seen" not in g else "the caller's" if g.seen == "caller" else g.seen
        g.setdefault("seen", f"that of {kind.partition(',')[0]}")
        with self._news:
            self._seen[kind] = (thread, request, context)
            self._news.notify_all()

    def of(self, kind: str) -> tuple[str, str, str]:
        """Wait until a kind of code ran."""
        with self._news:
            assert self._news.wait_for(lambda: kind in self._seen, WITHIN), f"{kind} did not run"
            return self._seen[kind]


class Strategy(BaseStrategy):
    address = "email"

    def __init__(self, places: Places, kind: str) -> None:
        self.places, self.kind = places, kind

    def generate(self, task: Task[Any]) -> str:
        self.places.note(f"generate, {self.kind}")
        return "246810"

    def send(self, task: Task[Any], otp: str) -> None:
        self.places.note(f"send, {self.kind}")


class Device(BaseStrategy):
    address = None

    def __init__(self, places: Places) -> None:
        self.places = places

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        self.places.note("check")
        return otp


@pytest.fixture
def places(server: str, redis: Redis) -> Iterator[Places]:
    """Where the code of an app ran that did everything, inside a request and out of it."""
    with ExitStack() as stack:
        places = Places()
        for kind in ("inline", "background"):
            live(places, kind, Stage(TaskFlow(), server, redis, stack))
        yield places


def live(places: Places, kind: str, stage: Stage) -> None:
    stage.taskflow.register_strategy("CODE")(Strategy(places, kind))
    stage.taskflow.register_strategy("DEVICE")(Device(places))
    app = stage.app(send=kind, key_prefix=kind)

    @stage.taskflow.on_task_verified("q", max_attempts=2, backoff_time=0.01)
    def callback(task: Task[Any]) -> None:
        places.note("callback")
        if task.data:
            raise ValueError

    for name in [name for name in vars(signals) if isinstance(getattr(signals, name), NamedSignal)]:
        getattr(signals, name).connect_via(app)(
            listen(places, f"{name}, {kind}" if name == "otp_sent" else name)
        )
    with app.test_request_context():
        stage.taskflow.start()
        g.seen = "caller"
        for data in (False, True):
            task = stage.add("q", data, allowed_methods=["CODE", "DEVICE"])
            places.of(f"otp_sent, {kind} {task.id}")
            refused(WrongCode, stage.taskflow.verify, task.id, "CODE", "000000")
            stage.taskflow.verify(task.id, "CODE" if data else "DEVICE", "246810")
        task = stage.add(allowed_methods=["CODE"])
        stage.taskflow.update_recipient(task.id, {"email": "bob@example.com"})
        stage.taskflow.cancel_task(task.id)
        stage.add(allowed_methods=["CODE"], ttl=600, remind=[599.9])
        places.of("task_expiring")
        places.of("callback_dead")
        places.of("callback_succeeded")


def listen(places: Places, name: str) -> Callable[..., None]:
    def receive(app: Flask, **told: Any) -> None:
        places.note(name)
        if "task" in told:
            places.note(f"{name} {told['task'].id}")

    return receive


def test_code_runs_where_the_page_says(places: Places) -> None:
    table = {row[0].replace("`", ""): tuple(row[1:4]) for row in rows("contexts.md", "## Where it runs")}
    for kinds, said in table.items():
        for kind in kinds.split("; "):
            assert (kind, places.of(kind)) == (kind, said)


@pytest.mark.slow
def test_sessions_are_whose_the_page_says(load: Load, settings: dict[str, Any]) -> None:
    shown = load("contexts.md", "sessions")
    app = shown.create_app(**settings, SECRET_KEY="for this test only: replace it", TASKFLOW_EAGER=True)

    def notes() -> list[str]:
        with app.app_context():
            return list(shown.db.session.scalars(select(shown.Note.text)))

    with app.app_context(), outbox(shown.taskflow) as box:
        shown.Base.metadata.create_all(shown.db.engine)
        given = {"allowed_methods": ["EMAIL"], "recipient": {"email": ANN}}
        shown.taskflow.add_task("orders", **given)
        shown.db.session.rollback()
        assert notes() == []
        task = shown.taskflow.add_task("orders", **given)
        shown.db.session.commit()
        assert notes() == ["added"]
        shown.db.session.add(shown.Note(text="of the view"))
        shown.db.session.rollback()
        shown.taskflow.verify(task.id, "EMAIL", box.last_code(ANN))
        shown.db.session.add(shown.Note(text="of the view"))
        assert notes() == ["added", "shipped"]
    assert notes() == ["added", "shipped"]
    with app.app_context():
        shown.db.engine.dispose()
