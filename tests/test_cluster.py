"""Redis Cluster: three primaries, three replicas, and what happens when one of them dies."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MakeApp
from docs_support import block
from redis import RedisCluster, RedisError
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from topologies import Cluster, Load, cluster, free_ports, wait_for, walk_through

from flask_taskflow import OutboxStrategy, Task, TaskFlow, task_verified
from flask_taskflow._cluster import ClusterClient
from flask_taskflow._config import Config
from flask_taskflow._connect import Connector
from flask_taskflow.testing import Outbox, outbox

pytestmark = pytest.mark.slow

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


@pytest.fixture
def servers(running: Cluster) -> Cluster:
    """The cluster, whole and empty."""
    running.heal()
    for node in running.primaries():
        node.ask("FLUSHALL")
    return running


@pytest.fixture
def client(servers: Cluster) -> Any:
    return Connector(Config(redis_url=servers.url, redis_timeout=0.3), None, "").client()


def add(taskflow: TaskFlow, queue: str = "q", number: int = 0) -> Task[Any]:
    return taskflow.add_task(queue, allowed_methods=["EMAIL"], recipient={"email": f"{number}@example.com"})


def slot_of(taskflow: TaskFlow, queue: str) -> int:
    keys = taskflow._service().keys
    return int(key_slot(keys.of(keys.tag(queue), "pending")[0].encode()))


GIVEN: dict[str, Callable[[Cluster], object]] = {
    "url": lambda servers: None,
    "client": lambda servers: RedisCluster(
        "127.0.0.1", servers.nodes[0].port, decode_responses=True, protocol=3
    ),
    "function": lambda servers: lambda: RedisCluster("127.0.0.1", servers.nodes[5].port),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_whole_flow_works(make_app: MakeApp, servers: Cluster, given: Callable[[Cluster], object]) -> None:
    taskflow = TaskFlow(redis=given(servers))
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    app = make_app(taskflow, redis_url=servers.url, poll=0.2)

    with outbox(taskflow) as box:
        happened = walk_through(app, taskflow, box)

    assert happened == [
        *("a@example.com", "a@example.com", "b@example.com"),
        *("heard b@example.com", "pay 3", "pay 3"),
    ]


def test_queues_spread_over_the_nodes_and_each_has_one_slot(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    queues = [f"queue-{number}" for number in range(12)]
    done: list[str] = []
    for name in queues:
        taskflow.on_task_verified(name, name="work")(lambda task: done.append(task.queue))
        taskflow.on_task_verified(name, name="fail")(lambda task: 1 / 0)
    app = make_app(redis_url=servers.url, eager=True, recipient_max_sends=100)

    with app.app_context():
        for number, name in enumerate(queues):
            task = add(taskflow, name, number)
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
        listed = taskflow._service().operations.queues()
        slots = {slot_of(taskflow, name) for name in queues}

    keys = [[key for key in node.client.scan_iter() if b"{" in key] for node in servers.primaries()]
    assert done == queues
    assert listed == sorted(queues)
    assert all(keys)
    assert {key_slot(key) for found in keys for key in found} == slots
    assert len(slots) == len(queues)


def test_warm_step_is_one_evalsha(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    with make_app(redis_url=servers.url).app_context():
        for number in range(2):
            for node in servers.nodes:
                node.client.config_resetstat()
            task = add(taskflow, number=number)
            taskflow.verify(task.id, "EMAIL", box[-1].otp)

    calls: dict[str, int] = {}
    for node in servers.nodes:
        for name, stats in node.client.info("commandstats").items():
            calls[name] = calls.get(name, 0) + stats["calls"]
    assert calls["cmdstat_evalsha"] == 2
    assert [name for name in calls if name.split("|")[0] in ("cmdstat_cluster", "cmdstat_script")] == []
    assert "cmdstat_eval" not in calls
    assert "cmdstat_command" not in calls


def test_forgotten_scripts_are_brought_again_though_a_primary_is_away(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    with make_app(redis_url=servers.url).app_context():
        task = add(taskflow)
        home = servers.primary_of(slot_of(taskflow, "q"))
        for node in servers.nodes:
            node.client.script_flush()
        other = next(node for node in servers.primaries() if node is not home)
        other.process.send_signal(signal.SIGSTOP)
        try:
            verified = taskflow.verify(task.id, "EMAIL", box[-1].otp)
        finally:
            other.process.send_signal(signal.SIGCONT)

    assert verified.id == task.id


def test_moved_slots_are_followed_without_an_error(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    with make_app(redis_url=servers.url).app_context():
        task = add(taskflow)
        before = servers.primary_of(slot_of(taskflow, "q"))
        after = servers.replica_of(before)
        after.ask("CLUSTER", "FAILOVER")
        wait_for(lambda: servers.primary_of(slot_of(taskflow, "q")) is after, "the hand-over")
        wait_for(lambda: before.client.info("replication")["role"] == "slave", "the old one knows")

        verified = taskflow.verify(task.id, "EMAIL", box[-1].otp)

    assert verified.id == task.id
    assert int(after.client.info("commandstats")["cmdstat_eval"]["calls"]) >= 1


def test_slot_on_its_way_to_a_new_node_is_found_there(client: Any, servers: Cluster) -> None:
    client.get("key")
    slot = key_slot(b"key")
    home = servers.primary_of(slot)

    with servers.newcomer() as new:
        new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", home.client.cluster("MYID"))
        home.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new.client.cluster("MYID"))
        try:
            answer = client.register_script("return redis.call('INCR', KEYS[1])")(keys=["key"], args=[])
        finally:
            home.ask("CLUSTER", "SETSLOT", slot, "STABLE")

    assert answer == 1
    assert client.get("key") is None


def test_lost_reply_has_one_effect(client: Any, servers: Cluster) -> None:
    client.get("counter")
    node = servers.primary_of(key_slot(b"counter"))

    with node.frozen(0.45), pytest.raises(RedisTimeoutError):
        client.incr("counter")

    assert wait_for(lambda: client.get("counter"), "the effect") == b"1"
    assert client.get("counter") == b"1"


def test_pool_of_20_connections_a_node_serves_200_threads(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    app = make_app(redis_url=servers.url, redis_max_connections=20, redis_timeout=20)
    start = threading.Barrier(200)
    read: list[bool] = []

    def work(number: int) -> None:
        with app.app_context():
            start.wait(30)
            task = add(taskflow, f"queue-{number % 8}", number)
            read.append(taskflow.get_task(task.id) == task)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert read == [True] * 200
    for node in servers.nodes:
        names = [one for one in node.client.client_list(_type="normal") if one["lib-name"]]
        assert len(names) <= 20 + 5


def test_rule_of_the_docs_suffices(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    rule, more = block("redis.md", "acl").split(), block("redis.md", "acl in a cluster").split()
    done, heard = threading.Event(), threading.Event()
    taskflow.on_task_verified("q", name="work")(lambda task: done.set())
    for node in servers.nodes:
        node.ask("ACL", "SETUSER", *rule[1:], *more)
        node.ask("ACL", "LOG", "RESET")

    def hear(sender: object, **_: Any) -> None:
        heard.set()

    with make_app(redis_url=servers.url.replace("//", "//taskflow:change-me@")).app_context():
        taskflow.start()
        with task_verified.connected_to(hear):
            task = add(taskflow)
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
            assert done.wait(10)
            assert heard.wait(10)
        taskflow.stop(5)

    refused = {entry["object"] for node in servers.nodes for entry in node.client.acl_log()}
    assert refused <= {"client|setinfo"}


def test_lease_bears_no_name_because_no_node_sees_all_subscribers(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    running, end = threading.Event(), threading.Event()

    @taskflow.on_task_verified("q", name="work")
    def work(task: Task[Any]) -> None:
        running.set()
        end.wait(10)

    with make_app(redis_url=servers.url).app_context():
        taskflow.start()
        task = add(taskflow)
        taskflow.verify(task.id, "EMAIL", box[-1].otp)
        assert running.wait(10)
        placed = taskflow._service().operations.find("q", "work", task.id)
        end.set()
        taskflow.stop(5)

    assert placed is not None
    assert (placed.state, placed.owner) == ("running", "-")


def test_forked_child_looks_the_cluster_up_for_itself(client: Any, servers: Cluster) -> None:
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


def test_cluster_that_is_away_fails_fast_without_the_password(
    make_app: MakeApp, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    app = make_app(redis_url=f"redis+cluster://ann:hunter2@127.0.0.1:{port}", redis_timeout=0.2)

    with app.app_context():
        began = time.monotonic()
        with pytest.raises(RedisConnectionError) as caught:
            taskflow.get_task("a" * 34)
        taken = time.monotonic() - began

    assert taken < 0.4
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_nodes_that_all_went_are_sought_at_the_first_addresses_again(servers: Cluster) -> None:
    client = ClusterClient([("127.0.0.1", servers.nodes[0].port)], 2.0, socket_timeout=1.0)
    client.get("key")
    lost = client.nodes_manager
    nobody = free_ports(1)[0]
    for node in client.get_nodes():
        # Where a platform gave every node another address, none of the known ones answers.
        node.redis_connection.connection_pool.connection_kwargs["port"] = nobody
        node.redis_connection.connection_pool.reset()

    failures = 0
    for _ in range(2):
        try:
            client.get("key")
        except RedisError:
            failures += 1

    assert failures == 1
    assert client.nodes_manager is not lost


def test_fail_over_of_a_primary_loses_no_delivery_that_was_replicated(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, servers: Cluster
) -> None:
    app = make_app(redis_url=servers.url, poll=0.3, lease=2, redis_timeout=1)
    with app.app_context():
        load = Load(taskflow, box, 30)
        taskflow.start()
        home = servers.primary_of(slot_of(taskflow, "q"))
        with task_verified.connected_to(load.hear, sender=app):
            verified = load.verify(10)
            # Replication is asynchronous: what the replica does not have yet is lost with the primary.
            wait_for(lambda: home.client.wait(1, 1000) == 1, "replication")
            home.kill()
            verified += load.verify(20)
            wait_for(lambda: set(load.done) == set(verified), "every callback")
            wait_for(lambda: load.heard[-1:] and load.heard[-1] in verified[10:], "a bell after it")
        taskflow.stop(2)

    assert load.errors > 0
    assert set(load.done) == set(verified)


def test_listener_whose_node_died_listens_at_another(
    make_app: MakeApp,
    taskflow: TaskFlow,
    box: Outbox,
    servers: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    app = make_app(redis_url=servers.url)
    with app.app_context():
        load = Load(taskflow, box, 1)
        taskflow.start()
        (deaf,) = servers.listened()

        deaf.kill()

        (other,) = wait_for(servers.listened, "the listener is back", within=2)
        with task_verified.connected_to(load.hear, sender=app):
            verified = load.verify(1)
            wait_for(lambda: load.heard == verified, "the bell")
        taskflow.stop(2)
    assert other is not deaf
    assert len([record for record in caplog.records if record.name.endswith("_listener")]) <= 2
