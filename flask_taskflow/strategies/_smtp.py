"""Hand a message to a mail server, and tell how that ended: taken, refused, refused for now, or unknown."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from .._config.providers import MailServer
from ..errors import OutcomeUnknown, Reject, Retry
from ._deadline import within
from ._letter import Letter

#: A wait for one reply is bounded a little later than the whole send, so that it is that which says so.
_LATER = 1.0
_AUTHENTICATION_REQUIRED = 530


class Trouble(NamedTuple):
    """Why a message was not, or perhaps not, taken; nothing in it holds the message.

    :param error: the class of what a strategy raises: ``Reject``, ``Retry`` or ``OutcomeUnknown``.
    :param reason: why, in words of ours: servers quote messages.
    """

    error: Callable[[str], Exception]
    reason: str


def deliver(letter: Letter, server: MailServer, *, timeout: float, name: str) -> Trouble | None:
    """Hand a message to a server; return ``None`` if it was taken.

    :param timeout: seconds for all of it.
    :param name: what this host calls itself.
    """
    session = _Session(server, timeout, name)
    try:
        within(timeout, lambda: session.deliver(letter), cut=session.cut)
    except OSError as error:
        # The errors of smtplib and ssl are among them. The session may go on while it is looked at: `taken`
        # is set before `unanswered` is cleared, so it is read after that.
        unanswered = session.unanswered
        return None if session.taken else _trouble(error, unanswered=unanswered)
    return None


class _Session(smtplib.SMTP):
    """A session that another thread can cut.

    :param server: whom to talk to.
    :param seconds: how long a reply may take.
    :param name: what this host calls itself.
    """

    def __init__(self, server: MailServer, seconds: float, name: str) -> None:
        self._server = server
        self._name = name
        self._reply_within = seconds + _LATER
        self._lock = threading.Lock()
        self._is_cut = False
        #: Whether the final dot is or may be out, without an answer.
        self.unanswered = False
        #: Whether the server said that it took the message: what fails then is no failure.
        self.taken = False

    def deliver(self, letter: Letter) -> None:
        """Send a message; done when the server has taken it."""
        try:
            # Without a name smtplib would ask for it (getfqdn), which may take a name server's time.
            super().__init__(self._server.host, self._server.port, self._name, self._reply_within)
            if self._server.security == "starttls":
                self.starttls(context=ssl.create_default_context())
            self.ehlo_or_helo_if_needed()
            if self._server.login is not None:
                self.login(*self._server.login)
            self._hand_over(letter)
            # No wait for its reply: the message is taken.
            self.putcmd("quit")
        finally:
            self.close()

    def connect(self, host: str = "", port: int = 0, source_address: Any = None) -> tuple[int, bytes]:
        """Connect, and read the greeting; ``__init__`` calls this."""
        self.file = None
        self.sock = socket.create_connection((host, port), self._reply_within)
        if self._server.security == "tls":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=host)
        with self._lock:
            self._stop_if_cut()
        return self.getreply()

    def _hand_over(self, letter: Letter) -> None:
        options = ""
        if letter.needs_utf8:
            if not self.has_extn("smtputf8"):
                raise _NoUTF8
            # RFC 6531, 3.1: such a server takes 8 bits, too.
            options, self.command_encoding = " SMTPUTF8 BODY=8BITMIME", "utf-8"
        code, _ = self.docmd("mail", f"FROM:<{letter.sender}>{options}")
        if code != 250:
            raise _Refused("the sender", code)
        code, _ = self.docmd("rcpt", f"TO:<{letter.recipient}>")
        if code not in (250, 251):
            raise _Refused("the recipient", code)
        code, _ = self.docmd("data")
        if code != 354:
            raise _Refused("the message", code)
        self._send_content(re.sub(rb"(?m)^\.", b"..", letter.content) + b".\r\n")
        code, _ = self.getreply()
        self.taken = 200 <= code < 300
        if 200 <= code < 600:
            self.unanswered = False
        if not self.taken:
            raise _Refused("the message", code)

    def _send_content(self, content: bytes) -> None:
        with self._lock:
            self._stop_if_cut()
            self.unanswered = True
        assert self.sock is not None
        try:
            self.sock.sendall(content)
        except OSError:
            # At least the last bytes, the dot, did not go out.
            self.unanswered = False
            raise

    def _stop_if_cut(self) -> None:
        if self._is_cut:
            raise TimeoutError

    def cut(self) -> None:
        """End the connection under whoever waits for it: no message goes out from now on."""
        with self._lock:
            self._is_cut = True
        sock = getattr(self, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _Refused(OSError):
    """The server refused a part of the transaction.

    :param what: the part.
    :param code: its reply's.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__()
        self.what = what
        self.code = code


class _NoUTF8(OSError):
    """An address is beyond ASCII, and the server has no SMTPUTF8."""


def _trouble(error: OSError, *, unanswered: bool) -> Trouble:
    """Tell what an error means: RFC 5321, 4.2.1 has the codes."""
    reason = _reason(error)
    if unanswered:
        return Trouble(OutcomeUnknown, f"no answer after its last byte: {reason}")
    if isinstance(error, _NoUTF8):
        return Trouble(Reject, reason)
    if isinstance(error, _Refused) and error.code != _AUTHENTICATION_REQUIRED:
        return Trouble(Reject if 500 <= error.code < 600 else Retry, reason)
    # Before the message was spoken of: whatever is final there, another setting mends it.
    final = isinstance(error, smtplib.SMTPResponseException) and 500 <= error.smtp_code < 600
    settings = smtplib.SMTPNotSupportedError | ssl.SSLCertVerificationError | _Refused
    if final or isinstance(error, settings):
        reason = f"{reason}. Check TASKFLOW_SMTP_URL and the mail server"
    return Trouble(Retry, reason)


def _reason(error: OSError) -> str:
    """Return what happened, in words that hold nothing of the message."""
    name = type(error).__name__
    if isinstance(error, _NoUTF8):
        return "the server does not offer SMTPUTF8, which an address beyond ASCII needs"
    if isinstance(error, _Refused):
        return f"the server refused {error.what} ({error.code})"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{name} ({error.smtp_code})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{name} ({error.verify_message})"
    if isinstance(error, smtplib.SMTPException):
        return name
    return f"{name} ({error.strerror})" if error.strerror else name
