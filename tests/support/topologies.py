"""A cluster and a primary behind sentinels, of real servers from the wheel, for as long as a test runs."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from redis import Redis, RedisCluster, RedisError
from redis.crc import key_slot
from redis.sentinel import Sentinel

from flask_taskflow import Retry, Task, TaskNotPending, callback_succeeded, task_verified
from flask_taskflow._redis.embedded import find_binary
from flask_taskflow.testing import travel
from tests.support.stage import Stage

DEADLINE = 60.0
_PATIENCE = 600_000
# Milliseconds until who is silent counts as dead.
_SILENT_NODE, _SILENT_PRIMARY = 1500, 1500
SLOTS = 16384


def wait_for(condition: Callable[[], Any], what: str, within: float = DEADLINE) -> Any:
    """Wait until a condition holds and return its value; an error of Redis counts as not yet."""
    deadline, tick = time.monotonic() + within, threading.Event()
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError):
            if found := condition():
                return found
        tick.wait(0.02)
    raise AssertionError(f"waited {within:g} s in vain: {what}")


def free_ports(count: int) -> list[int]:
    """Return ports that were free at once a moment ago, and that no kernel hands out by itself."""
    with ExitStack() as stack:
        probes: list[socket.socket] = []
        while len(probes) < count:
            with contextlib.suppress(OSError):
                port = secrets.choice(range(10_000, 32_000))
                probes.append(stack.enter_context(socket.create_server(("127.0.0.1", port))))
        return [probe.getsockname()[1] for probe in probes]


class Node:
    """One server process on a port of its own.

    :param folder: where it works.
    :param options: of its command line.
    :param sentinel: the text of a sentinel's configuration; then it is one.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, sentinel: str = "") -> None:
        self.port = port or free_ports(1)[0]
        self.folder = folder / str(self.port)
        self.folder.mkdir()
        command = [str(find_binary())]
        if sentinel:
            (self.folder / "sentinel.conf").write_text(sentinel)
            command += [str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--save", "", "--repl-diskless-sync-delay", "0"]
        self.command = [*command, "--port", str(self.port), "--bind", "127.0.0.1", *options]
        self.client: Any = Redis(port=self.port, socket_timeout=20)
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--dir", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, f"node {self.port} starts")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text("utf-8", "replace")[-2000:])
        return bool(self.client.ping())

    def ask(self, *words: str | int) -> Any:
        return self.client.execute_command(*words)

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self, seconds: float) -> Iterator[None]:
        """Freeze the process for a while, so that a second attempt would meet a server that answers."""
        thaw = threading.Timer(seconds, self.process.send_signal, [signal.SIGCONT])
        self.process.send_signal(signal.SIGSTOP)
        thaw.start()
        try:
            yield
        finally:
            thaw.join()

    def listeners(self) -> list[str]:
        """The names of the listeners that are subscribed here."""
        clients = self.client.client_list(_type="pubsub")
        return [client["name"] for client in clients if client["name"].startswith("taskflow-listener:")]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.kill()
        self.client.close()


@contextmanager
def _place() -> Iterator[tuple[Path, ExitStack]]:
    folder = Path(tempfile.mkdtemp(prefix="taskflow-"))
    try:
        with ExitStack() as stack:
            yield folder, stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(stack: ExitStack, *args: Any, **options: Any) -> Node:
    return stack.enter_context(closing(Node(*args, **options)))


