"""Redis Cluster: slots that move, nodes that die; ``test_topologies.py`` has what sentinels share."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from typing import Any

import pytest
from redis import RedisError
from redis.crc import key_slot

from flask_taskflow import SendLimitReached, Task, WrongCode, task_verified
from flask_taskflow._config.config import Config
from flask_taskflow._redis.cluster import ClusterClient
from flask_taskflow._redis.connector import Connector
from tests.support import inside
from tests.support.docs import block
from tests.support.stage import Stage
from tests.support.tasks import other
from tests.support.topologies import Cluster, Load, Node, free_ports, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def client(clustered: Cluster) -> Any:
    return Connector(Config(redis_url=clustered.url, redis_timeout=1), None, "").client()


@pytest.fixture
def task(stage: Stage, clustered: Cluster) -> Task[Any]:
    """A pending task of an app that uses the cluster."""
    stage.app(redis_url=clustered.url)
    return stage.add()


def home(servers: Cluster, queue: str = "q") -> Node:
    """Return the node that has a queue."""
    return servers.home(inside.key_of(queue, "work", "meta"))


def test_queues_spread_over_the_nodes_and_each_has_one_slot(stage: Stage, clustered: Cluster) -> None:
    queues = [f"queue-{number}" for number in range(12)]
    done = [stage.work(queue=name) for name in queues]
    for name in queues:
        stage.work(ValueError, queue=name, name="fail")
    stage.app(redis_url=clustered.url, eager=True)

    for name in queues:
        stage.verified(name)

    slots = {key_slot(inside.key_of(name, "work", "meta").encode()) for name in queues}
    keys = [[key for key in node.client.scan_iter() if b"{" in key] for node in clustered.primaries()]
    assert [len(work.tasks) for work in done] == [1] * 12
    assert inside.service().operations.queues() == sorted(queues)
    assert all(keys)
    assert {key_slot(key) for found in keys for key in found} == slots
    assert len(slots) == len(queues)


def test_owner_has_a_budget_in_each_queue(stage: Stage, clustered: Cluster) -> None:
    """No step reaches the keys of two slots, so wrong codes cannot count over all queues."""
    stage.app(redis_url=clustered.url, recipient_max_failures=3)

    def fail(queue: str) -> None:
        task = stage.add(queue, owner="user:17")
        with pytest.raises(WrongCode):
            stage.taskflow.verify(task.id, "EMAIL", other(stage.box[-1].otp))

    for queue in ("p", "q"):
        for _ in range(3):
            fail(queue)
        with pytest.raises(SendLimitReached):
            fail(queue)

    assert stage.taskflow.unblock("user:17") == 2
    fail("p")


def test_warm_step_is_one_evalsha(stage: Stage, clustered: Cluster) -> None:
    stage.app(redis_url=clustered.url)
    stage.verified()
    for node in clustered.nodes:
        node.client.config_resetstat()

    stage.verified()

    calls: Counter[str] = Counter()
    for node in clustered.nodes:
        for name, stats in node.client.info("commandstats").items():
            calls[name.removeprefix("cmdstat_").split("|")[0]] += stats["calls"]
    assert calls["evalsha"] == 2
    assert calls.keys() & {"cluster", "script", "eval", "command"} == set()


def test_forgotten_scripts_are_brought_again_though_a_primary_is_away(
    stage: Stage, clustered: Cluster, task: Task[Any]
) -> None:
    for node in clustered.nodes:
        node.client.script_flush()
    other = next(node for node in clustered.primaries() if node is not home(clustered))
    other.process.send_signal(signal.SIGSTOP)
    try:
        verified = stage.verify(task)
    finally:
        other.process.send_signal(signal.SIGCONT)

    assert verified.id == task.id


def test_moved_slots_are_followed_without_an_error(stage: Stage, clustered: Cluster, task: Task[Any]) -> None:
    before = home(clustered)
    after = clustered.replica_of(before)
    after.ask("CLUSTER", "FAILOVER")
    wait_for(lambda: home(clustered) is after, "the hand-over")
    wait_for(lambda: before.client.info("replication")["role"] == "slave", "the old one knows")

    verified = stage.verify(task)

    assert verified.id == task.id
    assert int(after.client.info("commandstats")["cmdstat_eval"]["calls"]) >= 1


def test_slot_on_its_way_to_a_new_node_is_found_there(client: Any, clustered: Cluster) -> None:
    client.get("key")
    slot, before = key_slot(b"key"), clustered.home("key")

    with clustered.newcomer() as new:
        new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", before.client.cluster("MYID"))
        before.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new.client.cluster("MYID"))
        try:
            answer = client.eval("return redis.call('INCR', KEYS[1])", 1, "key")
        finally:
            before.ask("CLUSTER", "SETSLOT", slot, "STABLE")

    assert answer == 1
    assert client.get("key") is None


def test_rule_of_the_docs_suffices(stage: Stage, clustered: Cluster) -> None:
    rule, more = block("redis.md", "acl").split(), block("redis.md", "acl in a cluster").split()
    work, ear = stage.work(), stage.hear(task_verified)
    for node in clustered.nodes:
        node.ask("ACL", "SETUSER", *rule[1:], *more)
        node.ask("ACL", "LOG", "RESET")

    stage.start(redis_url=clustered.url.replace("//", "//taskflow:change-me@"))
    task = stage.verified()
    assert work.begun.acquire(timeout=60)
    stage.taskflow.stop(5)

    assert ear.tasks() == [task.id]
    refused = {entry["object"] for node in clustered.nodes for entry in node.client.acl_log()}
    assert refused <= {"client|setinfo"}


def test_lease_bears_no_name_because_no_node_sees_all_subscribers(stage: Stage, clustered: Cluster) -> None:
    end = threading.Event()
    work = stage.work(lambda task: end.wait(60))
    stage.start(redis_url=clustered.url)
    task = stage.verified()
    assert work.begun.acquire(timeout=60)
    placed = inside.service().operations.find("q", "work", task.id)
    end.set()

    assert placed is not None
    assert (placed.state, placed.owner) == ("running", "-")


def test_forked_child_looks_the_cluster_up_for_itself(client: Any) -> None:
    client.set("key", "value")
    # What another thread of the parent holds while it forks stays locked in the child for ever.
    held = client._locks[os.getpid()]

    with held:
        child = os.fork()
        if child == 0:
            os._exit(0 if client.get("key") == b"value" else 1)
        _, status = os.waitpid(child, 0)

    assert status == 0
    assert client.get("key") == b"value"


def test_nodes_that_all_went_are_sought_at_the_first_addresses_again(clustered: Cluster) -> None:
    client = ClusterClient([("127.0.0.1", clustered.nodes[0].port)], 2.0, socket_timeout=1.0)
    client.get("key")
    lost = client.nodes_manager
    nobody = free_ports(1)[0]
    for node in client.get_nodes():
        # Where a platform gave every node another address, none of the known ones answers.
        node.redis_connection.connection_pool.connection_kwargs["port"] = nobody
        node.redis_connection.connection_pool.reset()

    with pytest.raises(RedisError):
        client.get("key")

    assert client.get("key") is None
    assert client.nodes_manager is not lost


@pytest.mark.promise("F22")
def test_listener_whose_node_died_listens_at_another(
    stage: Stage, clustered: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app = stage.app(redis_url=clustered.url)
    load = Load(stage, 1)
    stage.taskflow.start()
    (deaf,) = clustered.listened()

    deaf.kill()

    # Sooner than its next ping, ten seconds apart, would tell it.
    (other,) = wait_for(clustered.listened, "the listener is back")
    with task_verified.connected_to(load.hear, sender=app):
        verified = load.verify(1)
        wait_for(lambda: load.heard == verified, "the bell")
    assert other is not deaf
    assert len([record for record in caplog.records if record.name.endswith(".listener")]) <= 2
