"""E-mail against real SMTP servers: with TLS and login, and ones that refuse, hang, garble or vanish."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jinja2
import pytest
from flask import Flask

from flask_taskflow import EmailStrategy, InvalidTask, TaskFlow
from flask_taskflow.testing import outbox
from tests.conftest import MakeApp
from tests.support.mail import (
    OPENSSL,
    USER,
    WITHIN,
    Handler,
    authenticate,
    context,
    mail_server,
    make_certificate,
    raw_server,
)
from tests.support.strategies import Sending, Watched

ANN = "ann@example.com"
SENDER = "Ngân hàng <codes@bank.example>"
LOGIN = "mailer:p%40ss%2Fw%3Ard%3F%23%25@"
WITH_LOGIN: dict[str, Any] = {"authenticator": authenticate, "auth_required": True}

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("smtp"))


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


class WatchedEmail(Watched, EmailStrategy):
    pass


class Mailing(Sending):
    """Apps that send codes by e-mail."""

    @contextmanager
    def to(self, url: str, **settings: Any) -> Iterator[Flask]:
        """Push the context of an app that sends through the server at a URL."""
        with self.app(**{"smtp_url": url, "email_sender": SENDER, **settings}) as app:
            yield app

    @contextmanager
    def through(self, handler: Handler, **options: Any) -> Iterator[Flask]:
        """Push the context of an app that sends through a server without TLS."""
        with mail_server(handler, **options) as port, self.to(plain(port)) as app:
            yield app


def plain(port: int) -> str:
    return f"smtp://localhost:{port}?starttls=no"


@pytest.fixture
def mailing(make_app: MakeApp, taskflow: TaskFlow) -> Mailing:
    return Mailing(make_app, taskflow, "EMAIL", WatchedEmail(), {"email": ANN})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what was logged so far, down to DEBUG, but for the log of a server in this process."""
    caplog.set_level(logging.DEBUG)
    return lambda: "\n".join(one.getMessage() for one in caplog.records if one.name != "mail.log")


Log = Callable[[], str]


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_code_arrives_over_tls_with_login(
    mailing: Mailing, trusted: Path, security: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_taskflow.audit")
    handler = Handler()
    tls: dict[str, Any] = {"tls_context": context(trusted), "require_starttls": True}
    scheme = "smtp"
    warning: AbstractContextManager[object] = nullcontext()
    if security == "tls":
        tls = {"tls": context(trusted), "auth_require_tls": False}
        # Aiosmtpd does not know that TLS was there from the first byte, and warns of login without it.
        scheme, warning = "smtps", pytest.warns(UserWarning, match="Requiring AUTH while not requiring TLS")

    with (
        warning,
        mail_server(handler, **WITH_LOGIN, **tls) as port,
        mailing.to(f"{scheme}://{LOGIN}localhost:{port}"),
    ):
        mailing.assert_verifies(mailing.add(summary="Pay 50 to <Bob>"))

    (taken,), (code,) = handler.taken, mailing.codes
    plain, html, message = taken.body(), taken.body("html"), taken.message
    assert (taken.encrypted, taken.user) == (True, USER)
    assert (taken.sender, taken.recipients) == ("codes@bank.example", [ANN])
    assert [message["From"], message["To"]] == [SENDER, ANN]
    assert message["Subject"] == "Confirm: Pay 50 to <Bob>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@bank.example>")
    (told,) = (vars(record) for record in caplog.records if record.msg == "code_sent")
    assert told["message_id"] == message["Message-ID"]
    assert message["Date"].datetime is not None
    assert code in plain.splitlines()
    assert code in html.splitlines()
    assert "Pay 50 to <Bob>" in plain
    assert "Pay 50 to &lt;Bob&gt;" in html
    assert "at most 10 minutes" in plain
    assert code not in "".join(f"{name}: {value}" for name, value in message.items())


def test_server_without_tls_takes_mail_if_that_is_configured(mailing: Mailing) -> None:
    handler = Handler()

    with mailing.through(handler):
        mailing.add()

    assert not handler.taken[0].encrypted
    assert mailing.codes[0] in handler.taken[0].body().splitlines()


def test_summary_and_subject_of_any_script_arrive(mailing: Mailing) -> None:
    handler = Handler()
    summary = ("Chuyển 500 ₫ cho Đặng 🏦 " + "ở " * 60).strip()

    with mailing.through(handler):
        mailing.add(summary=summary, locale="vi")

    assert handler.taken[0].message["Subject"] == f"Xác nhận: {summary}"
    assert summary in handler.taken[0].body()


