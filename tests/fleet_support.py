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

from apps import survivor
from flask import Flask
from redis import Redis

from flask_taskflow import Task
from flask_taskflow._deliveries import DeliveryStore
from flask_taskflow.testing import outbox

WITHIN = 15.0


def wait_until(condition: Callable[[], Any], within: float = WITHIN) -> Any:
    """Wait until a condition is true and return what it answered."""
    deadline, tick = time.monotonic() + within, threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"it did not come true within {within} s"
        tick.wait(0.01)
    return answer


class Fleet:
    """Processes that serve ``apps/survivor.py`` on one server.

    :param url: the server's.
    :param directory: where they tell what happens.
    """

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.redis: Any = Redis.from_url(url)
        self.app = self._own_app()
        self._processes: list[subprocess.Popen[bytes]] = []

    def _own_app(self) -> Flask:
        app = Flask("producer")
        app.config.update(
            SECRET_KEY="a secret key of the test suite, long enough",
            TESTING=True,
            TASKFLOW_REDIS_URL=self.url,
            TASKFLOW_REDIS_TIMEOUT=0.5,
            TASKFLOW_LEASE=1,
        )
        survivor.taskflow.init_app(app)
        return app

    def start(
        self, *command: str, until: str, url: str | None = None, environment: dict[str, str] | None = None,
        **settings: object,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a Python module and return once its output shows a text."""
        variables = {
            **os.environ,
            **(environment or {}),
            "PYTHONUNBUFFERED": "1",
            "SURVIVOR": str(self.directory),
            "FLASK_TASKFLOW_REDIS_URL": url or self.url,
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
        assert process.poll() is None, log.read_text()
        return process

    def worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker with a short lease and poll."""
        settings = {"lease": 1, "poll": 0.2, "redis_timeout": 0.5, **settings}
        return self.start(
            "flask", "--app", "survivor", "taskflow", "worker", until="Serving fleet", **settings
        )

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process printed so far."""
        return (self.directory / f"log{self._processes.index(process)}").read_text()

    def verify(self, data: Any = None, **options: Any) -> Task[Any]:
        """Add a task and verify it, in this process, which runs no callback."""
        with self.app.app_context(), outbox(survivor.taskflow) as box:
            address = f"{os.urandom(8).hex()}@example.com"
            task = survivor.taskflow.add_task(
                "fleet", data, allowed_methods=["EMAIL"], recipient={"email": address}, **options
            )
            return survivor.taskflow.verify(task.id, "EMAIL", box.last_code(address))

    def store(self) -> DeliveryStore:
        """Return the engine's steps in this process."""
        with self.app.app_context():
            return survivor.taskflow._service().runtime.new_engine()._store

    def go(self) -> None:
        """Let callbacks that wait end."""
        (self.directory / "go").touch()

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return what happened so far, or those events only."""
        path = self.directory / "events"
        lines = path.read_text().splitlines() if path.exists() else []
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
            service = survivor.taskflow._service()
            service.client.close()
            service.runtime._client.close()


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
