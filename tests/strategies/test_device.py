"""Codes that devices make: RFC 6238's vectors, one step either side; one transaction, one response."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, product
from threading import Barrier, Lock
from typing import Any

import pyotp
import pytest
from flask import Flask
from redis import Redis, RedisError

from flask_taskflow import (
    CodeRepeated,
    ConfigError,
    SigningStrategy,
    SmartOTPStrategy,
    Status,
    Task,
    TaskFlow,
    sign_transaction,
    task_ended,
    transaction_challenge,
)
from flask_taskflow.errors import (
    InvalidCode,
    InvalidTask,
    OTPRejected,
    StrategyFailed,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    WrongCode,
)
from flask_taskflow.testing import outbox, travel
from tests.conftest import Hear, MakeApp
from tests.support.docs import block, rows
from tests.support.fleet import Proxy
from tests.support.leaks import disguises, everything
from tests.support.tasks import at_once, other, refused

SECRET, OTHER_SECRET = SmartOTPStrategy.new_secret(), SmartOTPStrategy.new_secret()
SECRETS = {"phone-1": SECRET, "phone-2": OTHER_SECRET}
TRANSFER = {"to": "Bob", "amount": 50, "notes": ["rent", {"month": 5.5}]}
SUMMARY = "Pay 50 to Bob"
METHOD = "SMART_OTP"


def add(taskflow: TaskFlow, queue: str = "q", device: str = "phone-1", data: Any = TRANSFER) -> Task[Any]:
    recipient = {"device_id": device}
    return taskflow.add_task(queue, data, summary=SUMMARY, allowed_methods=[METHOD], recipient=recipient)


def sign(task: Task[Any], secret: str = SECRET, **changed: Any) -> str:
    """What the device answers; ``changed`` is what it shows instead of the task's."""
    shown: dict[str, Any] = {"task_id": task.id, "data": task.data, "summary": task.summary}
    return str.__str__(sign_transaction(secret, **{**shown, **changed}))


@dataclass
class Device:
    """A device of one of the two kinds, and an app that takes its codes."""

    strategy: type[SmartOTPStrategy | SigningStrategy]
    taskflow: TaskFlow
    app: Flask
    redis: Any

    def __post_init__(self) -> None:
        self.use(SECRETS.get)

    def use(self, secret_for: Callable[[str], Any], **options: Any) -> None:
        self.taskflow.register_strategy(METHOD)(self.strategy(secret_for, **options))

    def now(self) -> datetime:
        """The server's time, as the device's clock."""
        return datetime.fromtimestamp(self.redis.time()[0], UTC)

    def code(self, task: Task[Any], secret: str = SECRET, digits: int = 6) -> str:
        if self.strategy is SigningStrategy:
            return sign(task, secret)
        return pyotp.TOTP(secret, digits=digits).at(self.now())

    def wrong(self, task: Task[Any]) -> str:
        if self.strategy is SigningStrategy:
            return other(sign(task))
        near = {code_at(self.now(), step) for step in range(-3, 4)}
        return next(code for code in (f"{number:06d}" for number in count()) if code not in near)

    def verify(self, task: Task[Any], code: str) -> Task[Any]:
        return self.taskflow.verify(task.id, METHOD, code)


def code_at(time: datetime, step: int = 0, secret: str = SECRET) -> str:
    return pyotp.TOTP(secret).at(time + timedelta(seconds=30 * step))


@pytest.fixture
def running(make_app: MakeApp, taskflow: TaskFlow) -> Iterator[Flask]:
    app = make_app()
    app.register_blueprint(taskflow.blueprint)
    with app.app_context():
        yield app


@pytest.fixture(params=[SmartOTPStrategy, SigningStrategy], ids=["authenticator", "signing"])
def device(request: pytest.FixtureRequest, running: Flask, taskflow: TaskFlow, redis: Redis) -> Device:
    return Device(request.param, taskflow, running, redis)


@pytest.fixture
def authenticator(running: Flask, taskflow: TaskFlow, redis: Redis) -> Device:
    return Device(SmartOTPStrategy, taskflow, running, redis)


@pytest.fixture
def signing(running: Flask, taskflow: TaskFlow, redis: Redis) -> Device:
    return Device(SigningStrategy, taskflow, running, redis)


# Both kinds.


def test_right_code_verifies_its_task_once(device: Device, taskflow: TaskFlow) -> None:
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    task = add(taskflow)
    code = device.code(task)

    verified = device.verify(task, code)
    assert refused(CodeRepeated, device.verify, task, code).task == verified, "within a minute"
    travel(61)
    refused(TaskNotPending, device.verify, task, code)
    taskflow.run_due()

    assert (verified.status, verified.verification_method) == (Status.SUCCESS, METHOD)
    assert ran == [task.id]


