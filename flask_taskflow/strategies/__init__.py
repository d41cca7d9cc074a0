"""How codes reach people: what a strategy is, and those that come with the package."""

from ._base import BaseStrategy, Channel, Channels
from ._device import SigningStrategy, SmartOTPStrategy
from ._email import EmailStrategy
from ._local import ConsoleStrategy, Message, OutboxStrategy
from ._sms import SMSStrategy

__all__ = [
    "BaseStrategy",
    "Channel",
    "Channels",
    "ConsoleStrategy",
    "EmailStrategy",
    "Message",
    "OutboxStrategy",
    "SMSStrategy",
    "SigningStrategy",
    "SmartOTPStrategy",
]
