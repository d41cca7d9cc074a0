"""Tasks and recipients as values, and the rules for names, numbers and addresses."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import InvalidTask, Method, Recipient, Status, Task
from flask_taskflow._task import (
    TTL_MAX,
    check_method,
    check_methods,
    check_name,
    check_priority,
    check_recipient,
    check_seconds,
)


def a_task(**changes: Any) -> Task[Any]:
    now = datetime(2030, 1, 2, 3, 4, 5, 678000, UTC)
    given: dict[str, Any] = {
        "id": "a" * 34,
        "queue": "transfers",
        "data": {"amount": 5},
        "summary": "Pay Bob",
        "recipient": Recipient(email="foobar@example.com", phone_number="+12025550110"),
        "allowed_methods": (Method.EMAIL, "PIGEON"),
        "status": Status.PENDING,
        "priority": 3,
        "timeout": 1.5,
        "created_at": now,
        "expires_at": now + timedelta(minutes=10),
        **changes,
    }
    return Task(**given)


def test_task_is_frozen() -> None:
    task = a_task()

    with pytest.raises(dataclasses.FrozenInstanceError):
        task.status = Status.SUCCESS  # type: ignore[misc]  # That it is refused is the test.


def test_task_shows_neither_data_nor_addresses() -> None:
    text = repr(a_task(data={"secret": "hunter2"}, summary="Pay hunter3"))

    assert "transfers" in text
    assert "fo****@example.com" in text
    for hidden in ("hunter", "foobar", "2025550110"):
        assert hidden not in text + str(a_task())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_task_survives_a_pickle(protocol: int) -> None:
    task = a_task(verified_at=datetime.now(UTC), verification_method="EMAIL", status=Status.SUCCESS)

    again = pickle.loads(pickle.dumps(task, protocol))  # noqa: S301  # Our own bytes.

    assert again == task
    assert again.status is Status.SUCCESS
    assert copy.deepcopy(task) == task


def test_methods_and_statuses_are_strings() -> None:
    assert json.dumps([*Method, *Status]) == json.dumps(
        ["EMAIL", "SMS", "SMART_OTP", "PENDING", "SUCCESS", "LOCKED", "EXPIRED", "CANCELLED", "FAILED"]
    )
    assert f"{Method.SMS} {Status.LOCKED}" == "SMS LOCKED"


def test_recipient_gives_what_is_there_and_masks_it() -> None:
    recipient = Recipient(email="foobar@example.com", device_id="device-0815")

    assert recipient.addresses() == {"email": "foobar@example.com", "device_id": "device-0815"}
    assert recipient.masked() == {"email": "fo****@example.com", "device_id": "dev****15"}
    assert repr(recipient) == "Recipient(email='fo****@example.com', device_id='dev****15')"
    assert f"{recipient} {[recipient]}".count("foobar") == 0
    assert repr(Recipient()) == "Recipient()"


@pytest.mark.parametrize("name", ["q", "A.b_c-9", "x" * 64])
def test_name_that_is_well_formed_is_taken(name: str) -> None:
    assert check_name(name, "queue") == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a b", "a:b", "{a}", "a/b", "ä", "１", "a\n", "a\x00", None, 7, b"q", ["q"], 10**5000],
    ids=lambda name: type(name).__name__,
)
def test_name_that_is_malformed_is_refused(name: object) -> None:
    """S52."""
    with pytest.raises(InvalidTask, match=r"^queue must match ") as caught:
        check_name(name, "queue")

    assert len(str(caught.value)) < 200


def test_method_of_the_built_in_ones_is_made_an_enum() -> None:
    assert check_method("EMAIL") is Method.EMAIL
    assert check_method("PIGEON_2") == "PIGEON_2"
    assert check_method("M" * 32) == "M" * 32


@pytest.mark.parametrize("method", ["", "email", "1A", "_A", "A-B", "A" * 33, "É", "A\n", None, 1, b"SMS"])
def test_method_that_is_malformed_is_refused(method: object) -> None:
    """S52."""
    with pytest.raises(InvalidTask, match=r"^a method must match "):
        check_method(method)


def test_methods_are_kept_once_and_in_order() -> None:
    given = (method for method in ["SMS", "EMAIL", Method.SMS])

    assert check_methods(given, "allowed_methods") == ("SMS", "EMAIL")


@pytest.mark.parametrize(
    "methods", ["EMAIL", Method.EMAIL, None, 7, b"EMAIL", [], (), ["EMAIL", None], [["SMS"]]]
)
def test_methods_that_are_no_list_of_them_are_refused(methods: object) -> None:
    with pytest.raises(InvalidTask, match=r"allowed_methods|a method must match"):
        check_methods(methods, "allowed_methods")


class Rank(IntEnum):
    HIGH = 5


@pytest.mark.parametrize("priority", [0, -(2**31), 2**31, Rank.HIGH])
def test_priority_within_the_limits_becomes_a_plain_integer(priority: int) -> None:
    assert check_priority(priority) == priority
    assert type(check_priority(priority)) is int


@pytest.mark.parametrize(
    "priority",
    [2**31 + 1, -(2**31) - 1, 10**5000, 1.0, float("nan"), True, "1", None],
    ids=lambda priority: type(priority).__name__,
)
def test_priority_beyond_the_limits_is_refused(priority: object) -> None:
    with pytest.raises(InvalidTask, match="priority must be an integer within ±2"):
        check_priority(priority)


@pytest.mark.parametrize("value", [0.001, 1, 2.5, TTL_MAX, timedelta(days=30), timedelta(milliseconds=1)])
def test_duration_is_taken_in_seconds(value: float | timedelta) -> None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value

    assert check_seconds(value, "ttl", maximum=TTL_MAX) == seconds


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        0.0009,
        TTL_MAX + 1,
        10**400,
        10**5000,
        float("nan"),
        float("inf"),
        -float("inf"),
        timedelta(0),
        timedelta(seconds=-1),
        timedelta.max,
        True,
        "60",
        None,
        [60],
    ],
    ids=lambda value: type(value).__name__,
)
def test_duration_that_is_none_or_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask, match=r"ttl must be 0.001 to 2592000 seconds, not "):
        check_seconds(value, "ttl", maximum=TTL_MAX)


def test_recipient_is_taken_as_a_mapping_or_an_object() -> None:
    expected = Recipient(email="ann@example.com")

    assert check_recipient({"email": "ann@example.com"}) == expected
    assert check_recipient({"email": " ann@example.com\n", "device_id": None}) == expected
    assert check_recipient(expected) == expected
    assert check_recipient({}) == Recipient()


@pytest.mark.parametrize("value", [None, "ann@example.com", [("email", "ann@example.com")], 7])
def test_recipient_that_is_no_mapping_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask, match="recipient must be a mapping or a Recipient"):
        check_recipient(value)


@pytest.mark.parametrize(
    "name",
    ["phone", "Email", "", None, 7, 10**5000, ("email",)],
    ids=lambda name: type(name).__name__,
)
def test_recipient_with_an_unknown_field_is_refused(name: Any) -> None:
    with pytest.raises(InvalidTask, match=r"recipient has no field .*it has \['device_id', 'em"):
        check_recipient({name: "ann@example.com"})


@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("email", "ann@example.com"),
        ("email", "ann+news@mail.example.co.uk"),
        ("email", "анна@пример.рф"),
        ("email", "x" * 64 + "@example.com"),
        ("phone_number", "+12025550110"),
        ("phone_number", "030 (1234) 56-7"),
        ("phone_number", "112"),
        ("device_id", "d"),
        ("device_id", "Ann's phone"),
        ("device_id", "d" * 255),
    ],
)
def test_address_that_is_usable_is_taken(field: str, address: str) -> None:
    for value in ({field: address}, Recipient(**{field: address})):
        assert check_recipient(value).addresses() == {field: address}


@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("email", ""),
        ("email", " "),
        ("email", "ann"),
        ("email", "@example.com"),
        ("email", "ann@"),
        ("email", "a@b@example.com"),
        ("email", "ann @example.com"),
        ("email", "ann@example.com\r\nBcc: eve@example.com"),
        ("email", "ann@example.com\nX: y"),
        ("email", "ann\r@example.com"),
        ("email", "ann@exam\x00ple.com"),
        ("email", "ann@exam\u2028ple.com"),
        ("email", "x" * 65 + "@example.com"),
        ("email", "a@" + "x" * 256),
        ("email", "a" * 100_000),
        ("email", "ann@example.com\udc80"),
        ("email", 7),
        ("email", ["ann@example.com"]),
        ("email", True),
        ("phone_number", "12"),
        ("phone_number", "+"),
        ("phone_number", "call me"),
        ("phone_number", "+1202\r\n5550110"),
        ("phone_number", "１２３４"),
        ("phone_number", "1" * 40),
        ("phone_number", 12025550110),
        ("device_id", ""),
        ("device_id", "a\r\nb"),
        ("device_id", "d" * 256),
        ("device_id", b"device"),
    ],
)
def test_address_that_is_unusable_is_refused_and_not_shown(field: str, address: Any) -> None:
    for value in ({field: address}, Recipient(**{field: address})):
        with pytest.raises(InvalidTask) as caught:
            check_recipient(value)

        assert str(caught.value) == f"recipient: {field} is not usable as an address"


@given(st.text())
def test_address_of_any_text_has_no_line_break_or_is_refused(text: str) -> None:
    for field in ("email", "phone_number", "device_id"):
        try:
            (address,) = check_recipient({field: text}).addresses().values()
        except InvalidTask:
            continue

        assert address == text.strip()
        assert address.isprintable()
