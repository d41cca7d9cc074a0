"""Fleets of real processes, on a server of the test's own or the session's."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask
from redis import Redis

from flask_taskflow import OutboxStrategy, Task, TaskFlow
from flask_taskflow._store.deliveries import DeliveryStore
from flask_taskflow.testing import outbox
from tests.support import inside
from tests.support.stage import SECRET_KEY

WITHIN = 60.0


def wait_until(condition: Callable[[], Any], within: float = WITHIN) -> Any:
    """Wait until a condition is true and return what it answered."""
    deadline, tick = time.monotonic() + within, threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"it did not come true within {within} s"
        tick.wait(0.01)
    return answer


class Fleet:
    """Processes that serve ``apps/survivor.py`` on one server, and tasks for them, added in this process.

    :param url: the server's.
    :param directory: where they tell what happens.
    :param settings: of this process's app.
    """

    def __init__(self, url: str, directory: Path, **settings: object) -> None:
        self.url = url
        self.directory = directory
        self.redis: Any = Redis.from_url(url)
        self.taskflow = TaskFlow()
        for method in ("EMAIL", "SMS"):
            self.taskflow.register_strategy(method)(OutboxStrategy())
        # What is verified here is to be run there.
        self.taskflow.on_task_verified("fleet", name="work")(print)
        self.app = Flask("producer")
        self.app.config.update(SECRET_KEY=SECRET_KEY, TESTING=True)
        settings = {"redis_url": url, "redis_timeout": 20, "lease": 1, **settings}
        self.app.config.update({f"TASKFLOW_{name.upper()}": value for name, value in settings.items()})
        self.taskflow.init_app(self.app)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, *command: str, until: str, environment: dict[str, str] | None = None, **settings: object
    ) -> subprocess.Popen[bytes]:
        """Start a Python module and return once its output shows a text."""
        variables = {
            **os.environ,
            **(environment or {}),
            "PYTHONUNBUFFERED": "1",
            "SURVIVOR": str(self.directory),
            "FLASK_TASKFLOW_REDIS_URL": self.url,
            **{f"FLASK_TASKFLOW_{name.upper()}": json.dumps(value) for name, value in settings.items()},
        }
        log = self.directory / f"log{len(self._processes)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=Path(__file__).parent / "apps",
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        wait_until(lambda: re.search(until, log.read_text()) or process.poll() is not None)
        assert re.search(until, log.read_text()), log.read_text()
        return process

    def serve(
        self, app: str = "survivor", until: str = "Serving fleet", **settings: Any
    ) -> subprocess.Popen[bytes]:
        """Start a worker, with default settings but those given."""
        return self.start("flask", "--app", app, "taskflow", "worker", until=until, **settings)

    def worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker with a short lease and poll."""
        return self.serve(**{"lease": 1, "poll": 0.2, "redis_timeout": 0.5, **settings})

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process printed so far."""
        return (self.directory / f"log{self._processes.index(process)}").read_text()

    def sender(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker that sends codes by ``apps/sender.py``."""
        return self.serve("sender", "sending codes", send="background", **settings)

    def add(self, data: Any = None, *methods: str, **options: Any) -> Task[Any]:
        """Add a task that an e-mail confirms, unless other methods are named, to an address of its own."""
        recipient = {"email": f"{os.urandom(8).hex()}@example.com", "phone_number": "+84901234567"}
        given = {"allowed_methods": methods or ("EMAIL",), "recipient": recipient, **options}
        with self.app.app_context():
            return self.taskflow.add_task("fleet", data, **given)

    def verify(self, data: Any = None, **options: Any) -> Task[Any]:
        """Add a task and verify it, in this process, which runs no callback."""
        with self.app.app_context(), outbox(self.taskflow) as box:
            return self.taskflow.verify(self.add(data, **options).id, "EMAIL", box[-1].otp)

    def verify_sent(self, event: dict[str, Any]) -> Task[Any]:
        """Verify a task by the code that a provider took."""
        with self.app.app_context():
            return self.taskflow.verify(event["task"], event["method"], event["otp"])

    def has_sent_all(self) -> bool:
        """Tell whether no send is left."""
        return not list(self.redis.scan_iter(match="*:h:@*"))

    def store(self) -> DeliveryStore:
        """Return the engine's steps in this process."""
        with self.app.app_context():
            return inside.store()

    def go(self) -> None:
        """Let callbacks that wait end."""
        (self.directory / "go").touch()

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return what happened so far, or those events only."""
        path = self.directory / "events"
        # A line may be half written.
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in found if not names or event["event"] in names]

    def wait(self, name: str, count: int = 1, within: float = WITHIN) -> list[dict[str, Any]]:
        """Wait until an event happened so many times; return them."""
        wait_until(lambda: len(self.events(name)) >= count, within)
        return self.events(name)

    def settle(self, seconds: float = 0.7) -> None:
        """Let pass in what something more would happen."""
        threading.Event().wait(seconds)

    def close(self) -> None:
        """Kill every process, with those that it started."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.redis.close()
        with self.app.app_context():
            inside.close()


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process for a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


class Proxy:
    """A TCP proxy before a Unix socket that can stop forwarding, or drop a reply, or hold one back.

    :param path: the server's socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._accepting = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.forwards = threading.Event()
        self.forwards.set()
        self.cut_next_reply_to: bytes | None = None
        self.cuts = 0
        self.hold_next_reply_to: bytes | None = None
        self.held, self.released = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"redis://127.0.0.1:{self._accepting.getsockname()[1]}/0"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inner, _ = self._accepting.accept()
                outer = socket.socket(socket.AF_UNIX)
                outer.connect(self._path)
                self._sockets += [inner, outer]
                marks = threading.Event(), threading.Event()
                for source, target, inward in ((inner, outer, True), (outer, inner, False)):
                    threading.Thread(
                        target=self._pump, args=(source, target, inward, *marks), daemon=True
                    ).start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        inward: bool,
        doomed: threading.Event,
        slow: threading.Event,
    ) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                self.forwards.wait()
                if inward and self.cut_next_reply_to is not None and self.cut_next_reply_to in chunk:
                    self.cut_next_reply_to = None
                    doomed.set()
                elif inward and self.hold_next_reply_to is not None and self.hold_next_reply_to in chunk:
                    self.hold_next_reply_to = None
                    slow.set()
                elif not inward and slow.is_set():
                    slow.clear()
                    self.held.set()
                    self.released.wait(WITHIN)
                elif not inward and doomed.is_set():
                    self.cuts += 1
                    break
                target.sendall(chunk)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections."""
        self.forwards.set()
        self.released.set()
        for each in (self._accepting, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def listeners(redis: Any) -> set[int]:
    """Return the pids whose listener is connected."""
    names = (client["name"] for client in redis.client_list())
    return {int(name.split(":")[2]) for name in names if name.startswith("taskflow-listener:")}


def port_of(pid: int) -> int:
    """Return the TCP port that a process listens on, from /proc."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                inodes.add(match[1])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[3] == "0A" and parts[9] in inodes:
            return int(parts[1].split(":")[1], 16)
    raise AssertionError("it listens on no port")
