"""What a strategy is, and what this package reads off one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import EllipsisType
from typing import Any, ClassVar

from .._config.config import current_config
from .._tasks import Method, Recipient, Task
from ..errors import ConfigError

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

    def pretend(self, task: Task[Any], otp: str, now: datetime) -> None:
        """Take as long as :meth:`check` for a wrong code, where there is no task that takes one.

        Without it, the time of the answer tells whether an id is of a pending task. Override it if `check`
        changes nothing, and is quick: ``self.check(task, otp, now)`` will do.

        :param task: a task that is not there, to a device that is not there.
        :param otp: what was typed. Do not log it.
        :param now: this process's time.
        """

    def normalise(self, address: str) -> str:
        """Return an address in one form, however it is spelt: tasks and limits keep that.

        Override it where one address has several spellings. It is called inside the app context, for
        each address of its field, before anything is stored or sent.

        :raises InvalidTask: raise it if nothing can be sent there.
        """
        return address

    def check_data(self, data: object) -> None:
        """Refuse a task's data that cannot be confirmed by this method.

        Override it where codes depend on the data. It is called before anything is stored or sent.

        :param data: any JSON value, as the app gave it.
        :raises InvalidTask: raise it; the message says what to change.
        """

    def check_settings(self) -> None:
        """Refuse settings of the app with which nothing can be sent. Override it where a strategy has some.

        It is called inside the app context: by ``init_app`` or, later, by ``register_strategy``, unless the
        app is ``TESTING``; and by the commands ``worker``, ``doctor`` and ``check``. Open no connection.

        :raises ConfigError: raise it; the message names the setting and the cure.
        """

    def send(self, task: Task[Any], otp: str) -> str | None:
        """Send a code; raise anything if that fails. Override it, or :meth:`check`.

        :param task: the task; ``task.recipient`` holds the addresses.
        :param otp: the code, a ``str`` that hides from ``repr``. Do not log it.
        :return: what the provider calls the message, for the audit log; ``None`` if that is not known. It is
            left out if it is no line of at most 200 characters, or shows the code or the address.
        """
        return None


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


class Channels(dict[str, Channel]):
    """The channels of an extension, by method; in tests a code goes to an outbox instead of its strategy."""

    #: What takes codes in place of strategies, the innermost last; each tells whether it did.
    stand_ins: ClassVar[list[Callable[[Channel, Task[Any], str], bool]]] = []

    def send(self, method: str, task: Task[Any], otp: str) -> object:
        """Hand a code to a method's strategy, or to what stands in for it; return what that returns.

        :raises Exception: whatever the strategy raises.
        """
        channel, path = self[method], current_config().outbox_file
        if any(take(channel, task, otp) for take in reversed(self.stand_ins)):
            return None
        if path is None:
            return channel.strategy.send(task, otp)
        write_message(path, channel, task, otp)
        return None


def write_message(path: str, channel: Channel, task: Task[Any], otp: str) -> None:
    """Append a code to ``TASKFLOW_OUTBOX_FILE``, as one line of JSON."""
    known = task.recipient.addresses()
    addresses = [known[channel.address_field]] if channel.address_field else list(known.values())
    message = {"task": task.id, "queue": task.queue, "method": channel.method, "addresses": addresses}
    line = json.dumps({**message, "otp": str(otp)}) + "\n"
    # Written at once, so that the lines of several processes do not mix; nobody else may read it.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
