"""Secrets as people and apps write them, and what enrols a device."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyotp
import pytest
import segno
from flask import Flask

from flask_taskflow import ConfigError, SigningStrategy, SmartOTPStrategy, TaskFlow, sign_transaction
from flask_taskflow.strategies._device import _read_secret

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
KEY = b"12345678901234567890"
GROUPS = [SECRET[at : at + 4] for at in range(0, 32, 4)]
SPELT = [
    SECRET.lower(),
    " ".join(GROUPS),
    "-".join(GROUPS).lower(),
    "\u00a0".join(GROUPS),
    "\u2011".join(GROUPS),
    "\n".join([SECRET[:16], SECRET[16:], ""]),
    f"\t{SECRET}\r\n",
    f"{SECRET}======",
    f"\u200e{SECRET}\ufeff",
    f"{' '.join(GROUPS)} ====",
]


@pytest.mark.parametrize("secret", SPELT, ids=ascii)
def test_secret_is_read_as_it_is_written(app: Flask, taskflow: TaskFlow, secret: str) -> None:
    strategy = SmartOTPStrategy({"phone": secret}.get)
    taskflow.register_strategy("SMART_OTP")(strategy)
    task = taskflow.add_task("q", allowed_methods=["SMART_OTP"], recipient={"device_id": "phone"})

    code = pyotp.TOTP(SECRET).now()
    uri = strategy.provisioning_uri(secret, account="ann", issuer="Bank")

    assert _read_secret(secret) == KEY
    assert parse_qs(urlsplit(uri).query)["secret"] == [SECRET]
    assert taskflow.verify(task.id, "SMART_OTP", code).status == "SUCCESS"


def test_device_signs_with_a_secret_in_groups() -> None:
    given: dict[str, Any] = {"task_id": "a", "data": {"to": "Bob"}, "summary": None}

    assert str(sign_transaction(" ".join(GROUPS), **given)) == str(sign_transaction(SECRET, **given))
    assert _read_secret(SigningStrategy.new_secret().lower()) != KEY


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (SECRET.replace("O", "0"), "must be base32; it has no 0, 1, 8 and 9: use"),
        (SECRET[:-1] + "1", "it has no 0, 1, 8 and 9"),
        (SECRET[:-1] + "!", "must be base32: use"),
        (SECRET[:-2], "must be base32: use"),
        (SECRET[:4] + "=" + SECRET[4:], "must be base32: use"),
        (SECRET.replace("G", "\uff27"), "must be base32: use"),
        (SECRET.replace("Z", "ß"), "must be base32: use"),
        (SECRET[:16], "must have 16 bytes or more"),
        ("", "must have 16 bytes or more"),
        (None, "must be base32: use"),
        (SECRET.encode(), "must be base32: use"),
    ],
)
def test_secret_that_is_none_is_refused_and_not_shown(secret: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        _read_secret(secret)

    assert "GEZD" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("account", "issuer", "label"),
    [
        ("ann@example.com", "Example Bank", "Example Bank:ann@example.com"),
        ("ann@example.com", "Example: Bank", "Example Bank:ann@example.com"),
        ("ann:1", "Bank", "Bank:ann 1"),
        (":ann:", "::Bank", "Bank:ann"),
        ("Nguyễn Văn A", "Ngân hàng", "Ngân hàng:Nguyễn Văn A"),
        ("علی\u200cرضا", "بانک", "بانک:علی\u200cرضا"),
        ("a/b?c&d=e%3A#", "B&B", "B&B:a/b?c&d=e%3A#"),
        ("ann\u00a0b", "Bank：全", "Bank：全:ann b"),
    ],
)
def test_label_has_one_colon(account: str, issuer: str, label: str) -> None:
    uri = urlsplit(SmartOTPStrategy().provisioning_uri(SECRET, account=account, issuer=issuer))
    path = uri.path.lstrip("/")

    assert (uri.scheme, uri.netloc, uri.fragment) == ("otpauth", "totp", "")
    assert path.count(":") == 1
    assert unquote(path) == label
    assert parse_qs(uri.query)["issuer"] == [label.partition(":")[0]]


@pytest.mark.parametrize("name", ["", " ", ":", "\u00a0", "a\nb", "\u202eann", None, 7])
def test_name_that_is_empty_or_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="the account of a device must be a line of text"):
        SmartOTPStrategy().provisioning_uri(SECRET, account=name, issuer="Bank")
    with pytest.raises(ConfigError, match="the issuer of a device must be a line of text"):
        SmartOTPStrategy().provisioning_uri(SECRET, account="ann", issuer=name)


def test_qr_code_is_dark_on_light_with_its_quiet_zone() -> None:
    uri = SmartOTPStrategy().provisioning_uri(SECRET, account="ann@example.com", issuer="Bank")
    svg = SmartOTPStrategy.qr_svg(uri)

    light, dark = re.findall(r"<path[^>]*>", svg)
    side = segno.make_qr(uri, error="m").symbol_size(border=0)[0]
    size = int(re.search(r'width="(\d+)"', svg)[1])  # type: ignore[index]  # it is there
    assert size == 4 * (side + 2 * 4)
    assert 'fill="#fff"' in light
    assert re.search(rf"M0 0h{side + 8}v{side + 8}h-{side + 8}z", light)
    assert 'stroke="#000"' in dark
    # The first dark module of the first row: four modules from the left and, in its middle, from above.
    assert 'd="M4 4.5h7' in dark
