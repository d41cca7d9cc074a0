"""An app whose own code does its worst wherever it is called, beside tasks that must run all the same.

It takes the seconds that this lasts, and a seed. Then it tells how many tasks were confirmed and how many
kinds of its worst it did; whether all ran, a signal is heard and its threads live; how many threads it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Flask
from redis import Redis

from flask_taskflow import (
    OutboxStrategy,
    Task,
    TaskFlow,
    callback_dead,
    callback_failed,
    callback_succeeded,
    otp_sent,
    task_added,
    task_ended,
    task_verified,
)
from flask_taskflow._service import current_service
from flask_taskflow.testing import Outbox

#: Seconds within which everything must have run once nothing is hostile any more.
WITHIN = 90.0
SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "a secret key of the test suite, long enough",
    "TASKFLOW_REDIS_URL": os.environ["REDIS_URL"],
    "TASKFLOW_POLL": 0.2,
    "TASKFLOW_JOB_TIMEOUT": 0.5,
    "TASKFLOW_LEASE": 2.0,
    "TASKFLOW_BACKOFF_MAX": 0.2,
    "TASKFLOW_SEND": "background",
    "TASKFLOW_SEND_BACKOFF": 0.1,
    "TASKFLOW_RECIPIENT_MAX_SENDS": 10**6,
}


class Ends(BaseException):
    """No Exception, and nothing that can be shown."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


ERRORS = (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, MemoryError, Ends)


class Enemy:
    """Code that does its worst as long as it may.

    :param app: the app that it belongs to.
    :param taskflow: its extension.
    """

    def __init__(self, app: Flask, taskflow: TaskFlow, chance: random.Random) -> None:
        self.app, self.taskflow, self.chance = app, taskflow, chance
        self.peace = threading.Event()
        self.done: list[str] = []

    def act(self, often: float = 0.3, *ways: Callable[[], object]) -> None:
        """Do something of some ways, or of all, if it is time for it."""
        if not self.peace.is_set() and self.chance.random() < often:
            way = self.chance.choice(ways or self.ways)
            self.done.append(way.__name__)
            way()

    @property
    def ways(self) -> tuple[Callable[[], object], ...]:
        return (
            *[self.fail] * 4,
            self.hang,
            self.fork,
            self.flood,
            self.overflow,
            self.cut,
            self.leak,
            self.start,
        )

    def fail(self) -> None:
        raise self.chance.choice(ERRORS)

    def hang(self) -> None:
        self.peace.wait(1)

    def fork(self) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    def flood(self) -> None:
        for number in range(50):
            logging.getLogger("flask_taskflow").warning("flood %d", number)
        add(self.taskflow, "bad", "HOSTILE")

    def overflow(self) -> None:
        self.overflow()

    def cut(self) -> None:
        with Redis.from_url(os.environ["REDIS_URL"]) as redis:
            redis.client_kill_filter(_type=self.chance.choice(["normal", "pubsub"]), skipme=True)
        current_service().client.connection_pool.disconnect()

    def leak(self) -> None:
        self.app.app_context().push()
        threading.Thread(target=self.hang, daemon=True).start()

    def start(self) -> None:
        self.taskflow.start()


class Filter(logging.Filter):
    """Does its worst as a log filter."""

    def __init__(self, enemy: Enemy) -> None:
        super().__init__()
        self.enemy = enemy

    def filter(self, record: logging.LogRecord) -> bool:
        self.enemy.act(0.3, self.enemy.fail)
        return True


class Hostile(OutboxStrategy):
    """Does its worst when it sends."""

    enemy: Enemy

    def send(self, task: Task[Any], otp: str) -> None:
        self.enemy.act(0.5)
        super().send(task, otp)


def add(taskflow: TaskFlow, queue: str, method: str) -> Task[Any]:
    return taskflow.add_task(
        queue, allowed_methods=[method], recipient={"email": f"{time.monotonic_ns()}@example.com"}
    )


def wait_for(condition: Callable[[], object], within: float) -> bool:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return bool(condition())


def make(seed: int) -> tuple[Enemy, Outbox, set[str]]:
    """Return what is hostile in an app, what is sent, and the tasks that ran."""
    app, taskflow, box, ran = Flask("app"), TaskFlow(), Outbox(), set[str]()
    enemy = Enemy(app, taskflow, random.Random(seed))
    app.config.update(SETTINGS)
    hostile = Hostile(messages=box)
    hostile.enemy = enemy
    taskflow.register_strategy("EMAIL")(OutboxStrategy(messages=box))
    taskflow.register_strategy("HOSTILE")(hostile)
    taskflow.on_task_verified("bad", max_attempts=2, backoff_time=0.1)(lambda task: enemy.act(0.9))
    # What is torn down beside it may fail it.
    taskflow.on_task_verified("good", max_attempts=10**6, backoff_time=0.1)(lambda task: ran.add(task.id))
    taskflow.init_app(app)
    app.teardown_appcontext(lambda error: enemy.act(0.1, enemy.fail))
    for name in ("listener", "announcer", "callbacks", "sends", "running", "scheduler", "turns", "telling"):
        logging.getLogger(f"flask_taskflow._delivery.{name}").addFilter(Filter(enemy))
    return enemy, box, ran


def main(seconds: float, seed: int) -> None:
    enemy, box, ran = make(seed)
    taskflow, heard, good = enemy.taskflow, set[str](), set[str]()
    signals = (
        task_verified,
        callback_succeeded,
        callback_failed,
        callback_dead,
        otp_sent,
        task_added,
        task_ended,
    )

    def receive(sender: Flask, **told: Any) -> None:
        enemy.act(0.2)

    def hear(sender: Flask, task: Task[Any], **told: Any) -> None:
        heard.add(task.id)

    def confirm(queue: str, method: str) -> str:
        task = add(taskflow, queue, method)

        def sent() -> list[str]:
            return [message.otp for message in list(box) if message.task.id == task.id]

        if not wait_for(sent, 1 if queue == "bad" else WITHIN):
            return ""
        taskflow.verify(task.id, method, sent()[-1])
        return task.id

    def attempt() -> None:
        # A receiver, a log filter or a teardown function may end any call of ours.
        with suppress(BaseException):
            confirm("bad", "HOSTILE")
        with suppress(BaseException):
            good.add(confirm("good", "EMAIL"))

    with suppress(BaseException), enemy.app.app_context():
        taskflow.start()
        for signal in signals:
            signal.connect(receive)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            with suppress(BaseException), enemy.app.app_context():
                attempt()
        enemy.peace.set()
        task_verified.connect(hear)
        fresh = set[str]()

        def is_heard() -> bool:
            # A signal is lost while the listener, which somebody may just have cut, connects anew.
            with suppress(Exception):
                fresh.add(confirm("good", "EMAIL"))
            return wait_for(lambda: fresh & heard, 1)

        hears = wait_for(is_heard, WITHIN)
        good = (good | fresh) - {""}
        all_ran = wait_for(lambda: good <= ran, WITHIN)
        alive = current_service().runtime.alive()
        print(len(good), len(set(enemy.done)), all_ran, hears, alive, threading.active_count(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    logging.getLogger().addHandler(logging.NullHandler())
    threading.excepthook = lambda told: None
    main(float(sys.argv[1]), int(sys.argv[2]))
