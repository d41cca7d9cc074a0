"""Every error that the extension raises on purpose, and what an app raises to say how an attempt ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from ._tasks import Task


class TaskFlowError(Exception):
    """The root of every error of this package.

    ``code`` is a stable machine-readable word; ``http_status`` the status that the blueprint answers.
    ``attempts_left`` and ``resend_after``, seconds, are ``None`` where they were not counted.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    attempts_left: int | None = None
    resend_after: float | None = None


class ConfigError(TaskFlowError):
    """The app is set up in a way that cannot work; the message names the key and the cure."""

    code = "config_error"


class InvalidTask(TaskFlowError, ValueError):
    """An argument describes no usable task; nothing was stored or sent."""

    code = "invalid_task"
    http_status = 422


class KeyReused(TaskFlowError):
    """A task was added with this ``key`` before, and with other arguments: nothing was stored or sent.

    :param message: what happened, in a sentence.
    :param task: the task that the key names.
    """

    code = "key_reused"
    http_status = 409

    def __init__(self, message: str, *, task: Task[Any] | None = None) -> None:
        super().__init__(message)
        self.task = task


class InvalidCode(TaskFlowError, ValueError):
    """The typed text cannot be a code at all: no attempt was used."""

    code = "invalid_code"
    http_status = 422


class TaskTampered(TaskFlowError):
    """What Redis holds of a task does not bear this app's seal: it was changed from outside."""

    code = "task_tampered"
    http_status = 503


class KeyMissing(TaskFlowError):
    """Another process made this with a secret key that this one lacks: it is left alone, not tampered with.

    :param message: what happened, in a sentence.
    :param fingerprint: what names the key, as ``flask taskflow doctor`` shows it.
    """

    code = "key_missing"
    http_status = 503

    def __init__(self, message: str, *, fingerprint: str = "") -> None:
        super().__init__(message)
        self.fingerprint = fingerprint


class TargetNotFound(TaskFlowError):
    """There is no such queue, callback or dead letter; the message says what there is."""

    code = "target_not_found"
    http_status = 404


class OTPRejected(TaskFlowError):
    """The code was not accepted; the subclass says why, an HTTP answer must not.

    :param message: what happened, in a sentence.
    :param attempts_left: wrong codes that the task still bears, where that was counted.
    :param resend_after: seconds until another code can be asked for by the same method, likewise.
    """

    code = "otp_rejected"
    http_status = 400

    def __init__(
        self, message: str, *, attempts_left: int | None = None, resend_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.attempts_left = attempts_left
        self.resend_after = resend_after


class TaskNotFound(OTPRejected):
    """No such task, or it is over for so long that it was forgotten."""

    code = "task_not_found"


class WrongCode(OTPRejected):
    """The code is not the one in force; ``attempts_left`` more may be wrong before the task locks."""

    code = "wrong_code"


class CodeExpired(OTPRejected):
    """The code is over, the task lives: a resend makes a new one."""

    code = "code_expired"


class MethodNotAllowed(OTPRejected):
    """The task may not be confirmed by this method."""

    code = "method_not_allowed"


class NotHolder(OTPRejected):
    """The task was added with ``holder=True``, and who asks did not bring its holder; no attempt was used."""

    code = "not_holder"


class TaskExpired(OTPRejected):
    """The task's life is over."""

    code = "task_expired"


class TaskLocked(OTPRejected):
    """Too many wrong codes: the task is over."""

    code = "task_locked"


class RecipientBlocked(OTPRejected):
    """Too many wrong codes for this address or device, over all tasks: none is compared now."""

    code = "recipient_blocked"


class TaskNotPending(OTPRejected):
    """The task is over already.

    :param status: how it ended, a :class:`~flask_taskflow.Status`.
    """

    code = "task_not_pending"

    def __init__(self, message: str, *, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class CodeRepeated(TaskNotPending):
    """The code that ended the task came again, by the same method and within a minute; nothing was done.

    The routes answer it as they answered the first time, since a form may be submitted twice. A call of
    ``verify`` or ``reject_task`` must not: what follows it would be done twice.

    :param task: the task, as it was verified or rejected.
    """

    code = "code_repeated"

    def __init__(self, message: str, *, task: Task[Any] | None = None) -> None:
        super().__init__(message, status=task.status if task else "")
        self.task = task


class _Limited(TaskFlowError):
    """A send was refused for now.

    :param message: what happened, in a sentence.
    :param retry_after: seconds until the same call can succeed.
    """

    http_status = 429

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = self.resend_after = retry_after


class ResendTooSoon(_Limited):
    """The cooldown of this task and method runs; ``retry_after`` says how long."""

    code = "resend_too_soon"


class SendLimitReached(_Limited):
    """The task or its recipient had all the codes it may have; ``retry_after`` says until when."""

    code = "send_limit"


class StrategyFailed(TaskFlowError):
    """A strategy could not tell whether a code is right; the attempt counts, the task lives."""

    code = "strategy_failed"
    http_status = 503


class SendFailed(TaskFlowError):
    """A strategy could not send; the task exists and the code can be resent at once.

    :param message: what happened, in a sentence.
    :param task: the task, stored and pending.
    :param methods: the methods whose send failed.
    :param final: whether each of them refused for good, so that to try the same again is no use.
    """

    code = "send_failed"
    http_status = 503
    resend_after = 0.0

    def __init__(
        self,
        message: str,
        *,
        task: Task[Any] | None = None,
        methods: tuple[str, ...] = (),
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.task = task
        self.methods = methods
        self.final = final


class Retry(Exception):
    """Raise it in a callback, or in a strategy's ``send``, to try again; the attempt counts.

    :param message: why, for the log and the operator. Of ``send`` it is told unless the code or an address
        stands in it.
    :param after: seconds until then, instead of the backoff.
    """

    def __init__(self, message: str = "retry", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class Reject(Exception):
    """Raise it in a callback or in a strategy's ``send`` if another try is no use.

    A callback's delivery becomes a dead letter at once; a code is sent by the task's next method.

    :param reason: why, for the log and the operator. Of ``send`` it is told unless the code or an address
        stands in it.
    """

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason


class OutcomeUnknown(Exception):
    """Raise it in a strategy's ``send`` if the message may have been taken, and no answer tells.

    The code stays valid, since it may arrive; it is not sent again by itself (RFC 1047; RFC 5321,
    4.5.3.2.6).

    :param message: why, for the log. It is told unless the code or an address stands in it.
    """

    def __init__(self, message: str = "the outcome is not known") -> None:
        super().__init__(message)
