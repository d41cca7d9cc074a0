"""E-mail against real SMTP servers: with TLS and login, and ones that refuse, hang, garble or vanish."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import jinja2
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from conftest import MakeApp
from flask import Flask
from sending_support import Watched, failed_send

from flask_taskflow import ConfigError, EmailStrategy, InvalidTask, Method, SendFailed, Task, TaskFlow
from flask_taskflow._providers import MailServer, read_mail_server, read_sender
from flask_taskflow.testing import outbox

ANN = "ann@example.com"
SENDER = "Ngân hàng <codes@bank.example>"
USER, PASSWORD = "mailer", "p@ss/w:rd?#%"
LOGIN = "mailer:p%40ss%2Fw%3Ard%3F%23%25@"
OPENSSL = shutil.which("openssl")
DEADLINE = 10.0

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


@dataclass
class Taken:
    """What a server took."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    encrypted: bool
    user: str | None


@dataclass
class Handler:
    """Keep messages; refuse as many as ``failures`` says, quoting them as real servers do."""

    failures: int = 0
    refuse_recipients: bool = False
    taken: list[Taken] = field(default_factory=list)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuse_recipients:
            return f"550 5.1.1 no such mailbox: {address}"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        raw = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        parsed: Any = email.message_from_string(raw.decode(), policy=email.policy.default)
        text = parsed.get_body(("plain",))
        assert text is not None
        if self.failures:
            self.failures -= 1
            return "554 5.7.1 spam: " + " ".join(text.get_content().split())
        assert server.transport is not None
        encrypted = server.transport.get_extra_info("ssl_object") is not None
        recipients = [str(name) for name in envelope.rcpt_tos]
        user = session.auth_data.decode() if isinstance(session.auth_data, bytes) else None
        self.taken.append(Taken(str(envelope.mail_from), recipients, parsed, encrypted, user))
        return "250 OK"


