"""What the tests of strategies share: the codes that one was given, and a send that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import BaseStrategy, SendFailed, Task


class Watched(BaseStrategy):
    """Keep the codes that are given to the strategy which comes next among the bases, sent or not."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

    def send(self, task: Task[Any], otp: str) -> None:
        self.codes.append(str(otp))
        super().send(task, otp)


def failed_send(app: Flask, send: Callable[[], object]) -> tuple[SendFailed, str]:
    """Run what cannot send; return the error and its traceback, with all local values."""
    with app.app_context(), pytest.raises(SendFailed) as caught:
        send()
    lines = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    return caught.value, "".join(lines)
