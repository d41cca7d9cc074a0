"""The bell: every listening process fires ``task_verified`` once, whatever comes down the channel."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask, current_app
from fleet_support import wait_until
from redis import Redis

from flask_taskflow import Task, TaskFlow, task_verified
from flask_taskflow.testing import Outbox, travel

Spawn = Callable[..., "Process"]

CHANNEL = "taskflow:0:bell"
DEADLINE = 10.0


class Ear:
    """A receiver of ``task_verified`` that keeps what it heard."""

    def __init__(self) -> None:
        self._heard: queue.Queue[str] = queue.Queue()

    def __call__(self, sender: Flask, task: Task[Any], **_: Any) -> None:
        self._heard.put(task.id)

    def next(self) -> str:
        return self._heard.get(timeout=DEADLINE)

    def next_within(self, seconds: float) -> str | None:
        try:
            return self._heard.get(timeout=seconds)
        except queue.Empty:
            return None

    def all(self) -> list[str]:
        heard = []
        while not self._heard.empty():
            heard.append(self._heard.get())
        return heard


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    with task_verified.connected_to(ear):
        yield ear


@pytest.fixture
def listening(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> Iterator[Flask]:
    """An app whose threads run, its context pushed."""
    app = make_app(recipient_max_sends=1000)
    with app.app_context():
        taskflow.start()
        yield app
        taskflow.stop(0)


def add(taskflow: TaskFlow) -> Task[Any]:
    return taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})


def verify_one(taskflow: TaskFlow, box: Outbox) -> str:
    """Add a task and verify it; return its id."""
    task = add(taskflow)
    return taskflow.verify(task.id, "EMAIL", box[-1].otp).id


def subscribers(redis: Redis) -> int:
    ((_, count),) = redis.pubsub_numsub(CHANNEL)
    return int(count)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("taskflow-")]


def test_verification_fires_the_signal_in_the_apps_context(
    listening: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    heard: queue.Queue[Any] = queue.Queue()

    def receive(sender: Flask, task: Task[Any], **_: Any) -> None:
        same = sender is listening and current_app.name == sender.name
        heard.put((same, taskflow.get_task(task.id) == task, threading.current_thread().name))

    with task_verified.connected_to(receive, sender=listening):
        verify_one(taskflow, box)

        assert heard.get(timeout=DEADLINE) == (True, True, "taskflow-signals")


def test_receiver_that_raises_silences_no_other(
    listening: Flask, taskflow: TaskFlow, box: Outbox, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(sender: Flask, **_: Any) -> None:
        raise RuntimeError("broken receiver")

    with task_verified.connected_to(broken):
        ids = [verify_one(taskflow, box) for _ in range(3)]

        assert [ear.next() for _ in ids] == ids
    assert "broken receiver" in caplog.text


def test_receiver_that_is_slow_delays_receivers_only(
    listening: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    entered, release, ran = threading.Event(), threading.Event(), threading.Event()
    taskflow.on_task_verified("q", name="act")(lambda task: ran.set())

    def slow(sender: Flask, **_: Any) -> None:
        entered.set()
        release.wait(DEADLINE)

    with task_verified.connected_to(slow):
        ids = [verify_one(taskflow, box)]
        assert entered.wait(DEADLINE)
        ids.append(verify_one(taskflow, box))
        assert ran.wait(DEADLINE), "callbacks go on"
        assert subscribers(redis) == 1
        release.set()

        assert [ear.next() for _ in ids] == ids


def test_bell_that_is_forged_fires_nothing(
    listening: Flask,
    taskflow: TaskFlow,
    box: Outbox,
    redis: Redis,
    ear: Ear,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """S46: of an unknown, a pending and a cancelled task."""
    runs: list[Any] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    pending, cancelled = add(taskflow), taskflow.cancel_task(add(taskflow).id)

    for task_id in ("a" * 34, pending.id, cancelled.id):
        redis.publish(CHANNEL, f"1 {task_id}")
    verified = verify_one(taskflow, box)

    assert ear.next() == verified
    assert ear.all() == []
    wait_until(lambda: bool(runs))
    assert runs == [verified]
    for task_id in ("a" * 34, pending.id, cancelled.id):
        assert f"task {task_id} is void" in caplog.text


def test_bell_that_is_replayed_fires_once(
    listening: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    """S46."""
    first = verify_one(taskflow, box)
    for _ in range(20):
        redis.publish(CHANNEL, f"1 {first}")
    second = verify_one(taskflow, box)

    assert [ear.next(), ear.next()] == [first, second]
    assert ear.all() == []


def test_bell_that_is_old_fires_nothing_in_a_new_process(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    """S46: a process that never fired for the task cannot be made to long afterwards."""
    with make_app(recipient_max_sends=10).app_context():
        old = verify_one(taskflow, box)
        travel(601)
    with make_app(recipient_max_sends=10).app_context():
        taskflow.start()
        redis.publish(CHANNEL, f"1 {old}")
        fresh = verify_one(taskflow, box)

        assert ear.next() == fresh
        assert ear.all() == []
        taskflow.stop(0)


JUNK: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "JSON": b'{"id": "' + b"a" * 34 + b'"}',
    "deep JSON": b"[" * 100_000,
    "a megabyte": b"1 " + b"a" * 1_000_000,
    "binary": bytes(range(256)),
    "another version": b"2 " + b"a" * 34,
    "line end": b"1 " + b"a" * 34 + b"\n",
    "upper case": b"1 " + b"A" * 34,
    "two ids": b"1 " + b"a" * 34 + b" " + b"a" * 34,
    "not UTF-8": b"1 " + b"\xff" * 34,
}


@pytest.mark.parametrize("kind", JUNK)
def test_junk_on_the_channel_is_logged_and_dropped(
    listening: Flask,
    taskflow: TaskFlow,
    box: Outbox,
    redis: Redis,
    ear: Ear,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """S47."""
    redis.publish(CHANNEL, JUNK[kind])
    verified = verify_one(taskflow, box)

    assert ear.next() == verified
    assert ear.all() == []
    assert f"Junk of {len(JUNK[kind])} bytes" in caplog.text
    assert "lost Redis" not in caplog.text


def test_junk_in_masses_is_logged_now_and_then(
    listening: Flask,
    taskflow: TaskFlow,
    box: Outbox,
    redis: Redis,
    ear: Ear,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """S47."""
    began = time.monotonic()
    for _ in range(300):
        redis.publish(CHANNEL, "junk")
    verified = verify_one(taskflow, box)

    assert ear.next() == verified
    lines = [record for record in caplog.records if "Junk" in record.getMessage()]
    assert 1 <= len(lines) <= 2 + (time.monotonic() - began)


def test_connection_that_is_cut_is_back_within_a_second(
    listening: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    for _ in range(3):
        assert redis.client_kill_filter(_type="pubsub") == 1
        killed, verified, heard = time.monotonic(), [], None
        while heard is None:
            verified.append(verify_one(taskflow, box))
            heard = ear.next_within(0.05)
            assert time.monotonic() - killed < 1

        assert heard in verified


def test_connection_that_idles_longer_than_the_timeout_stays(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    lost = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "lost Redis" in record.getMessage():
                lost.set()

    watch = Watch()
    logger = logging.getLogger("flask_taskflow")
    logger.addHandler(watch)
    try:
        with make_app(redis_timeout=0.1).app_context():
            taskflow.start()
            assert not lost.wait(0.5)
            assert ear.all() == []
            verified = verify_one(taskflow, box)
            assert ear.next() == verified
            taskflow.stop(0)
    finally:
        logger.removeHandler(watch)


def test_verification_right_after_start_is_never_missed(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, ear: Ear
) -> None:
    with make_app(recipient_max_sends=1000).app_context():
        for _ in range(50):
            task = add(taskflow)
            taskflow.start()
            taskflow.verify(task.id, "EMAIL", box[-1].otp)

            assert ear.next() == task.id
            taskflow.stop(0)


def test_service_call_starts_to_listen_before_its_step(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, ear: Ear
) -> None:
    app = make_app(TESTING=False)
    with app.app_context():
        task = add(taskflow)
        taskflow.stop(0)

        taskflow.verify(task.id, "EMAIL", box[-1].otp)

        assert ear.next() == task.id
        taskflow.stop(0)


def test_request_starts_to_listen(make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    app = make_app(TESTING=False)
    assert not own_threads()

    assert app.test_client().get("/nothing").status_code == 404

    assert subscribers(redis) == 1
    with app.app_context():
        taskflow.stop(0)


@pytest.mark.parametrize("settings", [{"autostart": False}, {"eager": True}, {"TESTING": True}])
def test_nothing_starts_by_itself_where_it_should_not(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, settings: dict[str, Any]
) -> None:
    app = make_app(**{"TESTING": False, **settings})
    app.test_client().get("/nothing")
    with app.app_context():
        add(taskflow)

    assert not own_threads()


def test_command_starts_nothing(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> None:
    app = make_app(TESTING=False)

    @app.cli.command("one-off")
    def one_off() -> None:
        add(taskflow)
        assert not own_threads()

    result = app.test_cli_runner().invoke(args=["one-off"])

    assert result.exception is None
    assert len(box) == 1


def test_stop_is_quick_and_may_be_repeated_and_undone(
    listening: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear
) -> None:
    for _ in range(3):
        began = time.monotonic()
        taskflow.stop()
        taskflow.stop()
        assert time.monotonic() - began < 1
        assert not own_threads()
        wait_until(lambda: subscribers(redis) == 0)
        taskflow.start()
        taskflow.start()
        assert sorted(own_threads()) == ["taskflow-callbacks", "taskflow-listener", "taskflow-signals"]
        assert subscribers(redis) == 1

    verified = verify_one(taskflow, box)
    assert ear.next() == verified
    assert ear.all() == []


def test_start_from_many_threads_starts_one_set(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    app = make_app()
    barrier = threading.Barrier(20)

    def start() -> None:
        with app.app_context():
            barrier.wait(DEADLINE)
            taskflow.start()

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert len(own_threads()) == 3
    assert subscribers(redis) == 1
    with app.app_context():
        taskflow.stop(0)


def test_start_when_redis_is_away_returns_and_stop_is_quick(make_app: MakeApp, taskflow: TaskFlow) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        with make_app(redis_url=url).app_context():
            began = time.monotonic()
            taskflow.start()
            started = time.monotonic()
            taskflow.stop()
            stopped = time.monotonic()

    assert started - began < 1.5
    assert stopped - started < 1


@pytest.mark.parametrize("apart", ["database", "prefix"])
def test_apps_apart_do_not_hear_each_other(
    make_app: MakeApp, box: Outbox, taskflow: TaskFlow, server: str, redis: Redis, apart: str
) -> None:
    changed = {"redis_url": f"{server}?db=1"} if apart == "database" else {"key_prefix": "other"}
    apps = [make_app(), make_app(**changed)]
    heard: queue.Queue[Any] = queue.Queue()

    def receive(sender: Flask, task: Task[Any], **_: Any) -> None:
        heard.put((sender, task.id))

    for app in apps:
        with app.app_context():
            taskflow.start()
    with task_verified.connected_to(receive):
        for app in apps:
            with app.app_context():
                verified = verify_one(taskflow, box)
            assert heard.get(timeout=DEADLINE) == (app, verified)
    for app in apps:
        with app.app_context():
            taskflow.stop(0)
    assert heard.empty()


class Process:
    """A Python process whose lines can be waited for."""

    def __init__(self, script: Path, url: str) -> None:
        # The child leads a group of its own, so that what it forks can be ended with it.
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "REDIS_URL": url},
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def lines(self, count: int) -> list[list[str]]:
        """The next lines, each in words."""
        return [self._lines.get(timeout=DEADLINE).split() for _ in range(count)]

    def rest(self) -> list[str]:
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return lines

    def close(self) -> int:
        """Close its input, which ends it; return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(DEADLINE)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


