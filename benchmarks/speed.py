"""How fast is each thing beside a floor, and what does it cost where there is more of everything?

A floor is what Redis and redis-py take for a script that does the least that such a step must: it is
measured in turns with the step, in the same process. Over HTTP it is a bare view that runs that script, under
gunicorn with one worker. Callbacks are measured in a worker of their own; what is possible is one callback
after the other in each of four threads.

It prints tables in Markdown, those of ``docs/performance.md``. It holds nothing to a number, as what one
machine answers is true of no other one. ``benchmarks.fleet`` and ``benchmarks.idle`` hold that what it costs
grows with the work alone.

    python -m benchmarks.speed
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import count
from typing import IO, Any, cast

from flask import Flask
from redis import Redis

from benchmarks import fleet, idle
from benchmarks.app import environment, gunicorn, scripts_of
from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow, task_verified
from flask_taskflow.testing import Outbox, outbox, redis_server

_QUEUE = "speed"
_THREADS = 4
_PATIENCE = 300.0
_SERVER = (
    "benchmarks.speed:create_app()",
    "-k",
    "gthread",
    "--threads",
    str(_THREADS),
    "--keep-alive",
    "600",
)
#: One hash is read, compared and written, leaves an index, and others are told.
_FLOOR = """
local task = redis.call('HGETALL', KEYS[1])
redis.call('HSET', KEYS[1], 'status', 'SUCCESS', 'digest', ARGV[1])
redis.call('ZREM', KEYS[2], KEYS[1])
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('PUBLISH', 'floor', KEYS[1])
return task
"""
_FIELDS = {f"field{number}": "x" * 40 for number in range(12)}

Codes = list[tuple[str, str]]


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tasks", type=int, default=2000, help="how many tasks each number is made of (2000)"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 5, 20, 50], help="processes (1 5 20 50)")
    parser.add_argument("--waiting", nargs="+", type=int, default=[10**3, 10**4, 10**5], help="deliveries")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long an idle process is watched (20)"
    )
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        folder, *numbers = arguments.here
        _work(folder, *map(int, numbers))
        return 0
    tasks = arguments.tasks
    table("In a process", ("step", "a second", "of the floor"), steps(tasks))
    table("A right code over HTTP", ("served", "a second", "of the bare view"), served(tasks))
    table("Callbacks", ("each takes", "a second", "of what is possible"), callbacks(tasks))
    table("From the verification", ("to the", "p50, ms", "p99, ms"), latencies(max(tasks // 4, 20)))
    told = ("processes", "verifications a second", "their CPU an event, ms", "to the callback, ms")
    table("More processes", told, processes(arguments.sizes, max(tasks // 4, 20)))
    table("More queues", ("queues", "scripts an event", "commands a second, idle"), queues(arguments.seconds))
    table(
        "More that waits",
        ("deliveries", "verifications a second", "callbacks a second"),
        waiting(arguments.waiting),
    )
    table("More callbacks", ("callbacks of a queue", "verifications a second"), registered(tasks))
    table("More data", ("bytes", "verifications a second", "callbacks a second"), sizes(max(tasks // 4, 20)))
    return 0


def table(title: str, heads: Sequence[str], lines: Iterator[Sequence[object]]) -> None:
    """Print a table of Markdown, line by line as they come."""
    print(f"\n## {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for line in lines:
        print(f"| {' | '.join(map(str, line))} |", flush=True)


def steps(tasks: int) -> Iterator[Sequence[object]]:
    """Measure ``add_task`` and ``verify`` beside the floor, in blocks that take turns."""
    with _app() as made, Redis.from_url(made.url) as redis:
        script = redis.register_script(_FLOOR)
        rates: dict[str, list[float]] = {"the floor": [], "`add_task`": [], "`verify`": []}
        for _ in range(10):
            names = [f"floor:{number}" for number in range(tasks // 10)]
            for name in names:
                redis.hset(name, mapping=cast(Any, _FIELDS))
            rates["the floor"].append(_rate(names, lambda name: script([name, "index"], ["digest"])))
            codes: Codes = []
            rates["`add_task`"].append(_rate([codes] * len(names), lambda codes: codes.append(made.add())))
            rates["`verify`"].append(_rate(codes, lambda code: made.verify(*code)))
        floor = statistics.median(rates["the floor"])
        for what, found in rates.items():
            rate = statistics.median(found)
            yield what, f"{rate:,.0f}", f"{rate / floor:.2f}"


def served(tasks: int) -> Iterator[Sequence[object]]:
    """Measure a right code that is posted to gunicorn, beside a view that runs the floor's script."""
    bare = 0.0
    for what, ways in {
        "a bare view with one script": "bare",
        "`verify`, nothing runs beside it": "verify",
        "`verify`, with the listener": "verify listen",
        "`verify`, its callbacks run, too": "verify listen work",
    }.items():
        with _app() as made, gunicorn(made.url, *_SERVER, SPEED_WAYS=ways) as port:
            codes = [made.add() for _ in range(tasks)]
            if ways == "bare":
                with Redis.from_url(made.url) as redis, redis.pipeline(transaction=False) as pipeline:
                    for task_id, _ in codes:
                        pipeline.hset(f"floor:{task_id}", mapping=cast(Any, _FIELDS))
                    pipeline.execute()
            rate = _posted(port, ways, codes)
        bare = bare or rate
        yield what, f"{rate:,.0f}", f"{rate / bare:.2f}"


