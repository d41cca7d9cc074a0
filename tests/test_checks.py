"""The rules for names, methods, numbers and addresses."""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import InvalidTask, Method, Recipient
from flask_taskflow._checks import (
    TTL_MAX,
    check_method,
    check_methods,
    check_name,
    check_priority,
    check_recipient,
    check_seconds,
    is_text,
)
from tests.support.cases import each
from tests.support.tasks import refused

NAN, INFINITY = float("nan"), float("inf")


def kind(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("name", ["q", "A.b_c-9", "x" * 64])
def test_name_that_is_well_formed_is_taken(name: str) -> None:
    assert check_name(name, "queue") == name


MALFORMED: list[Any] = ["", "x" * 65, "a b", "a:b", "{a}", "a/b", "ä", "１", "a\n", "a\x00"]
MALFORMED += [None, 7, b"q", ["q"], 10**5000]


@pytest.mark.promise("S52")
@pytest.mark.parametrize("name", MALFORMED, ids=kind)
def test_name_that_is_malformed_is_refused(name: object) -> None:
    with pytest.raises(InvalidTask, match=r"^queue must match ") as caught:
        check_name(name, "queue")

    assert len(str(caught.value)) < 200


def test_method_of_the_built_in_ones_is_made_an_enum() -> None:
    assert check_method("EMAIL") is Method.EMAIL
    assert check_method("PIGEON_2") == "PIGEON_2"
    assert check_method("M" * 32) == "M" * 32


@pytest.mark.promise("S52")
@pytest.mark.parametrize("method", ["", "email", "1A", "_A", "A-B", "A" * 33, "É", "A\n", None, 1, b"SMS"])
def test_method_that_is_malformed_is_refused(method: object) -> None:
    with pytest.raises(InvalidTask, match=r"^a method must match "):
        check_method(method)


def test_methods_are_kept_once_and_in_order() -> None:
    given = (method for method in ["SMS", "EMAIL", Method.SMS])

    assert check_methods(given, "allowed_methods") == ("SMS", "EMAIL")


LISTS: dict[str, list[Any]] = {
    "allowed_methods must be a list of methods": ["EMAIL", Method.EMAIL, None, 7],
    "allowed_methods must name at least one method": [[], ()],
    "a method must match": [["EMAIL", None], [["SMS"]], b"EMAIL"],
}


@pytest.mark.parametrize(("reason", "methods"), each(LISTS))
def test_methods_that_are_no_list_of_them_are_refused(reason: str, methods: object) -> None:
    with pytest.raises(InvalidTask, match=reason):
        check_methods(methods, "allowed_methods")


class Rank(IntEnum):
    HIGH = 5


@pytest.mark.parametrize("priority", [0, -(2**31), 2**31, Rank.HIGH])
def test_priority_within_the_limits_becomes_a_plain_integer(priority: int) -> None:
    assert check_priority(priority) == priority
    assert type(check_priority(priority)) is int


@pytest.mark.parametrize("priority", [2**31 + 1, -(2**31) - 1, 10**5000, 1.0, NAN, True, "1", None], ids=kind)
def test_priority_beyond_the_limits_is_refused(priority: object) -> None:
    with pytest.raises(InvalidTask, match="priority must be an integer within ±2"):
        check_priority(priority)


@pytest.mark.parametrize("value", [0.001, 1, 2.5, TTL_MAX, timedelta(days=30), timedelta(milliseconds=1)])
def test_duration_is_taken_in_seconds(value: float | timedelta) -> None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value

    assert check_seconds(value, "ttl", maximum=TTL_MAX) == seconds


DURATIONS: list[Any] = [0, -1, 0.0009, TTL_MAX + 1, 10**400, 10**5000, NAN, INFINITY, -INFINITY]
DURATIONS += [timedelta(0), timedelta(seconds=-1), timedelta.max, True, "60", None, [60]]


@pytest.mark.parametrize("value", DURATIONS, ids=kind)
def test_duration_that_is_none_or_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask, match=r"ttl must be 0.001 to 2592000 seconds, not "):
        check_seconds(value, "ttl", maximum=TTL_MAX)


def test_recipient_is_taken_as_a_mapping_or_an_object() -> None:
    expected = Recipient(email="ann@example.com")

    assert check_recipient({"email": "ann@example.com"}) == expected
    assert check_recipient({"email": " ann@example.com\n", "device_id": None}) == expected
    assert check_recipient(expected) == expected
    assert check_recipient({}) == Recipient()


RECIPIENTS: dict[str, list[Any]] = {
    "recipient must be a mapping or a Recipient": [None, "ann@example.com", [("email", "a@b.c")], 7],
    r"recipient has no field .*it has \['device_id', 'em": [
        {name: "ann@example.com"} for name in ("phone", "Email", "", None, 7, 10**5000, ("email",))
    ],
}


@pytest.mark.parametrize(("reason", "value"), each(RECIPIENTS), ids=kind)
def test_recipient_that_is_none_is_refused(reason: str, value: object) -> None:
    with pytest.raises(InvalidTask, match=reason):
        check_recipient(value)


EMAILS = ["ann@example.com", "ann+news@mail.example.co.uk", "анна@пример.рф", "x" * 64 + "@example.com"]
USABLE = {
    "email": EMAILS,
    "phone_number": ["+12025550110", "030 (1234) 56-7", "112"],
    "device_id": ["d", "Ann's phone", "d" * 255],
}


@pytest.mark.parametrize(("field", "address"), each(USABLE))
def test_address_that_is_usable_is_taken(field: str, address: str) -> None:
    for value in ({field: address}, Recipient(**{field: address})):
        assert check_recipient(value).addresses() == {field: address}


NO_EMAILS: list[Any] = ["ann", "@example.com", "ann@", "a@b@example.com", "ann @example.com"]
NO_EMAILS += ["ann@example.com\r\nBcc: eve@example.com", "ann@example.com\nX: y", "ann\r@example.com"]
NO_EMAILS += ["ann@exam\x00ple.com", "ann@exam\u2028ple.com", "x" * 65 + "@example.com", "a@" + "x" * 256]
NO_EMAILS += ["a" * 100_000, "ann@example.com\udc80", 7, ["ann@example.com"], True]
UNUSABLE: dict[str, list[Any]] = {
    "email": NO_EMAILS,
    "phone_number": ["12", "+", "call me", "+1202\r\n5550110", "1" * 40, 12025550110],
    "device_id": ["a\r\nb", "d" * 256, b"device"],
}


@pytest.mark.parametrize(("field", "address"), each(UNUSABLE))
def test_address_that_is_unusable_is_refused_and_not_shown(field: str, address: Any) -> None:
    for value in ({field: address}, Recipient(**{field: address})):
        caught = refused(InvalidTask, check_recipient, value)

        assert str(caught) == f"recipient: {field} is not usable as an address"


@given(st.text())
def test_address_of_any_text_has_no_line_break_or_is_refused(text: str) -> None:
    for field in USABLE:
        try:
            addresses = check_recipient({field: text}).addresses()
        except InvalidTask:
            continue

        for address in addresses.values():
            assert address == address.strip() != ""
            assert len(address.splitlines()) == 1
            assert is_text(address)
