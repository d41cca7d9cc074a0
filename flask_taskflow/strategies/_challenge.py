"""What a signature binds: a task's id, data and summary, in one form that every device can make."""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import ConfigError, InvalidTask

_MISSING = "signed transactions need the extra [smart-otp]: pip install 'flask-taskflow[smart-otp]'"


def transaction_challenge(*, task_id: str, data: object, summary: str | None) -> str:
    """Return the challenge of a transaction: 64 hexadecimal digits. Needs the extra ``[smart-otp]``.

    It is the SHA-256 of the JSON object of ``data``, ``id`` and ``summary`` in the form of RFC 8785. A
    device computes it from what it shows; one that signs a challenge it was sent signs blindly.

    :param task_id: the task's id.
    :param data: the task's data, a JSON value.
    :param summary: the task's summary, or ``None``.
    :raises InvalidTask: a ``ValueError``, for what is no JSON value, and for integers of 2^53 or more.
    :raises ConfigError: if the extra is not installed.
    """
    return hashlib.sha256(canonical({"data": data, "id": task_id, "summary": summary})).hexdigest()


def canonical(value: Any) -> bytes:
    """Return a value as JSON that depends on nothing but the value: RFC 8785.

    :raises InvalidTask: for what is no JSON value, and for integers that a double cannot hold exactly.
    :raises ConfigError: if the extra is not installed.
    """
    try:
        import rfc8785
    except ImportError:
        raise ConfigError(_MISSING) from None
    try:
        return rfc8785.dumps(value)
    except rfc8785.IntegerDomainError:
        raise InvalidTask(
            "a transaction's data holds an integer of 2^53 or more, which devices round: write it as text"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"a transaction's data must be a JSON value: {error!s:.200}") from None
