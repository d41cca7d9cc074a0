"""What a message is, read from its raw bytes by rules of the RFCs and not by Python's ``email``."""

from __future__ import annotations

import quopri
import re
from base64 import b64decode
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from flask import Flask

from flask_taskflow import EmailStrategy, InvalidTask, Method, Recipient, Status, Task
from flask_taskflow._config.providers import read_sender
from flask_taskflow._otp import OTP
from flask_taskflow.strategies._letter import Letter, compose
from flask_taskflow.strategies._texts import render_code
from tests.conftest import MakeApp
from tests.support.hostile import hostile_strings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTP_ = OTP("492817")
SENDER = read_sender("Example Bank <codes@bank.example>")
HEADERS = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
TASK: Task[Any] = Task(
    id="t1",
    queue="q",
    data=None,
    summary=None,
    recipient=Recipient(email="ann@example.com"),
    allowed_methods=(Method.EMAIL,),
    status=Status.PENDING,
    priority=0,
    timeout=1.0,
    created_at=NOW,
    expires_at=NOW + timedelta(minutes=10),
)
HOSTILE = hostile_strings()


@dataclass
class Read:
    """A message as its bytes say: headers in order, and the parts' types and texts."""

    headers: list[tuple[str, str]]
    parts: list[tuple[str, str]]

    def __getitem__(self, name: str) -> str:
        (value,) = [text for key, text in self.headers if key == name]
        return value


def read(letter: Letter) -> Read:
    raw = letter.content
    lines = raw.split(b"\r\n")
    assert b"\r" not in raw.replace(b"\r\n", b"")
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert max(map(len, lines)) <= 998
    head, body = raw.split(b"\r\n\r\n", 1)
    before, *parts, end = (b"\r\n" + body).split(b"\r\n--=_taskflow")
    assert (before, end) == (b"", b"--\r\n")
    return Read(headers_of(head), [part_of(part) for part in parts])


def headers_of(head: bytes) -> list[tuple[str, str]]:
    """Return names and values of headers: RFC 5322, 2.2."""
    unfolded = re.sub(r"\r\n(?=[ \t])", "", head.decode())
    pairs = [line.split(": ", 1) for line in unfolded.split("\r\n")]
    return [(name, value) for name, value in pairs]


def part_of(part: bytes) -> tuple[str, str]:
    head, body = part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)
    headers = dict(headers_of(head))
    assert headers.pop("Content-Transfer-Encoding") == "quoted-printable"
    assert all(len(line) <= 76 for line in body.split(b"\r\n"))
    assert list(headers) == ["Content-Type"]
    return headers["Content-Type"], quopri.decodestring(body.replace(b"\r\n", b"\n")).decode()


def shown(value: str) -> str:
    """Return what a client shows for a value: RFC 2047, 6.2; words beside each other are one text."""
    joined = re.sub(r"(=\?utf-8\?b\?[A-Za-z0-9+/]*=*\?=)\s+(?==\?)", r"\1", value)
    return re.sub(r"=\?utf-8\?b\?([A-Za-z0-9+/]*=*)\?=", lambda found: b64decode(found[1]).decode(), joined)


def as_line(text: str) -> str:
    """Return a text on one line, as a header shows it; what is no character is a question mark."""
    plain = text.encode(errors="replace").decode()
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", plain).strip()


def as_lines(text: str) -> str:
    return re.sub("\r\n|\r", "\n", text).encode(errors="replace").decode()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.mark.promise("S69")
def test_message_has_only_our_headers_and_parts_whatever_the_summary_is(app: Flask) -> None:
    assert len(set(HOSTILE)) > 950
    with app.app_context():
        for text in HOSTILE:
            task = replace(TASK, summary=text)
            message = read(letter := compose(task, OTP_, sender=SENDER))

            assert letter.content.isascii()
            assert [name for name, _ in message.headers] == HEADERS
            assert shown(message["Subject"]) == as_line(f"Confirm: {text}"), ascii(text)
            assert [kind for kind, _ in message.parts] == [
                "text/plain; charset=utf-8",
                "text/html; charset=utf-8",
            ]
            for (_, got), name in zip(message.parts, ("email/code.txt", "email/code.html"), strict=True):
                assert got == as_lines(render_code(name, task, OTP_)) + "\n", ascii(text)


