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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_taskflow import InvalidTask, Method, TaskFlow
from flask_taskflow._http.schemas import InvalidRequest, ResendRequest, VerifyRequest, read_body
from flask_taskflow._store.records import dump_data, dump_fixed, load_fixed
from flask_taskflow.testing import Outbox
from tests.support.tasks import refused

TEXT = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers() | st.integers(2**53, 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


class Colour(Enum):
    RED = 1


FIXED = {
    "queue": "q",
    "summary": "Pay «Bob»",
    "allowed_methods": ("EMAIL",),
    "priority": 0,
    "timeout": 1.5,
    "remind": (),
}


def stored(data: object, *, maximum: int = 65536) -> Any:
    fixed: dict[str, Any] = FIXED
    return load_fixed(dump_fixed(data=dump_data(data, maximum=maximum), **fixed))


def same(one: Any, other: Any) -> bool:
    """Equal also in types and in the sign of zero, which ``==`` passes over."""
    return repr(one) == repr(other)


@given(JSON)
def test_data_comes_back_exactly(data: Any) -> None:
    fixed = stored(data, maximum=2**24)

    assert same(fixed.pop("data"), data)
    assert fixed == FIXED


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, None),
        ([], []),
        ({"": {}, "queue": "other"}, {"": {}, "queue": "other"}),
        ([2**53 + 1, -0.0, 1e308, 5e-324, 0.1 + 0.2], [2**53 + 1, -0.0, 1e308, 5e-324, 0.1 + 0.2]),
        ([10**400], [10**400]),
        ("\x00\r\n\u2028😀", "\x00\r\n\u2028😀"),
        ('"},"queue":"admin', '"},"queue":"admin'),
        # What is a subclass becomes plain JSON.
        ({"pair": (1, 2), "method": Method.SMS}, {"pair": [1, 2], "method": "SMS"}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    ],
    ids=["none", "list", "dict", "numbers", "huge", "nul", "injection", "tuple", "ordered"],
)
def test_data_of_awkward_shapes_comes_back(data: object, expected: object) -> None:
    fixed = stored(data)

    assert same(fixed["data"], expected)
    assert fixed["queue"] == "q"


NO_JSON: list[Any] = [math.nan, math.inf, -math.inf, {1, 2}, frozenset(), datetime(2030, 1, 1, tzinfo=UTC)]
NO_JSON += [Decimal("1.5"), UUID(int=1), b"bytes", 1j, object(), Colour.RED, "\ud800", {"\udfff": 1}]
NO_JSON += [{1: "a"}, {None: "a"}, {True: "a"}, {("a",): 1}, {10**5000: 1}, 10**5000, lambda: None]
NO_JSON += [(item for item in "ab")]


@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: type(value).__name__)
def test_data_that_is_no_json_is_refused(value: object) -> None:
    for data in (value, [value], {"key": [{"deeper": value}]}):
        with pytest.raises(InvalidTask, match="data must be a JSON value: ") as caught:
            dump_data(data, maximum=65536)

        assert len(str(caught.value)) < 300
        assert caught.value.__cause__ is None


def test_data_nested_100_levels_is_taken_and_more_is_not() -> None:
    assert stored(nested(100))["data"] == nested(100)
    for data in (*map(nested, (101, 500, 990, 100_000)), endless()):
        with pytest.raises(InvalidTask, match="nested deeper than 100 levels"):
            dump_data(data, maximum=2**24)


@pytest.mark.parametrize("letter", ["x", "ä", "😀"])
def test_data_of_exactly_the_limit_is_taken(letter: str) -> None:
    text = letter * 12
    size = len(text.encode()) + 2

    assert dump_data(text, maximum=size) == f'"{text}"'
    with pytest.raises(InvalidTask, match=f"data takes {size} bytes, more than TASKFLOW_MAX_DATA_SIZE = "):
        dump_data(text, maximum=size - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=JSON)
@pytest.mark.usefixtures("app")
def test_task_with_any_data_is_read_as_it_was_added(taskflow: TaskFlow, box: Outbox, data: Any) -> None:
    address = f"{len(box)}@example.com"
    task = taskflow.add_task("q", data, allowed_methods=["EMAIL"], recipient={"email": address})

    again = taskflow.get_task(task.id)

    assert same(task.data, data)
    assert same(again.data, data)
    assert again == task
    assert box[-1].task == task


@pytest.mark.parametrize(
    ("raw", "errors"),
    [
        *((raw, [("", "Not valid JSON.")]) for raw in (b"", b"{", b"\xff", b"[" * 5000, b"{} x")),
        (b'{"method": "EMAIL\\n", "otp": ["123456"], "a/b~c": 1}', None),
    ],
)
def test_body_when_unusable_is_refused_at_each_field(
    raw: bytes, errors: list[tuple[str, str]] | None
) -> None:
    """How many forms that takes is in the tests of the routes."""
    caught = refused(InvalidRequest, read_body, VerifyRequest(), raw)

    found = caught.errors
    assert found == errors if errors else sorted(name for name, _ in found) == ["/a~1b~0c", "/method", "/otp"]


def test_body_that_is_right_is_read() -> None:
    verify = {"otp": "123 456", "method": "EMAIL"}

    assert read_body(VerifyRequest(), json.dumps(verify).encode()) == verify
    assert read_body(ResendRequest(), b'{"method": "PIGEON_2"}') == {"method": "PIGEON_2"}
