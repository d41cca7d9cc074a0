"""The frozen configuration that ``init_app`` reads from ``app.config``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from flask import Flask, current_app

from .._checks import PATTERN, TTL_MAX, in_seconds, shown
from .._tasks import Recipient
from ..errors import ConfigError
from . import providers
from .redis_url import read_address
from .secret_keys import MAKE_ONE, SECRET_KEY_MIN, Secret, check_keys, read_keys

PREFIX = "TASKFLOW_"
_CONFIG = "taskflow.config"
DAY = 86400.0

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


def _check_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("use True or False (in the environment true or false)")


def _one_of(*words: str) -> _Parser:
    def parse(value: object) -> str:
        if value in words:
            return str(value)
        raise ValueError(f"use {' or '.join(map(repr, words))}")

    return parse


def _check_prefix(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", value, re.ASCII):
        return value
    raise ValueError("use 1 to 64 letters, digits and _.:-")


def _check_channel(value: object) -> str | None:
    if value is None or (isinstance(value, str) and re.fullmatch(r"[!-~]{1,200}", value)):
        return value
    raise ValueError("use 'task_verified', another channel's name without blanks, or None")


def _check_url(value: object) -> str:
    read_address(value)
    return str(value)


def _check_queues(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(name, str) and PATTERN.fullmatch(name) for name in value
    ):
        return tuple(value)
    raise ValueError("use None for all, or a list of queues' names, in which * stands for anything")


def _check_hosts(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(name, str) and _HOST.fullmatch(name) for name in value
    ):
        return tuple(name.lower() for name in value)
    raise ValueError("use a list of hosts, each with its port if it has one, such as 'www.example.com'")


_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?", re.ASCII)


def _check_fields(value: object) -> tuple[str, ...]:
    known = Recipient.__dataclass_fields__
    if isinstance(value, list | tuple) and all(isinstance(name, str) and name in known for name in value):
        return tuple(value)
    raise ValueError(f"use a list of fields of a recipient: {', '.join(known)}")


def _check_ancestors(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-+\--:<-~]+(?: [!-+\--:<-~]+)*", value):
        return value
    raise ValueError("use 'none' or 'self', in quotes of their own, or origins with blanks between them")


def _check_path(value: object) -> str | None:
    if value is None or (isinstance(value, str) and os.path.isabs(value)):
        return value
    raise ValueError("use the absolute path of a file, or None")


def _key(default: Any, parse: _Parser, *, shown: bool = True) -> Any:
    return field(default=default, repr=shown, metadata={"parse": parse})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What ``TASKFLOW_*`` says; durations in seconds. ``docs/config.md`` explains each key."""

    redis_url: str = _key("redis://localhost:6379/0", _check_url, shown=False)
    key_prefix: str = _key("taskflow", _check_prefix)
    keys: Mapping[str, Any] | None = _key(None, check_keys, shown=False)
    redis_timeout: float = _key(2.0, _seconds(0.01, 300))
    redis_max_connections: int = _key(50, _integer(1, 100_000))
    task_ttl: float = _key(600.0, _seconds(1, TTL_MAX))
    retention: float = _key(DAY, _seconds(60))
    max_data_size: int = _key(65536, _integer(2, 2**24))
    next_hosts: tuple[str, ...] = _key((), _check_hosts)
    otp_length: int = _key(6, _integer(1, 16))
    otp_ttl: float = _key(600.0, _seconds(1, TTL_MAX))
    otp_max_attempts: int = _key(5, _integer(1, 100))
    allow_weak_codes: bool = _key(False, _check_boolean)
    resend_policy: str = _key("same", _one_of("same", "rotate"))
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
    health_oldest: float = _key(300.0, _seconds(1, DAY))
    dead_retention: float = _key(TTL_MAX, _seconds(60))
    queues: tuple[str, ...] | None = _key(None, _check_queues)
    send: str = _key("inline", _one_of("inline", "background"))
    send_timeout: float = _key(10.0, _seconds(0.1, 300))
    send_backoff: float = _key(1.0, _seconds(0.001, DAY))
    send_backoff_max: float = _key(30.0, _seconds(0.001, DAY))
    send_fallback: float = _key(60.0, _seconds(0.001, TTL_MAX, or_zero=True))
    send_threads: int = _key(4, _integer(1, 1000))
    smtp_url: str | None = _key(None, providers.check_smtp_url, shown=False)
    smtp_ehlo_name: str | None = _key(None, providers.check_ehlo_name)
    email_sender: str | None = _key(None, providers.check_email_sender)
    sms_url: str | None = _key(None, providers.check_sms_url, shown=False)
    phone_region: str | None = _key(None, providers.check_phone_region)
    phone_countries: tuple[str, ...] | None = _key(None, providers.check_phone_countries)
    webotp_host: str | None = _key(None, providers.check_webotp_host)
    locale: str = _key("en", providers.check_locale)
    correctable: tuple[str, ...] = _key((), _check_fields)
    page_holder: bool = _key(True, _check_boolean)
    frame_ancestors: str = _key("'none'", _check_ancestors)
    bridge_channel: str | None = _key(None, _check_channel)
    autostart: bool = _key(True, _check_boolean)
    eager: bool = _key(False, _check_boolean)
    outbox_file: str | None = _key(None, _check_path)

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
        config._check_together()
        return config

    def check_for(self, app: Flask) -> None:
        """Refuse what would show codes where real users get them.

        :raises ConfigError: naming the key and the cure.
        """
        if self.outbox_file is not None and not (app.debug or app.testing):
            raise ConfigError(
                f"{PREFIX}OUTBOX_FILE writes codes to a file instead of sending them: it is for debug and "
                "testing, so unset it here"
            )

    def keep(self, app: Flask) -> None:
        """Let :func:`current_config` find this in an app."""
        app.extensions[_CONFIG] = self

    def _check_together(self) -> None:
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
            # NIST SP 800-63B-4, 3.2.2: no more than 100 failures in a row.
            if self.recipient_max_failures > 100:
                raise ConfigError(
                    f"TASKFLOW_RECIPIENT_MAX_FAILURES = {self.recipient_max_failures} lets codes be guessed: "
                    "use 100 or less, or set TASKFLOW_ALLOW_WEAK_CODES = True if you know why"
                )
            if self.otp_max_attempts > 10:
                raise ConfigError(
                    f"TASKFLOW_OTP_MAX_ATTEMPTS = {self.otp_max_attempts} lets codes be guessed: use 10 or "
                    "less, or set TASKFLOW_ALLOW_WEAK_CODES = True if you know why"
                )
        if (self.bridge_channel or "").startswith(f"{self.key_prefix}:"):
            raise ConfigError(
                f"TASKFLOW_BRIDGE_CHANNEL = {self.bridge_channel!r} begins like this app's own channels: use "
                "'task_verified', or another channel"
            )
        if self.resend_cooldown > self.resend_cooldown_max:
            raise ConfigError(
                "TASKFLOW_RESEND_COOLDOWN is longer than TASKFLOW_RESEND_COOLDOWN_MAX: raise the latter"
            )


