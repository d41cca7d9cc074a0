"""What most tests of tasks begin with: a task for two methods, wrong codes, calls that meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask

from flask_taskflow import Task, TaskFlow

EMAIL = "ann@example.com"
PHONE = "+12025550110"
BOTH = ("EMAIL", "SMS")


def add(taskflow: TaskFlow, **changes: Any) -> Task[Any]:
    """Add a task that may be confirmed by both methods, with other arguments if some are given."""
    given: dict[str, Any] = {
        "allowed_methods": BOTH,
        "recipient": {"email": EMAIL, "phone_number": PHONE},
        **changes,
    }
    return taskflow.add_task(given.pop("queue", "q"), given.pop("data", None), **given)


def other(code: str, number: int = 1) -> str:
    """Return a code that differs from a code and from those of other numbers."""
    return str((int(code) + number) % 10 ** len(code)).zfill(len(code))


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
