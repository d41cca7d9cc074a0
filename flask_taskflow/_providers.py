"""What the settings of the built-in strategies may look like: mail servers, gateways, languages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.policy import default as policy
from typing import Any
from urllib.parse import unquote, urlsplit

#: Where the telephone number goes in ``TASKFLOW_SMS_URL``.
TO = "{to}"

_PORTS = {"smtp": 587, "smtps": 465}
_HOST = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
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
    return MailServer(parts.hostname, port or _PORTS[parts.scheme], security, _login(parts))


def _login(parts: Any) -> tuple[str, str] | None:
    if parts.username is None:
        return None
    login = unquote(parts.username), unquote(parts.password or "")
    # smtplib encodes both as ASCII, and RFC 4616 knows no NUL inside either.
    if all(login) and all(word.isascii() and word.isprintable() for word in login):
        return login
    raise ValueError("it needs a user and a password, percent-encoded printable ASCII")


def read_sender(value: str) -> Address:
    """Return the mailbox that ``TASKFLOW_EMAIL_SENDER`` names.

    :raises ValueError: if it is not exactly one.
    """
    header: Any = policy.header_factory("From", value if value.isprintable() else "")
    if len(header.addresses) == 1 and not header.defects:
        address: Address = header.addresses[0]
        if address.username and address.domain:
            return address
    raise ValueError("use one address: 'codes@example.com' or 'Example <codes@example.com>'")


def smtp_url(value: object) -> str | None:
    """Check ``TASKFLOW_SMTP_URL``."""
    if value is None or (isinstance(value, str) and read_mail_server(value)):
        return value
    raise ValueError("use smtp://… or smtps://…")


def email_sender(value: object) -> str | None:
    """Check ``TASKFLOW_EMAIL_SENDER``."""
    if value is None or (isinstance(value, str) and read_sender(value)):
        return value
    raise ValueError("use one address: 'codes@example.com' or 'Example <codes@example.com>'")


def sms_url(value: object) -> str | None:
    """Check what can be checked of ``TASKFLOW_SMS_URL`` without Apprise."""
    if value is None or (isinstance(value, str) and value.isprintable() and "://" in value and TO in value):
        return value
    raise ValueError(f"use an Apprise URL in which {TO} stands for the telephone number")


def phone_region(value: object) -> str | None:
    """Check ``TASKFLOW_PHONE_REGION``."""
    if value is None or (isinstance(value, str) and _REGION.fullmatch(value)):
        return value
    raise ValueError("use None, or the two capital letters of a country (ISO 3166-1)")


def webotp_host(value: object) -> str | None:
    """Check ``TASKFLOW_WEBOTP_HOST``."""
    if value is None or (isinstance(value, str) and _HOST.fullmatch(value)):
        return value
    raise ValueError("use the host of your pages in lower case, without https:// and port")


def locale(value: object) -> str:
    """Check ``TASKFLOW_LOCALE``, or the locale of a task."""
    if isinstance(value, str) and _LOCALE.fullmatch(value):
        return value
    raise ValueError("use the name of a language, as 'en' or 'vi_VN'")
