"""Codes that devices make: RFC 6238's vectors, one step either side; one transaction, one response."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyotp
import pytest
from conftest import MakeApp
from docs_support import block, rows
from flask import Flask
from fleet_support import Proxy
from redis import Redis, RedisError
from test_security import disguises, everything

from flask_taskflow import (
    ConfigError,
    InvalidCode,
    InvalidTask,
    OTPRejected,
    SigningStrategy,
    SmartOTPStrategy,
    Status,
    StrategyFailed,
    Task,
    TaskFlow,
    TaskLocked,
    TaskNotPending,
    WrongCode,
    sign_transaction,
    transaction_challenge,
)

SECRET = SmartOTPStrategy.new_secret()
DEVICE = "phone-1"
TRANSFER = {"to": "Bob", "amount": 50, "notes": ["rent", {"month": 5.5}]}
SUMMARY = "Pay 50 to Bob"


@pytest.fixture
def smart(make_app: MakeApp, taskflow: TaskFlow) -> Flask:
    secrets = {DEVICE: SECRET, "phone-2": SmartOTPStrategy.new_secret()}
    taskflow.register_strategy("SMART_OTP")(SmartOTPStrategy(secrets.get))
    app = make_app()
    app.register_blueprint(taskflow.blueprint)
    return app


@pytest.fixture
def signing(make_app: MakeApp, taskflow: TaskFlow) -> Flask:
    secrets = {DEVICE: SECRET, "phone-2": SmartOTPStrategy.new_secret()}
    taskflow.register_strategy("SMART_OTP")(SigningStrategy(secrets.get))
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


def add_transfer(taskflow: TaskFlow, device: str = DEVICE) -> Task[Any]:
    return taskflow.add_task(
        "q", TRANSFER, summary=SUMMARY, allowed_methods=["SMART_OTP"], recipient={"device_id": device}
    )


def sign(task: Task[Any], secret: str = SECRET, **changed: Any) -> str:
    """What the device answers; ``changed`` is what it shows instead of the task's."""
    shown: dict[str, Any] = {"task_id": task.id, "data": task.data, "summary": task.summary}
    return str.__str__(sign_transaction(secret, **{**shown, **changed}))


def other(code: str) -> str:
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"


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


def run(page: str, name: str, server: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    source = block(page, name).replace("embedded://", server)
    exec(source, names)  # noqa: S102
    if "app" in names:
        names["app"].testing = True
    return names


def test_authenticator_example_of_the_page_runs(redis: Any, server: str, now: Callable[[], datetime]) -> None:
    names = run("smart-otp.md", "smart otp", server)

    with names["app"].app_context():
        picture = names["enrol"]("phone-1", "ada@example.com")
        task = names["ask"]("phone-1")
        code = code_at(now(), names["devices"]["phone-1"])
        verified = names["taskflow"].verify(task.id, "SMART_OTP", code)

    assert picture.startswith("<svg")
    assert verified.status is Status.SUCCESS


def test_signing_examples_of_the_page_run(redis: Any, server: str) -> None:
    names, device = run("smart-otp.md", "signing", server), run("smart-otp.md", "device", server)
    asked: list[str] = []

    def agree(question: str) -> bool:
        asked.append(question)
        return True

    with names["app"].app_context():
        secret = names["enrol"]("phone-1")
        task = names["ask"]("phone-1", "Bob", 50)
        sent = json.loads(json.dumps(names["inbox"]["phone-1"]))
        refused = device["confirm"](secret, sent[0], lambda question: False)
        forged = device["confirm"](secret, {**sent[0], "data": {"to": "Eve", "amount": 50}}, agree)
        with pytest.raises(WrongCode):
            names["taskflow"].verify(task.id, "SMART_OTP", forged)
        response = device["confirm"](secret, sent[0], agree)
        verified = names["taskflow"].verify(task.id, "SMART_OTP", response)

    assert len(sent) == 1
    assert refused is None
    assert asked[1] == "Pay 50 to Bob? {'to': 'Bob', 'amount': 50}"
    assert verified.status is Status.SUCCESS


def test_worked_example_of_the_page_is_right() -> None:
    shown = dict(rows("smart-otp.md", "### On a device without Python"))
    given = {"task_id": shown["id"], "summary": shown["summary"], "data": json.loads(shown["data"])}

    challenge = hashlib.sha256(shown["written"].encode()).digest()
    message = b"OCRA-1:HOTP-SHA256-8:QH64" + b"\0" + challenge + bytes(96)
    mac = hmac.digest(base64.b32decode(shown["secret"]), message, "sha256")
    start = mac[-1] % 16
    response = int.from_bytes(mac[start : start + 4]) % 2**31 % 10**8

    assert shown["challenge"] == challenge.hex() == transaction_challenge(**given)
    assert shown["response"] == f"{response:08}" == sign_transaction(shown["secret"], **given)


@pytest.mark.parametrize("options", [{"digits": 5}, {"digits": 9}, {"interval": 0}])
def test_bad_arguments_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="6 to 8 digits"):
        SmartOTPStrategy(lambda device: SECRET, **options)


