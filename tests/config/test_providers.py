"""The settings of those who deliver codes: mail servers, senders, gateways, regions and languages."""

from __future__ import annotations

from email.headerregistry import Address
from typing import Any

import pytest

from flask_taskflow import ConfigError
from flask_taskflow._config.config import Config
from flask_taskflow._config.providers import MailServer, read_mail_server, read_sender
from tests.support.cases import each


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", MailServer("mail.example.com", 587, "starttls")),
        ("smtps://mail.example.com/", MailServer("mail.example.com", 465, "tls")),
        ("smtp://localhost:25?starttls=no", MailServer("localhost", 25, "none")),
        ("smtps://a:p%40ss%2Fw%3A%3F%23%25@[::1]:4650", MailServer("::1", 4650, "tls", ("a", "p@ss/w:?#%"))),
    ],
)
def test_url_of_a_mail_server_is_read(url: str, expected: MailServer) -> None:
    assert read_mail_server(url) == expected


@pytest.mark.parametrize(
    "sender", ["codes@bank.example", "Bank <codes@bank.example>", '"A, B" <c@d.example>']
)
def test_sender_is_one_mailbox(sender: str) -> None:
    assert isinstance(read_sender(sender), Address)


SMTP_URLS = """
http://a:hunter2@mail.example.com smtp://a:hunter2@ smtp://hunter2@mail.example.com
smtp://:hunter2@mail.example.com smtp://a:12#hunter2@mail.example.com
smtp://a:hunter2@mail.example.com:0 smtp://a:hunter2@mail.example.com:port
smtp://a:hunter2@mail.example.com/path smtps://mail.example.com?starttls=no
smtp://a:hunter2@mail.example.com?starttls=no smtp://a:hunter2@mail.example.com?starttls=maybe
smtp://a:hunter2%C3%A9@mail.example.com smtp://a:hunter2%0D%0A@mail.example.com
"""
SENDERS: list[Any] = ["", "codes", "a@b.example, c@d.example", "Bank <codes>", 7, "a b@c"]
SENDERS += ["a@b.example\r\nBcc: c@d.example"]
SMS_URLS: list[Any] = ["json://localhost", "{to}", "", 7, b"json://{to}", "json://:hunter2@h/{to}\r\n"]
HOSTS: list[Any] = ["https://bank.example", "bank.example:443", "Bank.example", "bank..example", "", 7]
REFUSED: dict[tuple[str, str], list[Any]] = {
    ("SMTP_URL", "cannot be used: "): [*SMTP_URLS.split(), "", b"smtp://mail.example.com"],
    ("EMAIL_SENDER", "= .*use one address"): SENDERS,
    ("SMS_URL", "cannot be used: use an Apprise URL"): SMS_URLS,
    ("WEBOTP_HOST", "= .*use the host of your pages"): HOSTS,
    ("PHONE_REGION", "= .*two capital letters"): ["vn", "VNM", "", 84],
    ("LOCALE", "= .*the name of a language"): ["", "e", "en US", "../vi", None, 7],
}


@pytest.mark.parametrize(("setting", "value"), each(REFUSED))
def test_setting_when_bad_is_refused_without_its_password(setting: tuple[str, str], value: object) -> None:
    name, reason = setting
    with pytest.raises(ConfigError, match=rf"^TASKFLOW_{name} {reason}") as caught:
        Config.read({f"TASKFLOW_{name}": value})

    assert "hunter2" not in str(caught.value)
