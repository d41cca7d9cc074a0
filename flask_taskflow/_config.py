"""The frozen configuration that ``init_app`` reads from ``app.config``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from . import _providers
from ._address import read_address
from ._task import NAME, TTL_MAX, in_seconds, shown
from .errors import ConfigError

PREFIX = "TASKFLOW_"
DAY = 86400.0
#: SECRET_KEY below this many bytes is refused: 128 bits, NIST SP 800-107r1, 5.3.4.
SECRET_KEY_MIN = 16

_Parser = Callable[[Any], Any]


def _seconds(minimum: float, maximum: float = 365 * DAY, *, or_zero: bool = False) -> _Parser:
    def parse(value: object) -> float:
        seconds = in_seconds(value)
        if seconds is not None and (minimum <= seconds <= maximum or (or_zero and seconds == 0)):
            return seconds
        zero = "0 or " if or_zero else ""
        raise ValueError(f"use {zero}{minimum:.10g} to {maximum:.10g} seconds, or a timedelta")

    return parse


def _integer(minimum: int, maximum: int) -> _Parser:
    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return int(value)
        raise ValueError(f"use an integer from {minimum} to {maximum}")

    return parse


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("use True or False (in the environment true or false)")


def _policy(value: object) -> str:
    if value in ("same", "rotate"):
        return str(value)
    raise ValueError("use 'same' or 'rotate'")


def _sending(value: object) -> str:
    if value in ("inline", "background"):
        return str(value)
    raise ValueError("use 'inline' or 'background'")


def _prefix(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", value, re.ASCII):
        return value
    raise ValueError("use 1 to 64 letters, digits and _.:-")


def _url(value: object) -> str:
    read_address(value)
    return str(value)


def _queues(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(name, str) and NAME.fullmatch(name) for name in value
    ):
        return tuple(value)
    raise ValueError("use None for all, or a list of queues' names")


def _key(default: Any, parse: _Parser, *, shown: bool = True) -> Any:
    return field(default=default, repr=shown, metadata={"parse": parse})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What ``TASKFLOW_*`` says; durations in seconds. ``docs/config.md`` explains each key."""

    redis_url: str = _key("redis://localhost:6379/0", _url, shown=False)
    key_prefix: str = _key("taskflow", _prefix)
    redis_timeout: float = _key(2.0, _seconds(0.01, 300))
    redis_max_connections: int = _key(50, _integer(1, 100_000))
    task_ttl: float = _key(600.0, _seconds(1, TTL_MAX))
    retention: float = _key(DAY, _seconds(60))
    max_data_size: int = _key(65536, _integer(2, 2**24))
    otp_length: int = _key(6, _integer(1, 16))
    otp_ttl: float = _key(600.0, _seconds(1, TTL_MAX))
    otp_max_attempts: int = _key(5, _integer(1, 100))
    allow_weak_codes: bool = _key(False, _boolean)
    resend_policy: str = _key("same", _policy)
    resend_cooldown: float = _key(30.0, _seconds(0.001, DAY, or_zero=True))
    resend_cooldown_max: float = _key(600.0, _seconds(0.001, DAY))
    max_sends: int = _key(5, _integer(1, 1000))
    max_recipient_updates: int = _key(3, _integer(0, 1000))
    recipient_max_sends: int = _key(5, _integer(1, 1_000_000))
    recipient_window: float = _key(600.0, _seconds(1))
    recipient_max_failures: int = _key(20, _integer(1, 1_000_000))
    recipient_failure_window: float = _key(DAY, _seconds(1))
    job_timeout: float = _key(300.0, _seconds(0.001))
    callback_threads: int = _key(4, _integer(1, 1000))
    lease: float = _key(30.0, _seconds(0.5, DAY))
    poll: float = _key(5.0, _seconds(0.05, 3600))
    max_lost: int = _key(3, _integer(0, 1000))
    backoff_max: float = _key(3600.0, _seconds(0.001, TTL_MAX))
    drain: float = _key(20.0, _seconds(0.001, DAY, or_zero=True))
    dead_retention: float = _key(TTL_MAX, _seconds(60))
    queues: tuple[str, ...] | None = _key(None, _queues)
    send: str = _key("inline", _sending)
    send_timeout: float = _key(10.0, _seconds(0.1, 300))
    send_attempts: int = _key(3, _integer(1, 100))
    send_backoff: float = _key(1.0, _seconds(0.001, DAY))
    send_threads: int = _key(4, _integer(1, 1000))
    smtp_url: str | None = _key(None, _providers.smtp_url, shown=False)
    email_sender: str | None = _key(None, _providers.email_sender)
    sms_url: str | None = _key(None, _providers.sms_url, shown=False)
    phone_region: str | None = _key(None, _providers.phone_region)
    webotp_host: str | None = _key(None, _providers.webotp_host)
    locale: str = _key("en", _providers.locale)
    autostart: bool = _key(True, _boolean)
    eager: bool = _key(False, _boolean)

    @property
    def sends_in_background(self) -> bool:
        """Whether a code is stored to be sent, not sent at once."""
        return self.send == "background"

    @classmethod
    def read(cls, mapping: Mapping[str, Any]) -> Config:
        """Return the configuration of an app.

        :param mapping: ``app.config``.
        :raises ConfigError: for an unknown or unusable key, naming it and the cure.
        """
        known = {PREFIX + item.name.upper(): item for item in fields(cls)}
        given = {key: value for key, value in mapping.items() if key.startswith(PREFIX)}
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise ConfigError(f"{key} is not a setting of Flask-TaskFlow{_similar(key, known)}")
            values[known[key].name] = _parsed(key, value, known[key])
        config = cls(**values)
        config._check()
        return config

    def _check(self) -> None:
        if not self.allow_weak_codes:
            # NIST SP 800-63B-4, 3.1.3.2: six digits at least, ten minutes at most.
            if self.otp_length < 6:
                raise ConfigError(
                    f"TASKFLOW_OTP_LENGTH = {self.otp_length} makes codes too easy to guess: use 6 or "
                    "more, or set TASKFLOW_ALLOW_WEAK_CODES = True if you know why"
                )
            if self.otp_ttl > 600:
                raise ConfigError(
                    f"TASKFLOW_OTP_TTL = {self.otp_ttl:.10g} keeps codes alive too long: use 600 or less, "
                    "or set TASKFLOW_ALLOW_WEAK_CODES = True if you know why"
                )
        if self.resend_cooldown > self.resend_cooldown_max:
            raise ConfigError(
                "TASKFLOW_RESEND_COOLDOWN is longer than TASKFLOW_RESEND_COOLDOWN_MAX: raise the latter"
            )


