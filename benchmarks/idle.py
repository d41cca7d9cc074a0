"""What does a process ask of Redis while nothing happens?

A process of its own serves so many queues and sends by so many methods; nobody adds a task. Counted are the
commands that its connections gave in a while, by the server's own count; what scripts do inside is not. It
has settled before: its queues are listed, its callbacks are registered.

The exit status is 1 if a process gave more commands a second than the bound.

    python -m benchmarks.idle
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Flask
from redis import Redis

from benchmarks.app import environment
from flask_taskflow import OutboxStrategy, Task, TaskFlow
from flask_taskflow.testing import redis_server

_SETTLE = 2.0


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each one is watched (60)")
    parser.add_argument("--within", type=float, default=0.3, help="the most commands a second (0.3)")
    parser.add_argument("--sizes", nargs="+", default=["1x1", "10x1", "100x1", "100x3"], metavar="QxM")
    parser.add_argument("--here", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        _serve(*arguments.here)
        return 0
    good = True
    for size in arguments.sizes:
        queues, methods = map(int, size.split("x"))
        given = measure(queues, methods, arguments.seconds)
        rate = given.total() / arguments.seconds
        good &= rate <= arguments.within
        told = ", ".join(f"{name} {count}" for name, count in given.most_common() if count)
        print(f"{queues} queues, {methods} methods: {rate:.2f} commands a second ({told})")
    print(f"at most {arguments.within:g} are wanted: {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def measure(queues: int, methods: int, seconds: float, **settings: str) -> Counter[str]:
    """Return the commands that an idle process gives in a while.

    :param settings: more of its configuration.
    """
    more = {f"FLASK_TASKFLOW_{name.upper()}": value for name, value in settings.items()}
    with redis_server() as url, _serving(url, queues, methods, more), Redis.from_url(url) as redis:
        time.sleep(_SETTLE)
        given: Counter[str] = Counter()
        with redis.monitor() as monitor:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                if monitor.connection.can_read(timeout=left):
                    command = monitor.next_command()
                    given[command["command"].split(" ")[0]] += command["client_type"] != "lua"
        return given


@contextmanager
def _serving(url: str, queues: int, methods: int, more: Mapping[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.idle", "--here", str(queues), str(methods)]
    variables = {**environment(url), **more}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the process did not start")
            yield
        finally:
            process.kill()


def _serve(queues: int, methods: int) -> None:
    taskflow = TaskFlow()
    for number in range(methods):
        taskflow.register_strategy(f"METHOD{number}")(_Silent())
    for number in range(queues):
        taskflow.on_task_verified(f"queue{number}")(_done)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(
        SECRET_KEY="a secret key of the benchmarks, long enough", TASKFLOW_SEND="background"
    )
    taskflow.init_app(app)
    with app.app_context():
        taskflow.start()
        print("started", flush=True)
        threading.Event().wait()


class _Silent(OutboxStrategy):
    """A strategy of its own method."""

    address = None


def _done(task: Task[Any]) -> None:
    """Do nothing."""


if __name__ == "__main__":
    sys.exit(main())
