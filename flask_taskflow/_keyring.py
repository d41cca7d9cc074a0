"""Codes, digests and seals: everything that is computed from the secret keys.

A code is derived, not stored: HMAC-SHA-256 under a key of its own, truncated to digits. 256 bits
modulo 10^n leave a bias below 2^-200, so the digits are uniform (OWASP ASVS 5.0, 6.5.3-4).
"""

from __future__ import annotations

import hmac
import math
import re
import secrets
import time
import unicodedata
from array import array
from base64 import b32encode
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from flask import Flask, current_app

from ._lock import Lock
from ._mailbox import ascii_domain
from ._otp import OTP
from .errors import InvalidTask, KeyMissing

_KEYRING = "taskflow.keyring"
_PURPOSES = ("code", "digest", "seal", "recipient", "use", "message", "holder", "owner", "task", "asked")
_PHONE = re.compile(r"\+?[0-9 ()./-]+")
#: Characters that name a key, 25 bits: enough to tell a fleet's few keys apart.
_FINGERPRINT_LENGTH = 5
#: The sketch of guesses has so many cells of two bytes, twice: 2 MB a process.
_WIDTH, _DEPTH, _CELL_MAX = 2**17, 4, 2**16 - 1
#: So many guesses of all tasks are known again.
_SEEN_MAX = 4096
#: 128 bits as text.
_MAC_LENGTH = 22
_MAC = re.compile(rf"([a-z2-7]{{{_FINGERPRINT_LENGTH}}})\.[A-Za-z0-9_-]{{{_MAC_LENGTH}}}", re.ASCII)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def new_nonce() -> str:
    """Return 128 fresh random bits as text."""
    return secrets.token_hex(16)


class Presented(NamedTuple):
    """What a step is told of a code that somebody typed.

    :param digests: its digest under each key, newest first.
    :param proofs: what is brought with each of them: ``<MAC> <at>``.
    :param held: whether the task's holder typed it.
    :param admitted: whether it is to be compared at all.
    """

    digests: list[str]
    proofs: list[str]
    held: bool
    admitted: bool


class Backstop:
    """Bounds the codes that one process compares for a task, whatever Redis says of attempts.

    Who writes to Redis can set counters back, and sees there whether the digest of a guess is the right one.
    So only so many digests of a task leave a process. They are counted in a count-min sketch (Cormode and
    Muthukrishnan, 2005): it has a fixed size, is never too low, and is too high only if half a million tasks
    are guessed at in the time of a code. A guess that comes again is no other one, as where Redis did not
    answer, or a form was submitted twice.

    :param most: how many codes of a task are compared.
    :param memory: seconds that a code lives; for that, and at most twice that, an attempt is remembered.
    """

    def __init__(self, *, most: int, memory: float) -> None:
        self._most = most
        self._memory = memory * 1000
        # Whoever makes ids up must not know which of them meet in a cell.
        self._key = secrets.token_bytes(16)
        self._lock = Lock()
        self._rows = self._older = _empty_rows()
        self._turn = -math.inf
        self._seen: dict[str, None] = {}

    def admit(self, task_id: str, digest: str, *, held: bool, now: float) -> bool:
        """Count a guess; false if the task had them all.

        :param held: whether its holder asks: nobody else uses up the holder's.
        :param now: ms.
        """
        with self._lock:
            self._forget(now)
            if digest in self._seen:
                return True
            cells = list(zip(self._rows, self._older, self._places(task_id, held=held), strict=True))
            if min(row[place] + older[place] for row, older, place in cells) >= self._most:
                return False
            for row, _, place in cells:
                row[place] = min(row[place] + 1, _CELL_MAX)
            self._seen[digest] = None
            if len(self._seen) > _SEEN_MAX:
                del self._seen[next(iter(self._seen))]
        return True

    def _places(self, task_id: str, *, held: bool) -> list[int]:
        mixed = blake2b(task_id.encode(), key=self._key, salt=bytes([held]), digest_size=4 * _DEPTH).digest()
        return [int.from_bytes(mixed[i : i + 4]) % _WIDTH for i in range(0, 4 * _DEPTH, 4)]

    def _forget(self, now: float) -> None:
        if now - self._turn >= self._memory:
            recent = now - self._turn < 2 * self._memory
            self._older = self._rows if recent else _empty_rows()
            self._rows, self._turn = _empty_rows(), now


def _empty_rows() -> list[array[int]]:
    return [array("H", bytes(2 * _WIDTH)) for _ in range(_DEPTH)]


