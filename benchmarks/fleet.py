"""What does a verification cost where many processes wait for it?

So many workers serve one queue and have nothing to do. A client verifies one task after the other.
Counted are its rate, the processor time that the workers spend on each event, and how long it takes from
the verification to the callback. The workers are started once for all sizes: the smaller fleets are
asked first.

The exit status is 1 if the rate of the largest fleet is less than so much of that of the smallest, or an
event costs its workers more than so many times as much.

    python -m benchmarks.fleet
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple, cast

from flask import Flask
from redis import Redis

from benchmarks.app import QUEUE, app_on, environment
from flask_taskflow import OutboxStrategy, Task, TaskFlow
from flask_taskflow.testing import outbox, redis_server

_RUNS = "runs"
_TICKS = os.sysconf("SC_CLK_TCK")
#: How long a burst may take to be worked off, seconds.
_PATIENCE = 120.0


class Cost(NamedTuple):
    """What a fleet costs.

    :param rate: verifications a second.
    :param spent: processor time of the workers for each, milliseconds.
    :param latency: from the verification to its callback, milliseconds, the median.
    """

    rate: float
    spent: float
    latency: float


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 5, 20, 50], help="workers (1 5 20 50)")
    parser.add_argument(
        "--tasks", type=int, default=300, help="how many tasks are verified at each size (300)"
    )
    parser.add_argument("--least", type=float, default=0.7, help="the least part of the rate (0.7)")
    parser.add_argument("--most", type=float, default=2.0, help="how many times the time of workers (2)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        _serve()
        return 0
    costs = measure(sorted(arguments.sizes), arguments.tasks)
    print("workers  verify/s  workers' CPU, ms an event  to the callback, ms")
    for size, cost in costs.items():
        print(f"{size:7}  {cost.rate:8.0f}  {cost.spent:25.2f}  {cost.latency:19.2f}")
    first, *_, last = costs.values()
    good = last.rate >= arguments.least * first.rate and last.spent <= arguments.most * first.spent
    print("as required" if good else "NOT AS REQUIRED")
    return 0 if good else 1


def measure(sizes: list[int], tasks: int) -> dict[int, Cost]:
    """Return what fleets of some sizes cost.

    :param sizes: how many workers, in rising order.
    :param tasks: how many tasks are verified at each size.
    """
    costs: dict[int, Cost] = {}
    with redis_server() as url, ExitStack() as stack, Redis.from_url(url) as redis:
        taskflow = stack.enter_context(app_on(url, TASKFLOW_RECIPIENT_MAX_SENDS=10**6))
        box = stack.enter_context(outbox(taskflow))
        pids: list[int] = []
        for size in sizes:
            while len(pids) < size:
                pids.append(stack.enter_context(_worker(url)))
            costs[size] = _burst(taskflow, box, redis, pids, tasks)
    return costs


def _burst(taskflow: TaskFlow, box: Any, redis: Redis, pids: list[int], tasks: int) -> Cost:
    codes: list[tuple[str, str]] = []
    for number in range(tasks + 1):
        task = taskflow.add_task(
            QUEUE, allowed_methods=["EMAIL"], recipient={"email": f"user{number}@example.com"}
        )
        codes.append((task.id, box[-1].otp))
    # One that is not counted: whoever is new has looked.
    taskflow.verify(codes[0][0], "EMAIL", codes[0][1])
    _wait_for(redis, 1)
    redis.delete(_RUNS)
    before, verified = _spent(pids), dict[str, float]()
    began = time.perf_counter()
    for task_id, code in codes[1:]:
        verified[task_id] = time.time()
        taskflow.verify(task_id, "EMAIL", code)
    took = time.perf_counter() - began
    _wait_for(redis, tasks)
    ran: dict[str, float] = {name.decode(): float(at) for name, at in cast(Any, redis).hgetall(_RUNS).items()}
    redis.delete(_RUNS)
    spent = 1000 * (_spent(pids) - before) / tasks
    return Cost(tasks / took, spent, 1000 * median(ran[task_id] - at for task_id, at in verified.items()))


def _wait_for(redis: Redis, count: int) -> None:
    until = time.monotonic() + _PATIENCE
    while redis.hlen(_RUNS) < count:
        if time.monotonic() > until:
            raise TimeoutError("callbacks do not run")
        time.sleep(0.01)


def _spent(pids: list[int]) -> float:
    """Return the processor time that processes have taken, seconds."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        total += int(user) + int(system)
    return total / _TICKS


@contextmanager
def _worker(url: str) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.fleet", "--here"]
    with subprocess.Popen(command, env=environment(url), stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the worker did not start")
            yield process.pid
        finally:
            process.kill()


def _serve() -> None:
    taskflow = TaskFlow()
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    redis = Redis.from_url(os.environ["FLASK_TASKFLOW_REDIS_URL"])

    @taskflow.on_task_verified(QUEUE)
    def done(task: Task[Any]) -> None:
        redis.hset(_RUNS, task.id, str(time.time()))

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)
    with app.app_context():
        taskflow.start()
        print("started", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
