"""One tree of errors, each with its code and status, that survive a pickle and show no secret."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from flask_taskflow import Recipient, Status, Task, errors
from flask_taskflow.errors import OTPRejected, TaskFlowError

CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if isinstance(item, type) and issubclass(item, TaskFlowError) and not name.startswith("_")
}
REJECTED = {
    "CodeExpired",
    "MethodNotAllowed",
    "TaskExpired",
    "TaskLocked",
    "TaskNotFound",
    "TaskNotPending",
    "WrongCode",
}
TASK: Task[Any] = Task(
    id="a" * 34,
    queue="q",
    data={"secret": "hunter2"},
    summary=None,
    recipient=Recipient(email="foobar@example.com"),
    allowed_methods=("EMAIL",),
    status=Status.PENDING,
    priority=0,
    timeout=300.0,
    created_at=datetime.now(UTC),
    expires_at=datetime.now(UTC),
)


def test_tree_is_the_one_of_the_contract() -> None:
    assert set(CLASSES) == REJECTED | {
        "ConfigError",
        "InvalidCode",
        "InvalidTask",
        "OTPRejected",
        "ResendTooSoon",
        "SendFailed",
        "SendLimitReached",
        "StrategyFailed",
        "TaskFlowError",
        "TaskTampered",
    }
    assert {name for name, item in CLASSES.items() if issubclass(item, OTPRejected)} == REJECTED | {
        "OTPRejected"
    }


def test_codes_are_words_of_their_own() -> None:
    codes = [item.code for item in CLASSES.values()]

    assert len(set(codes)) == len(codes)
    assert all(code.isidentifier() and code.islower() for code in codes)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *((name, 400) for name in sorted(REJECTED)),
        ("InvalidCode", 422),
        ("InvalidTask", 422),
        ("ResendTooSoon", 429),
        ("SendLimitReached", 429),
        ("SendFailed", 503),
        ("StrategyFailed", 503),
        ("TaskTampered", 503),
        ("ConfigError", 500),
    ],
)
def test_status_is_what_http_answers(name: str, status: int) -> None:
    assert CLASSES[name].http_status == status


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CLASSES)
def test_error_survives_a_pickle(name: str, protocol: int) -> None:
    error = CLASSES[name]("what happened")

    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  # Our own bytes.

    assert type(again) is type(error)
    assert str(again) == "what happened"
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (errors.WrongCode("wrong", attempts_left=3), "attempts_left", 3),
        (errors.ResendTooSoon("soon", retry_after=12.5), "retry_after", 12.5),
        (errors.SendLimitReached("enough", retry_after=60), "retry_after", 60),
        (errors.TaskNotPending("over", status=Status.SUCCESS), "status", Status.SUCCESS),
        (errors.SendFailed("failed", task=TASK, methods=("SMS",)), "task", TASK),
        (errors.SendFailed("failed", task=TASK, methods=("SMS",)), "methods", ("SMS",)),
    ],
)
def test_error_with_data_keeps_it(error: TaskFlowError, attribute: str, value: object) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # Our own bytes.

    assert getattr(error, attribute) == value
    assert getattr(again, attribute) == value
    assert getattr(copy.copy(error), attribute) == value


def test_error_shows_neither_data_nor_addresses() -> None:
    error = errors.SendFailed("failed", task=TASK, methods=("EMAIL",))

    assert "hunter2" not in repr(error) + str(vars(error))
    assert "foobar" not in repr(error) + str(vars(error))


def test_bad_values_are_value_errors_too() -> None:
    assert issubclass(errors.InvalidTask, ValueError)
    assert issubclass(errors.InvalidCode, ValueError)
