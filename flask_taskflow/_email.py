"""Send codes by e-mail, with nothing but the standard library."""

from __future__ import annotations

import logging
import smtplib
import socket
import ssl
import time
from contextlib import suppress
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, Any

from ._bounded import within
from ._providers import MailServer, read_mail_server, read_sender
from ._texts import current_config, render, render_code
from .errors import ConfigError
from .strategies import BaseStrategy

if TYPE_CHECKING:
    from ._task import Task

logger = logging.getLogger(__name__)

#: A wait for one reply is bounded a little later than the whole send, so that it is that which says so.
_LATER = 1.0


class EmailStrategy(BaseStrategy):
    """Send codes by e-mail over SMTP.

    ``TASKFLOW_SMTP_URL`` names the server, ``TASKFLOW_EMAIL_SENDER`` the sender; an app overrides the
    templates ``taskflow/email/subject.txt``, ``code.txt`` and ``code.html``. One send takes
    ``TASKFLOW_SEND_TIMEOUT`` at most. The log tells why one failed, without what the server said.
    """

    address = "email"

    def send(self, task: Task[Any], otp: str) -> None:
        """Send a code.

        :raises ConfigError: if a setting is missing.
        :raises OSError: if the server cannot be reached or does not take the message.
        """
        try:
            config = current_config()
            if config.smtp_url is None or config.email_sender is None:
                raise ConfigError("set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER")
            message = compose(task, otp, sender=read_sender(config.email_sender))
            deliver(message, read_mail_server(config.smtp_url), timeout=config.send_timeout)
        except Exception as error:
            logger.warning("The e-mail for task %s was not sent: %s", task.id, _reason(error))
            raise


def compose(task: Task[Any], otp: str, *, sender: Address) -> EmailMessage:
    """Return the message for a code: plain text and HTML.

    :param task: what is confirmed; ``task.recipient.email`` is the only recipient.
    :param otp: the code.
    :param sender: whom it is from.
    """
    name, _, domain = str(task.recipient.email).rpartition("@")
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = Address(username=name, domain=domain)
    _set_subject(message, render("email/subject.txt", task, otp))
    message["Date"] = formatdate(usegmt=True)
    message["Message-ID"] = make_msgid(domain=sender.domain)
    # RFC 3834, 5: no out-of-office reply shall quote the code.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(render_code("email/code.txt", task, otp) + "\n")
    message.add_alternative(render_code("email/code.html", task, otp) + "\n", subtype="html")
    return message


def _set_subject(message: EmailMessage, text: str) -> None:
    """Set a subject of one line, whatever a template made of it."""
    line = " ".join(text.split())
    if line.isascii():
        message["Subject"] = line
    else:
        # Python 3.11's folding of such a header loses spaces; Header's does not.
        encoded = Header(line, "utf-8", maxlinelen=75, header_name="Subject")
        message.set_raw("Subject", encoded.encode(linesep="\r\n"))


def deliver(message: EmailMessage, server: MailServer, *, timeout: float) -> None:
    """Hand a message to a server.

    :param timeout: seconds for all of it.
    :raises OSError: if that fails; ``smtplib``'s errors are among them.
    """
    session = _Session(server, timeout)
    within(timeout, lambda: session.deliver(message), cut=session.cut)


class _Session(smtplib.SMTP):
    """A session that another thread can cut.

    :param server: whom to talk to.
    :param seconds: when it is too late to begin.
    """

    def __init__(self, server: MailServer, seconds: float) -> None:
        self._server = server
        self._deadline = time.monotonic() + seconds
        self._reply_within = seconds + _LATER

    def deliver(self, message: EmailMessage) -> None:
        """Send a message; done when the server has taken it."""
        try:
            super().__init__(self._server.host, self._server.port, timeout=self._reply_within)
            if self._server.security == "starttls":
                self.starttls(context=ssl.create_default_context())
            if self._server.login is not None:
                self.login(*self._server.login)
            to = message["To"].addresses[0].addr_spec
            self.send_message(message, message["From"].addresses[0].addr_spec, [to])
            # No wait for its reply: an error after the message was taken is none.
            self.putcmd("quit")
        finally:
            self.close()

    def connect(self, host: str = "", port: int = 0, source_address: Any = None) -> tuple[int, bytes]:
        """Connect, and read the greeting; ``__init__`` calls this."""
        self.file = None
        self.sock = socket.create_connection((host, port), self._reply_within)
        if self._server.security == "tls":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=host)
        if time.monotonic() > self._deadline:
            raise TimeoutError("connected too late")
        return self.getreply()

    def cut(self) -> None:
        """End the connection under whoever waits for it."""
        sock = getattr(self, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    """Return why a send failed, in words that hold nothing of the message: servers quote it."""
    name = type(error).__name__
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"{name} ({', '.join(str(code) for code, _ in error.recipients.values())})"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{name} ({error.smtp_code})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{name} ({error.verify_message})"
    if isinstance(error, smtplib.SMTPException) or not isinstance(error, OSError):
        return name
    return f"{name} ({error.strerror})" if error.strerror else name
