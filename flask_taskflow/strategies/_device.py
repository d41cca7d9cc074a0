"""Codes that the user's device makes: an authenticator app's, and signatures of transactions."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import unicodedata
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._checks import is_text
from .._otp import OTP
from ..errors import ConfigError
from ._base import BaseStrategy
from ._challenge import canonical, transaction_challenge
from ._ocra import Suite, read_suite

if TYPE_CHECKING:
    from pyotp import TOTP

    from .._tasks import Task

#: A device's secret below this many bytes is refused: 128 bits, RFC 4226, section 4, R6.
SECRET_MIN = 16
#: Time steps that are accepted on either side of the server's: one, RFC 6238, section 5.2.
_DRIFT = 1
_INSTALL = "pip install 'flask-taskflow[smart-otp]'"

SecretFor = Callable[[str], "str | None"]


class _DeviceStrategy(BaseStrategy):
    """What both modes share: each device has a secret, and the app keeps it."""

    address = "device_id"

    def __init__(self, secret_for: SecretFor | None) -> None:
        self._secret_for = secret_for
        # A device that is unknown takes as long as one that is known.
        self._nobodys = self.new_secret()

    def secret_for(self, device_id: str) -> str | None:
        """Return the base32 secret of a device, or ``None`` if there is no such device."""
        if self._secret_for is None:
            raise ConfigError(f"{type(self).__name__} needs secret_for=..., or a subclass that defines it")
        return self._secret_for(device_id)

    def send(self, task: Task[Any], otp: str) -> None:
        """Do nothing: the device makes the code. Override it to wake the device."""

    @staticmethod
    def new_secret() -> str:
        """Return a new secret for a device: 160 random bits in base32 (RFC 4226, section 4, R6)."""
        return base64.b32encode(secrets.token_bytes(20)).decode()


class SmartOTPStrategy(_DeviceStrategy):
    """Accept the codes of an enrolled authenticator app. Needs the extra ``[smart-otp]``.

    A code is accepted within one time step either side of the Redis server's time, and once for a device,
    over all tasks, queues and processes (RFC 6238, section 5.2). Nothing is sent.

    :param secret_for: returns the base32 secret of a ``device_id``, ``None`` if there is no such device. A
        subclass may override :meth:`secret_for` instead.
    :param digits: how long the codes are, 6 to 8.
    :param interval: seconds of a time step.
    :raises ConfigError: for an argument that no authenticator app would take, or without the extra.
    """

    def __init__(self, secret_for: SecretFor | None = None, *, digits: int = 6, interval: int = 30) -> None:
        super().__init__(secret_for)
        if digits not in (6, 7, 8) or not 1 <= interval <= 300:
            raise ConfigError("SmartOTPStrategy takes 6 to 8 digits and an interval of 1 to 300 seconds")
        _need("SmartOTPStrategy", "pyotp", "segno")
        self._digits = digits
        self._interval = interval
        self.code_pattern = f"[0-9]{{{digits}}}"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        """Return the time step of a right code."""
        secret = self.secret_for(task.recipient.device_id or "")
        totp = self._totp(self._nobodys if secret is None else secret)
        step = int(now.timestamp()) // self._interval
        for candidate in range(step - _DRIFT, step + _DRIFT + 1):
            if hmac.compare_digest(totp.generate_otp(candidate), str(otp)) and secret is not None:
                return str(candidate)
        return None

    def pretend(self, task: Task[Any], otp: str, now: datetime) -> None:
        """Look a device up that is not there, and compare with the codes of nobody's."""
        SmartOTPStrategy.check(self, task, otp, now)

    def provisioning_uri(self, secret: str, *, account: str, issuer: str) -> str:
        """Return the ``otpauth://`` URI that enrols a device; show it once, as a QR code.

        :param secret: the device's secret, as :meth:`new_secret` made it.
        :param account: whose it is, as the authenticator app shows it.
        :param issuer: your app's name. A colon in either becomes a blank: the label of a key URI has one,
            between the two.
        :raises ConfigError: if either is empty, or no line of text.
        """
        names = {"name": _label("account", account), "issuer_name": _label("issuer", issuer)}
        return str(self._totp(secret).provisioning_uri(**names))

    @staticmethod
    def qr_svg(uri: str) -> str:
        """Return a provisioning URI as a QR code, an SVG to put into a page of any colours.

        :param uri: what :meth:`provisioning_uri` returned; it holds the secret.
        """
        import segno

        # ISO/IEC 18004, 6.3.8: four light modules around it.
        return str(segno.make_qr(uri, error="m").svg_inline(scale=4, border=4, dark="#000", light="#fff"))

    def _totp(self, secret: str) -> TOTP:
        _read_secret(secret)
        from pyotp import TOTP

        return TOTP(_bare(secret).upper(), digits=self._digits, interval=self._interval)


