"""What hands codes to others, or makes them easy to guess: the last look before production."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from redis import SSLConnection

from .._config.config import Config
from .._config.providers import read_mail_server
from .._service import Service
from ..strategies import ConsoleStrategy, OutboxStrategy

#: Seconds. With less, a person's code may be guessed at a hundred times a month.
_WINDOW_LEAST = 3 * 3600.0
#: What Apprise sends to a gateway of one's own by, over plain HTTP.
_PLAIN = ("json", "xml", "form")
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Exposure(NamedTuple):
    """One thing that is exposed.

    :param bad: whether it cannot be meant.
    :param what: what it is.
    :param clause: what forbids it, in OWASP ASVS 5.0 or NIST SP 800-63B-4.
    :param cure: what to do.
    """

    bad: bool
    what: str
    clause: str
    cure: str


def exposures(service: Service, *, strict: bool = False) -> Iterator[Exposure]:
    """Yield what an app exposes.

    :param strict: look also at an app in debug or in testing, where all of it may be meant.
    """
    if service.app.debug and strict:
        cure = "run it without debug"
        yield Exposure(True, "the app is in debug: its pages show code and values", "ASVS 13.4.2", cure)
    if strict or not (service.app.debug or service.app.testing):
        yield from _of_strategies(service)
        yield from _of_settings(service.config)
        yield from _of_redis(service)


def _of_strategies(service: Service) -> Iterator[Exposure]:
    shows = {ConsoleStrategy: "prints each code", OutboxStrategy: "keeps each code in memory"}
    for method, channel in service.channels.items():
        for kind, does in shows.items():
            if isinstance(channel.strategy, kind):
                what = f"{method} has a {kind.__name__}: it {does}"
                yield Exposure(True, what, "ASVS 16.2.5", "register one that sends it")


def _of_settings(config: Config) -> Iterator[Exposure]:
    if config.eager:
        what = "TASKFLOW_EAGER runs callbacks in the request that verifies: it is for tests"
        yield Exposure(True, what, "ASVS 13.4.2", "unset it")
    for name, value, most, what, clause in (
        ("OTP_TTL", config.otp_ttl, 600, "codes live longer than ten minutes", "NIST 3.1.3.2"),
        ("OTP_MAX_ATTEMPTS", config.otp_max_attempts, 10, "many guesses at one code", "NIST 3.2.2"),
        (
            "RECIPIENT_MAX_FAILURES", config.recipient_max_failures, 100,
            "more wrong codes than a person may have", "NIST 3.2.2",
        ),
    ):  # fmt: skip
        if value > most:
            yield Exposure(False, f"TASKFLOW_{name} = {value:g}: {what}", clause, f"use {most} or less")
    if config.recipient_failure_window < _WINDOW_LEAST:
        what = (
            f"TASKFLOW_RECIPIENT_FAILURE_WINDOW = {config.recipient_failure_window:g}: guessing goes on soon"
        )
        yield Exposure(
            False, what, "NIST 3.2.2", "use a day: after the limit it leaves one guess in three days"
        )
    if config.otp_length < 6:
        what = f"TASKFLOW_OTP_LENGTH = {config.otp_length}: weak codes, fewer than six digits"
        yield Exposure(False, what, "NIST 3.1.3.2", "use 6 or more")
    if config.smtp_url is not None and read_mail_server(config.smtp_url).security == "none":
        what = "TASKFLOW_SMTP_URL sends codes without TLS"
        yield Exposure(False, what, "ASVS 12.3.1", "leave out starttls=no")
    if (config.sms_url or "").partition("://")[0].lower() in _PLAIN:
        what = "TASKFLOW_SMS_URL sends codes without TLS"
        yield Exposure(False, what, "ASVS 12.3.1", "write an s behind its scheme, as in jsons://")
    if "*" in config.frame_ancestors.split():
        what = "TASKFLOW_FRAME_ANCESTORS lets every site frame the page for a code"
        yield Exposure(False, what, "ASVS 3.4.6", "name the sites that may")


def _of_redis(service: Service) -> Iterator[Exposure]:
    pool = getattr(service.client, "connection_pool", None)
    if pool is None or "path" in pool.connection_kwargs:
        return
    settings = pool.connection_kwargs
    if not (settings.get("password") or settings.get("credential_provider")):
        what = "no password for Redis: whoever reaches it may do as the default user does"
        cure = "give the app a user of its own, with the rule of docs/redis.md"
        yield Exposure(False, what, "ASVS 13.2.1", cure)
    if settings.get("host", _LOCAL[0]) not in _LOCAL and not issubclass(pool.connection_class, SSLConnection):
        what = f"the connection to Redis on {settings['host']} has no TLS: it carries addresses and data"
        yield Exposure(False, what, "ASVS 12.3.1", "write rediss:// in TASKFLOW_REDIS_URL")
