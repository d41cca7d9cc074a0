"""Sends as deliveries of the engine: retries, fall-back, what is void, what Redis holds of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import SECRET_KEY, MakeApp, watch
from flask import Flask, current_app
from fleet_support import wait_until
from redis import Redis, ResponseError

from flask_taskflow import (
    BaseStrategy,
    OutboxStrategy,
    Reject,
    Retry,
    Status,
    Task,
    TaskFlow,
    TaskNotPending,
    WrongCode,
    otp_sent,
)
from flask_taskflow._background import SendRunner
from flask_taskflow._callbacks import Attempt
from flask_taskflow._deliveries import Claimed
from flask_taskflow.signals import task_failed
from flask_taskflow.strategies import Message
from flask_taskflow.testing import travel

EMAIL, PHONE = "a@example.com", "+84901234567"


class Moody(OutboxStrategy):
    """Raise what it is told to, attempt by attempt, then keep messages."""

    def __init__(self, messages: list[Message]) -> None:
        super().__init__(messages=messages)
        self.moods: list[BaseException | type[BaseException]] = []
        self.attempts = 0

    def send(self, task: Task[Any], otp: str) -> None:
        self.attempts += 1
        if self.moods:
            raise self.moods.pop(0)
        super().send(task, otp)


@pytest.fixture
def sent() -> list[Message]:
    return []


@pytest.fixture
def email(taskflow: TaskFlow, sent: list[Message]) -> Moody:
    return taskflow.register_strategy("EMAIL")(Moody(sent))


@pytest.fixture
def sms(taskflow: TaskFlow, sent: list[Message]) -> Moody:
    return taskflow.register_strategy("SMS")(Moody(sent))


@pytest.fixture
def app(make_app: MakeApp, email: Moody, sms: Moody) -> Iterator[Flask]:
    """An app that stores sends; `run_due` sends them, in the test's own time."""
    app = make_app(send="background", autostart=False)
    with app.app_context():
        yield app


@pytest.fixture
def add(taskflow: TaskFlow) -> Callable[..., Task[Any]]:
    def add_task(**options: Any) -> Task[Any]:
        given = {
            "allowed_methods": ["EMAIL", "SMS"],
            "recipient": {"email": EMAIL, "phone_number": PHONE},
            **options,
        }
        return taskflow.add_task("q", **given)

    return add_task


def status_of(taskflow: TaskFlow, task: Task[Any]) -> Status:
    return taskflow.get_task(task.id).status


def left_of_sends(redis: Redis) -> list[bytes]:
    return list(redis.scan_iter(match="*:h:@*"))