def test_strategy_without_a_secret_store_says_so() -> None:
    with pytest.raises(ConfigError, match="needs secret_for="):
        SmartOTPStrategy().secret_for(DEVICE)


def test_signed_response_verifies_its_task(signing: Flask, taskflow: TaskFlow) -> None:
    with signing.app_context():
        task = add_transfer(taskflow)

        verified = taskflow.verify(task.id, "SMART_OTP", sign(task))

    assert verified.status is Status.SUCCESS
    assert verified.verification_method == "SMART_OTP"


def test_signed_response_does_not_depend_on_how_the_device_writes_json(
    signing: Flask, taskflow: TaskFlow
) -> None:
    shown = json.loads('{"notes": ["re\\u006et", {"month": 55e-1}],"amount":50.0, "to": "Bob"}')
    with signing.app_context():
        task = add_transfer(taskflow)

        verified = taskflow.verify(task.id, "SMART_OTP", sign(task, data=shown))

    assert verified.status is Status.SUCCESS


def test_signed_response_is_refused_on_another_task(signing: Flask, taskflow: TaskFlow) -> None:
    with signing.app_context():
        first, second = add_transfer(taskflow), add_transfer(taskflow)
        response = sign(first)

        with pytest.raises(WrongCode) as caught:
            taskflow.verify(second.id, "SMART_OTP", response)
        verified = taskflow.verify(first.id, "SMART_OTP", response)
        with pytest.raises(WrongCode):
            taskflow.verify(second.id, "SMART_OTP", response)

    assert (first.data, first.summary) == (second.data, second.summary)
    assert caught.value.attempts_left == 4
    assert verified.status is Status.SUCCESS


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {**TRANSFER, "amount": 51}},
        {"data": {**TRANSFER, "amount": "50"}},
        {"data": {**TRANSFER, "to": "bob"}},
        {"data": {**TRANSFER, "extra": None}},
        {"data": {**TRANSFER, "notes": [{"month": 5.5}, "rent"]}},
        {"data": {**TRANSFER, "notes": ["rent", {"month": 5.500000000000001}]}},
        {"data": None},
        {"data": json.dumps(TRANSFER)},
        {"summary": "Pay 50 to Bob."},
        {"summary": None},
        {"data": SUMMARY, "summary": json.dumps(TRANSFER)},
        {"digits": 9},
    ],
    ids=str,
)
def test_signed_response_is_refused_after_any_change(
    signing: Flask, taskflow: TaskFlow, changed: dict[str, Any]
) -> None:
    with signing.app_context():
        task = add_transfer(taskflow)
        response = sign(task, **changed)

        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "SMART_OTP", response[-8:])

        assert taskflow.get_task(task.id).status is Status.PENDING


def test_response_of_another_device_is_refused(signing: Flask, taskflow: TaskFlow) -> None:
    with signing.app_context():
        task = add_transfer(taskflow, device="phone-2")

        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "SMART_OTP", sign(task))


def test_signed_response_is_accepted_once(signing: Flask, taskflow: TaskFlow) -> None:
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    with signing.app_context():
        task = add_transfer(taskflow)
        response = sign(task)
        taskflow.verify(task.id, "SMART_OTP", response)

        with pytest.raises(TaskNotPending):
            taskflow.verify(task.id, "SMART_OTP", response)
        taskflow.run_due()

    assert ran == [task.id]


def test_signed_response_on_two_tasks_at_once_succeeds_once(signing: Flask, taskflow: TaskFlow) -> None:
    """From 50 threads: each task gets the response of the first."""
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    with signing.app_context():
        tasks = [add_transfer(taskflow), add_transfer(taskflow)]
    response, gate, outcomes = sign(tasks[0]), threading.Barrier(50), list[tuple[int, str]]()

    def attempt(number: int) -> None:
        with signing.app_context():
            gate.wait()
            try:
                taskflow.verify(tasks[number % 2].id, "SMART_OTP", response)
                outcomes.append((number % 2, "success"))
            except OTPRejected as error:
                outcomes.append((number % 2, error.code))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with signing.app_context():
        taskflow.run_due()

    assert len(outcomes) == 50
    assert [outcome for outcome in outcomes if outcome[1] == "success"] == [(0, "success")]
    assert ran == [tasks[0].id]