def callbacks(tasks: int) -> Iterator[Sequence[object]]:
    """Measure how fast a worker's four threads run what waits."""
    for milliseconds in (0, 1, 10):
        number = tasks if milliseconds < 10 else max(tasks // 4, 20)
        rate = _worked(number, milliseconds)
        part = f"{rate / (1000 * _THREADS / milliseconds):.2f}" if milliseconds else ""
        yield f"{milliseconds} ms" if milliseconds else "nothing", f"{rate:,.0f}", part


def latencies(tasks: int) -> Iterator[Sequence[object]]:
    """Measure from the call of ``verify`` to what follows in a worker of its own, one after the other."""
    with _app() as made, _worker(made.url, 1, 1, 0) as worker:
        begun = _confirm_slowly(made, tasks)
        for what in ("callback", "signal"):
            middle, late = quantiles(begun, worker.told(what, tasks))
            yield what, f"{middle:.2f}", f"{late:.2f}"


def job_figures(tasks: int) -> tuple[float, float, float]:
    """Return how many callbacks a second a worker runs, and the median and the p99 of their latency, ms."""
    with _app(callbacks=1) as made:
        _confirm(made, tasks)
        with _worker(made.url, 1, 1, 0) as worker:
            rate = per_second(worker.told("callback", tasks))
            begun = _confirm_slowly(made, 200)
            return rate, *quantiles(begun, worker.told("callback", tasks + 200))


def _confirm_slowly(made: _Made, number: int) -> dict[str, float]:
    """Verify a task each ten milliseconds or more; return when the calls began."""
    codes, begun = [made.add() for _ in range(number)], dict[str, float]()
    for task_id, code in codes:
        begun[task_id] = time.time()
        made.verify(task_id, code)
        time.sleep(0.01)
    return begun


def quantiles(begun: Mapping[str, float], ends: Mapping[str, float]) -> tuple[float, float]:
    """Return the median and the p99 of what lies between, ms; the first ten warm up."""
    took = sorted(1000 * (ends[name] - at) for name, at in list(begun.items())[10:])
    return statistics.median(took), took[int(0.99 * len(took))]


def processes(fleets: Sequence[int], tasks: int) -> Iterator[Sequence[object]]:
    """Measure what a verification costs beside so many workers, see ``benchmarks.fleet``."""
    for size, cost in fleet.measure(sorted(fleets), tasks).items():
        yield size, f"{cost.rate:,.0f}", f"{cost.spent:.2f}", f"{cost.latency:.2f}"


def queues(seconds: float) -> Iterator[Sequence[object]]:
    """Count the scripts of a verification and its callback where a worker serves so many queues."""
    for number in (1, 10, 100):
        with _app() as made, _worker(made.url, number, 1, 0) as worker, Redis.from_url(made.url) as redis:
            codes = [made.add(f"{_QUEUE}0") for _ in range(110)]
            for task_id, code in codes[:10]:
                made.verify(task_id, code)
            worker.told("callback", 10)
            time.sleep(1)
            before = scripts_of(redis)
            for task_id, code in codes[10:]:
                made.verify(task_id, code)
                time.sleep(0.01)
            worker.told("callback", len(codes))
            time.sleep(0.5)
            scripts = (scripts_of(redis) - before) / 100
        rate = idle.measure(number, 1, seconds).total() / seconds
        yield number, f"{scripts:.1f}", f"{rate:.2f}"


def waiting(backlogs: Sequence[int]) -> Iterator[Sequence[object]]:
    """Measure where so many deliveries wait already."""
    for backlog in backlogs:
        with _app(callbacks=1) as made:
            _confirm(made, backlog)
            rate = _rate([made.add() for _ in range(500)], lambda code: made.verify(*code))
            with _worker(made.url, 1, 1, 0) as worker:
                ends = worker.told("callback", min(backlog, 10_000))
        yield f"{backlog:,}", f"{rate:,.0f}", f"{per_second(ends):,.0f}"


def registered(tasks: int) -> Iterator[Sequence[object]]:
    """Measure a verification for which so many callbacks are stored."""
    for number in (0, 1, 3, 10):
        with _app(callbacks=number) as made:
            codes = [made.add() for _ in range(tasks)]
            yield number, f"{_rate(codes, lambda code: made.verify(*code)):,.0f}"


def sizes(tasks: int) -> Iterator[Sequence[object]]:
    """Measure with data of a size, which three callbacks are given."""
    for size in (100, 1_000, 10_000, 60_000):
        with _app(callbacks=3) as made:
            codes = [made.add(data={"text": "x" * size}) for _ in range(tasks)]
            rate = _rate(codes, lambda code: made.verify(*code))
            with _worker(made.url, 1, 3, 0) as worker:
                ends = worker.told("callback", tasks, each=3)
        yield f"{size:,}", f"{rate:,.0f}", f"{3 * per_second(ends):,.0f}"


class _Made:
    """An app on a server of its own that starts no thread.

    :param url: the server's.
    """

    def __init__(self, url: str, taskflow: TaskFlow, box: Outbox) -> None:
        self.url, self._taskflow, self._box = url, taskflow, box
        self._numbers = count()

    def add(self, queue: str = f"{_QUEUE}0", data: object = None) -> tuple[str, str]:
        """Add a task; return its id and code."""
        recipient = {"email": f"user{next(self._numbers)}@example.com"}
        task = self._taskflow.add_task(queue, data, allowed_methods=["EMAIL"], recipient=recipient, ttl=3600)
        return task.id, self._box.pop().otp

    def verify(self, task_id: str, code: str) -> None:
        self._taskflow.verify(task_id, Method.EMAIL, code)


@contextmanager
def _app(callbacks: int = 0) -> Iterator[_Made]:
    """Push the context of an app.

    :param callbacks: how many each queue has.
    """
    with redis_server() as url:
        app, taskflow = make(callbacks, lambda task: None, TASKFLOW_REDIS_URL=url, TASKFLOW_AUTOSTART=False)
        with app.app_context(), outbox(taskflow) as box:
            if callbacks:
                # What is registered is known from the first time on.
                taskflow.run_due()
            yield _Made(url, taskflow, box)


def make(
    callbacks: int, run: Callable[[Task[Any]], None], queues: int = 1, **settings: Any
) -> tuple[Flask, TaskFlow]:
    """Return an app with so many callbacks for each of its queues, and its extension."""
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
    for queue in range(queues):
        for number in range(callbacks):
            taskflow.on_task_verified(f"{_QUEUE}{queue}", name=f"callback{number}")(run)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(settings, SECRET_KEY="a secret key of the benchmarks, long enough")
    taskflow.init_app(app)
    return app, taskflow


def _confirm(made: _Made, number: int) -> None:
    for _ in range(number):
        made.verify(*made.add())


def _rate(items: Sequence[Any], work: Callable[[Any], object]) -> float:
    began = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - began)


