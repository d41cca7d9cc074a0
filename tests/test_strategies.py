"""Strategies: how they are registered, what they are given, and what happens when they raise."""

from __future__ import annotations

import json
import logging
import pickle
import re
import traceback
from datetime import datetime
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask
from redis import Redis

from flask_taskflow import (
    BaseStrategy,
    ConfigError,
    ConsoleStrategy,
    InvalidCode,
    Method,
    OutboxStrategy,
    SendFailed,
    SendLimitReached,
    Status,
    Task,
    TaskFlow,
    WrongCode,
)
from flask_taskflow.errors import InvalidTask
from flask_taskflow.testing import travel

EMAIL = "foobar@example.com"


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


def add(taskflow: TaskFlow, **changes: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": EMAIL}, **changes}
    return taskflow.add_task("q", {"amount": 5}, **given)


def test_strategy_may_be_a_class_or_an_instance_and_is_given_back(app: Flask, taskflow: TaskFlow) -> None:
    sent: list[str] = []

    class Pigeon(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            sent.append(type(self).__name__)

    owl = type("Owl", (Pigeon,), {})()

    assert taskflow.register_strategy("PIGEON")(Pigeon) is Pigeon
    assert taskflow.register_strategy("OWL")(owl) is owl
    add(taskflow, allowed_methods=["PIGEON", "OWL"], recipient={}, send_via=["PIGEON", "OWL"])

    assert sent == ["Pigeon", "Owl"]


def test_strategy_when_registered_again_replaces_the_first(app: Flask, taskflow: TaskFlow) -> None:
    first, second = OutboxStrategy(), OutboxStrategy()
    taskflow.register_strategy(Method.EMAIL)(first)
    add(taskflow)

    taskflow.register_strategy("EMAIL")(second)
    add(taskflow)

    assert (len(first.messages), len(second.messages)) == (1, 1)


@pytest.mark.parametrize("strategy", [object(), object, print, None, "Email", 7])
def test_strategy_that_is_none_is_refused(taskflow: TaskFlow, strategy: Any) -> None:
    with pytest.raises(ConfigError, match="the strategy for PIGEON must be a BaseStrategy"):
        taskflow.register_strategy("PIGEON")(strategy)


@pytest.mark.parametrize("method", ["", "pigeon", "A B", "A" * 33, None, 7])
def test_strategy_for_a_malformed_method_is_refused(taskflow: TaskFlow, method: Any) -> None:
    with pytest.raises((ConfigError, InvalidTask), match="a method must match"):
        taskflow.register_strategy(method)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("address", "fax", "has address = 'fax', which is no field of a recipient"),
        ("code_pattern", "[0-9", "has a code_pattern that is no regular expression"),
        ("code_pattern", 7, "has a code_pattern that is no regular expression"),
    ],
)
def test_strategy_with_a_bad_attribute_is_refused(
    taskflow: TaskFlow, attribute: str, value: object, reason: str
) -> None:
    bad = type("Bad", (ConsoleStrategy,), {attribute: value})

    with pytest.raises(ConfigError, match=reason):
        taskflow.register_strategy("PIGEON")(bad)

    assert "PIGEON" not in taskflow._channels


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
    app: Flask, taskflow: TaskFlow, method: str, address: Any, needed: str | None
) -> None:
    strategy = OutboxStrategy(address)
    taskflow.register_strategy(method)(strategy)
    addresses = {"email": EMAIL, "phone_number": "+12025550110", "device_id": "device-0815"}

    for field in addresses:
        rest = {name: value for name, value in addresses.items() if name != field}
        if field == needed:
            with pytest.raises(InvalidTask, match=field):
                add(taskflow, allowed_methods=[method], recipient=rest)
        else:
            add(taskflow, allowed_methods=[method], recipient=rest)

    assert len(strategy.messages) == (3 if needed is None else 2)