@pytest.mark.parametrize("strategy", [SmartOTPStrategy, SigningStrategy])
def test_code_is_still_good_for_its_task_alone_after_redis_failed_in_the_middle(
    make_app: MakeApp,
    taskflow: TaskFlow,
    redis: Redis,
    server: str,
    now: Callable[[], datetime],
    strategy: type[SmartOTPStrategy | SigningStrategy],
) -> None:
    """The reply to the claim of its use is lost: the device makes no other soon, or none at all."""
    taskflow.register_strategy("SMART_OTP")(strategy(lambda device: SECRET))
    proxy = Proxy(server.removeprefix("unix://"))
    try:
        with make_app(redis_url=proxy.url).app_context():
            task, another = add_transfer(taskflow), add_transfer(taskflow)
            code = sign(task) if strategy is SigningStrategy else pyotp.TOTP(SECRET).at(now())
            proxy.cut_next_reply_to = b":used:"

            with pytest.raises(RedisError):
                taskflow.verify(task.id, "SMART_OTP", code)
            with pytest.raises(WrongCode):
                taskflow.verify(another.id, "SMART_OTP", code)
            verified = taskflow.verify(task.id, "SMART_OTP", code)
    finally:
        proxy.close()

    assert proxy.cuts == 1
    assert redis.keys("*:used:*")
    assert verified.status is Status.SUCCESS


def test_wrong_responses_lock_the_task_and_the_right_one_is_refused(
    signing: Flask, taskflow: TaskFlow
) -> None:
    """S1, for signed transactions."""
    left = []
    with signing.app_context():
        task = add_transfer(taskflow)
        right = sign(task)
        with pytest.raises(InvalidCode):
            taskflow.verify(task.id, "SMART_OTP", right[:-1])
        for _ in range(4):
            with pytest.raises(WrongCode) as caught:
                taskflow.verify(task.id, "SMART_OTP", other(right))
            left.append(caught.value.attempts_left)
        for response in (other(right), right):
            with pytest.raises(TaskLocked):
                taskflow.verify(task.id, "SMART_OTP", response)

    assert left == [4, 3, 2, 1]


def test_unknown_device_signs_nothing(signing: Flask, taskflow: TaskFlow) -> None:
    with signing.app_context():
        task = add_transfer(taskflow, device="stolen")

        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "SMART_OTP", sign(task))


def test_both_modes_serve_one_app_under_two_methods(
    smart: Flask, taskflow: TaskFlow, now: Callable[[], datetime]
) -> None:
    taskflow.register_strategy("SIGNATURE")(SigningStrategy({DEVICE: SECRET}.get))
    with smart.app_context():
        tasks = [
            taskflow.add_task(
                "q", allowed_methods=["SIGNATURE", "SMART_OTP"], recipient={"device_id": DEVICE}
            )
            for _ in range(2)
        ]

        taskflow.verify(tasks[0].id, "SIGNATURE", sign(tasks[0]))
        taskflow.verify(tasks[1].id, "SMART_OTP", code_at(now()))
        found = [taskflow.get_task(task.id).verification_method for task in tasks]

    assert found == ["SIGNATURE", "SMART_OTP"]