def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=good, handled=False, auth_data=data.login if good else None)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that vouches for itself."""
    folder = tmp_path_factory.mktemp("smtp")
    command = [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return made


@contextmanager
def mail_server(handler: Handler, *, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[int]:
    """Run aiosmtpd in a thread; yield its port. With ``tls`` it speaks TLS from the first byte."""
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        return await loop.create_server(
            lambda: SMTP(handler, hostname="localhost", loop=loop, **options), "localhost", 0, ssl=tls
        )

    async def stop() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(DEADLINE)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(DEADLINE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


@contextmanager
def raw_server(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """Run a server that talks to each client as told, then hangs up; yield its port."""
    clients: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                clients.append(client)
                with client, suppress(OSError):
                    talk(client)

    with socket.create_server(("localhost", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            for open_socket in (listener, *clients):
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)


class WatchedEmail(Watched, EmailStrategy):
    pass


@pytest.fixture
def codes(taskflow: TaskFlow) -> list[str]:
    """The codes that were given to the strategy, sent or not."""
    strategy = WatchedEmail()
    taskflow.register_strategy(Method.EMAIL)(strategy)
    return strategy.codes


@pytest.fixture
def mailing(make_app: MakeApp, taskflow: TaskFlow, codes: list[str]) -> Callable[..., Flask]:
    def make(url: str, **settings: Any) -> Flask:
        return make_app(**{"eager": True, "smtp_url": url, "email_sender": SENDER, **settings})

    return make


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": ANN}}
    return taskflow.add_task("q", {"amount": 5}, **{**given, **options})


def fail(app: Flask, taskflow: TaskFlow, **options: Any) -> tuple[SendFailed, str]:
    """Add a task whose code cannot be sent; return the error and its traceback, with all local values."""
    return failed_send(app, lambda: add(taskflow, **options))


def texts(taken: Taken) -> tuple[str, str]:
    plain, html = taken.message.get_body(("plain",)), taken.message.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content(), html.get_content()


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_code_arrives_over_tls_with_login(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], trusted: Path, security: str
) -> None:
    handler = Handler()
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True}
    if security == "tls":
        options |= {"tls": context(trusted), "auth_require_tls": False}
    else:
        options |= {"tls_context": context(trusted), "require_starttls": True}
    scheme = "smtps" if security == "tls" else "smtp"

    with (
        expected_warnings(security),
        mail_server(handler, **options) as port,
        mailing(f"{scheme}://{LOGIN}localhost:{port}").app_context(),
    ):
        task = add(taskflow, summary="Pay 50 to <Bob>")
        verified = taskflow.verify(task.id, "EMAIL", codes[0])

    (taken,) = handler.taken
    plain, html = texts(taken)
    assert (taken.encrypted, taken.user) == (True, USER)
    assert (taken.sender, taken.recipients) == ("codes@bank.example", [ANN])
    assert taken.message["From"] == SENDER
    assert taken.message["To"] == ANN
    assert taken.message["Subject"] == "Confirm: Pay 50 to <Bob>"
    assert taken.message["Auto-Submitted"] == "auto-generated"
    assert taken.message["Message-ID"].endswith("@bank.example>")
    assert taken.message["Date"].datetime is not None
    assert codes[0] in plain.splitlines()
    assert codes[0] in html.splitlines()
    assert "Pay 50 to <Bob>" in plain
    assert "Pay 50 to &lt;Bob&gt;" in html
    assert "at most 10 minutes" in plain
    assert codes[0] not in "".join(f"{name}: {value}" for name, value in taken.message.items())
    assert verified.status == "SUCCESS"


@contextmanager
def expected_warnings(security: str) -> Iterator[None]:
    """Aiosmtpd does not know that TLS was there from the first byte, and warns of login without it."""
    if security == "tls":
        with pytest.warns(UserWarning, match="Requiring AUTH while not requiring TLS"):
            yield
    else:
        yield


def test_server_without_tls_takes_mail_if_that_is_configured(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    handler = Handler()

    with mail_server(handler) as port, mailing(f"smtp://localhost:{port}?starttls=no").app_context():
        add(taskflow)

    assert not handler.taken[0].encrypted
    assert codes[0] in texts(handler.taken[0])[0].splitlines()


def test_summary_and_subject_of_any_script_arrive(mailing: Callable[..., Flask], taskflow: TaskFlow) -> None:
    handler = Handler()
    summary = "Chuyển 500 ₫ cho Đặng 🏦 " + "ở " * 60

    with (
        mail_server(handler) as port,
        mailing(f"smtp://localhost:{port}?starttls=no", locale="vi").app_context(),
    ):
        add(taskflow, summary=summary.strip())

    assert handler.taken[0].message["Subject"] == f"Xác nhận: {summary.strip()}"
    assert summary.strip() in texts(handler.taken[0])[0]


def test_address_beyond_ascii_needs_a_server_that_says_so(
    mailing: Callable[..., Flask], taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    address = "đặng@bücher.example"
    able, unable = Handler(), Handler()

    with (
        mail_server(able, enable_SMTPUTF8=True) as port,
        mailing(f"smtp://localhost:{port}?starttls=no").app_context(),
    ):
        add(taskflow, recipient={"email": address})
    with mail_server(unable) as port:
        fail(mailing(f"smtp://localhost:{port}?starttls=no"), taskflow, recipient={"email": address})

    assert able.taken[0].recipients == [address]
    assert able.taken[0].message["To"].addresses[0].addr_spec == address
    assert unable.taken == []
    assert "SMTPNotSupportedError" in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com\r\nBcc: eve@example.com",
        "ann@example.com\nRCPT TO:<eve@example.com>",
        "ann@example.com, eve@example.com",
        "Ann <eve@example.com>",
        "ann@example.com\x00",
        "ann@example\u2028.com",
    ],
)
def test_address_that_would_inject_a_header_is_refused(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], address: str
) -> None:
    with mailing("smtp://localhost:1?starttls=no").app_context():
        with pytest.raises(InvalidTask, match="email is not usable"):
            add(taskflow, recipient={"email": address})
        with pytest.raises(InvalidTask, match="summary must be one printable line"):
            add(taskflow, summary=f"Pay {address}" if "\u2028" in address else "Pay\r\nBcc: eve@example.com")

    assert codes == []


def test_subject_of_an_app_stays_one_line(
    mailing: Callable[..., Flask], taskflow: TaskFlow, tmp_path: Path
) -> None:
    handler = Handler()
    (tmp_path / "taskflow/email").mkdir(parents=True)
    (tmp_path / "taskflow/email/subject.txt").write_text("Your code\r\nBcc: eve@example.com\n")

    with mail_server(handler) as port:
        app = mailing(f"smtp://localhost:{port}?starttls=no")
        app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
        with app.app_context():
            add(taskflow)

    assert handler.taken[0].message["Subject"] == "Your code Bcc: eve@example.com"
    assert handler.taken[0].message["Bcc"] is None
    assert handler.taken[0].recipients == [ANN]


@pytest.mark.parametrize("template", ["{{ otp }}{{ 1 / 0 }}", "{{ sumary }}", "no code", "{% if %}"])
def test_template_that_raises_fails_the_send(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], tmp_path: Path, template: str
) -> None:
    handler = Handler()
    (tmp_path / "taskflow/email").mkdir(parents=True)
    (tmp_path / "taskflow/email/code.html").write_text(template)

    with mail_server(handler) as port:
        app = mailing(f"smtp://localhost:{port}?starttls=no")
        app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
        error, shown = fail(app, taskflow)

    assert handler.taken == []
    assert error.methods == ("EMAIL",)
    assert codes[0] not in shown


def hang(client: socket.socket) -> None:
    while client.recv(100):
        pass


def drip(client: socket.socket) -> None:
    """Send a greeting without end, so slowly that no read is ever too late."""
    pause = threading.Event()
    while True:
        client.sendall(b"2")
        pause.wait(0.05)


def vanish_after_data(client: socket.socket) -> None:
    client.sendall(b"220 here\r\n")
    replies = {b"EHLO": b"250 fine", b"MAIL": b"250 fine", b"RCPT": b"250 fine", b"DATA": b"354 go on"}
    lines = client.makefile("rb")
    for line in lines:
        if line[:4].upper() in replies:
            client.sendall(replies[line[:4].upper()] + b"\r\n")
        if line == b".\r\n":
            return


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (hang, "TimeoutError"),
        (drip, "TimeoutError"),
        (lambda client: None, "SMTPServerDisconnected"),
        (lambda client: client.sendall(b"\x00\xff garbage\r\n"), "SMTPConnectError"),
        (lambda client: client.sendall(b"2" * 10000), "SMTPResponseException (500)"),
        (lambda client: client.sendall(b"554 go away\r\n"), "SMTPConnectError (554)"),
        (vanish_after_data, "SMTPServerDisconnected"),
    ],
    ids=["hangs", "drips", "closes", "garbles", "floods", "refuses", "vanishes after the message"],
)
def test_bad_server_fails_the_send_in_time(
    mailing: Callable[..., Flask],
    taskflow: TaskFlow,
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    talk: Callable[[socket.socket], object],
    reason: str,
) -> None:
    caplog.set_level(logging.DEBUG)

    with raw_server(talk) as port:
        app = mailing(f"smtp://localhost:{port}?starttls=no", send_timeout=0.5)
        began = time.monotonic()
        error, shown = fail(app, taskflow)
        took = time.monotonic() - began

    assert took < 2
    assert (
        f"The e-mail for task {error.task.id} was not sent: {reason}" in caplog.text if error.task else False
    )
    assert len(codes) == 1
    assert codes[0] not in shown + caplog.text
    assert ANN not in caplog.text


def test_server_that_cannot_be_reached_fails_the_send(
    mailing: Callable[..., Flask], taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]

    fail(mailing(f"smtp://localhost:{port}"), taskflow)

    assert "was not sent: ConnectionRefusedError (Connection refused)" in caplog.text


def test_error_after_the_message_was_taken_is_none(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
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

    with raw_server(take_and_hang) as port:
        app = mailing(f"smtp://localhost:{port}?starttls=no", send_timeout=5)
        began = time.monotonic()
        with app.app_context():
            task = add(taskflow)
            taskflow.verify(task.id, "EMAIL", codes[0])
        took = time.monotonic() - began

    assert took < 4
    assert f"{codes[0]}\r\n".encode() in bodies


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (Handler(failures=1), "SMTPDataError (554)"),
        (Handler(refuse_recipients=True), "SMTPRecipientsRefused (550)"),
    ],
    ids=["the message", "the recipient"],
)
def test_refusal_that_quotes_the_message_leaves_no_code_anywhere(
    mailing: Callable[..., Flask],
    taskflow: TaskFlow,
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    handler: Handler,
    reason: str,
) -> None:
    caplog.set_level(logging.DEBUG)

    with mail_server(handler) as port:
        error, shown = fail(mailing(f"smtp://localhost:{port}?starttls=no"), taskflow)

    # The log of the server in this process is not ours.
    logged = "".join(record.getMessage() for record in caplog.records if record.name != "mail.log")
    assert f"was not sent: {reason}" in logged
    assert (error.__cause__, error.__context__) == (None, None)
    assert codes[0] not in shown + logged
    assert ANN not in logged


def test_failed_code_is_sent_again_by_a_resend(
    mailing: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    handler = Handler(failures=1)

    with mail_server(handler) as port:
        app = mailing(f"smtp://localhost:{port}?starttls=no")
        error, _ = fail(app, taskflow)
        assert error.task is not None
        with app.app_context():
            taskflow.resend_otp(error.task.id, "EMAIL")
            verified = taskflow.verify(error.task.id, "EMAIL", codes[0])

    assert codes[0] == codes[1]
    assert len(handler.taken) == 1
    assert verified.status == "SUCCESS"


def test_wrong_password_fails_the_send_and_is_not_shown(
    mailing: Callable[..., Flask], taskflow: TaskFlow, trusted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True}

    with mail_server(handler, tls_context=context(trusted), require_starttls=True, **options) as port:
        _, shown = fail(mailing(f"smtp://mailer:hunter2@localhost:{port}"), taskflow)

    assert "was not sent: SMTPAuthenticationError (535)" in caplog.text
    assert "hunter2" not in shown + caplog.text


def test_login_that_is_wanted_and_not_configured_fails_the_send(
    mailing: Callable[..., Flask], taskflow: TaskFlow, trusted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True}

    with mail_server(Handler(), tls_context=context(trusted), require_starttls=True, **options) as port:
        fail(mailing(f"smtp://localhost:{port}"), taskflow)

    assert "was not sent: SMTPSenderRefused (530)" in caplog.text


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_certificate_of_a_stranger_or_for_another_host_is_refused(
    mailing: Callable[..., Flask],
    taskflow: TaskFlow,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host: str,
    scheme: str,
) -> None:
    handler = Handler()
    if host != "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = {"tls_context": context(certificate)} if scheme == "smtp" else {"tls": context(certificate)}

    with mail_server(handler, **tls) as port:
        fail(mailing(f"{scheme}://{host}:{port}"), taskflow)

    assert "was not sent: SSLCertVerificationError (" in caplog.text
    assert handler.taken == []


def test_server_without_starttls_gets_nothing(
    mailing: Callable[..., Flask], taskflow: TaskFlow, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()

    with mail_server(handler) as port:
        fail(mailing(f"smtp://{LOGIN}localhost:{port}"), taskflow)

    assert "was not sent: SMTPNotSupportedError" in caplog.text
    assert handler.taken == []


@pytest.mark.parametrize("settings", [{"smtp_url": None}, {"email_sender": None}])
def test_missing_setting_fails_the_send_and_is_named(
    mailing: Callable[..., Flask],
    taskflow: TaskFlow,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
) -> None:
    fail(mailing("smtp://localhost", **settings), taskflow)

    assert "was not sent: set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER" in caplog.text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", MailServer("mail.example.com", 587, "starttls")),
        ("smtps://mail.example.com/", MailServer("mail.example.com", 465, "tls")),
        ("smtp://localhost:25?starttls=no", MailServer("localhost", 25, "none")),
        (f"smtps://{LOGIN}[::1]:4650", MailServer("::1", 4650, "tls", (USER, PASSWORD))),
    ],
)
def test_url_of_a_server_is_read(url: str, expected: MailServer) -> None:
    assert read_mail_server(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://a:hunter2@mail.example.com",
        "smtp://a:hunter2@",
        "smtp://a:hunter2@mail.example.com:0",
        "smtp://a:hunter2@mail.example.com:port",
        "smtp://a:hunter2@mail.example.com/path",
        "smtp://a:hunter2@mail.example.com?starttls=no",
        "smtps://mail.example.com?starttls=no",
        "smtp://a:hunter2@mail.example.com?starttls=maybe",
        "smtp://hunter2@mail.example.com",
        "smtp://:hunter2@mail.example.com",
        "smtp://a:hunter2%C3%A9@mail.example.com",
        "smtp://a:hunter2%0D%0A@mail.example.com",
        "smtp://a:12#hunter2@mail.example.com",
        "",
        b"smtp://mail.example.com",
    ],
)
def test_url_when_bad_is_refused_without_its_password(make_app: MakeApp, url: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_SMTP_URL cannot be used: ") as caught:
        make_app(smtp_url=url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "sender", ["codes@bank.example", "Bank <codes@bank.example>", '"A, B" <c@d.example>']
)
def test_sender_is_one_mailbox(sender: str) -> None:
    assert isinstance(read_sender(sender), Address)


@pytest.mark.parametrize(
    "sender",
    ["", "codes", "a@b.example, c@d.example", "a@b.example\r\nBcc: c@d.example", "Bank <codes>", 7, "a b@c"],
)
def test_sender_when_bad_is_refused(make_app: MakeApp, sender: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_EMAIL_SENDER = .*use one address"):
        make_app(email_sender=sender)


def test_outbox_stands_in_for_the_strategy(mailing: Callable[..., Flask], taskflow: TaskFlow) -> None:
    with mailing("smtp://localhost:1").app_context(), outbox(taskflow) as box:
        task = add(taskflow)

        assert taskflow.verify(task.id, "EMAIL", box.last_code(ANN)).status == "SUCCESS"


def test_session_that_is_too_slow_is_cut(mailing: Callable[..., Flask], taskflow: TaskFlow) -> None:
    ended = threading.Event()

    def drip_until_cut(client: socket.socket) -> None:
        try:
            drip(client)
        finally:
            ended.set()

    with raw_server(drip_until_cut) as port:
        fail(mailing(f"smtp://localhost:{port}?starttls=no", send_timeout=0.3), taskflow)

        assert ended.wait(2)
