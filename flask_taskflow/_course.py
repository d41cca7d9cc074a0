"""What became of a task: its course, and what its callbacks did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Event(StrEnum):
    """What may happen to a task, its codes and its deliveries."""

    ADDED = "added"
    VERIFIED = "verified"
    LOCKED = "locked"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    #: The task is ``FAILED``: no method of sending was left.
    TASK_FAILED = "task_failed"
    RECIPIENT_CHANGED = "recipient_changed"

    #: A code is to be sent: in the background, or by the process that made it.
    POSTED = "posted"
    #: The same, after the method's first one.
    RESENT = "resent"
    #: A code was sent in the background.
    SENT = "sent"
    SEND_FAILED = "send_failed"
    #: A code was handed over, and nobody knows whether it was taken.
    SEND_UNKNOWN = "send_unknown"
    #: A code was not sent, as nobody needs it any more.
    DROPPED = "dropped"
    #: A method of sending was given up.
    GIVEN_UP = "given_up"

    #: A code was typed that a device made. If it was right, ``VERIFIED`` follows.
    TRIED = "tried"
    #: A code was not accepted.
    REFUSED = "refused"

    #: A process took a delivery.
    CLAIMED = "claimed"
    #: The same, after an attempt that failed or was lost.
    RETRIED = "retried"
    #: An attempt failed, and there will be another one.
    FAILED = "failed"
    #: The process of an attempt vanished.
    LOST = "lost"
    DONE = "done"
    DEAD = "dead"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    #: An operator gave a delivery to this callback.
    MOVED = "moved"

    #: Entries were left out here.
    CUT = "cut"
    #: Something else has written to the course.
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseEntry:
    """One thing that happened to a task. What does not apply is ``None``.

    :param event: what happened.
    :param at: when, aware, by the server's clock.
    :param method: of the code, or of the delivery, if that is a send.
    :param callback: of the delivery.
    :param cause: why: the ``code`` of a refusal, or the class of what was raised.
    :param place: the app's own line that raised, ``<module>:<line>``.
    :param process: which process took the delivery, ``<host>:<pid>``, or ``-`` if it could not be seen.
    :param address: the new one, masked.
    :param count: how many entries were left out.
    """

    event: Event
    at: datetime | None = None
    method: str | None = None
    callback: str | None = None
    cause: str | None = None
    place: str | None = None
    process: str | None = None
    address: str | None = None
    count: int | None = None


class Outcome(StrEnum):
    """What became of a verified task, or of one of its callbacks; the later ones are worse."""

    #: No callback is registered for its queue.
    NONE = "none"
    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    #: An attempt failed, or was lost with its process, and another one is to come.
    RETRYING = "retrying"
    #: An operator gave it up.
    DISCARDED = "discarded"
    #: All attempts failed: a dead letter.
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class CallbackOutcome:
    """What became of one callback of a verified task.

    :param state: any outcome but ``NONE``.
    :param attempts: how many began, that which runs and those whose process vanished included.
    :param since: aware, by the server's clock.
    :param next_at: when it is due again, aware, or ``None``.
    """

    state: Outcome
    attempts: int
    since: datetime
    next_at: datetime | None = None


def worst(outcomes: Iterable[CallbackOutcome]) -> Outcome:
    """Return the worst of some outcomes, ``NONE`` if there are none."""
    order = list(Outcome)
    return max((outcome.state for outcome in outcomes), key=order.index, default=Outcome.NONE)
