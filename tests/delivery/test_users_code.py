"""What users' code, the system and the server may do to the engine: it goes on, and nothing runs twice."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
from flask import Flask, appcontext_pushed, g
from redis import Redis, RedisError

from flask_taskflow import (
    ConfigError,
    Task,
    TaskFlow,
    callback_dead,
    callback_failed,
    callback_succeeded,
    task_expiring,
    task_verified,
)
from flask_taskflow._delivery import telling
from flask_taskflow._delivery.announcer import _REMEMBERED, Announcer
from flask_taskflow._operator.doctor import examine
from flask_taskflow._service import current_service
from flask_taskflow.testing import redis_server, travel
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.processes import ROOT, UNTRACED, Process
from tests.support.stage import Stage


class Ends(BaseException):
    """As ``gevent.Timeout``: no Exception."""


@pytest.mark.parametrize("end", [SystemExit, asyncio.CancelledError, Ends, GeneratorExit])
def test_any_end_of_a_callback_is_a_failure_at_once(stage: Stage, end: type[BaseException]) -> None:
    work = stage.work(end("enough"), name="work", max_attempts=2)
    stage.app()
    failed, done = stage.hear(callback_failed), stage.hear(callback_succeeded)

    stage.verified()
    counts = [stage.run(), stage.run(after=2)]

    assert counts == [1, 1]
    assert work.attempts == [1, 2]
    assert [type(told["error"]) for told in failed.rest()] == [end]
    assert len(done.rest()) == 1


def _asynchronous() -> list[Callable[..., Any]]:
    async def coroutine(task: Task[Any]) -> None: ...

    def generator(task: Task[Any]) -> Iterator[None]:
        yield

    class Called:
        async def __call__(self, task: Task[Any]) -> None: ...

    wrapped = functools.wraps(coroutine)(lambda task: coroutine(task))
    return [coroutine, generator, functools.partial(coroutine), wrapped, Called()]


@pytest.mark.parametrize("function", _asynchronous())
def test_what_would_have_to_be_run_later_is_no_callback(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="must be a plain function"):
        TaskFlow().on_task_verified("q")(function)


def test_coroutine_that_a_callback_returns_is_a_failure(stage: Stage) -> None:
    async def never() -> None: ...

    stage.taskflow.on_task_verified("q", name="work", max_attempts=1)(lambda task: never())
    stage.app()
    dead = stage.hear(callback_dead)

    stage.verified()
    stage.run()

    assert str(dead.next()["error"]) == "the callback returned a coroutine, which nobody runs"


@pytest.mark.parametrize("eager", [False, True])
def test_context_of_an_attempt_is_torn_down_with_its_error_before_that_is_told(
    stage: Stage, eager: bool
) -> None:
    told: list[Any] = []

    def fail(task: Task[Any]) -> None:
        g.work = "half done"
        raise ValueError("no")

    stage.work(fail, name="work")
    app = stage.app(eager=eager)
    app.teardown_appcontext(lambda error: told.append(("torn down", g.get("work"), type(error).__name__)))

    def receive(sender: Flask, **details: Any) -> None:
        told.append(("told", g.get("work"), g.get("other")))
        g.other = "of the first receiver"

    other = types.FunctionType(receive.__code__, receive.__globals__, None, None, receive.__closure__)
    with callback_failed.connected_to(receive), callback_failed.connected_to(other):
        stage.verified()
        stage.run()

    first = told.index(("torn down", "half done", "ValueError"))
    assert [item for item in told[first:] if item[0] == "told"] == [("told", None, None)] * 2
    assert not [item for item in told[:first] if item[0] == "told"]


def test_module_whose_name_is_no_text_fails_as_others_do(stage: Stage) -> None:
    """As one that is read from a file whose name is no UTF-8."""
    space: dict[str, Any] = {"__name__": "r\udce9sum\udce9"}
    raising = types.FunctionType((lambda task: [][0]).__code__, space)
    stage.taskflow.on_task_verified("q", name="work", max_attempts=1)(raising)
    stage.app()
    task = stage.verified()

    stage.run()

    (dead,) = [entry for entry in stage.taskflow.get_course(task.id) if entry.event == "dead"]
    assert dead.cause == "IndexError"
    assert stage.run(after=60) == 0


def test_teardown_function_that_raises_fails_the_attempt(stage: Stage) -> None:
    stage.work(lambda task: setattr(g, "mine", True), name="work", max_attempts=1)
    app = stage.app()
    dead = stage.hear(callback_dead)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if g.get("mine"):
            raise RuntimeError("could not commit")

    stage.verified()
    stage.run()

    assert str(dead.next()["error"]) == "could not commit"


def out_of_order(
    app: Flask, stack: ExitStack, part: str, error: type[Exception] = ConnectionError
) -> threading.Event:
    """Let an app give no context to some threads, told by a part of their name, until an event is set."""
    mended = threading.Event()

    def connect(sender: Flask) -> None:
        if part in threading.current_thread().name and not mended.is_set():
            raise error("the database is away")

    stack.enter_context(appcontext_pushed.connected_to(connect, app))
    return mended


@pytest.mark.parametrize("error", [ConnectionError, RedisError])
def test_attempt_whose_app_gives_no_context_has_failed(stage: Stage, error: type[Exception]) -> None:
    """Also by a Redis of the app's own."""
    work = stage.work(name="work", max_attempts=9, backoff_time=0.1)
    failed = stage.hear(callback_failed)
    with ExitStack() as stack:
        mended = out_of_order(stage.app(poll=0.1), stack, "-callbacks-runs", error)
        stage.taskflow.start()
        task = stage.verified()
        told = [failed.next() for _ in range(2)]
        mended.set()

        assert work.begun.acquire(timeout=60)
        stage.taskflow.stop()

    assert [type(each["error"]) for each in told] == [error] * 2
    assert work.attempts[0] >= 3
    assert "lost" not in [entry.event for entry in stage.taskflow.get_course(task.id)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EMAIL", "reminders"])
def test_send_or_reminder_whose_app_gives_no_context_is_tried_again(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    ear = stage.hear(task_expiring)
    with ExitStack() as stack:
        mended = out_of_order(stage.app(poll=0.1, send="background"), stack, f"-{kind}-runs")
        stage.taskflow.start()
        task = stage.add(ttl=3600, remind=[3599.5])
        wait_until(lambda: caplog.text.count("could not be ended") >= 2)
        mended.set()

        if kind == "EMAIL":
            wait_until(lambda: stage.box)
        else:
            ear.next()
        stage.taskflow.stop()

    assert "lost" not in [entry.event for entry in stage.taskflow.get_course(task.id)]


@pytest.mark.parametrize("how", [RuntimeError, SystemExit])
def test_teardown_that_fails_silences_the_end_of_no_other(stage: Stage, how: type[BaseException]) -> None:
    stage.work(name="work")
    app, dead = stage.app(max_lost=0, poll=0.1), stage.hear(callback_dead)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if threading.current_thread().name.endswith("-ends"):
            raise how("the database is away")

    tasks = {stage.verified().id for _ in range(3)}
    assert len(inside.store().claim("q", ["work"], 3).deliveries) == 3
    travel(60)
    stage.taskflow.start()

    assert {dead.next()["task"].id for _ in tasks} == tasks
    stage.taskflow.stop()


@pytest.fixture
def hang() -> Iterator[Callable[..., None]]:
    """Return a receiver that hangs until the test ends."""
    go = threading.Event()

    def receive(sender: Flask, **details: Any) -> None:
        go.wait(60)

    yield receive
    go.set()


def test_receiver_that_hangs_silences_no_log_and_is_told_of(
    stage: Stage, hang: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_LONG", 0.1)
    caplog.set_level(logging.INFO)
    stage.work(lambda task: None, ValueError("the bank is gone"), name="work", max_attempts=1)
    stage.start(poll=0.1)
    with callback_succeeded.connected_to(hang):
        stage.verified()
        wait_until(lambda: "a receiver of the signal callback-succeeded, has run for" in caplog.text)

        stage.verified()

        wait_until(lambda: "the bank is gone" in caplog.text)
        wait_until(lambda: "callback_dead" in caplog.messages)
        stage.taskflow.stop(0)


def test_receiver_that_hangs_silences_the_loss_of_no_other(
    stage: Stage, hang: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    stage.work(name="work")
    stage.app(max_lost=0, poll=0.1)
    tasks = [stage.verified().id for _ in range(3)]
    assert len(inside.store().claim("q", ["work"], 3).deliveries) == 3
    travel(60)
    with callback_dead.connected_to(hang):
        stage.taskflow.start()

        wait_until(lambda: all(f"{task} is dead" in caplog.text for task in tasks))
        stage.taskflow.stop(0)


def test_receiver_that_exits_or_is_asynchronous_silences_no_other(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def leave(sender: Flask, **details: Any) -> None:
        raise SystemExit(1)

    async def later(sender: Flask, **details: Any) -> None:
        heard.append("later")

    app = stage.app(eager=True)
    # As Flask does with its extra, asgiref.
    run = lambda *args, **names: asyncio.run(later(*args, **names))  # noqa: E731
    monkeypatch.setattr(app, "ensure_sync", lambda function: run if function is later else function)
    with task_verified.connected_to(leave), task_verified.connected_to(later):
        ear = stage.hear(task_verified)
        for _ in range(2):
            stage.verified()

    assert len(ear.rest()) == 2
    assert heard == ["later"] * 2
    assert caplog.text.count("A receiver of the signal task-verified raised.") == 2


def test_interrupt_that_is_none_is_a_failure_and_silences_no_signal(stage: Stage) -> None:
    """Ctrl+C comes to the main thread: in one of ours it is what somebody's code raised."""

    def interrupt(sender: Flask, **details: Any) -> None:
        raise KeyboardInterrupt

    stage.work(KeyboardInterrupt(), name="work", max_attempts=1)
    stage.start(poll=0.1)
    dead, heard = stage.hear(callback_dead), stage.hear(task_verified)
    with task_verified.connected_to(interrupt):
        tasks = [stage.verified().id for _ in range(2)]

        assert sorted(heard.tasks(2)) == sorted(tasks)
    assert type(dead.next()["error"]) is KeyboardInterrupt


def test_priority_that_none_may_have_holds_no_other_queue_up(stage: Stage) -> None:
    """Somebody wrote it to Redis: what is never claimed was asked for again and again."""
    works = [stage.work(queue=queue, name="work") for queue in ("q", "other")]
    stage.start(poll=0.1)
    stage.verified()
    assert works[0].begun.acquire(timeout=60)
    (ready,) = current_service().keys.of_queue("q", "h:work:ready")
    stage.redis.zadd(ready, {f"{1:016x}:x": math.inf})
    stage.verified()
    assert works[0].begun.acquire(timeout=60)

    stage.verified("other")

    assert works[1].begun.acquire(timeout=60)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
        pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1200)]),
    ],
)
def test_engine_goes_on_whatever_code_of_an_app_does(server: str, redis: Redis, seconds: int) -> None:
    """In callbacks, receivers, strategies, teardown functions and log filters, all at once, for some time."""
    script = ROOT / "tests" / "support" / "apps" / "hostile.py"
    process = Process(script, seconds, 1, REDIS_URL=server, PYTHONPATH=str(ROOT))
    try:
        told = process.line(within=seconds + 300).split()
    finally:
        process.clear()

    count, ways, *fine, threads = told
    assert int(count) > 1
    assert int(ways) > 3
    assert fine == ["True"] * 3, "all ran, a signal was heard, the threads live"
    assert int(threads) < 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_ends_as_it_starts_takes_no_place(stage: Stage) -> None:
    traced, left = threading.gettrace(), [True]

    def end(*_: Any) -> None:
        if threading.current_thread().name == "taskflow-callbacks-runs" and left:
            left.pop()
            raise SystemExit

    work = stage.work(name="work")
    stage.start(callback_threads=1, poll=0.1)
    threading.settrace(end)
    try:
        stage.verified()

        assert work.begun.acquire(timeout=60)
    finally:
        threading.settrace(cast(Any, traced))
    assert left == []