class Keyring:
    """The app's secret keys, newest first, and what is computed with them.

    What Redis keeps of that is ``<fingerprint>.<MAC>``: whoever lacks the key can tell this from a forgery.
    A MAC has 128 bits (NIST SP 800-107r1, 5.3.3).

    :param secrets_: the keys, newest first. A function that returns one is called once, at the first use.
    :param names: how people call them, in the same order.
    :param backstop: bounds the guesses that this process digests.
    """

    def __init__(
        self,
        secrets_: Iterable[bytes | Callable[[], bytes]],
        *,
        names: Iterable[str] = (),
        backstop: Backstop | None = None,
    ) -> None:
        self._secrets = tuple(secrets_)
        self.names = tuple(names)
        self._backstop = backstop or Backstop(most=5, memory=600.0)
        #: Milliseconds by which a test has set this process's clock ahead.
        self.ahead = 0
        self._made: tuple[list[dict[str, hmac.HMAC]], tuple[str, ...]] | None = None
        if not any(map(callable, self._secrets)):
            self._made = _derive_all(self._secrets)
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Keyring({len(self._secrets)} keys)"

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What names each key, newest first; it tells nothing of the key."""
        return self._derived()[1]

    @property
    def _keys(self) -> list[dict[str, hmac.HMAC]]:
        """For each key the MACs of nothing under those that are derived of it, by purpose."""
        return self._derived()[0]

    def _derived(self) -> tuple[list[dict[str, hmac.HMAC]], tuple[str, ...]]:
        if self._made is None:
            with self._lock:
                self._made = self._made or _derive_all(self._secrets)
        return self._made

    def now_ms(self) -> int:
        """Return the time by this process's clock, in ms since 1970.

        Only MACs bear it, so that nobody who writes to Redis can prolong a code.
        """
        return time.time_ns() // 1_000_000 + self.ahead

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
        return self._named(0, "seal", *parts)

    def issued(self, task_id: str, method: str, digest: str, *, lasts: float) -> str:
        """Return what is kept beside the digest of a code that is issued: ``<MAC> <until>``.

        :param lasts: seconds that the code is good for.
        """
        until = str(self.now_ms() + int(lasts * 1000))
        return f"{self.seal('issued', task_id, method, digest, until)} {until}"

    def presented(
        self, task_id: str, method: str, code: str, holder: str | None = None, *, confirms: bool = True
    ) -> Presented:
        """Return what a step is told of a code that somebody typed.

        If this process has seen as many for the task as it may, the step is told of an empty one, which is
        never right: it runs all the same, so that nobody learns by the time that nothing was compared.

        :param holder: what was brought as the task's holder.
        :param confirms: whether it was typed to confirm: who rejects a task by its code proves nothing by
            which somebody could say that they confirmed it.
        """
        purpose = "presented" if confirms else "refused"
        at, digests = str(self.now_ms()), self.digests(task_id, method, code)
        held = self.is_holder(task_id, holder)
        admitted = self._backstop.admit(task_id, digests[0], held=held, now=int(at))
        if not admitted:
            digests = self.digests(task_id, method, "")
        proofs = [f"{self.seal(purpose, task_id, method, digest, at)} {at}" for digest in digests]
        return Presented(digests, proofs, held, admitted)

    def checked(self, task_id: str, method: str, digest: str, *, confirms: bool = True) -> str:
        """Return the proof for a code that a device made and that was found right.

        :param confirms: whether it was typed to confirm, not to reject.
        """
        purpose = "checked" if confirms else "refused"
        at = str(self.now_ms())
        return f"{digest} {self.seal(purpose, task_id, method, digest, at)} {at}"

    def holds(self, seal: str, *parts: str | bytes) -> bool:
        """Tell whether a seal was made over these strings by one of the keys.

        :raises KeyMissing: if another key made it, so that nobody can tell here.
        """
        fingerprint = seal[:_FINGERPRINT_LENGTH]
        if fingerprint not in self.fingerprints:
            self.check_known(seal)
            return False
        made = self._named(self.fingerprints.index(fingerprint), "seal", *parts)
        return hmac.compare_digest(made.encode(), seal.encode())

    def check_known(self, mac: str) -> str | None:
        """Return which of the keys made what bears the form of a MAC, ``None`` for what does not.

        :raises KeyMissing: if another process's key made it.
        """
        match = _MAC.fullmatch(mac)
        if match is None:
            return None
        if match[1] not in self.fingerprints:
            raise key_missing(match[1])
        return match[1]

    def recipients(self, field: str, address: str) -> list[str]:
        """Return the names under which an address's limits are counted, however it is spelt: one a key.

        :param field: the recipient's field that it stands in.
        """
        plain = _plain(field, address)
        return [self._named(index, "recipient", field, plain) for index in range(len(self._keys))]

    def holder(self, task_id: str, index: int = 0) -> str:
        """Return the secret of a task's holder under one of the keys, fit for a cookie.

        It is stored nowhere: whoever was given it knows it, and whoever has the key.
        """
        return _text(_mac(self._keys[index]["holder"], task_id))

    def is_holder(self, task_id: str, brought: str | None) -> bool:
        """Tell whether what somebody brought is the secret of a task's holder, under one of the keys.

        :raises InvalidTask: if it is no text. The message does not show it.
        """
        if brought is None:
            return False
        if not isinstance(brought, str):
            raise InvalidTask(f"holder must be the text that add_task returned, not {type(brought).__name__}")
        own = [self.holder(task_id, index) for index in range(len(self._keys))]
        return any(hmac.compare_digest(one.encode(), _raw(brought)) for one in own)

    def owners(self, owner: str) -> list[str]:
        """Return the names under which an owner has tasks, and wrong codes: one a key."""
        return [self._named(index, "owner", owner) for index in range(len(self._keys))]

    def named(self, queue: str, owner: str, key: str) -> list[str]:
        """Return the names under which a task is found by its app's key: one a secret key."""
        return [self._named(index, "task", queue, owner, key) for index in range(len(self._keys))]

    def asked(self, task_id: str, arguments: str) -> list[str]:
        """Return a MAC of what a task was added with, under each secret key, newest first."""
        return [self._named(index, "asked", task_id, arguments) for index in range(len(self._keys))]

    def uses(self, method: str, address: str, use: str) -> list[str]:
        """Return the names of one use of a code that a device made: one a key."""
        return [self._named(index, "use", method, address, use) for index in range(len(self._keys))]

    def hold_all(self, sealed: Iterable[tuple[str, Sequence[str]]]) -> bool:
        """Tell whether each of some seals was made over its strings by one of the keys.

        :param sealed: seals, each with its strings.
        :raises KeyMissing: if one is of a key that this process lacks, and the others hold.
        """
        missing = None
        for seal, parts in sealed:
            try:
                if not self.holds(seal, *parts):
                    return False
            except KeyMissing as error:
                missing = error
        if missing is not None:
            raise missing
        return True

    def message_id(self, task_id: str, code: str) -> str:
        """Return what the messages with a code of a task are called.

        Mail servers log it: without the key nobody learns from it which code it is.
        """
        return _mac(self._keys[0]["message"], task_id, code).hex()[:40]

    def keep(self, app: Flask) -> None:
        """Let :func:`current_keyring` find this in an app."""
        app.extensions[_KEYRING] = self

    def _code(self, index: int, task_id: str, method: str, nonce: str, length: int) -> OTP:
        mac = _mac(self._keys[index]["code"], task_id, method, nonce)
        return OTP(str(int.from_bytes(mac) % 10**length).zfill(length))

    def _digest(self, index: int, task_id: str, method: str, code: str) -> str:
        return self._named(index, "digest", task_id, method, code)

    def _named(self, index: int, purpose: str, *parts: str | bytes) -> str:
        return f"{self.fingerprints[index]}.{_text(_mac(self._keys[index][purpose], *parts))}"