@pytest.mark.promise("S38")
def test_code_used_before_is_refused_on_another_task_and_queue(device: Device, taskflow: TaskFlow) -> None:
    first, second, third = add(taskflow), add(taskflow), add(taskflow, "other")
    code = device.code(first)
    device.verify(first, code)

    for task in (second, third):
        with pytest.raises(WrongCode, match="used before") as caught:
            device.verify(task, code)
        assert caught.value.attempts_left == 4
        assert taskflow.get_task(task.id).status is Status.PENDING


@pytest.mark.promise("S38")
def test_code_used_on_two_tasks_at_once_succeeds_once(device: Device, taskflow: TaskFlow) -> None:
    """From 50 threads on 2 tasks."""
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    tasks = [add(taskflow), add(taskflow)]
    code = device.code(tasks[0])

    outcomes = at_once(device.app, [partial(device.verify, task, code) for task in tasks * 25])
    taskflow.run_due()

    # The code that ended a task, sent again, gets the same answer.
    done = {outcome.id for outcome in outcomes if isinstance(outcome, Task)}
    assert all(isinstance(outcome, OTPRejected | Task) for outcome in outcomes)
    assert ran == list(done)
    assert len(done) == 1
    assert done == {tasks[0].id} or device.strategy is SmartOTPStrategy


