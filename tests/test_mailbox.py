"""Mailboxes and domains in their one form, against an independent reading of UTS #46."""

from __future__ import annotations

import sys
import unicodedata
from itertools import chain
from typing import Any

import idna
import pytest
from idna.core import uts46_remap

from flask_taskflow import InvalidTask, SendLimitReached, Task, TaskFlow
from flask_taskflow._keyring import Keyring
from flask_taskflow._mailbox import _mapped, ascii_domain, read_mailbox
from flask_taskflow.strategies import EmailStrategy
from tests.conftest import MakeApp

ASCII_FORMS = {
    "Example.COM": "example.com",
    "example.com.": "example.com",
    "localhost": "localhost",
    "a_b.example": "a_b.example",
    "bücher.example": "xn--bcher-kva.example",
    "BÜCHER.example": "xn--bcher-kva.example",
    "bu\u0308cher.example": "xn--bcher-kva.example",
    "XN--BCHER-KVA.example": "xn--bcher-kva.example",
    "straße.de": "xn--strae-oqa.de",
    "STRAẞE.de": "xn--strae-oqa.de",
    "βόλος.com": "xn--nxasmm1c.com",
    "ΒΌΛΟΣ.com": "xn--nxasmq6b.com",
    "例え.テスト": "xn--r8jz45g.xn--zckzah",
    "ｅｘａｍｐｌｅ。ｃｏｍ": "example.com",
    "i❤️.ws": "xn--i-7iq.ws",
    "نامه\u200cای.com": "xn--mgba3gch31f060k.com",
}
NO_DOMAINS = [
    "",
    ".",
    "com",
    ".example.com",
    "example..com",
    "example.com..",
    "-a.example",
    "a-.example",
    "a b.example",
    "[192.0.2.1]",
    "192.0.2.1",
    "a/b.example",
    "℀.example",
    "\u0301a.example",
    "a\u202eb.example",
    "a\u200db.example",
    "a\ue000b.example",
    f"{'a' * 64}.example",
    f"{'ü' * 60}.example",
    ".".join(["a" * 63] * 4),
]
MAILBOXES = {
    "Ann.O'Neil+bank@Example.com": ("Ann.O'Neil+bank", "example.com"),
    "ａｎｎ@example.com": ("ann", "example.com"),
    "đặng@bücher.example": ("đặng", "xn--bcher-kva.example"),
    unicodedata.normalize("NFD", "đặng") + "@example.com": ("đặng", "example.com"),
    f"{'a' * 64}@example.com": ("a" * 64, "example.com"),
    "a..b@example.com": ("a..b", "example.com"),
    "ann@localhost": ("ann", "localhost"),
}
NO_MAILBOXES = [
    "ann",
    "@example.com",
    ".ann@example.com",
    "ann.@example.com",
    ".@example.com",
    '"a b"@example.com',
    "a@b@example.com",
    "a b@example.com",
    "a\r\nRCPT TO:<eve@example.com>@example.com",
    "đ\u202eặng@example.com",
    "đ\u00a0ặng@example.com",
    "\ud800@example.com",
    f"{'a' * 65}@example.com",
    f"{'ặ' * 22}@example.com",
    f"{'a' * 64}@{'.'.join(['b' * 63] * 3)}",
    *[f"ann@{domain}" for domain in NO_DOMAINS],
]


@pytest.mark.parametrize(("domain", "expected"), ASCII_FORMS.items())
def test_domain_has_one_ascii_form(domain: str, expected: str) -> None:
    assert ascii_domain(domain) == expected
    assert ascii_domain(expected) == expected


@pytest.mark.parametrize("domain", NO_DOMAINS)
def test_domain_that_none_can_have_is_refused(domain: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        ascii_domain(domain)


def test_characters_are_mapped_as_the_package_idna_maps_them() -> None:
    compared, different = 0, []
    for character in map(chr, range(0x80, sys.maxunicode + 1)):
        # Its tables may be of another version of Unicode than Python's.
        if unicodedata.category(character) in ("Cn", "Co", "Cs"):
            continue
        try:
            expected = uts46_remap(f"a{character}b", std3_rules=True, transitional=False)
        except idna.IDNAError:
            continue
        compared += 1
        if _mapped(f"a{character}b") != expected:
            different.append(f"{character!a} {unicodedata.name(character, '?')}")

    assert different == []
    assert compared > 140_000


@pytest.mark.parametrize(("address", "expected"), MAILBOXES.items())
def test_mailbox_is_read(address: str, expected: tuple[str, str]) -> None:
    assert read_mailbox(address) == expected
    assert read_mailbox("@".join(expected)) == expected


@pytest.mark.parametrize("address", NO_MAILBOXES)
def test_mailbox_that_none_can_have_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^(it|its|each|the) ") as caught:
        read_mailbox(address)

    assert not address or address not in str(caught.value)


def test_limits_count_one_mailbox_however_it_is_spelt() -> None:
    keyring = Keyring([b"0123456789abcdef"])
    spellings = [
        "ann@bücher.example",
        "Ann@XN--BCHER-KVA.Example",
        "ａｎｎ@bu\u0308cher。example.",
        " ann@bücher.example",
    ]

    assert len({*chain(*(keyring.recipients("email", address) for address in spellings))}) == 1
    sharp, plain = (keyring.recipients("email", f"ann@{name}.example") for name in ("straße", "strasse"))
    assert sharp != plain


def test_address_that_cannot_be_sent_to_counts_for_nothing(make_app: MakeApp, taskflow: TaskFlow) -> None:
    class Letter(EmailStrategy):
        def send(self, task: Task[Any], otp: str) -> None: ...

    taskflow.register_strategy("LETTER")(Letter)

    with make_app(recipient_max_sends=1).app_context():
        with pytest.raises(InvalidTask, match=r"email is not usable as an address: .*63 letters"):
            taskflow.add_task("q", allowed_methods=["LETTER"], recipient={"email": f"ann@{'a' * 64}.example"})
        task = taskflow.add_task("q", allowed_methods=["LETTER"], recipient={"email": "Ann@bücher.example"})
        with pytest.raises(SendLimitReached):
            taskflow.add_task("q", allowed_methods=["LETTER"], recipient={"email": "ann@bücher.EXAMPLE"})

    assert task.recipient.email == "Ann@xn--bcher-kva.example"
