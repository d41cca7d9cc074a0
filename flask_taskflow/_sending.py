"""Make codes and hand them to strategies."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import RedisError

from . import signals
from ._audit import record
from ._callbacks import Reject, Retry
from ._codes import CodeStore
from ._config import Config
from ._otp import OTP, Keyring, new_nonce, read_code
from ._store import Code, Issued
from ._task import Task
from .errors import InvalidCode, SendFailed
from .strategies import BaseStrategy, Channel

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a code was not sent, in words that hold nothing of it.

    :param code: what is in force now, ``None`` if that is not known.
    :param cause: the error's class.
    :param reason: the same, and where it was raised.
    :param final: whether another try is no use.
    :param after: what the strategy said about when to try again, as it came.
    :param told: whether the audit log has it.
    """

    code: Code | None
    cause: str
    reason: str
    final: bool = False
    after: object = None
    told: bool = True


class Sender:
    """Make codes for one app's tasks and send them.

    :param app: the sender of signals.
    :param config: how long a code is.
    :param keyring: derives codes.
    :param codes: arms and disarms them.
    :param channels: the registered strategies, by method.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        keyring: Keyring,
        codes: CodeStore,
        channels: Mapping[str, Channel],
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._codes = codes
        self._channels = channels
        self._length = config.otp_length
        self._digits = re.compile(f"[0-9]{{{self._length}}}")

    @property
    def methods(self) -> list[str]:
        """The methods that this process can send by."""
        return list(self._channels)

    @property
    def devices(self) -> list[str]:
        """Those of them whose codes are made elsewhere, and right without a message."""
        return [method for method, channel in list(self._channels.items()) if channel.checks]

    def pattern(self, method: str) -> re.Pattern[str]:
        """Return what a typed code of a method may look like."""
        channel = self._channels.get(method)
        return channel.pattern if channel and channel.pattern else self._digits

    def new_code(self, task_id: str, method: str) -> Code:
        """Return a fresh code as Redis keeps it; without a digest if a strategy will generate it."""
        nonce = new_nonce()
        if not self._channels[method].derives:
            return Code(method, nonce, "")
        otp = self._keyring.code(task_id, method, nonce, length=self._length)
        return Code(method, nonce, self._keyring.digest(task_id, method, otp))

    def send(self, issued: Issued) -> None:
        """Send the codes that a step issued.

        :raises SendFailed: if a strategy raised; its codes are disarmed, the others stay valid.
        """
        task = issued.task
        tried = [self.try_to_send(task, code) for code in issued.codes]
        failed = [item.code for item in tried if isinstance(item, Failure) and item.code is not None]
        if not failed:
            return
        try:
            self._codes.unsent(task.id, failed)
        except RedisError as error:
            logger.warning("The codes of task %s could not be disarmed: %s", task.id, error)
        methods = tuple(code.method for code in failed)
        raise SendFailed(
            f"the code could not be sent by {', '.join(methods)}; the log says why. The task exists: "
            "resend_otp() tries again",
            task=task,
            methods=methods,
        )

    def try_to_send(self, task: Task[Any], code: Code) -> Code | Failure | None:
        """Send a code once; return the one that was sent, or why that failed.

        :return: ``None`` if another code took its place meanwhile, so that none was sent.
        """
        channel = self._channels[code.method]
        failure = otp = None
        try:
            # The device makes the codes of a strategy that checks them.
            otp = OTP("") if channel.checks else self._otp(task, code, channel)
            if otp is None:
                otp, code = self._new_otp(task, code, channel)
            if otp is None:
                return None
            channel.strategy.send(task, otp)
        except Exception as error:
            # The error's text and frames may hold the code: only its class may be told.
            failure = _failure(code, channel.strategy, error)
        finally:
            otp = None
        address = task.recipient.masked().get(channel.address_field or "", "")
        audited: dict[str, Any] = {"queue": task.queue, "method": code.method, "address": address}
        if failure is not None:
            record("send_failed", task.id, level=logging.WARNING, cause=failure.cause, **audited)
            logger.error(
                "Sending by %s to %s for task %s failed: %s.",
                code.method,
                address or "no address",
                task.id,
                failure.reason,
            )
            return failure
        record("code_sent", task.id, **audited)
        signals.emit(signals.otp_sent, self._app, task=task, method=code.method)
        return code

    def _otp(self, task: Task[Any], code: Code, channel: Channel) -> OTP | None:
        """Return the code to send, or ``None`` if it cannot be derived again."""
        if not channel.derives:
            return None
        return self._keyring.recover(task.id, code.method, code.nonce, code.digest, length=self._length)

    def _new_otp(self, task: Task[Any], code: Code, channel: Channel) -> tuple[OTP | None, Code]:
        """Put a new code in the place of one; no OTP if a later send took that place already."""
        if channel.derives:
            new = self.new_code(task.id, code.method)
            otp = self._keyring.code(task.id, code.method, new.nonce, length=self._length)
        else:
            otp = self._generated(task, channel)
            new = Code(code.method, new_nonce(), self._keyring.digest(task.id, code.method, otp))
        return (otp, new) if self._codes.rotate(task.id, code, new) else (None, code)

    def _generated(self, task: Task[Any], channel: Channel) -> OTP:
        text = channel.strategy.generate(task)
        otp = read_code(text, self.pattern(channel.method))
        if otp != text:
            raise InvalidCode("generate() made a code that its code_pattern does not match")
        return otp


def _failure(code: Code, strategy: BaseStrategy, error: Exception) -> Failure:
    cause = type(error).__name__
    place = "".join(f" at {at.filename}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-1:])
    return Failure(
        code,
        cause,
        f"{cause} raised by {type(strategy).__qualname__}{place}",
        final=isinstance(error, Reject),
        # A subclass may have set nothing.
        after=getattr(error, "after", None) if isinstance(error, Retry) else None,
    )
