"""The threads of a process: when they start, how they stop, what becomes of them after a fork."""

from __future__ import annotations

import dataclasses
import socket
import sys
import threading
import time
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import Task, task_verified
from flask_taskflow._delivery.attempts import Attempt
from flask_taskflow._delivery.outbox import Ended
from flask_taskflow._service import current_service
from flask_taskflow._store.deliveries import End
from tests.conftest import Spawn
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.processes import ROOT, Process
from tests.support.sending import Post
from tests.support.stage import SECRET_KEY, Stage
from tests.support.tasks import at_once, in_context


def own_threads() -> list[str]:
    return sorted(each.name for each in threading.enumerate() if each.name.startswith("taskflow-"))


def test_service_call_starts_to_listen_before_its_step(stage: Stage) -> None:
    stage.app(TESTING=False)
    ear = stage.hear(task_verified)
    task = stage.add()
    stage.taskflow.stop(0)

    stage.verify(task)

    assert ear.tasks() == [task.id]


def test_request_starts_to_listen(stage: Stage) -> None:
    app = stage.app(TESTING=False)
    assert not own_threads()

    assert app.test_client().get("/nothing").status_code == 404

    wait_until(lambda: stage.listeners() == 1)


@pytest.mark.parametrize("settings", [{"autostart": False}, {"eager": True}, {"TESTING": True}])
def test_nothing_starts_by_itself_where_it_should_not(stage: Stage, settings: dict[str, Any]) -> None:
    stage.app(**{"TESTING": False, **settings}).test_client().get("/nothing")
    stage.add()

    assert not own_threads()


def test_command_starts_nothing(stage: Stage) -> None:
    app = stage.app(TESTING=False)

    @app.cli.command("one-off")
    def one_off() -> None:
        stage.add()
        assert not own_threads()

    result = app.test_cli_runner().invoke(args=["one-off"])

    assert result.exception is None
    assert len(stage.box) == 1


def test_threads_are_named_by_what_they_do(post: Post) -> None:
    post.taskflow.start()

    sends = ["taskflow-sends-EMAIL", "taskflow-sends-SMS"]
    assert own_threads() == ["taskflow-callbacks", "taskflow-listener", *sends, "taskflow-signals"]


@pytest.mark.promise("F23")
def test_stop_is_quick_and_may_be_repeated_and_undone(stage: Stage) -> None:
    stage.start()
    ear = stage.hear(task_verified)
    taken: list[float] = []

    # A busy machine may hold some of them up.
    while len(taken) < 3 or (min(taken) >= 1 and len(taken) < 20):
        began = time.monotonic()
        stage.taskflow.stop()
        stage.taskflow.stop()
        taken.append(time.monotonic() - began)
        assert not own_threads()
        wait_until(lambda: stage.listeners() == 0)
        stage.taskflow.start()
        stage.taskflow.start()
        assert own_threads() == ["taskflow-callbacks", "taskflow-listener", "taskflow-signals"]
        wait_until(lambda: stage.listeners() == 1)

    task = stage.verified()
    assert ear.tasks() == [task.id]
    assert ear.rest() == []
    assert min(taken) < 1


def test_start_from_many_threads_starts_one_set(stage: Stage) -> None:
    app = stage.app()

    assert at_once(app, [stage.taskflow.start] * 20) == [None] * 20

    assert len(own_threads()) == 3
    wait_until(lambda: stage.listeners() == 1)


