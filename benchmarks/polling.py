"""Is a client that polls ``status`` told that nothing changed, by one script a poll?

A thousand clients of two processes of gunicorn poll at once, each its own task, and send back the ``ETag``
that they got. The first answer of each is 200, the others are 304 and empty. Then the tasks are verified, and
the next answers are 200 again. Redis counts the scripts: there must be one a poll.

    python -m benchmarks.polling --clients 1000 --polls 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from flask import Flask
from redis import Redis

from benchmarks.app import gunicorn, scripts_of
from flask_taskflow import Method, OutboxStrategy, TaskFlow
from flask_taskflow.testing import redis_server

_ANSWERED_WITHIN = 120.0


def create_app(strategy: OutboxStrategy | None = None, url: str | None = None) -> Flask:
    """Return the app that is served; it starts no thread.

    :param url: of Redis, if the environment does not say it.
    """
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(strategy or OutboxStrategy())
    app = Flask(__name__)
    app.config.from_prefixed_env()
    if url is not None:
        app.config["TASKFLOW_REDIS_URL"] = url
    app.config.from_mapping(
        SECRET_KEY="a secret key of the benchmarks, long enough",
        TASKFLOW_AUTOSTART=False,
        TASKFLOW_TASK_TTL=3600,
        # A wait that ends is a change.
        TASKFLOW_RESEND_COOLDOWN=0,
    )
    taskflow.init_app(app)
    app.register_blueprint(taskflow.create_blueprint(routes=("status",)))
    return app


class Client:
    """One who waits for a task.

    :param port: of the server.
    :param task_id: the task.
    """

    def __init__(self, port: int, task_id: str) -> None:
        self._port, self._path, self._tag = port, f"/tasks/{task_id}", ""
        self.took: list[float] = []

    def poll(self) -> str:
        """Ask once; return the status, and whether there was a body."""
        started = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_ANSWERED_WITHIN)
        connection.request("GET", self._path, headers={"If-None-Match": self._tag})
        with connection.getresponse() as answer:
            told, self._tag = answer.read(), answer.headers["ETag"]
        connection.close()
        self.took.append(time.perf_counter() - started)
        return f"{answer.status} {'with a body' if told else 'empty'}"


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polling", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--polls", type=int, default=5, help="how often each polls before its task ends (5)")
    arguments = parser.parse_args()
    strategy = OutboxStrategy()
    with (
        redis_server() as url,
        Redis.from_url(url) as redis,
        gunicorn(url, "benchmarks.polling:create_app()", "-w", "2", "--threads", "8") as port,
    ):
        app = create_app(strategy, url)
        taskflow: TaskFlow = app.extensions["taskflow"]
        with app.app_context(), ThreadPoolExecutor(arguments.clients) as pool:
            for number in range(arguments.clients):
                recipient = {"email": f"{number}@example.com"}
                taskflow.add_task("polling", allowed_methods=["EMAIL"], recipient=recipient)
            # So that Redis knows the script.
            taskflow.get_task(strategy.messages[0].task.id)
            clients = [Client(port, message.task.id) for message in strategy.messages]
            good = _wave("the first poll", "200 with a body", clients, pool, redis)
            for _ in range(arguments.polls - 1):
                good &= _wave("nothing changed", "304 empty", clients, pool, redis)
            for message in strategy.messages:
                taskflow.verify(message.task.id, "EMAIL", message.otp)
            good &= _wave("verified since", "200 with a body", clients, pool, redis)
            good &= _wave("nothing changed", "304 empty", clients, pool, redis)
    print(f"one script a poll: {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def _wave(what: str, wanted: str, clients: Sequence[Client], pool: ThreadPoolExecutor, redis: Any) -> bool:
    """Let all clients poll at once; tell whether each was answered as wanted, by one script."""
    before, started = scripts_of(redis), time.perf_counter()
    answers = Counter(pool.map(Client.poll, clients))
    took, scripts = time.perf_counter() - started, scripts_of(redis) - before
    middle = statistics.median(client.took[-1] for client in clients)
    told = ", ".join(f"{count} times {answer}" for answer, count in answers.items())
    print(f"{what}: {told}; {scripts} scripts, {len(clients) / took:.0f} polls/s, median {middle:.2f} s")
    return answers == {wanted: len(clients)} and scripts == len(clients)


if __name__ == "__main__":
    sys.exit(main())
