"""Is anything lost when workers and Redis are killed, frozen, cut off and rolled back, for minutes?

One process adds tasks and verifies them; workers run two callbacks of each, one of which fails at times.
Meanwhile a fault comes every few seconds:

- a worker is killed, or stopped for longer than its lease;
- Redis is killed and started again, or stopped, or its connections are cut;
- Redis is killed and started again with the append-only file of a second ago.

Callbacks write down when they begin and end, in a file for each process, with ``fsync``. In the end, once
nothing waits any more, each delivery of a task that Redis holds as verified must be done or a dead letter,
and each task that was accepted must be held, unless a roll-back took it. Each run that repeats a finished one
must have its reason among the faults.

    python benchmarks/chaos.py --minutes 5 --workers 4 --deliveries 3000
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from flask import Flask
from redis import Redis, RedisError

from flask_taskflow import (
    Method,
    OutboxStrategy,
    Reject,
    Status,
    Task,
    TaskFlow,
    TaskFlowError,
    TaskNotPending,
    current_delivery,
)
from flask_taskflow._redis.embedded import find_binary
from flask_taskflow.testing import outbox

QUEUE = "chaos"
CALLBACKS = ("flaky", "steady")
_LEASE = 2.0
_UP_WITHIN = 10.0
_DRAINED_WITHIN = 90.0
_EMAIL = "user@example.com"


class Server:
    """A server with an append-only file that can be killed, stopped and started again.

    :param directory: where it keeps its data; short, for the socket's sake.
    :param options: more of its command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._options = options
        self._socket = directory / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self, *options: str) -> None:
        """Start it and return once it answers.

        :param options: more of its command line, this time only.
        """
        command = [str(find_binary()), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--dir", str(self._directory), "--save", "", "--appendonly", "yes"]
        command += ["--auto-aof-rewrite-percentage", "0", *self._options, *options]
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _UP_WITHIN
        with self.client() as client:
            while time.monotonic() < deadline:
                with suppress(RedisError):
                    client.ping()
                    return
                time.sleep(0.01)
        raise RuntimeError((self._directory / "log").read_text("utf-8", "replace")[-2000:])

    def client(self) -> Redis:
        """Return a client."""
        return Redis.from_url(self.url)

    def kill(self) -> None:
        """Kill it, as ``kill -9`` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    def save(self) -> None:
        """Copy its append-only file as it is now."""
        shutil.rmtree(self._directory / "saved", ignore_errors=True)
        shutil.copytree(self._directory / "appendonlydir", self._directory / "saved")

    def restore(self) -> None:
        """Put the copy into the place of the append-only file; the server must be dead."""
        shutil.rmtree(self._directory / "appendonlydir")
        shutil.move(self._directory / "saved", self._directory / "appendonlydir")

    def wipe(self) -> None:
        """Forget all data; the server must be dead."""
        shutil.rmtree(self._directory / "appendonlydir")


@contextmanager
def own_server(*options: str) -> Iterator[Server]:
    """Run a server of one's own.

    :param options: more of its command line.
    """
    directory = Path(tempfile.mkdtemp(prefix="taskflow-"))
    server = Server(directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def create_app(**settings: Any) -> Flask:
    """Return the app that is added to and run."""
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
    note = _notebook(os.environ.get("CHAOS_RUNS"))

    @taskflow.on_task_verified(QUEUE, name="steady", max_attempts=5, backoff_time=0.2)
    def steady(task: Task[Any]) -> None:
        with note():
            time.sleep(1.5 * _LEASE if task.data % 50 == 0 else random.uniform(0, 0.2))

    @taskflow.on_task_verified(QUEUE, name="flaky", max_attempts=5, backoff_time=0.2)
    def flaky(task: Task[Any]) -> None:
        with note():
            time.sleep(random.uniform(0, 0.2))
            if task.data % 40 == 0:
                raise Reject("never")
            if random.random() < 0.2:
                raise ValueError("not now")

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(settings, SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)
    return app


def _notebook(directory: str | None) -> Callable[[], Any]:
    lock = threading.Lock()

    def write(word: str) -> None:
        if directory is None:
            return
        line = (
            f"{time.monotonic():.6f} {os.getpid()} {threading.get_native_id()} {current_delivery.id} {word}\n"
        )
        with lock, (Path(directory) / str(os.getpid())).open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def note() -> Iterator[None]:
        write("begun")
        try:
            yield
        except Exception:
            write("failed")
            raise
        write("done")

    return note


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done, from when until when; ``pid`` of the worker that it hit, or 0."""

    kind: str
    begun: float
    ended: float
    pid: int = 0


@dataclass(slots=True)
class Run:
    """One run of a callback: how it ended, or that its process vanished."""

    pid: int
    begun: float
    ended: float = float("inf")
    how: str = "vanished"


@dataclass(slots=True)
class Fleet:
    """Workers and their server, and what was done to them.

    :param server: the server.
    :param directory: where workers write down what they run.
    :param faults: what was done so far.
    """

    server: Server
    directory: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add_worker(self) -> None:
        """Start one more worker."""
        environment = {
            **os.environ,
            "CHAOS_RUNS": str(self.directory),
            "FLASK_TASKFLOW_REDIS_URL": self.server.url,
            "FLASK_TASKFLOW_REDIS_TIMEOUT": "1",
            "FLASK_TASKFLOW_LEASE": str(_LEASE),
            "FLASK_TASKFLOW_POLL": "1",
        }
        command = [sys.executable, "-m", "flask", "--app", f"{__file__}:create_app", "taskflow", "worker"]
        with (self.directory / "workers.log").open("ab") as log:
            worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.workers.append(worker)

    def end(self) -> None:
        """Kill what is left."""
        for worker in self.workers:
            worker.kill()
            worker.wait()

    def strike(self, generator: random.Random) -> None:
        """Do one thing, chosen at random, and write it down."""
        kinds = [self.kill_worker] * 6 + [self.stop_worker] * 3 + [self.cut] * 3
        kinds += [self.kill_redis] * 2 + [self.stop_redis] * 2 + [self.roll_back]
        kind = generator.choice(kinds)
        begun = time.monotonic()
        pid = kind(generator)
        self.faults.append(Fault(kind.__name__, begun, time.monotonic(), pid))

    def kill_worker(self, generator: random.Random) -> int:
        """Kill a worker; another comes up."""
        worker = self.workers.pop(generator.randrange(len(self.workers)))
        worker.kill()
        worker.wait()
        self.add_worker()
        return worker.pid

    def stop_worker(self, generator: random.Random) -> int:
        """Stop a worker for about its lease."""
        worker = generator.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(generator.uniform(0.5, 2.5) * _LEASE)
        worker.send_signal(signal.SIGCONT)
        return worker.pid

    def cut(self, generator: random.Random) -> int:
        """Cut all connections of a kind."""
        with suppress(RedisError), self.server.client() as client:
            client.client_kill_filter(_type=generator.choice(["normal", "pubsub"]), skipme=True)
        return 0

    def kill_redis(self, generator: random.Random) -> int:
        """Kill Redis and start it again."""
        self.server.kill()
        time.sleep(generator.uniform(0, 1.5) * _LEASE)
        self.server.start()
        return 0

    def stop_redis(self, generator: random.Random) -> int:
        """Stop Redis for about a lease."""
        self.server.signal(signal.SIGSTOP)
        time.sleep(generator.uniform(0.2, 2) * _LEASE)
        self.server.signal(signal.SIGCONT)
        return 0

    def roll_back(self, generator: random.Random) -> int:
        """Kill Redis and start it with older data."""
        self.server.save()
        time.sleep(generator.uniform(0.5, 1.5))
        self.server.kill()
        self.server.restore()
        self.server.start()
        return 0


class Producer:
    """Adds tasks and verifies them, whatever happens to Redis.

    :param url: the server's.
    """

    def __init__(self, url: str) -> None:
        self.app = create_app(TASKFLOW_REDIS_URL=url, TASKFLOW_AUTOSTART=False, TASKFLOW_REDIS_TIMEOUT=1)
        self.taskflow: TaskFlow = self.app.extensions["taskflow"]
        #: Task id -> when it was accepted.
        self.accepted: dict[str, float] = {}
        self.refused: Counter[str] = Counter()

    def run(self, tasks: int, seconds: float) -> None:
        """Verify so many tasks, evenly over some time; those that a fault swallowed are made again."""
        begun, number = time.monotonic(), 0
        with self.app.app_context(), outbox(self.taskflow) as box:
            while len(self.accepted) < tasks:
                number += 1
                try:
                    self._one(number, box)
                except (RedisError, TaskFlowError) as error:
                    self.refused[type(error).__name__] += 1
                    time.sleep(0.05)
                box.clear()
                time.sleep(max(begun + len(self.accepted) * seconds / tasks - time.monotonic(), 0))

    def _one(self, number: int, box: Any) -> None:
        address = f"{os.urandom(6).hex()}{_EMAIL}"
        task = self.taskflow.add_task(
            QUEUE, number, allowed_methods=["EMAIL"], recipient={"email": address}, timeout=30
        )
        code, deadline = box.last_code(address), time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.taskflow.verify(task.id, "EMAIL", code)
            except TaskNotPending as error:
                # The reply to an earlier try was lost.
                if error.status != Status.SUCCESS:
                    raise
            except RedisError as error:
                self.refused[type(error).__name__] += 1
                time.sleep(0.05)
                continue
            self.accepted[task.id] = time.monotonic()
            return


def read_runs(directory: Path) -> dict[str, list[Run]]:
    """Read what the workers wrote down: delivery -> its runs, in order."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for path in directory.glob("[0-9]*"):
        open_runs: dict[tuple[str, str], Run] = {}
        for line in path.read_text().splitlines():
            at, pid, thread, delivery, word = line.split()
            if word == "begun":
                run = open_runs[thread, delivery] = Run(int(pid), float(at))
                runs[delivery].append(run)
            else:
                run = open_runs[thread, delivery]
                run.ended, run.how = float(at), word
    for each in runs.values():
        each.sort(key=lambda run: run.begun)
    return runs


def why_again(before: Run, after: Run, faults: Sequence[Fault]) -> str:
    """Tell why a run came after, or beside, one that did not fail.

    :param before: the run that succeeded, vanished or still ran.
    :param after: the next run.
    """
    if before.how == "vanished":
        return "killed in the callback"
    # A report may be late by the backoff of a reporter that met a dead Redis, and a lease.
    between = [fault for fault in faults if fault.ended > before.begun - _LEASE and fault.begun < after.begun]
    kinds = {fault.kind for fault in between if fault.pid in (0, before.pid, after.pid)}
    for kind, reason in (
        ("roll_back", "Redis rolled back"),
        ("kill_worker", "killed between callback and report"),
        ("stop_worker", "lease lost: its process stopped"),
        ("stop_redis", "lease lost: Redis stopped"),
        ("kill_redis", "lease lost: Redis was away"),
    ):
        if kind in kinds:
            return reason
    return "UNEXPLAINED"


def near(faults: Sequence[Fault], begun: float, ended: float) -> list[Fault]:
    """Return the faults of that time and five seconds before and after."""
    return [fault for fault in faults if fault.begun < ended + 5 and fault.ended > begun - 5]


def repeats(runs: dict[str, list[Run]], faults: Sequence[Fault]) -> Counter[str]:
    """Count the runs that repeat one that did not fail, by reason."""
    reasons: Counter[str] = Counter()
    for each in runs.values():
        for before, after in pairwise(each):
            if before.how != "failed" or before.ended > after.begun:
                why = why_again(before, after, faults)
                reasons[why] += 1
                if why == "UNEXPLAINED":
                    print(before, after, *near(faults, before.begun, after.begun), sep="\n  ")
    return reasons


def audit(
    producer: Producer, runs: dict[str, list[Run]], faults: Sequence[Fault]
) -> tuple[Counter[str], list[str]]:
    """Compare what was accepted with what became of it; return counts and what was lost."""
    found: Counter[str] = Counter()
    lost: list[str] = []
    roll_backs = [fault for fault in faults if fault.kind == "roll_back"]
    operations = producer.taskflow._service().operations
    for task_id, accepted in producer.accepted.items():
        try:
            held = producer.taskflow.get_task(task_id).status is Status.SUCCESS
        except TaskFlowError:
            held = False
        for name in CALLBACKS:
            delivery = f"{task_id}:{name}"
            placed = operations.find(QUEUE, name, task_id)
            if not held and any(fault.begun <= accepted <= fault.ended for fault in roll_backs):
                found["rolled back, verification included"] += 1
            elif placed is not None:
                found["dead" if placed.state == "dead" else "waiting"] += 1
            elif held and any(run.how == "done" for run in runs.get(delivery, [])):
                found["done"] += 1
            else:
                lost.append(delivery)
    return found, lost


def wait_until_drained(producer: Producer) -> bool:
    """Wait until nothing of the queue waits or runs; false if that takes too long."""
    deadline = time.monotonic() + _DRAINED_WITHIN
    while time.monotonic() < deadline:
        with suppress(RedisError):
            stats = producer.taskflow._service().operations.stats(QUEUE)
            if not any(item.ready + item.delayed + item.running for item in stats.callbacks):
                return True
        time.sleep(0.2)
    return False


def wreak(fleet: Fleet, producer: Producer, tasks: int, seconds: float, seed: int) -> bool:
    """Produce for some time while faults come; return whether all was drained afterwards."""
    generator = random.Random(seed)
    thread = threading.Thread(target=producer.run, args=(tasks, seconds * 0.95), daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(generator.uniform(0.5, 3))
        fleet.strike(generator)
    thread.join(_DRAINED_WITHIN)
    with producer.app.app_context():
        drained = not thread.is_alive() and wait_until_drained(producer)
    for worker in fleet.workers:
        worker.terminate()
    for worker in fleet.workers:
        worker.wait(30)
    return drained


def run(*, seconds: float, workers: int, deliveries: int, fsync: str, seed: int) -> int:
    """Run it all and print what happened; return the exit status."""
    tasks = -(-deliveries // len(CALLBACKS))
    with ExitStack() as stack:
        server = stack.enter_context(own_server("--appendfsync", fsync))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-")))
        fleet, producer = Fleet(server, directory), Producer(server.url)
        stack.callback(fleet.end)
        for _ in range(workers):
            fleet.add_worker()
        drained = wreak(fleet, producer, tasks, seconds, seed)
        runs = read_runs(directory)
        with producer.app.app_context():
            found, lost = audit(producer, runs, fleet.faults)
        service = producer.app.extensions["taskflow.state"].service
        if service is not None:
            service.client.close()
        log = (directory / "workers.log").read_text("utf-8", "replace")
    again = repeats(runs, fleet.faults)
    print(f"seed {seed}, {seconds:.0f} s, {workers} workers, leases of {_LEASE:g} s, appendfsync {fsync}")
    print_counts("faults", Counter(fault.kind for fault in fleet.faults))
    print_counts("errors that the producer met and overcame", producer.refused)
    enqueued = len(producer.accepted) * len(CALLBACKS)
    print_counts(f"deliveries enqueued: {enqueued}", found)
    failed = sum(run.how == "failed" for each in runs.values() for run in each)
    total = sum(map(len, runs.values()))
    print(f"runs: {total}, of which failed as told: {failed}")
    print_counts(f"runs that repeat one which had not failed: {sum(again.values())}", again)
    crashes = log.count("The callback scheduler failed") + log.count("could not be ended")
    print(f"errors of the engine itself: {crashes}")
    for delivery in lost[:20]:
        accepted = producer.accepted[delivery.partition(":")[0]]
        print("LOST", delivery, accepted, *runs.get(delivery, []), sep="\n  ")
        print(*near(fleet.faults, accepted, accepted), sep="\n  ")
    good = drained and not lost and not again["UNEXPLAINED"] and not crashes and not found["waiting"]
    good = good and sum(found.values()) == enqueued
    print(f"lost: {len(lost)}; {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def print_counts(title: str, counts: Counter[str]) -> None:
    """Print a title and a line for each count."""
    print(f"{title}")
    for name, count in sorted(counts.items()):
        print(f"  {name:45} {count:>7,}")


def main() -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--deliveries", type=int, default=3000)
    parser.add_argument("--fsync", choices=["always", "everysec"], default="always")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())
    return run(
        seconds=60 * arguments.minutes,
        workers=arguments.workers,
        deliveries=arguments.deliveries,
        fsync=arguments.fsync,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    sys.exit(main())
