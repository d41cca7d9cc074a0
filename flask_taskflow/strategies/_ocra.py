"""Challenge and response by a shared key: OCRA, RFC 6287."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from .._otp import OTP
from ..errors import ConfigError

_T = TypeVar("_T")

_HASHES = {"SHA1": 20, "SHA256": 32, "SHA512": 64}
_QUESTION_BYTES = 128
_QUESTIONS = {
    "A": re.compile(r"[A-Za-z0-9]+"),
    "N": re.compile(r"[0-9]+"),
    "H": re.compile(r"[0-9A-Fa-f]+"),
}
#: The longest step of each unit, RFC 6287, section 6.3, and its seconds.
_STEPS = {"S": (59, 1), "M": (59, 60), "H": (48, 3600)}
_SUITE = re.compile(
    r"OCRA-1:HOTP-(?P<hash>SHA1|SHA256|SHA512)-(?P<digits>0|[4-9]|10)"
    r":(?P<counter>C-)?Q(?P<form>[ANH])(?P<length>[0-9]{1,2})"
    r"(-P(?P<pin>SHA1|SHA256|SHA512))?"
    r"(-S(?P<session>[0-9]{3}))?"
    r"(-T(?P<step>[0-9]{1,2})(?P<unit>[SMH]))?"
)


class Suite(NamedTuple):
    """What goes into a response, and how: the OCRASuite of RFC 6287, section 6.

    Make it with :func:`read_suite`.

    :param text: the suite as it is written; it is part of what is signed.
    :param hash: the name of the HMAC's hash.
    :param digits: the response's length, or 0 for the whole HMAC.
    :param counter: whether a counter goes in.
    :param form: the question's alphabet: ``A``, ``N`` or ``H``.
    :param length: how many characters a question may have.
    :param pin: the name of the PIN's hash, or ``None``.
    :param session: the bytes of session information, or 0.
    :param step: the seconds of a time step, or 0.
    """

    text: str
    hash: str
    digits: int
    counter: bool
    form: str
    length: int
    pin: str | None
    session: int
    step: int

    def respond(
        self,
        key: bytes,
        question: str,
        *,
        counter: int | None = None,
        pin_hash: bytes | None = None,
        session: bytes | None = None,
        time: float | None = None,
    ) -> OTP:
        """Return the response to a question.

        The suite says which of the other inputs must be there; those that it does not name must not.

        :param key: the shared key.
        :param question: the challenge, or both sides' in a row (RFC 6287, section 7.3).
        :param counter: 0 to 2^64 - 1.
        :param pin_hash: the hash of the PIN, by the hash that the suite names.
        :param session: what identifies the session; zeros are put in front of a shorter one.
        :param time: seconds since 1970, UTC.
        :return: the digits; without truncation, the HMAC in hexadecimal.
        :raises ValueError: for an input that is missing, not wanted or unusable.
        """
        message = (
            self.text.encode()
            + b"\0"
            + _given("counter", counter, self.counter, self._counter)
            + self._question(question)
            + _given("pin_hash", pin_hash, self.pin is not None, self._pin)
            + _given("session", session, self.session > 0, self._session)
            + _given("time", time, self.step > 0, self._time)
        )
        mac = hmac.digest(key, message, self.hash.lower())
        return OTP(_truncated(mac, self.digits) if self.digits else mac.hex())

    def _question(self, question: str) -> bytes:
        if not _QUESTIONS[self.form].fullmatch(question) or len(question) > 2 * self.length:
            raise ValueError(
                f"the question must be 1 to {self.length} characters, twice that with both sides', "
                f"that match {_QUESTIONS[self.form].pattern}"
            )
        if self.form == "A":
            raw = question.encode().hex()
        else:
            raw = f"{int(question):x}" if self.form == "N" else question
        # Digits of an odd number fill a byte from the left, as in the RFC's reference, appendix A.
        return bytes.fromhex(raw.ljust(2 * _QUESTION_BYTES, "0"))

    def _counter(self, counter: int) -> bytes:
        if not 0 <= counter < 2**64:
            raise ValueError("the counter must be 0 to 2^64 - 1")
        return counter.to_bytes(8)

    def _pin(self, pin_hash: bytes) -> bytes:
        size = _HASHES[self.pin or ""]
        if len(pin_hash) != size:
            raise ValueError(f"pin_hash must be the {size} bytes of the PIN's {self.pin}")
        return pin_hash

    def _session(self, session: bytes) -> bytes:
        if len(session) > self.session:
            raise ValueError(f"session must have {self.session} bytes at most")
        return session.rjust(self.session, b"\0")

    def _time(self, time: float) -> bytes:
        if not 0 <= time < 2**63:
            raise ValueError("time must be the seconds since 1970")
        return int(time // self.step).to_bytes(8)


def read_suite(text: str) -> Suite:
    """Return a suite by its name, like ``OCRA-1:HOTP-SHA256-8:QH64``.

    :raises ConfigError: if RFC 6287, section 6, knows no such suite.
    """
    match = _SUITE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r:.100} is no OCRA suite: write OCRA-1:HOTP-SHA256-8:QN08 or the like, by RFC 6287, 6"
        )
    part = match.groupdict()
    length, session = int(part["length"]), int(part["session"] or 0)
    longest, seconds = _STEPS[part["unit"] or "S"]
    count = int(part["step"] or 0)
    if not 4 <= length <= 64:
        raise ConfigError(f"{text}: the question's length must be 04 to 64")
    if part["session"] and not 1 <= session <= 512:
        raise ConfigError(f"{text}: the session must take 001 to 512 bytes")
    if part["step"] and not 1 <= count <= longest:
        raise ConfigError(f"{text}: the time step must be 1 to {longest}{part['unit']}")
    return Suite(
        text=text,
        hash=part["hash"],
        digits=int(part["digits"]),
        counter=part["counter"] is not None,
        form=part["form"],
        length=length,
        pin=part["pin"],
        session=session,
        step=count * seconds,
    )


def _given(name: str, value: _T | None, wanted: bool, encode: Callable[[_T], bytes]) -> bytes:
    if wanted and value is None:
        raise ValueError(f"this suite needs {name}=...")
    if not wanted and value is not None:
        raise ValueError(f"this suite takes no {name}: leave it out")
    return b"" if value is None else encode(value)


def _truncated(mac: bytes, digits: int) -> str:
    """Return the digits of an HMAC, RFC 4226, section 5.3; longer hashes end in the offset, too."""
    offset = mac[-1] & 15
    number = int.from_bytes(mac[offset : offset + 4]) & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)
