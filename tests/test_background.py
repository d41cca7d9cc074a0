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
