"""How long and how often, as far as the steps must know: the values that they take, times in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from .._config.config import Config


class Limits(NamedTuple):
    """The limits of tasks and codes; ``docs/config.md`` explains each.

    :param sending: those of sending, as ``take_limits`` in ``lua/shared/limits.lua`` takes them.
    """

    retention: int
    otp_ttl: int
    otp_max_attempts: int
    max_sends: int
    resend_cooldown: int
    max_recipient_updates: int
    recipient_failure_window: int
    recipient_max_failures: int
    sending: Sequence[int]

    @classmethod
    def read(cls, config: Config) -> Self:
        """Return the limits that a configuration sets."""
        return cls(
            retention=_in_ms(config.retention),
            otp_ttl=_in_ms(config.otp_ttl),
            otp_max_attempts=config.otp_max_attempts,
            max_sends=config.max_sends,
            resend_cooldown=_in_ms(min(config.resend_cooldown, config.resend_cooldown_max)),
            max_recipient_updates=config.max_recipient_updates,
            recipient_failure_window=_in_ms(config.recipient_failure_window),
            recipient_max_failures=config.recipient_max_failures,
            sending=(
                _in_ms(config.otp_ttl),
                config.max_sends,
                config.recipient_max_sends,
                _in_ms(config.recipient_window),
                config.recipient_max_failures,
                _in_ms(config.recipient_failure_window),
                _in_ms(config.resend_cooldown),
                _in_ms(config.resend_cooldown_max),
            ),
        )


class LeaseTerms(NamedTuple):
    """The terms of leases and dead letters; ``docs/config.md`` explains each."""

    lease: int
    poll: int
    max_lost: int
    dead_retention: int
    redis_timeout: int

    @classmethod
    def read(cls, config: Config) -> Self:
        """Return the terms that a configuration sets."""
        return cls(
            lease=_in_ms(config.lease),
            poll=_in_ms(config.poll),
            max_lost=config.max_lost,
            dead_retention=_in_ms(config.dead_retention),
            redis_timeout=_in_ms(config.redis_timeout),
        )


def _in_ms(seconds: float) -> int:
    return int(seconds * 1000)