class Cluster:
    """Three primaries and a replica of each.

    :param nodes: six of them, empty.
    """

    replicas = 1

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[:3])
        primaries, replicas = nodes[:3], nodes[3:]
        for number, node in enumerate(primaries):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, after = SLOTS * number // 3, SLOTS * (number + 1) // 3
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        for node in nodes[1:]:
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, self._bus(node))
        wait_for(lambda: all(_met(node, len(nodes)) for node in nodes), "the nodes of the cluster meet")
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.client.cluster("MYID"))
        self.wait_until_whole()

    @contextmanager
    def newcomer(self) -> Iterator[Node]:
        """Run a node that has met the others and has no slot."""
        node = _cluster_node(self.nodes[0].folder.parent, *free_ports(2))
        try:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, self._bus(node))
            wait_for(lambda: all(_met(one, 7) for one in [*self.nodes, node]), "the newcomer is known")
            wait_for(lambda: node.client.cluster("INFO")["cluster_state"] == "ok", "it knows the slots")
            yield node
        finally:
            identity = node.client.cluster("MYID")
            node.close()
            for other in self.nodes:
                other.ask("CLUSTER", "FORGET", identity)

    @staticmethod
    def _bus(node: Node) -> int:
        return int(node.command[node.command.index("--cluster-port") + 1])

    def wait_until_whole(self) -> None:
        """Wait until every node knows of every slot, and each primary has a replica in step."""

        def whole() -> bool:
            for node in self.nodes:
                info, role = node.client.cluster("INFO"), node.client.info("replication")
                if info["cluster_state"] != "ok" or len(self._serving(node)) != 6:
                    return False
                if role["role"] == "slave" and role["master_link_status"] != "up":
                    return False
            return True

        wait_for(whole, "the cluster is whole")

    def _serving(self, node: Node) -> set[int]:
        """The ports of those that have slots or replicate one who has."""
        return {member[1] for _, _, *members in node.ask("CLUSTER", "SLOTS") for member in members}

    def heal(self) -> None:
        """Start what was killed; it comes back as a replica, and takes over all data."""
        for node in self.nodes:
            if not node.alive:
                node.start()
        self.wait_until_whole()

    def empty(self) -> None:
        """Start what was killed and forget all data."""
        self.heal()
        for node in self.primaries():
            node.ask("FLUSHALL")

    def primary_of(self, slot: int) -> Node:
        """The node that has a slot, as a living one sees it."""
        asked = next(node for node in self.nodes if node.alive)
        for first, last, primary, *_ in asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise LookupError(slot)

    def home(self, key: str) -> Node:
        """The node that has a key."""
        return self.primary_of(key_slot(key.encode()))

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let no replica take over from a primary that is silent."""
        with ExitStack() as stack:
            for node in self.nodes:
                node.ask("CONFIG", "SET", "cluster-node-timeout", _PATIENCE)
                stack.callback(node.ask, "CONFIG", "SET", "cluster-node-timeout", _SILENT_NODE)
            yield

    def replica_of(self, primary: Node) -> Node:
        """The living replica of a primary."""
        for _, _, (_, port, *_), *replicas in primary.ask("CLUSTER", "SLOTS"):
            if port == primary.port:
                return next(node for node in self.nodes if node.port == replicas[0][1])
        raise LookupError(primary.port)

    def primaries(self) -> list[Node]:
        """The nodes that have slots."""
        return [self.primary_of(SLOTS * number // 6) for number in (1, 3, 5)]

    def listened(self) -> list[Node]:
        """The nodes that listeners are subscribed at."""
        return [node for node in self.nodes if node.alive and node.listeners()]

    def given(self, kind: str) -> object:
        """A client, or a function that returns one, as a user might give it; nothing for the URL."""
        match kind:
            case "client":
                return RedisCluster("127.0.0.1", self.nodes[0].port, decode_responses=True, protocol=3)
            case "function":
                return lambda: RedisCluster("127.0.0.1", self.nodes[5].port)
        return None


def _met(node: Node, count: int) -> bool:
    known = node.client.cluster("NODES").values()
    return len(known) == count and not any("handshake" in one["flags"] for one in known)


def _cluster_node(folder: Path, port: int, bus: int) -> Node:
    return Node(
        folder,
        *("--cluster-enabled", "yes", "--cluster-node-timeout", str(_SILENT_NODE)),
        *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
        *("--cluster-port", str(bus)),
        port=port,
    )


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster that promotes the replica of a primary some seconds after its end."""
    with _place() as (folder, stack):
        ports = free_ports(12)
        pairs = zip(ports[:6], ports[6:], strict=True)
        yield Cluster([stack.enter_context(closing(_cluster_node(folder, *pair))) for pair in pairs])