def test_send_when_stored_waits_and_is_done_once(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message], redis: Redis
) -> None:
    task = add()
    before = list(sent)

    counts = [taskflow.run_due(), taskflow.run_due()]

    assert before == []
    assert counts == [1, 0]
    assert [message.task.id for message in sent] == [task.id]
    assert left_of_sends(redis) == []
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_send_when_eager_is_done_within_the_call(
    make_app: MakeApp, taskflow: TaskFlow, email: Moody, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    with make_app(send="background", eager=True).app_context():
        add()

    assert len(sent) == 1


def test_add_task_in_background_costs_one_round_trip(
    app: Flask, add: Callable[..., Task[Any]], redis: Redis
) -> None:
    add()

    sent, _ = watch(redis, add)

    assert [command.split()[0] for command in sent] == ["EVALSHA"]


def test_send_when_two_attempts_fail_delivers_one_message(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [ConnectionRefusedError, TimeoutError]
    task = add()
    taskflow.run_due()
    travel(1.2)
    taskflow.run_due()
    early = taskflow.run_due()
    travel(2.3)
    taskflow.run_due()

    assert early == 0
    assert email.attempts == 3
    assert [message.addresses for message in sent] == [(EMAIL, PHONE)]
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def exhaust(taskflow: TaskFlow) -> None:
    for _ in range(3):
        taskflow.run_due()
        travel(3)


def test_send_when_given_up_falls_back_at_once(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [OSError] * 3
    methods: list[str] = []
    task = add()

    def note(_: Flask, method: str, **__: Any) -> None:
        methods.append(method)

    with otp_sent.connected_to(note):
        exhaust(taskflow)

    assert (email.attempts, methods) == (3, ["SMS"])
    assert status_of(taskflow, task) is Status.PENDING
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", sent[0].otp)
    assert taskflow.verify(task.id, "SMS", sent[0].otp).verification_method == "SMS"


def test_send_when_given_up_lets_its_method_be_resent_at_once(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [Reject("no such mailbox")]
    task = add()
    taskflow.run_due()

    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.run_due()

    assert len(sent) == 2
    assert taskflow.verify(task.id, "EMAIL", sent[1].otp).status is Status.SUCCESS


def test_send_when_rejected_falls_back_without_another_attempt(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [Reject("no such mailbox")]
    add()

    taskflow.run_due()

    assert (email.attempts, len(sent)) == (1, 1)


def test_send_when_told_when_to_retry_waits_so_long(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [Retry("the provider said 429", after=20)]
    add()
    taskflow.run_due()
    travel(19)
    early = taskflow.run_due()
    travel(1.1)

    assert (early, taskflow.run_due(), len(sent)) == (0, 1, 1)


def test_task_when_no_method_is_left_fails(
    app: Flask,
    taskflow: TaskFlow,
    add: Callable[..., Task[Any]],
    email: Moody,
    sms: Moody,
    caplog: pytest.LogCaptureFixture,
) -> None:
    email.moods, sms.moods = [Reject("no")], [Reject("no")]
    failed: list[Task[Any]] = []
    task = add()

    def note(_: Flask, task: Task[Any]) -> None:
        failed.append(task)

    with task_failed.connected_to(note):
        taskflow.run_due()

    assert [(item.id, item.status) for item in failed] == [(task.id, Status.FAILED)]
    with pytest.raises(TaskNotPending) as refused:
        taskflow.verify(task.id, "EMAIL", "123456")
    assert refused.value.status is Status.FAILED
    with pytest.raises(TaskNotPending):
        taskflow.resend_otp(task.id, "EMAIL")
    events = [record.__dict__.get("event") for record in caplog.records]
    assert [event for event in events if event in ("send_given_up", "task_failed")] == [
        "send_given_up",
        "send_given_up",
        "task_failed",
    ]


def test_fall_back_without_an_address_is_no_method_left(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody
) -> None:
    email.moods = [Reject("no")]
    task = add(recipient={"email": EMAIL})

    taskflow.run_due()

    assert status_of(taskflow, task) is Status.FAILED


def test_fall_back_goes_round_to_the_methods_before(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sms: Moody, sent: list[Message]
) -> None:
    sms.moods = [Reject("no")]
    task = add(send_via=["SMS"])

    taskflow.run_due()

    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_fall_back_over_a_limit_is_no_method_left(
    make_app: MakeApp,
    taskflow: TaskFlow,
    email: Moody,
    sms: Moody,
    add: Callable[..., Task[Any]],
    sent: list[Message],
) -> None:
    email.moods = [Reject("no")]
    with make_app(send="background", max_sends=1).app_context():
        task = add()

        taskflow.run_due()

        assert status_of(taskflow, task) is Status.FAILED
    assert sent == []


def test_fall_back_to_a_recipient_that_had_enough_is_no_method_left(
    make_app: MakeApp,
    taskflow: TaskFlow,
    email: Moody,
    sms: Moody,
    add: Callable[..., Task[Any]],
) -> None:
    with make_app(send="background", recipient_max_sends=1).app_context():
        add(allowed_methods=["SMS"])
        email.moods = [Reject("no")]
        task = add(recipient={"email": "b@example.com", "phone_number": PHONE})

        taskflow.run_due()

        assert status_of(taskflow, task) is Status.FAILED


def test_send_given_up_while_another_code_is_in_force_changes_nothing_else(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [Reject("no")]
    task = add(send_via=["EMAIL", "SMS"])

    taskflow.run_due()

    assert len(sent) == 1
    assert taskflow.verify(task.id, "SMS", sent[0].otp).status is Status.SUCCESS


def test_resend_given_up_leaves_the_delivered_code_in_force(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    task = add()
    taskflow.run_due()
    travel(31)
    email.moods = [Reject("no")]
    taskflow.resend_otp(task.id, "EMAIL")

    taskflow.run_due()

    assert len(sent) == 1
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_resend_while_a_send_waits_makes_one_message_of_both(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [OSError, OSError]
    task = add()
    taskflow.run_due()
    travel(31)

    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.run_due()
    travel(1.2)
    taskflow.run_due()

    assert (email.attempts, len(sent)) == (3, 1)
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_resend_that_took_a_waiting_one_s_place_disarms_the_code_when_given_up(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [OSError, Reject("no")]
    task = add(allowed_methods=["EMAIL"])
    taskflow.run_due()
    travel(31)
    taskflow.resend_otp(task.id, "EMAIL")

    taskflow.run_due()

    assert status_of(taskflow, task) is Status.FAILED


def test_send_when_the_recipient_changed_goes_to_the_new_address_alone(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    email.moods = [OSError]
    task = add(allowed_methods=["EMAIL"], recipient={"email": EMAIL})
    taskflow.run_due()

    taskflow.update_recipient(task.id, {"email": "new@example.com"})
    taskflow.run_due()
    travel(5)
    taskflow.run_due()

    assert [message.addresses for message in sent] == [("new@example.com",)]


@pytest.mark.parametrize("end", ["cancel", "verify", "expire"])
def test_send_of_a_task_that_is_over_is_void(
    app: Flask,
    taskflow: TaskFlow,
    add: Callable[..., Task[Any]],
    email: Moody,
    sent: list[Message],
    redis: Redis,
    end: str,
) -> None:
    email.moods = [OSError]
    task = add(send_via=["EMAIL", "SMS"], ttl=60)
    taskflow.run_due()
    if end == "cancel":
        taskflow.cancel_task(task.id)
    elif end == "verify":
        taskflow.verify(task.id, "SMS", sent[0].otp)
    travel(61)

    attempts = taskflow.run_due()

    assert (attempts, email.attempts, len(sent)) == (1, 1, 1)
    assert left_of_sends(redis) == []


def test_send_that_comes_late_carries_a_code_that_lasts(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    task = add(ttl=3600)
    travel(1000)

    taskflow.run_due()

    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_send_under_a_new_secret_key_carries_a_new_code(
    make_app: MakeApp,
    app: Flask,
    taskflow: TaskFlow,
    add: Callable[..., Task[Any]],
    email: Moody,
    sent: list[Message],
) -> None:
    task = add(allowed_methods=["EMAIL"])
    key = "another secret key, long enough as well"
    rotated = make_app(send="background", SECRET_KEY=key, SECRET_KEY_FALLBACKS=[SECRET_KEY])
    email.moods = [OSError]
    with rotated.app_context():
        taskflow.run_due()
        travel(2)
        taskflow.run_due()

        assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


class Words(Moody):
    """Make codes that cannot be derived again."""

    code_pattern = "[a-z]{8}"

    def generate(self, task: Task[Any]) -> str:
        return "abcdefgh"[self.attempts :] + "z" * self.attempts


def test_send_of_own_codes_can_be_tried_again(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    words = taskflow.register_strategy("EMAIL")(Words(sent))
    words.moods = [OSError]
    task = add()
    taskflow.run_due()
    travel(2)
    taskflow.run_due()

    assert sent[0].otp == "bcdefghz"
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_send_to_an_address_that_was_tampered_with_is_dropped(
    app: Flask,
    taskflow: TaskFlow,
    add: Callable[..., Task[Any]],
    sent: list[Message],
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add()
    (key,) = redis.scan_iter(match="*:task:*")
    redis.hset(key, "address.email", "thief@example.com")

    taskflow.run_due()

    assert sent == []
    assert left_of_sends(redis) == []
    assert "task_tampered" in [record.__dict__.get("event") for record in caplog.records]


def test_send_when_its_task_s_values_are_poisoned_is_dropped(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message], redis: Redis
) -> None:
    add()
    (key,) = redis.scan_iter(match="*:task:*")
    redis.hset(key, "EMAIL.until", "soon")

    assert taskflow.run_due() == 1
    assert sent == []
    assert left_of_sends(redis) == []


def test_send_of_a_paused_queue_goes_on(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    taskflow._service().operations.pause("q")
    add()

    taskflow.run_due()

    assert len(sent) == 1


def test_code_while_a_send_waits_or_failed_is_in_no_key_and_no_log(
    app: Flask,
    taskflow: TaskFlow,
    add: Callable[..., Task[Any]],
    email: Moody,
    sent: list[Message],
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Leaky(Exception):
        pass

    def leak(task: Task[Any], otp: str) -> None:
        codes.append(str(otp))
        raise Leaky(f"550 I do not want {otp}")

    codes: list[str] = []
    email.send = leak  # type: ignore[method-assign]  # raises what a provider might
    caplog.set_level("DEBUG")
    add()
    dumps = [dump(redis)]
    for _ in range(3):
        taskflow.run_due()
        dumps.append(dump(redis))
        travel(5)

    assert len(codes) == 3
    assert len(set(codes)) == 1
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "Leaky" in told
    for text in (*dumps, told):
        assert codes[0] not in text
        assert sent[0].otp not in text


def dump(redis: Redis) -> str:
    parts: list[str] = []
    for key in redis.scan_iter():
        parts.append(f"{key!r} {READ[redis.type(key)](redis, key)!r}")
    return "\n".join(parts)


READ: dict[Any, Callable[[Any, Any], object]] = {
    b"hash": lambda redis, key: redis.hgetall(key),
    b"zset": lambda redis, key: redis.zrange(key, 0, -1),
    b"string": lambda redis, key: redis.get(key),
}


def test_send_lost_too_often_falls_back(
    make_app: MakeApp,
    taskflow: TaskFlow,
    email: Moody,
    sms: Moody,
    add: Callable[..., Task[Any]],
    sent: list[Message],
    redis: Redis,
) -> None:
    with make_app(send="background", max_lost=0).app_context():
        task = add()
        runtime = taskflow._service().runtime
        claim = runtime._new_sender("EMAIL")._store.claim("q", ["@EMAIL"], 1)
        travel(31)

        taskflow.run_due()

        assert len(claim.deliveries) == 1
        assert email.attempts == 0
        assert taskflow.verify(task.id, "SMS", sent[0].otp).status is Status.SUCCESS
    assert left_of_sends(redis) == []


def test_add_task_when_a_key_of_the_sends_is_spoiled_stores_nothing(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], redis: Redis
) -> None:
    tag = taskflow._service().keys.tag("q")
    (key,) = taskflow._service().keys.handler(tag, "@EMAIL", "ready")
    redis.set(key, "junk")

    with pytest.raises(ResponseError, match="wrong type"):
        add()

    assert list(redis.scan_iter(match="*:task:*")) == []


def test_add_task_inline_stores_no_send(
    make_app: MakeApp, add: Callable[..., Task[Any]], redis: Redis, taskflow: TaskFlow
) -> None:
    with make_app().app_context():
        add()

    assert left_of_sends(redis) == []


# What went wrong once, or nearly.


def claim_send(taskflow: TaskFlow, method: str = "EMAIL") -> int:
    """Claim a send and answer its token, as a process does that tells nothing more."""
    store = taskflow._service().runtime._new_sender(method)._store
    (item,) = store.claim("q", [f"@{method}"], 1).deliveries
    return item.token


def test_code_that_was_delivered_late_is_in_force_whatever_the_next_attempt_does(
    make_app: MakeApp, taskflow: TaskFlow, email: Moody, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    deliver = email.send

    def deliver_and_be_asked_again(task: Task[Any], otp: str) -> None:
        deliver(task, otp)
        email.send = deliver  # type: ignore[method-assign]  # the first attempt only
        taskflow.resend_otp(task.id, "EMAIL")
        email.moods = [Reject("no more")]

    email.send = deliver_and_be_asked_again  # type: ignore[method-assign]  # what happens meanwhile
    with make_app(send="background", autostart=False, resend_cooldown=0).app_context():
        task = add(allowed_methods=["EMAIL"])

        taskflow.run_due()

        assert (email.attempts, len(sent)) == (2, 1)
        assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_success_that_comes_after_the_send_was_given_up_puts_its_code_in_force(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message]
) -> None:
    deliver = email.send

    def deliver_too_late(task: Task[Any], otp: str) -> None:
        deliver(task, otp)
        codes = taskflow._service().runtime._codes
        new = [taskflow._service()._sender.new_code(task.id, method) for method in ("EMAIL", "SMS")]
        tokens.append(codes.give_up(task.id, token_of(task, "EMAIL"), "EMAIL", new, []))

    def token_of(task: Task[Any], method: str) -> int:
        service = taskflow._service()
        (key,) = service.keys.handler(service.keys.tag("q"), f"@{method}", "meta")
        line: Any = service.client.hget(key, task.id)
        return int(line.split()[5])

    tokens: list[object] = []
    email.send = deliver_too_late  # type: ignore[method-assign]  # what happens meanwhile
    task = add()

    taskflow.run_due()

    assert tokens != [None]
    assert len(sent) == 2
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_fall_back_goes_to_a_method_that_was_given_up_and_resent_since(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sms: Moody,
    sent: list[Message],
) -> None:  # fmt: skip
    email.moods = [Reject("full")]
    task = add(ttl=3600)
    taskflow.run_due()
    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.run_due()
    travel(601)
    sms.moods = [Reject("no")]
    taskflow.resend_otp(task.id, "SMS")

    taskflow.run_due()

    assert len(sent) == 3
    assert taskflow.verify(task.id, "EMAIL", sent[2].otp).status is Status.SUCCESS


def test_task_whose_other_send_waits_does_not_fail_although_its_code_is_old(
    make_app: MakeApp, taskflow: TaskFlow, email: Moody, sms: Moody, add: Callable[..., Task[Any]],
    sent: list[Message],
) -> None:  # fmt: skip
    email.moods = [Reject("no")]
    with make_app(send="background", max_sends=2, autostart=False).app_context():
        task = add(send_via=["EMAIL", "SMS"], ttl=3600)
        travel(700)

        taskflow.run_due()

        assert len(sent) == 1
        assert taskflow.verify(task.id, "SMS", sent[0].otp).status is Status.SUCCESS


class Device(BaseStrategy):
    """Accept what a device shows; wake it in vain."""

    def check(self, task: Task[Any], otp: str, now: object) -> str | None:
        return otp if otp == "314159" else None

    def send(self, task: Task[Any], otp: str) -> None:
        raise Reject("it sleeps")


@pytest.mark.parametrize("max_sends", [1, 5])
def test_task_that_a_device_can_confirm_does_not_fail(
    make_app: MakeApp, taskflow: TaskFlow, email: Moody, add: Callable[..., Task[Any]], max_sends: int
) -> None:
    taskflow.register_strategy("SMART_OTP")(Device())
    email.moods = [Reject("no")]
    with make_app(send="background", max_sends=max_sends, autostart=False).app_context():
        task = add(allowed_methods=["EMAIL", "SMART_OTP"], recipient={"email": EMAIL, "device_id": "d"})

        taskflow.run_due()

        assert taskflow.verify(task.id, "SMART_OTP", "314159").status is Status.SUCCESS


@pytest.mark.parametrize("after", [float("nan"), "soon", None, [], -5, True])
def test_retry_after_no_number_of_seconds_is_tried_again_soon(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message],
    after: Any,
) -> None:  # fmt: skip
    email.moods = [Retry(after=after)]
    add()
    taskflow.run_due()
    travel(1.2)
    taskflow.run_due()

    assert email.attempts == 2
    assert [message.task.status for message in sent] == [Status.PENDING]


@pytest.mark.parametrize("after", [601, float("inf"), 1e300, pytest.param(10**400, id="huge")])
def test_retry_after_the_end_of_the_task_falls_back_at_once(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message],
    after: float, redis: Redis,
) -> None:  # fmt: skip
    email.moods = [Retry(after=after)]
    task = add(ttl=600)

    taskflow.run_due()

    assert left_of_sends(redis) == []
    assert taskflow.verify(task.id, "SMS", sent[0].otp).status is Status.SUCCESS


class Silent(Retry):
    """Know nothing of when."""

    def __init__(self) -> None:
        return


class Exit(BaseException):
    pass


@pytest.mark.parametrize("mood", [SystemExit, Exit("550 I do not want"), Silent()])
def test_send_that_raises_what_is_no_exception_is_tried_again(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message],
    mood: BaseException, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    email.moods = [mood]
    add()
    taskflow.run_due()
    failed = [record.__dict__.get("cause") for record in caplog.records]
    travel(1.2)
    taskflow.run_due()

    assert (mood.__name__ if isinstance(mood, type) else type(mood).__name__) in failed
    assert "550" not in caplog.text
    assert (email.attempts, len(sent)) == (2, 1)


def test_send_again_in_the_last_minute_of_a_task_carries_the_same_code(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody
) -> None:
    def fail(task: Task[Any], otp: str) -> None:
        codes.append(str(otp))
        raise OSError

    codes: list[str] = []
    email.send = fail  # type: ignore[method-assign]  # it may have been delivered all the same
    add(ttl=45)
    taskflow.run_due()
    travel(1.2)
    taskflow.run_due()

    assert len(codes) == 2
    assert len(set(codes)) == 1


def test_send_while_the_list_of_queues_is_spoiled_is_done(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message], redis: Redis
) -> None:
    add()
    redis.delete("taskflow:queues")
    redis.set("taskflow:queues", "junk")

    taskflow.run_due()

    assert len(sent) == 1


def test_give_up_while_a_key_is_spoiled_is_done_once_that_is_mended(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, sent: list[Message],
    redis: Redis,
) -> None:  # fmt: skip
    email.moods = [Reject("no")] * 2
    add()
    (key,) = redis.scan_iter(match="*:recipients")
    redis.rename(key, "apart")
    redis.set(key, "junk")
    with pytest.raises(ResponseError):
        taskflow.run_due()
    redis.rename("apart", key)
    travel(31)

    taskflow.run_due()

    assert (email.attempts, len(sent)) == (2, 1)


def test_fall_back_passes_by_a_method_whose_keys_are_spoiled(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody, redis: Redis
) -> None:
    email.moods = [Reject("no")]
    task = add()
    keys = taskflow._service().keys
    redis.set(keys.handler(keys.tag("q"), "@SMS", "lease")[0], "junk")

    taskflow._service().runtime._new_sender("EMAIL").run_due()

    assert status_of(taskflow, task) is Status.FAILED


def test_give_up_reported_again_tells_the_same_and_changes_nothing(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], redis: Redis
) -> None:
    service = taskflow._service()

    def give_up(task: Task[Any], token: int, *methods: str) -> Any:
        new = [service._sender.new_code(task.id, method) for method in methods]
        return service.runtime._codes.give_up(task.id, token, "EMAIL", new, [])

    task = add()
    token = claim_send(taskflow)
    first = give_up(task, token, "EMAIL", "SMS")
    before = dump(redis)
    again = give_up(task, token, "EMAIL", "SMS")

    assert first.following == again.following == "SMS"
    assert dump(redis) == before
    taskflow.resend_otp(task.id, "EMAIL")
    other = claim_send(taskflow)
    assert other != token
    assert give_up(task, token, "EMAIL", "SMS") is None
    assert taskflow._service().runtime._new_sender("EMAIL")._store.claim("q", ["@EMAIL"], 1).held == 1

    lonely = add(allowed_methods=["EMAIL"], recipient={"email": "b@example.com"})
    token = claim_send(taskflow)
    ends = [give_up(lonely, token, "EMAIL") for _ in range(2)]
    assert [end.failed.status for end in ends] == [Status.FAILED] * 2


def test_code_that_a_process_sent_inline_meanwhile_is_left_to_it(
    make_app: MakeApp, app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody,
    sent: list[Message],
) -> None:  # fmt: skip
    email.moods = [OSError]
    task = add(allowed_methods=["EMAIL"], recipient={"email": EMAIL})
    taskflow.run_due()
    with make_app().app_context():
        taskflow.update_recipient(task.id, {"email": "new@example.com"})
    travel(2)
    taskflow.run_due()

    assert [message.addresses for message in sent] == [("new@example.com",)]
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_give_up_of_a_send_whose_code_a_process_replaced_inline_leaves_that_in_force(
    make_app: MakeApp, app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], email: Moody,
    sent: list[Message],
) -> None:  # fmt: skip
    task = add(allowed_methods=["EMAIL"], recipient={"email": EMAIL})
    token = claim_send(taskflow)
    with make_app(resend_policy="rotate", resend_cooldown=0).app_context():
        travel(31)
        taskflow.resend_otp(task.id, "EMAIL")

    new = [taskflow._service()._sender.new_code(task.id, "EMAIL")]
    given_up = taskflow._service().runtime._codes.give_up(task.id, token, "EMAIL", new, [])

    assert given_up is not None
    assert given_up.failed is None
    assert taskflow.verify(task.id, "EMAIL", sent[0].otp).status is Status.SUCCESS


def test_send_beside_many_that_hang_is_tried_until_too_many_do(
    make_app: MakeApp, taskflow: TaskFlow, email: Moody, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    with make_app(send="background", send_threads=2, autostart=False).app_context():
        add(allowed_methods=["EMAIL"])
        token = claim_send(taskflow)
        runner = (engine := taskflow._service().runtime._new_sender("EMAIL"))._runner
        assert isinstance(runner, SendRunner)
        others = [Attempt(Claimed("q", "@EMAIL", "", token, 0, 0, None), 1) for _ in range(4)]
        runner._inside.update(others)
        travel(31)
        for other in others[:3]:
            other.written_off = True

        engine.run_due()
        first = len(sent)
        others[3].written_off = True
        add(allowed_methods=["EMAIL"])
        engine.run_due()

    assert (first, len(sent)) == (1, 1)


def test_send_of_own_codes_works_when_memory_is_full(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message], redis: Redis
) -> None:
    words = taskflow.register_strategy("EMAIL")(Words(sent))
    words.moods = [Reject("no")]
    add()
    redis.config_set("maxmemory", 1)
    try:
        taskflow.run_due()
    finally:
        redis.config_set("maxmemory", 0)

    assert words.attempts == 1
    assert len(sent) == 1


def test_send_of_a_task_of_another_queue_is_dropped(
    app: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message], redis: Redis
) -> None:
    task = add()
    keys = taskflow._service().keys
    for kind in ("ready", "meta", "body"):
        (mine,) = keys.handler(keys.tag("q"), "@EMAIL", kind)
        (other,) = keys.handler(keys.tag("other"), "@EMAIL", kind)
        redis.rename(mine, other)
    redis.hset("taskflow:queues", keys.tag("other"), "other")

    taskflow.run_due()

    assert sent == []
    assert left_of_sends(redis) == []
    assert status_of(taskflow, task) is Status.PENDING


# In threads, as in a serving process.


@pytest.fixture
def threaded(make_app: MakeApp, taskflow: TaskFlow, email: Moody, sms: Moody) -> Iterator[Flask]:
    app = make_app(
        send="background", send_timeout=0.1, redis_timeout=0.2, send_backoff=0.01, send_threads=2, poll=60
    )
    with app.app_context():
        yield app
        taskflow.stop(timeout=1)


class Hanging(BaseStrategy):
    """Hang until the test lets go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go = threading.Event()

    def send(self, task: Task[Any], otp: str) -> None:
        self.began.release()
        self.go.wait(20)


def test_send_by_a_provider_that_hangs_falls_back_while_others_go_on(
    threaded: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    hanging = taskflow.register_strategy("EMAIL")(Hanging())
    taskflow.start()
    tasks = [add(recipient={"email": f"{i}{EMAIL}", "phone_number": f"{PHONE}{i}"}) for i in range(3)]

    wait_until(lambda: len(sent) == 3)
    hanging.go.set()

    codes = {message.task.id: message.otp for message in sent}
    for task in tasks:
        assert taskflow.verify(task.id, "SMS", codes[task.id]).status is Status.SUCCESS


def test_send_for_a_queue_that_only_another_process_knows_is_done_at_once(
    threaded: Flask, make_app: MakeApp, taskflow: TaskFlow, add: Callable[..., Task[Any]], sent: list[Message]
) -> None:
    taskflow.start()
    other = TaskFlow()
    other.register_strategy("EMAIL")(OutboxStrategy())
    with make_app(other, send="background", autostart=False).app_context():
        other.add_task("elsewhere", allowed_methods=["EMAIL"], recipient={"email": EMAIL})

    wait_until(lambda: sent)

    assert sent[0].task.queue == "elsewhere"


def test_send_stored_before_a_process_started_is_done(
    threaded: Flask, make_app: MakeApp, taskflow: TaskFlow, sent: list[Message]
) -> None:
    other = TaskFlow()
    other.register_strategy("EMAIL")(OutboxStrategy())
    with make_app(other, send="background", autostart=False).app_context():
        other.add_task("elsewhere", allowed_methods=["EMAIL"], recipient={"email": EMAIL})

    taskflow.start()

    wait_until(lambda: sent)


def test_send_by_a_strategy_registered_after_the_start_is_done(
    threaded: Flask, taskflow: TaskFlow, sent: list[Message]
) -> None:
    taskflow.start()
    current_app.testing = False
    taskflow.register_strategy("LETTER")(OutboxStrategy(messages=sent))

    taskflow.add_task("q", allowed_methods=["LETTER"], recipient={})

    wait_until(lambda: sent)


def test_stop_while_a_send_runs_waits_for_it(
    threaded: Flask, taskflow: TaskFlow, add: Callable[..., Task[Any]], redis: Redis
) -> None:
    threaded.config["TESTING"] = True
    hanging = taskflow.register_strategy("EMAIL")(Hanging())
    taskflow.start()
    add()
    assert hanging.began.acquire(timeout=10)
    threading.Timer(0.05, hanging.go.set).start()

    taskflow.stop(timeout=10)

    assert left_of_sends(redis) == []
