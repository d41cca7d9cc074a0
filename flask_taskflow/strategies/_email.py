"""Send codes by e-mail, with nothing but the standard library."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from .._config.config import current_config
from .._config.providers import read_mail_server, read_sender
from .._mailbox import ascii_domain, read_mailbox
from .._otp import empty_frames
from ..errors import ConfigError, InvalidTask
from ._base import BaseStrategy
from ._letter import compose
from ._smtp import Trouble, deliver

if TYPE_CHECKING:
    from .._tasks import Task

#: Names that a host calls itself by, and that nobody else knows.
_NOT_FULL = ("localhost", "localdomain", "local")


class EmailStrategy(BaseStrategy):
    """Send codes by e-mail over SMTP.

    ``TASKFLOW_SMTP_URL`` names the server, ``TASKFLOW_EMAIL_SENDER`` the sender; an app overrides the
    templates ``taskflow/email/subject.txt``, ``code.txt`` and ``code.html``. One send takes
    ``TASKFLOW_SEND_TIMEOUT`` at most. The log tells why one failed, without what the server said.
    """

    address = "email"

    def normalise(self, address: str) -> str:
        """Return an address as mail servers take it: its domain in ASCII form and lower case.

        :raises InvalidTask: if no mail can be sent there, whatever the server offers.
        """
        try:
            return "@".join(read_mailbox(address))
        except ValueError as error:
            problem = str(error)
        raise InvalidTask(f"recipient: email is not usable as an address: {problem}")

    def check_settings(self) -> None:
        """Refuse an app without a mail server or a sender.

        :raises ConfigError: if one is missing.
        """
        config = current_config()
        if config.smtp_url is None or config.email_sender is None:
            raise ConfigError(
                "set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER: EmailStrategy needs them, "
                "unless the app is TESTING before init_app()"
            )

    def send(self, task: Task[Any], otp: str) -> str | None:
        """Send a code; return the message's ``Message-ID``.

        :raises ConfigError: if a setting is missing.
        :raises Reject: if the server refused it for good (5yz).
        :raises Retry: if it refused it for now (4yz), or could not be reached, or not by these settings.
        :raises OutcomeUnknown: if it did not answer after the final dot: it may have taken the message.
        """
        try:
            self.check_settings()
            message_id, trouble = _attempt(task, otp)
        except BaseException as error:
            # An exit or a timeout of gevent, too: trackers of errors keep what frames hold.
            empty_frames(error)
            raise
        if trouble is not None:
            # Who sends says it in the log.
            raise trouble.error(trouble.reason)
        return message_id


def _attempt(task: Task[Any], otp: str) -> tuple[str, Trouble | None]:
    config = current_config()
    assert config.smtp_url is not None
    assert config.email_sender is not None
    sender = read_sender(config.email_sender)
    name = config.smtp_ehlo_name or _name_of_host() or sender.domain
    letter = compose(task, otp, sender=sender)
    server = read_mail_server(config.smtp_url)
    return letter.message_id, deliver(letter, server, timeout=config.send_timeout, name=name)


def _name_of_host() -> str | None:
    """Return this host's name if it is a full one, as the host itself has it: no name server is asked."""
    try:
        name = ascii_domain(socket.gethostname())
    except ValueError:
        return None
    return None if name.rpartition(".")[2] in _NOT_FULL else name
