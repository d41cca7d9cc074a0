"""Guessing is bounded for an address and a device, and the limits do not hurt those whom they protect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from benchmarks import guessing
from flask_taskflow import BaseStrategy, InvalidTask, SendLimitReached, Task, TaskFlow
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow.errors import OTPRejected, RecipientBlocked, ResendTooSoon, WrongCode
from flask_taskflow.testing import Outbox, travel
from tests.conftest import MakeApp
from tests.support.tasks import (
    BOTH,
    EMAIL,
    add,
    guess_wrong,
    keys_like,
    other,
    refused,
    stored_task,
    with_settings,
)

DAY = 86400
OLD, NEW = "the old key of the fleet, long", "the new key of the fleet, long"
RIGHT, WRONG = "123456", "654321"


class Device(BaseStrategy):
    """Makes one code, good once for a task."""

    address = "device_id"
    code_pattern = "[0-9]{6}"

    def __init__(self) -> None:
        self.compared = 0

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        self.compared += 1
        return task.id if otp == RIGHT else None


@pytest.fixture
def device(taskflow: TaskFlow) -> Device:
    return taskflow.register_strategy("DEVICE")(Device())


def add_for(taskflow: TaskFlow, device_id: str = "phone", **options: Any) -> Task[Any]:
    """Add a task that a device confirms."""
    return taskflow.add_task(
        "q", **{"allowed_methods": ["DEVICE"], "recipient": {"device_id": device_id}, **options}
    )


def count_taken(call: Callable[[], Any], most: int = 12) -> int:
    """Return how often a call succeeds until a limit refuses it."""
    for number in range(most):
        try:
            call()
        except SendLimitReached:
            return number
    return most


# What an owner does.


@pytest.mark.promise("S72")
@pytest.mark.parametrize("send", ["inline", "background"])
@pytest.mark.parametrize("resends", [0, 1])
def test_messages_whose_code_was_typed_are_given_back(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, send: str, resends: int
) -> None:
    def confirm() -> None:
        task = add(taskflow, recipient={"email": EMAIL})
        for _ in range(resends):
            taskflow.run_due()
            travel(31)
            taskflow.resend_otp(task.id, "EMAIL")
        taskflow.run_due()
        taskflow.verify(task.id, "EMAIL", box[-1].otp)

    with make_app(send=send).app_context():
        confirmed = count_taken(confirm)
        untyped = count_taken(lambda: add(taskflow, recipient={"email": EMAIL}))

    assert (confirmed, untyped) == (12, 5)


@pytest.mark.promise("S25")
@pytest.mark.usefixtures("app")
def test_message_is_not_given_back_by_a_code_of_another_method(taskflow: TaskFlow, box: Outbox) -> None:
    def confirm() -> None:
        task = add(taskflow, send_via=BOTH)
        taskflow.verify(task.id, "SMS", box[-1].otp)

    assert count_taken(confirm) == 5


@pytest.mark.promise("S72")
@pytest.mark.usefixtures("app", "device")
def test_codes_that_a_device_makes_are_no_messages(taskflow: TaskFlow, box: Outbox) -> None:
    """Neither for the device, nor for the task; the cooldown holds all the same."""
    task = add_for(taskflow, ttl=10_000)
    for _ in range(8):
        refused(ResendTooSoon, taskflow.resend_otp, task.id, "DEVICE")
        travel(601)
        taskflow.resend_otp(task.id, "DEVICE")

    assert count_taken(lambda: add_for(taskflow)) == 12


@pytest.mark.promise("S25")
@pytest.mark.usefixtures("app", "device")
def test_device_beside_a_message_leaves_that_counted(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """All methods of a task send at once; a change of its addresses does, too."""
    recipient = {"email": EMAIL, "device_id": "phone"}
    methods = ["EMAIL", "DEVICE"]

    task = add(taskflow, recipient=recipient, allowed_methods=methods, send_via=methods)
    taskflow.update_recipient(task.id, {"email": EMAIL.upper(), "device_id": "Phone"})
    sends = stored_task(redis, task)["sends"]
    taken = count_taken(lambda: add(taskflow, recipient=recipient, allowed_methods=methods, send_via=methods))

    assert (sends, taken) == ("2", 3)


@with_settings(recipient_max_sends=1000)
@pytest.mark.usefixtures("app")
def test_success_takes_back_the_wrong_codes_of_its_own_task_alone(taskflow: TaskFlow, box: Outbox) -> None:
    """Those of other tasks are somebody else's, who must not get a fresh budget by that."""
    for _ in range(4):
        guess_wrong(taskflow, add(taskflow), box.last_code(EMAIL), 4)
    for _ in range(10):
        task = add(taskflow)
        guess_wrong(taskflow, task, box.last_code(EMAIL), 3)
        taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL))

    guess_wrong(taskflow, add(taskflow), box.last_code(EMAIL), 4)

    refused(SendLimitReached, add, taskflow)


# What a guesser does.