class SigningStrategy(_DeviceStrategy):
    """Accept what an enrolled device signed the task with: OCRA, RFC 6287.

    The device shows a task's data and summary, and :func:`sign_transaction` makes a response of them that
    confirms this task and no other. Needs the extra ``[smart-otp]``. Nothing is sent; a subclass whose
    ``send`` wakes the device gives it ``task.id``, ``task.data`` and ``task.summary``.

    :param secret_for: returns the base32 secret of a ``device_id``, ``None`` if there is no such device. A
        subclass may override :meth:`secret_for` instead.
    :param digits: how long the responses are, 6 to 10.
    :raises ConfigError: for another number of digits, or without the extra.
    """

    def __init__(self, secret_for: SecretFor | None = None, *, digits: int = 8) -> None:
        super().__init__(secret_for)
        _need("SigningStrategy", "rfc8785")
        self._suite = _signing_suite(digits)
        self.code_pattern = f"[0-9]{{{digits}}}"

    def check_data(self, data: object) -> None:
        """Refuse data that not every device can sign.

        :raises InvalidTask: for integers of 2^53 and more.
        """
        canonical(data)

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        """Return a name for this use of the right response."""
        secret = self.secret_for(task.recipient.device_id or "")
        key = self._nobodys if secret is None else secret
        right = _sign(self._suite, key, task.id, task.data, task.summary)
        return task.id if hmac.compare_digest(right, str(otp)) and secret is not None else None

    def pretend(self, task: Task[Any], otp: str, now: datetime) -> None:
        """Look a device up that is not there, and compare with the response of nobody's."""
        SigningStrategy.check(self, task, otp, now)


def sign_transaction(secret: str, *, task_id: str, data: object, summary: str | None, digits: int = 8) -> str:
    """Return the response of a device to a transaction that its user agreed to. It runs on the device.

    Give it what the user was shown, and nothing that was not: the response is bound to it. Needs the extra
    ``[smart-otp]``.

    :param secret: the device's secret, in base32.
    :param task_id: the task's id.
    :param data: the task's data, as the device showed it.
    :param summary: the task's summary, or ``None``.
    :param digits: as in :class:`SigningStrategy`.
    :raises ConfigError: for an unusable secret or number of digits, or without the extra.
    :raises InvalidTask: a ``ValueError``, for data that is no JSON value, and for integers of 2^53 or more.
    """
    return _sign(_signing_suite(digits), secret, task_id, data, summary)


def _need(what: str, *modules: str) -> None:
    if any(find_spec(module) is None for module in modules):
        raise ConfigError(f"{what} needs the extra [smart-otp]: {_INSTALL}")


def _sign(suite: Suite, secret: str, task_id: str, data: object, summary: str | None) -> OTP:
    challenge = transaction_challenge(task_id=task_id, data=data, summary=summary)
    return suite.respond(_read_secret(secret), challenge)


def _signing_suite(digits: int) -> Suite:
    if digits not in range(6, 11):
        raise ConfigError("a signature has 6 to 10 digits")
    return read_suite(f"OCRA-1:HOTP-SHA256-{digits}:QH64")


def _label(what: str, given: str) -> str:
    text = " ".join(given.replace(":", " ").split()) if is_text(given) else ""
    if text:
        return text
    raise ConfigError(f"the {what} of a device must be a line of text, and not empty")


def _bare(secret: str) -> str:
    """Return a secret without what people and apps write into it: groups, hyphens, line breaks, padding."""
    gaps = (c for c in secret if c.isspace() or unicodedata.category(c) in ("Pd", "Cf"))
    return secret.translate(dict.fromkeys(map(ord, gaps))).rstrip("=")


def _read_secret(secret: str) -> bytes:
    try:
        text = _bare(secret)
        key = base64.b32decode(text + "=" * (-len(text) % 8), casefold=True)
    except (AttributeError, TypeError, ValueError):
        # The text of the error may show the secret.
        hint = "; it has no 0, 1, 8 and 9" if isinstance(secret, str) and re.search("[0189]", secret) else ""
        raise ConfigError(
            f"a device's secret must be base32{hint}: use SmartOTPStrategy.new_secret()"
        ) from None
    if len(key) < SECRET_MIN:
        raise ConfigError(
            f"a device's secret must have {SECRET_MIN} bytes or more: use SmartOTPStrategy.new_secret()"
        )
    return key
