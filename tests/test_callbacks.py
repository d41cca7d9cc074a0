"""The engine inside one process: attempts, backoff, dead letters, order, timeouts, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask, current_app

from flask_taskflow import (
    ConfigError,
    Reject,
    Retry,
    Task,
    TaskFlow,
    callback_dead,
    callback_failed,
    callback_succeeded,
    current_delivery,
)
from flask_taskflow._callbacks import compute_backoff
from flask_taskflow._deliveries import DeliveryStore
from flask_taskflow.testing import Outbox, travel

ADDRESS = "a@example.com"


@pytest.fixture
def verified(taskflow: TaskFlow, box: Outbox) -> Callable[..., Task[Any]]:
    """Add a task and verify it at once."""

    def add_and_verify(queue: str = "q", data: Any = None, **options: Any) -> Task[Any]:
        number = len(box)
        task = taskflow.add_task(
            queue,
            data,
            allowed_methods=["EMAIL"],
            recipient={"email": f"{number}{ADDRESS}"},
            **options,
        )
        return taskflow.verify(task.id, "EMAIL", box[-1].otp)

    return add_and_verify


@pytest.fixture
def threaded(make_app: MakeApp, taskflow: TaskFlow) -> Iterator[Flask]:
    """An app whose threads the test starts; stopped afterwards."""
    app = make_app(lease=1, poll=0.2)
    with app.app_context():
        yield app
        taskflow.stop(timeout=1)


def keys_of(redis: Any, kind: str) -> list[bytes]:
    return list(redis.scan_iter(match=f"*:{kind}"))


def never(task: Task[Any]) -> None:
    raise AssertionError


def store_of(taskflow: TaskFlow) -> DeliveryStore:
    """Return the engine's steps, to be taken one by one."""
    return taskflow._service().runtime.new_engine()._store


def test_callback_that_succeeds_leaves_nothing(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    seen: list[Any] = []

    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        seen.append((task, current_delivery.id, current_delivery.attempt, current_app.name))

    task = verified(data={"amount": 3})

    assert seen == [(task, f"{task.id}:{seen[0][1].split(':')[1]}", 1, "app")]
    assert [
        kind for kind in ("ready", "delay", "lease", "dead", "meta", "body") if keys_of(redis, kind)
    ] == []


def test_current_delivery_outside_a_callback_says_so(app: Flask) -> None:
    with pytest.raises(RuntimeError, match="only there inside a callback"):
        print(current_delivery.id)


def test_failing_callback_is_retried_with_its_backoff_then_dead(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any, caplog: Any
) -> None:
    attempts: list[int] = []
    told: list[str] = []

    @taskflow.on_task_verified("q", name="work", backoff_strategy="exponential", backoff_time=10)
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)
        raise ValueError("the bank is closed")

    def failed(app: Flask, **details: Any) -> None:
        told.append(f"failed {details['callback']} {details['delivery'].attempt} {details['error']}")

    def dead(app: Flask, **details: Any) -> None:
        told.append(f"dead {details['delivery'].attempt}")

    with callback_failed.connected_to(failed), callback_dead.connected_to(dead):
        verified()
        travel(9.9)
        early = taskflow.run_due()
        travel(1.2)
        second = taskflow.run_due()
        travel(19)
        between = taskflow.run_due()
        travel(3.1)
        third = taskflow.run_due()

    assert (early, second, between, third) == (0, 1, 0, 1)
    assert attempts == [1, 2, 3]
    assert told == ["failed work 1 the bank is closed", "failed work 2 the bank is closed", "dead 3"]
    assert taskflow.run_due() == 0
    (error,) = redis.hvals(keys_of(redis, "error")[0].decode())
    assert error.startswith(b"ValueError: the bank is closed (at ")
    assert "attempt 3 of 3; it is a dead letter" in caplog.text


def test_backoff_of_each_strategy_is_capped_and_only_adds() -> None:
    def waits(strategy: str, jitter: float = 0) -> list[float]:
        return [compute_backoff(strategy, 2, n, cap=9, jitter=jitter) for n in (1, 2, 3, 4)]

    assert waits("fixed") == [2, 2, 2, 2]
    assert waits("linear") == [2, 4, 6, 8]
    assert waits("exponential") == [2, 4, 8, 9]
    for plain, jittered in zip(waits("linear"), waits("linear", 0.1), strict=True):
        assert plain <= jittered <= plain * 1.1
    assert compute_backoff("exponential", 2, 5000, cap=9, jitter=0) == 9


