"""What does a task cost: memory in Redis, and processor time of the app and of the server?

Tasks with a callback are added, verified and run, each step for all of them before the next. Time is what a
processor spent, so that other processes of the machine add little to it. Memory is what the server says.

    python -m benchmarks.sizing --server /usr/bin/redis-server
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from redis import Redis

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow
from flask_taskflow.testing import redis_server

_QUEUE = "sizing"
#: What each task has as its data: 50 bytes of JSON.
_DATA = {"order": "a" * 38}

#: Bytes in Redis, seconds of the app and of the server, each of one task.
Cost = tuple[float, float, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--server", help="the program of the server, if not the first one that is found")
    arguments = parser.parse_args()
    with redis_server(binary=arguments.server) as url:
        for name, (memory, own, server) in measure(url, arguments.tasks).items():
            print(f"{name:8}  {memory:+7.0f} bytes  app {own * 1e6:5.0f} us  server {server * 1e6:5.0f} us")


def measure(url: str, count: int) -> dict[str, Cost]:
    """Take each step of some tasks; return what it costs for each.

    :param url: of a server that is empty.
    :param count: how many tasks.
    """
    taskflow, strategy = TaskFlow(), OutboxStrategy()
    taskflow.register_strategy(Method.EMAIL)(strategy)
    taskflow.on_task_verified(_QUEUE)(_done)
    app = Flask(__name__)
    settings = {"TASKFLOW_AUTOSTART": False, "TASKFLOW_REDIS_URL": url}
    app.config.update(settings, SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)

    def add() -> None:
        for number in range(count):
            recipient = {"email": f"{number}@example.com"}
            taskflow.add_task(_QUEUE, _DATA, allowed_methods=["EMAIL"], recipient=recipient)

    def verify() -> None:
        for message in strategy.messages:
            taskflow.verify(message.task.id, "EMAIL", message.otp)

    steps: dict[str, Callable[[], object]] = {"add_task": add, "verify": verify, "run_due": taskflow.run_due}
    client: Any = Redis.from_url(url)
    with client, app.app_context():
        costs = {name: _cost(step, client, count) for name, step in steps.items()}
        app.extensions["taskflow.state"].service.client.close()
    return costs


def _done(task: Task[Any]) -> None:
    pass


def _cost(step: Callable[[], object], client: Any, count: int) -> Cost:
    before = _used(client)
    step()
    memory, own, server = (now - was for now, was in zip(_used(client), before, strict=True))
    return memory / count, own / count, server / count


def _used(client: Any) -> Cost:
    processor = client.info("cpu")
    server = processor["used_cpu_user"] + processor["used_cpu_sys"]
    return client.info("memory")["used_memory"], time.process_time(), server


if __name__ == "__main__":
    main()
