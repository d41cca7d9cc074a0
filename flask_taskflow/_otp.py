"""Codes, digests, seals and masks: everything that is computed from the secret key.

A code is derived, not stored: HMAC-SHA-256 under a key of its own, truncated to digits. 256 bits
modulo 10^n leave a bias below 2^-200, so the digits are uniform (OWASP ASVS 5.0, 6.5.3-4).
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NoReturn

from .errors import InvalidCode

TYPED_MAX = 64
_PHONE = re.compile(r"\+?[0-9 ()./-]+")


class OTP(str):
    """A code on its way to a strategy: a ``str`` that hides from ``repr`` and cannot be pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "OTP('******')"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a one-time code must not be pickled or copied")


def new_nonce() -> str:
    """Return 128 fresh random bits as text."""
    return secrets.token_hex(16)


class Keyring:
    """The app's secret keys, newest first, and what is computed with them.

    :param secrets_: ``SECRET_KEY``, then ``SECRET_KEY_FALLBACKS``.
    """

    def __init__(self, secrets_: Iterable[bytes]) -> None:
        purposes = ("code", "digest", "seal", "recipient")
        self._keys = [
            {purpose: _mac(secret, f"flask-taskflow/1/{purpose}".encode()) for purpose in purposes}
            for secret in secrets_
        ]

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys)"

    def code(self, task_id: str, method: str, nonce: str, *, length: int) -> OTP:
        """Return the code of a nonce under the newest key, ``length`` digits."""
        return self._code(0, task_id, method, nonce, length)

    def recover(self, task_id: str, method: str, nonce: str, digest: str, *, length: int) -> OTP | None:
        """Return the code that was derived from a nonce, or ``None`` if its key was rotated away.

        :param digest: what Redis holds of the code.
        :param length: the number of digits, which may have been configured anew since.
        """
        for index in range(len(self._keys)):
            code = self._code(index, task_id, method, nonce, length)
            if hmac.compare_digest(self._digest(index, task_id, method, code).encode(), digest.encode()):
                return code
        return None

    def digest(self, task_id: str, method: str, code: str) -> str:
        """Return what Redis keeps of a code: an HMAC bound to the task and the method."""
        return self._digest(0, task_id, method, code)

    def digests(self, task_id: str, method: str, code: str) -> list[str]:
        """Return a code's digest under each key, newest first."""
        return [self._digest(index, task_id, method, code) for index in range(len(self._keys))]

    def seal(self, *parts: str | bytes) -> str:
        """Return the seal over some stored strings."""
        return _mac(self._keys[0]["seal"], *parts).hex()

    def holds(self, seal: str, *parts: str | bytes) -> bool:
        """Tell whether a seal was made over these strings by one of the keys."""
        return any(
            hmac.compare_digest(_mac(keys["seal"], *parts).hex().encode(), seal.encode())
            for keys in self._keys
        )

    def recipient(self, address: str) -> str:
        """Return the name under which an address's limits are counted, however it is spelt."""
        return _mac(self._keys[0]["recipient"], _plain(address)).hex()[:32]

    def _code(self, index: int, task_id: str, method: str, nonce: str, length: int) -> OTP:
        mac = _mac(self._keys[index]["code"], task_id, method, nonce)
        return OTP(str(int.from_bytes(mac) % 10**length).zfill(length))

    def _digest(self, index: int, task_id: str, method: str, code: str) -> str:
        return _mac(self._keys[index]["digest"], task_id, method, code).hex()


def _plain(address: str) -> str:
    text = unicodedata.normalize("NFKC", address).strip().casefold()
    if _PHONE.fullmatch(text):
        return "".join(c for c in text if c in "+0123456789")
    return text.rstrip(".")


def _mac(key: bytes, *parts: str | bytes) -> bytes:
    message = b""
    for part in parts:
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        message += len(raw).to_bytes(4) + raw
    return hmac.digest(key, message, "sha256")


def read_code(typed: object, pattern: re.Pattern[str]) -> OTP:
    """Return the code that a person meant: in ASCII digits, and without spaces and hyphens.

    :param typed: what came in, of any type.
    :param pattern: what a code of the method looks like; spaces and hyphens that it has a place for stay.
    :raises InvalidCode: if it cannot be a code.
    """
    code = _meant(typed, pattern) if isinstance(typed, str) and len(typed) <= TYPED_MAX else None
    # With a character too many it may hold the right code, which a traceback must not show.
    del typed
    if code is None:
        raise InvalidCode("this cannot be a code: type the code as it was sent")
    return code


def _meant(typed: str, pattern: re.Pattern[str]) -> OTP | None:
    digits = "".join(str(unicodedata.decimal(c, c)) for c in typed.strip())
    for text in (digits, _without_gaps(digits)):
        if text.isprintable() and pattern.fullmatch(text):
            return OTP(text)
    return None


def _without_gaps(text: str) -> str:
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Pd", "Cf"))


def mask(address: str) -> str:
    """Return an address fit for logs: ``fo****@example.com``, ``+12****10``.

    A name of one letter is hidden wholly, one of two or three shows its first.
    """
    name, at, domain = address.rpartition("@")
    if at:
        shown = 0 if len(name) < 2 else 1 if len(name) < 4 else 2
        return f"{name[:shown]}****@{domain}"
    if len(address) < 8:
        return "****"
    return f"{address[:3]}****{address[-2:]}"


def mask_all(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping of fields to masked addresses."""
    return {field: mask(address) if address else "" for field, address in addresses.items()}