def _worked(tasks: int, milliseconds: int) -> float:
    with _app(callbacks=1) as made:
        _confirm(made, tasks)
        with _worker(made.url, 1, 1, milliseconds) as worker:
            return per_second(worker.told("callback", tasks))


def per_second(ends: Mapping[str, float]) -> float:
    """Return how many began a second, from the first to the last."""
    times = sorted(ends.values())
    return (len(times) - 1) / (times[-1] - times[0])


class Log:
    """What a process wrote down of callbacks that began, or signals that it heard.

    :param folder: where it writes, a file for each kind.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def told(self, what: str, number: int, each: int = 1, every: float = 0.1) -> dict[str, float]:
        """Wait for callbacks or signals of so many tasks; return the time of each task's last one."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with open(os.path.join(self._folder, what), encoding="ascii") as file:
                lines = file.read().split("\n")[:-1]
            if len(lines) >= number * each:
                return {task_id: float(at) for task_id, at in map(str.split, lines)}
            time.sleep(every)
        raise TimeoutError(f"{number} times {what} did not come")


@contextmanager
def _worker(url: str, queues: int, callbacks: int, milliseconds: int) -> Iterator[Log]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.speed", "--here"]
        command += [folder, *map(str, (queues, callbacks, milliseconds))]
        variables = {**environment(url), "FLASK_TASKFLOW_CALLBACK_THREADS": str(_THREADS)}
        with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
            try:
                if process.stdout is None or not process.stdout.readline():
                    raise RuntimeError("the worker did not start")
                yield Log(folder)
            finally:
                process.kill()


