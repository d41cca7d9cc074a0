"""The life of a task: attempts, codes, cooldowns, limits, addresses and ends, on a real server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest
from conftest import MakeApp
from flask import Flask
from redis import Redis, RedisError
from task_support import BOTH, EMAIL, PHONE, add, at_once, other

from flask_taskflow import BaseStrategy, Method, Status, Task, TaskFlow, signals, task_verified
from flask_taskflow.errors import (
    CodeExpired,
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


def guess_wrong(taskflow: TaskFlow, task: Task[Any], code: str, times: int) -> None:
    for number in range(times):
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", other(code, number + 1))


def key_of(redis: Redis, task: Task[Any]) -> str:
    (key,) = keys_like(redis, f"*task:{task.id}")
    return key


def keys_like(redis: Redis, pattern: str) -> list[str]:
    return sorted(cast(bytes, key).decode() for key in redis.keys(pattern))


def kinds(redis: Redis, *, endless: bool = False) -> set[str]:
    """The last parts of the keys' names."""
    keys = keys_like(redis, "*")
    return {key.rsplit(":", 1)[1] for key in keys if not endless or redis.ttl(key) == -1}


def stored_task(redis: Redis, task: Task[Any]) -> dict[str, str]:
    raw = cast(dict[bytes, bytes], redis.hgetall(key_of(redis, task)))
    return {name.decode(): value.decode() for name, value in raw.items()}


def verified(results: Sequence[Any]) -> list[Task[Any]]:
    return [result for result in results if isinstance(result, Task)]


