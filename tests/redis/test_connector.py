"""Connections: what is copied from a URL or a client, and what an absent server costs."""

from __future__ import annotations

import logging
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from flask import Flask
from redis import AuthenticationError, ConnectionPool, Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from flask_taskflow import ConfigError, OutboxStrategy, TaskFlow, TaskNotFound
from flask_taskflow._config.config import Config
from flask_taskflow._redis.connector import Connector
from tests.support.stage import SECRET_KEY, Stage
from tests.support.tasks import at_once, in_context

UNKNOWN = "a" * 34


def settings_of(client: Redis) -> dict[str, Any]:
    return dict(client.connection_pool.connection_kwargs)


def with_client(redis: object) -> TaskFlow:
    taskflow = TaskFlow(redis=redis)
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    return taskflow


def add(taskflow: TaskFlow) -> Any:
    return taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


CALLS: dict[str, Callable[[TaskFlow], object]] = {
    "add": add,
    "verify": lambda taskflow: taskflow.verify(UNKNOWN, "EMAIL", "123456"),
    "resend": lambda taskflow: taskflow.resend_otp(UNKNOWN, "EMAIL"),
    "update": lambda taskflow: taskflow.update_recipient(UNKNOWN, {"email": "ann@example.com"}),
    "get": lambda taskflow: taskflow.get_task(UNKNOWN),
    "cancel": lambda taskflow: taskflow.cancel_task(UNKNOWN),
}


def failed_call(stage: Stage, url: str, call: str, log: pytest.LogCaptureFixture) -> tuple[RedisError, float]:
    """Make a call in vain; return its error, which tells no password, and the seconds that it took."""
    log.set_level(logging.DEBUG)
    with stage.make_app(redis_url=url, redis_timeout=0.2).app_context():
        began = time.monotonic()
        with pytest.raises(RedisError) as caught:
            CALLS[call](stage.taskflow)
        taken = time.monotonic() - began
    assert "hunter" not in "".join(traceback.format_exception(caught.value)) + log.text
    assert stage.box == []
    return caught.value, taken


@pytest.mark.parametrize("call", CALLS)
def test_refused_connection_fails_fast_without_the_password(
    stage: Stage, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    error, taken = failed_call(stage, f"redis://ann:hunter2@127.0.0.1:{refused_port()}/0", call, caplog)

    assert isinstance(error, RedisConnectionError)
    assert taken < 30


@pytest.mark.parametrize(
    "form",
    [
        "redis+cluster://ann:hunter2@127.0.0.1:{}",
        "redis+sentinel://ann:hunter2@127.0.0.1:{},127.0.0.1:1/name?sentinel_password=hunter3",
    ],
    ids=["cluster", "sentinels"],
)
def test_servers_that_are_all_away_fail_fast_without_the_password(
    stage: Stage, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    error, taken = failed_call(stage, form.format(refused_port()), "get", caplog)

    assert isinstance(error, RedisConnectionError)
    assert taken < 30


@pytest.mark.parametrize("call", CALLS)
def test_silent_server_is_waited_for_once(stage: Stage, caplog: pytest.LogCaptureFixture, call: str) -> None:
    # It takes connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://:hunter2@127.0.0.1:{server.getsockname()[1]}/0"
        error, taken = failed_call(stage, url, call, caplog)
        server.setblocking(False)
        server.accept()[0].close()
        # There was no second try.
        with pytest.raises(BlockingIOError):
            server.accept()

    assert isinstance(error, RedisTimeoutError)
    assert 0.15 < taken < 30


def test_wrong_password_is_not_shown(stage: Stage) -> None:
    stage.redis.acl_setuser(
        "ann", enabled=True, passwords=["+right-password"], keys=["*"], commands=["+@all"]
    )
    path = stage.server.removeprefix("unix://").split("?")[0]
    stage.app(redis_url=f"unix://ann:hunter2@{path}")

    try:
        with pytest.raises(AuthenticationError) as caught:
            stage.taskflow.get_task(UNKNOWN)
    finally:
        stage.redis.acl_deluser("ann")

    assert "invalid" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_call_works_again_once_the_server_is_there(stage: Stage) -> None:
    app = stage.app()
    stage.add()
    stage.redis.client_kill_filter(_type="normal", skipme=True)

    found = [in_context(app, lambda: stage.taskflow.get_task(UNKNOWN)) for _ in range(2)]

    assert isinstance(found[0], RedisError | TaskNotFound)
    assert isinstance(found[1], TaskNotFound)


def test_config_without_a_server_starts_up() -> None:
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


GIVEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "text": {"decode_responses": True},
    "retries": {
        "retry": Retry(ExponentialBackoff(), 10),
        "retry_on_timeout": True,
        "retry_on_error": [RedisConnectionError],
    },
    "resp3": {"protocol": 3},
    "pool": {"max_connections": 1},
    "slow": {"socket_timeout": 9, "client_name": "theirs"},
}


def given_client(server: str, kind: str) -> Redis:
    """Return a client as a user might give it, of database 2."""
    if kind == "pool":
        return Redis(connection_pool=ConnectionPool.from_url(server, db=2, **GIVEN[kind]))
    return Redis.from_url(server, db=2, **GIVEN[kind])


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(
    "wrap", [lambda client: client, lambda client: lambda: client], ids=["client", "function"]
)
def test_given_client_is_an_example_not_a_part(
    stage: Stage, kind: str, wrap: Callable[[Redis], object]
) -> None:
    given = given_client(stage.server, kind)
    before = settings_of(given)
    taskflow = with_client(wrap(given))
    stage.app(taskflow, redis_url="redis://nowhere.invalid/0")

    with closing(given):
        task = add(taskflow)
        assert taskflow.get_task(task.id) == task
        assert given.dbsize() > 0
        assert stage.redis.dbsize() == 0
    assert settings_of(given) == before


@pytest.mark.parametrize("kind", GIVEN)
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


def test_function_is_called_at_first_use_once_an_app(stage: Stage) -> None:
    made: list[Redis] = []

    def make() -> Redis:
        made.append(Redis.from_url(stage.server))
        return made[-1]

    taskflow = with_client(make)
    app = stage.make_app(taskflow)
    early = len(made)
    with app.app_context():
        add(taskflow), add(taskflow)

    assert (early, len(made)) == (0, 1)


def test_function_that_raises_leaves_pages_alone_that_need_no_redis(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> Redis:
        raise RedisConnectionError("the store of secrets is away")

    app = stage.make_app(with_client(away), TESTING=False)
    app.get("/")(lambda: "about us")

    pages = [app.test_client().get("/").status_code for _ in range(2)]

    assert pages == [200, 200]
    assert "The threads could not be started" in caplog.text


@pytest.mark.parametrize(
    "given", ["redis://localhost", 7, object(), lambda: None, lambda: "redis://localhost"]
)
def test_client_that_is_none_is_refused(stage: Stage, given: object) -> None:
    taskflow = with_client(given)

    with (
        stage.make_app(taskflow).app_context(),
        pytest.raises(ConfigError, match=r"needs a redis\.Redis or a function"),
    ):
        add(taskflow)


def test_pool_of_50_serves_200_threads(stage: Stage) -> None:
    def add_and_read() -> bool:
        task = stage.add()
        return stage.taskflow.get_task(task.id) == task

    read = at_once(stage.app(redis_timeout=60), [add_and_read] * 200)

    assert read == [True] * 200
    assert len(stage.redis.client_list()) <= 50 + 2


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
    assert 0.09 < waited < 30