def _work(folder: str, queues: int, callbacks: int, milliseconds: int) -> None:
    def file_of(what: str) -> IO[str]:
        return stack.enter_context(open(os.path.join(folder, what), "w", encoding="ascii", buffering=1))

    def run(task: Task[Any]) -> None:
        ran.write(f"{task.id} {time.time()}\n")
        if milliseconds:
            time.sleep(milliseconds / 1000)

    def hear(sender: Flask, task: Task[Any], **details: Any) -> None:
        heard.write(f"{task.id} {time.time()}\n")

    app, taskflow = make(callbacks, run, queues)
    task_verified.connect(hear)
    with ExitStack() as stack, app.app_context():
        ran, heard = file_of("callback"), file_of("signal")
        taskflow.start()
        print("started", flush=True)
        threading.Event().wait()


def create_app() -> Flask:
    """Return the app that gunicorn serves, as ``SPEED_WAYS`` says."""
    ways = os.environ["SPEED_WAYS"].split()
    callbacks = int("work" in ways)
    app, taskflow = make(callbacks, lambda task: None, TASKFLOW_AUTOSTART="listen" in ways)
    app.register_blueprint(taskflow.create_blueprint())
    redis = Redis.from_url(app.config["TASKFLOW_REDIS_URL"])
    script = redis.register_script(_FLOOR)

    @app.post("/bare/<task_id>")
    def bare(task_id: str) -> dict[str, str]:
        script([f"floor:{task_id}", "index"], ["digest"])
        return {"id": task_id, "status": "SUCCESS"}

    return app


def _posted(port: int, ways: str, codes: Codes) -> float:
    """Post all codes by two connections; return how many were answered a second."""

    def post(some: Codes) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        for task_id, code in some:
            path = f"/bare/{task_id}" if ways == "bare" else f"/tasks/{task_id}/verify"
            body = json.dumps({"method": "EMAIL", "otp": code})
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.read() and answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status}")
        connection.close()

    # What is new has connected and started its threads.
    post(codes[:10])
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(post, (codes[10::2], codes[11::2])))
    return (len(codes) - 10) / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
