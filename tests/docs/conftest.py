"""What runs the blocks of a page: the modules that they are, and the bank of the start page."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from blinker import ANY, NamedSignal
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.test import TestResponse

from flask_taskflow import Task, signals
from flask_taskflow.testing import Outbox, outbox
from tests.support.docs import block, blocks

Load = Callable[..., Any]
ANN = "ann@example.com"
ORDER = {"user": "ann", "to": "Bob", "amount": 50}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import blocks of a page as one module; the page's files, and ``bank.py``, are there to be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def run(page: str, *shown: str) -> ModuleType:
        files = [one for one in (*blocks("start.md"), *blocks(page)) if one.mark == "file"]
        for one in files:
            (tmp_path / one.name).write_text(one.text)
        module = shown[0].removesuffix(".py")
        if module == shown[0]:
            module = f"shown_{re.sub(r'[^a-z]', '_', module)}"
            (tmp_path / f"{module}.py").write_text("\n".join(block(page, name) for name in shown))
        importlib.invalidate_caches()
        return importlib.import_module(module)

    yield run
    here = [
        name
        for name in set(sys.modules) - before
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", ""))
    ]
    for name in here:
        del sys.modules[name]
    # What the blocks connected would hear of other tests, until it is collected as garbage.
    for signal in (value for value in vars(signals).values() if isinstance(value, NamedSignal)):
        for receiver in list(signal.receivers_for(ANY)):
            if receiver.__module__ in here:
                signal.disconnect(receiver)


class Bank:
    """The bank of the start page, or an app like it.

    :param settings: those that all its apps have.
    """

    def __init__(self, shown: Any, settings: dict[str, Any]) -> None:
        self.create_app = shown.create_app
        self.taskflow = shown.taskflow
        self.settings = settings

    def make(self, **settings: Any) -> Flask:
        app: Flask = self.create_app(**{**self.settings, **settings})
        return app

    @contextmanager
    def app(self, app: Flask | None = None, **settings: Any) -> Iterator[tuple[FlaskClient, Outbox]]:
        """Push the context of an app, a new one with these settings; yield a client of it, and an outbox."""
        app = app or self.make(**settings)
        with app.app_context(), outbox(self.taskflow) as box:
            yield app.test_client(), box

    def add(self, queue: str = "transfers", data: Any = None, **options: Any) -> Task[Any]:
        given = {"allowed_methods": ["EMAIL"], "recipient": {"email": ANN}, **options}
        return self.taskflow.add_task(queue, data, **given)  # type: ignore[no-any-return]

    def confirm(self, box: Outbox, queue: str = "transfers", data: Any = None) -> Task[Any]:
        """Add a task and verify it."""
        task = self.add(queue, data)
        return self.taskflow.verify(task.id, "EMAIL", box.last_code(ANN))  # type: ignore[no-any-return]


@pytest.fixture
def settings(redis: Redis, server: str) -> dict[str, Any]:
    return {"TESTING": True, "TASKFLOW_REDIS_URL": server}


@pytest.fixture
def bank(load: Load, settings: dict[str, Any]) -> Bank:
    return Bank(load("start.md", "bank.py"), {**settings, "TASKFLOW_EAGER": True})


def ask(client: FlaskClient) -> str:
    """Ask for a transfer over HTTP; return its task's id."""
    answer = client.post("/transfers", json=ORDER)
    assert answer.status_code == 202
    return str(answer.get_json()["task"])


def type_code(client: FlaskClient, task_id: str, otp: str, **options: Any) -> TestResponse:
    body = {"method": "EMAIL", "otp": otp}
    path = options.pop("at", "/taskflow")
    return client.post(f"{path}/tasks/{task_id}/verify", json=body, **options)