@pytest.mark.slow
def test_listener_that_is_ended_from_outside_goes_on(server: str, redis: Redis) -> None:
    """As libraries do that set a time for a thread, and miss theirs."""
    script = ROOT / "tests" / "support" / "apps" / "ended.py"
    process = Process(script, REDIS_URL=server, PYTHONPATH=str(ROOT), **UNTRACED)
    try:
        assert process.line() == "heard"
    finally:
        process.clear()


def test_muted_signal_reaches_nobody(stage: Stage) -> None:
    stage.app(eager=True)
    ear = stage.hear(task_verified)

    with task_verified.muted():
        stage.verified()

    assert ear.rest() == []


@pytest.mark.slow
def test_receiver_that_waits_holds_up_no_other_callback(stage: Stage) -> None:
    """Its own time is over meanwhile, and nobody takes over what runs beside it."""
    told, go, ended = threading.Event(), threading.Event(), threading.Event()

    def wait(task: Task[Any]) -> None:
        go.wait(60)

    def slow(sender: Flask, **details: Any) -> None:
        told.set()
        ended.wait(60)

    work = stage.work(wait, wait, name="work", max_attempts=1)
    with callback_dead.connected_to(slow):
        stage.start(lease=1, poll=0.1)
        stage.verified(timeout=0.2)
        assert told.wait(60)
        stage.verified()
        work.begun.acquire()
        assert work.begun.acquire(timeout=60)
        # Longer than a lease, which only a scheduler that goes on extends.
        threading.Event().wait(2.2)
        go.set()
        ended.set()
        wait_until(lambda: not stage.keys("lease"))

    assert len(work.tasks) == 2