class Watched:
    """A primary, its replicas and the sentinels that watch them.

    :param nodes: the primary first.
    :param sentinels: three of them.
    """

    SERVICE = "mymaster"
    replicas = 2

    def __init__(self, nodes: Sequence[Node], sentinels: Sequence[Node]) -> None:
        self.nodes = nodes
        self.sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{hosts}/{self.SERVICE}"
        wait_for(self._whole, "the sentinels know everybody")

    def _whole(self) -> bool:
        states = [node.client.sentinel_master(self.SERVICE) for node in self.sentinels if node.alive]
        return all(
            state["num-other-sentinels"] == len(self.sentinels) - 1
            and state["num-slaves"] == len(self.nodes) - 1
            for state in states
        )

    def heal(self) -> None:
        """Start what was killed; sentinels make a replica of a former primary."""
        for node in [*self.nodes, *self.sentinels]:
            if not node.alive:
                node.start()
        wait_for(self._in_step, "replicas in step")

    def _in_step(self) -> bool:
        """Whether all sentinels name one primary that has its replicas: a slow one may be replaced."""
        ports = {node.client.sentinel_master(self.SERVICE)["port"] for node in self.sentinels}
        replicas = self.primary().client.info("replication")["connected_slaves"]
        return len(ports) == 1 and bool(replicas == self.replicas)

    def empty(self) -> None:
        """Start what was killed and forget all data."""
        self.heal()
        wait_for(lambda: self.primary().ask("FLUSHALL"), "the primary forgets")

    def primary(self) -> Node:
        """The primary, as a living sentinel sees it."""
        asked = next(node for node in self.sentinels if node.alive)
        port = asked.client.sentinel_master(self.SERVICE)["port"]
        return next(node for node in self.nodes if node.port == port)

    def home(self, key: str) -> Node:
        """The node that has a key."""
        return self.primary()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let no replica take over from a primary that is silent."""
        setting = ("SENTINEL", "SET", self.SERVICE, "down-after-milliseconds")
        with ExitStack() as stack:
            for node in self.sentinels:
                node.ask(*setting, _PATIENCE)
                stack.callback(node.ask, *setting, _SILENT_PRIMARY)
            yield

    def listened(self) -> list[Node]:
        """The nodes that listeners are subscribed at."""
        return [node for node in self.nodes if node.alive and node.listeners()]

    def asked(self) -> Sentinel:
        """What a user makes clients by."""
        hosts = [("127.0.0.1", node.port) for node in self.sentinels]
        return Sentinel(hosts, socket_timeout=2, decode_responses=True)

    def given(self, kind: str) -> object:
        """A client, or a function that returns one, as a user might give it; nothing for the URL."""
        match kind:
            case "client":
                return self.asked().master_for(self.SERVICE, db=3)
            case "function":
                return lambda: self.asked().master_for(self.SERVICE)
        return None


@contextmanager
def sentinel() -> Iterator[Watched]:
    """Run a primary, two replicas and three sentinels that act some seconds after the primary's end."""
    with _place() as (folder, stack):
        primary = _run(stack, folder)
        replica = ("--replicaof", f"127.0.0.1 {primary.port}")
        replicas = [_run(stack, folder, *replica) for _ in range(2)]
        wait_for(lambda: primary.client.info("replication")["connected_slaves"] == 2, "replicas in step")
        name = Watched.SERVICE
        text = (
            f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds {name} {_SILENT_PRIMARY}\n"
            f"sentinel failover-timeout {name} 3000\n"
        )
        sentinels = [_run(stack, folder, sentinel=text) for _ in range(3)]
        yield Watched([primary, *replicas], sentinels)


def walk_through(stage: Stage) -> list[str]:
    """Add, resend, update, verify, hear the signal, run a callback that fails once; what happened."""
    pay = stage.work(Retry(after=0.05), queue="transfers", name="pay", backoff_time=0.05)
    heard, succeeded = stage.hear(task_verified), stage.hear(callback_succeeded)
    stage.taskflow.start()
    task = stage.add("transfers", {"amount": 3}, recipient={"email": "a@example.com"})
    travel(40)
    stage.taskflow.resend_otp(task.id, "EMAIL")
    stage.taskflow.update_recipient(task.id, {"email": "b@example.com"})
    stage.verify(task)
    sent = [", ".join(message.addresses) for message in stage.box]
    assert succeeded.tasks() == [task.id]
    paid = [f"pay {task.data['amount']}" for task in pay.tasks]
    return [*sent, f"heard {heard.next()['task'].recipient.email}", *paid]


class Load:
    """Tasks that are verified one after the other while servers die, and what came of them.

    :param count: how many tasks.
    """

    def __init__(self, stage: Stage, count: int) -> None:
        self._taskflow = stage.taskflow
        self._work = stage.work(max_attempts=100)
        self.heard: list[str] = []
        self.errors = 0
        self._tasks = [(stage.add().id, stage.box[-1].otp) for _ in range(count)]

    @property
    def done(self) -> list[str]:
        """What the callback ran for."""
        return [task.id for task in self._work.tasks]

    def hear(self, sender: Flask, task: Task[Any], **_: Any) -> None:
        self.heard.append(task.id)

    def verify(self, count: int) -> list[str]:
        """Verify some more tasks, each until Redis says that it is; return their ids."""
        verified = []
        for _ in range(count):
            task_id, otp = self._tasks.pop()
            wait_for(partial(self._verify, task_id, otp), f"{task_id} is verified")
            verified.append(task_id)
        return verified

    def _verify(self, task_id: str, otp: str) -> bool:
        try:
            self._taskflow.verify(task_id, "EMAIL", otp)
        except TaskNotPending as error:
            # The reply of the call before was lost, not its effect.
            return error.status == "SUCCESS"
        except RedisError:
            self.errors += 1
            return False
        return True