@pytest.mark.parametrize("refused", ["taskflow-listener", "taskflow-signals", "taskflow-callbacks"])
def test_thread_that_the_system_refuses_is_tried_again_at_the_next_request(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    work, start, left = stage.work(), threading.Thread.start, [True]

    def refuse(thread: threading.Thread) -> None:
        if thread.name == refused and left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    app = stage.app(TESTING=False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(2):
        app.test_client().get("/nothing")
    stage.verified()

    assert work.begun.acquire(timeout=60)
    assert left == []


def test_calls_go_on_while_the_system_has_no_thread(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    work, start = stage.work(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("taskflow-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    stage.app(TESTING=False)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        task = stage.verified()
    stage.add()

    assert work.begun.acquire(timeout=60)
    assert [each.id for each in work.tasks] == [task.id]


def test_stop_goes_on_after_an_end_that_cannot_be_reported(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.work()
    stage.app()
    stage.verified()
    (item,) = inside.store().claim("q", ["work"], 1).deliveries
    stage.taskflow.start()
    engine = inside.service().runtime._engine
    assert engine is not None
    # No text that can be sent.
    bad = dataclasses.replace(item, task_id="\udce9")
    engine._outbox.put(Ended(Attempt(bad, 60), End(bad, "ack"), None))

    stage.taskflow.stop(0)

    assert not own_threads()
    assert "The threads of taskflow-callbacks could not be stopped." in caplog.text


def test_callback_that_adds_a_task_while_threads_stop_starts_nothing(stage: Stage) -> None:
    stopped = threading.Event()

    def add(task: Task[Any]) -> None:
        stopped.wait(60)
        stage.add("other")

    work = stage.work(add)
    app = stage.app(TESTING=False, callback_threads=1)
    for _ in range(3):
        stage.verified()
    assert work.begun.acquire(timeout=60)
    stopping = threading.Thread(target=in_context, args=(app, stage.taskflow.stop))
    stopping.start()
    wait_until(lambda: "taskflow-callbacks" in own_threads() and not current_service().runtime.started)
    stopped.set()
    stopping.join()

    assert len(work.tasks) == 1
    assert own_threads() == []


def test_start_when_redis_is_away_returns_and_stop_is_quick(stage: Stage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        stage.app(redis_url=f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        began = time.monotonic()
        stage.taskflow.start()
        started = time.monotonic()
        stage.taskflow.stop()
        stopped = time.monotonic()

    assert started - began < 30
    assert stopped - started < 30


SLOW_FORKS = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("fork", "multiprocessing")]


@pytest.mark.promise("F14")
@pytest.mark.parametrize("mode", ["fork, request", "fork, no hooks", *SLOW_FORKS])
def test_forked_child_has_a_listener_of_its_own(stage: Stage, spawn: Spawn, mode: str) -> None:
    stage.app()
    process = spawn(mode)
    pids = {pid for _, pid in process.lines(2)}
    wait_until(lambda: stage.listeners() == 2)

    for _ in range(3):
        task = stage.verified()

        lines = process.lines(2)
        assert {(word, task_id) for word, _, task_id in lines} == {("heard", task.id)}
        assert {pid for _, pid, _ in lines} == pids

    assert process.close() == 0
    assert process.rest() == []
    wait_until(lambda: stage.listeners() == 0)


@pytest.mark.promise("F14")
def test_forked_child_that_starts_nothing_has_a_name_of_its_own(stage: Stage, spawn: Spawn) -> None:
    stage.app()
    process = spawn("fork, idle")

    (parent,), (child,) = process.lines(2)

    assert parent != child
    assert process.close() == 0


def test_child_that_comes_out_of_a_callback_or_a_strategy_ends_there(server: str, redis: Redis) -> None:
    process = Process(ROOT / "tests" / "support" / "apps" / "forking.py", REDIS_URL=server)
    try:
        ended = {way: int(status) for way, status in process.lines(5)}
        status = process.close()
    finally:
        process.clear()

    assert ended == {"return": 0, "raise": 1, "exit": 3, "say": 1, "send": 1}
    assert (status, process.rest()) == (0, [])


def test_process_that_ends_without_stop_ends_at_once(stage: Stage, spawn: Spawn) -> None:
    process = spawn("without a stop")
    process.lines(1)
    began = time.monotonic()

    assert process.close() == 0

    assert time.monotonic() - began < 60
    assert process.rest() == []


#: What a process does whose callback runs while it ends: with a pool of Python's, and with one that is shut.
ENDS = """
import atexit, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from flask import Flask
from flask_taskflow import OutboxStrategy, TaskFlow

app, taskflow, begun, late = Flask("app"), TaskFlow(), threading.Event(), threading.Event()
taskflow.register_strategy("EMAIL")(OutboxStrategy())

@taskflow.on_task_verified("q", name="work", max_attempts=1)
def work(task):
    begun.set()
    time.sleep(0.5) if sys.argv[1] == "soon" else late.wait()
    ThreadPoolExecutor().submit(print, "done", flush=True)

app.config.from_prefixed_env("APP")
taskflow.init_app(app)
# Somebody else's handler, which goes on after ours.
atexit.register(lambda: late.set() or time.sleep(1))
with app.app_context():
    taskflow.start()
    print("ready", flush=True)
    begun.wait()
"""


@pytest.mark.parametrize(("takes", "drain", "told"), [("soon", 60, ["done"]), ("late", 0.1, [])])
def test_callback_of_a_process_that_ends_has_pools_or_is_not_counted(
    stage: Stage, takes: str, drain: float, told: list[str]
) -> None:
    stage.work(max_attempts=1)
    stage.app()
    settings = {"TASKFLOW_REDIS_URL": stage.server, "TASKFLOW_DRAIN": str(drain), "SECRET_KEY": SECRET_KEY}
    process = Process("-c", ENDS, takes, **{f"APP_{name}": value for name, value in settings.items()})
    process.lines(1)
    stage.verified()

    code, lines = process.close(), process.rest()
    process.clear()
    stage.run(after=60)

    # Python 3.12 starts no thread while it ends: then the attempt is only not counted.
    assert (code, lines) == (0, [] if sys.version_info[:2] == (3, 12) else told)
    assert stage.keys("dead") == []
    assert stage.keys("meta") == []
