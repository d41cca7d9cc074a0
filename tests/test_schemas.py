"""Strict JSON: what goes in comes out, and everything else is refused."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_taskflow import InvalidTask, Method, TaskFlow
from flask_taskflow._schemas import (
    InvalidRequest,
    ResendRequest,
    VerifyRequest,
    dump_data,
    dump_fixed,
    load_fixed,
    read_body,
)
from flask_taskflow.testing import Outbox

TEXT = st.text(st.characters(codec="utf-8"))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53, max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


class Colour(Enum):
    RED = 1


def stored(data: object, *, maximum: int = 65536) -> Any:
    text = dump_fixed(
        queue="q",
        data=dump_data(data, maximum=maximum),
        summary="Pay «Bob»",
        allowed_methods=("EMAIL",),
        priority=0,
        timeout=1.5,
    )
    return load_fixed(text)


def same(one: Any, other: Any) -> bool:
    """Equal also in types and in the sign of zero, which ``==`` passes over."""
    return repr(one) == repr(other)


@given(JSON)
def test_data_comes_back_exactly(data: Any) -> None:
    fixed = stored(data, maximum=2**24)

    assert same(fixed.pop("data"), data)
    assert fixed == {
        "queue": "q",
        "summary": "Pay «Bob»",
        "allowed_methods": ("EMAIL",),
        "priority": 0,
        "timeout": 1.5,
    }


@pytest.mark.parametrize("shape", ["none", "list", "dict", "numbers", "nul", "injection"])
def test_data_of_awkward_shapes_comes_back(shape: str) -> None:
    data = {
        "none": None,
        "list": [],
        "dict": {"": {}, "queue": "other"},
        "numbers": [2**53 + 1, -0.0, 1e308, 5e-324, 0.1 + 0.2, 10**400],
        "nul": "\x00\r\n\u2028😀",
        "injection": '"},"queue":"admin',
    }[shape]

    fixed = stored(data)

    assert same(fixed["data"], data)
    assert fixed["queue"] == "q"


def test_data_of_subclasses_becomes_plain_json() -> None:
    fixed = stored({"pair": (1, 2), "method": Method.SMS, "ordered": OrderedDict(b=1, a=2)})

    assert same(fixed["data"], {"pair": [1, 2], "method": "SMS", "ordered": {"b": 1, "a": 2}})


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        {1, 2},
        frozenset(),
        datetime(2030, 1, 1, tzinfo=UTC),
        Decimal("1.5"),
        UUID(int=1),
        b"bytes",
        1j,
        object(),
        Colour.RED,
        "\ud800",
        {"\udfff": 1},
        {1: "a"},
        {None: "a"},
        {True: "a"},
        {("a",): 1},
        {10**5000: 1},
        10**5000,
        lambda: None,
        (item for item in "ab"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_that_is_no_json_is_refused(value: object) -> None:
    for data in (value, [value], {"key": [{"deeper": value}]}):
        with pytest.raises(InvalidTask, match="data must be a JSON value: ") as caught:
            dump_data(data, maximum=65536)

        assert len(str(caught.value)) < 300
        assert caught.value.__cause__ is None


def test_data_that_contains_itself_is_refused() -> None:
    data: list[Any] = []
    data.append(data)

    with pytest.raises(InvalidTask, match="nested deeper than 100 levels"):
        dump_data(data, maximum=65536)


def test_data_nested_100_levels_is_taken_and_more_is_not() -> None:
    assert stored(nested(100))["data"] == nested(100)
    for depth in (101, 500, 990, 100_000):
        with pytest.raises(InvalidTask, match="nested deeper than 100 levels"):
            dump_data(nested(depth), maximum=2**24)


@pytest.mark.parametrize("letter", ["x", "ä", "😀"])
def test_data_of_exactly_the_limit_is_taken(letter: str) -> None:
    text = letter * 12
    size = len(text.encode()) + 2

    assert dump_data(text, maximum=size) == f'"{text}"'
    with pytest.raises(InvalidTask, match=f"data takes {size} bytes, more than TASKFLOW_MAX_DATA_SIZE = "):
        dump_data(text, maximum=size - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(JSON)
def test_task_with_any_data_is_read_as_it_was_added(
    app: Flask, taskflow: TaskFlow, box: Outbox, data: Any
) -> None:
    address = f"{len(box)}@example.com"
    task = taskflow.add_task("q", data, allowed_methods=["EMAIL"], recipient={"email": address})

    again = taskflow.get_task(task.id)

    assert same(task.data, data)
    assert same(again.data, data)
    assert again == task
    assert box[-1].task == task


def errors_of(schema: Any, body: object) -> list[tuple[str, str]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as caught:
        read_body(schema, raw)
    return caught.value.errors


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"[" * 5000, b'{"method": "EMAIL"} x', "{}".encode("utf-16")[:3]]
)
def test_body_that_is_no_json_is_refused(raw: bytes) -> None:
    assert errors_of(VerifyRequest(), raw) == [("", "Not valid JSON.")]


@pytest.mark.parametrize("body", [[], "text", 7, None])
def test_body_that_is_no_object_is_refused(body: object) -> None:
    ((pointer, _),) = errors_of(VerifyRequest(), body)

    assert pointer == ""


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/method", "/otp"]),
        ({"method": "EMAIL"}, ["/otp"]),
        ({"method": "EMAIL", "otp": 123456}, ["/otp"]),
        ({"method": "EMAIL", "otp": ["123456"]}, ["/otp"]),
        ({"method": "EMAIL", "otp": None}, ["/otp"]),
        ({"method": "EMAIL", "otp": "1" * 10_000}, ["/otp"]),
        ({"method": "email", "otp": "123456"}, ["/method"]),
        ({"method": "EMAIL\n", "otp": "123456"}, ["/method"]),
        ({"method": ["EMAIL"], "otp": "123456"}, ["/method"]),
        ({"method": "EMAIL", "otp": "123456", "a/b~c": 1}, ["/a~1b~0c"]),
    ],
)
def test_body_with_bad_fields_is_refused_at_each(body: object, pointers: list[str]) -> None:
    assert sorted(pointer for pointer, _ in errors_of(VerifyRequest(), body)) == pointers


def test_body_that_is_right_is_read() -> None:
    assert read_body(VerifyRequest(), b'{"otp": "123 456", "method": "EMAIL"}') == {
        "method": "EMAIL",
        "otp": "123 456",
    }
    assert read_body(ResendRequest(), b'{"method": "PIGEON_2"}') == {"method": "PIGEON_2"}
