"""Real SMTP servers: one that keeps messages, and ones that talk as told."""

from __future__ import annotations

import asyncio
import email
import email.policy
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "mailer", "p@ss/w:rd?#%"
OPENSSL = shutil.which("openssl")
WITHIN = 60.0


@dataclass
class Taken:
    """What a server took."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    encrypted: bool
    user: str | None

    def body(self, kind: str = "plain") -> str:
        part = self.message.get_body((kind,))
        assert part is not None
        return str(part.get_content())


@dataclass
class Handler:
    """Keep messages; refuse as many as ``failures`` says, quoting them as real servers do."""

    failures: int = 0
    refuse_recipients: bool = False
    taken: list[Taken] = field(default_factory=list)

    def taken_for(self, address: str) -> list[Taken]:
        return [taken for taken in self.taken if address in taken.recipients]

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
        assert server.transport is not None
        encrypted = server.transport.get_extra_info("ssl_object") is not None
        recipients = [str(name) for name in envelope.rcpt_tos]
        user = session.auth_data.decode() if isinstance(session.auth_data, bytes) else None
        taken = Taken(str(envelope.mail_from), recipients, parsed, encrypted, user)
        if self.failures:
            self.failures -= 1
            return "554 5.7.1 spam: " + " ".join(taken.body().split())
        self.taken.append(taken)
        return "250 OK"


def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    known = (USER.encode(), PASSWORD.encode())
    good = isinstance(data, LoginPassword) and (data.login, data.password) == known
    return AuthResult(success=good, handled=False, auth_data=data.login if good else None)


def make_certificate(folder: Path) -> Path:
    """Make a certificate for localhost that vouches for itself; its key lies beside it."""
    command = [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return made


@contextmanager
def mail_server(
    handler: Handler, *, tls: ssl.SSLContext | None = None, at: socket.socket | None = None, **options: Any
) -> Iterator[int]:
    """Run aiosmtpd in a thread; yield its port. With ``tls`` it speaks TLS from the first byte.

    :param at: a bound socket to listen at, instead of a new one.
    """
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        listener = at or socket.create_server(("localhost", 0))
        return await loop.create_server(
            lambda: SMTP(handler, hostname="localhost", loop=loop, **options), sock=listener, ssl=tls
        )

    async def stop() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(WITHIN)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(WITHIN)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WITHIN)
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
            thread.join(WITHIN)
