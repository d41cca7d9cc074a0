"""One real server a session, emptied before each test; apps that use it; no thread left behind."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import Method, OutboxStrategy, TaskFlow
from flask_taskflow.testing import Outbox, outbox, redis_server

SECRET_KEY = "a secret key of the test suite, long enough"

MakeApp = Callable[..., Flask]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    binary = os.environ.get("TASKFLOW_TEST_SERVER")
    with redis_server(binary=shutil.which(binary) if binary else None) as url:
        yield url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    """A client of the test's own, on the server that is empty now."""
    client = Redis.from_url(server)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def taskflow() -> TaskFlow:
    extension = TaskFlow()
    for method in (Method.EMAIL, Method.SMS):
        extension.register_strategy(method)(OutboxStrategy())
    return extension


@pytest.fixture
def make_app(redis: Redis, server: str, taskflow: TaskFlow) -> Iterator[MakeApp]:
    """Make an app; keyword arguments are ``TASKFLOW_`` settings, in capitals Flask's own."""
    made: list[tuple[TaskFlow, Flask]] = []

    def make(extension: TaskFlow = taskflow, **settings: Any) -> Flask:
        app = Flask("app")
        app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=server)
        for name, value in settings.items():
            app.config[name if name.isupper() else f"TASKFLOW_{name.upper()}"] = value
        extension.init_app(app)
        made.append((extension, app))
        return app

    yield make

    # A collector that meets sockets in a circle of apps and clients warns of them, at any later time.
    for extension, app in made:
        service = extension._states[app].service
        if service is not None:
            for client in (service.client, service.runtime._client):
                client.close()
                if isinstance(client, Redis):
                    client.connection_pool.disconnect()


def watch(redis: Redis, call: Callable[[], object]) -> tuple[list[str], list[str]]:
    """Run a call under MONITOR; return the commands that came in, and those that scripts ran."""
    sent: list[str] = []
    scripted: list[str] = []
    with redis.monitor() as monitor:
        redis.echo("watch-begins")
        call()
        redis.echo("watch-ends")
        commands = iter(monitor.next_command, None)
        while "watch-begins" not in next(commands)["command"]:
            continue
        for seen in commands:
            if "watch-ends" in seen["command"].split():
                return sent, scripted
            (scripted if seen["client_type"] == "lua" else sent).append(seen["command"])
    raise AssertionError("MONITOR ended")


@pytest.fixture
def app(make_app: MakeApp) -> Iterator[Flask]:
    """An app with ``TASKFLOW_EAGER``, its context pushed."""
    app = make_app(eager=True)
    with app.app_context():
        yield app


@pytest.fixture
def box(taskflow: TaskFlow) -> Iterator[Outbox]:
    with outbox(taskflow) as messages:
        yield messages


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("taskflow-")]
    for thread in left:
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()]
