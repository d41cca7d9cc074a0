"""The life of a task: attempts, codes, cooldowns, limits, addresses and ends, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from flask import Flask
from redis import Redis, RedisError

from flask_taskflow import Method, OutboxStrategy, Status, Task, TaskFlow, signals, task_verified
from flask_taskflow.errors import (
    CodeExpired,
    CodeRepeated,
    KeyMissing,
    MethodNotAllowed,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    TaskExpired,
    TaskFlowError,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    TaskTampered,
    WrongCode,
)
from flask_taskflow.testing import Outbox, travel
from tests.conftest import Hear, MakeApp
from tests.support.tasks import (
    BOTH,
    EMAIL,
    NEW_EMAIL,
    PHONE,
    Tap,
    add,
    at_once,
    guess_wrong,
    key_of,
    keys_like,
    lock,
    other,
    refused,
    stored_task,
    with_settings,
)

pytestmark = pytest.mark.usefixtures("app")


def verified(results: Sequence[Any]) -> list[Task[Any]]:
    return [result for result in results if isinstance(result, Task)]


def first_addresses(box: Outbox) -> list[str]:
    return [message.addresses[0] for message in box]


def steps_of(taskflow: TaskFlow, task_id: str, code: str) -> dict[str, Callable[[], Any]]:
    """What can be done with a task."""
    return {
        "verify": lambda: taskflow.verify(task_id, "EMAIL", code),
        "resend": lambda: taskflow.resend_otp(task_id, "EMAIL"),
        "update": lambda: taskflow.update_recipient(task_id, {"email": NEW_EMAIL}),
        "cancel": lambda: taskflow.cancel_task(task_id),
        "get": lambda: taskflow.get_task(task_id),
    }


# Add.


def test_task_when_added_is_what_get_task_returns(taskflow: TaskFlow, box: Outbox) -> None:
    data = {"amount": 12.5, "to": ["x", {}, []], "big": 2**63, "ü": None}

    task = add(taskflow, data=data, summary="Pay 12.50", priority=-7, ttl=90.5, timeout=3)

    assert taskflow.get_task(task.id) == task
    assert (task.data, task.summary, task.priority, task.timeout) == (data, "Pay 12.50", -7, 3)
    assert (task.expires_at - task.created_at).total_seconds() == 90.5
    assert task.status is Status.PENDING
    assert [message.addresses for message in box] == [(EMAIL,)]


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ({"send_via": None}, [EMAIL]),
        ({"send_via": ["SMS"]}, [PHONE]),
        ({"send_via": BOTH}, [EMAIL, PHONE]),
        # The first method has no address: it is passed over.
        ({"recipient": {"phone_number": PHONE}}, [PHONE]),
    ],
)
def test_codes_go_at_once_by_the_methods_of_send_via_or_the_first_that_can(
    taskflow: TaskFlow, box: Outbox, given: Any, addresses: list[str]
) -> None:
    add(taskflow, **given)

    assert [message.addresses for message in box] == [(address,) for address in addresses]


# Verify.


def test_right_code_verifies_and_tells_how(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    done = taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL))

    assert (done.status, done.verification_method) == (Status.SUCCESS, Method.EMAIL)
    assert done.verified_at is not None
    assert done.created_at <= done.verified_at <= done.expires_at
    assert taskflow.get_task(task.id) == done


@pytest.mark.promise("S1")
def test_wrong_codes_count_down_and_lock(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)

    assert guess_wrong(taskflow, task, code, 4) == [4, 3, 2, 1]
    assert refused(TaskLocked, taskflow.verify, task.id, "EMAIL", other(code, 5)).attempts_left == 0
    for typed in (code, other(code)):
        refused(TaskLocked, taskflow.verify, task.id, "EMAIL", typed)
    assert taskflow.get_task(task.id).status is Status.LOCKED


@pytest.mark.promise("S6")
def test_attempts_when_sent_anew_and_readdressed_go_on(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)

    guess_wrong(taskflow, task, code, 2)
    travel(30)
    taskflow.resend_otp(task.id, "EMAIL")
    guess_wrong(taskflow, task, code, 2)
    taskflow.update_recipient(task.id, {"email": NEW_EMAIL})
    code = box.last_code(NEW_EMAIL)

    for typed in (other(code), code):
        refused(TaskLocked, taskflow.verify, task.id, "EMAIL", typed)


def test_attempts_of_one_task_leave_another_alone(taskflow: TaskFlow, box: Outbox) -> None:
    guess_wrong(taskflow, add(taskflow), box.last_code(EMAIL), 4)

    assert guess_wrong(taskflow, add(taskflow), box.last_code(EMAIL)) == [4]


@pytest.mark.promise("S32")
@pytest.mark.parametrize(
    ("method", "error"),
    [("SMART_OTP", MethodNotAllowed), ("CARRIER_PIGEON", MethodNotAllowed), ("SMS", WrongCode)],
)
def test_method_not_allowed_counts_as_an_attempt(
    taskflow: TaskFlow, box: Outbox, method: str, error: type[OTPRejected]
) -> None:
    """So does one that is allowed, by which no code went out."""
    task = add(taskflow)

    assert refused(error, taskflow.verify, task.id, method, box.last_code(EMAIL)).attempts_left == 4


# So many may wait for a connection for long, on a busy machine.
MANY_THREADS = with_settings(redis_timeout=60)


@pytest.mark.promise("S4")
@MANY_THREADS
def test_same_right_code_from_200_threads_succeeds_once(
    app: Flask, taskflow: TaskFlow, box: Outbox, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    """One success, one event, one run of the callback."""
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    caplog.set_level("INFO", "flask_taskflow.audit")
    ear = hear(task_verified)
    task = add(taskflow)

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", box.last_code(EMAIL))] * 200)

    assert len(verified(results)) == 1
    assert [type(result) for result in results].count(CodeRepeated) == 199
    events = [getattr(item, "event", None) for item in caplog.records]
    assert (events.count("code_accepted"), events.count("code_repeated")) == (1, 199)
    assert [heard["task"].id for heard in ear.rest()] == [task.id]
    assert runs == [task.id]


@pytest.mark.promise("S3")
@MANY_THREADS
def test_right_code_among_199_wrong_ones_succeeds_once_at_most(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)
    typed = [other(code, number) for number in range(1, 200)]
    typed.insert(99, code)

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", otp) for otp in typed])

    wrong = sum(isinstance(result, WrongCode) for result in results)
    locked = sum(isinstance(result, TaskLocked) for result in results)
    done = len(verified(results))
    assert (done == 1 and wrong <= 4 and not locked) or (done == 0 and wrong == 4 and locked == 196)
    assert taskflow.get_task(task.id).status is (Status.SUCCESS if done else Status.LOCKED)


@pytest.mark.promise("S5")
def test_right_codes_of_two_methods_at_once_succeed_once(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    for number in range(10):
        address, phone = f"ann{number}@example.com", f"+1202555011{number}"
        task = add(taskflow, recipient={"email": address, "phone_number": phone}, send_via=BOTH)
        codes = {"EMAIL": box.last_code(address), "SMS": box.last_code(phone)}
        calls = [partial(taskflow.verify, task.id, method, code) for method, code in codes.items()]

        done = verified(at_once(app, calls * 4))

        assert len(done) == 1


def test_code_of_one_method_is_refused_for_another(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, send_via=BOTH)

    refused(WrongCode, taskflow.verify, task.id, "SMS", box.last_code(EMAIL))

    assert taskflow.verify(task.id, "SMS", box.last_code(PHONE)).verification_method == "SMS"


@with_settings(otp_ttl=60)
def test_code_when_over_counts_and_a_resend_makes_a_new_one(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)
    travel(50)
    guess_wrong(taskflow, task, code)
    travel(11)

    expired = refused(CodeExpired, taskflow.verify, task.id, "EMAIL", code)
    taskflow.resend_otp(task.id, "EMAIL")
    renewed = box.last_code(EMAIL)

    assert expired.attempts_left == 3
    assert renewed != code
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


@pytest.mark.promise("S33")
def test_code_never_outlives_its_task(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    task = add(taskflow, ttl=100)
    travel(70)
    taskflow.resend_otp(task.id, "EMAIL")

    stored = stored_task(redis, task)

    assert stored["EMAIL.until"] == stored["expires"]


# Ends.


def test_task_when_expired_is_told_for_retention(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    task = add(taskflow, ttl=60)
    steps = steps_of(taskflow, task.id, box.last_code(EMAIL))
    get = steps.pop("get")
    travel(61)

    assert get().status is Status.EXPIRED
    for step in steps.values():
        refused(TaskExpired, step)
    travel(86390)
    assert get().status is Status.EXPIRED
    for step in steps.values():
        refused(TaskExpired, step)
    travel(11)
    for step in [*steps.values(), get]:
        refused(TaskNotFound, step)
    assert not redis.keys("*:task:*")
    assert len(box) == 1


@pytest.mark.parametrize("end", [Status.SUCCESS, Status.LOCKED, Status.CANCELLED])
def test_task_when_ended_takes_no_more_steps_and_is_kept_for_retention(
    taskflow: TaskFlow, box: Outbox, redis: Redis, end: Status
) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)
    steps = steps_of(taskflow, task.id, code)
    get = steps.pop("get")
    if end is Status.LOCKED:
        lock(taskflow, task, code)
    else:
        steps["verify" if end is Status.SUCCESS else "cancel"]()
    before = stored_task(redis, task)
    # The code that ended the task is another matter.
    steps["verify"] = partial(taskflow.verify, task.id, "EMAIL", other(code))

    for step in steps.values():
        error = refused(TaskLocked if end is Status.LOCKED else TaskNotPending, step)
        assert end == getattr(error, "status", Status.LOCKED)

    assert stored_task(redis, task) == before
    assert not any(name[:1].isupper() for name in before), "the codes are gone"
    assert not redis.keys("*:pending")
    assert len(box) == 1
    travel(86390)
    assert get().status is end
    travel(11)
    refused(TaskNotFound, get)


@pytest.mark.promise("S73")
def test_code_that_ended_the_task_gets_the_same_answer_for_a_minute(
    taskflow: TaskFlow, box: Outbox, redis: Redis, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_taskflow.audit")
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    ear = hear(task_verified)
    task = add(taskflow, send_via=BOTH)
    email, sms = (message.otp for message in box)
    done = taskflow.verify(task.id, "EMAIL", email)
    before = stored_task(redis, task)

    again = refused(CodeRepeated, partial(taskflow.verify, task.id, "EMAIL", f" {email[:3]} {email[3:]}"))

    assert again.task == done
    for method, code in (("EMAIL", other(email)), ("SMS", sms), ("SMS", email)):
        refused(TaskNotPending, partial(taskflow.verify, task.id, method, code))
    assert stored_task(redis, task) == before, "no attempt was counted"
    events = [getattr(item, "event", "") for item in caplog.records]
    assert (events.count("code_accepted"), events.count("code_repeated")) == (1, 1)
    assert [heard["task"].id for heard in ear.rest()] == runs == [task.id]
    travel(61)
    refused(TaskNotPending, partial(taskflow.verify, task.id, "EMAIL", email))


@pytest.mark.parametrize("end", ["cancel", "lock", "expire"])
def test_right_code_of_a_task_that_ended_in_another_way_is_refused(
    taskflow: TaskFlow, box: Outbox, end: str
) -> None:
    task = add(taskflow, ttl=60)
    code = box.last_code(EMAIL)
    if end == "cancel":
        taskflow.cancel_task(task.id)
    elif end == "lock":
        lock(taskflow, task, code)
    else:
        travel(61)

    refused(OTPRejected, partial(taskflow.verify, task.id, "EMAIL", code))


@pytest.mark.parametrize("task_id", ["a" * 34, "", "x", "A" * 34, "a" * 33 + "\n", "é" * 34])
def test_unknown_id_is_not_found(taskflow: TaskFlow, task_id: str) -> None:
    for step in steps_of(taskflow, task_id, "123456").values():
        refused(TaskNotFound, step)


# Cooldown.


@pytest.mark.promise("S22")
def test_resend_within_the_cooldown_changes_nothing(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    task = add(taskflow)
    before = stored_task(redis, task)

    too_soon = refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")

    assert 25 < too_soon.retry_after <= 30
    assert len(box) == 1
    assert stored_task(redis, task) == before


@pytest.mark.promise("S24")
@with_settings(max_sends=8, recipient_max_sends=100, resend_cooldown_max=200)
def test_cooldown_doubles_up_to_its_cap(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=3600)
    for wait in (30, 60, 120, 200, 200):
        travel(wait - 3)
        assert 0 < refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL").retry_after <= 3
        travel(3)
        taskflow.resend_otp(task.id, "EMAIL")

    assert len(box) == 6


def test_cooldown_is_per_method(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    taskflow.resend_otp(task.id, "SMS")

    assert first_addresses(box) == [EMAIL, PHONE]
    refused(ResendTooSoon, taskflow.resend_otp, task.id, "SMS")


@with_settings(resend_cooldown=0)
def test_cooldown_of_zero_means_none(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    for _ in range(4):
        taskflow.resend_otp(task.id, "EMAIL")

    assert len(box) == 5


@pytest.mark.promise("S23")
def test_resends_from_50_threads_send_once(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    travel(30)

    results = at_once(app, [lambda: taskflow.resend_otp(task.id, "EMAIL")] * 50)

    assert len(verified(results)) == 1
    assert sum(isinstance(result, ResendTooSoon) for result in results) == 49
    assert len(box) == 2


# Resend.


@pytest.mark.promise("S27")
def test_resend_repeats_the_code_and_its_end_while_a_minute_is_left(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    task = add(taskflow, ttl=3600)
    code, until = box.last_code(EMAIL), stored_task(redis, task)["EMAIL.until"]
    travel(537)
    shift = int(stored_task(redis, task)["EMAIL.until"]) - int(until)
    taskflow.resend_otp(task.id, "EMAIL")

    assert shift == -537_000
    assert box.last_code(EMAIL) == code
    assert int(stored_task(redis, task)["EMAIL.until"]) == int(until) + shift
    travel(59)
    assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


@pytest.mark.promise("S27")
def test_resend_makes_a_new_code_when_less_than_a_minute_is_left(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=3600)
    code = box.last_code(EMAIL)
    travel(541)
    taskflow.resend_otp(task.id, "EMAIL")
    renewed = box.last_code(EMAIL)

    assert renewed != code
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", code)
    travel(590)
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


@pytest.mark.promise("S27")
@with_settings(resend_policy="rotate")
def test_resend_by_the_policy_rotate_kills_the_old_code(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)
    travel(30)
    taskflow.resend_otp(task.id, "EMAIL")
    renewed = box.last_code(EMAIL)

    assert renewed != code
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", code)
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_code_length_that_was_changed_since_makes_a_resend_rotate(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(30)
    with make_app(otp_length=8).app_context():
        taskflow.resend_otp(task.id, "EMAIL")

        assert len(box.last_code(EMAIL)) == 8
        assert taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL)).status is Status.SUCCESS


# Limits.


@pytest.mark.promise("S25")
@with_settings(recipient_max_sends=100)
def test_sixth_message_of_a_task_is_refused(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """Messages by all methods count."""
    task = add(taskflow, ttl=7200, send_via=BOTH)
    for _ in range(3):
        travel(600)
        taskflow.resend_otp(task.id, "EMAIL")
    before = stored_task(redis, task)

    enough = refused(SendLimitReached, taskflow.resend_otp, task.id, "SMS")

    assert 5395 < enough.retry_after <= 5400
    assert len(box) == 5
    assert stored_task(redis, task) == before


@with_settings(max_sends=1)
def test_more_methods_than_messages_are_refused_before_anything_is_stored(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    refused(SendLimitReached, lambda: add(taskflow, send_via=BOTH))

    assert not box
    assert not redis.keys("*:task:*")


@pytest.mark.promise("S25")
def test_sixth_message_to_one_address_over_several_tasks_is_refused(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """Case and blanks make no other address of it; the window runs from the first message."""
    for spelling in [EMAIL, f" {EMAIL} ", EMAIL.upper(), f"{EMAIL}\t", "Ann@Example.Com"]:
        add(taskflow, recipient={"email": spelling})
        travel(10)
    tasks = keys_like(redis, "*:task:*")

    enough = refused(SendLimitReached, lambda: add(taskflow, recipient={"email": EMAIL}))

    assert 545 < enough.retry_after <= 550
    assert len(box) == 5
    assert keys_like(redis, "*:task:*") == tasks
    add(taskflow, recipient={"email": "bob@example.com"})
    travel(551)
    add(taskflow, recipient={"email": EMAIL})
    assert len(box) == 7


def test_address_that_had_enough_gets_no_resend(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=3600)
    for _ in range(4):
        add(taskflow)
    travel(60)

    enough = refused(SendLimitReached, taskflow.resend_otp, task.id, "EMAIL")

    assert 535 < enough.retry_after <= 540
    assert len(box) == 5
    travel(541)
    taskflow.resend_otp(task.id, "EMAIL")
    assert len(box) == 6


@pytest.mark.promise("S7")
@with_settings(recipient_max_sends=1000)
def test_twenty_failures_silence_an_address_for_a_day(taskflow: TaskFlow, box: Outbox) -> None:
    last = add(taskflow, recipient={"email": EMAIL}, ttl=90000)
    for spelling in (EMAIL, EMAIL.upper(), f" {EMAIL}", f"{EMAIL} "):
        lock(taskflow, add(taskflow, recipient={"email": spelling}), box[-1].otp)
    sent = len(box)
    travel(600)

    for call in (lambda: add(taskflow), lambda: taskflow.resend_otp(last.id, "EMAIL")):
        assert 85795 < refused(SendLimitReached, call).retry_after <= 85800
    assert len(box) == sent
    travel(85801)
    add(taskflow)
    assert len(box) == sent + 1


@with_settings(recipient_max_failures=5)
def test_success_clears_the_failures_of_the_address(taskflow: TaskFlow, box: Outbox) -> None:
    for _ in range(2):
        task = add(taskflow)
        code = box.last_code(EMAIL)
        guess_wrong(taskflow, task, code, 4)
        taskflow.verify(task.id, "EMAIL", code)

    add(taskflow)

    assert len(box) == 3


# Update the recipient.


@pytest.mark.promise("S28", "S30")
def test_update_recipient_kills_the_old_code_and_sends_anew(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)

    updated = taskflow.update_recipient(task.id, {"email": NEW_EMAIL})

    assert updated.recipient.addresses() == {"email": NEW_EMAIL, "phone_number": PHONE}
    assert updated == taskflow.get_task(task.id)
    assert updated.expires_at == task.expires_at
    assert first_addresses(box) == [EMAIL, NEW_EMAIL]
    renewed = box.last_code(NEW_EMAIL)
    assert renewed != code
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", code)
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_update_recipient_restarts_the_cooldown_and_a_resend_goes_to_the_new_address(
    taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(29)
    taskflow.update_recipient(task.id, {"email": NEW_EMAIL})

    too_soon = refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")
    travel(60)
    taskflow.resend_otp(task.id, "EMAIL")

    assert 55 < too_soon.retry_after <= 60
    assert first_addresses(box) == [EMAIL, NEW_EMAIL, NEW_EMAIL]
    assert box[-1].otp == box[-2].otp


def test_update_recipient_leaves_codes_of_kept_addresses_alive(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, send_via=BOTH)
    sms = box.last_code(PHONE)

    taskflow.update_recipient(task.id, {"email": NEW_EMAIL})

    assert len(box) == 3
    assert taskflow.verify(task.id, "SMS", sms).verification_method == "SMS"


def test_update_recipient_when_no_code_dies_sends_as_add_task(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, recipient={"phone_number": PHONE})

    taskflow.update_recipient(task.id, {"email": EMAIL})

    assert first_addresses(box) == [PHONE, EMAIL]
    assert taskflow.verify(task.id, "SMS", box.last_code(PHONE)).status is Status.SUCCESS


def test_update_recipient_with_equal_addresses_does_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, hear: Hear
) -> None:
    task = add(taskflow)
    before = stored_task(redis, task)
    ear = hear(signals.recipient_updated)

    for given in ({"email": EMAIL}, {"email": f" {EMAIL} ", "phone_number": PHONE}, {}):
        assert taskflow.update_recipient(task.id, given) == task

    assert stored_task(redis, task) == before
    assert len(box) == 1
    assert not ear.rest()


@pytest.mark.promise("S29", "S55")
def test_update_recipient_tells_masked_addresses(
    app: Flask, taskflow: TaskFlow, box: Outbox, hear: Hear
) -> None:
    ear = hear(signals.recipient_updated)

    task = taskflow.update_recipient(add(taskflow).id, {"email": "bob@example.com"})

    (told,) = ear.rest()
    assert (told.pop("app"), told.pop("context")) == (app, app.name)
    assert told.pop("thread")
    assert told == {
        "task": task,
        "old": {"email": "a****@example.com"},
        "new": {"email": "b****@example.com"},
    }


@pytest.mark.promise("S29")
@with_settings(max_sends=100)
def test_fourth_update_of_the_recipient_is_refused(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """The code in force stays."""
    task = add(taskflow)
    for number in range(3):
        taskflow.update_recipient(task.id, {"email": f"new{number}@example.com"})
    before = stored_task(redis, task)

    refused(SendLimitReached, taskflow.update_recipient, task.id, {"email": "new3@example.com"})

    assert stored_task(redis, task) == before
    assert len(box) == 4
    assert taskflow.verify(task.id, "EMAIL", box.last_code("new2@example.com"))


@pytest.mark.parametrize(
    ("app", "send_via", "before"),
    [
        pytest.param({"max_sends": 2}, BOTH, 0, id="of the task"),
        pytest.param({"recipient_max_sends": 2}, None, 2, id="of the new address"),
    ],
    indirect=["app"],
)
def test_update_recipient_at_a_limit_of_messages_changes_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, send_via: Any, before: int
) -> None:
    task = add(taskflow, send_via=send_via)
    code = box.last_code(EMAIL)
    for _ in range(before):
        add(taskflow, recipient={"email": NEW_EMAIL})
    stored, sent = stored_task(redis, task), len(box)

    refused(SendLimitReached, taskflow.update_recipient, task.id, {"email": NEW_EMAIL.upper()})

    assert stored_task(redis, task) == stored
    assert len(box) == sent
    assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


# Sends that fail.


@pytest.fixture
def tap(taskflow: TaskFlow) -> Tap:
    """What sends by e-mail; it raises the error that it is given."""
    return taskflow.register_strategy("EMAIL")(Tap())


ERRORS = [OSError("no route"), RedisError("the strategy's own queue is down"), SendLimitReached("its own")]


@pytest.mark.promise("S26")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_code_that_no_send_delivered_verifies_nothing(
    taskflow: TaskFlow, tap: Tap, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A typed error with the task; a resend works at once; the failed send counts."""
    tap.error = error

    failed = refused(SendFailed, lambda: add(taskflow))

    task = failed.task
    assert task is not None
    assert failed.methods == ("EMAIL",)
    assert failed.__cause__ is failed.__context__ is None
    assert taskflow.get_task(task.id) == task
    assert f"{type(error).__name__} raised by Tap" in caplog.text
    (code,) = tap.codes
    assert code not in caplog.text
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", code)
    tap.error = None
    taskflow.resend_otp(task.id, "EMAIL")
    assert tap.codes == [code, code]
    too_soon = refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")
    assert too_soon.retry_after > 55, "the failed send counts"
    assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


