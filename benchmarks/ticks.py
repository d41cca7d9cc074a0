"""Does each tick run once, and do no more callbacks run at once than may, while processes are killed?

So many processes have the same hundred schedules, each of which ticks every second and may miss no tick, and
one callback of verified tasks of which three may run at once. Every 200 ms something is done to them, at
random: mostly a process is killed, as by ``kill -9``, and another one comes in its place; sometimes all
connections are cut; now and then Redis is killed and started again. In the end each tick and each task must
have run; none may have begun again after an attempt to which nothing was done; and of the callbacks no more
may have run at once than may.

    python -m benchmarks.ticks --ticks 10000 --tasks 10000 --processes 16
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from redis import RedisError

from benchmarks.chaos import Server, own_server, print_counts
from flask_taskflow import OutboxStrategy, Task, TaskFlow, current_delivery, every
from flask_taskflow.testing import outbox

_SCHEDULES = 100
_AT_ONCE = 3
_PAUSE = 0.2
_DRAINED_WITHIN = 120.0


class Event(NamedTuple):
    """What a process wrote down.

    :param at: when, by the machine's monotonic clock.
    :param pid: which process.
    :param what: ``tick``, ``begin`` or ``end`` of a callback; ``killed``, ``harm`` to Redis or connections.
    :param which: the schedule and its tick, or the task.
    :param attempt: of that run.
    """

    at: float
    pid: int
    what: str
    which: str
    attempt: int


@dataclass(slots=True)
class Book:
    """A file in which all processes write, a line at once."""

    path: Path

    def write(self, what: str, which: object = "-", attempt: int = 0, pid: int | None = None) -> None:
        """Append a line."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{time.monotonic()} {pid or os.getpid()} {what} {which} {attempt}\n".encode())
        os.close(file)

    def read(self) -> list[Event]:
        """Return what was written, the oldest first."""
        rows = [line.split() for line in self.path.read_text("ascii").splitlines()]
        return sorted(Event(float(row[0]), int(row[1]), row[2], row[3], int(row[4])) for row in rows)


def make(url: str, book: Book, *, autostart: bool) -> tuple[Flask, TaskFlow]:
    """Return the app that all processes run, and its extension."""
    taskflow = TaskFlow()
    taskflow.register_strategy("EMAIL")(OutboxStrategy())

    def schedule(name: str) -> None:
        @taskflow.on_schedule(every(1), name=name, catch_up="all", max_attempts=100, backoff_time=0.2)
        def beat(tick: datetime) -> None:
            book.write("tick", f"{name}@{tick.timestamp():.0f}", current_delivery.attempt)

    for number in range(_SCHEDULES):
        schedule(f"beat{number}")

    @taskflow.on_task_verified("few", name="few", max_running=_AT_ONCE, max_attempts=100, backoff_time=0.2)
    def few(task: Task[Any]) -> None:
        book.write("begin", task.id, current_delivery.attempt)
        time.sleep(0.002)
        book.write("end", task.id, current_delivery.attempt)

    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="a secret key of the benchmarks, long enough",
        TASKFLOW_REDIS_URL=url,
        TASKFLOW_AUTOSTART=autostart,
        TASKFLOW_LEASE=2,
        TASKFLOW_POLL=0.5,
        TASKFLOW_MAX_LOST=100,
    )
    taskflow.init_app(app)
    return app, taskflow


