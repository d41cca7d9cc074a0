"""What ``add_task`` accepts; what each rule refuses is in ``test_checks.py``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import InvalidTask, Method, Recipient, TaskFlow
from flask_taskflow.testing import Outbox
from tests.support.cases import each
from tests.support.tasks import BOTH, EMAIL, add

pytestmark = pytest.mark.usefixtures("app")

REFUSED: dict[str, list[dict[str, Any]]] = {
    "queue must match": [{"queue": ""}, {"queue": "a b"}, {"queue": None}],
    "data must be a JSON value: the key 1 is not a string": [{"data": {1: 2}}],
    "data takes 65537 bytes, more than TASKFLOW_MAX_DATA_SIZE = 65536": [{"data": "x" * 65535}],
    "allowed_methods must name at least one method": [{"allowed_methods": []}],
    "a method must match": [{"allowed_methods": ["email"]}],
    r"register_strategy\('PIGEON'\)": [{"allowed_methods": ["EMAIL", "PIGEON"]}],
    r"register_strategy\('SMART_OTP'\)": [{"allowed_methods": [Method.SMART_OTP]}],
    r"no address for any allowed method: give \['phone_number'\]": [
        {"allowed_methods": ["SMS"], "recipient": {"email": EMAIL}}
    ],
    r"no address for any allowed method: give \['email', 'phone_number'\]": [{"recipient": {}}],
    "recipient must be a mapping or a Recipient": [{"recipient": None}],
    "recipient has no field 'mail'": [{"recipient": {"mail": EMAIL}}],
    "email is not usable as an address": [{"recipient": Recipient(email="ann@")}],
    "phone_number is not usable as an address": [{"recipient": {"email": EMAIL, "phone_number": 7}}],
    "summary must be one printable line of at most 200": [
        {"summary": summary} for summary in ("", "two\nlines", "x" * 201, "\u202eevil", 7)
    ],
    "priority must be an integer": [{"priority": 1.0}, {"priority": None}],
    "ttl must be 0.001 to 2592000 seconds": [{"ttl": 0}, {"ttl": timedelta(days=31)}],
    "timeout must be 0.001 to 31536000 seconds": [{"timeout": 0}, {"timeout": True}],
    "send_via must name at least one method": [{"send_via": []}],
    "send_via must be a list of methods": [{"send_via": "EMAIL"}],
    "send_via: SMS is not one of allowed_methods": [{"send_via": ["SMS"], "allowed_methods": ["EMAIL"]}],
    "send_via: the recipient has no phone_number for SMS": [
        {"send_via": ["SMS"], "recipient": {"email": EMAIL}}
    ],
}


@pytest.mark.parametrize(
    ("reason", "changes"), each(REFUSED), ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_unusable_argument_leaves_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, reason: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTask, match=reason):
        add(taskflow, **changes)

    assert redis.dbsize() == 0
    assert box == []


@pytest.mark.usefixtures("box")
def test_arguments_at_their_limits_are_taken(taskflow: TaskFlow) -> None:
    task = add(
        taskflow,
        queue="x" * 64,
        data="x" * 65534,
        summary="s" * 200,
        priority=-(2**31),
        ttl=timedelta(days=30),
        timeout=timedelta(days=365),
        recipient=Recipient(email=EMAIL),
    )

    assert taskflow.get_task(task.id) == task
    assert task.expires_at - task.created_at == timedelta(days=30)
    assert task.timeout == 365 * 86400


@pytest.mark.parametrize(
    ("send_via", "methods"),
    [
        (None, ["EMAIL"]),
        (["SMS"], ["SMS"]),
        (["SMS", "EMAIL", "SMS"], ["SMS", "EMAIL"]),
        ((method for method in ["EMAIL"]), ["EMAIL"]),
    ],
    ids=["default", "one", "all", "generator"],
)
def test_send_via_chooses(taskflow: TaskFlow, box: Outbox, send_via: Any, methods: list[str]) -> None:
    recipient = {"email": "EMAIL@example.com", "phone_number": "+12025550110"}

    add(taskflow, allowed_methods=BOTH, recipient=recipient, send_via=send_via)

    sent = ["EMAIL" if message.addresses == (recipient["email"],) else "SMS" for message in box]
    assert sent == methods
