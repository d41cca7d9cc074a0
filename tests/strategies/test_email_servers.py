"""How a send by e-mail ends, by what real servers say, and do not say, at each step."""

from __future__ import annotations

import logging
import signal
import smtplib
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from flask import Flask

from flask_taskflow import ConfigError, EmailStrategy, Recipient, Task
from flask_taskflow._otp import OTP
from flask_taskflow.errors import OutcomeUnknown, Reject, Retry
from tests.conftest import MakeApp
from tests.strategies.test_email_letter import TASK
from tests.support.mail import OPENSSL, Handler, context, mail_server, make_certificate, raw_server

OTP_ = OTP("492817")
CLOSE, HANG = b"", None
WITHIN = 60.0


@dataclass
class Script:
    """A server that answers each step as told, else as if all were well.

    :param answers: what it says at a step: ``greeting``, a verb, or ``dot``; ``CLOSE`` hangs up, ``HANG``
        says nothing.
    """

    answers: dict[str, bytes | None]
    lines: list[bytes] = field(default_factory=list)
    content: list[bytes] = field(default_factory=list)
    on_dot: Callable[[], object] = lambda: None

    def __call__(self, client: socket.socket) -> None:
        said = {"greeting": b"220 here", "data": b"354 go on", "dot": b"250 taken"}
        lines = client.makefile("rb")
        step, in_data = "greeting", False
        while True:
            answer = self.answers.get(step, said.get(step, b"250 fine"))
            if answer == CLOSE:
                return
            if answer is not HANG:
                client.sendall(answer + b"\r\n")
                in_data = step == "data" and answer.startswith(b"354")
            line = lines.readline()
            while in_data and line and line != b".\r\n":
                self.content.append(line)
                line = lines.readline()
            if not line:
                return
            self.lines.append(line)
            step = "dot" if in_data else line[:4].decode().lower().strip()
            in_data = False
            if step == "dot":
                self.on_dot()


@pytest.fixture
def mail(make_app: MakeApp) -> Callable[..., Flask]:
    def make(port: int, **settings: Any) -> Flask:
        given = {"smtp_url": f"smtp://localhost:{port}?starttls=no", "email_sender": "codes@bank.example"}
        return make_app(**{**given, **settings})

    return make


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    return made


@dataclass
class Ended:
    """What a send raised, the traceback with all local values, and what is told of it.

    The strategy itself logs nothing: who calls it says what the error says, in one line.
    """

    error: BaseException | None
    shown: str
    log: str


def end_of_send(app: Flask, caplog: pytest.LogCaptureFixture, task: Task[Any] = TASK) -> Ended:
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    error: BaseException | None = None
    shown = ""
    with app.app_context():
        try:
            EmailStrategy().send(task, OTP_)
        except BaseException as raised:
            error = raised
            told = traceback.TracebackException.from_exception(raised, capture_locals=True)
            shown = "".join(told.format())
    records = [one for one in caplog.records if one.name.startswith("flask_taskflow.strategies")]
    assert records == []
    return Ended(error, shown, "" if error is None else str(error))


FLOOD = b"2" * 10_000
#: Step -> answer -> how the send ends, and what is told of it.
ENDS: list[tuple[str, bytes | None, type[Exception], str]] = [
    ("greeting", b"421 busy", Retry, "SMTPConnectError (421)"),
    ("greeting", b"554 no", Retry, "SMTPConnectError (554). Check TASKFLOW_SMTP_URL"),
    ("greeting", b"\x00\xff garbage", Retry, "SMTPConnectError (-1)"),
    ("greeting", CLOSE, Retry, "SMTPServerDisconnected"),
    ("greeting", HANG, Retry, "TimeoutError"),
    ("ehlo", CLOSE, Retry, "SMTPServerDisconnected"),
    ("mail", b"451 4.7.1 greylisted", Retry, "the server refused the sender (451)"),
    ("mail", b"550 5.7.1 not you", Reject, "the server refused the sender (550)"),
    ("mail", b"530 5.7.0 log in", Retry, "refused the sender (530). Check TASKFLOW_SMTP_URL"),
    ("mail", CLOSE, Retry, "SMTPServerDisconnected"),
    ("mail", FLOOD, Retry, "SMTPResponseException (500)"),
    ("rcpt", b"450 4.2.0 greylisted", Retry, "the server refused the recipient (450)"),
    ("rcpt", b"421 closing", Retry, "the server refused the recipient (421)"),
    ("rcpt", b"550 5.1.1 nobody", Reject, "the server refused the recipient (550)"),
    ("rcpt", b"553-a name\r\n553 nobody has", Reject, "the server refused the recipient (553)"),
    ("rcpt", HANG, Retry, "TimeoutError"),
    ("data", b"451 later", Retry, "the server refused the message (451)"),
    ("data", b"554 no", Reject, "the server refused the message (554)"),
    ("data", CLOSE, Retry, "SMTPServerDisconnected"),
    ("data", HANG, Retry, "TimeoutError"),
    ("dot", b"452 full", Retry, "the server refused the message (452)"),
    ("dot", b"554 5.7.1 spam: 492817", Reject, "the server refused the message (554)"),
    ("dot", CLOSE, OutcomeUnknown, "no answer after its last byte: SMTPServerDisconnected"),
    ("dot", HANG, OutcomeUnknown, "no answer after its last byte: TimeoutError"),
    ("dot", b"\xff garbage", OutcomeUnknown, "no answer after its last byte"),
    ("dot", FLOOD, OutcomeUnknown, "no answer after its last byte"),
]