def test_address_beyond_ascii_needs_a_server_that_says_so(mailing: Mailing, log: Log) -> None:
    address, sent_to = "đặng@bücher.example", "đặng@xn--bcher-kva.example"
    able, unable = Handler(), Handler()

    with mailing.through(able, enable_SMTPUTF8=True):
        mailing.add(recipient={"email": address})
    with mailing.through(unable):
        mailing.fail(recipient={"email": address})

    assert able.taken[0].recipients == [sent_to]
    assert able.taken[0].message["To"].addresses[0].addr_spec == sent_to
    assert unable.taken == []
    assert "does not offer SMTPUTF8" in log()


INJECTIONS = ["ann@example.com\r\nBcc: eve@example.com", "ann@example.com\nRCPT TO:<eve@example.com>"]
INJECTIONS += ["ann@example.com, eve@example.com", "Ann <eve@example.com>", "ann@example.com\x00"]
INJECTIONS += ["ann@example\u2028.com"]


@pytest.mark.parametrize("address", INJECTIONS)
def test_address_that_would_inject_a_header_is_refused(mailing: Mailing, address: str) -> None:
    with mailing.to("smtp://localhost:1?starttls=no"):
        with pytest.raises(InvalidTask, match="email is not usable"):
            mailing.add(recipient={"email": address})
        with pytest.raises(InvalidTask, match="summary must be one printable line"):
            mailing.add(summary=f"Pay {address}" if "\u2028" in address else "Pay\r\nBcc: eve@example.com")

    assert mailing.codes == []


def use_template(app: Flask, folder: Path, name: str, text: str) -> None:
    """Give an app a template of its own."""
    path = folder / "taskflow" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    app.jinja_loader = jinja2.FileSystemLoader(folder)


def test_subject_of_an_app_stays_one_line(mailing: Mailing, tmp_path: Path) -> None:
    handler = Handler()

    with mailing.through(handler) as app:
        use_template(app, tmp_path, "email/subject.txt", "Your code\r\nBcc: eve@example.com\n")
        mailing.add()

    assert handler.taken[0].message["Subject"] == "Your code Bcc: eve@example.com"
    assert handler.taken[0].message["Bcc"] is None
    assert handler.taken[0].recipients == [ANN]


@pytest.mark.parametrize("template", ["{{ otp }}{{ 1 / 0 }}", "{{ sumary }}", "no code", "{% if %}"])
def test_template_that_raises_fails_the_send(mailing: Mailing, tmp_path: Path, template: str) -> None:
    handler = Handler()

    with mailing.through(handler) as app:
        use_template(app, tmp_path, "email/code.html", template)
        _, shown = mailing.fail()

    assert handler.taken == []
    assert mailing.codes[0] not in shown


def hang(client: socket.socket) -> None:
    while client.recv(100):
        pass


def drip(client: socket.socket) -> None:
    """Send a greeting without end, so slowly that no read is ever too late."""
    pause = threading.Event()
    while True:
        client.sendall(b"2")
        pause.wait(0.05)


def say(text: bytes) -> Callable[[socket.socket], None]:
    return lambda client: client.sendall(text)


@pytest.mark.parametrize(
    ("talk", "timeout", "reason"),
    [
        (hang, 0.5, "TimeoutError"),
        (drip, 0.5, "TimeoutError"),
        (say(b""), 5, "SMTPServerDisconnected"),
        (say(b"\x00\xff garbage\r\n"), 5, "SMTPConnectError"),
        (say(b"2" * 10000), 5, "SMTPResponseException (500)"),
        (say(b"554 go away\r\n"), 5, "SMTPConnectError (554)"),
    ],
    ids=["hangs", "drips", "closes", "garbles", "floods", "refuses"],
)
def test_bad_server_fails_the_send_in_time(
    mailing: Mailing, log: Log, talk: Callable[[socket.socket], object], timeout: float, reason: str
) -> None:
    with raw_server(talk) as port, mailing.to(plain(port), send_timeout=timeout):
        began = time.monotonic()
        task, shown = mailing.fail()
        took = time.monotonic() - began

    assert took < 30
    assert f"for task {task.id} failed: Retry raised by WatchedEmail ({reason}" in log()
    (code,) = mailing.codes
    assert code not in shown + log()
    assert ANN not in log()


