"""A primary behind sentinels, its fail-over, and what the library asks of a given client."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MakeApp
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import Sentinel
from topologies import Load, Watched, free_ports, sentinel, wait_for, walk_through

from flask_taskflow import ConfigError, OutboxStrategy, TaskFlow, task_verified
from flask_taskflow._config import Config
from flask_taskflow._connect import Connector
from flask_taskflow.testing import Outbox, outbox

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running() -> Iterator[Watched]:
    with sentinel() as found:
        yield found


@pytest.fixture
def servers(running: Watched) -> Watched:
    """The servers, all alive and empty."""
    running.heal()
    running.primary().ask("FLUSHALL")
    return running


@pytest.fixture
def client(servers: Watched) -> Any:
    return Connector(Config(redis_url=servers.url, redis_timeout=0.3), None, "").client()


def asked(servers: Watched) -> Sentinel:
    hosts = [("127.0.0.1", node.port) for node in servers.sentinels]
    return Sentinel(hosts, socket_timeout=2, decode_responses=True)


GIVEN: dict[str, Callable[[Watched], object]] = {
    "url": lambda servers: None,
    "client": lambda servers: asked(servers).master_for(servers.SERVICE, db=3),
    "function": lambda servers: lambda: asked(servers).master_for(servers.SERVICE),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_whole_flow_works(make_app: MakeApp, servers: Watched, given: Callable[[Watched], object]) -> None:
    taskflow = TaskFlow(redis=given(servers))
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    app = make_app(taskflow, redis_url=servers.url + "/3", poll=0.2)

    with outbox(taskflow) as box:
        happened = walk_through(app, taskflow, box)

    assert happened == [
        *("a@example.com", "a@example.com", "b@example.com"),
        *("heard b@example.com", "pay 3", "pay 3"),
    ]


def test_url_and_client_use_their_database(servers: Watched) -> None:
    for given, url in (
        (asked(servers).master_for(servers.SERVICE, db=3), servers.url),
        (None, f"{servers.url}/3"),
    ):
        connector = Connector(Config(redis_url=url), given, "")

        connector.client().set("here", "1")

        assert connector.database == 3
        assert servers.primary().client.info("keyspace")["db3"]["keys"] == 1


def test_client_of_a_replica_is_refused(make_app: MakeApp, servers: Watched) -> None:
    taskflow = TaskFlow(redis=asked(servers).slave_for(servers.SERVICE))

    with make_app(taskflow).app_context(), pytest.raises(ConfigError, match="master_for"):
        taskflow.get_task("a" * 34)


def test_lost_reply_has_one_effect(client: Any, servers: Watched) -> None:
    client.get("counter")
    node = servers.primary()

    with node.frozen(0.45), pytest.raises(RedisTimeoutError):
        client.incr("counter")

    assert wait_for(lambda: client.get("counter"), "the effect") == b"1"
    assert client.get("counter") == b"1"


def test_pool_of_20_connections_serves_200_threads(servers: Watched) -> None:
    config = Config(redis_url=servers.url, redis_max_connections=20, redis_timeout=20)
    client = Connector(config, None, "").client()
    start = threading.Barrier(200)

    def work() -> None:
        start.wait(30)
        for _ in range(3):
            client.incr("counter")

    threads = [threading.Thread(target=work) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert client.get("counter") == b"600"
    assert client.connection_pool.max_connections == 20
    names = [one for one in servers.primary().client.client_list(_type="normal") if one["lib-name"]]
    assert len(names) <= 20 + 5


def test_first_sentinel_away_costs_one_look_at_the_next(servers: Watched) -> None:
    servers.sentinels[0].kill()
    client = Connector(Config(redis_url=servers.url), None, "").client()

    began = time.monotonic()
    answer = client.ping()

    assert answer is True
    assert time.monotonic() - began < 1


def test_sentinels_that_are_away_fail_fast_without_the_password(
    make_app: MakeApp, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = free_ports(2)
    url = f"redis+sentinel://ann:hunter2@127.0.0.1:{first},127.0.0.1:{second}/name?sentinel_password=hunter3"
    app = make_app(redis_url=url, redis_timeout=0.2)

    with app.app_context():
        began = time.monotonic()
        with pytest.raises(RedisConnectionError) as caught:
            taskflow.get_task("a" * 34)
        taken = time.monotonic() - began

    assert taken < 0.4
    assert "hunter" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_fail_over_loses_no_delivery_that_was_replicated(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Watched
) -> None:
    app = make_app(redis_url=servers.url, poll=0.3, lease=2, redis_timeout=1)
    with app.app_context():
        load = Load(taskflow, box, 30)
        taskflow.start()
        before = servers.primary()
        with task_verified.connected_to(load.hear, sender=app):
            verified = load.verify(10)
            # Replication is asynchronous: what no replica has yet is lost with the primary.
            wait_for(lambda: before.client.wait(2, 1000) == 2, "replication")
            before.kill()
            verified += load.verify(19)
            wait_for(lambda: set(load.done) == set(verified), "every callback")
            wait_for(servers.primary().listeners, "the listener at the new primary")
            (last,) = load.verify(1)
            wait_for(lambda: last in load.heard, "the bell after the fail-over")
            wait_for(lambda: last in load.done, "its callback")
        taskflow.stop(2)

    assert servers.primary() is not before
    assert load.errors > 0