def test_strategy_without_send_is_refused(taskflow: TaskFlow) -> None:
    class Mute(BaseStrategy):
        def generate(self, task: Task[Any]) -> str:
            return "123456"

    for strategy in (Mute, Mute()):
        with pytest.raises(ConfigError, match=r"for PIGEON, Mute, must define send\(task, otp\)"):
            taskflow.register_strategy("PIGEON")(strategy)

    assert "PIGEON" not in taskflow._channels


def test_strategy_that_checks_needs_no_send(app: Flask, taskflow: TaskFlow) -> None:
    class Sheet(BaseStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            return "today" if otp == "123456" else None

    taskflow.register_strategy("SHEET")(Sheet)
    task = add(taskflow, allowed_methods=["SHEET"])

    assert taskflow.verify(task.id, "SHEET", "123456").status is Status.SUCCESS


def test_send_is_given_the_task_and_a_code_that_hides(app: Flask, taskflow: TaskFlow) -> None:
    given: list[Any] = []

    class Email(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            given.extend([task, otp])

    taskflow.register_strategy(Method.EMAIL)(Email)

    task = add(taskflow)

    assert given[0] == task
    assert re.fullmatch("[0-9]{6}", given[1])
    assert str(given[1]) not in repr(given)
    with pytest.raises(TypeError):
        pickle.dumps(given)


def test_raising_strategy_tells_the_task_and_no_code(
    app: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    flaky = Flaky(failures=1)
    taskflow.register_strategy(Method.EMAIL)(flaky)

    with pytest.raises(SendFailed, match="could not be sent by EMAIL; the log says why") as caught:
        add(taskflow)

    error = caught.value
    assert error.task is not None
    assert error.task.status is Status.PENDING
    assert taskflow.get_task(error.task.id) == error.task
    assert error.methods == ("EMAIL",)
    assert error.__cause__ is None
    assert error.__context__ is None
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    for text in ("".join(report.format()), caplog.text, repr(error), repr(vars(error))):
        assert flaky.tried[0] not in text
    assert "Sending by EMAIL to fo****@example.com" in caplog.text
    assert "ConnectionError raised by Flaky" in caplog.text
    assert "foobar" not in caplog.text


def test_code_of_a_failed_send_verifies_nothing_until_it_is_resent(app: Flask, taskflow: TaskFlow) -> None:
    flaky = Flaky(failures=2)
    taskflow.register_strategy(Method.EMAIL)(flaky)
    with pytest.raises(SendFailed) as caught:
        add(taskflow)
    task = caught.value.task
    assert task is not None

    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", flaky.tried[0])
    with pytest.raises(SendFailed) as again:
        taskflow.resend_otp(task.id, "EMAIL")
    taskflow.resend_otp(task.id, "EMAIL")

    assert again.value.task == task
    assert len(set(flaky.tried)) == 1
    assert len(flaky.tried) == 3
    assert taskflow.verify(task.id, "EMAIL", flaky.sent[0]).status is Status.SUCCESS


def test_failed_sends_count(app: Flask, taskflow: TaskFlow) -> None:
    taskflow.register_strategy(Method.EMAIL)(Flaky(failures=5))
    with pytest.raises(SendFailed) as caught:
        add(taskflow)
    assert caught.value.task is not None
    for _ in range(4):
        with pytest.raises(SendFailed):
            taskflow.resend_otp(caught.value.task.id, "EMAIL")

    with pytest.raises(SendLimitReached):
        taskflow.resend_otp(caught.value.task.id, "EMAIL")


class Letters(OutboxStrategy):
    code_pattern = "[A-Z]{3}-[A-Z]{3}"
    words: tuple[Any, ...] = ("ABC-DEF", "GHI-JKL")

    def generate(self, task: Task[Any]) -> str:
        word: str = self.words[len(self.messages)]
        return word


def test_own_codes_verify_by_their_pattern_and_a_resend_rotates(app: Flask, taskflow: TaskFlow) -> None:
    letters = Letters()
    taskflow.register_strategy(Method.EMAIL)(letters)
    task = add(taskflow)

    with pytest.raises(InvalidCode):
        taskflow.verify(task.id, "EMAIL", "123456")
    travel(31)
    taskflow.resend_otp(task.id, "EMAIL")
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", "ABC-DEF")

    assert [message.otp for message in letters.messages] == ["ABC-DEF", "GHI-JKL"]
    assert taskflow.verify(task.id, "EMAIL", " GHI-JKL ").status is Status.SUCCESS


@pytest.mark.parametrize(
    "junk", ["", "abc", "ABCDEF", " ABC-DEF", "ABC-DEF" * 20, None, 7, b"ABC-DEF", ["ABC-DEF"]]
)
def test_own_codes_that_are_junk_are_not_sent(app: Flask, taskflow: TaskFlow, junk: Any) -> None:
    class Junk(Letters):
        words = (junk,)

    strategy = Junk()
    taskflow.register_strategy(Method.EMAIL)(strategy)

    with pytest.raises(SendFailed) as caught:
        add(taskflow)

    assert strategy.messages == []
    assert caught.value.__context__ is None


def test_own_codes_of_digits_keep_to_the_default_pattern(app: Flask, taskflow: TaskFlow) -> None:
    class Fixed(OutboxStrategy):
        def generate(self, task: Task[Any]) -> str:
            return "004217"

    taskflow.register_strategy(Method.EMAIL)(Fixed)
    task = add(taskflow)

    assert taskflow.verify(task.id, "EMAIL", "004-217").verification_method == "EMAIL"


def test_length_of_codes_is_configured(make_app: MakeApp, taskflow: TaskFlow) -> None:
    outbox = OutboxStrategy()
    taskflow.register_strategy(Method.EMAIL)(outbox)

    with make_app(otp_length=9).app_context():
        task = add(taskflow)
        with pytest.raises(InvalidCode):
            taskflow.verify(task.id, "EMAIL", "123456")
        taskflow.verify(task.id, "EMAIL", outbox.messages[0].otp)

    assert re.fullmatch("[0-9]{9}", outbox.messages[0].otp)


def test_console_strategy_prints_who_gets_which_code(
    app: Flask, taskflow: TaskFlow, capsys: pytest.CaptureFixture[str]
) -> None:
    taskflow.register_strategy(Method.EMAIL)(ConsoleStrategy)
    taskflow.register_strategy("PIGEON")(ConsoleStrategy)

    add(taskflow, summary="Pay Bob")
    add(taskflow, allowed_methods=["PIGEON"], recipient={})

    out, printed = capsys.readouterr()
    first, second = printed.splitlines()
    assert out == ""
    assert re.fullmatch(r"\[taskflow\] code \d{6} for foobar@example\.com \(Pay Bob\)", first)
    assert re.fullmatch(r"\[taskflow\] code \d{6} for you", second)


def test_outbox_strategy_keeps_messages_that_hide_their_code(app: Flask, taskflow: TaskFlow) -> None:
    shared: list[Any] = []
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy("email", messages=shared))
    taskflow.register_strategy(Method.SMS)(OutboxStrategy("phone_number", messages=shared))

    task = add(
        taskflow,
        allowed_methods=["EMAIL", "SMS"],
        recipient={"email": EMAIL, "phone_number": "+12025550110"},
        send_via=["EMAIL", "SMS"],
    )

    assert [message.addresses for message in shared] == [(EMAIL,), ("+12025550110",)]
    assert [message.task for message in shared] == [task, task]
    assert shared[0].otp not in repr(shared)
    assert json.dumps(shared[0].otp) == f'"{shared[0].otp!s}"'


def test_code_is_nowhere_in_redis(make_app: MakeApp, taskflow: TaskFlow, redis: Redis) -> None:
    flaky = Flaky(failures=1)
    taskflow.register_strategy(Method.EMAIL)(flaky)
    with make_app(otp_length=16).app_context(), pytest.raises(SendFailed):
        add(taskflow)

    (key,) = redis.scan_iter(match="*:task:*")
    held = str(redis.hgetall(key.decode()))

    assert "EMAIL.digest" in held
    assert flaky.tried[0] not in held
    assert flaky.tried[0][::-1] not in held
