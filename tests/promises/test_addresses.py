"""Where codes go: changes of an address, spellings of it, and who is told of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import Status, Task, TaskFlow
from flask_taskflow.errors import InvalidTask, SendFailed, SendLimitReached, TaskNotPending, WrongCode
from flask_taskflow.testing import Outbox, travel
from tests.support.tasks import (
    EMAIL,
    NEW_EMAIL,
    PHONE,
    Tap,
    add,
    in_context,
    key_of,
    refused,
    stored_task,
    with_settings,
)


def later(seconds: float, call: Callable[[], Any]) -> Any:
    """Call after some seconds; at once, if there are none."""
    time.sleep(max(0, seconds))
    return call()


@pytest.mark.promise("S28")
@pytest.mark.parametrize("races", [100, pytest.param(1000, marks=pytest.mark.slow)])
@with_settings(recipient_max_sends=10**6, recipient_max_failures=10**6, allow_weak_codes=True)
def test_old_code_is_refused_in_every_race_with_a_change_of_address(
    app: Flask, taskflow: TaskFlow, box: Outbox, races: int
) -> None:
    """Each is won by the code, or by the change and then the code is dead."""
    won: Counter[str] = Counter()
    # How long the change waits for the code, in seconds; if negative, the code for the change.
    # Whoever won gives way a little next time, which keeps the race close on any machine.
    lag = 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(races):
            task = add(taskflow, recipient={"email": EMAIL})
            change = partial(taskflow.update_recipient, task.id, {"email": NEW_EMAIL})
            verify = partial(taskflow.verify, task.id, "EMAIL", box[-1].otp)
            changing = pool.submit(in_context, app, partial(later, lag, change))
            verifying = pool.submit(in_context, app, partial(later, -lag, verify))
            changed, accepted = changing.result(), verifying.result()
            if isinstance(accepted, Task):
                assert isinstance(changed, TaskNotPending)
                won["code"] += 1
                lag -= 0.0005
            else:
                assert isinstance(accepted, WrongCode)
                assert isinstance(changed, Task)
                assert isinstance(in_context(app, verify), WrongCode)
                won["change"] += 1
                lag += 0.0005

    assert won.total() == races
    assert min(won["code"], won["change"]) > races / 100


class Meanwhile(Tap):
    """Lets something happen while its message is on the way."""

    def __init__(self, meanwhile: Callable[[Task[Any]], object], error: Exception | None) -> None:
        super().__init__(error)
        self.meanwhile = meanwhile

    def send(self, task: Task[Any], otp: str) -> None:
        self.meanwhile(task)
        super().send(task, otp)


@pytest.mark.promise("S28")
@pytest.mark.parametrize("error", [None, OSError("no route")], ids=["arrives", "fails"])
def test_code_resent_while_the_address_changes_is_dead(
    app: Flask, taskflow: TaskFlow, error: Exception | None
) -> None:
    """A resend to the old address that fails or arrives after the change revives nothing."""
    tap = taskflow.register_strategy("EMAIL")(Tap())
    task = add(taskflow)
    travel(30)

    def change(task: Task[Any]) -> None:
        taskflow.register_strategy("EMAIL")(tap)
        taskflow.update_recipient(task.id, {"email": NEW_EMAIL})

    slow = taskflow.register_strategy("EMAIL")(Meanwhile(change, error))
    outcome = in_context(app, lambda: taskflow.resend_otp(task.id, "EMAIL"))

    assert isinstance(outcome, SendFailed if error else Task)
    assert slow.codes == tap.codes[:1]
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", slow.codes[0])
    assert taskflow.verify(task.id, "EMAIL", tap.codes[1]).status is Status.SUCCESS


@pytest.mark.promise("S29")
@pytest.mark.usefixtures("app")
def test_change_of_address_does_not_prolong_the_task(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """Neither its end nor that of its code nor that of its key."""
    task = add(taskflow, ttl=100)
    key = key_of(redis, task)
    ends = redis.execute_command("PEXPIRETIME", key)

    for number in range(3):
        updated = taskflow.update_recipient(task.id, {"email": f"new{number}@example.com"})

        assert updated.expires_at == task.expires_at
        stored = stored_task(redis, task)
        assert stored["EMAIL.until"] == stored["expires"]
        assert redis.execute_command("PEXPIRETIME", key) == ends


SPELLINGS = {
    "email": [EMAIL, EMAIL.upper(), f" {EMAIL} ", f"{EMAIL}.", "ann@ｅxample.com"],
    "phone_number": [
        "+12025550110",
        "+1 202 555 0110",
        "+1 (202) 555-0110",
        "+1202.555.0110",
        "+1/2025550110",
    ],
}


@pytest.mark.promise("S7", "S25")
@pytest.mark.usefixtures("app", "box")
@pytest.mark.parametrize("field", SPELLINGS)
def test_spelling_of_an_address_makes_no_other_one(taskflow: TaskFlow, field: str) -> None:
    """Blanks, case, width and the hyphens of telephone numbers do not evade the limits."""
    for spelling in SPELLINGS[field]:
        add(taskflow, recipient={field: spelling})

    for spelling in SPELLINGS[field]:
        refused(SendLimitReached, partial(add, taskflow, recipient={field: spelling}))


SEVERAL = [
    "ann@example.com,bob",
    "bob,ann@example.com",
    "ann@example.com;bob",
    "<ann@example.com>",
    "Ann<ann@example.com",
    '"ann"@example.com',
    "ann(1)@example.com",
    "ann@example.com(1)",
    "a\\nn@example.com",
    "g:ann@example.com",
]


@pytest.mark.promise("S7", "S25")
@pytest.mark.usefixtures("app", "box")
@pytest.mark.parametrize("address", SEVERAL)
def test_address_that_mail_programs_read_as_several_is_refused(taskflow: TaskFlow, address: str) -> None:
    """With a comma, each message would go to a counted name and to the one that had enough."""
    refused(InvalidTask, partial(add, taskflow, recipient={"email": address}))


@pytest.mark.promise("S55")
@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("email", "masked"),
    [("foobar@example.com", "fo****@example.com"), ("x@example.com", "****@example.com")],
)
def test_addresses_are_masked_wherever_they_are_told(
    taskflow: TaskFlow, caplog: pytest.LogCaptureFixture, email: str, masked: str
) -> None:
    """In every log record, the audit log's fields included, and in every `repr`."""
    caplog.set_level(logging.DEBUG)
    tap = taskflow.register_strategy("EMAIL")(Tap())
    task = add(taskflow, recipient={"email": "old@example.com", "phone_number": PHONE})
    tap.error = OSError("no route")
    failed = refused(SendFailed, taskflow.update_recipient, task.id, {"email": email})

    told = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    told += [repr(failed), repr(failed.task)]

    assert any(masked in text for text in told)
    assert any("+12****10" in text for text in told)
    for text in told:
        assert f"'{email}" not in text
        assert f" {email}" not in text
        assert PHONE not in text