def current_keyring() -> Keyring:
    """Return the keyring of the current app.

    :raises RuntimeError: if the app has no TaskFlow.
    """
    keyring = current_app.extensions.get(_KEYRING)
    if isinstance(keyring, Keyring):
        return keyring
    raise RuntimeError("this app has no TaskFlow: call taskflow.init_app(app) first")


def key_missing(fingerprint: str) -> KeyMissing:
    """Return the error for what a key made that this process lacks."""
    return KeyMissing(
        f"a SECRET_KEY whose fingerprint is {fingerprint} made this, and this process lacks it: add it to "
        "SECRET_KEY_FALLBACKS",
        fingerprint=fingerprint,
    )


def _plain(field: str, address: str) -> str:
    text = unicodedata.normalize("NFKC", address).strip()
    if field == "email":
        name, at, domain = text.rpartition("@")
        if at:
            with suppress(ValueError):
                return f"{name.casefold()}@{ascii_domain(domain)}"
        return text.casefold().rstrip(".")
    if field == "phone_number" and _PHONE.fullmatch(text):
        return "".join(c for c in text if c in "+0123456789")
    # A device's id is whatever the app says: two that look alike are two.
    return address


def _derive_all(
    secrets_: Iterable[bytes | Callable[[], bytes]],
) -> tuple[list[dict[str, hmac.HMAC]], tuple[str, ...]]:
    keys = [_derive(secret() if callable(secret) else secret) for secret in secrets_]
    return keys, tuple(_fingerprint(by_purpose["seal"]) for by_purpose in keys)


def _derive(secret: bytes) -> dict[str, hmac.HMAC]:
    whole = hmac.new(secret, digestmod="sha256")
    keys = {purpose: _mac(whole, f"flask-taskflow/1/{purpose}".encode()) for purpose in _PURPOSES}
    # A MAC is made of a copy, which takes half the time of one that begins with the key.
    return {purpose: hmac.new(key, digestmod="sha256") for purpose, key in keys.items()}


def _fingerprint(key: hmac.HMAC) -> str:
    return b32encode(_mac(key, "fingerprint"))[:_FINGERPRINT_LENGTH].decode().lower()


def _text(mac: bytes) -> str:
    return b2a_base64(mac[:16])[:_MAC_LENGTH].translate(_URL_SAFE).decode()


def _raw(part: str | bytes) -> bytes:
    return part.encode(errors="surrogatepass") if isinstance(part, str) else part


def _mac(key: hmac.HMAC, *parts: str | bytes) -> bytes:
    made = key.copy()
    message = b""
    for raw in map(_raw, parts):
        message += len(raw).to_bytes(4) + raw
    made.update(message)
    return made.digest()
