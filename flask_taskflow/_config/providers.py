"""What the settings of the built-in strategies may look like: mail servers, gateways, languages."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from email.headerregistry import Address
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from .._checks import is_text
from .._mailbox import ascii_domain, read_mailbox

#: Where the telephone number goes in ``TASKFLOW_SMS_URL``.
TO = "{to}"

_ONE_ADDRESS = "use one address: 'codes@example.com' or 'Example <codes@example.com>'"
_PORTS = {"smtp": 587, "smtps": 465}
_HOST = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
# RFC 5322, 3.4, without comments and groups: a name that may be quoted, and an address in brackets.
_SENDER = re.compile(
    r'(?:(?P<name>"(?:[^"\\]|\\.)*"|[^"(),:;<>@\[\\\]]*?)\s*<(?P<in>[^<>]+)>|(?P<bare>[^<>]+))'
)
_REGION = re.compile(r"[A-Z]{2}", re.ASCII)
_LOCALE = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class MailServer:
    """A server that takes mail, and how to talk to it.

    :param host: its name; a certificate must be for it.
    :param port: its port.
    :param security: ``tls`` from the first byte, ``starttls``, or ``none``.
    :param login: user name and password, or ``None``.
    """

    host: str
    port: int
    security: str
    login: tuple[str, str] | None = field(default=None, repr=False)


def read_mail_server(url: str) -> MailServer:
    """Return the server that ``TASKFLOW_SMTP_URL`` names.

    :raises ValueError: if it cannot be read; the text quotes nothing of it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read; quote special characters") from None
    clear = parts.query == "starttls=no"
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise ValueError("use smtp://user:password@host:587 (STARTTLS) or smtps://user:password@host:465")
    if port == 0 or not parts.hostname.isprintable() or (parts.query and not clear):
        raise ValueError("its host or port cannot be used, or it has an option other than starttls=no")
    if clear and (parts.scheme == "smtps" or parts.username):
        raise ValueError("starttls=no is for smtp:// without a user: a password would be sent in clear")
    security = "none" if clear else "tls" if parts.scheme == "smtps" else "starttls"
    host = parts.hostname if parts.hostname.isascii() else ascii_domain(parts.hostname)
    return MailServer(host, port or _PORTS[parts.scheme], security, _login(parts))


def _login(parts: Any) -> tuple[str, str] | None:
    if parts.username is None:
        return None
    login = unquote(parts.username), unquote(parts.password or "")
    # smtplib encodes both as ASCII, and RFC 4616 knows no NUL inside either.
    if all(login) and all(word.isascii() and word.isprintable() for word in login):
        return login
    raise ValueError("it needs a user and a password, percent-encoded printable ASCII")


def read_sender(value: str) -> Address:
    """Return the mailbox that ``TASKFLOW_EMAIL_SENDER`` names, its domain in ASCII form.

    :raises ValueError: if it is not exactly one that mail can be from.
    """
    found = _SENDER.fullmatch(value.strip()) if is_text(value) else None
    if found is None:
        raise ValueError(_ONE_ADDRESS)
    name = found["name"] or ""
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    try:
        local, domain = read_mailbox((found["in"] or found["bare"]).strip())
    except ValueError as error:
        raise ValueError(f"{_ONE_ADDRESS}; {error}") from None
    return Address(name, local, domain)


def check_smtp_url(value: object) -> str | None:
    """Check ``TASKFLOW_SMTP_URL``."""
    if value is None or (isinstance(value, str) and read_mail_server(value)):
        return value
    raise ValueError("use smtp://… or smtps://…")


def check_ehlo_name(value: object) -> str | None:
    """Check ``TASKFLOW_SMTP_EHLO_NAME``: a domain, or an address in brackets (RFC 5321, 4.1.3)."""
    if value is None:
        return None
    with suppress(ValueError):
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            ip_address(value[1:-1].removeprefix("IPv6:"))
            return value
        if isinstance(value, str):
            return ascii_domain(value)
    raise ValueError("use the full name of this host, as 'app.example.com', or its address as '[192.0.2.1]'")


def check_email_sender(value: object) -> str | None:
    """Check ``TASKFLOW_EMAIL_SENDER``."""
    if value is None or (isinstance(value, str) and read_sender(value)):
        return value
    raise ValueError(_ONE_ADDRESS)


def check_sms_url(value: object) -> str | None:
    """Check what can be checked of ``TASKFLOW_SMS_URL`` without Apprise."""
    if value is None or (isinstance(value, str) and value.isprintable() and "://" in value and TO in value):
        return value
    raise ValueError(f"use an Apprise URL in which {TO} stands for the telephone number")


def check_phone_region(value: object) -> str | None:
    """Check ``TASKFLOW_PHONE_REGION``."""
    if value is None or (isinstance(value, str) and _REGION.fullmatch(value)):
        return value
    raise ValueError("use None, or the two capital letters of a country (ISO 3166-1)")


def check_phone_countries(value: object) -> tuple[str, ...] | None:
    """Check ``TASKFLOW_PHONE_COUNTRIES``."""
    if value is None:
        return None
    countries = value if isinstance(value, list | tuple | set | frozenset) else ()
    if countries and all(isinstance(name, str) and _REGION.fullmatch(name) for name in countries):
        return tuple(sorted(countries))
    raise ValueError("use None for all, or a list of countries, each two capital letters (ISO 3166-1)")


def check_webotp_host(value: object) -> str | None:
    """Check ``TASKFLOW_WEBOTP_HOST``."""
    if value is None or (isinstance(value, str) and _HOST.fullmatch(value)):
        return value
    raise ValueError("use the host of your pages in lower case, without https:// and port")


def check_locale(value: object) -> str:
    """Check ``TASKFLOW_LOCALE``, or the locale of a task."""
    if isinstance(value, str) and _LOCALE.fullmatch(value):
        return value
    raise ValueError("use the name of a language, as 'en' or 'vi_VN'")
