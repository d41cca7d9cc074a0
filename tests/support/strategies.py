"""What the tests of strategies share: apps that send by one of them, and the codes that it was given."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import BaseStrategy, SendFailed, Task, TaskFlow


class Watched(BaseStrategy):
    """Keep the codes that are given to the strategy which comes next among the bases, sent or not."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

    def send(self, task: Task[Any], otp: str) -> str | None:
        self.codes.append(str(otp))
        return super().send(task, otp)


class Sending:
    """Apps whose codes go out by one strategy.

    :param strategy: the one that is registered for the method; its ``codes`` are kept here, too.
    :param recipient: who is asked, unless a test says otherwise.
    """

    def __init__(
        self,
        make_app: Callable[..., Flask],
        taskflow: TaskFlow,
        method: str,
        strategy: Watched,
        recipient: dict[str, str],
    ) -> None:
        taskflow.register_strategy(method)(strategy)
        self._make_app, self.taskflow, self.codes = make_app, taskflow, strategy.codes
        self._method, self._recipient = method, recipient

    @contextmanager
    def app(self, **settings: Any) -> Iterator[Flask]:
        """Push the context of an app with these settings."""
        app = self._make_app(**{"eager": True, **settings})
        with app.app_context():
            yield app

    def add(self, **options: Any) -> Task[Any]:
        given: dict[str, Any] = {"allowed_methods": [self._method], "recipient": self._recipient}
        return self.taskflow.add_task("q", {"amount": 5}, **{**given, **options})

    def fail(self, **options: Any) -> tuple[Task[Any], str]:
        """Add a task whose code cannot be sent; return it, and the traceback with all local values."""
        with pytest.raises(SendFailed) as caught:
            self.add(**options)
        error = caught.value
        assert error.task is not None
        assert (error.methods, error.__cause__, error.__context__) == ((self._method,), None, None)
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        return error.task, "".join(lines)

    def assert_verifies(self, task: Task[Any], code: str | None = None) -> None:
        """Assert that a code, the first one that was sent, verifies a task."""
        assert self.taskflow.verify(task.id, self._method, code or self.codes[0]).status == "SUCCESS"
