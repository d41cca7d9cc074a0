"""Callbacks: which functions may be one, their attempts, backoff and dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import current_app

from flask_taskflow import (
    ConfigError,
    Reject,
    Retry,
    Task,
    callback_dead,
    callback_failed,
    current_delivery,
)
from flask_taskflow._delivery.attempts import compute_backoff
from flask_taskflow.testing import travel
from tests.support.sending import Elaborate
from tests.support.stage import Stage

pytestmark = pytest.mark.usefixtures("app")


def test_callback_that_succeeds_leaves_nothing(stage: Stage) -> None:
    seen: list[Any] = []

    @stage.taskflow.on_task_verified("q")
    def work(task: Task[Any]) -> None:
        seen.append((task, current_delivery.id, current_delivery.attempt, current_app.name))

    task = stage.verified(data={"amount": 3})

    assert seen == [(task, f"{task.id}:{seen[0][1].split(':')[1]}", 1, "app")]
    assert stage.keys("ready", "delay", "lease", "dead", "meta", "body") == []


def test_current_delivery_outside_a_callback_says_so() -> None:
    with pytest.raises(RuntimeError, match="only there inside a callback"):
        print(current_delivery.id)


@pytest.mark.promise("F12")
def test_failing_callback_is_retried_with_its_backoff_then_dead(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    failed, dead = stage.hear(callback_failed), stage.hear(callback_dead)
    closed = ValueError("the bank is closed")
    work = stage.work(closed, closed, closed, backoff_strategy="exponential", backoff_time=10)

    stage.verified()
    runs = []
    for pause in (5, 6.1, 10, 12.1):
        travel(pause)
        runs.append(stage.run())

    assert runs == [0, 1, 0, 1]
    assert work.attempts == [1, 2, 3]
    assert [(told["callback"], told["delivery"].attempt, str(told["error"])) for told in failed.rest()] == [
        ("work", 1, "the bank is closed"),
        ("work", 2, "the bank is closed"),
    ]
    assert [told["delivery"].attempt for told in dead.rest()] == [3]
    assert stage.run() == 0
    (error,) = stage.redis.hvals(stage.keys("error")[0])
    assert error.startswith(b"ValueError: the bank is closed (at ")
    assert "attempt 3 of 3: ValueError: the bank is closed (at " in caplog.text
    assert "; it is a dead letter" in caplog.text


class Declined(Reject):
    """As errors of API clients are, whose attributes are what a server answered."""

    def __init__(self, answer: dict[str, str]) -> None:
        super().__init__(answer["why"])
        self.answer = answer

    def __getattr__(self, name: str) -> str:
        return self.answer[name]


class Opaque(ValueError):
    """Tells nothing of itself."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        raise RuntimeError

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("make", "most", "told"),
    [(lambda: Declined({"why": "no money"}), 3, b"Declined: no money"), (Opaque, 1, b"Opaque: (at")],
    ids=["those that it lacks", "all"],
)
def test_error_whose_attributes_raise_is_the_one_that_counts(
    stage: Stage, make: Callable[[], BaseException], most: int, told: bytes
) -> None:
    def fail(task: Task[Any]) -> None:
        raise make()

    work = stage.work(*[fail] * 3, max_attempts=most)

    stage.verified()
    stage.run()
    stage.run(after=10_000)

    assert work.attempts == [1]
    (stored,) = stage.redis.hvals(stage.keys("error")[0])
    assert told in stored


NO_TIMES: list[Any] = [float("nan"), "soon", None]


@pytest.mark.promise("F12")
@pytest.mark.parametrize(
    ("error", "options", "waits"),
    [
        (Retry("not yet", after=3), {"max_attempts": 2, "backoff_time": 500}, [3]),
        *((Retry(after=after), {"max_attempts": 2, "backoff_time": 500}, [500]) for after in NO_TIMES),
        (Elaborate("busy"), {"max_attempts": 2, "backoff_time": 500}, [500]),
        (Reject("no such account"), {"max_attempts": 9}, []),
        (SystemExit(3), {"max_attempts": 3}, [1, 1]),
    ],
)
@pytest.mark.promise("F12")
def test_callback_that_raises_runs_again_when_it_is_due_then_is_dead(
    stage: Stage, error: BaseException, options: dict[str, Any], waits: list[float]
) -> None:
    work = stage.work(*[error] * 9, **options)

    stage.verified()
    runs = []
    for wait in waits:
        travel(wait / 2)
        early = stage.run()
        travel(wait / 2 + wait / 10)
        runs.append((early, stage.run()))
    travel(10_000)

    assert runs == [(0, 1)] * len(waits)
    assert work.attempts == list(range(1, len(waits) + 2))
    assert stage.run() == 0
    assert stage.redis.zcard(stage.keys("dead")[0]) == 1


def test_backoff_of_each_strategy_is_capped_and_only_adds() -> None:
    def waits(strategy: str, jitter: float = 0) -> list[float]:
        return [compute_backoff(strategy, 2, n, cap=9, jitter=jitter) for n in (1, 2, 3, 4)]

    assert waits("fixed") == [2, 2, 2, 2]
    assert waits("linear") == [2, 4, 6, 8]
    assert waits("exponential") == [2, 4, 8, 9]
    for plain, jittered in zip(waits("linear"), waits("linear", 0.1), strict=True):
        assert plain <= jittered <= plain * 1.1
    assert compute_backoff("exponential", 2, 5000, cap=9, jitter=0) == 9


def test_two_callbacks_of_a_queue_both_run_and_fail_alone(stage: Stage) -> None:
    one, two = stage.work(ValueError, name="one"), stage.work(name="two")

    stage.verified()
    travel(2)
    stage.run()

    assert (one.attempts, two.attempts) == ([1, 2], [1])


async def _asynchronous(task: Task[Any]) -> None:
    """Never run."""


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (print, {"queue": "a b"}, "a queue must match"),
        (print, {"queue": print}, "name the queue"),
        (print, {"name": "<lambda>"}, "name or alias must match"),
        (print, {"max_attempts": 0}, "max_attempts"),
        (print, {"max_attempts": True}, "max_attempts"),
        (print, {"backoff_strategy": "random"}, "backoff_strategy"),
        (print, {"backoff_strategy": ["fixed"]}, "backoff_strategy"),
        (print, {"backoff_time": -1}, "backoff_time"),
        (_asynchronous, {}, "plain function"),
        (lambda: None, {"name": "work"}, "one argument"),
        (lambda a, b: None, {"name": "work"}, "one argument"),
    ],
)
def test_callback_that_cannot_be_one_is_refused(
    stage: Stage, function: Callable[..., Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        stage.taskflow.on_task_verified(**{"queue": "q", **options})(function)