def test_thread_that_cannot_start_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, start = ["no"], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("taskflow-callbacks-") and refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    work = stage.work(name="work", max_attempts=1)
    stage.start(poll=0.1)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    stage.verified()

    assert work.begun.acquire(timeout=60)
    assert refusals == []
    assert work.attempts == [1]


def test_process_in_which_nothing_can_run_any_more_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    hang = threading.Event()
    stage.work(*[lambda task: hang.wait(30)] * 2, name="work", max_attempts=1)
    stage.start(callback_threads=1, poll=0.1)

    for _ in range(2):
        stage.verified(timeout=0.1)
    wait_until(lambda: "nothing more runs in this process" in caplog.text)
    wait_until(current_service().operations.stuck)
    found = [item for item in examine(current_service()) if item.subject == "process"]
    hang.set()

    assert [(item.level, "attempts that hang" in item.text) for item in found] == [("bad", True)]


def test_report_that_is_refused_for_a_while_gets_through(stage: Stage) -> None:
    with redis_server() as url, Redis.from_url(url) as admin:
        work = stage.work(lambda task: admin.config_set("min-replicas-to-write", 1), name="work")
        done = stage.hear(callback_succeeded)
        stage.start(redis_url=url, poll=0.1, lease=5)
        stage.verified()
        work.begun.acquire()
        wait_until(lambda: admin.config_get("min-replicas-to-write")["min-replicas-to-write"] == "1")
        threading.Event().wait(0.3)

        admin.config_set("min-replicas-to-write", 0)

        done.next()
        stage.taskflow.stop()
    assert work.attempts == [1]