def test_session_that_is_too_slow_is_cut(mailing: Mailing) -> None:
    ended = threading.Event()

    def drip_until_cut(client: socket.socket) -> None:
        try:
            drip(client)
        finally:
            ended.set()

    with raw_server(drip_until_cut) as port, mailing.to(plain(port), send_timeout=0.3):
        mailing.fail()

        assert ended.wait(WITHIN)


def test_error_after_the_message_was_taken_is_none(mailing: Mailing) -> None:
    bodies: list[bytes] = []

    def take_and_hang(client: socket.socket) -> None:
        client.sendall(b"220 here\r\n")
        body = False
        for line in client.makefile("rb"):
            if body and line != b".\r\n":
                bodies.append(line)
            elif line.startswith(b"quit"):
                hang(client)
            else:
                body = line.startswith(b"data")
                client.sendall(b"354 go on\r\n" if body else b"250 fine\r\n")

    with (
        raw_server(take_and_hang) as port,
        mailing.to(f"smtp://localhost:{port}?starttls=no", send_timeout=60),
    ):
        began = time.monotonic()
        mailing.assert_verifies(mailing.add())
        took = time.monotonic() - began

    assert took < 50
    assert f"{mailing.codes[0]}\r\n".encode() in bodies


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [
        ({"failures": 1}, "refused the message (554)"),
        ({"refuse_recipients": True}, "refused the recipient (550)"),
    ],
    ids=["the message", "the recipient"],
)
def test_refusal_that_quotes_the_message_leaves_no_code_anywhere(
    mailing: Mailing, log: Log, refusing: dict[str, Any], reason: str
) -> None:
    with mailing.through(Handler(**refusing)):
        _, shown = mailing.fail()

    assert f"Reject raised by WatchedEmail (the server {reason}" in log()
    assert mailing.codes[0] not in shown + log()
    assert ANN not in log()


def test_failed_code_is_sent_again_by_a_resend(mailing: Mailing) -> None:
    handler = Handler(failures=1)

    with mailing.through(handler):
        task, _ = mailing.fail()
        mailing.taskflow.resend_otp(task.id, "EMAIL")
        mailing.assert_verifies(task)

    assert mailing.codes[0] == mailing.codes[1]
    assert len(handler.taken) == 1


@pytest.mark.parametrize(
    ("trusts", "kind", "url", "reason"),
    [
        (True, "with login", "smtp://mailer:hunter2@localhost", "SMTPAuthenticationError (535)"),
        (True, "with login", "smtp://localhost", "the server refused the sender (530)"),
        (False, "starttls", "smtp://localhost", "SSLCertVerificationError ("),
        (False, "tls", "smtps://localhost", "SSLCertVerificationError ("),
        (True, "starttls", "smtp://127.0.0.1", "SSLCertVerificationError ("),
        (True, "tls", "smtps://127.0.0.1", "SSLCertVerificationError ("),
        (True, "plain", f"smtp://{LOGIN}localhost", "SMTPNotSupportedError"),
    ],
)
def test_server_without_safety_or_login_gets_nothing(
    mailing: Mailing,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
    trusts: bool,
    kind: str,
    url: str,
    reason: str,
) -> None:
    handler, tls = Handler(), context(certificate)
    options = {
        "with login": {"tls_context": tls, "require_starttls": True, **WITH_LOGIN},
        "starttls": {"tls_context": tls},
        "tls": {"tls": tls},
        "plain": {},
    }
    if trusts:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    with mail_server(handler, **options[kind]) as port, mailing.to(f"{url}:{port}"):
        _, shown = mailing.fail()

    assert f"raised by WatchedEmail ({reason}" in log()
    assert handler.taken == []
    assert "hunter2" not in shown + log()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"smtp_url": None}, "set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
        ({"email_sender": None}, "set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
        ({}, "ConnectionRefusedError (Connection refused)"),
    ],
)
def test_missing_setting_or_server_fails_the_send_and_is_named(
    mailing: Mailing, log: Log, settings: dict[str, Any], reason: str
) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]

    with mailing.to(f"smtp://localhost:{port}", **settings):
        mailing.fail()

    assert f"raised by WatchedEmail ({reason}" in log()


def test_outbox_stands_in_for_the_strategy(mailing: Mailing) -> None:
    with mailing.to("smtp://localhost:1"), outbox(mailing.taskflow) as box:
        mailing.assert_verifies(mailing.add(), box.last_code(ANN))