@pytest.mark.promise("S26")
def test_code_that_one_send_delivered_stays_valid_when_the_next_fails(taskflow: TaskFlow, tap: Tap) -> None:
    task = add(taskflow)
    tap.error = OSError("no route")
    travel(30)

    refused(SendFailed, taskflow.resend_otp, task.id, "EMAIL")

    assert taskflow.verify(task.id, "EMAIL", tap.codes[0]).status is Status.SUCCESS


@pytest.mark.promise("S26")
def test_one_method_of_several_that_fails_leaves_the_others_valid(
    taskflow: TaskFlow, tap: Tap, hear: Hear
) -> None:
    tap.error, sms = OSError("no route"), OutboxStrategy()
    taskflow.register_strategy("SMS")(sms)
    ear = hear(signals.otp_sent)

    failed = refused(SendFailed, lambda: add(taskflow, send_via=BOTH))

    assert failed.methods == ("EMAIL",)
    assert [heard["method"] for heard in ear.rest()] == ["SMS"]
    assert failed.task is not None
    refused(WrongCode, taskflow.verify, failed.task.id, "EMAIL", tap.codes[0])
    assert taskflow.verify(failed.task.id, "SMS", sms.messages[0].otp).status is Status.SUCCESS


@pytest.mark.promise("S28")
def test_failed_send_after_a_change_of_address_leaves_no_code(taskflow: TaskFlow, tap: Tap) -> None:
    """The change holds, both codes are worth nothing."""
    task = add(taskflow)
    tap.error = OSError("no route")

    refused(SendFailed, taskflow.update_recipient, task.id, {"email": NEW_EMAIL})

    assert taskflow.get_task(task.id).recipient.email == NEW_EMAIL
    for code in tap.codes:
        refused(WrongCode, taskflow.verify, task.id, "EMAIL", code)