@pytest.mark.promise("S73")
def test_code_sent_twice_at_once_succeeds_and_runs_once(authenticator: Device, taskflow: TaskFlow) -> None:
    both_check = Barrier(2)

    class Slow(SmartOTPStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            both_check.wait(60)
            return super().check(task, otp, now)

    taskflow.register_strategy(METHOD)(Slow(SECRETS.get))
    ran: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    task = add(taskflow)
    code = authenticator.code(task)

    outcomes = at_once(authenticator.app, [partial(authenticator.verify, task, code)] * 2)
    refused(CodeRepeated, authenticator.verify, task, code)
    refused(TaskNotPending, authenticator.verify, task, authenticator.wrong(task))
    taskflow.run_due()

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CodeRepeated", "Task"]
    assert ran == [task.id]


def test_devices_share_neither_secret_nor_use(device: Device, taskflow: TaskFlow) -> None:
    first, second = add(taskflow), add(taskflow, device="phone-2")
    device.verify(first, device.code(first))

    for task in (second, add(taskflow, device="stolen")):
        refused(WrongCode, device.verify, task, device.code(task))
    verified = device.verify(second, device.code(second, OTHER_SECRET))

    assert verified.status is Status.SUCCESS


@pytest.mark.promise("S1")
def test_wrong_codes_lock_the_task_and_the_right_one_is_refused(device: Device, taskflow: TaskFlow) -> None:
    """For codes that are made elsewhere; what cannot be a code uses no attempt."""
    left = []
    task = add(taskflow)
    refused(InvalidCode, device.verify, task, "1234567")
    for _ in range(4):
        caught = refused(WrongCode, device.verify, task, device.wrong(task))
        left.append(caught.attempts_left)
    for code in (device.wrong(task), device.code(task)):
        refused(TaskLocked, device.verify, task, code)

    assert left == [4, 3, 2, 1]
    assert taskflow.get_task(task.id).status is Status.LOCKED


def use_up(device: Device, code: str) -> None:
    device.verify(add(device.taskflow, "other"), code)


def lose_the_secrets(device: Device, code: str) -> None:
    def broken(name: str) -> str:
        raise ConnectionError("the store is away")

    device.use(broken)


@pytest.mark.promise("S1")
@pytest.mark.parametrize("spoil", [use_up, lose_the_secrets], ids=lambda spoil: spoil.__name__)
def test_last_attempt_that_is_not_accepted_locks_the_task(
    authenticator: Device, taskflow: TaskFlow, hear: Hear, spoil: Callable[[Device, str], None]
) -> None:
    """Also one whose code was used before, and one that could not be checked."""
    ended, task = hear(task_ended), add(taskflow)
    for _ in range(4):
        refused(WrongCode, authenticator.verify, task, authenticator.wrong(task))
    code = authenticator.code(task)
    spoil(authenticator, code)

    caught = refused(TaskLocked, authenticator.verify, task, code)

    assert caught.attempts_left == 0
    assert taskflow.get_task(task.id).status is Status.LOCKED
    assert [call["task"].status for call in ended.rest()] == [Status.LOCKED]


def test_secret_store_that_raises_is_a_typed_error_without_the_code(
    device: Device, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: str) -> str:
        raise ConnectionError("the store is away")

    device.use(broken)
    task = add(taskflow)
    code = device.code(task)

    caught = refused(StrategyFailed, device.verify, task, code)
    answer = device.app.test_client().post(f"/tasks/{task.id}/verify", json={"method": METHOD, "otp": code})

    assert caught.__cause__ is caught.__context__ is None
    assert answer.status_code == 503
    assert "Checking SMART_OTP" in caplog.text
    assert "ConnectionError" in caplog.text
    told = [(one.msg, vars(one).get("cause")) for one in caplog.records]
    assert told.count(("check_failed", "ConnectionError")) == 2
    assert code not in caplog.text


@pytest.mark.parametrize(
    ("secret", "cause"),
    [
        ("ABCDEFGH", "must have 16 bytes or more"),
        ("", "must have 16 bytes or more"),
        ("not base32, although it is long enough", "must be base32"),
        (b"bytes are no text either, whatever", "must be base32"),
    ],
)
def test_unusable_secret_is_refused_with_the_cure(
    device: Device, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture, secret: Any, cause: str
) -> None:
    device.use(lambda name: secret)
    task = add(taskflow)

    with pytest.raises(StrategyFailed):
        device.verify(task, "135790" if device.strategy is SmartOTPStrategy else "13579024")
    with pytest.raises(ConfigError, match=cause) as caught:
        sign(task, secret)

    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not secret or str(secret) not in f"{caught.value}{caught.value.__cause__}"
    assert f"{cause}: use SmartOTPStrategy.new_secret()" in caplog.text
    assert not secret or str(secret) not in caplog.text


def test_code_is_still_good_for_its_task_alone_after_redis_failed_in_the_middle(
    make_app: MakeApp, device: Device, taskflow: TaskFlow, redis: Redis, server: str
) -> None:
    """The reply to the claim of its use is lost: the device makes no other soon, or none at all."""
    proxy = Proxy(server.removeprefix("unix://"))
    try:
        with make_app(redis_url=proxy.url).app_context():
            task, another = add(taskflow), add(taskflow)
            code = device.code(task)
            proxy.cut_next_reply_to = b":used:"

            refused(RedisError, device.verify, task, code)
            refused(WrongCode, device.verify, another, code)
            verified = device.verify(task, code)
    finally:
        proxy.close()

    assert proxy.cuts == 1
    assert redis.keys("*:used:*")
    assert verified.status is Status.SUCCESS


def frames_of(error: BaseException) -> str:
    """A traceback with the locals of the package's frames, as error trackers take it."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        told = traceback.TracebackException.from_exception(seen, capture_locals=True)
        ours = [frame for frame in told.stack if "/flask_taskflow/" in frame.filename]
        parts += [str(told), *(repr(frame.locals) for frame in ours if frame.locals)]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)


@pytest.mark.promise("S9", "S14")
def test_device_code_is_in_no_key_log_or_traceback(
    make_app: MakeApp, device: Device, taskflow: TaskFlow, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """For codes that devices make: right, on a wrong task, again, and while the store fails."""
    caplog.set_level(logging.DEBUG)
    stored: list[bytes] = []
    told: list[str] = []
    broken = False

    def find(device: str) -> str:
        if broken:
            raise OSError("the store is away")
        return SECRET

    def attempt(task: Task[Any], typed: str) -> None:
        try:
            device.verify(task, typed)
        except (OTPRejected, StrategyFailed, InvalidCode) as error:
            told.append(frames_of(error))
        stored.extend(everything(redis))

    device.use(find, digits=8)
    with make_app(otp_max_attempts=9).app_context():
        first, second = add(taskflow), add(taskflow)
        code = device.code(first, digits=8)
        attempt(first, code + "0")
        broken = True
        attempt(first, code)
        broken = False
        attempt(first, code)
        attempt(second, code)
        travel(61)
        attempt(first, code)
        status = taskflow.get_task(first.id).status

    assert status is Status.SUCCESS
    assert len(told) == 4
    assert "OTP('******')" in "".join(told)
    assert "Checking SMART_OTP" in caplog.text
    held = b"\n".join(stored).lower()
    assert not [name for name, form in disguises(code).items() if form.lower() in held]
    assert code not in caplog.text + "\n".join(told)
    assert SECRET not in caplog.text + "\n".join(told)


@pytest.mark.parametrize(
    ("strategy", "module"),
    [(SmartOTPStrategy, "pyotp"), (SmartOTPStrategy, "segno"), (SigningStrategy, "rfc8785")],
)
def test_strategy_without_a_package_of_the_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, strategy: Callable[..., Any], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError, match=r"Strategy needs the extra \[smart-otp\]: pip install"):
        strategy(SECRETS.get)


@pytest.mark.parametrize("strategy", [SmartOTPStrategy, SigningStrategy])
def test_strategy_needs_a_secret_store_and_a_device_under_any_name(
    make_app: MakeApp, taskflow: TaskFlow, strategy: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=f"{strategy.__name__} needs secret_for="):
        strategy().secret_for("phone-1")

    taskflow.register_strategy("DEVICE")(strategy(SECRETS.get))
    with make_app().app_context(), pytest.raises(InvalidTask, match="device_id"):
        taskflow.add_task("q", allowed_methods=["DEVICE"], recipient={"email": "ann@example.com"})


def test_both_modes_serve_one_app_under_two_methods(authenticator: Device, taskflow: TaskFlow) -> None:
    taskflow.register_strategy("SIGNATURE")(SigningStrategy(SECRETS.get))
    methods, recipient = ["SIGNATURE", METHOD], {"device_id": "phone-1"}
    tasks = [taskflow.add_task("q", allowed_methods=methods, recipient=recipient) for _ in methods]

    taskflow.verify(tasks[0].id, "SIGNATURE", sign(tasks[0]))
    authenticator.verify(tasks[1], authenticator.code(tasks[1]))

    assert [taskflow.get_task(task.id).verification_method for task in tasks] == methods


# Authenticators.


VECTORS = {59: "94287082", 1111111109: "07081804", 1111111111: "14050471", 1234567890: "89005924"}
VECTORS |= {2000000000: "69279037", 20000000000: "65353130"}


@pytest.mark.parametrize(("seconds", "code"), VECTORS.items())
def test_vectors_of_rfc_6238_pass(seconds: int, code: str) -> None:
    """RFC 6238, appendix B, SHA-1."""
    secret = base64.b32encode(b"12345678901234567890").decode()
    strategy = SmartOTPStrategy(lambda device: secret, digits=8)
    time = datetime.fromtimestamp(seconds, UTC)
    task: Any = type("T", (), {"recipient": type("R", (), {"device_id": "d"})})

    assert strategy.check(task, code, time) == str(seconds // 30)
    assert strategy.check(task, "00000000", time) is None


@pytest.mark.promise("S37")
def test_codes_accepted_at_one_instant_are_three(authenticator: Device, taskflow: TaskFlow) -> None:
    check, task, at = SmartOTPStrategy(SECRETS.get).check, add(taskflow), authenticator.now()

    accepted = [step for step in range(-20, 21) if check(task, code_at(at, step), at) is not None]

    assert accepted == [-1, 0, 1]


@pytest.mark.promise("S2")
def test_attempts_from_many_threads_are_counted_before_the_check(
    authenticator: Device, taskflow: TaskFlow
) -> None:
    """For codes that are made elsewhere: 200 threads, 5 checks."""
    checked: list[str] = []
    lock = Lock()

    @taskflow.register_strategy(METHOD)
    class Counting(SmartOTPStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            with lock:
                checked.append(task.id)
            return None

    task = add(taskflow)

    outcomes = at_once(authenticator.app, [lambda: authenticator.verify(task, "000000")] * 200)

    assert all(isinstance(outcome, OTPRejected) for outcome in outcomes)
    assert len(checked) == 5
    assert taskflow.get_task(task.id).status is Status.LOCKED


def test_enrolment_gives_a_uri_and_a_picture() -> None:
    strategy = SmartOTPStrategy(SECRETS.get)

    uri = strategy.provisioning_uri(SECRET, account="ada@example.com", issuer="Bank")

    parsed: Any = pyotp.parse_uri(uri)
    assert parsed.at(59) == pyotp.TOTP(SECRET).at(59)
    assert "issuer=Bank" in uri
    assert strategy.qr_svg(uri).startswith("<svg")


@pytest.mark.parametrize("options", [{"digits": 5}, {"digits": 9}, {"interval": 0}])
def test_bad_arguments_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="6 to 8 digits"):
        SmartOTPStrategy(SECRETS.get, **options)


# Signed transactions.


@pytest.mark.parametrize(
    ("data", "shown", "digits"),
    [
        (TRANSFER, '{"notes": ["re\\u006et", {"month": 55e-1}],"amount":50.0, "to": "Bob"}', 6),
        ([2**53 - 1, str(2**53)], '[9007199254740991, "9007199254740992"]', 10),
    ],
)
def test_signed_response_does_not_depend_on_how_the_device_writes_json(
    signing: Device, taskflow: TaskFlow, data: Any, shown: str, digits: int
) -> None:
    signing.use(SECRETS.get, digits=digits)
    task = add(taskflow, data=data)
    response = sign(task, data=json.loads(shown), digits=digits)

    assert len(response) == digits
    assert signing.verify(task, response).status is Status.SUCCESS


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
    signing: Device, taskflow: TaskFlow, changed: dict[str, Any]
) -> None:
    task = add(taskflow)

    refused(WrongCode, signing.verify, task, sign(task, **changed)[-8:])

    assert taskflow.get_task(task.id).status is Status.PENDING


@pytest.mark.parametrize("digits", [5, 11, 8.5, "8"])
def test_signatures_of_other_lengths_are_refused(digits: Any) -> None:
    with pytest.raises(ConfigError, match="6 to 10 digits"):
        SigningStrategy(SECRETS.get, digits=digits)
    with pytest.raises(ConfigError, match="6 to 10 digits"):
        sign_transaction(SECRET, task_id="x", data=None, summary=None, digits=digits)


@pytest.mark.parametrize("integer", [2**53, -(2**53)])
def test_data_that_devices_read_differently_is_refused_before_anything_is_stored(
    signing: Device, taskflow: TaskFlow, redis: Redis, integer: int
) -> None:
    recipient = {"device_id": "phone-1", "email": "ann@example.com"}
    contexts: list[Callable[[], Any]] = [nullcontext, partial(outbox, taskflow)]
    for methods, given in product(([METHOD], ["EMAIL", METHOD]), contexts):
        with given(), pytest.raises(InvalidTask, match="write it as text"):
            taskflow.add_task("q", {"amount": [integer]}, allowed_methods=methods, recipient=recipient)

    assert redis.dbsize() == 0


# The page.


def run(page: str, name: str, server: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(block(page, name).replace("embedded://", server), names)  # noqa: S102
    if "app" in names:
        names["app"].testing = True
    return names


def test_authenticator_example_of_the_page_runs(server: str, authenticator: Device) -> None:
    names = run("smart-otp.md", "smart otp", server)

    with names["app"].app_context():
        picture = names["enrol"]("phone-1", "ada@example.com")
        code = code_at(authenticator.now(), secret=names["devices"]["phone-1"])
        verified = names["taskflow"].verify(names["ask"]("phone-1").id, METHOD, code)

    assert picture.startswith("<svg")
    assert verified.status is Status.SUCCESS


@pytest.mark.usefixtures("redis")
def test_signing_examples_of_the_page_run(server: str) -> None:
    names, device = run("smart-otp.md", "signing", server), run("smart-otp.md", "device", server)
    asked: list[str] = []

    def agree(question: str) -> bool:
        asked.append(question)
        return True

    with names["app"].app_context():
        secret = names["enrol"]("phone-1")
        task = names["ask"]("phone-1", "Bob", 50)
        (sent,) = json.loads(json.dumps(names["inbox"]["phone-1"]))
        declined = device["confirm"](secret, sent, lambda question: False)
        forged = device["confirm"](secret, {**sent, "data": {"to": "Eve", "amount": 50}}, agree)
        refused(WrongCode, names["taskflow"].verify, task.id, METHOD, forged)
        verified = names["taskflow"].verify(task.id, METHOD, device["confirm"](secret, sent, agree))

    assert declined is None
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


@pytest.mark.promise("S19")
@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("error", [None, LookupError()])
def test_unknown_id_is_looked_up_as_a_known_one(taskflow: TaskFlow, error: Exception | None) -> None:
    """For a device that is nobody's; what the app's function says to that changes nothing."""
    asked: list[str] = []

    def secret_for(device_id: str) -> str | None:
        asked.append(device_id)
        if error:
            raise error
        return None

    taskflow.register_strategy(METHOD)(SmartOTPStrategy(secret_for))
    over = taskflow.cancel_task(add(taskflow).id)

    for task_id, expected in [("a" * 34, TaskNotFound), (over.id, TaskNotPending)]:
        with pytest.raises(expected) as caught:
            taskflow.verify(task_id, METHOD, "123456")
        assert not isinstance(caught.value.__context__, LookupError)

    assert asked == ["decoy"] * 2
