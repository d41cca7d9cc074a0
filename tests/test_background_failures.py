"""Sends in the background when processes and Redis fail: real processes, as in ``test_failures.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET_KEY, MakeApp
from flask import Flask
from fleet_support import Fleet, Proxy, wait_until
from redis import Redis

from benchmarks.chaos import Server, own_server
from flask_taskflow import OutboxStrategy, Reject, Status, Task, TaskFlow, otp_sent
from flask_taskflow.signals import task_failed

pytestmark = pytest.mark.slow

EMAIL, PHONE = "a@example.com", "+84901234567"


class Senders(Fleet):
    """Processes that send by ``apps/sender.py``, and tasks for them, added in this process."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url, directory)
        self.taskflow = TaskFlow()
        for method in ("EMAIL", "SMS"):
            self.taskflow.register_strategy(method)(OutboxStrategy())
        self.producer = Flask("producer")
        self.producer.config.update(
            SECRET_KEY=SECRET_KEY,
            TESTING=True,
            TASKFLOW_REDIS_URL=url,
            TASKFLOW_SEND="background",
            TASKFLOW_RECIPIENT_MAX_SENDS=100,
        )
        self.taskflow.init_app(self.producer)

    def worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker, with default settings but those given."""
        return self.start(
            "flask", "--app", "apps.sender", "taskflow", "worker",
            until="sending codes",
            environment={"PYTHONPATH": str(Path(__file__).parent)},
            send="background",
            **settings,
        )  # fmt: skip

    def add(self, data: object = None, **options: Any) -> Task[Any]:
        """Add a task whose code a worker is to send."""
        given = {"allowed_methods": ["EMAIL"], "recipient": {"email": EMAIL, "phone_number": PHONE}}
        with self.producer.app_context():
            return self.taskflow.add_task("fleet", data, **{**given, **options})

    def verify_sent(self, event: dict[str, Any]) -> Task[Any]:
        """Verify a task by the code that a provider took."""
        with self.producer.app_context():
            return self.taskflow.verify(event["task"], event["method"], event["otp"])

    def drained(self) -> bool:
        """Tell whether no send is left."""
        return not list(self.redis.scan_iter(match="*:h:@*"))

    def close(self) -> None:
        super().close()
        with self.producer.app_context():
            service = self.taskflow._service()
            service.client.close()
            service.runtime._client.close()


MakeSenders = Callable[[str], Senders]


@pytest.fixture
def make_senders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSenders]:
    made: list[Senders] = []
    monkeypatch.setenv("SURVIVOR", str(tmp_path))

    def make(url: str) -> Senders:
        made.append(Senders(url, tmp_path))
        return made[-1]

    yield make
    for senders in made:
        senders.close()


@pytest.fixture
def senders(make_senders: MakeSenders, redis: Redis, server: str) -> Senders:
    """Senders on the session's server."""
    return make_senders(server)


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that the test may kill or stop."""
    with own_server("--appendfsync", "everysec") as server:
        yield server


def test_kill_while_a_code_is_sent_lets_another_process_send_it_within_five_seconds(senders: Senders) -> None:
    workers = [senders.worker(), senders.worker()]
    task = senders.add("wait")
    (first,) = senders.wait("sending")

    killed = time.monotonic()
    os.kill(first["pid"], signal.SIGKILL)
    second = senders.wait("sending", 2)[1]
    senders.go()
    (took,) = senders.wait("took")

    assert second["at"] - killed < 5
    assert {first["pid"], second["pid"]} == {worker.pid for worker in workers}
    assert first["otp"] == second["otp"]
    assert senders.verify_sent(took).id == task.id
    wait_until(senders.drained)


def test_kill_after_the_provider_took_a_code_sends_the_same_one_again(senders: Senders) -> None:
    senders.worker(), senders.worker()

    senders.add("kill")

    first, second = senders.wait("took", 2)
    wait_until(senders.drained)
    assert second["at"] - first["at"] < 5
    assert first["pid"] != second["pid"]
    assert first["otp"] == second["otp"]
    assert len(senders.events("took")) == 2
    assert senders.verify_sent(first).status is Status.SUCCESS


def test_sigterm_while_a_code_is_sent_lets_it_be_sent_once(senders: Senders) -> None:
    worker = senders.worker()
    senders.add("wait")
    senders.wait("sending")

    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in senders.log(worker))
    senders.go()

    assert worker.wait(10) == 0
    assert senders.drained()
    (took,) = senders.events("took")
    assert senders.verify_sent(took).status is Status.SUCCESS
    assert "Traceback" not in senders.log(worker)


def test_redis_killed_while_codes_are_sent_loses_none(make_senders: MakeSenders, mortal: Server) -> None:
    senders = make_senders(mortal.url)
    worker = senders.worker(send_threads=2, redis_timeout=0.5)
    tasks = [senders.add("wait", recipient={"email": f"{n}{EMAIL}"}) for n in range(5)]
    senders.wait("sending", 2)

    mortal.kill()
    senders.go()
    wait_until(lambda: len(senders.events("took")) == 2)
    mortal.start()
    took = senders.wait("took", 5)
    wait_until(senders.drained)

    assert {event["task"] for event in took} == {task.id for task in tasks}
    assert len(senders.events("took")) == 5
    assert {senders.verify_sent(event).status for event in took} == {Status.SUCCESS}
    assert "Traceback" not in senders.log(worker)


def test_redis_frozen_while_a_code_is_sent_is_no_failure_of_that(
    make_senders: MakeSenders, mortal: Server
) -> None:
    senders = make_senders(mortal.url)
    workers = [senders.worker(send_timeout=2, redis_timeout=0.2, send_attempts=1) for _ in range(2)]
    senders.add("wait", allowed_methods=["EMAIL", "SMS"])
    senders.wait("sending")

    mortal.signal(signal.SIGSTOP)
    senders.go()
    senders.wait("took")
    # Longer than the attempt may take; nothing tells when it is over but the time.
    senders.settle(3.5)
    mortal.signal(signal.SIGCONT)
    wait_until(senders.drained)
    senders.settle()

    (took,) = senders.events("took")
    assert senders.events("failed") == []
    assert senders.verify_sent(took).status is Status.SUCCESS
    for worker in workers:
        assert "given up" not in senders.log(worker)
        assert "Traceback" not in senders.log(worker)


def test_task_that_nobody_can_be_reached_for_fails_once_in_the_fleet(senders: Senders) -> None:
    workers = [senders.worker(send_backoff=0.05, poll=0.2) for _ in range(2)]

    task = senders.add("refuse", allowed_methods=["EMAIL", "SMS"])

    (failed,) = senders.wait("failed")
    wait_until(senders.drained)
    senders.settle()
    assert failed["task"] == task.id
    assert len(senders.events("failed")) == 1
    assert [event["method"] for event in senders.events("sending")] == ["EMAIL"] * 3 + ["SMS"] * 3
    for worker in workers:
        assert not any(event["otp"] in senders.log(worker) for event in senders.events("sending"))


@pytest.fixture
def proxy(redis: Redis, server: str) -> Iterator[Proxy]:
    proxy = Proxy(server.removeprefix("unix://"))
    yield proxy
    proxy.close()


class Gate(OutboxStrategy):
    """Run something when a code is sent, then send or refuse it."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] = bool
        self.refuses = False

    def send(self, task: Task[Any], otp: str) -> None:
        self.before()
        if self.refuses:
            raise Reject("as told")
        super().send(task, otp)


