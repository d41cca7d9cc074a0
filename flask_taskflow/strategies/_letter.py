"""A message as it goes to a mail server, written here byte by byte.

Python's ``email`` parses what it is given: an encoded word in a subject is decoded, and, before 3.11.10 and
3.12.5, its line breaks become headers (CVE-2024-6923). Here nothing is parsed: texts are plain, or encoded.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import b2a_qp
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from .._keyring import current_keyring
from .._mailbox import read_mailbox
from ._texts import render, render_code

if TYPE_CHECKING:
    from .._tasks import Task

# RFC 2045, 6.7: no quoted-printable text can have this in it.
_BOUNDARY = "=_taskflow"
# RFC 2047, 2: a word has 75 characters at most, and its line 76, with the header's name.
_WORD_MAX = 39
_LINE_MAX = 76
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and its envelope. The ``repr`` does not show the message, which holds a code.

    :param sender: the address it is from.
    :param recipient: the only address it goes to.
    :param message_id: what mail servers call it, see :meth:`Keyring.message_id`.
    :param content: its lines, each of them ASCII and short; where an address of the envelope is beyond
        ASCII, the header with that address has it in UTF-8.
    """

    sender: str
    recipient: str
    message_id: str
    content: bytes = field(repr=False)

    @property
    def needs_utf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can take it."""
        return not (self.sender + self.recipient).isascii()


def compose(task: Task[Any], otp: str, *, sender: Address) -> Letter:
    """Return the message for a code: plain text and HTML.

    :param task: what is confirmed; ``task.recipient.email`` is the only recipient.
    :param otp: the code.
    :param sender: whom it is from.
    """
    local, domain = read_mailbox(str(task.recipient.email))
    shown = _in_header(sender.username, sender.domain)
    message_id = f"<{current_keyring().message_id(task.id, str(otp))}@{sender.domain}>"
    headers = {
        "From": f"{_phrase(sender.display_name)} <{shown}>" if sender.display_name else shown,
        "To": _in_header(local, domain),
        "Subject": _unstructured("Subject", render("email/subject.txt", task, otp)),
        "Date": formatdate(usegmt=True),
        # The same for each repeat of a code: who has it twice sees one message (RFC 5322, 3.6.4).
        "Message-ID": message_id,
        # RFC 3834, 5: no out-of-office reply shall quote the code.
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
        "Content-Type": f'multipart/alternative; boundary="{_BOUNDARY}"',
    }
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    for subtype, template in (("plain", "email/code.txt"), ("html", "email/code.html")):
        lines += [b"", *_part(subtype, render_code(template, task, otp))]
    lines += [b"", f"--{_BOUNDARY}--".encode(), b""]
    envelope = f"{sender.username}@{sender.domain}", f"{local}@{domain}"
    return Letter(*envelope, message_id, b"\r\n".join(lines))


def _in_header(local: str, domain: str) -> str:
    # RFC 5322, 3.4.1: two dots in a row only within quotes.
    return f'"{local}"@{domain}' if ".." in local else f"{local}@{domain}"


def _part(subtype: str, text: str) -> list[bytes]:
    head = (
        f"--{_BOUNDARY}",
        f"Content-Type: text/{subtype}; charset=utf-8",
        # Never 8 bits: not each server takes them, and a signature (DKIM) breaks if one converts them.
        "Content-Transfer-Encoding: quoted-printable",
        "",
    )
    return [*(line.encode() for line in head), *_quoted_printable(text)]


def _quoted_printable(text: str) -> list[bytes]:
    lines = (b2a_qp(line.encode(errors="replace")) for line in re.split("\r\n|\r|\n", text))
    return [part for line in lines for part in line.split(b"\n")]


def _phrase(name: str) -> str:
    """Return a display name as a quoted string, or as encoded words."""
    quoted = '"{}"'.format(re.sub(r'(["\\])', r"\\\1", name))
    return quoted if _is_plain("From", quoted) else _encoded_words(name)


def _unstructured(header: str, text: str) -> str:
    """Return a text as the value of a header, on one line as it will be shown."""
    line = _CONTROLS.sub(" ", text).strip()
    return line if _is_plain(header, line) else _encoded_words(line)


def _is_plain(header: str, value: str) -> bool:
    fits = len(header) + len(": ") + len(value) <= _LINE_MAX
    return fits and value.isascii() and value.isprintable() and "=?" not in value


def _encoded_words(text: str) -> str:
    """Return a text as encoded words (RFC 2047), each of whole characters and on a line of its own."""
    words, word = [], b""
    for character in text:
        more = character.encode(errors="replace")
        if len(word) + len(more) > _WORD_MAX:
            words.append(word)
            word = b""
        word += more
    return "\r\n ".join(f"=?utf-8?b?{b64encode(word).decode()}?=" for word in [*words, word])
