"""What most tests of tasks begin with: a task for two methods, wrong codes, calls that are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import BaseStrategy, Task, TaskFlow, TaskLocked, WrongCode

EMAIL = "ann@example.com"
NEW_EMAIL = "new@example.com"
PHONE = "+12025550110"
BOTH = ("EMAIL", "SMS")

AnyError = TypeVar("AnyError", bound=BaseException)


def with_settings(**settings: Any) -> pytest.MarkDecorator:
    """Let the fixture ``app`` have these ``TASKFLOW_`` settings in a test."""
    return pytest.mark.parametrize("app", [settings], indirect=True, ids=["-".join(settings)])


def add(taskflow: TaskFlow, **changes: Any) -> Task[Any]:
    """Add a task that may be confirmed by both methods, with other arguments if some are given."""
    given: dict[str, Any] = {
        "allowed_methods": BOTH,
        "recipient": {"email": EMAIL, "phone_number": PHONE},
        **changes,
    }
    return taskflow.add_task(given.pop("queue", "q"), given.pop("data", None), **given)


class Tap(BaseStrategy):
    """Keep what it was given, as the person does whom it was sent to, and raise its error if it has one."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.codes: list[str] = []
        self.error = error

    def send(self, task: Task[Any], otp: str) -> None:
        self.codes.append("".join(otp))
        if self.error is not None:
            raise self.error


def other(code: str, number: int = 1) -> str:
    """Return a code that differs from a code and from those of other numbers."""
    return str((int(code) + number) % 10 ** len(code)).zfill(len(code))


def refused(error: type[AnyError], call: Callable[..., object], *arguments: Any) -> AnyError:
    """Make a call that must raise an error, and return that."""
    with pytest.raises(error) as caught:
        call(*arguments)
    return caught.value


def guess_wrong(taskflow: TaskFlow, task: Task[Any], code: str, times: int = 1) -> list[int | None]:
    """Give wrong codes for an e-mail; return how many attempts are left after each."""
    wrong = [other(code, number + 1) for number in range(times)]
    return [refused(WrongCode, taskflow.verify, task.id, "EMAIL", otp).attempts_left for otp in wrong]


def lock(taskflow: TaskFlow, task: Task[Any], code: str) -> None:
    """Lock a task by wrong codes, of which it had none so far."""
    guess_wrong(taskflow, task, code, 4)
    refused(TaskLocked, taskflow.verify, task.id, "EMAIL", other(code, 5))


def keys_like(redis: Redis, pattern: str) -> list[str]:
    """Return the names of keys, sorted."""
    return sorted(cast(bytes, key).decode() for key in redis.keys(pattern))


def key_of(redis: Redis, task: Task[Any]) -> str:
    """Return the key of a task."""
    (key,) = keys_like(redis, f"*task:{task.id}")
    return key


def stored_task(redis: Redis, task: Task[Any]) -> dict[str, str]:
    """Return a task as it is stored."""
    raw = cast(dict[bytes, bytes], redis.hgetall(key_of(redis, task)))
    return {name.decode(): value.decode() for name, value in raw.items()}


def at_once(app: Flask, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all calls together, each in a thread; return what each returned or raised, in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(30)
        return in_context(app, call)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def in_context(app: Flask, call: Callable[[], Any]) -> Any:
    """Return what a call returned or raised."""
    with app.app_context():
        try:
            return call()
        except Exception as error:
            return error
