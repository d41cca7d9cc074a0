"""Connections: what is copied from a URL or a client, and what an absent server costs."""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from conftest import SECRET_KEY, MakeApp
from flask import Flask
from redis import AuthenticationError, ConnectionPool, Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from flask_taskflow import ConfigError, OutboxStrategy, Task, TaskFlow, TaskNotFound
from flask_taskflow._config import Config
from flask_taskflow._connect import Connector
from flask_taskflow.testing import Outbox

EMAIL = {"email": "ann@example.com"}
UNKNOWN = "a" * 34


def add(taskflow: TaskFlow, queue: str = "q", number: int = 0) -> Task[Any]:
    return taskflow.add_task(queue, allowed_methods=["EMAIL"], recipient={"email": f"{number}@example.com"})


def settings_of(client: Redis) -> dict[str, Any]:
    return dict(client.connection_pool.connection_kwargs)


def with_client(redis: object) -> TaskFlow:
    taskflow = TaskFlow(redis=redis)
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    return taskflow


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


CALLS: dict[str, Callable[[TaskFlow], object]] = {
    "add": add,
    "verify": lambda taskflow: taskflow.verify(UNKNOWN, "EMAIL", "123456"),
    "resend": lambda taskflow: taskflow.resend_otp(UNKNOWN, "EMAIL"),
    "update": lambda taskflow: taskflow.update_recipient(UNKNOWN, EMAIL),
    "get": lambda taskflow: taskflow.get_task(UNKNOWN),
    "cancel": lambda taskflow: taskflow.cancel_task(UNKNOWN),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_refused_connection_fails_fast_without_the_password(
    make_app: MakeApp,
    taskflow: TaskFlow,
    box: Outbox,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[TaskFlow], object],
) -> None:
    caplog.set_level(logging.DEBUG)
    app = make_app(redis_url=f"redis://ann:hunter2@127.0.0.1:{refused_port()}/0", redis_timeout=0.2)

    with app.app_context():
        began = time.monotonic()
        with pytest.raises(RedisConnectionError) as caught:
            call(taskflow)

    assert time.monotonic() - began < 0.4
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert box == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_silent_server_fails_within_twice_the_timeout(
    make_app: MakeApp,
    taskflow: TaskFlow,
    box: Outbox,
    silent_port: int,
    call: Callable[[TaskFlow], object],
) -> None:
    app = make_app(redis_url=f"redis://:hunter2@127.0.0.1:{silent_port}/0", redis_timeout=0.2)

    with app.app_context():
        began = time.monotonic()
        with pytest.raises(RedisTimeoutError) as caught:
            call(taskflow)

    assert 0.15 < time.monotonic() - began < 0.4
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert box == []


def test_wrong_password_is_not_shown(
    make_app: MakeApp, taskflow: TaskFlow, redis: Redis, server: str
) -> None:
    redis.acl_setuser("ann", enabled=True, passwords=["+right-password"], keys=["*"], commands=["+@all"])
    path = server.removeprefix("unix://").split("?")[0]
    app = make_app(redis_url=f"unix://ann:hunter2@{path}")

    try:
        with app.app_context(), pytest.raises(AuthenticationError) as caught:
            taskflow.get_task(UNKNOWN)
    finally:
        redis.acl_deluser("ann")

    assert "invalid" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_call_works_again_once_the_server_is_there(
    taskflow: TaskFlow, redis: Redis, server: str, make_app: MakeApp
) -> None:
    redis.config_set("maxclients", 10_000)
    with make_app().app_context():
        add(taskflow)
        redis.client_kill_filter(_type="normal", skipme=True)

        found: list[object] = []
        for _ in range(2):
            try:
                found.append(taskflow.get_task(UNKNOWN))
            except (RedisError, TaskNotFound) as error:
                found.append(type(error))

    assert found[-1] is TaskNotFound


def test_config_without_a_server_starts_up(redis: Redis) -> None:
    app = Flask("app")
    app.config.update(SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=f"redis://127.0.0.1:{refused_port()}/0")
    taskflow = TaskFlow(app)

    app.register_blueprint(taskflow.blueprint)

    assert app.extensions["taskflow"] is taskflow


def test_url_is_what_connections_use() -> None:
    url = "rediss://ann:hunter2@redis.example.com:6380/3?socket_timeout=7&max_connections=1&timeout=9"
    connector = Connector(Config(redis_url=url, redis_timeout=1.5, redis_max_connections=4), None, "")

    client = connector.client()

    settings = settings_of(client)
    assert connector.database == 3
    assert (settings["host"], settings["port"], settings["db"]) == ("redis.example.com", 6380, 3)
    assert (settings["username"], settings["password"]) == ("ann", "hunter2")
    assert settings["socket_timeout"] == 7
    assert settings["socket_connect_timeout"] == 1.5
    assert client.connection_pool.connection_class.__name__ == "SSLConnection"
    assert client.connection_pool.max_connections == 4
    assert "hunter2" not in repr(connector) + repr(client)