def _parsed(key: str, value: object, item: Field[Any]) -> Any:
    try:
        return item.metadata["parse"](value)
    except ValueError as error:
        given = "" if not item.repr else f" = {shown(value)}"
        raise ConfigError(f"{key}{given} cannot be used: {error}") from None


def _similar(key: str, known: Mapping[str, Any]) -> str:
    # Without the prefix, which makes any two keys look alike.
    names = [name.removeprefix(PREFIX) for name in known]
    close = difflib.get_close_matches(key.removeprefix(PREFIX).upper(), names, n=1, cutoff=0.7)
    return f"; did you mean {PREFIX}{close[0]}?" if close else "; docs/config.md lists them all"


def read_secrets(mapping: Mapping[str, Any], *, lenient: bool) -> tuple[list[bytes], str | None]:
    """Return ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS`` as bytes, and a warning if they are weak.

    :param mapping: ``app.config``.
    :param lenient: whether a short key is only worth a warning (in debug or testing).
    :raises ConfigError: if there is none, one of another type, or (unless lenient) a short one.
    """
    fallbacks = mapping.get("SECRET_KEY_FALLBACKS") or []
    if not isinstance(fallbacks, list | tuple):
        raise ConfigError("SECRET_KEY_FALLBACKS must be a list of keys, the newest first")
    keys = [mapping.get("SECRET_KEY"), *fallbacks]
    if not keys[0]:
        raise ConfigError("SECRET_KEY is not set: codes are derived from it; set 16 random bytes or more")
    if not all(isinstance(key, str | bytes) and key for key in keys):
        raise ConfigError("SECRET_KEY and each of SECRET_KEY_FALLBACKS must be a str or bytes")
    raw = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
    if min(map(len, raw)) >= SECRET_KEY_MIN:
        return raw, None
    problem = (
        f"SECRET_KEY (or a fallback) is shorter than {SECRET_KEY_MIN} bytes: make one with "
        "python -c 'import secrets; print(secrets.token_hex())'"
    )
    if not lenient:
        raise ConfigError(problem)
    return raw, problem