@pytest.mark.parametrize(("step", "answer", "kind", "reason"), ENDS)
def test_send_ends_as_the_server_says_at_a_step(
    mail: Callable[..., Flask],
    caplog: pytest.LogCaptureFixture,
    step: str,
    answer: bytes | None,
    kind: type[Exception],
    reason: str,
) -> None:
    # A busy machine comes to the dot in two seconds, too.
    timeout = 60 if answer is not HANG else 2 if step == "dot" else 0.5
    with raw_server(Script({step: answer})) as port:
        ended = end_of_send(mail(port, send_timeout=timeout), caplog)

    assert type(ended.error) is kind
    assert (ended.error.__cause__, ended.error.__context__) == (None, None)
    assert reason in ended.log
    assert OTP_ not in ended.shown + ended.log
    assert "ann@" not in ended.log


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["the connection breaks", "the time is over"])
def test_what_happens_after_the_message_was_taken_is_no_failure(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    say, ended = smtplib.SMTP.putcmd, threading.Event()

    def break_at_quit(session: smtplib.SMTP, cmd: str, args: str = "") -> None:
        if cmd != "quit":
            say(session, cmd, args)
            return
        if late:
            assert ended.wait(WITHIN)
        raise smtplib.SMTPServerDisconnected("gone")

    monkeypatch.setattr(smtplib.SMTP, "putcmd", break_at_quit)
    with raw_server(Script({})) as port:
        sent = end_of_send(mail(port, send_timeout=2 if late else 60), caplog)
        ended.set()

    assert sent.error is None
    assert sent.log == ""


def test_ehlo_that_is_refused_is_for_the_operator(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    with raw_server(Script({"ehlo": b"550 no", "helo": b"550 no"})) as port:
        ended = end_of_send(mail(port), caplog)

    assert type(ended.error) is Retry
    assert "Check TASKFLOW_SMTP_URL and the mail server" in ended.log


def test_nothing_goes_out_once_the_time_is_over(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    given_up, over = threading.Event(), threading.Event()
    came: list[bytes] = []

    def go_on_too_late(client: socket.socket) -> None:
        lines = client.makefile("rb")
        client.sendall(b"220 here\r\n")
        for line in lines:
            if line.lower().startswith(b"data"):
                assert given_up.wait(WITHIN)
                break
            client.sendall(b"250 fine\r\n")
        try:
            client.sendall(b"354 go on\r\n")
            came.extend(lines)
        finally:
            over.set()

    with raw_server(go_on_too_late) as port:
        ended = end_of_send(mail(port, send_timeout=0.5), caplog)
        given_up.set()
        assert over.wait(WITHIN)

    assert type(ended.error) is Retry
    assert came == []


@pytest.mark.slow
def test_connection_that_is_reset_in_the_message_is_no_unknown_outcome(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # More than both sockets hold is written, so that the last bytes cannot be out.
    def reset(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lines = client.makefile("rb")
        client.sendall(b"220 here\r\n")
        for line in lines:
            if line.lower().startswith(b"data"):
                client.sendall(b"354 go on\r\n")
                lines.readline()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            client.sendall(b"250 fine\r\n")

    with raw_server(reset) as port:
        app = mail(port, send_timeout=60)
        use_text(app, tmp_path, "{{ otp }}\n" + f"{'x' * 700}\n" * 12_000)
        ended = end_of_send(app, caplog)

    assert type(ended.error) is Retry


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_nothing_goes_out_once_the_time_is_over_within_starttls(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture, certificate: Path
) -> None:
    given_up, over = threading.Event(), threading.Event()
    script = Script({})

    def shake_hands_too_late(client: socket.socket) -> None:
        lines = client.makefile("rb")
        client.sendall(b"220 here\r\n")
        lines.readline()
        client.sendall(b"250-here\r\n250 STARTTLS\r\n")
        lines.readline()
        client.sendall(b"220 go on\r\n")
        assert given_up.wait(WITHIN)
        try:
            with context(certificate).wrap_socket(client, server_side=True) as secured:
                script.answers["greeting"] = None
                script(secured)
        finally:
            over.set()

    with raw_server(shake_hands_too_late) as port:
        ended = end_of_send(mail(port, smtp_url=f"smtp://localhost:{port}", send_timeout=0.5), caplog)
        given_up.set()
        assert over.wait(WITHIN)

    assert type(ended.error) is Retry
    assert script.content == []


@pytest.mark.parametrize("template", ["{{ otp }}{{ 1 / 0 }}", "{{ otp }}{{ nothing }}"])
def test_template_that_raises_leaves_no_code_in_frames(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture, tmp_path: Path, template: str
) -> None:
    app = mail(1)
    use_text(app, tmp_path, template)

    ended = end_of_send(app, caplog)

    assert ended.error is not None
    assert "code.txt" in ended.shown
    assert OTP_ not in ended.shown + ended.log


def test_line_that_begins_with_a_dot_keeps_it(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    raw = Raw()
    with mail_server(raw) as port:
        app = mail(port)
        use_text(app, tmp_path, "{{ otp }}\n.hidden\n.\n..\nend")
        ended = end_of_send(app, caplog)

    assert ended.error is None
    assert b"\r\n.hidden\r\n=2E\r\n..\r\nend\r\n" in raw.came[0][1]


def use_text(app: Flask, folder: Path, text: str) -> None:
    """Give an app a plain text of its own."""
    (folder / "taskflow/email").mkdir(parents=True)
    (folder / "taskflow/email/code.txt").write_text(text)
    app.jinja_loader = jinja2.FileSystemLoader(folder)


def test_server_that_is_away_is_a_reason_to_try_again(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]

    refused = end_of_send(mail(port), caplog)
    unknown = end_of_send(mail(port, smtp_url="smtp://mail.invalid"), caplog)

    assert type(refused.error) is type(unknown.error) is Retry
    assert "ConnectionRefusedError" in refused.log
    assert "gaierror" in unknown.log


def test_exit_in_the_middle_of_a_send_leaves_no_code_in_frames(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGUSR1, leave)
    script = Script({"dot": HANG})
    script.on_dot = lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    try:
        with raw_server(script) as port:
            ended = end_of_send(mail(port, send_timeout=WITHIN), caplog)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert type(ended.error) is SystemExit
    assert any(OTP_.encode() in line for line in script.content)
    assert "strategies/_email.py" in ended.shown
    assert OTP_ not in ended.shown


@dataclass
class Raw(Handler):
    """Keep what came as it came."""

    came: list[tuple[str, bytes, list[str]]] = field(default_factory=list)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        self.came.append(
            (str(session.host_name), content, [*envelope.mail_options, *map(str, envelope.rcpt_tos)])
        )
        return "250 OK"


def test_message_is_7_bit_whatever_the_server_offers(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    raw = Raw()
    with mail_server(raw, enable_SMTPUTF8=True) as port:
        ended = end_of_send(mail(port, locale="vi"), caplog)

    ((_, content, options),) = raw.came
    assert ended.error is None
    assert content.isascii()
    assert b"quoted-printable" in content
    assert not any("8BITMIME" in option or "SMTPUTF8" in option for option in options)


def test_local_part_beyond_ascii_goes_to_servers_that_say_so_and_is_rejected_by_others(
    mail: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    task = replace(TASK, recipient=Recipient(email="đặng@bücher.example"))
    able, unable = Raw(), Raw()

    with mail_server(able, enable_SMTPUTF8=True) as port:
        taken = end_of_send(mail(port), caplog, task)
    with mail_server(unable) as port:
        refused = end_of_send(mail(port), caplog, task)

    ((_, content, options),) = able.came
    assert taken.error is None
    assert {"SMTPUTF8", "BODY=8BITMIME", "đặng@xn--bcher-kva.example"} <= set(options)
    assert "\r\nTo: đặng@xn--bcher-kva.example\r\n".encode() in content
    assert unable.came == []
    assert type(refused.error) is Reject
    assert "does not offer SMTPUTF8" in refused.log


@pytest.mark.parametrize(
    ("host", "settings", "expected"),
    [
        ("app.bank.example", {}, "app.bank.example"),
        ("3f2a9c", {}, "bank.example"),
        ("localhost", {}, "bank.example"),
        ("vm.localdomain", {}, "bank.example"),
        ("my_mac.local", {}, "bank.example"),
        ("a name", {"email_sender": "codes@bücher.example"}, "xn--bcher-kva.example"),
        ("app.bank.example", {"smtp_ehlo_name": "Out.Bücher.example"}, "out.xn--bcher-kva.example"),
        ("3f2a9c", {"smtp_ehlo_name": "[192.0.2.1]"}, "[192.0.2.1]"),
    ],
)
def test_server_is_greeted_with_a_full_name_that_no_name_server_is_asked_for(
    mail: Callable[..., Flask],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    settings: dict[str, str],
    expected: str,
) -> None:
    def hang(name: str = "") -> str:
        raise AssertionError("a name server was asked")

    raw = Raw()
    with mail_server(raw) as port:
        app = mail(port, **settings)
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        monkeypatch.setattr(socket, "getfqdn", hang)
        ended = end_of_send(app, caplog)

    assert ended.error is None
    assert raw.came[0][0] == expected


@pytest.mark.parametrize("name", ["app", "", "a b.example", "[nonsense]", "app.example.com\r\n", 7])
def test_name_to_greet_with_when_bad_is_refused(mail: Callable[..., Flask], name: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_SMTP_EHLO_NAME = .*full name of this host"):
        mail(1, smtp_ehlo_name=name)