def test_retry_sets_the_delay_and_counts(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    attempts: list[int] = []

    @taskflow.on_task_verified("q", max_attempts=2, backoff_time=500)
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)
        raise Retry("not yet", after=3)

    verified()
    travel(2.9)
    early = taskflow.run_due()
    travel(0.2)
    late = taskflow.run_due()
    travel(1000)

    assert (early, late, attempts) == (0, 1, [1, 2])
    assert taskflow.run_due() == 0


def test_reject_makes_a_dead_letter_at_once(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    @taskflow.on_task_verified("q", max_attempts=9)
    def work(task: Task[Any]) -> None:
        raise Reject("no such account")

    verified()
    travel(10_000)

    assert taskflow.run_due() == 0
    assert redis.zcard(keys_of(redis, "dead")[0].decode()) == 1


def test_system_exit_in_a_callback_is_a_failure(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    attempts: list[int] = []

    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)
        if len(attempts) == 1:
            raise SystemExit(3)

    verified()
    travel(2)
    taskflow.run_due()

    assert attempts == [1, 2]


def test_two_callbacks_of_a_queue_both_run_and_fail_alone(
    app: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    ran: list[str] = []

    @taskflow.on_task_verified("q", name="one")
    def one(task: Task[Any]) -> None:
        ran.append(f"one {current_delivery.attempt}")
        raise ValueError

    @taskflow.on_task_verified("q", name="two")
    def two(task: Task[Any]) -> None:
        ran.append(f"two {current_delivery.attempt}")

    verified()
    travel(2)
    taskflow.run_due()

    assert sorted(ran) == ["one 1", "one 2", "two 1"]


def test_order_is_by_priority_then_first_in_first_out(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    ran: list[Any] = []
    with make_app().app_context():

        @taskflow.on_task_verified("q", name="one")
        def one(task: Task[Any]) -> None:
            ran.append(task.data)

        for number, priority in enumerate([0, 5, 0, -5, 5]):
            verified(data=f"{priority}/{number}", priority=priority)
        count = taskflow.run_due()

    assert count == 5
    assert ran == ["5/1", "5/4", "0/0", "0/2", "-5/3"]


def test_callback_of_another_process_waits_for_one_that_has_it(
    make_app: MakeApp, box: Outbox, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    ran: list[str] = []
    other = TaskFlow()

    @other.on_task_verified("q", name="new")
    def new(task: Task[Any]) -> None:
        ran.append(task.id)

    other_app = make_app(other)
    with other_app.app_context():
        other.run_due()
        other._service().runtime.new_engine()._tidy()

    with make_app().app_context():
        task = verified()
        taskflow.run_due()
    before = list(ran)
    with other_app.app_context():
        other.run_due()

    assert before == []
    assert ran == [task.id]


def test_tampered_body_is_a_dead_letter_and_runs_nothing(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    """S31."""
    ran: list[str] = []

    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        ran.append(task.id)

    with make_app().app_context():
        for replace in (b'"data":1', b""), (b"7:expires", b"x"):
            task = verified(data=1)
            body = keys_of(redis, "body")[0].decode()
            stored = redis.hget(body, task.id)
            assert stored is not None
            redis.hset(body, task.id, stored.replace(*replace))
            taskflow.run_due()

    assert ran == []
    assert redis.zcard(keys_of(redis, "dead")[0].decode()) == 2
    assert b"tampered" in redis.hvals(keys_of(redis, "error")[0].decode())[0]


def test_unreadable_meta_is_dropped_and_logged(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any, caplog: Any
) -> None:
    taskflow.on_task_verified("q")(never)

    with make_app().app_context():
        task = verified()
        redis.hset(keys_of(redis, "meta")[0].decode(), task.id, "nonsense")
        taskflow.run_due()

    assert "Dropped 1 unreadable deliveries of queue q" in caplog.text
    assert keys_of(redis, "ready") == keys_of(redis, "body") == []


def test_lost_lease_runs_again_then_waits_then_is_dead(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    dead: list[Any] = []

    taskflow.on_task_verified("q", name="work", max_attempts=1)(never)

    def on_dead(app: Flask, **details: Any) -> None:
        dead.append((details["task"].id, details["delivery"].attempt, str(details["error"])))

    app = make_app(max_lost=2)
    with app.app_context(), callback_dead.connected_to(on_dead):
        task = verified()
        store = store_of(taskflow)
        lost = []
        for pause in (30.1, 30.1, 30.1, 30.1):
            lost += [
                (item.token, item.lost, item.failures) for item in store.claim("q", ["work"], 1).deliveries
            ]
            travel(pause)
        taskflow.run_due()

    assert lost == [(1, 0, 0), (2, 1, 0), (3, 2, 0)]
    assert dead == [(task.id, 4, "lost with its process 3 times")]
    assert keys_of(redis, "lease") == []


def test_reports_hold_only_for_the_newest_token(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    taskflow.on_task_verified("q", name="work")(never)

    with make_app().app_context():
        verified()
        store = store_of(taskflow)
        (first,) = store.claim("q", ["work"], 1).deliveries
        travel(31)
        (second,) = store.claim("q", ["work"], 1).deliveries
        stale = [store.ack(first), store.fail(first, 1, ""), store.bury(first, ""), store.release(first)]
        lost = store.extend("q", [first, second])
        reports = [store.ack(second), store.ack(second)]

    assert stale == [False] * 4
    assert lost == [first]
    assert reports == [True, False]


def test_late_ack_counts_while_nobody_has_claimed_again(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    taskflow.on_task_verified("q", name="work")(never)

    with make_app().app_context():
        verified()
        store = store_of(taskflow)
        (item,) = store.claim("q", ["work"], 1).deliveries
        failed = store.fail(item, 60, "timed out")
        again = store.fail(item, 60, "timed out")
        acked = store.ack(item)

    assert (failed, again, acked) == (True, False, True)
    assert keys_of(redis, "delay") == keys_of(redis, "meta") == keys_of(redis, "body") == []


def test_released_delivery_runs_again_and_counts_nothing(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    attempts: list[int] = []

    @taskflow.on_task_verified("q", name="work")
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)

    with make_app().app_context():
        verified()
        store = store_of(taskflow)
        (item,) = store.claim("q", ["work"], 1).deliveries
        released = store.release(item)
        taskflow.run_due()

    assert (released, attempts) == (True, [1])


def test_more_due_than_one_call_may_move_keeps_the_order(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    ran: list[int] = []

    @taskflow.on_task_verified("q", name="work", max_attempts=2)
    def work(task: Task[Any]) -> None:
        if current_delivery.attempt == 1:
            raise Retry(after=5)
        ran.append(task.priority)

    with make_app().app_context():
        verified(priority=1)
        taskflow.run_due()
        delay, meta, body = (keys_of(redis, kind)[0].decode() for kind in ("delay", "meta", "body"))
        ((member, due),) = redis.zrange(delay, 0, -1, withscores=True)
        task_id = member.decode()[17:]
        line, stored = redis.hget(meta, task_id), redis.hget(body, task_id)
        assert line is not None
        assert stored is not None
        for number in range(2, 602):
            copy = f"{number:026d}".translate(str.maketrans("0123456789", "abcdefghij"))
            identity = task_id[:8] + copy
            parts = line.decode().split()
            parts[1], parts[2] = f"{number:016x}", str(number)
            redis.hset(meta, identity, " ".join(parts))
            redis.hset(body, identity, stored)
            redis.zadd(delay, {f"{number:016x}:{identity}": due})
        travel(6)
        store = store_of(taskflow)
        first, second = store.claim("q", ["work"], 16), store.claim("q", ["work"], 16)

    assert (first.again, first.deliveries) == (True, [])
    assert second.again is False
    ranks = [int(redis.hget(meta, item.task_id).split()[2]) for item in second.deliveries]
    assert ranks == list(range(601, 585, -1))


def test_old_dead_letters_are_forgotten(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any, caplog: Any
) -> None:
    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        raise Reject

    with make_app(dead_retention=3600).app_context():
        verified()
        taskflow.run_due()
        engine = taskflow._service().runtime.new_engine()
        travel(3599)
        engine._tidy()
        kept = keys_of(redis, "dead")
        travel(2)
        engine._tidy()

    assert len(kept) == 1
    assert keys_of(redis, "dead") == keys_of(redis, "error") == []
    assert "Forgot 1 dead letters of queue q" in caplog.text


def test_two_callbacks_of_one_name_are_refused(taskflow: TaskFlow) -> None:
    taskflow.on_task_verified("q", name="work")(print)

    with pytest.raises(ConfigError, match="has a callback work already"):
        taskflow.on_task_verified("q", name="work")(print)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue": "a b"}, "a queue must match"),
        ({"queue": print}, "name the queue"),
        ({"name": "<lambda>"}, "set name="),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"backoff_strategy": "random"}, "backoff_strategy"),
        ({"backoff_time": -1}, "backoff_time"),
    ],
)
def test_bad_callback_arguments_are_refused(
    taskflow: TaskFlow, options: dict[str, Any], problem: str
) -> None:
    queue = options.pop("queue", "q")

    with pytest.raises(ConfigError, match=problem):
        taskflow.on_task_verified(queue, **options)(print)


async def _asynchronous(task: Task[Any]) -> None:
    """Never run."""


@pytest.mark.parametrize(
    ("function", "problem"),
    [(_asynchronous, "plain function"), (lambda: None, "one argument"), (lambda a, b: None, "one argument")],
)
def test_function_that_cannot_be_a_callback_is_refused(
    taskflow: TaskFlow, function: Callable[..., Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        taskflow.on_task_verified("q", name="work")(function)


def test_threads_run_a_callback_soon_after_its_bell(
    threaded: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    done = threading.Event()
    taskflow.on_task_verified("q", name="work")(lambda task: done.set())

    taskflow.start()
    verified()

    assert done.wait(2)


def test_threads_retry_by_themselves(
    threaded: Flask, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    attempts: list[int] = []
    done = threading.Event()

    @taskflow.on_task_verified("q", backoff_time=0.05)
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)
        if len(attempts) < 3:
            raise ValueError
        done.set()

    taskflow.start()
    verified()

    assert done.wait(3)
    assert attempts == [1, 2, 3]


def test_callback_longer_than_its_lease_runs_once(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    attempts: list[int] = []
    go, succeeded = threading.Event(), threading.Event()

    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        attempts.append(current_delivery.attempt)
        go.wait(1.5)

    def on_success(app: Flask, **_: Any) -> None:
        succeeded.set()

    with make_app(lease=0.5, poll=0.1).app_context(), callback_succeeded.connected_to(on_success):
        taskflow.start()
        verified(data={"of": ["what", "cannot", "be", "hashed"]})
        done = succeeded.wait(5)
        taskflow.stop()

    assert done
    assert attempts == [1]


def test_attempt_past_its_timeout_fails_and_frees_its_place(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], caplog: Any
) -> None:
    release, retried = threading.Event(), threading.Event()

    @taskflow.on_task_verified("q", name="work", backoff_time=0.05)
    def work(task: Task[Any]) -> None:
        if current_delivery.attempt == 1:
            release.wait(10)
        else:
            retried.set()

    with make_app(callback_threads=1, poll=0.1).app_context():
        taskflow.start()
        verified(timeout=0.4)
        done = retried.wait(5)
        release.set()
        taskflow.stop()

    assert done
    assert "timed out after 0.4 s" in caplog.text
    assert "has used half of its 0.4 s" in caplog.text


def test_late_success_after_a_timeout_ends_the_delivery(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    release, failed, succeeded = threading.Event(), threading.Event(), threading.Event()
    taskflow.on_task_verified("q", name="work", backoff_time=60)(lambda task: release.wait(10))

    def on_failure(app: Flask, **_: Any) -> None:
        failed.set()

    def on_success(app: Flask, **_: Any) -> None:
        succeeded.set()

    with (
        make_app(poll=0.1).app_context(),
        callback_failed.connected_to(on_failure),
        callback_succeeded.connected_to(on_success),
    ):
        taskflow.start()
        verified(timeout=0.2)
        timed_out = failed.wait(5)
        release.set()
        ended = succeeded.wait(5)
        taskflow.stop()

    assert timed_out
    assert ended
    assert keys_of(redis, "meta") == []


def test_threads_that_never_end_are_bounded(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]]
) -> None:
    release = threading.Event()
    begun: list[int] = []
    lock, enough = threading.Lock(), threading.Event()

    @taskflow.on_task_verified("q", name="work", max_attempts=9, backoff_time=0.01)
    def work(task: Task[Any]) -> None:
        with lock:
            begun.append(current_delivery.attempt)
            if len(begun) == 2:
                enough.set()
        release.wait(10)

    with make_app(callback_threads=1, poll=0.05).app_context():
        taskflow.start()
        verified(timeout=0.1)
        reached = enough.wait(5)
        beyond = threading.Event().wait(0.5)
        count = len(begun)
        release.set()
        taskflow.stop()

    assert reached
    assert not beyond
    assert count == 2


def test_stop_waits_for_what_runs(
    make_app: MakeApp, taskflow: TaskFlow, verified: Callable[..., Task[Any]], redis: Any
) -> None:
    begun, ended = threading.Event(), threading.Event()

    @taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        begun.set()
        threading.Event().wait(0.3)
        ended.set()

    with make_app().app_context():
        taskflow.start()
        verified()
        running = begun.wait(2)
        taskflow.stop()
        finished = ended.is_set()

    assert running
    assert finished
    assert keys_of(redis, "meta") == []


def test_idle_process_sends_one_command_a_poll(make_app: MakeApp, taskflow: TaskFlow, redis: Any) -> None:
    taskflow.on_task_verified("q", name="work")(print)

    def sent() -> int:
        stats = redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "ping"))

    with make_app(poll=0.4).app_context():
        taskflow.start()
        threading.Event().wait(0.2)
        before = sent()
        threading.Event().wait(2)
        used = sent() - before
        taskflow.stop()

    assert 4 <= used <= 6
