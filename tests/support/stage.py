"""What most tests play on: apps of one extension, tasks, an outbox, ears for signals, Redis."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any, ClassVar

from blinker import NamedSignal
from flask import Flask, current_app

from flask_taskflow import Task, TaskFlow, current_delivery
from flask_taskflow.testing import Outbox, travel
from tests.support import inside

SECRET_KEY = "a secret key of the test suite, long enough"
#: The channel of the bells of an app with default settings.
BELL = "taskflow:0:bell"

DEADLINE = 60.0


class Ear:
    """A receiver that keeps each call: its details, and in which app, thread and context it came."""

    def __init__(self) -> None:
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()

    def __call__(self, sender: Flask, **details: Any) -> None:
        thread = threading.current_thread().name
        self._heard.put({**details, "app": sender, "thread": thread, "context": current_app.name})

    def next(self, within: float = DEADLINE) -> dict[str, Any]:
        """Wait for the next call.

        :raises queue.Empty: if none comes.
        """
        return self._heard.get(timeout=within)

    def tasks(self, count: int = 1) -> list[str]:
        """Wait for the next calls and return the ids of their tasks."""
        return [self.next()["task"].id for _ in range(count)]

    def rest(self) -> list[dict[str, Any]]:
        """Return what else was heard by now."""
        heard = []
        while not self._heard.empty():
            heard.append(self._heard.get())
        return heard


Mood = BaseException | type[BaseException] | Callable[[Task[Any]], object]


class Work:
    """A callback that keeps what it was run for, and does what it is told, run by run.

    :param moods: errors to raise or functions to call; then it does nothing more.
    """

    def __init__(self, *moods: Mood) -> None:
        self.moods = list(moods)
        self.tasks: list[Task[Any]] = []
        self.attempts: list[int] = []
        self.begun = threading.Semaphore(0)

    def __call__(self, task: Task[Any]) -> None:
        self.tasks.append(task)
        self.attempts.append(current_delivery.attempt)
        self.begun.release()
        mood = self.moods.pop(0) if self.moods else None
        if isinstance(mood, BaseException | type):
            raise mood
        if mood is not None:
            mood(task)


class Stage:
    """Apps of one extension on one server, and what happens there.

    :param server: its URL.
    :param redis: a client of it; any type, since redis-py says of replies that they may be awaited.
    :param stack: undoes everything in the end.
    :param box: what the strategies sent.
    """

    #: Settings of every app.
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, taskflow: TaskFlow, server: str, redis: Any, stack: ExitStack, box: Outbox | None = None
    ) -> None:
        self.taskflow = taskflow
        self.server = server
        self.redis = redis
        self._stack = stack
        self._numbers = count()
        self.box = Outbox() if box is None else box

    def make_app(self, extension: TaskFlow | None = None, **settings: Any) -> Flask:
        """Make an app; keyword arguments are ``TASKFLOW_`` settings, in capitals Flask's own."""
        app = Flask("app")
        app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=self.server)
        for name, value in {**self.settings, **settings}.items():
            app.config[name if name.isupper() else f"TASKFLOW_{name.upper()}"] = value
        extension = extension or self.taskflow
        extension.init_app(app)
        self._stack.callback(_close, app)
        return app

    def app(self, extension: TaskFlow | None = None, **settings: Any) -> Flask:
        """Make an app and push its context; in the end its threads are stopped."""
        app = self.make_app(extension, **settings)
        self._stack.enter_context(app.app_context())
        self._stack.callback(app.extensions["taskflow"].stop, 0)
        return app

    def start(self, **settings: Any) -> Flask:
        """Make an app, push its context and start its threads; they listen, if that is on our server."""
        app = self.app(**settings)
        self.taskflow.start()
        # `start` itself waits for a moment only, which is too short for a busy machine.
        deadline, tick = time.monotonic() + DEADLINE, threading.Event()
        while "redis_url" not in settings and not self.listeners() and time.monotonic() < deadline:
            tick.wait(0.01)
        return app

    def add(self, queue: str = "q", data: Any = None, **options: Any) -> Task[Any]:
        """Add a task that an e-mail confirms, to an address of its own."""
        recipient = {"email": f"{next(self._numbers)}@example.com"}
        return self.taskflow.add_task(
            queue, data, **{"allowed_methods": ["EMAIL"], "recipient": recipient, **options}
        )

    def verified(self, queue: str = "q", data: Any = None, **options: Any) -> Task[Any]:
        """Add a task and verify it at once."""
        return self.verify(self.add(queue, data, **options))

    def verify(self, task: Task[Any]) -> Task[Any]:
        """Verify a task by the last code that was sent."""
        return self.taskflow.verify(task.id, "EMAIL", self.box[-1].otp)

    def run(self, after: float = 0) -> int:
        """Run what is due some seconds later; return the number of attempts."""
        if after:
            travel(after)
        return self.taskflow.run_due()

    def work(self, *moods: Mood, queue: str = "q", name: str = "work", **options: Any) -> Work:
        """Register a callback; other arguments are those of ``on_task_verified``."""
        work = Work(*moods)
        self.taskflow.on_task_verified(queue, name=name, **options)(work)
        return work

    def hear(self, signal: NamedSignal) -> Ear:
        """Connect an ear to a signal until the test ends."""
        ear = Ear()
        self._stack.enter_context(signal.connected_to(ear))
        return ear

    def keys(self, *kinds: str) -> list[str]:
        """Return the keys in Redis that end in one of these words."""
        return [key.decode() for kind in kinds for key in self.redis.scan_iter(match=f"*:{kind}")]

    def listeners(self) -> int:
        """Return how many processes and apps listen for bells."""
        ((_, found),) = self.redis.pubsub_numsub(BELL)
        return int(found)


def _close(app: Flask) -> None:
    # A collector that meets sockets in a circle of apps and clients warns of them, at any later time.
    if app.extensions["taskflow.state"].service is not None:
        with app.app_context():
            inside.close()
