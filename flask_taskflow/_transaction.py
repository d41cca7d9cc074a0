"""What a signature binds: a task's id, data and summary, in one form that every device can make."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal

#: Decimal exponents outside of which a number is written with ``e``: ECMAScript, Number::toString.
_PLAIN = range(-5, 22)


def transaction_challenge(*, task_id: str, data: object, summary: str | None) -> str:
    """Return the challenge of a transaction: 64 hexadecimal digits.

    It is the SHA-256 of the JSON object of ``data``, ``id`` and ``summary`` in the form of RFC 8785. A
    device computes it from what it shows; one that signs a challenge it was sent signs blindly.

    :param task_id: the task's id.
    :param data: the task's data, a JSON value.
    :param summary: the task's summary, or ``None``.
    :raises ValueError: for what is no JSON value.
    """
    text = canonical({"data": data, "id": task_id, "summary": summary})
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: object) -> str:
    """Return a value as JSON that depends on nothing but the value: RFC 8785.

    Integers that a double cannot hold, where that RFC has no form for them, are written out.

    :raises ValueError: for what is no JSON value.
    """
    try:
        text = _written(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"a transaction's data must be a JSON value: {error!s:.200}") from None
    return text


def _written(value: object) -> str:
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a name in it is not a string")
        # By UTF-16 code units, RFC 8785, section 3.2.3: code points beyond U+FFFF come before U+E000.
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{_written(name)}:{_written(value[name])}" for name in names) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """Return a float as ECMAScript writes it: the shortest digits, as Python's, in another notation."""
    sign, digits, exponent = Decimal(repr(float(value))).as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not JSON")
    point = len(digits) + exponent
    text = "".join(map(str, digits)).rstrip("0")
    if not text:
        return "0"
    if point not in _PLAIN:
        mantissa = text[0] + (f".{text[1:]}" if text[1:] else "")
        text = f"{mantissa}e{point - 1:+d}"
    elif point <= 0:
        text = "0." + "0" * -point + text
    elif point < len(text):
        text = f"{text[:point]}.{text[point:]}"
    else:
        text = text.ljust(point, "0")
    return f"-{text}" if sign else text