HEAD = """
    import multiprocessing, os, sys, threading
    from flask import Flask
    from flask_taskflow import Method, OutboxStrategy, TaskFlow, task_verified

    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
    app = Flask("app")
    app.config.update(SECRET_KEY="a secret key of the test suite, long enough")
    app.config["TASKFLOW_REDIS_URL"] = os.environ["REDIS_URL"]
    taskflow.init_app(app)

    @task_verified.connect
    def heard(sender, task, **_):
        print(f"heard {os.getpid()} {task.id}\\n", end="", flush=True)

    def serve():
        print(f"ready {os.getpid()}\\n", end="", flush=True)
        sys.stdin.read()
        taskflow.stop()
"""

ALONE = """
    with app.app_context():
        taskflow.start()
        serve()
"""

FORK = """
    with app.app_context():
        taskflow.start()
        child = os.fork()
        assert child or not [t for t in threading.enumerate() if t is not threading.main_thread()]
        taskflow.start()
        serve()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""

FORK_LAZILY = """
    with app.app_context():
        taskflow.start()
        child = os.fork()
        if not child:
            app.test_client().get("/nothing")
        serve()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""

MULTIPROCESSING = """
    def work():
        taskflow.start()
        print(f"ready {os.getpid()}\\n", end="", flush=True)
        threading.Event().wait()

    with app.app_context():
        taskflow.start()
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        serve()
        process.kill()
        process.join()
"""


