"""A message tells how long its code is good for from now, by the server's clock."""

from __future__ import annotations

from typing import Any

import pytest

from flask_taskflow import BaseStrategy, Method, Task, TaskFlow
from flask_taskflow._otp import OTP
from flask_taskflow.strategies._texts import minutes, render
from flask_taskflow.testing import travel
from tests.conftest import MakeApp

ANN = {"email": "ann@example.com"}


class Telling(BaseStrategy):
    """Keep what the text of each message says, and how long its code lasts."""

    def __init__(self) -> None:
        self.said: list[tuple[int, float | None, bool]] = []

    def send(self, task: Task[Any], otp: str) -> None:
        assert isinstance(otp, OTP)
        number = minutes(task, otp)
        self.said.append((number, otp.lasts, f"at most {number} min" in render("email/code.txt", task, otp)))


@pytest.fixture
def telling(taskflow: TaskFlow) -> Telling:
    strategy = Telling()
    taskflow.register_strategy(Method.EMAIL)(strategy)
    return strategy


@pytest.mark.parametrize("send", ["inline", "background"])
@pytest.mark.parametrize(
    ("ttl", "later", "expected"),
    [(600, 530, 2), (3600, 530, 2), (3600, 545, 10), (600, 300, 5), (300, 100, 4)],
)
def test_resent_code_is_announced_with_what_is_left(
    make_app: MakeApp,
    taskflow: TaskFlow,
    telling: Telling,
    send: str,
    ttl: float,
    later: float,
    expected: int,
) -> None:
    with make_app(eager=True, send=send).app_context():
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient=ANN, ttl=ttl)
        travel(later)
        taskflow.resend_otp(task.id, "EMAIL")

    first, second = telling.said
    assert first[0] == min(ttl, 600) // 60
    assert (second[0], second[2]) == (expected, True)
    assert second[1] is not None
    assert expected * 60 - 60 < second[1] <= expected * 60


def test_code_to_a_new_address_is_announced_with_what_is_left(
    make_app: MakeApp, taskflow: TaskFlow, telling: Telling
) -> None:
    with make_app(eager=True).app_context():
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient=ANN, ttl=600)
        travel(400)
        taskflow.update_recipient(task.id, {"email": "ann@work.example"})

    assert [number for number, _, _ in telling.said] == [10, 4]


def test_time_that_is_left_hides_with_its_code() -> None:
    otp = OTP("492817").lasting(30.0)

    assert (otp, otp.lasts, repr(otp)) == ("492817", 30.0, "OTP('******')")
    assert OTP("492817").lasts is None
