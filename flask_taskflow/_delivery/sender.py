"""Make codes and hand them to strategies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from redis import RedisError

from .. import _journal as journal
from .._interrupts import end_child, is_a
from .._keyring import Keyring, new_nonce
from .._log import Logger
from .._otp import OTP, read_code
from .._store.records import Code, Issued
from .._store.sends import CodeStore
from .._tasks import Task
from ..errors import ConfigError, InvalidCode, OutcomeUnknown, Reject, Retry, SendFailed
from ..strategies import Channel, Channels
from .attempts import asked_after, own_place, said_by

logger = Logger(__name__)

_TEXT_MAX = 200


class Failure(NamedTuple):
    """Why a code was not sent, in words that hold nothing of it.

    :param code: what is in force now, ``None`` if that is not known.
    :param cause: the error's class.
    :param reason: the same, what it says if that may be told, and where the app stood.
    :param final: whether another try is no use.
    :param unknown: whether the code may have arrived all the same.
    :param after: seconds after which the strategy wants another try, if it said so.
    :param ended: what is no ``Exception`` and ends more than this send, without its frames.
    :param recorded: whether the audit log has it.
    """

    code: Code | None
    cause: str
    reason: str
    final: bool = False
    unknown: bool = False
    after: float | None = None
    ended: BaseException | None = None
    recorded: bool = True


class Sender:
    """Make codes for one app's tasks and send them.

    :param keyring: derives codes.
    :param codes: arms and disarms them.
    :param channels: the registered strategies, by method.
    :param otp_length: digits of a code that is derived.
    :param otp_ttl: seconds that a code is good for.
    """

    def __init__(
        self,
        keyring: Keyring,
        codes: CodeStore,
        channels: Channels,
        *,
        otp_length: int,
        otp_ttl: float,
    ) -> None:
        self._keyring = keyring
        self._codes = codes
        self._channels = channels
        self._length = otp_length
        self._otp_ttl = otp_ttl
        #: What a typed code looks like that is derived.
        self.digits = re.compile(f"[0-9]{{{self._length}}}")

    @property
    def methods(self) -> list[str]:
        """The methods that this process can send by."""
        return list(self._channels)

    @property
    def devices(self) -> list[str]:
        """Those of them whose codes are made elsewhere, and right without a message."""
        return [method for method, channel in list(self._channels.items()) if channel.checks]

    def new_code(self, task_id: str, method: str, *, send_at: datetime | None = None) -> Code:
        """Return a fresh code as Redis keeps it; without a digest if a strategy will generate it.

        :param send_at: when it goes out and its life begins, if that is not now.
        """
        nonce = new_nonce()
        if not self._channels[method].derives:
            return Code(method, nonce, "", "")
        otp = self._keyring.code(task_id, method, nonce, length=self._length)
        wait = max(send_at.timestamp() - self._keyring.now_ms() / 1000, 0.0) if send_at else 0.0
        return self._issue(task_id, method, nonce, otp, wait)

    def _issue(self, task_id: str, method: str, nonce: str, otp: str, wait: float = 0.0) -> Code:
        digest = self._keyring.digest(task_id, method, otp)
        issued = self._keyring.issued(task_id, method, digest, lasts=wait + self._otp_ttl)
        return Code(method, nonce, digest, issued)

    def send(self, issued: Issued) -> None:
        """Send the codes that a step issued.

        :raises SendFailed: if a strategy raised; its codes are disarmed, the others stay valid.
        """
        task, failed = issued.task, []
        for code in issued.codes:
            outcome = self.try_to_send(task, code)
            if not isinstance(outcome, Failure):
                continue
            if outcome.ended is not None:
                # A worker is stopped, or the app's own time is over, and that is not ours to hold up. The
                # code may have gone out before.
                journal.send_unknown(task.id, queue=task.queue, method=code.method, cause=outcome.cause)
                raise outcome.ended
            logger.error(
                "Sending by %s to %s for task %s failed: %s.",
                code.method,
                self._address(task, code.method) or "no address",
                task.id,
                outcome.reason,
            )
            failed.append(outcome)
        if failed:
            self._fail(task, failed)

    def _fail(self, task: Task[Any], failed: list[Failure]) -> NoReturn:
        codes = [(failure.code, failure.cause) for failure in failed if failure.code is not None]
        try:
            self._codes.unsent(task.id, codes)
        except RedisError as error:
            logger.warning("The codes of task %s could not be disarmed: %s", task.id, error)
        methods = tuple(code.method for code, _ in codes)
        raise SendFailed(
            f"the code could not be sent by {', '.join(methods)}; the log says why. The task exists: "
            "resend_otp() tries again",
            task=task,
            methods=methods,
            final=all(failure.final for failure in failed),
        )

    def try_to_send(self, task: Task[Any], code: Code) -> Code | Failure | None:
        """Send a code once; return the one that was sent, or may have been, or why that failed.

        :return: ``None`` if another code took its place meanwhile, so that none was sent.
        """
        channel = self._channels[code.method]
        raised: BaseException | None = None
        otp = named = None
        try:
            # The device makes the codes of a strategy that checks them.
            otp = OTP("") if channel.checks else self._otp(task, code, channel)
            if otp is None:
                otp, code = self._new_otp(task, code, channel)
            if otp is None:
                return None
            process = os.getpid()
            try:
                sent = self._channels.send(code.method, task, otp.lasting(code.lasts))
            finally:
                if os.getpid() != process:
                    end_child(tell=False)
            named = _message_id(sent, otp, channel.address(task.recipient))
        except BaseException as error:
            raised = error
        # Frames hold the code, and so may the text: what is told is made here, without them. Inside `except`
        # an error of the making itself would bring this one along.
        failure = None if raised is None else _failure(task, code, channel, raised, otp)
        otp = sent = raised = None
        address = self._address(task, code.method)
        where = {"queue": task.queue, "method": code.method, "address": address}
        if failure is None:
            journal.code_sent(task, code.method, address=address, message_id=named)
            logger.debug("Sent the code of task %s by %s.", task.id, code.method)
            return code
        if not failure.unknown:
            if failure.recorded:
                journal.send_failed(task.id, cause=failure.cause, **where)
            return failure
        journal.send_unknown(task.id, cause=failure.cause, **where)
        logger.warning(
            "The code of task %s by %s may have been sent or not: %s. It is valid.",
            task.id,
            code.method,
            failure.reason,
        )
        return code

    def _address(self, task: Task[Any], method: str) -> str:
        """Return the address that a code goes to, masked; empty if the method needs none."""
        return task.recipient.masked().get(self._channels[method].address_field or "", "")

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
            new = self._issue(task.id, code.method, new_nonce(), otp)
        new = new._replace(lasts=code.lasts)
        return (otp, new) if self._codes.rotate(task.id, code, new) else (None, code)

    def _generated(self, task: Task[Any], channel: Channel) -> OTP:
        text = channel.strategy.generate(task)
        otp = read_code(text, channel.pattern or self.digits)
        if otp != text:
            raise InvalidCode("generate() made a code that its code_pattern does not match")
        return otp


def _failure(task: Task[Any], code: Code, channel: Channel, error: BaseException, otp: OTP | None) -> Failure:
    cause, place = type(error).__name__, own_place(error)
    text = _tellable(error, (*task.recipient.addresses().values(), *filter(None, [otp])))
    strategy = type(channel.strategy).__qualname__
    return Failure(
        code,
        cause,
        f"{cause} raised by {strategy}{f' ({text})' if text else ''}{f' at {place}' if place else ''}",
        final=is_a(error, Reject),
        unknown=is_a(error, OutcomeUnknown),
        after=asked_after(error),
        ended=None if is_a(error, Exception) else _bare(error, otp),
        recorded=is_a(error, Exception),
    )


def _tellable(error: BaseException, secrets: Iterable[str]) -> str:
    """Return what an error says, empty if that was not written for the log or shows what the log must not."""
    if not is_a(error, ConfigError, OutcomeUnknown, Reject, Retry):
        return ""
    text = said_by(error)[:_TEXT_MAX]
    return text if text.isprintable() and not any(_shows(text, secret) for secret in secrets) else ""


def _message_id(sent: object, otp: str, address: str) -> str | None:
    """Return what a provider calls a message, ``None`` for what is no name or shows what the log must not."""
    if type(sent) is not str or not sent.isprintable() or not 0 < len(sent) <= _TEXT_MAX:
        return None
    # Letters and digits beside it are another word: a number in base 16 may end as an address begins.
    word = rf"(?<!\w){re.escape(address.lstrip('+'))}(?!\w)"
    shown = (otp and _shows(sent, otp)) or (address and re.search(word, sent, re.IGNORECASE))
    return None if shown else sent


def _shows(text: str, secret: str) -> bool:
    """Tell whether a secret stands in a text, also with its characters apart."""
    letters = ["".join(filter(str.isalnum, part)).casefold() for part in (text, secret)]
    return secret in text or letters[1] in letters[0]


def _bare(error: BaseException, otp: OTP | None) -> BaseException:
    """Return an error without the frames, errors and texts that hold a code.

    It stays the same object: whoever set a time by ``gevent.Timeout`` looks for that one.
    """
    error.__cause__ = error.__context__ = None
    if otp and any(_shows(said_by(value), otp) for value in (error, error.args, vars(error))):
        error.args = ()
        vars(error).clear()
        if isinstance(error, SystemExit):
            error.code = 1
    return error.with_traceback(None)
