"""Authenticator codes: RFC 6238's vectors, one step either side, one use."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp
import pytest
from conftest import MakeApp
from flask import Flask

from flask_taskflow import (
    ConfigError,
    InvalidCode,
    OTPRejected,
    SmartOTPStrategy,
    Status,
    StrategyFailed,
    Task,
    TaskFlow,
    TaskLocked,
    WrongCode,
)

SECRET = SmartOTPStrategy.new_secret()
DEVICE = "phone-1"


@pytest.fixture
def smart(make_app: MakeApp, taskflow: TaskFlow) -> Flask:
    secrets = {DEVICE: SECRET, "phone-2": SmartOTPStrategy.new_secret()}
    taskflow.register_strategy("SMART_OTP")(SmartOTPStrategy(secrets.get))
    app = make_app()
    app.register_blueprint(taskflow.blueprint)
    return app


@pytest.fixture
def now(redis: Any) -> Callable[[], datetime]:
    """The server's time, as the authenticator's clock."""

    def read() -> datetime:
        return datetime.fromtimestamp(redis.time()[0], UTC)

    return read


def add(taskflow: TaskFlow, queue: str = "q", device: str = DEVICE) -> Task[Any]:
    return taskflow.add_task(queue, allowed_methods=["SMART_OTP"], recipient={"device_id": device})


def code_at(time: datetime, secret: str = SECRET) -> str:
    return pyotp.TOTP(secret).at(time)


def wrong_at(time: datetime) -> str:
    near = {code_at(time + timedelta(seconds=30 * step)) for step in range(-3, 4)}
    return next(code for code in (f"{number:06d}" for number in range(100)) if code not in near)


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_vectors_of_rfc_6238_pass(seconds: int, code: str) -> None:
    """RFC 6238, appendix B, SHA-1."""
    secret = base64.b32encode(b"12345678901234567890").decode()
    strategy = SmartOTPStrategy(lambda device: secret, digits=8)
    time = datetime.fromtimestamp(seconds, UTC)
    task: Any = type("T", (), {"recipient": type("R", (), {"device_id": "d"})})

    assert strategy.check(task, code, time) == str(seconds // 30)
    assert strategy.check(task, "00000000", time) is None


def test_right_code_verifies_a_task(smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]) -> None:
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))

    with smart.app_context():
        task = add(taskflow)
        verified = taskflow.verify(task.id, "SMART_OTP", code_at(now()))
        taskflow.run_due()

    assert verified.status is Status.SUCCESS
    assert verified.verification_method == "SMART_OTP"
    assert ran == [task.id]


def test_codes_accepted_at_one_instant_are_three(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    """S37."""
    strategy = taskflow._channels["SMART_OTP"].strategy
    with smart.app_context():
        task, at = add(taskflow), now()

    accepted = [
        step
        for step in range(-20, 21)
        if strategy.check(task, code_at(at + timedelta(seconds=30 * step)), at) is not None
    ]

    assert accepted == [-1, 0, 1]


def test_code_used_before_is_refused_on_another_task_and_queue(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    """S38."""
    with smart.app_context():
        first, second, third = add(taskflow), add(taskflow), add(taskflow, "other")
        code = code_at(now())
        taskflow.verify(first.id, "SMART_OTP", code)

        for task in (second, third):
            with pytest.raises(WrongCode, match="used before"):
                taskflow.verify(task.id, "SMART_OTP", code)
            assert taskflow.get_task(task.id).status is Status.PENDING


def test_code_used_on_two_tasks_at_once_succeeds_once(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    """S38, from 50 threads on 2 tasks."""
    with smart.app_context():
        tasks = [add(taskflow), add(taskflow)]
    code, gate, outcomes = code_at(now()), threading.Barrier(50), list[str]()

    def attempt(number: int) -> None:
        with smart.app_context():
            gate.wait()
            try:
                taskflow.verify(tasks[number % 2].id, "SMART_OTP", code)
                outcomes.append("success")
            except OTPRejected as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(outcomes) == 50
    assert outcomes.count("success") == 1


def test_two_devices_do_not_share_a_use(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    with smart.app_context():
        secret = taskflow._channels["SMART_OTP"].strategy.secret_for("phone-2")  # type: ignore[attr-defined]
        first, second = add(taskflow), add(taskflow, device="phone-2")
        at = now()

        taskflow.verify(first.id, "SMART_OTP", code_at(at))
        verified = taskflow.verify(second.id, "SMART_OTP", code_at(at, secret))

    assert verified.status is Status.SUCCESS


def test_wrong_codes_lock_the_task_and_the_right_one_is_refused(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    """S1, for codes that are made elsewhere."""
    left = []
    with smart.app_context():
        task = add(taskflow)
        for _ in range(4):
            with pytest.raises(WrongCode) as caught:
                taskflow.verify(task.id, "SMART_OTP", wrong_at(now()))
            left.append(caught.value.attempts_left)
        for code in (wrong_at(now()), code_at(now())):
            with pytest.raises(TaskLocked):
                taskflow.verify(task.id, "SMART_OTP", code)
        status = taskflow.get_task(task.id).status

    assert left == [4, 3, 2, 1]
    assert status is Status.LOCKED


def test_attempts_from_many_threads_are_counted_before_the_check(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    """S2, for codes that are made elsewhere: 200 threads, 5 checks."""
    checked: list[str] = []
    lock, gate = threading.Lock(), threading.Barrier(200)

    @taskflow.register_strategy("SMART_OTP")
    class Counting(SmartOTPStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            with lock:
                checked.append(task.id)
            return None

    with smart.app_context():
        task = add(taskflow)

    def attempt() -> None:
        with smart.app_context():
            gate.wait()
            with pytest.raises(OTPRejected):
                taskflow.verify(task.id, "SMART_OTP", "000000")

    threads = [threading.Thread(target=attempt) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(checked) == 5
    with smart.app_context():
        assert taskflow.get_task(task.id).status is Status.LOCKED


def test_unknown_device_is_a_wrong_code(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    with smart.app_context():
        task = add(taskflow, device="stolen")

        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "SMART_OTP", code_at(now()))


def test_secret_store_that_raises_is_a_typed_error_without_the_code(
    smart: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: str) -> str:
        raise ConnectionError("the store is away")

    taskflow.register_strategy("SMART_OTP")(SmartOTPStrategy(broken))
    with smart.app_context():
        task = add(taskflow)

        with pytest.raises(StrategyFailed) as caught:
            taskflow.verify(task.id, "SMART_OTP", "135790")
        answer = smart.test_client().post(
            f"/tasks/{task.id}/verify", json={"method": "SMART_OTP", "otp": "135790"}
        )

    assert caught.value.__cause__ is caught.value.__context__ is None
    assert answer.status_code == 503
    assert "Checking SMART_OTP" in caplog.text
    assert "ConnectionError" in caplog.text
    assert "135790" not in caplog.text


def test_short_secret_is_refused_with_the_cure(
    smart: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    taskflow.register_strategy("SMART_OTP")(SmartOTPStrategy(lambda device: "ABCDEFGH"))
    with smart.app_context():
        task = add(taskflow)

        with pytest.raises(StrategyFailed):
            taskflow.verify(task.id, "SMART_OTP", "135790")

    assert "must have 16 bytes or more: use SmartOTPStrategy.new_secret()" in caplog.text
    assert "ABCDEFGH" not in caplog.text


def test_malformed_code_uses_no_attempt(smart: Flask, taskflow: TaskFlow) -> None:
    with smart.app_context():
        task = add(taskflow)

        with pytest.raises(InvalidCode):
            taskflow.verify(task.id, "SMART_OTP", "1234567")
        with pytest.raises(WrongCode) as caught:
            taskflow.verify(task.id, "SMART_OTP", "000000")

    assert caught.value.attempts_left == 4


def test_enrolment_gives_a_uri_and_a_picture() -> None:
    strategy = SmartOTPStrategy(lambda device: SECRET)

    uri = strategy.provisioning_uri(SECRET, account="ada@example.com", issuer="Bank")

    parsed: Any = pyotp.parse_uri(uri)
    assert parsed.at(59) == pyotp.TOTP(SECRET).at(59)
    assert "issuer=Bank" in uri
    assert strategy.qr_svg(uri).startswith("<svg")


def test_example_of_the_page_runs(redis: Any, server: str, now: Callable[[], datetime]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "smart-otp.md").read_text("utf-8")
    source = page.partition("<!-- test: smart otp -->\n```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "example"}
    exec(source.replace("embedded://", server), names)  # noqa: S102

    names["app"].testing = True
    with names["app"].app_context():
        picture = names["enrol"]("phone-1", "ada@example.com")
        task = names["ask"]("phone-1")
        code = code_at(now(), names["devices"]["phone-1"])
        verified = names["taskflow"].verify(task.id, "SMART_OTP", code)

    assert picture.startswith("<svg")
    assert verified.status is Status.SUCCESS


@pytest.mark.parametrize("options", [{"digits": 5}, {"digits": 9}, {"interval": 0}])
def test_bad_arguments_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="6 to 8 digits"):
        SmartOTPStrategy(lambda device: SECRET, **options)


def test_strategy_without_a_secret_store_says_so() -> None:
    with pytest.raises(ConfigError, match="needs secret_for="):
        SmartOTPStrategy().secret_for(DEVICE)
