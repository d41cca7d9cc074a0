"""Strategies that send nothing: for development and tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

from .._inert import inert
from .._otp import OTP
from .._tasks import Task
from ._base import BaseStrategy


class ConsoleStrategy(BaseStrategy):
    """Print who gets which code to the standard error. For development only: it shows codes."""

    def send(self, task: Task[Any], otp: str) -> None:
        """Print the code."""
        to = ", ".join(task.recipient.addresses().values())
        about = f" ({task.summary})" if task.summary else ""
        print(inert(f"[taskflow] code {otp} for {to or 'you'}{about}"), file=sys.stderr, flush=True)


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
