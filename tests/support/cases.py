"""Tables of cases, written by what they have in common, and a task that no server knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flask_taskflow import Method, Recipient, Status, Task


def each(table: Mapping[Any, Iterable[Any]]) -> list[tuple[Any, Any]]:
    """Return a pair of key and value for every value of a table: cases by their outcome."""
    return [(key, value) for key, values in table.items() for value in values]


def a_task(**changes: Any) -> Task[Any]:
    """Return a task with data and addresses to hide."""
    now = datetime(2030, 1, 2, 3, 4, 5, 678000, UTC)
    given: dict[str, Any] = {
        "id": "a" * 34,
        "queue": "transfers",
        "data": {"secret": "hunter2"},
        "summary": "Pay hunter3",
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
