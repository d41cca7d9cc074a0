"""What a task is: the types that users see and the rules that names follow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ._otp import mask
from .errors import InvalidTask

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
METHOD = re.compile(r"[A-Z][A-Z0-9_]{0,31}", re.ASCII)
PRIORITY_LIMIT = 2**31
TTL_MAX = 30 * 86400.0


class Method(StrEnum):
    """The built-in ways to confirm a task; an app may add its own by name."""

    EMAIL = "EMAIL"
    SMS = "SMS"
    SMART_OTP = "SMART_OTP"


class Status(StrEnum):
    """Where a task stands; only ``PENDING`` can be verified."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    LOCKED = "LOCKED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, repr=False)
class Recipient:
    """Whom a code goes to; each address is optional. Its ``repr`` is masked.

    :param email: an e-mail address.
    :param phone_number: a telephone number.
    :param device_id: the id of an enrolled device.
    """

    email: str | None = None
    phone_number: str | None = None
    device_id: str | None = None

    def addresses(self) -> dict[str, str]:
        """Return the addresses that are there, by field."""
        pairs = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def masked(self) -> dict[str, str]:
        """Return the addresses that are there, by field, fit for logs."""
        return {name: mask(value) for name, value in self.addresses().items()}

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.masked().items())
        return f"Recipient({inner})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[T]):
    """An action that waits for a one-time code.

    :param id: unguessable; whoever knows it may try codes.
    :param queue: the name that callbacks are registered for.
    :param data: what the app gave, a JSON value. Not in the ``repr``.
    :param summary: one line saying what is being confirmed, or ``None``. Not in the ``repr``.
    :param recipient: whom codes go to.
    :param allowed_methods: the methods by which it may be confirmed, in the app's order.
    :param status: where it stands.
    :param priority: callbacks of higher ones run first.
    :param timeout: seconds that one attempt of a callback may take.
    :param created_at: aware, by the server's clock.
    :param expires_at: aware, by the server's clock; a pending task ends then.
    :param verified_at: aware, or ``None``.
    :param verification_method: the method that verified it, or ``None``.
    :param locale: the language of its messages, or ``None``: then the app's counts.
    """

    id: str
    queue: str
    data: T = field(repr=False)
    summary: str | None = field(repr=False)
    recipient: Recipient
    allowed_methods: tuple[str, ...]
    status: Status
    priority: int
    timeout: float
    created_at: datetime
    expires_at: datetime
    verified_at: datetime | None = None
    verification_method: str | None = None
    locale: str | None = None


def check_name(value: object, what: str) -> str:
    """Return a queue's or callback's name.

    :param value: what the caller gave.
    :param what: how a message calls it.
    :raises InvalidTask: if it does not match ``[A-Za-z0-9_.-]{1,64}``.
    """
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise InvalidTask(f"{what} must match {NAME.pattern}, not {shown(value)}")


def check_method(value: object) -> str:
    """Return a method's name, as :class:`Method` where it is built in.

    :raises InvalidTask: if it does not match ``[A-Z][A-Z0-9_]{0,31}``.
    """
    if isinstance(value, str) and METHOD.fullmatch(value):
        return Method(value) if value in Method.__members__ else str(value)
    raise InvalidTask(f"a method must match {METHOD.pattern}, not {shown(value)}")


def check_methods(values: object, what: str) -> tuple[str, ...]:
    """Return several methods' names, each once, in order.

    :param values: an iterable of names, not empty.
    :param what: how a message calls it.
    :raises InvalidTask: for anything else.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidTask(f"{what} must be a list of methods, not {shown(values)}")
    methods = tuple(dict.fromkeys(check_method(value) for value in values))
    if not methods:
        raise InvalidTask(f"{what} must name at least one method")
    return methods


def check_priority(value: object) -> int:
    """Return a priority as a plain integer.

    :raises InvalidTask: if it is no integer within ±2^31.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= PRIORITY_LIMIT:
        return int(value)
    raise InvalidTask(f"priority must be an integer within ±2^31, not {shown(value)}")


def in_seconds(value: object) -> float | None:
    """Return a duration, a number or a ``timedelta``, in seconds; ``None`` if it is neither."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        # No float holds 10**400: as a duration it is as unusable as infinity.
        return float(value) if abs(value) < 10**18 else math.inf
    return None


def shown(value: object) -> str:
    """Return the start of a value's ``repr``, for messages about it."""
    try:
        return f"{value!r:.100}"
    except ValueError:
        # An integer of over 4,300 digits has no repr.
        return f"a value of type {type(value).__name__}"


def check_seconds(value: object, what: str, *, maximum: float) -> float:
    """Return a duration in seconds.

    :param value: a number of seconds or a ``timedelta``.
    :param what: how a message calls it.
    :param maximum: the longest one allowed, in seconds.
    :raises InvalidTask: if it is not between a millisecond and ``maximum``.
    """
    seconds = in_seconds(value)
    if seconds is not None and 0.001 <= seconds <= maximum:
        return seconds
    raise InvalidTask(f"{what} must be 0.001 to {maximum:.0f} seconds, not {shown(value)}")


def check_recipient(value: object) -> Recipient:
    """Return a recipient whose addresses are usable.

    :param value: a :class:`Recipient` or a mapping of its fields.
    :raises InvalidTask: for an unknown field or an address that cannot be one.
    """
    if isinstance(value, Recipient):
        value = value.addresses()
    if not isinstance(value, Mapping):
        raise InvalidTask(f"recipient must be a mapping or a Recipient, not {type(value).__name__}")
    known = {item.name for item in fields(Recipient)}
    if unknown := [name for name in value if name not in known]:
        raise InvalidTask(f"recipient has no field {shown(unknown[0])}; it has {sorted(known)}")
    given: dict[str, Any] = {name: item for name, item in value.items() if item is not None}
    return Recipient(**{name: _check_address(name, item) for name, item in given.items()})


_ADDRESS = {
    # Commas, brackets and the like would make a list of addresses of it, or a name and an address.
    "email": re.compile(r"[^@\s,;:<>()\"\\]{1,64}@[^@\s,;:<>()\"\\]{1,255}"),
    "phone_number": re.compile(r"\+?[0-9][0-9 ()./-]{2,30}", re.ASCII),
    "device_id": re.compile(r"\S(.{0,253}\S)?"),
}


def _check_address(name: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if text.isprintable() and _ADDRESS[name].fullmatch(text):
        return text
    raise InvalidTask(f"recipient: {name} is not usable as an address")
