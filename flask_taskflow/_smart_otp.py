"""Codes that the user's authenticator app makes: TOTP, RFC 6238, by pyotp."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .strategies import BaseStrategy

if TYPE_CHECKING:
    from pyotp import TOTP

    from ._task import Task

#: A device's secret below this many bytes is refused: 128 bits, RFC 4226, section 4, R6.
SECRET_MIN = 16
#: Time steps that are accepted on either side of the server's: one, RFC 6238, section 5.2.
_DRIFT = 1
_MISSING = "SmartOTPStrategy needs the extra [smart-otp]: pip install 'flask-taskflow[smart-otp]'"

SecretFor = Callable[[str], "str | None"]


class SmartOTPStrategy(BaseStrategy):
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
        if digits not in (6, 7, 8) or not 1 <= interval <= 300:
            raise ConfigError("SmartOTPStrategy takes 6 to 8 digits and an interval of 1 to 300 seconds")
        if find_spec("pyotp") is None or find_spec("segno") is None:
            raise ConfigError(_MISSING)
        self._secret_for = secret_for
        self._digits = digits
        self._interval = interval
        self.code_pattern = f"[0-9]{{{digits}}}"

    def secret_for(self, device_id: str) -> str | None:
        """Return the base32 secret of a device, or ``None`` if there is no such device."""
        if self._secret_for is None:
            raise ConfigError("SmartOTPStrategy needs secret_for=..., or a subclass that defines it")
        return self._secret_for(device_id)

    def send(self, task: Task[Any], otp: str) -> None:
        """Do nothing: the device makes the code."""

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        """Return the time step of a right code."""
        secret = self.secret_for(task.recipient.device_id or "")
        if secret is None:
            return None
        totp = self._totp(secret)
        step = int(now.timestamp()) // self._interval
        for candidate in range(step - _DRIFT, step + _DRIFT + 1):
            if hmac.compare_digest(totp.generate_otp(candidate), str(otp)):
                return str(candidate)
        return None

    def provisioning_uri(self, secret: str, *, account: str, issuer: str) -> str:
        """Return the ``otpauth://`` URI that enrols a device; show it once, as a QR code.

        :param secret: the device's secret, as :meth:`new_secret` made it.
        :param account: whose it is, as the authenticator app shows it.
        :param issuer: your app's name.
        """
        return str(self._totp(secret).provisioning_uri(name=account, issuer_name=issuer))

    @staticmethod
    def new_secret() -> str:
        """Return a new secret for a device: 160 random bits in base32 (RFC 4226, section 4, R6)."""
        return base64.b32encode(secrets.token_bytes(20)).decode()

    @staticmethod
    def qr_svg(uri: str) -> str:
        """Return a provisioning URI as a QR code, an SVG to put into a page.

        :param uri: what :meth:`provisioning_uri` returned; it holds the secret.
        """
        import segno

        return str(segno.make(uri, error="m").svg_inline(scale=4))

    def _totp(self, secret: str) -> TOTP:
        if len(_decoded(secret)) < SECRET_MIN:
            raise ConfigError(
                f"a device's secret must have {SECRET_MIN} bytes or more: use SmartOTPStrategy.new_secret()"
            )
        from pyotp import TOTP

        return TOTP(secret, digits=self._digits, interval=self._interval)


def _decoded(secret: str) -> bytes:
    try:
        return base64.b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
    except (ValueError, TypeError):
        # The text of the error may show the secret.
        raise ConfigError("a device's secret must be base32: use SmartOTPStrategy.new_secret()") from None
