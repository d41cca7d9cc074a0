"""Make codes and hand them to strategies."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis import RedisError

from . import signals
from ._audit import record
from ._config import Config
from ._otp import OTP, Keyring, new_nonce, read_code
from ._store import Code, Issued, TaskStore
from ._task import Task
from .errors import InvalidCode, SendFailed
from .strategies import Channel

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)


class Sender:
    """Make codes for one app's tasks and send them.

    :param app: the sender of signals.
    :param config: how long a code is.
    :param keyring: derives codes.
    :param store: arms and disarms codes.
    :param channels: the registered strategies, by method.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        keyring: Keyring,
        store: TaskStore,
        channels: Mapping[str, Channel],
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._store = store
        self._channels = channels
        self._length = config.otp_length
        self._digits = re.compile(f"[0-9]{{{self._length}}}")

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
        failed = [code for code in (self._send(task, code) for code in issued.codes) if code is not None]
        if not failed:
            return
        try:
            self._store.unsent(task.id, failed)
        except RedisError as error:
            logger.warning("The codes of task %s could not be disarmed: %s", task.id, error)
        methods = tuple(code.method for code in failed)
        raise SendFailed(
            f"the code could not be sent by {', '.join(methods)}; the log says why. The task exists: "
            "resend_otp() tries again",
            task=task,
            methods=methods,
        )

    def _send(self, task: Task[Any], code: Code) -> Code | None:
        """Send a code; return what is in force now if that failed."""
        channel = self._channels[code.method]
        problem = otp = None
        where = ""
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
            problem, where = type(error).__name__, _place(error)
        finally:
            otp = None
        address = task.recipient.masked().get(channel.address_field or "", "")
        audited: dict[str, Any] = {"queue": task.queue, "method": code.method, "address": address}
        if problem is not None:
            record("send_failed", task.id, level=logging.WARNING, cause=problem, **audited)
            logger.error(
                "Sending by %s to %s for task %s failed: %s raised by %s%s.",
                code.method,
                address or "no address",
                task.id,
                problem,
                type(channel.strategy).__qualname__,
                where,
            )
            return code
        record("code_sent", task.id, **audited)
        signals.emit(signals.otp_sent, self._app, task=task, method=code.method)
        return None

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
        return (otp, new) if self._store.rotate(task.id, code, new) else (None, code)

    def _generated(self, task: Task[Any], channel: Channel) -> OTP:
        text = channel.strategy.generate(task)
        otp = read_code(text, self.pattern(channel.method))
        if otp != text:
            raise InvalidCode("generate() made a code that its code_pattern does not match")
        return otp


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
