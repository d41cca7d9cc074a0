"""Does each task end once, and is all that is told of it the same, while processes are killed?

Four workers of gunicorn add tasks and take codes over HTTP, two processes of ``flask taskflow worker`` run
what follows. Tasks are verified, locked, cancelled, rejected, or left to expire; callbacks succeed, fail
first, or die. Meanwhile processes are killed, as by ``kill -9``. A thousand right codes come in the
millisecond in which their task expires. In the end each task must have one ending in its course, and what
follows that ending must have run, and nothing else; outcomes must be what callbacks wrote down; and counters
must be the records of the audit log, but for what a process that was killed had done and not told yet.

    python -m benchmarks.endings --tasks 1000 --races 1000 --kills 20
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from flask import Flask, current_app, request

from benchmarks.chaos import Server, own_server, print_counts
from flask_taskflow import BaseStrategy, OTPRejected, Reject, Task, TaskFlow

QUEUE = "endings"
KINDS = ("verify", "fail first", "die", "wrong first", "lock", "cancel", "reject", "expire")
STATUSES = ("EXPIRED", "LOCKED", "CANCELLED", "REJECTED")
ENDINGS = {"verified", "locked", "expired", "cancelled", "rejected"}
#: What the counters call what the audit log records.
COUNTED = {
    "task_added": "tasks added",
    "code_accepted": "tasks verified",
    "task_locked": "tasks locked",
    "task_cancelled": "tasks cancelled",
    "task_rejected": "tasks rejected",
    "callback_done": "run * done",
    "callback_failed": "run * failed",
    "callback_dead": "run * dead",
}
_DRAINED_WITHIN = 120.0


class Kept(BaseStrategy):
    """Keeps codes for the view that adds their tasks."""

    codes: dict[str, str] = {}  # noqa: RUF012 - one for the process

    def send(self, task: Task[Any], otp: str) -> None:
        """Keep a code."""
        self.codes[task.id] = str(otp)


class _Ledger(logging.Handler):
    """Writes each audit record at once, so that only a process that is killed before loses it."""

    def emit(self, record: logging.LogRecord) -> None:
        told = vars(record)
        write("audit", [told["event"], told["task_id"], told.get("cause")])


def write(name: str, what: object) -> None:
    """Append a line to a file that all processes share."""
    path = Path(os.environ["ENDINGS"]) / name
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{json.dumps(what)}\n".encode())
    os.close(file)


def create_app() -> Flask:
    """Return the app that is served and run."""
    taskflow = TaskFlow()
    taskflow.register_strategy("EMAIL")(Kept)
    audit = logging.getLogger("flask_taskflow.audit")
    audit.setLevel(logging.INFO)
    audit.addHandler(_Ledger())

    @taskflow.on_task_verified(QUEUE, name="work", max_attempts=50, backoff_time=0.2)
    def work(task: Task[Any]) -> None:
        if task.data == "die":
            raise Reject("never")
        if task.data == "fail first" and random.random() < 0.5:
            raise ValueError("not now")
        write("runs", ["work", task.id])

    @taskflow.on_task_ended(QUEUE, name="ended", statuses=STATUSES, max_attempts=50, backoff_time=0.2)
    def ended(task: Task[Any]) -> None:
        write("runs", ["ended", task.id])

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["SECRET_KEY"] = "a secret key of the benchmarks, long enough"
    taskflow.init_app(app)
    app.add_url_rule("/add", view_func=_add, methods=["POST"])
    app.add_url_rule("/do", view_func=_do, methods=["POST"])
    return app


def _add() -> dict[str, str]:
    task = current_app.extensions["taskflow"].add_task(QUEUE, **request.json)
    return {"id": task.id, "code": Kept.codes.pop(task.id)}


def _do() -> dict[str, str]:
    call, *arguments = request.json
    try:
        getattr(current_app.extensions["taskflow"], call)(*arguments)
    except OTPRejected as error:
        return {"refused": error.code}
    return {}


@dataclass(slots=True)
class Fleet:
    """The processes, and what was done to them.

    :param server: their Redis.
    :param directory: where they write down what they do.
    """

    server: Server
    directory: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    web: subprocess.Popen[bytes] | None = None
    url: str = ""
    kills: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What all of them are given."""
        return {
            **os.environ,
            "ENDINGS": str(self.directory),
            "FLASK_TASKFLOW_REDIS_URL": self.server.url,
            "FLASK_TASKFLOW_LEASE": "2",
            "FLASK_TASKFLOW_POLL": "1",
            "FLASK_TASKFLOW_MAX_LOST": "50",
            # Also on a machine that does much else.
            "FLASK_TASKFLOW_REDIS_TIMEOUT": "30",
            "FLASK_TASKFLOW_AUTOSTART": "true",
        }

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words], env=self.environment, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start gunicorn and two workers."""
        bind = ("-b", "127.0.0.1:0", "-w", "4", "benchmarks.endings:create_app()")
        self.web = self._start("gunicorn", *bind)
        for _ in range(2):
            self.add_worker()
        deadline = time.monotonic() + 30
        while "Listening at: " not in (log := (self.directory / "log").read_text()):
            if time.monotonic() > deadline:
                raise RuntimeError(log[-2000:])
            time.sleep(0.05)
        self.url = log.partition("Listening at: ")[2].split()[0]

    def add_worker(self) -> None:
        """Start one more worker."""
        self.workers.append(self._start("flask", "--app", "benchmarks.endings", "taskflow", "worker"))

    def kill_one(self) -> None:
        """Kill one of the processes; another one comes in its place."""
        assert self.web is not None
        children = Path(f"/proc/{self.web.pid}/task/{self.web.pid}/children").read_text().split()
        victim = random.choice([*map(int, children), *(worker.pid for worker in self.workers)])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            self.kills += 1
        for worker in [worker for worker in self.workers if worker.pid == victim]:
            worker.wait()
            self.workers.remove(worker)
            self.add_worker()

    def end(self) -> None:
        """End all, in good order."""
        for process in [*self.workers, *([self.web] if self.web else [])]:
            process.terminate()
        for process in [*self.workers, *([self.web] if self.web else [])]:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def post(self, path: str, body: object) -> Any:
        """Ask the app, again and again while a process that was asked is killed."""
        message = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        for _ in range(20):
            with (
                suppress(OSError, ValueError, HTTPException),
                urllib.request.urlopen(message, timeout=20) as answer,
            ):
                return json.load(answer)
            time.sleep(0.1)
        raise RuntimeError(f"{path} does not answer")


def live(fleet: Fleet, number: int) -> tuple[str, str]:
    """Let a task live in one of the ways; return its id and the way."""
    kind = KINDS[number % len(KINDS)]
    new = {
        "data": kind,
        "allowed_methods": ["EMAIL"],
        "recipient": {"email": f"{number}@example.com"},
        "ttl": 2 if kind == "expire" else 600,
    }
    task = fleet.post("/add", new)
    id_, code = task["id"], task["code"]
    wrong = f"{(int(code) + 1) % 10**6:06}"
    if kind in ("verify", "fail first", "die", "wrong first"):
        if kind == "wrong first":
            fleet.post("/do", ["verify", id_, "EMAIL", wrong])
        fleet.post("/do", ["verify", id_, "EMAIL", code])
    elif kind == "lock":
        for _ in range(5):
            fleet.post("/do", ["verify", id_, "EMAIL", wrong])
    elif kind == "cancel":
        fleet.post("/do", ["cancel_task", id_])
    elif kind == "reject":
        fleet.post("/do", ["reject_task", id_, "EMAIL", code])
    return id_, kind


def race(taskflow: TaskFlow, count: int) -> Iterator[tuple[str, float, bool]]:
    """Type right codes as their tasks expire; yield id, ms after that, and whether it was accepted."""
    for start in range(0, count, 50):
        tasks = []
        for number in range(start, min(start + 50, count)):
            recipient = {"email": f"race-{number}@example.com"}
            task = taskflow.add_task(QUEUE, "verify", allowed_methods=["EMAIL"], recipient=recipient, ttl=1)
            tasks.append(task)
            # Each has its moment for itself.
            time.sleep(0.008)
        for task in tasks:
            ends = task.expires_at.timestamp() + random.uniform(-0.003, 0)
            while (left := ends - time.time()) > 0:
                time.sleep(max(left - 0.001, 0))
            held = False
            with suppress(OTPRejected):
                taskflow.verify(task.id, "EMAIL", Kept.codes.pop(task.id))
                held = True
            yield task.id, 1000 * (time.time() - task.expires_at.timestamp()), held


def read(directory: Path, name: str) -> list[list[str]]:
    """Return what processes wrote down; one may have been killed within its last line."""
    rows = []
    for line in (directory / name).read_text().splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def wait_until_drained(taskflow: TaskFlow) -> bool:
    """Wait until nothing is pending or expired unnoticed, waits or runs; false if that takes too long."""
    service = taskflow._service()
    (pending,) = service.keys.of_queue(QUEUE, "pending")
    deadline = time.monotonic() + _DRAINED_WITHIN
    while time.monotonic() < deadline:
        (stats,) = taskflow.operations.stats(QUEUE)
        busy = any(one.ready + one.delayed + one.running for one in stats.callbacks)
        if not busy and not service.client.zcard(pending):
            return True
        time.sleep(0.5)
    return False


def differences(taskflow: TaskFlow, ids: set[str], directory: Path) -> list[str]:
    """Return what is not as it must be of each task: its ending, what followed it, its outcome."""
    ran: dict[str, Counter[str]] = defaultdict(Counter)
    for name, task_id in read(directory, "runs"):
        ran[task_id][name] += 1
    found = []
    for task_id in sorted(ids):
        task, course = taskflow.get_task(task_id), taskflow.get_course(task_id)
        ends = [entry.event.value for entry in course if entry.event.value in ENDINGS]
        verified = task.status == "SUCCESS"
        did = ran[task_id]
        outcome = task.outcome and task.outcome.value
        wanted = ("dead" if task.data == "die" else "done") if verified else None
        if ends != [{"SUCCESS": "verified"}.get(task.status, task.status.lower())]:
            found.append(f"{task_id} is {task.status} and had these endings: {ends}")
        if bool(did["work"]) != (verified and task.data != "die") or bool(did["ended"]) == verified:
            found.append(f"{task_id} is {task.status} and ran {dict(did)}")
        if (outcome if verified else None) != wanted:
            found.append(f"{task_id}, {task.data}, is {task.status}, and its outcome is {outcome}")
    return found


def compared(taskflow: TaskFlow, directory: Path) -> dict[str, tuple[int, int]]:
    """Return, of each event, how many records the audit log has, and what the counters say."""
    records = Counter(row[0] for row in read(directory, "audit"))
    (stats,) = taskflow.operations.stats(QUEUE)
    counts: Counter[str] = Counter()
    for name, count in stats.counts.items():
        words = name.split()
        counts[f"run * {words[2]}" if words[0] == "run" and len(words) == 3 else name] += count
    return {event: (records[event], counts[name]) for event, name in COUNTED.items()}


def run(*, tasks: int, races: int, kills: int) -> int:
    """Run it all and print what happened; return the exit status."""
    with ExitStack() as stack:
        server = stack.enter_context(own_server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-")))
        fleet = Fleet(server, directory)
        os.environ.update({**fleet.environment, "FLASK_TASKFLOW_AUTOSTART": "false"})
        stack.callback(fleet.end)
        fleet.start()
        app = create_app()
        taskflow: TaskFlow = app.extensions["taskflow"]
        stack.enter_context(app.app_context())
        with ThreadPoolExecutor(8) as pool, ThreadPoolExecutor(1) as beside:
            lives = [pool.submit(live, fleet, number) for number in range(tasks)]
            struck = beside.submit(strike, fleet, lives, kills)
            raced = list(race(taskflow, races))
            lived = dict(one.result() for one in lives)
            struck.result()
        known = {*lived, *(task_id for task_id, _, _ in raced)}
        # Of a process that was killed before its answer: nobody but Redis knows of it.
        orphans = {one for one in taskflow._service().operations.pending(QUEUE, tasks) if one not in known}
        for task_id in orphans:
            taskflow.cancel_task(task_id)
        drained = wait_until_drained(taskflow)
        fleet.end()
        added = {row[1] for row in read(directory, "audit") if row[0] == "task_added"}
        ids = {*known, *added, *orphans}
        wrong = differences(taskflow, ids, directory)
        counts = compared(taskflow, directory)
        statuses = Counter(taskflow.get_task(task_id).status.value for task_id in ids)
    print(f"4 workers of gunicorn, 2 workers, {fleet.kills} of them killed")
    print_counts(f"tasks: {len(ids)}", statuses)
    close = sum(abs(after) < 2 for _, after, _ in raced)
    print_counts(
        f"right codes as their tasks expired: {len(raced)}, {close} answered within 2 ms of it",
        Counter("accepted" if held else "too late" for _, _, held in raced),
    )
    apart = 0
    print(f"{'records and counters':45} {'audit':>9} {'counted':>9}")
    for event, (recorded, counted) in counts.items():
        print(f"  {event:43} {recorded:>9,} {counted:>9,}")
        apart += abs(recorded - counted)
    for line in wrong[:20]:
        print("WRONG", line)
    # Each that was killed may have been between a step and its record, in each of its threads.
    good = drained and not wrong and apart <= 5 * fleet.kills and len(ids) >= tasks + races
    print(f"wrong: {len(wrong)}, apart: {apart}; {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def strike(fleet: Fleet, lives: list[Any], kills: int) -> None:
    """Kill processes, evenly over the lives of the tasks."""
    for number in range(kills):
        while sum(one.done() for one in lives) < len(lives) * (number + 1) / (kills + 1):
            time.sleep(0.02)
        fleet.kill_one()


def main() -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
