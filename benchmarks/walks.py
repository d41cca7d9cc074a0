"""How many doors does a request go through? Calls, modules and borders between modules, counted.

A walk is what one request, or one turn of the engine, does in this package. Counted are calls of functions
that are written in it, by ``sys.setprofile``, each time that a frame begins or goes on (a generator, each
time); comprehensions and lambdas are not, but what they call is, as a call of the module that they stand in.
A call's caller is the nearest frame of the package above it, whatever of Flask or redis-py lies between.
A call crosses a border if its caller stands in another file, or if there is none, as at the first one.

Each walk is walked three times and the last one counts: by then every script is loaded, every schema is made.
The app has two strategies, EMAIL and SMS, their messages kept by ``taskflow.testing.outbox``, and one
callback; no thread is started. A background send is a turn of ``run_due()`` with one send that is due, less
the calls of such a turn where nothing is ever sent in the background: its way in, and its callbacks.

The driver uses public names only, so that it walks in the package as it was, too. The exit status is 1 if a
walk of the package as it is crosses more borders than the plan allows.

    python -m benchmarks.walks --was f6c23e6
    python -m benchmarks.walks --calls
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

import flask_taskflow
from benchmarks.trees import add_was, run_in, tree_of
from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow
from flask_taskflow.testing import Outbox, outbox, redis_server

#: A walk, and how many borders it may cross.
BORDERS: dict[str, int | None] = {
    "POST verify, right code": 16,
    "add_task, sent inline": None,
    "claim, run, acknowledge one callback": 20,
    "one send in the background": 45,
}
_TIMES = 3
_QUEUE = "walks"

#: A function of the package: its file inside it, its name there. None: somewhere else.
Place = tuple[str, str] | None
#: Caller and callee -> how often.
Calls = Counter[tuple[Place, Place]]


def main() -> int:
    """Walk and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walks", description=__doc__.split("\n")[0])
    add_was(parser)
    parser.add_argument("--calls", action="store_true", help="list the calls over a border, too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps({name: (sums(calls), list_borders(calls)) for name, calls in walk_all().items()}))
        return 0
    columns = {}
    for title, was in [("was", arguments.was)] * bool(arguments.was) + [("is", None)]:
        with tree_of(was) as tree:
            columns[title] = json.loads(run_in(tree, "benchmarks.walks", "--here").splitlines()[-1])
    print(f"{'calls / modules / borders':38}", *(f"{title:>14}" for title in columns), f"{'borders':>10}")
    good = True
    for name, bound in BORDERS.items():
        cells = [" / ".join(map(str, column[name][0])) for column in columns.values()]
        kept = bound is None or columns["is"][name][0][2] <= bound
        good &= kept
        limit = "" if bound is None else f"<= {bound}"
        print(f"{name:38}", *(f"{cell:>14}" for cell in cells), f"{limit:>10}", "" if kept else "MISSED")
    for name, (_, crossed) in columns["is"].items() if arguments.calls else ():
        print("", name, *crossed, sep="\n")
    return 0 if good else 1


def walk_all() -> dict[str, Calls]:
    """Return the calls of each walk."""
    with redis_server() as url:
        return {**_inline(url), **_background(url)}


def sums(calls: Calls) -> tuple[int, int, int]:
    """Return the number of calls, of files entered, and of calls from one file into another."""
    files = {callee[0] for _, callee in calls if callee is not None}
    return calls.total(), len(files), _over_borders(calls).total()


def list_borders(calls: Calls) -> list[str]:
    """Return a line for each call from one file into another: how often, caller, callee."""
    return [
        f"{count:4}  {_shown(caller)} -> {_shown(callee)}"
        for (caller, callee), count in _over_borders(calls).items()
    ]


def _over_borders(calls: Calls) -> Calls:
    return Counter(
        {
            (caller, callee): count
            for (caller, callee), count in calls.items()
            if caller is None or (callee is not None and caller[0] != callee[0])
        }
    )


def _shown(place: Place) -> str:
    return "elsewhere" if place is None else ": ".join(place)


def count_calls(root: Path, call: Callable[[], object]) -> Calls:
    """Count the calls in a package while something is called.

    :param root: the folder of the package.
    :param call: is called, in this thread.
    """
    calls: Calls = Counter()
    start = f"{root}/"

    def place(frame: FrameType | None) -> Place:
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(start):
                return code.co_filename.removeprefix(start), code.co_qualname
            frame = frame.f_back
        return None

    def seen(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # <listcomp>, <lambda> and their like are part of the function that they stand in.
        if event == "call" and code.co_filename.startswith(start) and not code.co_name.startswith("<"):
            calls[place(frame.f_back), place(frame)] += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(before)
    return calls


class _Walker:
    """An app of its own, and what is walked in it."""

    def __init__(self, client: FlaskClient, taskflow: TaskFlow, messages: Outbox) -> None:
        self.client = client
        self.taskflow = taskflow
        self._messages = messages
        self._number = 0
        self._root = Path(inspect.getfile(flask_taskflow)).parent

    def add(self) -> Task[Any]:
        """Add a task for a recipient of its own."""
        self._number += 1
        recipient = {"email": f"user{self._number}@example.com"}
        return self.taskflow.add_task(_QUEUE, {"amount": 1}, allowed_methods=["EMAIL"], recipient=recipient)

    def verify(self, task: Task[Any]) -> None:
        """Post the code that was sent last."""
        body = {"method": "EMAIL", "otp": self._messages[-1].otp}
        response = self.client.post(f"/taskflow/tasks/{task.id}/verify", json=body)
        if response.status_code != 200:
            raise RuntimeError(f"the app answered {response.status_code}: {response.text}")

    def run_due(self, expected: int) -> None:
        """Run what is due."""
        if (count := self.taskflow.run_due()) != expected:
            raise RuntimeError(f"{count} attempts ran instead of {expected}")

    def count(self, call: Callable[[], object]) -> Calls:
        """Count the calls of what is called."""
        return count_calls(self._root, call)


def _inline(url: str) -> dict[str, Calls]:
    with _walker(url, "inline") as walker:
        for _ in range(_TIMES):
            tasks: list[Task[Any]] = []
            added = walker.count(lambda: tasks.append(walker.add()))  # noqa: B023  it is called at once
            verified = walker.count(lambda: walker.verify(tasks[0]))  # noqa: B023
            ran = walker.count(lambda: walker.run_due(1))
    return {
        "POST verify, right code": verified,
        "add_task, sent inline": added,
        "claim, run, acknowledge one callback": ran,
    }


def _background(url: str) -> dict[str, Calls]:
    with _walker(url, "idle") as walker:
        for _ in range(_TIMES):
            idle = walker.count(lambda: walker.run_due(0))
    with _walker(url, "background", TASKFLOW_SEND="background") as walker:
        for _ in range(_TIMES):
            walker.add()
            sent = walker.count(lambda: walker.run_due(1))
    return {"one send in the background": sent - idle}


@contextmanager
def _walker(url: str, prefix: str, **settings: str) -> Iterator[_Walker]:
    taskflow = TaskFlow()
    for method in (Method.EMAIL, Method.SMS):
        taskflow.register_strategy(method)(OutboxStrategy())

    @taskflow.on_task_verified(_QUEUE)
    def done(task: Task[Any]) -> None:
        pass

    app = Flask(__name__)
    app.config.from_mapping(
        settings,
        SECRET_KEY="a secret key of the benchmarks, long enough",
        TASKFLOW_REDIS_URL=url,
        TASKFLOW_AUTOSTART=False,
        TASKFLOW_KEY_PREFIX=prefix,
    )
    taskflow.init_app(app)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    logging.getLogger("flask_taskflow").addHandler(logging.NullHandler())
    with app.app_context(), outbox(taskflow) as messages:
        yield _Walker(app.test_client(), taskflow, messages)


if __name__ == "__main__":
    sys.exit(main())
