"""One tree of errors, each with its code and status, that survive a pickle and show no secret."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from flask_taskflow import Status, errors
from flask_taskflow.errors import OTPRejected, TaskFlowError
from tests.support.cases import a_task
from tests.support.docs import rows

CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, TaskFlowError) and not name.startswith("_")
}
REJECTED = {"CodeExpired", "MethodNotAllowed", "TaskExpired", "TaskLocked", "TaskNotFound"}
REJECTED |= {"CodeRepeated", "NotHolder", "RecipientBlocked", "TaskNotPending", "WrongCode"}
TASK = a_task()


def test_tree_is_the_one_of_the_page() -> None:
    documented = [(row[0], row[1], int(row[2])) for row in rows("api.md", "## Errors")]
    rejected = {name for name, item in CLASSES.items() if issubclass(item, OTPRejected)}

    assert documented == [(name, item.code, item.http_status) for name, item in CLASSES.items()]
    assert len(documented) == len(CLASSES)
    assert len(documented) == 23
    assert rejected == REJECTED | {"OTPRejected"}
    assert issubclass(errors.InvalidTask, ValueError)
    assert issubclass(errors.InvalidCode, ValueError)


def test_codes_are_words_of_their_own() -> None:
    codes = [item.code for item in CLASSES.values()]

    assert len(set(codes)) == len(codes)
    assert all(code.isidentifier() and code.islower() for code in codes)


STATUSES = {
    **dict.fromkeys(REJECTED, 400),
    "InvalidCode": 422,
    "KeyReused": 409,
    "InvalidTask": 422,
    "ResendTooSoon": 429,
}
STATUSES |= {"SendLimitReached": 429, "SendFailed": 503, "StrategyFailed": 503, "TaskTampered": 503}
STATUSES |= {"ConfigError": 500, "KeyMissing": 503}


def test_status_is_what_http_answers() -> None:
    assert {name: CLASSES[name].http_status for name in STATUSES} == STATUSES


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        *((item("what happened"), {}) for item in CLASSES.values()),
        (errors.WrongCode("wrong", attempts_left=3), {"attempts_left": 3}),
        (errors.ResendTooSoon("soon", retry_after=12.5), {"retry_after": 12.5}),
        (errors.SendLimitReached("enough", retry_after=60), {"retry_after": 60}),
        (errors.KeyMissing("another key", fingerprint="abcde"), {"fingerprint": "abcde"}),
        (errors.TaskNotPending("over", status=Status.SUCCESS), {"status": Status.SUCCESS}),
        (errors.SendFailed("failed", task=TASK, methods=("SMS",)), {"task": TASK, "methods": ("SMS",)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_survives_a_pickle_and_a_copy(error: TaskFlowError, kept: dict[str, object]) -> None:
    dumps = [pickle.dumps(error, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]

    for again in (*map(pickle.loads, dumps), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert {name: getattr(again, name) for name in kept} == kept


def test_error_shows_neither_data_nor_addresses() -> None:
    error = errors.SendFailed("failed", task=TASK, methods=("EMAIL",))

    assert "hunter2" not in repr(error) + str(vars(error))
    assert "foobar" not in repr(error) + str(vars(error))
