"""Can a task be told from an unknown one by the time that the answer takes?

A real HTTP server in a process of its own (gunicorn, one worker) on a Unix socket, one keep-alive
connection, a real Redis server with its append-only file on. Each pair is one code for a task and one for an
unknown id of the same queue, in random order, so that whatever drifts, drifts for both. The codes are wrong
ones for tasks that still have attempts, by e-mail, with an owner and without, and of an authenticator (whose
app looks its secret up in no time), and any ones for tasks that are over.

Printed for each ``appendfsync``: the area under the ROC curve (AUC), that is the chance that a task takes
longer than an unknown id; 0.5 = cannot be told. The standard error for n pairs without any difference is
about sqrt(1 / 6n): 0.009 for 2,000 pairs. The exit status is 1 if one lies outside the bounds.

    python -m benchmarks.timing
"""

from __future__ import annotations

import argparse
import json
import math
import random
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import groupby
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.app import add, app_on, environment
from flask_taskflow import Method
from flask_taskflow.testing import redis_server

_WRONG_A_TASK = 4
_WARM_UP = 50
#: Not a method: the code is typed on the page, by a browser that does not hold the task.
_PAGE = "page"
_ANSWER_WITHIN = 20.0


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timing", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--within", type=float, default=0.05, help="how far from 0.5 an AUC may lie")
    parser.add_argument("--fsync", choices=["everysec", "always"], help="default: both, one after the other")
    arguments = parser.parse_args()
    status = 0
    for fsync in [arguments.fsync] if arguments.fsync else ["everysec", "always"]:
        for what, (known, unknown) in measure(fsync, arguments.pairs).items():
            value = auc(known, unknown)
            good = abs(value - 0.5) <= arguments.within
            print(
                f"appendfsync {fsync}, {what}: AUC {value:.3f} (standard error "
                f"{math.sqrt(1 / 6 / len(known)):.3f}), {len(known)} pairs, medians {_median(known)} task, "
                f"{_median(unknown)} unknown id: {'not distinguishable' if good else 'DISTINGUISHABLE'}"
            )
            status = status if good else 1
    return status


def measure(fsync: str, pairs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds that codes for tasks and that codes for unknown ids took, by what the tasks are.

    :param fsync: the server's ``appendfsync``.
    :param pairs: how many of each.
    """
    options = ("--appendonly", "yes", "--appendfsync", fsync)
    with redis_server(*options) as url, app_on(url) as taskflow, serving(url) as client:
        numbers = range(math.ceil(pairs / _WRONG_A_TASK))
        by_mail = [add(taskflow, number) for number in numbers]
        by_device = [add(taskflow, number, Method.SMART_OTP) for number in numbers]
        owned = [add(taskflow, 2 * len(numbers) + number, owner=f"user:{number}") for number in numbers]
        over = [taskflow.cancel_task(add(taskflow, len(numbers) + number)).id for number in numbers]
        found = {}
        for what, tasks, method in (
            ("e-mail", by_mail, Method.EMAIL),
            ("e-mail, of an owner", owned, Method.EMAIL),
            ("authenticator", by_device, Method.SMART_OTP),
            ("task that is over", over, Method.EMAIL),
            ("page of another browser's", by_mail, _PAGE),
        ):
            for _ in range(_WARM_UP):
                _timed(client, _unknown(tasks[0]), method)
            known: list[float] = []
            unknown: list[float] = []
            for number in range(pairs):
                task_id = tasks[number % len(tasks)]
                pair = [(known, task_id), (unknown, _unknown(task_id))]
                random.shuffle(pair)
                for times, asked in pair:
                    times.append(_timed(client, asked, method))
            found[what] = known, unknown
        return found


def auc(longer: Sequence[float], shorter: Sequence[float]) -> float:
    """Return the chance that one of the first is greater than one of the second; a tie counts half.

    It is Mann and Whitney's U over the number of pairs.
    """
    values = sorted([(value, 1) for value in longer] + [(value, 0) for value in shorter])
    below, wins = 0, 0.0
    for _, group in groupby(values, key=lambda item: item[0]):
        labels = [label for _, label in group]
        ones = sum(labels)
        zeros = len(labels) - ones
        wins += ones * (below + zeros / 2)
        below += zeros
    return wins / (len(longer) * len(shorter))


class _Connection(HTTPConnection):
    """A connection over a Unix socket: over TCP, Nagle's algorithm would hide what is measured."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def serving(url: str) -> Iterator[HTTPConnection]:
    """Serve the app with gunicorn in a process of its own; yield a connection to it.

    :param url: the Redis server's.
    """
    command = [sys.executable, "-m", "gunicorn", "--log-level", "warning", "--worker-class", "gthread"]
    command += ["--keep-alive", "600", "benchmarks.app:create_app()", "--bind"]
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "http.sock"
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        process = subprocess.Popen([*command, f"fd://{number}"], env=environment(url), pass_fds=[number])
        client = _Connection(path)
        try:
            yield client
        finally:
            client.close()
            process.terminate()
            process.wait()


def _unknown(task_id: str) -> str:
    # An id begins with eight characters that mark its queue.
    return task_id[:8] + "".join(random.choices(string.ascii_lowercase + "234567", k=26))


def _timed(client: HTTPConnection, task_id: str, method: str) -> float:
    fields = {"method": method, "otp": f"{random.randrange(10**6):06}"}
    path, body, headers = f"/tasks/{task_id}/verify", json.dumps(fields), {"Content-Type": "application/json"}
    if method == _PAGE:
        path, body = f"/tasks/{task_id}", urlencode({**fields, "method": Method.EMAIL})
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    began = time.perf_counter()
    client.request("POST", f"/taskflow{path}", body, headers)
    response = client.getresponse()
    text = response.read()
    took = time.perf_counter() - began
    # A random code is right once in a million times. A stranger gets the page that shows nothing.
    if response.status not in (200, 400) and b"taskflow-over" not in text:
        raise RuntimeError(f"the server answered {response.status}")
    return took


def _median(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:.0f} µs"


if __name__ == "__main__":
    sys.exit(main())