def frames_of(error: BaseException) -> str:
    """A traceback with the locals of the package's frames, as error trackers take it."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        told = traceback.TracebackException.from_exception(seen, capture_locals=True)
        parts.append(str(told))
        parts += [
            repr(frame.locals)
            for frame in told.stack
            if "/flask_taskflow/" in frame.filename and frame.locals
        ]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("mode", ["authenticator", "signing"])
def test_device_code_is_in_no_key_log_or_traceback(
    make_app: MakeApp,
    taskflow: TaskFlow,
    redis: Redis,
    now: Callable[[], datetime],
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    """S9 and S14, for codes that devices make: right, on a wrong task, again, and while the store fails."""
    caplog.set_level(logging.DEBUG)
    stored: list[bytes] = []
    told: list[str] = []
    broken = False

    def find(device: str) -> str:
        if broken:
            raise OSError("the store is away")
        return SECRET

    made: dict[str, SmartOTPStrategy | SigningStrategy] = {
        "authenticator": SmartOTPStrategy(find, digits=8),
        "signing": SigningStrategy(find),
    }
    taskflow.register_strategy("SMART_OTP")(made[mode])
    with make_app(otp_max_attempts=9).app_context():
        first, second = add_transfer(taskflow), add_transfer(taskflow)
        code = sign(first) if mode == "signing" else pyotp.TOTP(SECRET, digits=8).at(now())

        def attempt(task: Task[Any], typed: str) -> None:
            try:
                taskflow.verify(task.id, "SMART_OTP", typed)
            except (OTPRejected, StrategyFailed, InvalidCode) as error:
                told.append(frames_of(error))
            stored.extend(everything(redis))

        attempt(first, code + "0")
        broken = True
        attempt(first, code)
        broken = False
        attempt(first, code)
        attempt(second, code)
        attempt(first, code)
        status = taskflow.get_task(first.id).status

    assert status is Status.SUCCESS
    assert len(told) == 4
    assert "OTP('******')" in "".join(told)
    assert "Checking SMART_OTP" in caplog.text
    forms = disguises(code)
    assert not [name for name, form in forms.items() if form.lower() in b"\n".join(stored).lower()]
    assert code not in caplog.text
    assert code not in "\n".join(told)
    assert SECRET not in caplog.text + "\n".join(told)


def test_signing_with_a_store_that_raises_is_a_typed_error_without_the_code(
    signing: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: str) -> str:
        raise ConnectionError("the store is away")

    taskflow.register_strategy("SMART_OTP")(SigningStrategy(broken))
    with signing.app_context():
        task = add_transfer(taskflow)
        response = sign(task)

        with pytest.raises(StrategyFailed) as caught:
            taskflow.verify(task.id, "SMART_OTP", response)
        answer = signing.test_client().post(
            f"/tasks/{task.id}/verify", json={"method": "SMART_OTP", "otp": response}
        )

    assert caught.value.__cause__ is caught.value.__context__ is None
    assert answer.status_code == 503
    assert "ConnectionError" in caplog.text
    assert response not in caplog.text


@pytest.mark.parametrize(
    ("secret", "cause"),
    [
        ("ABCDEFGH", "must have 16 bytes or more"),
        ("", "must have 16 bytes or more"),
        ("not base32, although it is long enough", "must be base32"),
        (b"bytes are no text either, whatever", "must be base32"),
    ],
)
def test_unusable_signing_secret_is_refused_with_the_cure(
    signing: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture, secret: Any, cause: str
) -> None:
    taskflow.register_strategy("SMART_OTP")(SigningStrategy(lambda device: secret))
    with signing.app_context():
        task = add_transfer(taskflow)

        with pytest.raises(StrategyFailed):
            taskflow.verify(task.id, "SMART_OTP", "13579024")
        with pytest.raises(ConfigError, match=cause):
            sign(task, secret)

    assert f"{cause}: use SmartOTPStrategy.new_secret()" in caplog.text
    assert not secret or str(secret) not in caplog.text


def test_traceback_of_an_unusable_secret_does_not_tell_it() -> None:
    with pytest.raises(ConfigError) as caught:
        sign_transaction("MFRGG-secret-secret", task_id="x", data=None, summary=None)

    error: Any = caught.value
    assert "secret-secret" not in f"{error}{error.__cause__}"
    assert error.__suppress_context__


@pytest.mark.parametrize("strategy", [SmartOTPStrategy, SigningStrategy])
def test_strategy_under_another_name_still_needs_a_device(
    make_app: MakeApp, taskflow: TaskFlow, strategy: Callable[..., SmartOTPStrategy | SigningStrategy]
) -> None:
    taskflow.register_strategy("DEVICE")(strategy({DEVICE: SECRET}.get))

    with make_app().app_context(), pytest.raises(InvalidTask, match="device_id"):
        taskflow.add_task("q", allowed_methods=["DEVICE"], recipient={"email": "ann@example.com"})


@pytest.mark.parametrize("digits", [5, 11, 8.5, "8"])
def test_signatures_of_other_lengths_are_refused(digits: Any) -> None:
    with pytest.raises(ConfigError, match="6 to 10 digits"):
        SigningStrategy(lambda device: SECRET, digits=digits)
    with pytest.raises(ConfigError, match="6 to 10 digits"):
        sign_transaction(SECRET, task_id="x", data=None, summary=None, digits=digits)


@pytest.mark.parametrize("digits", [6, 10])
def test_signature_has_as_many_digits_as_were_asked_for(
    signing: Flask, taskflow: TaskFlow, digits: int
) -> None:
    taskflow.register_strategy("SMART_OTP")(SigningStrategy(lambda device: SECRET, digits=digits))
    with signing.app_context():
        task = add_transfer(taskflow)
        response = sign(task, digits=digits)

        verified = taskflow.verify(task.id, "SMART_OTP", response)

    assert len(response) == digits
    assert verified.status is Status.SUCCESS


def test_signing_without_a_secret_store_says_so() -> None:
    with pytest.raises(ConfigError, match="SigningStrategy needs secret_for="):
        SigningStrategy().secret_for(DEVICE)