@pytest.fixture
def spawn(tmp_path: Path, server: str) -> Iterator[Spawn]:
    """Start a Python process that runs a script."""
    processes: list[Process] = []

    def start(body: str) -> Process:
        script = tmp_path / f"process{len(processes)}.py"
        script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
        processes.append(Process(script, server))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def test_every_listening_process_fires_once(
    listening: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, ear: Ear, spawn: Spawn
) -> None:
    processes = [spawn(ALONE), spawn(ALONE)]
    pids = [process.lines(1)[0][1] for process in processes]

    verified = [verify_one(taskflow, box) for _ in range(2)]
    for task_id in verified:
        redis.publish(CHANNEL, f"1 {task_id}")

    expected = [["heard", task_id] for task_id in verified]
    for process, pid in zip(processes, pids, strict=True):
        assert process.lines(2) == [[word, pid, task_id] for word, task_id in expected]
        assert process.close() == 0
        assert process.rest() == []
    assert [ear.next(), ear.next()] == verified


@pytest.mark.parametrize(
    "body", [FORK, FORK_LAZILY, MULTIPROCESSING], ids=["fork", "lazily", "multiprocessing"]
)
def test_forked_child_has_a_listener_of_its_own(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, spawn: Spawn, body: str
) -> None:
    process = spawn(body)
    pids = {pid for _, pid in process.lines(2)}
    assert subscribers(redis) == 2
    with make_app(recipient_max_sends=10).app_context():
        for _ in range(3):
            verified = verify_one(taskflow, box)

            lines = process.lines(2)
            assert {(word, task_id) for word, _, task_id in lines} == {("heard", verified)}
            assert {pid for _, pid, _ in lines} == pids

    assert process.close() == 0
    assert process.rest() == []
    wait_until(lambda: subscribers(redis) == 0)


def test_process_that_ends_without_stop_ends_at_once(redis: Redis, spawn: Spawn) -> None:
    process = spawn("""
        with app.app_context():
            taskflow.start()
            print("ready", flush=True)
            sys.stdin.read()
    """)
    process.lines(1)
    began = time.monotonic()

    assert process.close() == 0

    assert time.monotonic() - began < 3
    assert process.rest() == []


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_process_that_was_frozen_hears_what_it_missed(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, spawn: Spawn
) -> None:
    process = spawn(ALONE)
    ((_, pid),) = process.lines(1)
    with make_app(recipient_max_sends=10).app_context():
        with frozen([int(pid)]):
            verified = verify_one(taskflow, box)

        assert process.lines(1) == [["heard", pid, verified]]