def given_client(server: str, kind: str) -> Redis:
    retries = Retry(ExponentialBackoff(), 10)
    clients = {
        "plain": Redis.from_url(server, db=2),
        "text": Redis.from_url(server, db=2, decode_responses=True),
        "retries": Redis.from_url(
            server, db=2, retry=retries, retry_on_timeout=True, retry_on_error=[RedisConnectionError]
        ),
        "resp3": Redis.from_url(server, db=2, protocol=3),
        "pool": Redis(connection_pool=ConnectionPool.from_url(server, db=2, max_connections=1)),
        "slow": Redis.from_url(server, db=2, socket_timeout=9, client_name="theirs"),
    }
    return clients[kind]


@pytest.mark.parametrize("kind", ["plain", "text", "retries", "resp3", "pool", "slow"])
@pytest.mark.parametrize(
    "wrap", [lambda client: client, lambda client: lambda: client], ids=["client", "function"]
)
def test_given_client_is_an_example_not_a_part(
    make_app: MakeApp, redis: Redis, server: str, kind: str, wrap: Callable[[Redis], object]
) -> None:
    given = given_client(server, kind)
    before = settings_of(given)
    taskflow = with_client(wrap(given))
    app = make_app(taskflow, redis_url="redis://nowhere.invalid/0")

    with closing(given), app.app_context():
        task = add(taskflow)
        again = taskflow.get_task(task.id)

        assert again == task
        assert given.dbsize() > 0
        assert redis.dbsize() == 0
    assert settings_of(given) == before


@pytest.mark.parametrize("kind", ["plain", "text", "retries", "resp3", "pool", "slow"])
def test_given_clients_settings_are_copied_without_retries(redis: Redis, server: str, kind: str) -> None:
    given = given_client(server, kind)
    connector = Connector(Config(), given, "")

    for client in (connector.client(), connector.listener_client("ours")):
        settings = settings_of(client)
        assert client is not given
        assert client.connection_pool is not given.connection_pool
        assert settings["retry"].get_retries() == 0
        assert settings["retry_on_error"] == []
        assert not settings["retry_on_timeout"]
        assert settings["decode_responses"] is False
        assert settings["protocol"] == 2
        assert settings["db"] == connector.database == 2
        assert settings.get("path") == settings_of(given).get("path")
        assert isinstance(client.ping(), bool)
        assert client.get("missing") is None
        client.close()
    if kind == "slow":
        assert settings["socket_timeout"] == 9


def test_function_is_called_at_first_use_once_an_app(make_app: MakeApp, redis: Redis, server: str) -> None:
    made: list[Redis] = []

    def make() -> Redis:
        made.append(Redis.from_url(server))
        return made[-1]

    taskflow = with_client(make)
    app = make_app(taskflow)
    early = len(made)
    with app.app_context():
        add(taskflow)
        add(taskflow)

    assert (early, len(made)) == (0, 1)


@pytest.mark.parametrize(
    "given", ["redis://localhost", 7, object(), lambda: None, lambda: "redis://localhost"]
)
def test_client_that_is_none_is_refused(make_app: MakeApp, given: object) -> None:
    taskflow = with_client(given)

    with (
        make_app(taskflow).app_context(),
        pytest.raises(ConfigError, match=r"needs a redis\.Redis or a function"),
    ):
        add(taskflow)


def test_pool_of_50_serves_200_threads(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    app = make_app()
    start = threading.Barrier(200)
    problems: list[BaseException] = []
    read: list[bool] = []

    def work(number: int) -> None:
        try:
            with app.app_context():
                start.wait(30)
                task = add(taskflow, number=number)
                read.append(taskflow.get_task(task.id) == task)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert problems == []
    assert read == [True] * 200
    assert len(redis.client_list()) <= 50 + 2


def test_pool_that_is_exhausted_waits_no_longer_than_the_timeout(redis: Redis, server: str) -> None:
    config = Config(redis_url=server, redis_max_connections=1, redis_timeout=0.1)

    with closing(Connector(config, None, "").client()) as client:
        taken = client.connection_pool.get_connection()
        began = time.monotonic()
        with pytest.raises(RedisConnectionError, match="No connection available"):
            client.ping()
        waited = time.monotonic() - began
        client.connection_pool.release(taken)

        assert client.ping()
    assert 0.09 < waited < 0.2
