"""A cluster and a primary behind sentinels, of real servers from the wheel, for as long as a test runs."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from redis import Redis, RedisError

from flask_taskflow import Retry, Task, TaskFlow, TaskNotPending, task_verified
from flask_taskflow._embedded import find_binary
from flask_taskflow.testing import Outbox, travel

DEADLINE = 20.0
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
    """Return ports that were free at once a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
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
        self.client: Any = Redis(port=self.port, socket_timeout=2)
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
    node = Node(*args, **options)
    stack.callback(node.close)
    return node


class Cluster:
    """Three primaries and a replica of each.

    :param nodes: six of them, empty.
    """

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

    def primary_of(self, slot: int) -> Node:
        """The node that has a slot, as a living one sees it."""
        asked = next(node for node in self.nodes if node.alive)
        for first, last, primary, *_ in asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise LookupError(slot)

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


def _met(node: Node, count: int) -> bool:
    known = node.client.cluster("NODES").values()
    return len(known) == count and not any("handshake" in one["flags"] for one in known)


def _cluster_node(folder: Path, port: int, bus: int) -> Node:
    return Node(
        folder,
        *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
        *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
        *("--cluster-port", str(bus)),
        port=port,
    )


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster that promotes the replica of a primary about a second after its end."""
    with _place() as (folder, stack):
        ports = free_ports(12)
        nodes: list[Node] = []
        for port, bus in zip(ports[:6], ports[6:], strict=True):
            nodes.append(_cluster_node(folder, port, bus))
            stack.callback(nodes[-1].close)
        yield Cluster(nodes)


class Watched:
    """A primary, its replicas and the sentinels that watch them.

    :param nodes: the primary first.
    :param sentinels: three of them.
    """

    SERVICE = "mymaster"

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
        primary = self.primary()
        wait_for(lambda: primary.client.info("replication")["connected_slaves"] == 2, "replicas in step")

    def primary(self) -> Node:
        """The primary, as a living sentinel sees it."""
        asked = next(node for node in self.sentinels if node.alive)
        port = asked.client.sentinel_master(self.SERVICE)["port"]
        return next(node for node in self.nodes if node.port == port)


@contextmanager
def sentinel() -> Iterator[Watched]:
    """Run a primary, two replicas and three sentinels that act half a second after the primary's end."""
    with _place() as (folder, stack):
        primary = _run(stack, folder)
        replica = ("--replicaof", f"127.0.0.1 {primary.port}")
        replicas = [_run(stack, folder, *replica) for _ in range(2)]
        wait_for(lambda: primary.client.info("replication")["connected_slaves"] == 2, "replicas in step")
        name = Watched.SERVICE
        text = (
            f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds {name} 500\n"
            f"sentinel failover-timeout {name} 3000\n"
        )
        sentinels = [_run(stack, folder, sentinel=text) for _ in range(3)]
        yield Watched([primary, *replicas], sentinels)


def walk_through(app: Flask, taskflow: TaskFlow, box: Outbox) -> list[str]:
    """Add, resend, update, verify, hear the signal, run a callback that fails once; what happened."""
    happened: list[str] = []
    done = threading.Event()

    @taskflow.on_task_verified("transfers", name="pay", backoff_time=0.05)
    def pay(task: Task[Any]) -> None:
        happened.append(f"pay {task.data['amount']}")
        if happened.count("pay 3") == 1:
            raise Retry(after=0.05)
        done.set()

    def hear(sender: Flask, task: Task[Any], **_: Any) -> None:
        happened.append(f"heard {task.recipient.email}")

    with app.app_context(), task_verified.connected_to(hear, sender=app):
        taskflow.start()
        try:
            task = taskflow.add_task(
                "transfers", {"amount": 3}, allowed_methods=["EMAIL"], recipient={"email": "a@example.com"}
            )
            travel(40)
            taskflow.resend_otp(task.id, "EMAIL")
            taskflow.update_recipient(task.id, {"email": "b@example.com"})
            taskflow.verify(task.id, "EMAIL", box.last_code("b@example.com"))
            happened += [", ".join(message.addresses) for message in box]
            assert done.wait(DEADLINE)
            wait_for(lambda: any(line.startswith("heard") for line in happened), "the signal")
            wait_for(lambda: not _left(taskflow), "the report of the callback")
        finally:
            taskflow.stop(1)
    return sorted(happened)


def _left(taskflow: TaskFlow) -> int:
    (pay,) = taskflow._service().operations.stats("transfers").callbacks
    return pay.ready + pay.delayed + pay.running + pay.dead


class Load:
    """Tasks that are verified one after the other while servers die, and what came of them.

    :param count: how many tasks.
    """

    def __init__(self, taskflow: TaskFlow, box: Outbox, count: int) -> None:
        self._taskflow = taskflow
        self.done: list[str] = []
        self.heard: list[str] = []
        self.errors = 0
        taskflow.on_task_verified("q", name="work", max_attempts=100)(self._work)
        self._tasks = []
        for number in range(count):
            address = f"{number}@example.com"
            task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": address})
            self._tasks.append((task.id, box.last_code(address)))

    def _work(self, task: Task[Any]) -> None:
        self.done.append(task.id)

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