# Codes of the strategy's own.


class Words(Tap):
    """Makes codes of its own."""

    address = None
    code_pattern = "[a-z]+"

    def __init__(self, *words: str, before: Callable[[str], object] = str) -> None:
        super().__init__()
        self.next, self.before = list(words), before

    def generate(self, task: Task[Any]) -> str:
        self.before(task.id)
        return self.next.pop(0)


def test_code_of_the_strategys_own_verifies_and_a_resend_rotates_it(taskflow: TaskFlow) -> None:
    words = taskflow.register_strategy("WORDS")(Words("alpha", "beta"))
    task = add(taskflow, allowed_methods=["WORDS"], recipient={})
    travel(30)
    taskflow.resend_otp(task.id, "WORDS")

    assert words.codes == ["alpha", "beta"]
    refused(WrongCode, taskflow.verify, task.id, "WORDS", "alpha")
    assert taskflow.verify(task.id, "WORDS", "beta").verification_method == "WORDS"


def test_code_of_the_strategys_own_that_its_pattern_refuses_is_not_sent(taskflow: TaskFlow) -> None:
    words = taskflow.register_strategy("WORDS")(Words("A 1"))

    refused(SendFailed, lambda: add(taskflow, allowed_methods=["WORDS"], recipient={}))

    assert not words.codes


