"""A primary behind sentinels, and what it has in common with a cluster: all goes well, or one dies."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from flask_taskflow import ConfigError, OutboxStrategy, TaskFlow, task_verified
from flask_taskflow._config.config import Config
from flask_taskflow._redis.connector import Connector
from flask_taskflow.testing import outbox
from tests.support import inside
from tests.support.stage import Stage
from tests.support.tasks import at_once
from tests.support.topologies import Cluster, Load, Watched, wait_for, walk_through

pytestmark = pytest.mark.slow

Servers = Cluster | Watched


@pytest.mark.parametrize("kind", ["url", "client", "function"])
def test_whole_flow_works(stage: Stage, servers: Servers, kind: str) -> None:
    stage.taskflow = TaskFlow(redis=servers.given(kind))
    stage.taskflow.register_strategy("EMAIL")(OutboxStrategy())
    database = "/3" if isinstance(servers, Watched) else ""
    stage.app(stage.taskflow, redis_url=servers.url + database, poll=0.2)

    with outbox(stage.taskflow) as stage.box:
        happened = walk_through(stage)

    assert happened == [
        *("a@example.com", "a@example.com", "b@example.com"),
        *("heard b@example.com", "pay 3", "pay 3"),
    ]


def test_lost_reply_has_one_effect(servers: Servers) -> None:
    client = Connector(Config(redis_url=servers.url, redis_timeout=1), None, "").client()
    client.get("counter")

    # A replica that takes over meanwhile would not know of the effect.
    with servers.patient():
        with servers.home("counter").frozen(4), pytest.raises(RedisTimeoutError):
            client.incr("counter")

        assert wait_for(lambda: client.get("counter"), "the effect") == b"1"
        assert client.get("counter") == b"1"


def test_pool_of_20_connections_a_node_serves_200_threads(stage: Stage, servers: Servers) -> None:
    app = stage.app(redis_url=servers.url, redis_max_connections=20, redis_timeout=60)

    def add_and_read() -> bool:
        task = stage.add(f"queue-{len(stage.box) % 8}")
        return stage.taskflow.get_task(task.id) == task

    read = at_once(app, [add_and_read] * 200)

    assert read == [True] * 200
    for node in servers.nodes:
        names = [one for one in node.client.client_list(_type="normal") if one["lib-name"]]
        assert len(names) <= 20 + 5


@pytest.mark.promise("F22")
def test_fail_over_of_a_primary_loses_no_delivery_that_was_replicated(stage: Stage, servers: Servers) -> None:
    app = stage.app(redis_url=servers.url, poll=0.3, lease=2, redis_timeout=1)
    load = Load(stage, 60)
    stage.taskflow.start()
    key = inside.key_of("q", "work", "meta")
    before = servers.home(key)

    with task_verified.connected_to(load.hear, sender=app):
        verified = load.verify(10)
        # Replication is asynchronous: what no replica has yet is lost with the primary.
        wait_for(lambda: before.client.wait(servers.replicas, 1000) == servers.replicas, "replication")
        before.kill()
        verified += load.verify(19)
        wait_for(lambda: set(load.done) == set(verified), "every callback")
        # Each sentinel hears of the fail-over in its own time.
        wait_for(lambda: servers.home(key) is not before, "the new primary is known")
        wait_for(servers.listened, "a listener")
        # Who gets another role cuts its clients: what is verified before they are back is heard by nobody.
        last = ""
        while last not in load.heard:
            (last,) = load.verify(1)
            verified.append(last)
            with suppress(AssertionError):
                wait_for(partial(load.heard.__contains__, last), "the bell after the fail-over", within=2)
        wait_for(lambda: last in load.done, "its callback")

    assert set(load.done) == set(verified)
    assert load.errors > 0


# What only sentinels have.


@pytest.mark.parametrize(("kind", "database"), [("client", ""), ("url", "/3")])
def test_url_and_client_use_their_database(watched: Watched, kind: str, database: str) -> None:
    connector = Connector(Config(redis_url=watched.url + database), watched.given(kind), "")

    connector.client().set("here", "1")

    assert connector.database == 3
    assert watched.primary().client.info("keyspace")["db3"]["keys"] == 1


def test_client_of_a_replica_is_refused(stage: Stage, watched: Watched) -> None:
    taskflow = TaskFlow(redis=watched.asked().slave_for(watched.SERVICE))

    with stage.make_app(taskflow).app_context(), pytest.raises(ConfigError, match="master_for"):
        taskflow.get_task("a" * 34)


def test_first_sentinel_away_costs_one_look_at_the_next(watched: Watched) -> None:
    watched.sentinels[0].kill()
    client = Connector(Config(redis_url=watched.url, redis_timeout=20), None, "").client()

    began = time.monotonic()
    answer = client.ping()

    assert answer is True
    # A look that waits for its time to be over takes twenty seconds.
    assert time.monotonic() - began < 20
