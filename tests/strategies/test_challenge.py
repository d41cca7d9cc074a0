"""One form of a transaction, RFC 8785, whoever writes it; another one for every other transaction."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import ConfigError, InvalidTask, transaction_challenge
from flask_taskflow.strategies._challenge import canonical

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def json_of(integers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | integers | FLOATS | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )


#: The integers that a double tells apart, RFC 8785, section 3.2.2.3.
SAFE = 2**53 - 1
JSON = json_of(st.integers(-SAFE, SAFE))


# RFC 8785, appendix B: the bits of a double, and how it is written.
NUMBERS = """
0000000000000000=0 8000000000000000=0 0000000000000001=5e-324 8000000000000001=-5e-324
7fefffffffffffff=1.7976931348623157e+308 ffefffffffffffff=-1.7976931348623157e+308
4340000000000000=9007199254740992 c340000000000000=-9007199254740992
4430000000000000=295147905179352830000 44b52d02c7e14af5=9.999999999999997e+22 44b52d02c7e14af6=1e+23
44b52d02c7e14af7=1.0000000000000001e+23 444b1ae4d6e2ef4e=999999999999999700000
444b1ae4d6e2ef4f=999999999999999900000 444b1ae4d6e2ef50=1e+21 3eb0c6f7a0b5ed8c=9.999999999999997e-7
3eb0c6f7a0b5ed8d=0.000001 41b3de4355555553=333333333.3333332 41b3de4355555554=333333333.33333325
41b3de4355555555=333333333.3333333 41b3de4355555556=333333333.3333334
41b3de4355555557=333333333.33333343 becbf647612f3696=-0.0000033333333333333333
43143ff3c1cb0959=1424953923781206.2
"""


@pytest.mark.parametrize(("bits", "text"), [pair.split("=") for pair in NUMBERS.split()])
def test_numbers_of_rfc_8785_are_written_its_way(bits: str, text: str) -> None:
    """RFC 8785, appendix B."""
    assert canonical(struct.unpack(">d", bytes.fromhex(bits))[0]).decode() == text


def test_names_are_sorted_by_utf_16() -> None:
    """RFC 8785, section 3.2.3."""
    names = ["\r", "1", "\x80", "ö", "€", "\U0001f600", "\ufb33"]

    found = json.loads(canonical(dict.fromkeys(reversed(names), 0)))

    assert list(found) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, False, None, ()]}, '{"a":[true,false,null,[]],"b":1}'),
        ("€$\x0f\nA'\x42\"\\/\x7f\b", '"€$\\u000f\\nA\'B\\"\\\\/\x7f\\b"'),
        (50.0, "50"),
        (1.5e-7, "1.5e-7"),
        (SAFE, "9007199254740991"),
        (-SAFE, "-9007199254740991"),
        (float(2**53), "9007199254740992"),
    ],
)
def test_value_has_one_form(value: object, text: str) -> None:
    assert canonical(value).decode() == text


@given(JSON)
def test_form_is_json_of_the_same_value(value: Any) -> None:
    found = json.loads(canonical(value), parse_int=Decimal, parse_float=Decimal)

    assert found == json.loads(json.dumps(value), parse_int=Decimal, parse_float=Decimal)


@given(JSON)
def test_form_is_the_same_on_a_device_that_knows_only_doubles(value: Any) -> None:
    read = json.loads(
        json.dumps(value), parse_int=float, object_pairs_hook=lambda pairs: dict(reversed(pairs))
    )

    assert canonical(read) == canonical(value)


@given(st.tuples(TEXT, JSON, st.none() | TEXT), st.tuples(TEXT, JSON, st.none() | TEXT))
def test_other_transaction_has_another_challenge(one: Any, other: Any) -> None:
    challenges = {
        transaction_challenge(task_id=task_id, data=data, summary=summary)
        for task_id, data, summary in (one, other)
    }

    assert len(challenges) == (1 if plain(one) == plain(other) else 2)


def plain(value: Any) -> Any:
    """What tells JSON values apart: 1.0 is 1, and neither is True, although Python holds them for equal."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (type(value) is bool, Fraction(repr(value)) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"task_id": "a", "data": "b", "summary": None}, {"task_id": "ab", "data": "", "summary": None}),
        ({"task_id": "a", "data": None, "summary": "b"}, {"task_id": "a", "data": "b", "summary": None}),
        ({"task_id": "a", "data": 1, "summary": None}, {"task_id": "a", "data": True, "summary": None}),
        ({"task_id": "a", "data": 1, "summary": None}, {"task_id": "a", "data": "1", "summary": None}),
        ({"task_id": "a", "data": [], "summary": None}, {"task_id": "a", "data": {}, "summary": None}),
        ({"task_id": "a", "data": None, "summary": None}, {"task_id": "a", "data": None, "summary": ""}),
        (
            {"task_id": "a", "data": SAFE, "summary": None},
            {"task_id": "a", "data": SAFE - 1, "summary": None},
        ),
        (
            {"task_id": "a", "data": "\u00e9", "summary": None},
            {"task_id": "a", "data": "e\u0301", "summary": None},
        ),
    ],
)
def test_challenge_tells_like_transactions_apart(one: Any, other: Any) -> None:
    assert transaction_challenge(**one) != transaction_challenge(**other)


def test_challenge_is_the_hash_of_the_form() -> None:
    form = '{"data":{"amount":50,"to":"Zoë"},"id":"x","summary":null}'

    found = transaction_challenge(task_id="x", data={"to": "Zoë", "amount": 50.0}, summary=None)

    assert found == hashlib.sha256(form.encode()).hexdigest()


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    "data", [float("nan"), float("inf"), {1: 2}, {b"x": 2}, {1, 2}, b"x", "\ud800", {"\ud800": 1}, endless()]
)
def test_what_is_no_json_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="data must be a JSON value") as caught:
        transaction_challenge(task_id="x", data=data, summary=None)

    assert isinstance(caught.value, InvalidTask)


@pytest.mark.parametrize("integer", [SAFE + 1, -SAFE - 1, 10**4000], ids=["positive", "negative", "huge"])
def test_integer_that_devices_round_is_refused_with_the_cure(integer: int) -> None:
    with pytest.raises(InvalidTask, match=r"an integer of 2\^53 or more, .*: write it as text"):
        transaction_challenge(task_id="x", data={"amounts": [integer]}, summary=None)


def test_challenge_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rfc8785", None)

    with pytest.raises(ConfigError, match=r"need the extra \[smart-otp\]: pip install"):
        transaction_challenge(task_id="x", data=None, summary=None)