def test_task_that_ends_while_its_code_is_made_sends_and_tells_nothing(
    taskflow: TaskFlow, hear: Hear
) -> None:
    words = taskflow.register_strategy("WORDS")(Words("alpha", before=taskflow.cancel_task))
    ear = hear(signals.otp_sent)

    add(taskflow, allowed_methods=["WORDS"], recipient={})

    assert not words.next, "it made a code"
    assert not words.codes
    assert not ear.rest()


# Keys that change.

NEW_KEY = "another secret key, long enough too"


@pytest.mark.promise("S13")
def test_code_of_an_old_key_is_resent_after_a_rotation(
    app: Flask, make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """The same code, and it verifies; the one after it is of the new key."""
    task, verified_anew = add(taskflow, ttl=3600), add(taskflow)
    verifies = box[-1].otp
    travel(30)

    with make_app(SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[app.config["SECRET_KEY"]]).app_context():
        assert taskflow.verify(verified_anew.id, "EMAIL", verifies).status is Status.SUCCESS
        taskflow.resend_otp(task.id, "EMAIL")
        assert box[2].otp == box[0].otp
        travel(550)
        taskflow.resend_otp(task.id, "EMAIL")
        added = add(taskflow)
        assert len({message.otp for message in box}) == 4
    with make_app(SECRET_KEY=NEW_KEY).app_context():
        assert taskflow.verify(added.id, "EMAIL", box[-1].otp).status is Status.SUCCESS


@pytest.mark.promise("S13")
def test_code_of_a_key_that_was_removed_is_refused(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """By every step, which changes nothing: another process may have the key."""
    task = add(taskflow)
    travel(30)
    before = stored_task(redis, task)

    with make_app(SECRET_KEY=NEW_KEY).app_context():
        for step in steps_of(taskflow, task.id, box.last_code(EMAIL)).values():
            assert refused(KeyMissing, step).fingerprint == stored_task(redis, task)["seal"][:5]

    assert len(box) == 1
    assert stored_task(redis, task) == before


# What others change in Redis.

TAMPERING: dict[str, Callable[[dict[str, str]], dict[str, str | None]]] = {
    "data": lambda stored: {"fixed": stored["fixed"].replace('"to":"ann"', '"to":"eve"')},
    "summary": lambda stored: {"fixed": stored["fixed"].replace("Pay 1", "Pay 9")},
    "queue": lambda stored: {"fixed": stored["fixed"].replace('"queue":"q"', '"queue":"p"')},
    "address": lambda stored: {"address.email": "eve@example.com"},
    "emptied address": lambda stored: {"address.email": ""},
    "removed address": lambda stored: {"address.phone_number": None},
    "added address": lambda stored: {"address.device_id": "eve"},
    "unknown field": lambda stored: {"address.fax": "eve"},
    "its end": lambda stored: {"ends": "9" * 13},
    "seal": lambda stored: {"seal": stored["seal.recipient"]},
    "empty seal": lambda stored: {"seal": ""},
    "broken JSON": lambda stored: {"fixed": stored["fixed"][:-1]},
}


@pytest.mark.promise("S31", "S63")
@pytest.mark.parametrize("what", TAMPERING)
@pytest.mark.parametrize("step", ["get", "resend", "update", "cancel", "verify"])
def test_task_changed_in_redis_is_not_sent_returned_or_run(
    taskflow: TaskFlow, box: Outbox, redis: Redis, hear: Hear, what: str, step: str
) -> None:
    runs: list[Any] = []
    for queue in ("q", "p"):
        taskflow.on_task_verified(queue, name="act")(runs.append)
    ear = hear(task_verified)
    task = add(taskflow, data={"to": "ann"}, summary="Pay 1")
    stored = stored_task(redis, task)
    change: Any = TAMPERING[what](stored)
    assert any(stored.get(name) != value for name, value in change.items())
    redis.hdel(key_of(redis, task), *change)
    redis.hset(
        key_of(redis, task), mapping={"v": 1} | {n: text for n, text in change.items() if text is not None}
    )
    travel(30)

    steps = steps_of(taskflow, task.id, box.last_code(EMAIL))
    # A change of the address that was tampered with would replace it.
    steps["update"] = lambda: taskflow.update_recipient(task.id, {"phone_number": "+12025550199"})
    refused(TaskTampered, steps[step])
    taskflow.run_due()

    assert len(box) == 1
    assert not runs
    assert not ear.rest()


@pytest.mark.parametrize("field", ["status", "expires", "created", "attempts", "sends", "EMAIL.out"])
@pytest.mark.parametrize("garbage", [b"", b"x", b"\xff\x00", b"-", b"1e999"])
def test_garbage_in_redis_is_an_error_that_sends_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, field: str, garbage: bytes
) -> None:
    task = add(taskflow)
    travel(30)
    redis.hset(key_of(redis, task), field, garbage)
    accepted: list[Any] = []

    steps = steps_of(taskflow, task.id, other(box[0].otp))
    for name in ("get", "resend", "verify"):
        try:
            accepted.append(steps[name]())
        except (RedisError, TaskFlowError):
            continue

    assert all(isinstance(result, Task) for result in accepted)
    if field in ("status", "expires", "created"):
        assert not accepted
        assert len(box) == 1


def test_task_of_a_wrong_type_in_redis_is_unavailable(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    task = add(taskflow)
    key = key_of(redis, task)
    redis.delete(key)
    redis.set(key, "poison")

    for step in steps_of(taskflow, task.id, "123456").values():
        refused(RedisError, step)

    assert len(box) == 1


@pytest.mark.promise("S12")
def test_digest_of_another_task_is_worth_nothing(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    first, second = add(taskflow), add(taskflow)
    redis.hset(key_of(redis, second), "EMAIL.digest", stored_task(redis, first)["EMAIL.digest"])

    refused(WrongCode, taskflow.verify, second.id, "EMAIL", box[0].otp)
