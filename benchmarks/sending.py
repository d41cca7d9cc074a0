"""What does a provider that hangs cost the caller, and how soon does a dead one fall back?

Three things are measured in one process, on a real server:

- ``add_task`` in the background, in interleaved rounds: with a mail server that takes the connection and is
  silent for a minute, with a provider that costs nothing, and in an app without threads, where nobody sends;
- ``add_task`` inline with the silent mail server, against ``TASKFLOW_SEND_TIMEOUT``;
- from the moment that a method was refused for so long that the next one is tried to the call of that one's
  ``send``, with a mail server that refuses connections and with one that is silent, many tasks at once.

The exit status is 1 if ``add_task`` takes a tenth longer with the silent server than with the provider that
costs nothing, if inline costs more than the timeout and a quarter of a second, or a fall-back takes a second.

    python -m benchmarks.sending
"""

from __future__ import annotations

import argparse
import logging
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from flask import Flask

from flask_taskflow import BaseStrategy, EmailStrategy, SendFailed, Task, TaskFlow
from flask_taskflow.testing import redis_server

_SECRET_KEY = "a secret key of the benchmarks, long enough"
_WITHIN = 120.0


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sending", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="calls of add_task for each way")
    parser.add_argument("--fall-backs", type=int, default=40, help="tasks for each kind of dead server")
    parser.add_argument("--slack", type=float, default=1, help="how many times later than usual is in time")
    parser.add_argument("--within", type=float, default=0.1, help="how much slower add_task may get, a share")
    arguments = parser.parse_args()
    logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())
    fall_backs = arguments.fall_backs, arguments.slack
    with redis_server() as url, silent_server() as silent:
        good = [
            background(url, silent, arguments.rounds, arguments.within),
            inline(url, silent, 0.25 * arguments.slack),
            fall_back(url, "refuses", "smtp://127.0.0.1:9?starttls=no", *fall_backs),
            fall_back(url, "is silent", silent, *fall_backs),
        ]
    return 0 if all(good) else 1


def background(url: str, silent: str, rounds: int, within: float) -> bool:
    """Compare ``add_task`` with a silent provider, one that costs nothing, and none."""
    with ExitStack() as stack:
        ways = {
            "silent": stack.enter_context(running(url, "silent", SMTP_URL=silent, SEND_TIMEOUT=60)),
            "free": stack.enter_context(running(url, "free", strategy=Free())),
            "nobody": stack.enter_context(running(url, "nobody", strategy=Free(), start=False)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name in random.sample(list(ways), len(ways)):
                times[name].append(timed(ways[name]))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        print(f"add_task in the background, {name:7}: {_summary(taken)}")
    against = {name: medians["silent"] / medians[name] for name in ("free", "nobody")}
    print("medians, silent against " + ", ".join(f"{name}: {ratio:.3f}" for name, ratio in against.items()))
    return against["free"] <= 1 + within


def inline(url: str, silent: str, late: float, *, timeout: float = 1.0, rounds: int = 5) -> bool:
    """Compare ``add_task`` with a silent provider with the timeout."""
    with running(url, "inline", SMTP_URL=silent, SEND="inline", SEND_TIMEOUT=timeout, start=False) as add:
        taken = [timed(add) for _ in range(rounds)]
    print(f"add_task inline, silent, timeout {timeout:g} s: at most {max(taken):.3f} s, {rounds} rounds")
    return max(taken) <= timeout + late


def fall_back(url: str, what: str, smtp: str, count: int, late: float) -> bool:
    """Measure how soon after e-mail was refused for too long a text message is sent."""
    decided, sent = Moments("send_fallback"), Stopwatch()
    settings: dict[str, Any] = {
        "SMTP_URL": smtp,
        "SEND_TIMEOUT": 0.5,
        "SEND_BACKOFF": 0.05,
        "SEND_FALLBACK": 0.1,
    }
    with running(url, "fall-back", second=sent, **settings) as add, decided:
        tasks = [add() for _ in range(count)]
        deadline = time.monotonic() + _WITHIN
        # The log may tell of it after the other thread has sent.
        while not sent.at.keys() & decided.at.keys() >= set(tasks) and time.monotonic() < deadline:
            sent.rung.wait(0.1)
            sent.rung.clear()
    taken = [sent.at[task] - decided.at[task] for task in tasks if task in sent.at and task in decided.at]
    print(f"fall-back when the server {what}: {len(taken)} of {count}, at most {max(taken) * 1000:.1f} ms")
    return len(taken) == count and max(taken) < late


class Free(BaseStrategy):
    """Take every code at once."""

    def send(self, task: Task[Any], otp: str) -> None:
        """Do nothing."""


class Stopwatch(BaseStrategy):
    """Note when a task's code was handed over."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.rung = threading.Event()

    def send(self, task: Task[Any], otp: str) -> None:
        """Note the time."""
        self.at[task.id] = time.monotonic()
        self.rung.set()


class Moments(logging.Handler):
    """Note when the audit log told of an event, by task."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self._event = event
        self.at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time."""
        if record.getMessage() == self._event:
            self.at[record.__dict__["task_id"]] = time.monotonic()

    def __enter__(self) -> Moments:
        logging.getLogger("flask_taskflow.audit").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flask_taskflow.audit").removeHandler(self)


@contextmanager
def running(
    url: str,
    prefix: str,
    *,
    strategy: BaseStrategy | None = None,
    second: BaseStrategy | None = None,
    start: bool = True,
    **settings: Any,
) -> Iterator[Callable[[], str]]:
    """Run an app; yield what adds a task to it and returns its id, or nothing if it was not sent."""
    app = Flask("benchmark")
    app.config.update(SECRET_KEY=_SECRET_KEY, TASKFLOW_REDIS_URL=url, TASKFLOW_KEY_PREFIX=prefix)
    app.config.update(TASKFLOW_SEND="background", TASKFLOW_EMAIL_SENDER="bank@example.com")
    app.config.update(TASKFLOW_AUTOSTART=False, TASKFLOW_RECIPIENT_MAX_SENDS=1_000_000)
    app.config.update({f"TASKFLOW_{name}": value for name, value in settings.items()})
    taskflow = TaskFlow(app)
    taskflow.register_strategy("EMAIL")(strategy or EmailStrategy())
    taskflow.register_strategy("SMS")(second or Free())

    def add() -> str:
        with app.app_context(), suppress(SendFailed):
            task = taskflow.add_task(
                "transfers",
                {"amount": 50},
                allowed_methods=["EMAIL", "SMS"],
                recipient={"email": "ann@example.com", "phone_number": "+84901234567"},
            )
            return task.id
        return ""

    if start:
        with app.app_context():
            taskflow.start()
    add()
    yield add
    with app.app_context():
        taskflow.stop(timeout=0)


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the URL of a mail server that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # The kernel takes connections that nobody accepts.
        listener.listen(4096)
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}?starttls=no"


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _summary(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"median {cuts[49] * 1e6:.0f} µs, 99th percentile {cuts[98] * 1e6:.0f} µs"


if __name__ == "__main__":
    sys.exit(main())