def test_clock_that_steps_over_a_lease_runs_nothing_twice(stage: Stage) -> None:
    go = threading.Event()
    work = stage.work(lambda task: go.wait(60), name="work")
    done = stage.hear(callback_succeeded)
    stage.start(lease=5, poll=0.1, max_lost=1000)
    stage.verified()
    work.begun.acquire()

    def is_claimed_anew() -> bool:
        # A heartbeat may come before the claim: then the clock must step once more.
        travel(120)
        (line,) = stage.redis.hvals(stage.keys("meta")[0])
        return int(line.split()[5]) > 1

    wait_until(is_claimed_anew)
    go.set()

    assert done.next()["delivery"].attempt == 1
    assert work.attempts == [1]
    wait_until(lambda: not stage.keys("lease", "ready", "delay"))
    assert stage.keys("dead") == []


@pytest.mark.parametrize("by", ["run_due", "threads"])
def test_queues_take_turns(stage: Stage, by: str) -> None:
    order: list[str] = []
    for queue in ("letters", "transfers"):
        stage.taskflow.on_task_verified(queue)(lambda task: order.append(task.queue))
    if by == "run_due":
        stage.app()
    else:
        stage.app(callback_threads=1, poll=0.1, recipient_max_sends=100)
    for queue in ["letters"] * 20 + ["transfers"]:
        stage.verified(queue)

    if by == "run_due":
        stage.run()
    else:
        stage.taskflow.start()
    wait_until(lambda: len(order) == 21)

    assert order.index("transfers") < 5


def test_announcer_remembers_so_many_and_fires_for_none_twice() -> None:
    announcer = Announcer(Flask("app"), None)  # type: ignore[arg-type]

    first = [announcer._first(f"{number}") for number in range(_REMEMBERED + 10)]

    assert all(first)
    assert not announcer._first(f"{_REMEMBERED + 9}")
    assert len(announcer._fired) == _REMEMBERED


def test_one_line_tells_of_each_attempt(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "flask_taskflow._delivery")
    stage.work(ValueError("one"), ValueError("two"), name="fails", max_attempts=2)
    stage.app()
    stage.verified()
    stage.run()
    stage.run(after=3)

    told = [item.levelname for item in caplog.records if "Callback fails" in item.getMessage()]

    assert told == ["WARNING", "ERROR"]