def sha_of(taskflow: TaskFlow, step: str) -> bytes:
    """Return what a step on codes bears on the wire."""
    return str(taskflow._service().runtime._codes._scripts._scripts[step].sha).encode()


@pytest.mark.parametrize("step", ["give_up", "sent"])
def test_reply_to_the_report_of_a_send_is_lost(
    make_app: MakeApp, proxy: Proxy, redis: Redis, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    taskflow, gate, told = TaskFlow(), Gate(), threading.Semaphore(0)
    taskflow.register_strategy("EMAIL")(gate)
    gate.refuses = step == "give_up"
    tasks: list[Task[Any]] = []

    def note(_: Flask, task: Task[Any], **__: object) -> None:
        tasks.append(task)
        told.release()

    with (
        make_app(taskflow, send="background", redis_url=proxy.url, poll=60).app_context(),
        (task_failed if step == "give_up" else otp_sent).connected_to(note),
    ):
        taskflow.start()
        for number in range(2):
            taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": f"{number}{EMAIL}"})
            assert told.acquire(timeout=10)
            wait_until(lambda: not list(redis.scan_iter(match="*:h:@*")))
            # The server has the script from here on.
            gate.before = lambda: setattr(proxy, "cut_next_reply_to", sha_of(taskflow, step))
        wait_until(lambda: not taskflow._service().runtime._senders["EMAIL"]._attempts)
        taskflow.stop()

    assert proxy.cuts == 1
    assert len(tasks) == 2
    assert len({task.id for task in tasks}) == 2
    assert len(gate.messages) == (0 if step == "give_up" else 2)
    assert "may be sent twice" not in caplog.text
