"""How codes reach people: the base class, and two strategies for development and tests."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from ._otp import OTP
from ._task import Method, Recipient
from .errors import ConfigError

if TYPE_CHECKING:
    from ._task import Task

_PRESET = {
    Method.EMAIL: "email",
    Method.SMS: "phone_number",
    Method.SMART_OTP: "device_id",
}


class BaseStrategy:
    """Send codes by one method. Subclass it and register it with ``register_strategy``.

    A subclass that overrides :meth:`generate` makes its own codes, and should say in
    :attr:`code_pattern` what they look like. The others' codes are derived from ``SECRET_KEY``, so that
    a resend can repeat the code although nothing recoverable is stored.
    """

    #: The recipient's field that this strategy sends to, ``None`` if it needs none. ``...`` means the
    #: field of the built-in method it is registered for, and none for another method.
    address: str | EllipsisType | None = ...
    #: What a code may look like once spaces, hyphens and other scripts' digits are made plain: a
    #: regular expression. ``None`` means ``TASKFLOW_OTP_LENGTH`` digits.
    code_pattern: str | None = None

    def generate(self, task: Task[Any]) -> str:
        """Return a new code for a task. Override it only for codes of your own making.

        :param task: the pending task, without a code.
        """
        raise NotImplementedError("the extension derives this strategy's codes")

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        """Tell whether a code is right that neither this package nor ``generate`` made.

        Override it only for such codes; :meth:`send` is then called with an empty one, and may be left
        out. The attempt is counted before.

        :param task: the pending task, without a code.
        :param otp: what was typed. Do not log it.
        :param now: the Redis server's time.
        :return: ``None`` if it is wrong, else a name for this use of it: each is accepted once for an
            address, over all tasks, queues and processes, for a day.
        """
        raise NotImplementedError("the extension checks this strategy's codes")

    def normalise(self, address: str) -> str:
        """Return an address in one form, however it is spelt: tasks and limits keep that.

        Override it where one address has several spellings. It is called inside the app context, for
        each address of its field, before anything is stored or sent.

        :raises InvalidTask: raise it if nothing can be sent there.
        """
        return address

    def send(self, task: Task[Any], otp: str) -> None:
        """Send a code; raise anything if that fails. Override it, or :meth:`check`.

        :param task: the task; ``task.recipient`` holds the addresses.
        :param otp: the code, a ``str`` that hides from ``repr``. Do not log it.
        """


@dataclass(frozen=True)
class Channel:
    """A strategy as it was registered: which method it serves and which address it needs.

    :param method: the method's name.
    :param strategy: the object that sends.
    :param address_field: the recipient's field it sends to, or ``None``.
    :param pattern: what a typed code may look like, or ``None`` for the configured digits.
    :param derives: whether the extension derives its codes.
    :param checks: whether the strategy checks codes that are made elsewhere.
    """

    method: str
    strategy: BaseStrategy
    address_field: str | None = field(init=False)
    pattern: re.Pattern[str] | None = field(init=False)
    derives: bool = field(init=False)
    checks: bool = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.strategy, type) or not isinstance(self.strategy, BaseStrategy):
            raise ConfigError(f"the strategy for {self.method} must be a BaseStrategy")
        address = self.strategy.address
        known = _PRESET.get(Method(self.method)) if self.method in Method.__members__ else None
        chosen = known if isinstance(address, EllipsisType) else address
        if chosen is not None and chosen not in Recipient.__dataclass_fields__:
            raise ConfigError(
                f"the strategy for {self.method} has address = {chosen!r}, which is no field of a "
                f"recipient; use one of {sorted(Recipient.__dataclass_fields__)} or None"
            )
        own = type(self.strategy)
        checks = own.check is not BaseStrategy.check
        if own.send is BaseStrategy.send and not checks:
            raise ConfigError(f"the strategy for {self.method}, {own.__name__}, must define send(task, otp)")
        object.__setattr__(self, "address_field", chosen)
        object.__setattr__(self, "pattern", self._compiled())
        object.__setattr__(self, "derives", own.generate is BaseStrategy.generate and not checks)
        object.__setattr__(self, "checks", checks)

    def _compiled(self) -> re.Pattern[str] | None:
        pattern = self.strategy.code_pattern
        try:
            return None if pattern is None else re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"the strategy for {self.method} has a code_pattern that is no regular expression: {error}"
            ) from error

    def reaches(self, recipient: Recipient) -> bool:
        """Tell whether a recipient has the address that this method needs."""
        return self.address_field is None or getattr(recipient, self.address_field) is not None

    def address(self, recipient: Recipient) -> str:
        """Return the address that a code goes to, empty if the method needs none."""
        return "" if self.address_field is None else getattr(recipient, self.address_field) or ""


class ConsoleStrategy(BaseStrategy):
    """Print who gets which code to the standard error. For development only: it shows codes."""

    def send(self, task: Task[Any], otp: str) -> None:
        """Print the code."""
        to = ", ".join(task.recipient.addresses().values())
        about = f" ({task.summary})" if task.summary else ""
        print(f"[taskflow] code {otp} for {to or 'you'}{about}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Message:
    """A code as an :class:`OutboxStrategy` kept it.

    :param task: the task it confirms.
    :param addresses: where it went: one, unless the strategy does not know its field.
    :param otp: the code.
    """

    task: Task[Any]
    addresses: tuple[str, ...]
    otp: str = field(repr=False)


class OutboxStrategy(BaseStrategy):
    """Keep messages in a list instead of sending them. For tests and examples.

    :param address: the recipient's field, as in :class:`BaseStrategy`.
    :param messages: the list to append to; strategies may share one.
    """

    def __init__(
        self,
        address: str | EllipsisType | None = ...,
        *,
        messages: list[Message] | None = None,
    ) -> None:
        self.address = address
        self.messages: list[Message] = [] if messages is None else messages

    def send(self, task: Task[Any], otp: str) -> None:
        """Keep the code as a :class:`Message`."""
        addresses = task.recipient.addresses()
        if isinstance(self.address, str):
            addresses = {self.address: addresses[self.address]}
        self.messages.append(Message(task, tuple(addresses.values()), OTP(otp)))
