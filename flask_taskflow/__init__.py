"""One-time codes for actions that must wait for them, for Flask."""

from ._callbacks import Delivery, Reject, Retry, current_delivery
from ._email import EmailStrategy
from ._extension import TaskFlow
from ._smart_otp import SigningStrategy, SmartOTPStrategy, sign_transaction
from ._sms import SMSStrategy
from ._task import Method, Recipient, Status, Task
from ._transaction import transaction_challenge
from .errors import (
    CodeExpired,
    ConfigError,
    InvalidCode,
    InvalidTask,
    MethodNotAllowed,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskExpired,
    TaskFlowError,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    TaskTampered,
    WrongCode,
)
from .signals import (
    callback_dead,
    callback_failed,
    callback_succeeded,
    otp_rejected,
    otp_sent,
    recipient_updated,
    task_added,
    task_failed,
    task_verified,
)
from .strategies import BaseStrategy, ConsoleStrategy, OutboxStrategy

__all__ = [
    "BaseStrategy",
    "CodeExpired",
    "ConfigError",
    "ConsoleStrategy",
    "Delivery",
    "EmailStrategy",
    "InvalidCode",
    "InvalidTask",
    "Method",
    "MethodNotAllowed",
    "OTPRejected",
    "OutboxStrategy",
    "Recipient",
    "Reject",
    "ResendTooSoon",
    "Retry",
    "SMSStrategy",
    "SendFailed",
    "SendLimitReached",
    "SigningStrategy",
    "SmartOTPStrategy",
    "Status",
    "StrategyFailed",
    "Task",
    "TaskExpired",
    "TaskFlow",
    "TaskFlowError",
    "TaskLocked",
    "TaskNotFound",
    "TaskNotPending",
    "TaskTampered",
    "WrongCode",
    "callback_dead",
    "callback_failed",
    "callback_succeeded",
    "current_delivery",
    "otp_rejected",
    "otp_sent",
    "recipient_updated",
    "sign_transaction",
    "task_added",
    "task_failed",
    "task_verified",
    "transaction_challenge",
]