@pytest.mark.promise("S69")
def test_address_that_is_hostile_is_refused_or_goes_to_itself(app: Flask) -> None:
    strategy, taken = EmailStrategy(), 0
    with app.app_context():
        for text in HOSTILE:
            for address in (f"{text}@example.com", f"ann@{text}", f"ann@{text}.example", f"ann{text}"):
                try:
                    normal = strategy.normalise(address)
                except InvalidTask:
                    continue
                taken += 1
                letter = compose(replace(TASK, recipient=Recipient(email=normal)), OTP_, sender=SENDER)
                message = read(letter)
                assert [name for name, _ in message.headers] == HEADERS
                assert letter.recipient == normal == message["To"].replace('"', "")
                assert re.fullmatch(r"[^\s\"(),:;<>@\[\\\]\x00-\x20\x7f-\x9f]+@[a-z0-9._-]+", normal), ascii(
                    address
                )
                assert letter.content.isascii() or not normal.isascii()

    assert taken > 30


def test_name_of_the_sender_is_shown_as_it_is(app: Flask) -> None:
    taken = 0
    with app.app_context():
        for text in HOSTILE:
            quoted = re.sub(r'(["\\])', r"\\\1", text)
            try:
                sender = read_sender(f'"{quoted}" <codes@bank.example>')
            except ValueError:
                assert not text.isprintable()
                continue
            taken += 1
            message = read(compose(TASK, OTP_, sender=sender))

            name, _, address = message["From"].rpartition(" ")
            assert [name for name, _ in message.headers] == HEADERS
            assert address == "<codes@bank.example>"
            assert shown(name) in (text, f'"{quoted}"'), ascii(text)

    assert taken > 100


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("codes@Bank.example", "", "codes@bank.example"),
        ("<codes@bank.example>", "", "codes@bank.example"),
        ("Bank <codes@bücher.example>", "Bank", "codes@xn--bcher-kva.example"),
        (r'"A \"B\", C" <codes@bank.example>', 'A "B", C', "codes@bank.example"),
        ("=?utf-8?q?a=0D=0ABcc:_eve?= <codes@bank.example>", "=?utf-8?q?a=0D=0ABcc", None),
        ("Ngân hàng <codes@bank.example>", "Ngân hàng", "codes@bank.example"),
    ],
)
def test_sender_is_read_as_it_is_written(value: str, name: str, address: str | None) -> None:
    if address is None:
        with pytest.raises(ValueError, match="use one address"):
            read_sender(value)
        return

    sender = read_sender(value)

    assert (sender.display_name, f"{sender.username}@{sender.domain}") == (name, address)


def test_subject_keeps_the_spaces_of_a_summary(app: Flask) -> None:
    with app.app_context():
        for summary in ("Pay 1\u00a0234,50\u202f€", "Pay  50   to Bob", "Pay " + "50 " * 60 + "€"):
            message = read(compose(replace(TASK, summary=summary), OTP_, sender=SENDER))

            assert shown(message["Subject"]) == f"Confirm: {summary}".strip()


def test_lines_are_short_and_end_as_they_began(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "taskflow/email").mkdir(parents=True)
    text = ".\r\n.hidden \n" + "ở" * 500 + "\n\n=20\tx \r{{ otp }}"
    (tmp_path / "taskflow/email/code.txt").write_bytes(text.encode())
    app.jinja_loader = jinja2.FileSystemLoader(tmp_path)

    with app.app_context():
        letter = compose(TASK, OTP_, sender=SENDER)

    (_, got), _ = read(letter).parts
    assert got == as_lines(text.replace("{{ otp }}", OTP_)) + "\n"
    assert max(map(len, letter.content.split(b"\r\n"))) <= 78


def test_repeats_of_a_code_bear_one_id_that_nobody_else_can_compute(make_app: MakeApp) -> None:
    def message_id(task: Task[Any], otp: OTP, key: str = "a key of sixteen bytes") -> str:
        with make_app(SECRET_KEY=key).app_context():
            return read(compose(task, otp, sender=SENDER))["Message-ID"]

    again = replace(TASK, summary="another text")
    ids = [
        message_id(TASK, OTP_),
        message_id(TASK, OTP("492818")),
        message_id(replace(TASK, id="t2"), OTP_),
        message_id(TASK, OTP_, key="another key of sixteen"),
    ]

    assert message_id(again, OTP_) == ids[0]
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"<[0-9a-f]{40}@bank\.example>", text) for text in ids)


def test_letter_does_not_show_its_content(app: Flask) -> None:
    with app.app_context():
        letter = compose(TASK, OTP_, sender=SENDER)

    assert OTP_.encode() in letter.content
    assert OTP_ not in f"{letter} {letter!r}"


def test_two_dots_in_a_row_are_quoted_in_the_header_alone(app: Flask) -> None:
    with app.app_context():
        letter = compose(replace(TASK, recipient=Recipient(email="a..b@example.com")), OTP_, sender=SENDER)

    assert letter.recipient == "a..b@example.com"
    assert read(letter)["To"] == '"a..b"@example.com'