def current_config() -> Config:
    """Return the configuration of the current app.

    :raises RuntimeError: if the app has no TaskFlow.
    """
    config = current_app.extensions.get(_CONFIG)
    if isinstance(config, Config):
        return config
    raise RuntimeError("this app has no TaskFlow: call taskflow.init_app(app) first")


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


def read_secrets(mapping: Mapping[str, Any], *, lenient: bool) -> tuple[list[Secret], str | None]:
    """Return the secret keys, newest first, and a warning if they are weak.

    They are those of ``TASKFLOW_KEYS``, else ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS``.

    :param mapping: ``app.config``.
    :param lenient: whether a short key is only worth a warning (in debug or testing).
    :raises ConfigError: if there is none, one of another type, or (unless lenient) a short one.
    """
    given = check_keys(mapping.get(f"{PREFIX}KEYS"))
    if given is not None:
        return read_keys(given, lenient=lenient)
    fallbacks = mapping.get("SECRET_KEY_FALLBACKS") or []
    if not isinstance(fallbacks, list | tuple):
        raise ConfigError(
            "SECRET_KEY_FALLBACKS must be a list of keys, the newest first; in the environment it is JSON, "
            "in single quotes for a shell"
        )
    keys = [mapping.get("SECRET_KEY"), *fallbacks]
    if not keys[0]:
        raise ConfigError("SECRET_KEY is not set: codes are derived from it; set 16 random bytes or more")
    if not all(isinstance(key, str | bytes) and key for key in keys):
        raise ConfigError(
            "SECRET_KEY and each of SECRET_KEY_FALLBACKS must be a str or bytes: from_prefixed_env() reads "
            "digits alone as a number"
        )
    raw = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
    if min(map(len, raw)) >= SECRET_KEY_MIN:
        return [*raw], None
    problem = f"SECRET_KEY (or a fallback) is shorter than {SECRET_KEY_MIN} bytes: {MAKE_ONE}"
    if not lenient:
        raise ConfigError(problem)
    return [*raw], problem