def test_task_when_added_is_what_get_task_returns(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    data = {"amount": 12.5, "to": ["x", {}, []], "big": 2**63, "ü": None}

    task = add(taskflow, data=data, summary="Pay 12.50", priority=-7, ttl=90.5, timeout=3)

    assert taskflow.get_task(task.id) == task
    assert (task.data, task.summary, task.priority, task.timeout) == (data, "Pay 12.50", -7, 3)
    assert (task.expires_at - task.created_at).total_seconds() == 90.5
    assert task.status is Status.PENDING
    assert [message.addresses for message in box] == [(EMAIL,)]


@pytest.mark.parametrize(
    ("chosen", "addresses"), [(None, [EMAIL]), (["SMS"], [PHONE]), (BOTH, [EMAIL, PHONE])]
)
def test_send_via_says_by_what_codes_go_at_once(
    app: Flask, taskflow: TaskFlow, box: Outbox, chosen: Any, addresses: list[str]
) -> None:
    add(taskflow, send_via=chosen)

    assert [message.addresses[0] for message in box] == addresses


def test_first_method_without_an_address_is_passed_over(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    add(taskflow, recipient={"phone_number": PHONE})

    assert [message.addresses for message in box] == [(PHONE,)]


def test_right_code_verifies_and_tells_how(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    done = taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL))

    assert (done.status, done.verification_method) == (Status.SUCCESS, Method.EMAIL)
    assert done.verified_at is not None
    assert done.created_at <= done.verified_at <= done.expires_at
    assert taskflow.get_task(task.id) == done


def test_wrong_codes_count_down_and_lock(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S1."""
    task = add(taskflow)
    code = box.last_code(EMAIL)
    left: list[int | None] = []

    for number in range(1, 5):
        with pytest.raises(WrongCode) as refused:
            taskflow.verify(task.id, "EMAIL", other(code, number))
        left.append(refused.value.attempts_left)

    assert left == [4, 3, 2, 1]
    with pytest.raises(TaskLocked) as locked:
        taskflow.verify(task.id, "EMAIL", other(code, 5))
    assert locked.value.attempts_left == 0
    for typed in (code, other(code)):
        with pytest.raises(TaskLocked):
            taskflow.verify(task.id, "EMAIL", typed)
    assert taskflow.get_task(task.id).status is Status.LOCKED


def test_attempts_when_sent_anew_and_readdressed_go_on(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S6."""
    task = add(taskflow)
    code = box.last_code(EMAIL)

    guess_wrong(taskflow, task, code, 2)
    travel(30)
    taskflow.resend_otp(task.id, "EMAIL")
    guess_wrong(taskflow, task, code, 2)
    taskflow.update_recipient(task.id, {"email": "new@example.com"})
    code = box.last_code("new@example.com")

    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", other(code))
    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", code)


def test_attempts_of_one_task_leave_another_alone(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    first = add(taskflow)
    guess_wrong(taskflow, first, box.last_code(EMAIL), 4)
    second = add(taskflow)

    with pytest.raises(WrongCode) as refused:
        taskflow.verify(second.id, "EMAIL", other(box.last_code(EMAIL)))

    assert refused.value.attempts_left == 4


@pytest.mark.parametrize("method", ["SMART_OTP", "CARRIER_PIGEON"])
def test_method_not_allowed_counts_as_an_attempt(
    app: Flask, taskflow: TaskFlow, box: Outbox, method: str
) -> None:
    """S32."""
    task = add(taskflow)

    with pytest.raises(MethodNotAllowed) as refused:
        taskflow.verify(task.id, method, box.last_code(EMAIL))

    assert refused.value.attempts_left == 4


def test_allowed_method_without_a_code_counts_as_an_attempt(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)

    with pytest.raises(WrongCode) as refused:
        taskflow.verify(task.id, "SMS", box.last_code(EMAIL))

    assert refused.value.attempts_left == 4


def test_same_right_code_from_200_threads_succeeds_once(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S4: one success, one event, one run of the callback."""
    runs: list[str] = []
    events: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))

    def heard(sender: Flask, task: Task[Any], **_: Any) -> None:
        events.append(task.id)

    task = add(taskflow)
    code = box.last_code(EMAIL)

    with task_verified.connected_to(heard):
        results = at_once(app, [lambda: taskflow.verify(task.id, "EMAIL", code)] * 200)

    assert len(verified(results)) == 1
    assert sum(isinstance(result, TaskNotPending) for result in results) == 199
    assert events == [task.id]
    assert runs == [task.id]


def test_wrong_codes_from_200_threads_are_counted_five_times(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    """S2."""
    task = add(taskflow)
    code = box.last_code(EMAIL)
    typed = [other(code, number) for number in range(1, 201)]

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", otp) for otp in typed])

    left = Counter(result.attempts_left for result in results if isinstance(result, WrongCode))
    assert left == {1: 1, 2: 1, 3: 1, 4: 1}
    assert sum(isinstance(result, TaskLocked) for result in results) == 196
    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", code)


def test_right_code_among_199_wrong_ones_succeeds_once_at_most(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    """S3."""
    task = add(taskflow)
    code = box.last_code(EMAIL)
    typed = [*(other(code, number) for number in range(1, 100)), code]
    typed += [other(code, number) for number in range(100, 200)]

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", otp) for otp in typed])

    wrong = sum(isinstance(result, WrongCode) for result in results)
    locked = sum(isinstance(result, TaskLocked) for result in results)
    done = len(verified(results))
    assert (done == 1 and wrong <= 4 and not locked) or (done == 0 and wrong == 4 and locked == 196)
    assert taskflow.get_task(task.id).status is (Status.SUCCESS if done else Status.LOCKED)


def test_right_codes_of_two_methods_at_once_succeed_once(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S5."""
    for number in range(10):
        _race_two_methods(app, taskflow, box, number)


def _race_two_methods(app: Flask, taskflow: TaskFlow, box: Outbox, number: int) -> None:
    address, phone = f"ann{number}@example.com", f"+1202555011{number}"
    task = add(taskflow, recipient={"email": address, "phone_number": phone}, send_via=BOTH)
    email, sms = box.last_code(address), box.last_code(phone)

    results = at_once(
        app,
        [
            lambda: taskflow.verify(task.id, "EMAIL", email),
            lambda: taskflow.verify(task.id, "SMS", sms),
        ]
        * 4,
    )

    assert len(verified(results)) == 1


def test_code_of_one_method_is_refused_for_another(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, send_via=BOTH)

    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "SMS", box.last_code(EMAIL))

    assert taskflow.verify(task.id, "SMS", box.last_code(PHONE)).verification_method == "SMS"


def test_code_when_over_counts_and_a_resend_makes_a_new_one(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    app = make_app(otp_ttl=60)
    with app.app_context():
        task = add(taskflow)
        code = box.last_code(EMAIL)
        travel(59)
        guess_wrong(taskflow, task, code, 1)
        travel(1.5)

        with pytest.raises(CodeExpired) as refused:
            taskflow.verify(task.id, "EMAIL", code)
        taskflow.resend_otp(task.id, "EMAIL")
        renewed = box.last_code(EMAIL)

        assert refused.value.attempts_left == 3
        assert renewed != code
        assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_code_never_outlives_its_task(app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """S33."""
    task = add(taskflow, ttl=100)
    travel(70)
    taskflow.resend_otp(task.id, "EMAIL")

    until = redis.hget(key_of(redis, task), "EMAIL.until")

    assert until == redis.hget(key_of(redis, task), "expires")


def test_task_when_expired_is_told_for_a_minute(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    task = add(taskflow, ttl=60)
    code = box.last_code(EMAIL)
    travel(61)

    assert taskflow.get_task(task.id).status is Status.EXPIRED
    for call in _lifecycle_calls(taskflow, task, code):
        with pytest.raises(TaskExpired):
            call()
    travel(60)
    for call in [*_lifecycle_calls(taskflow, task, code), lambda: taskflow.get_task(task.id)]:
        with pytest.raises(TaskNotFound):
            call()
    assert not redis.keys("*:task:*")
    assert len(box) == 1


@pytest.mark.parametrize("end", [Status.SUCCESS, Status.LOCKED, Status.CANCELLED])
def test_task_when_ended_takes_no_more_steps_and_is_kept_for_retention(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, end: Status
) -> None:
    task = add(taskflow)
    code = box.last_code(EMAIL)
    if end is Status.SUCCESS:
        taskflow.verify(task.id, "EMAIL", code)
    elif end is Status.LOCKED:
        guess_wrong(taskflow, task, code, 4)
        with pytest.raises(TaskLocked):
            taskflow.verify(task.id, "EMAIL", other(code, 5))
    else:
        assert taskflow.cancel_task(task.id).status is Status.CANCELLED
    before = stored_task(redis, task)

    for call in _lifecycle_calls(taskflow, task, code):
        with pytest.raises(OTPRejected) as refused:
            call()
        if isinstance(refused.value, TaskNotPending):
            assert refused.value.status == end
        else:
            assert isinstance(refused.value, TaskLocked)

    assert stored_task(redis, task) == before
    assert not any(name[:1].isupper() for name in before), "the codes are gone"
    assert not redis.keys("*:pending")
    assert len(box) == 1
    travel(86390)
    assert taskflow.get_task(task.id).status is end
    travel(11)
    with pytest.raises(TaskNotFound):
        taskflow.get_task(task.id)


def _lifecycle_calls(taskflow: TaskFlow, task: Task[Any], code: str) -> list[Callable[[], Any]]:
    return [
        lambda: taskflow.verify(task.id, "EMAIL", code),
        lambda: taskflow.resend_otp(task.id, "EMAIL"),
        lambda: taskflow.update_recipient(task.id, {"email": "new@example.com"}),
        lambda: taskflow.cancel_task(task.id),
    ]


@pytest.mark.parametrize("task_id", ["a" * 34, "", "x", "A" * 34, "a" * 33 + "\n", "é" * 34])
def test_unknown_id_is_not_found(app: Flask, taskflow: TaskFlow, task_id: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: taskflow.verify(task_id, "EMAIL", "123456"),
        lambda: taskflow.resend_otp(task_id, "EMAIL"),
        lambda: taskflow.update_recipient(task_id, {"email": EMAIL}),
        lambda: taskflow.cancel_task(task_id),
        lambda: taskflow.get_task(task_id),
    ]

    for call in calls:
        with pytest.raises(TaskNotFound):
            call()


def test_resend_within_the_cooldown_changes_nothing(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S22: at the service."""
    task = add(taskflow)
    before = stored_task(redis, task)

    with pytest.raises(ResendTooSoon) as refused:
        taskflow.resend_otp(task.id, "EMAIL")

    assert 29 < refused.value.retry_after <= 30
    assert len(box) == 1
    assert stored_task(redis, task) == before


def test_cooldown_doubles_up_to_its_cap(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> None:
    """S24."""
    app = make_app(max_sends=8, recipient_max_sends=100, resend_cooldown_max=200)
    with app.app_context():
        task = add(taskflow, ttl=3600)
        for wait in (30, 60, 120, 200, 200):
            travel(wait - 1)
            with pytest.raises(ResendTooSoon) as refused:
                taskflow.resend_otp(task.id, "EMAIL")
            assert 0 < refused.value.retry_after <= 1
            travel(1)
            taskflow.resend_otp(task.id, "EMAIL")

    assert len(box) == 6


def test_cooldown_is_per_method(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    taskflow.resend_otp(task.id, "SMS")

    assert [message.addresses for message in box] == [(EMAIL,), (PHONE,)]
    with pytest.raises(ResendTooSoon):
        taskflow.resend_otp(task.id, "SMS")


def test_cooldown_of_zero_means_none(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> None:
    app = make_app(resend_cooldown=0)
    with app.app_context():
        task = add(taskflow)

        for _ in range(4):
            taskflow.resend_otp(task.id, "EMAIL")

    assert len(box) == 5


def test_resends_from_50_threads_send_once(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S23."""
    task = add(taskflow)
    travel(30)

    results = at_once(app, [lambda: taskflow.resend_otp(task.id, "EMAIL")] * 50)

    assert len(verified(results)) == 1
    assert sum(isinstance(result, ResendTooSoon) for result in results) == 49
    assert len(box) == 2


def test_resend_repeats_the_code_and_its_end_while_a_minute_is_left(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S27."""
    task = add(taskflow, ttl=3600)
    code = box.last_code(EMAIL)
    travel(539)
    until = redis.hget(key_of(redis, task), "EMAIL.until")
    taskflow.resend_otp(task.id, "EMAIL")

    assert box.last_code(EMAIL) == code
    assert redis.hget(key_of(redis, task), "EMAIL.until") == until
    travel(59)
    assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


def test_resend_makes_a_new_code_when_less_than_a_minute_is_left(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    """S27."""
    task = add(taskflow, ttl=3600)
    code = box.last_code(EMAIL)
    travel(541)
    taskflow.resend_otp(task.id, "EMAIL")
    renewed = box.last_code(EMAIL)

    assert renewed != code
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", code)
    travel(590)
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_resend_by_the_policy_rotate_kills_the_old_code(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S27."""
    app = make_app(resend_policy="rotate")
    with app.app_context():
        task = add(taskflow)
        code = box.last_code(EMAIL)
        travel(30)
        taskflow.resend_otp(task.id, "EMAIL")
        renewed = box.last_code(EMAIL)

        assert renewed != code
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", code)
        assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_sixth_message_of_a_task_is_refused(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S25: messages by all methods count."""
    app = make_app(recipient_max_sends=100)
    with app.app_context():
        task = add(taskflow, ttl=7200, send_via=BOTH)
        for _ in range(3):
            travel(600)
            taskflow.resend_otp(task.id, "EMAIL")
        before = stored_task(redis, task)

        travel(0)
        with pytest.raises(SendLimitReached) as refused:
            taskflow.resend_otp(task.id, "SMS")

    assert 5398 < refused.value.retry_after <= 5400
    assert len(box) == 5
    assert stored_task(redis, task) == before


def test_more_methods_than_messages_are_refused_before_anything_is_stored(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    app = make_app(max_sends=1)
    with app.app_context(), pytest.raises(SendLimitReached):
        add(taskflow, send_via=BOTH)

    assert not box
    assert not redis.keys("*:task:*")


def test_sixth_message_to_one_address_over_several_tasks_is_refused(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S25: case and blanks make no other address of it; the window runs from the first message."""
    spellings = [EMAIL, f" {EMAIL} ", EMAIL.upper(), f"{EMAIL}\t", "Ann@Example.Com"]
    for spelling in spellings:
        add(taskflow, recipient={"email": spelling})
        travel(10)
    tasks = keys_like(redis, "*:task:*")

    with pytest.raises(SendLimitReached) as refused:
        add(taskflow, recipient={"email": EMAIL})

    assert 548 < refused.value.retry_after <= 550
    assert len(box) == 5
    assert keys_like(redis, "*:task:*") == tasks
    add(taskflow, recipient={"email": "bob@example.com"})
    travel(551)
    add(taskflow, recipient={"email": EMAIL})
    assert len(box) == 7


def test_address_that_had_enough_gets_no_resend(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=3600)
    for _ in range(4):
        add(taskflow)
    travel(60)

    with pytest.raises(SendLimitReached) as refused:
        taskflow.resend_otp(task.id, "EMAIL")

    assert 538 < refused.value.retry_after <= 540
    assert len(box) == 5
    travel(541)
    taskflow.resend_otp(task.id, "EMAIL")
    assert len(box) == 6


def test_twenty_failures_silence_an_address_for_a_day(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S7."""
    app = make_app(recipient_max_sends=1000)
    with app.app_context():
        last = add(taskflow, recipient={"email": EMAIL}, ttl=90000)
        for spelling in (EMAIL, EMAIL.upper(), f" {EMAIL}", f"{EMAIL} "):
            task = add(taskflow, recipient={"email": spelling})
            guess_wrong(taskflow, task, box[-1].otp, 4)
            with pytest.raises(TaskLocked):
                taskflow.verify(task.id, "EMAIL", other(box[-1].otp, 5))
        sent = len(box)
        travel(600)

        refused_calls: list[Callable[[], Any]] = [
            lambda: add(taskflow, recipient={"email": EMAIL}),
            lambda: taskflow.resend_otp(last.id, "EMAIL"),
        ]
        for call in refused_calls:
            with pytest.raises(SendLimitReached) as refused:
                call()
            assert 85798 < refused.value.retry_after <= 85800
        assert len(box) == sent
        travel(85801)
        add(taskflow, recipient={"email": EMAIL})
        assert len(box) == sent + 1


def test_success_clears_the_failures_of_the_address(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    app = make_app(recipient_max_failures=5)
    with app.app_context():
        for _ in range(2):
            task = add(taskflow)
            code = box.last_code(EMAIL)
            guess_wrong(taskflow, task, code, 4)
            taskflow.verify(task.id, "EMAIL", code)

        add(taskflow)

    assert len(box) == 3


def test_update_recipient_kills_the_old_code_and_sends_anew(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    """S28, S30."""
    task = add(taskflow)
    code = box.last_code(EMAIL)

    updated = taskflow.update_recipient(task.id, {"email": "new@example.com"})

    assert updated.recipient.addresses() == {"email": "new@example.com", "phone_number": PHONE}
    assert updated == taskflow.get_task(task.id)
    assert updated.expires_at == task.expires_at
    assert [message.addresses[0] for message in box] == [EMAIL, "new@example.com"]
    renewed = box.last_code("new@example.com")
    assert renewed != code
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", code)
    assert taskflow.verify(task.id, "EMAIL", renewed).status is Status.SUCCESS


def test_update_recipient_restarts_the_cooldown_and_a_resend_goes_to_the_new_address(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(29)
    taskflow.update_recipient(task.id, {"email": "new@example.com"})

    with pytest.raises(ResendTooSoon) as refused:
        taskflow.resend_otp(task.id, "EMAIL")
    travel(60)
    taskflow.resend_otp(task.id, "EMAIL")

    assert 59 < refused.value.retry_after <= 60
    assert [message.addresses[0] for message in box] == [EMAIL, "new@example.com", "new@example.com"]
    assert box[-1].otp == box[-2].otp


def test_update_recipient_leaves_codes_of_kept_addresses_alive(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow, send_via=BOTH)
    sms = box.last_code(PHONE)

    taskflow.update_recipient(task.id, {"email": "new@example.com"})

    assert len(box) == 3
    assert taskflow.verify(task.id, "SMS", sms).verification_method == "SMS"


def test_update_recipient_when_no_code_dies_sends_as_add_task(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow, recipient={"phone_number": PHONE})

    taskflow.update_recipient(task.id, {"email": EMAIL})

    assert [message.addresses[0] for message in box] == [PHONE, EMAIL]
    assert taskflow.verify(task.id, "SMS", box.last_code(PHONE)).status is Status.SUCCESS


def test_update_recipient_with_equal_addresses_does_nothing(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    task = add(taskflow)
    before = stored_task(redis, task)
    heard: list[Any] = []

    def receive(sender: Flask, **arguments: Any) -> None:
        heard.append(arguments)

    with signals.recipient_updated.connected_to(receive):
        for given in ({"email": EMAIL}, {"email": f" {EMAIL} ", "phone_number": PHONE}, {}):
            assert taskflow.update_recipient(task.id, given) == task

    assert stored_task(redis, task) == before
    assert len(box) == 1
    assert not heard


def test_update_recipient_tells_masked_addresses(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """S29, S55."""
    heard: list[Any] = []

    def receive(sender: Flask, **arguments: Any) -> None:
        heard.append((sender, arguments))

    with signals.recipient_updated.connected_to(receive):
        task = taskflow.update_recipient(add(taskflow).id, {"email": "bob@example.com"})

    assert heard == [
        (app, {"task": task, "old": {"email": "a****@example.com"}, "new": {"email": "b****@example.com"}})
    ]


def test_fourth_update_of_the_recipient_is_refused(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S29: refused, the code in force stays."""
    app = make_app(max_sends=100)
    with app.app_context():
        task = add(taskflow)
        for number in range(3):
            taskflow.update_recipient(task.id, {"email": f"new{number}@example.com"})
        before = stored_task(redis, task)

        with pytest.raises(SendLimitReached):
            taskflow.update_recipient(task.id, {"email": "new3@example.com"})

        assert stored_task(redis, task) == before
        assert len(box) == 4
        assert taskflow.verify(task.id, "EMAIL", box.last_code("new2@example.com"))


@pytest.mark.parametrize("limit", ["of the task", "of the new address"])
def test_update_recipient_at_a_limit_of_messages_changes_nothing(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, limit: str
) -> None:
    app = make_app(max_sends=2 if limit == "of the task" else 5, recipient_max_sends=2)
    with app.app_context():
        task = add(taskflow, send_via=BOTH if limit == "of the task" else None)
        code = box.last_code(EMAIL)
        if limit == "of the new address":
            for _ in range(2):
                add(taskflow, recipient={"email": "new@example.com"})
        before = stored_task(redis, task)
        sent = len(box)

        with pytest.raises(SendLimitReached):
            taskflow.update_recipient(task.id, {"email": "NEW@example.com"})

        assert stored_task(redis, task) == before
        assert len(box) == sent
        assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


class Broken(BaseStrategy):
    """Raises on demand, keeps what it sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.tried: list[str] = []
        self.error: Exception | None = None

    def send(self, task: Task[Any], otp: str) -> None:
        self.tried.append(str(otp))
        if self.error is not None:
            raise self.error
        self.sent.append(str(otp))


ERRORS = [OSError("no route"), RedisError("the strategy's own queue is down"), SendLimitReached("its own")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_code_that_no_send_delivered_verifies_nothing(
    app: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """S26: a typed error with the task; a resend works at once; the failed send counts."""
    broken = Broken()
    taskflow.register_strategy("EMAIL")(broken)
    broken.error = error

    with pytest.raises(SendFailed) as failed:
        add(taskflow)

    task = failed.value.task
    assert task is not None
    assert failed.value.methods == ("EMAIL",)
    assert failed.value.__cause__ is failed.value.__context__ is None
    assert taskflow.get_task(task.id) == task
    assert f"{type(error).__name__} raised by Broken" in caplog.text
    assert broken.tried[0] not in caplog.text
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", broken.tried[0])
    broken.error = None
    taskflow.resend_otp(task.id, "EMAIL")
    assert broken.sent == [broken.tried[0]]
    with pytest.raises(ResendTooSoon) as refused:
        taskflow.resend_otp(task.id, "EMAIL")
    assert refused.value.retry_after > 59, "the failed send counts"
    assert taskflow.verify(task.id, "EMAIL", broken.sent[0]).status is Status.SUCCESS


def test_code_that_one_send_delivered_stays_valid_when_the_next_fails(app: Flask, taskflow: TaskFlow) -> None:
    """S26."""
    broken = Broken()
    taskflow.register_strategy("EMAIL")(broken)
    task = add(taskflow)
    broken.error = OSError("no route")
    travel(30)

    with pytest.raises(SendFailed):
        taskflow.resend_otp(task.id, "EMAIL")

    assert taskflow.verify(task.id, "EMAIL", broken.sent[0]).status is Status.SUCCESS


def test_one_method_of_several_that_fails_leaves_the_others_valid(
    app: Flask, taskflow: TaskFlow, box: Outbox
) -> None:
    """S26."""
    broken = Broken()
    taskflow.register_strategy("EMAIL")(broken)
    broken.error = OSError("no route")
    told: list[str] = []

    def receive(sender: Flask, method: str, **_: Any) -> None:
        told.append(method)

    with signals.otp_sent.connected_to(receive), pytest.raises(SendFailed) as failed:
        add(taskflow, send_via=BOTH)

    assert failed.value.methods == ("EMAIL",)
    assert told == ["SMS"]
    assert failed.value.task is not None
    task_id = failed.value.task.id
    with pytest.raises(WrongCode):
        taskflow.verify(task_id, "EMAIL", broken.tried[0])
    assert taskflow.verify(task_id, "SMS", box.last_code(PHONE)).status is Status.SUCCESS


def test_failed_send_after_a_change_of_address_leaves_no_code(app: Flask, taskflow: TaskFlow) -> None:
    """S28: the change holds, both codes are worth nothing."""
    broken = Broken()
    taskflow.register_strategy("EMAIL")(broken)
    task = add(taskflow)
    broken.error = OSError("no route")

    with pytest.raises(SendFailed):
        taskflow.update_recipient(task.id, {"email": "new@example.com"})

    assert taskflow.get_task(task.id).recipient.email == "new@example.com"
    for code in broken.tried:
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", code)


class Words(BaseStrategy):
    """Makes codes of its own."""

    address = None
    code_pattern = "[a-z]+"

    def __init__(self) -> None:
        self.next = ["alpha", "beta", "gamma"]
        self.sent: list[str] = []

    def generate(self, task: Task[Any]) -> str:
        return self.next.pop(0)

    def send(self, task: Task[Any], otp: str) -> None:
        self.sent.append(str(otp))


def test_code_of_the_strategys_own_verifies_and_a_resend_rotates_it(app: Flask, taskflow: TaskFlow) -> None:
    words = Words()
    taskflow.register_strategy("WORDS")(words)
    task = add(taskflow, allowed_methods=["WORDS"], recipient={})
    travel(30)
    taskflow.resend_otp(task.id, "WORDS")

    assert words.sent == ["alpha", "beta"]
    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "WORDS", "alpha")
    assert taskflow.verify(task.id, "WORDS", "beta").verification_method == "WORDS"


def test_code_of_the_strategys_own_that_its_pattern_refuses_is_not_sent(
    app: Flask, taskflow: TaskFlow
) -> None:
    words = Words()
    words.next = ["A 1"]
    taskflow.register_strategy("WORDS")(words)

    with pytest.raises(SendFailed):
        add(taskflow, allowed_methods=["WORDS"], recipient={})

    assert not words.sent


def test_task_that_ends_while_its_code_is_made_sends_and_tells_nothing(
    app: Flask, taskflow: TaskFlow
) -> None:
    class Cancelling(Words):
        def generate(self, task: Task[Any]) -> str:
            taskflow.cancel_task(task.id)
            return "alpha"

    words = Cancelling()
    taskflow.register_strategy("WORDS")(words)
    told: list[str] = []

    def receive(sender: Flask, method: str, **_: Any) -> None:
        told.append(method)

    with signals.otp_sent.connected_to(receive):
        add(taskflow, allowed_methods=["WORDS"], recipient={})

    assert not words.sent
    assert not told


def test_code_length_that_was_changed_since_makes_a_resend_rotate(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    with make_app().app_context():
        task = add(taskflow)
        travel(30)
    with make_app(otp_length=8).app_context():
        taskflow.resend_otp(task.id, "EMAIL")

        assert len(box.last_code(EMAIL)) == 8
        assert taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL)).status is Status.SUCCESS


NEW_KEY = "another secret key, long enough too"


def rotated(make_app: MakeApp, first: Flask) -> Flask:
    secret = first.config["SECRET_KEY"]
    renewed: Flask = make_app(eager=True, SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[secret])
    return renewed


def test_code_of_an_old_key_verifies_after_a_rotation(
    app: Flask, make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S13."""
    task = add(taskflow)

    with rotated(make_app, app).app_context():
        assert taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL)).status is Status.SUCCESS


def test_code_of_an_old_key_is_resent_after_a_rotation(
    app: Flask, make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S13: the same code; the one after it is of the new key."""
    task = add(taskflow, ttl=3600)
    travel(30)

    with rotated(make_app, app).app_context():
        taskflow.resend_otp(task.id, "EMAIL")
        assert box[1].otp == box[0].otp
        travel(550)
        taskflow.resend_otp(task.id, "EMAIL")
        added = add(taskflow)
        assert len({message.otp for message in box}) == 3
    with make_app(SECRET_KEY=NEW_KEY).app_context():
        assert taskflow.verify(added.id, "EMAIL", box[-1].otp).status is Status.SUCCESS


def test_code_of_a_key_that_was_removed_is_refused(
    app: Flask, make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S13."""
    task = add(taskflow)
    travel(30)

    with make_app(SECRET_KEY=NEW_KEY).app_context():
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL))
        with pytest.raises(TaskTampered):
            taskflow.resend_otp(task.id, "EMAIL")

    assert len(box) == 1


TAMPERING: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "data": lambda stored: {"fixed": stored["fixed"].replace('"to":"ann"', '"to":"eve"')},
    "summary": lambda stored: {"fixed": stored["fixed"].replace("Pay 1", "Pay 9")},
    "queue": lambda stored: {"fixed": stored["fixed"].replace('"queue":"q"', '"queue":"p"')},
    "address": lambda stored: {"address.email": "eve@example.com"},
    "address and its seal": lambda stored: {
        "address.email": stored["address.phone_number"],
        "seal.email": stored["seal.phone_number"],
    },
    "added address": lambda stored: {"address.device_id": "eve"},
    "unknown field": lambda stored: {"address.fax": "eve", "seal.fax": stored["seal.email"]},
    "seal": lambda stored: {"seal": stored["seal.email"]},
    "empty seal": lambda stored: {"seal": ""},
    "broken JSON": lambda stored: {"fixed": stored["fixed"][:-1]},
}


@pytest.mark.parametrize("what", TAMPERING)
@pytest.mark.parametrize("step", ["get", "resend", "update", "cancel", "verify"])
def test_task_changed_in_redis_is_not_sent_returned_or_run(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, what: str, step: str
) -> None:
    """S31."""
    runs: list[Any] = []
    taskflow.on_task_verified("q", name="act")(runs.append)
    taskflow.on_task_verified("p", name="act")(runs.append)

    def receive(sender: Flask, task: Task[Any], **_: Any) -> None:
        runs.append(task)

    task = add(taskflow, data={"to": "ann"}, summary="Pay 1")
    key = key_of(redis, task)
    stored = stored_task(redis, task)
    change: Any = TAMPERING[what](stored)
    assert any(stored.get(name) != value for name, value in change.items())
    redis.hset(key, mapping=change)
    travel(30)
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: taskflow.get_task(task.id),
        "resend": lambda: taskflow.resend_otp(task.id, "EMAIL"),
        "update": lambda: taskflow.update_recipient(task.id, {"phone_number": "+12025550199"}),
        "cancel": lambda: taskflow.cancel_task(task.id),
        "verify": lambda: taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL)),
    }

    with task_verified.connected_to(receive), pytest.raises(TaskTampered):
        calls[step]()
    taskflow.run_due()

    assert len(box) == 1
    assert not runs


@pytest.mark.parametrize("field", ["status", "expires", "created", "attempts", "sends", "EMAIL.out"])
@pytest.mark.parametrize("garbage", [b"", b"x", b"\xff\x00", b"-", b"1e999"])
def test_garbage_in_redis_is_an_error_that_sends_nothing(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, field: str, garbage: bytes
) -> None:
    task = add(taskflow)
    travel(30)
    redis.hset(key_of(redis, task), field, garbage)
    accepted: list[Any] = []

    calls: list[Callable[[], Any]] = [
        lambda: taskflow.get_task(task.id),
        lambda: taskflow.resend_otp(task.id, "EMAIL"),
        lambda: taskflow.verify(task.id, "EMAIL", other(box[0].otp)),
    ]
    for call in calls:
        try:
            accepted.append(call())
        except (RedisError, TaskFlowError):
            continue

    assert all(isinstance(result, Task) for result in accepted)
    if field in ("status", "expires", "created"):
        assert not accepted
        assert len(box) == 1


def test_task_of_a_wrong_type_in_redis_is_unavailable(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    task = add(taskflow)
    key = key_of(redis, task)
    redis.delete(key)
    redis.set(key, "poison")

    calls = _lifecycle_calls(taskflow, task, "123456")
    calls.append(lambda: taskflow.get_task(task.id))
    for call in calls:
        with pytest.raises(RedisError):
            call()

    assert len(box) == 1


def test_digest_of_another_task_is_worth_nothing(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S12."""
    first, second = add(taskflow), add(taskflow)
    stolen = redis.hget(key_of(redis, first), "EMAIL.digest")
    redis.hset(key_of(redis, second), "EMAIL.digest", stolen)

    with pytest.raises(WrongCode):
        taskflow.verify(second.id, "EMAIL", box[0].otp)


def test_index_of_pending_tasks_forgets_what_is_over(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    over = add(taskflow, ttl=10)
    kept = add(taskflow, ttl=1000)
    cancelled = add(taskflow, ttl=1000)
    taskflow.cancel_task(cancelled.id)
    (key,) = keys_like(redis, "*:pending")
    assert {over.id.encode(), kept.id.encode()} == set(redis.zrange(key, 0, -1))
    travel(20)

    new = add(taskflow, ttl=500)

    assert redis.zrange(key, 0, -1) == [new.id.encode(), kept.id.encode()]
    assert 970_000 < redis.pttl(key) <= 980_000


def test_index_of_pending_tasks_is_trimmed_by_a_thousand_a_call(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    add(taskflow)
    (key,) = keys_like(redis, "*:pending")
    redis.zadd(key, {f"old{number}": number for number in range(1500)})

    add(taskflow)
    after_one = redis.zcard(key)
    add(taskflow)

    assert (after_one, redis.zcard(key)) == (502, 3)


def test_every_key_ends_by_itself(app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    pending, wrong, done, gone = (add(taskflow, ttl=3600) for _ in range(4))
    code = box[1].otp
    guess_wrong(taskflow, wrong, code, 4)
    with pytest.raises(TaskLocked):
        taskflow.verify(wrong.id, "EMAIL", other(code, 5))
    taskflow.verify(done.id, "EMAIL", box[2].otp)
    taskflow.cancel_task(gone.id)
    taskflow.update_recipient(pending.id, {"phone_number": "+12025550199"})
    stays = {"queues", "handlers", "seq"}

    endless = kinds(redis, endless=True)
    travel(7200)
    later = kinds(redis)
    travel(86400)
    left = kinds(redis)

    assert endless == stays
    assert pending.id not in later
    assert "pending" not in later
    assert left == stays