@pytest.mark.promise("S7")
@with_settings(recipient_max_sends=1000)
@pytest.mark.usefixtures("app")
def test_nothing_is_compared_after_twenty_failures(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    owners = add(taskflow, ttl=20 * DAY)
    code = box[-1].otp
    for _ in range(4):
        task = add(taskflow)
        for number in range(1, 6):
            refused(OTPRejected, taskflow.verify, task.id, "EMAIL", other(box[-1].otp, number))
    before = stored_task(redis, owners)

    for otp in (code, other(code)):
        assert refused(RecipientBlocked, taskflow.verify, owners.id, "EMAIL", otp).attempts_left is None

    assert stored_task(redis, owners) == before, "no attempt was used"
    travel(DAY)
    resent = taskflow.resend_otp(owners.id, "EMAIL")
    assert taskflow.verify(resent.id, "EMAIL", box[-1].otp).status == "SUCCESS"


@pytest.mark.promise("S7")
@with_settings(recipient_max_sends=1000)
@pytest.mark.usefixtures("app")
def test_guesses_at_a_device_end_whatever_the_tasks_send_by(
    taskflow: TaskFlow, box: Outbox, device: Device
) -> None:
    def try_once(otp: str) -> None:
        task = add(
            taskflow,
            allowed_methods=["EMAIL", "DEVICE"],
            recipient={"email": EMAIL, "device_id": "phone"},
        )
        taskflow.verify(task.id, "DEVICE", otp)

    for _ in range(20):
        refused(WrongCode, try_once, WRONG)
    refused(RecipientBlocked, try_once, WRONG)
    refused(RecipientBlocked, try_once, RIGHT)
    refused(SendLimitReached, add_for, taskflow)

    assert device.compared == 20


@pytest.fixture
def guess(taskflow: TaskFlow, box: Outbox, device: Device) -> Callable[..., Task[Any]]:
    """Add a task and type a code; its number says by which method, to which address, in which queue."""

    def attempt(number: int, owner: str | None, right: bool = False) -> Task[Any]:
        method = ("EMAIL", "SMS", "DEVICE")[number % 3]
        recipient = {
            "email": f"{number}@example.com",
            "phone_number": f"+1202555{number:04}",
            "device_id": f"{number}",
        }
        queue = f"queue-{number % 4}"
        task = taskflow.add_task(queue, allowed_methods=[method], recipient=recipient, owner=owner)
        code = RIGHT if method == "DEVICE" else box[-1].otp
        return taskflow.verify(task.id, method, code if right else other(code))

    return attempt


@pytest.mark.promise("S7")
@pytest.mark.usefixtures("app")
def test_owner_has_one_budget_over_all_queues_methods_and_addresses(
    taskflow: TaskFlow, guess: Callable[..., Task[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = add(taskflow, owner="user:17", recipient={"email": "own@example.com"})
    for number in range(20):
        refused(WrongCode, guess, number, "user:17")

    for number in range(100, 103):
        refused(SendLimitReached, guess, number, "user:17")
    refused(RecipientBlocked, taskflow.verify, waiting.id, "SMS", WRONG)
    refused(SendLimitReached, taskflow.update_recipient, waiting.id, {"email": "new@example.com"})
    assert guess(200, "user:18", True).status == guess(201, None, True).status == "SUCCESS"
    assert taskflow.unblock("user:17") == 1
    assert guess(300, "user:17", True).status == "SUCCESS"
    (record,) = [record for record in caplog.records if record.msg == "recipient_unblocked"]
    assert (record.address, record.queues) == ("****", ["*"])  # type: ignore[attr-defined]  # Extra fields.


@pytest.mark.promise("S7")
@with_settings(recipient_max_sends=1000)
@pytest.mark.usefixtures("app")
def test_address_has_one_budget_over_all_queues_whoever_owns_the_tasks(
    taskflow: TaskFlow, box: Outbox
) -> None:
    def fail(number: int) -> None:
        add_for = {"allowed_methods": ["EMAIL"], "recipient": {"email": EMAIL}, "owner": f"user:{number}"}
        task = taskflow.add_task(f"queue-{number}", **add_for)  # type: ignore[arg-type]  # Of two kinds.
        refused(WrongCode, taskflow.verify, task.id, "EMAIL", other(box[-1].otp))

    for number in range(20):
        fail(number)

    refused(SendLimitReached, fail, 20)


@pytest.mark.promise("S72")
@pytest.mark.usefixtures("app")
def test_errors_of_an_owner_who_confirms_are_taken_back(taskflow: TaskFlow, box: Outbox) -> None:
    for number in range(25):
        task = add(taskflow, owner="user:17", recipient={"email": f"{number}@example.com"})
        guess_wrong(taskflow, task, box[-1].otp)
        taskflow.verify(task.id, "EMAIL", box[-1].otp)


@pytest.mark.promise("S7", "S66")
@with_settings(recipient_max_sends=1000, recipient_max_failures=4)
@pytest.mark.usefixtures("app")
def test_who_goes_on_guessing_has_one_guess_in_three_days(
    taskflow: TaskFlow, box: Outbox, device: Device
) -> None:
    """An hour after the other, for 30 days, though the owner succeeds daily."""
    for hour in range(30 * 24):
        if hour % 24 == 12:
            with suppress(RecipientBlocked, SendLimitReached):
                taskflow.verify(add_for(taskflow).id, "DEVICE", RIGHT)
                device.compared -= 1
        try:
            taskflow.verify(add_for(taskflow).id, "DEVICE", WRONG)
        except (WrongCode, RecipientBlocked, SendLimitReached):
            travel(3600)

    assert 4 + 8 <= device.compared <= 4 + 11


@pytest.mark.slow
@pytest.mark.promise("S7", "S66")
def test_month_of_guessing_is_worth_one_in_ten_thousand(capsys: pytest.CaptureFixture[str]) -> None:
    """The model of the budget is the server's, and its owners succeed daily."""
    assert guessing.run(accounts=100, real=1, seed=7), capsys.readouterr().out


@pytest.mark.usefixtures("app")
def test_unknown_ids_leave_nothing_behind(taskflow: TaskFlow, redis: Redis, box: Outbox) -> None:
    task = add(taskflow)
    for _ in range(50):
        refused(OTPRejected, taskflow.verify, task.id[:8] + "a" * 26, "EMAIL", WRONG)

    travel(2 * DAY)
    add(taskflow)

    counts = keys_like(redis, "*:recipients") + keys_like(redis, "*:budgets")
    assert sum(redis.hlen(key) for key in counts) == 1


# While secret keys are exchanged.


@pytest.mark.promise("S67")
@pytest.mark.parametrize(
    "fleet",
    [[[OLD], [NEW, OLD]], [[OLD, NEW], [NEW, OLD]], [[NEW, OLD], [NEW]]],
    ids=["early", "recipe", "late"],
)
def test_limits_are_one_for_processes_that_share_a_key(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, fleet: list[list[str]]
) -> None:
    apps = [make_app(SECRET_KEY=keys[0], SECRET_KEY_FALLBACKS=keys[1:]) for keys in fleet]

    def in_turns(number: int, call: Callable[[], Any]) -> Any:
        with apps[number % len(apps)].app_context():
            return call()

    for number in range(5):
        in_turns(number, lambda: add(taskflow))
    for number in range(2):
        refused(SendLimitReached, in_turns, number, lambda: add(taskflow))


@pytest.mark.promise("S38", "S67")
@pytest.mark.parametrize("first", [[OLD], [NEW, OLD], [OLD, NEW], [NEW]])
@pytest.mark.parametrize("second", [[OLD], [NEW, OLD], [OLD, NEW], [NEW]])
def test_use_of_a_code_is_seen_by_processes_that_share_a_key(
    make_app: MakeApp, taskflow: TaskFlow, first: list[str], second: list[str]
) -> None:
    class Once(Device):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            return "step"

    taskflow.register_strategy("DEVICE")(Once())
    results: list[str] = []
    for keys in (first, second):
        with make_app(SECRET_KEY=keys[0], SECRET_KEY_FALLBACKS=keys[1:]).app_context():
            try:
                results.append(taskflow.verify(add_for(taskflow).id, "DEVICE", RIGHT).status)
            except WrongCode as error:
                results.append(error.code)

    assert results == ["SUCCESS", "wrong_code" if set(first) & set(second) else "SUCCESS"]


# What an operator does.


@pytest.mark.promise("S72")
@with_settings(recipient_max_sends=1000)
def test_unblock_lifts_the_limits_in_all_queues_and_is_recorded(
    app: Flask, taskflow: TaskFlow, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(queue: str) -> None:
        task = taskflow.add_task(queue, allowed_methods=["EMAIL"], recipient={"email": EMAIL})
        for number in range(1, 6):
            refused(OTPRejected, taskflow.verify, task.id, "EMAIL", other(box[-1].otp, number))

    for queue in "ppqq":
        fail(queue)
    taskflow.add_task("r", allowed_methods=["EMAIL"], recipient={"email": "other@example.com"})
    refused(SendLimitReached, add, taskflow)

    assert taskflow.unblock(EMAIL.upper()) == 3

    for queue in "pq":
        fail(queue)
    (record,) = [record for record in caplog.records if record.msg == "recipient_unblocked"]
    assert (record.address, record.queues) == ("A****@EXAMPLE.COM", ["*", "p", "q"])  # type: ignore[attr-defined]  # Extra fields.
    assert record.levelno == logging.WARNING
    assert taskflow.unblock("nobody@example.com") == 0
    refused(InvalidTask, taskflow.unblock, "")


@pytest.mark.promise("S72")
def test_unblock_finds_what_was_counted_under_an_older_key(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    with make_app(SECRET_KEY=OLD).app_context():
        for _ in range(5):
            add(taskflow)
    with make_app(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD]).app_context():
        refused(SendLimitReached, add, taskflow)
        taskflow.unblock(EMAIL)
        add(taskflow)


@pytest.mark.usefixtures("app")
def test_unblock_command_masks_the_address(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    add(taskflow)

    result = app.test_cli_runner().invoke(taskflow_cli, ["unblock", EMAIL])

    assert result.output == "Limits of a****@example.com that were lifted: 1.\n"
