"""Every error that the extension raises on purpose, under one root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ._task import Task


class TaskFlowError(Exception):
    """The root of every error of this package.

    ``code`` is a stable machine-readable word; ``http_status`` the status that the blueprint answers.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500


class ConfigError(TaskFlowError):
    """The app is set up in a way that cannot work; the message names the key and the cure."""

    code = "config_error"


class InvalidTask(TaskFlowError, ValueError):
    """An argument describes no usable task; nothing was stored or sent."""

    code = "invalid_task"
    http_status = 422


class InvalidCode(TaskFlowError, ValueError):
    """The typed text cannot be a code at all: no attempt was used."""

    code = "invalid_code"
    http_status = 422


class TaskTampered(TaskFlowError):
    """What Redis holds of a task does not bear this app's seal: it was changed from outside."""

    code = "task_tampered"
    http_status = 503


class OTPRejected(TaskFlowError):
    """The code was not accepted; the subclass says why, an HTTP answer must not.

    :param message: what happened, in a sentence.
    :param attempts_left: wrong codes that the task still bears, where that was counted.
    """

    code = "otp_rejected"
    http_status = 400

    def __init__(self, message: str, *, attempts_left: int | None = None) -> None:
        super().__init__(message)
        self.attempts_left = attempts_left


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


class TaskExpired(OTPRejected):
    """The task's life is over."""

    code = "task_expired"


class TaskLocked(OTPRejected):
    """Too many wrong codes: the task is over."""

    code = "task_locked"


class TaskNotPending(OTPRejected):
    """The task is over already.

    :param status: how it ended, a :class:`~flask_taskflow.Status`.
    """

    code = "task_not_pending"

    def __init__(self, message: str, *, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class _Limited(TaskFlowError):
    """A send was refused for now.

    :param message: what happened, in a sentence.
    :param retry_after: seconds until the same call can succeed.
    """

    http_status = 429

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
    """

    code = "send_failed"
    http_status = 503

    def __init__(self, message: str, *, task: Task[Any] | None = None, methods: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.task = task
        self.methods = methods