@dataclass(slots=True)
class Fleet:
    """The processes, forked so that a new one costs little, and what was done to them."""

    server: Server
    book: Book
    pids: list[int] = field(default_factory=list)
    harms: Counter[str] = field(default_factory=Counter)

    def add(self) -> None:
        """Fork one more process."""
        pid = os.fork()
        if pid:
            self.pids.append(pid)
            return
        try:
            app, taskflow = make(self.server.url, self.book, autostart=True)
            with app.app_context():
                while True:
                    # Redis may be away as it starts.
                    with suppress(RedisError):
                        taskflow.start()
                        threading.Event().wait()
                    time.sleep(0.05)
        finally:
            os._exit(1)

    def harm(self) -> None:
        """Do something to them."""
        match random.random():
            case luck if luck < 0.85:
                self.kill(random.choice(self.pids))
                self.add()
                self.harms["process killed"] += 1
            case luck if luck < 0.98:
                self.book.write("harm")
                with self.server.client() as client:
                    for kind in ("normal", "pubsub"):
                        client.client_kill_filter(_type=kind, skipme=True)
                self.harms["connections cut"] += 1
            case _:
                self.book.write("harm")
                self.server.kill()
                time.sleep(0.3)
                self.server.start()
                self.harms["server killed"] += 1

    def kill(self, pid: int) -> None:
        """Kill a process at once."""
        self.book.write("killed", pid=pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.pids.remove(pid)

    def end(self) -> None:
        """Kill them all."""
        for pid in list(self.pids):
            self.kill(pid)


def ticks_of(events: list[Event]) -> dict[str, set[int]]:
    """Return the ticks that ran, by schedule."""
    found: dict[str, set[int]] = defaultdict(set)
    for event in events:
        if event.what == "tick":
            name, _, tick = event.which.partition("@")
            found[name].add(int(tick))
    return found


def gaps(ticks: set[int]) -> int:
    """Return how many ticks of a schedule did not run between its first and its last one."""
    return max(ticks) - min(ticks) + 1 - len(ticks)


def repeats(events: list[Event], what: str) -> Iterator[str]:
    """Yield what began twice as one attempt, or again after an attempt that nothing was done to."""
    killed = {event.pid: event.at for event in events if event.what == "killed"}
    harmed = [event.at for event in events if event.what == "harm"]
    began: dict[str, Event] = {}
    for event in events:
        if event.what != what:
            continue
        before = began.get(event.which)
        if before and before.attempt >= event.attempt:
            yield f"{event.which} began as attempt {event.attempt} of {before.pid} and of {event.pid}"
        elif before and before.pid not in killed and not any(before.at - 5 < at < event.at for at in harmed):
            yield f"{event.which} began again after {before.pid}, to which nothing was done"
        began[event.which] = event


def most_at_once(events: list[Event]) -> int:
    """Return how many callbacks ran at once; those of a process that is killed end with it."""
    running: dict[int, set[str]] = defaultdict(set)
    dead, most = set[int](), 0
    for event in events:
        if event.what == "killed":
            dead.add(event.pid)
            running.pop(event.pid, None)
        elif event.what == "begin" and event.pid not in dead:
            running[event.pid].add(event.which)
            most = max(most, sum(map(len, running.values())))
        elif event.what == "end":
            running[event.pid].discard(event.which)
    return most


def wait_until_done(book: Book, ticks: int, tasks: int) -> bool:
    """Wait until each tick up to now and each task ran; false if that takes too long."""
    deadline = time.monotonic() + _DRAINED_WITHIN
    while time.monotonic() < deadline:
        events = book.read()
        ran = ticks_of(events).values()
        done = {event.which for event in events if event.what == "end"}
        if sum(map(len, ran)) >= ticks and not any(map(gaps, ran)) and len(done) == tasks:
            return True
        time.sleep(1)
    return False


def run(*, processes: int, ticks: int, tasks: int) -> int:
    """Run it all and print what happened; return the exit status."""
    with ExitStack() as stack:
        server = stack.enter_context(own_server("--appendfsync", "always"))
        book = Book(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-"))) / "book")
        fleet = Fleet(server, book)
        stack.callback(fleet.end)
        for _ in range(processes):
            fleet.add()
        with server.client() as client:
            while not client.exists("taskflow:queues"):
                time.sleep(0.05)
        app, taskflow = make(server.url, book, autostart=False)
        with app.app_context():
            harass(fleet, taskflow, ticks=ticks, tasks=tasks)
        drained = wait_until_done(book, ticks, tasks)
        fleet.end()
        events = book.read()
    ran, at_once = ticks_of(events), most_at_once(events)
    repeated = [*repeats(events, "tick"), *repeats(events, "begin")]
    print_counts(f"{processes} processes", fleet.harms)
    kinds = Counter(event.what for event in events)
    print_counts("runs", Counter({name: kinds[name] for name in ("tick", "begin", "end")}))
    print(f"ticks: {sum(map(len, ran.values())):,}, lost: {sum(map(gaps, ran.values()))}")
    print(f"callbacks at once: {at_once} of {_AT_ONCE}")
    for line in repeated[:20]:
        print("AGAIN", line)
    good = drained and not repeated and at_once <= _AT_ONCE
    print(f"began again: {len(repeated)}; {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def harass(fleet: Fleet, taskflow: TaskFlow, *, ticks: int, tasks: int) -> None:
    """Verify tasks and harm the processes, until all are verified and there was time for the ticks."""
    until = time.monotonic() + ticks / _SCHEDULES
    harm_at = 0.0
    with outbox(taskflow) as box:
        while tasks or time.monotonic() < until:
            if time.monotonic() >= harm_at:
                fleet.harm()
                harm_at = time.monotonic() + _PAUSE
            elif tasks:
                task_id = again(partial(add, taskflow, tasks))
                again(partial(taskflow.verify, task_id, "EMAIL", box[-1].otp))
                tasks -= 1
            else:
                time.sleep(0.01)


def add(taskflow: TaskFlow, number: int) -> str:
    """Add a task with a recipient of its own and return its id."""
    recipient = {"email": f"user{number}@example.com"}
    return taskflow.add_task("few", allowed_methods=["EMAIL"], recipient=recipient).id


def again(call: Callable[[], Any]) -> Any:
    """Call until Redis answers."""
    while True:
        with suppress(RedisError):
            return call()


def main() -> int:
    """Run as the command line says; return the exit status."""
    # Each process would tell of each cut.
    logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ticks", type=int, default=10_000, help="how many ticks at least (10,000)")
    parser.add_argument("--tasks", type=int, default=10_000, help="how many tasks are verified (10,000)")
    parser.add_argument("--processes", type=int, default=16, help="how many processes run them (16)")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
