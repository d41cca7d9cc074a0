"""Strategies: how they are registered, what they are given, and what happens when they raise."""

from __future__ import annotations

import json
import logging
import pickle
import re
import traceback
from typing import Any

import pytest

from flask_taskflow import BaseStrategy, ConfigError, ConsoleStrategy, OutboxStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import InvalidCode, InvalidTask, SendFailed, SendLimitReached
from tests.conftest import MakeApp
from tests.support.tasks import PHONE, add, refused

EMAIL = "foobar@example.com"

pytestmark = pytest.mark.usefixtures("app")


class Flaky(BaseStrategy):
    """Fail as often as ``failures`` says, with the code in the error's text; keep what was sent."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.tried: list[str] = []
        self.sent: list[str] = []

    def send(self, task: Task[Any], otp: str) -> None:
        self.tried.append(str(otp))
        if self.failures:
            self.failures -= 1
            raise ConnectionError(f"550 rejected: your code is {otp}")
        self.sent.append(str(otp))


class Letters(OutboxStrategy):
    """Make its own codes, by its own pattern."""

    code_pattern: str | None = "[A-Z]{3}-[A-Z]{3}"
    word: Any = "ABC-DEF"

    def generate(self, task: Task[Any]) -> str:
        return self.word  # type: ignore[no-any-return]  # Junk, too.


@pytest.fixture
def letters(taskflow: TaskFlow) -> Letters:
    strategy = Letters()
    taskflow.register_strategy("EMAIL")(strategy)
    return strategy


def flaky(taskflow: TaskFlow, failures: int) -> Flaky:
    strategy = Flaky(failures)
    taskflow.register_strategy("EMAIL")(strategy)
    return strategy


def fail(taskflow: TaskFlow) -> SendFailed:
    with pytest.raises(SendFailed, match="could not be sent by EMAIL; the log says why") as caught:
        add(taskflow, recipient={"email": EMAIL})
    return caught.value


def test_strategy_may_be_a_class_or_an_instance_and_is_given_back(taskflow: TaskFlow) -> None:
    sent: list[str] = []

    class Pigeon(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            sent.append(type(self).__name__)

    owl = type("Owl", (Pigeon,), {})()

    assert taskflow.register_strategy("PIGEON")(Pigeon) is Pigeon
    assert taskflow.register_strategy("OWL")(owl) is owl
    add(taskflow, allowed_methods=["PIGEON", "OWL"], recipient={}, send_via=["PIGEON", "OWL"])

    assert sent == ["Pigeon", "Owl"]


class Mute(BaseStrategy):
    def generate(self, task: Task[Any]) -> str:
        return "123456"


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        *((none, "must be a BaseStrategy") for none in (object(), object, print, None, "Email", 7)),
        *((mute, r"for PIGEON, Mute, must define send\(task, otp\)") for mute in (Mute, Mute())),
        (
            type("Bad", (ConsoleStrategy,), {"address": "fax"}),
            "has address = 'fax', which is no field of a rec",
        ),
        (
            type("Bad", (ConsoleStrategy,), {"code_pattern": "[0-9"}),
            "a code_pattern that is no regular express",
        ),
        (
            type("Bad", (ConsoleStrategy,), {"code_pattern": 7}),
            "has a code_pattern that is no regular express",
        ),
    ],
)
def test_strategy_that_is_none_is_refused(taskflow: TaskFlow, strategy: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        taskflow.register_strategy("PIGEON")(strategy)

    with pytest.raises(InvalidTask, match=r"register_strategy\('PIGEON'\)"):
        add(taskflow, allowed_methods=["PIGEON"])


@pytest.mark.parametrize("method", ["", "pigeon", "A B", "A" * 33, None, 7])
def test_strategy_for_a_malformed_method_is_refused(taskflow: TaskFlow, method: Any) -> None:
    with pytest.raises((ConfigError, InvalidTask), match="a method must match"):
        taskflow.register_strategy(method)


@pytest.mark.parametrize(
    ("method", "address", "needed"),
    [
        ("EMAIL", ..., "email"),
        ("SMS", ..., "phone_number"),
        ("SMART_OTP", ..., "device_id"),
        ("PIGEON", ..., None),
        ("PIGEON", "email", "email"),
        ("EMAIL", "device_id", "device_id"),
        ("EMAIL", None, None),
    ],
)
def test_address_is_preset_for_built_in_methods(
    taskflow: TaskFlow, method: str, address: Any, needed: str | None
) -> None:
    strategy = OutboxStrategy(address)
    taskflow.register_strategy(method)(strategy)
    addresses = {"email": EMAIL, "phone_number": PHONE, "device_id": "device-0815"}

    for field in addresses:
        rest = {name: value for name, value in addresses.items() if name != field}
        if field == needed:
            with pytest.raises(InvalidTask, match=field):
                add(taskflow, allowed_methods=[method], recipient=rest)
        else:
            add(taskflow, allowed_methods=[method], recipient=rest)

    assert len(strategy.messages) == (3 if needed is None else 2)


def test_address_is_checked_after_the_strategy_normalised_it(taskflow: TaskFlow) -> None:
    class Broken(OutboxStrategy):
        def normalise(self, address: str) -> str:
            return f"{address}\r\nBcc: eve@example.com"

    taskflow.register_strategy("EMAIL")(Broken)

    with pytest.raises(InvalidTask, match="email is not usable"):
        add(taskflow, allowed_methods=["EMAIL"])


def test_send_is_given_the_task_and_a_code_that_hides(taskflow: TaskFlow) -> None:
    given: list[Any] = []

    class Email(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            given.extend([task, otp])

    taskflow.register_strategy("EMAIL")(Email)

    assert add(taskflow) == given[0]
    assert re.fullmatch("[0-9]{6}", given[1])
    assert str(given[1]) not in repr(given)
    refused(TypeError, pickle.dumps, given)


def test_raising_strategy_tells_the_task_and_no_code(
    taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    strategy = flaky(taskflow, 1)

    error = fail(taskflow)

    assert error.task is not None
    assert error.task.status is Status.PENDING
    assert taskflow.get_task(error.task.id) == error.task
    assert (error.methods, error.__cause__, error.__context__) == (("EMAIL",), None, None)
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    for text in ("".join(report.format()), caplog.text, repr(error), repr(vars(error))):
        assert strategy.tried[0] not in text
    assert "Sending by EMAIL to fo****@example.com" in caplog.text
    assert "ConnectionError raised by Flaky" in caplog.text
    assert "foobar" not in caplog.text


def test_failed_sends_count_and_tell_the_task(taskflow: TaskFlow) -> None:
    flaky(taskflow, 5)
    task = fail(taskflow).task
    assert task is not None
    for _ in range(4):
        again = refused(SendFailed, taskflow.resend_otp, task.id, "EMAIL")
        assert again.task == task

    refused(SendLimitReached, taskflow.resend_otp, task.id, "EMAIL")


@pytest.mark.parametrize(
    ("pattern", "made", "wrong", "typed"),
    [("[A-Z]{3}-[A-Z]{3}", "ABC-DEF", "123456", " ABC-DEF "), (None, "004217", "ABC-DEF", "004-217")],
    ids=["own pattern", "digits"],
)
def test_own_codes_verify_by_their_pattern(
    taskflow: TaskFlow, letters: Letters, pattern: str | None, made: str, wrong: str, typed: str
) -> None:
    letters.word, letters.code_pattern = made, pattern
    taskflow.register_strategy("EMAIL")(letters)
    task = add(taskflow)

    refused(InvalidCode, taskflow.verify, task.id, "EMAIL", wrong)
    assert taskflow.verify(task.id, "EMAIL", typed).status is Status.SUCCESS


@pytest.mark.parametrize(
    "junk", ["", "abc", "ABCDEF", " ABC-DEF", "ABC-DEF" * 20, None, 7, b"ABC-DEF", ["ABC-DEF"]]
)
def test_own_codes_that_are_junk_are_not_sent(taskflow: TaskFlow, letters: Letters, junk: Any) -> None:
    letters.word = junk

    assert fail(taskflow).__context__ is None
    assert letters.messages == []


def test_length_of_codes_is_configured_and_the_last_strategy_counts(
    make_app: MakeApp, taskflow: TaskFlow, letters: Letters
) -> None:
    last = OutboxStrategy()
    taskflow.register_strategy("EMAIL")(last)

    with make_app(otp_length=9).app_context():
        task = add(taskflow)
        refused(InvalidCode, taskflow.verify, task.id, "EMAIL", "123456")
        taskflow.verify(task.id, "EMAIL", last.messages[0].otp)

    assert letters.messages == []
    assert re.fullmatch("[0-9]{9}", last.messages[0].otp)


def test_console_strategy_prints_who_gets_which_code(
    taskflow: TaskFlow, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("EMAIL", "PIGEON"):
        taskflow.register_strategy(method)(ConsoleStrategy)

    add(taskflow, summary="Pay Bob", recipient={"email": EMAIL})
    add(taskflow, allowed_methods=["PIGEON"], recipient={})

    out, printed = capsys.readouterr()
    first, second = printed.splitlines()
    assert out == ""
    assert re.fullmatch(r"\[taskflow\] code \d{6} for foobar@example\.com \(Pay Bob\)", first)
    assert re.fullmatch(r"\[taskflow\] code \d{6} for you", second)


def test_outbox_strategy_keeps_messages_that_hide_their_code(taskflow: TaskFlow) -> None:
    shared: list[Any] = []
    methods = {"EMAIL": "email", "SMS": "phone_number"}
    for method, address in methods.items():
        taskflow.register_strategy(method)(OutboxStrategy(address, messages=shared))

    task = add(
        taskflow,
        allowed_methods=methods,
        recipient={"email": EMAIL, "phone_number": PHONE},
        send_via=methods,
    )

    assert [(message.task, message.addresses) for message in shared] == [(task, (EMAIL,)), (task, (PHONE,))]
    assert shared[0].otp not in repr(shared)
    assert json.dumps(shared[0].otp) == f'"{shared[0].otp!s}"'
