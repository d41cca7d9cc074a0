"""What a task is: the types that users see, and how an address is masked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ._course import CallbackOutcome, Outcome, worst

T = TypeVar("T")

#: Where a task's data keeps the request that waits for its code.
GATED = "taskflow.gate"


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
    REJECTED = "REJECTED"


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
        pairs = ((name, getattr(self, name)) for name in ADDRESS_FIELDS)
        return {name: value for name, value in pairs if value is not None}

    def masked(self) -> dict[str, str]:
        """Return the addresses that are there, by field, fit for logs."""
        return {name: mask(value) for name, value in self.addresses().items()}

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.masked().items())
        return f"Recipient({inner})"


#: The names of a recipient's fields.
ADDRESS_FIELDS = tuple(item.name for item in fields(Recipient))


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
    :param attempts_left: wrong codes that it bears, of a pending task as a call answered it; else ``None``.
    :param resend_after: by which methods a code may be asked for, and in how many seconds, when it was read.
    :param codes: by which methods it has a code, when it was read; ``False`` if that is yet to go out.
    :param holder: the secret of whom the task is for, only in what ``add_task(holder=True)`` returns. Not in
        the ``repr``.
    :param owner: whose task it is, as the app names people, or ``None``. Not in the ``repr``.
    :param next_url: where its person goes on after the code, or ``None``. Not in the ``repr``.
    :param run_at: when its callbacks run, if that is not as soon as it is verified.
    :param send_at: when its first codes go out, if that is not at once; its time to live begins then.
    :param remind: how many seconds before its end its app is reminded of it, the first reminder first.
    :param outcomes: what became of its callbacks when it was read, by name; empty before it is verified.
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
    attempts_left: int | None = field(default=None, compare=False)
    resend_after: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    codes: Mapping[str, bool] = field(default_factory=dict, compare=False, repr=False)
    holder: str | None = field(default=None, repr=False)
    owner: str | None = field(default=None, repr=False)
    next_url: str | None = field(default=None, repr=False)
    run_at: datetime | None = None
    send_at: datetime | None = None
    remind: tuple[float, ...] = ()
    outcomes: Mapping[str, CallbackOutcome] = field(default_factory=dict, compare=False, repr=False)

    @property
    def outcome(self) -> Outcome | None:
        """The worst of its outcomes; ``"none"`` if no callback was registered, ``None`` before the code."""
        return worst(self.outcomes.values()) if self.status is Status.SUCCESS else None


def is_gated(task: Any) -> bool:
    """Tell whether a task, or a new one, keeps a request: no callback follows it, but that request."""
    return isinstance(task.data, dict) and GATED in task.data


def mask(address: str) -> str:
    """Return an address fit for logs: ``fo****@example.com``, ``+12****10``.

    A name of one letter is hidden wholly, one of two or three shows its first.
    """
    name, at, domain = address.rpartition("@")
    if at:
        shown = 0 if len(name) < 2 else 1 if len(name) < 4 else 2
        return f"{name[:shown]}****@{domain}"
    if len(address) < 8:
        return "****"
    return f"{address[:3]}****{address[-2:]}"


def mask_all(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping of fields to masked addresses."""
    return {field: mask(address) if address else "" for field, address in addresses.items()}
