"""The Blinker signals of the extension; the sender is always the Flask app.

Each receiver is isolated: one that raises is logged and silences no other. Receivers of what happens in a
call of the service run in the caller's app context; those of what background threads do run in an app context
of their own each. No signal carries a code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blinker import NamedSignal, Namespace

from ._interrupts import is_interrupt
from ._log import Logger

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

_signals = Namespace()
_here = threading.local()

#: ``(app, *, task)``: a task was stored; its code is not sent yet.
task_added = _signals.signal("task-added")
#: ``(app, *, task, method)``: a strategy took a code for sending.
otp_sent = _signals.signal("otp-sent")
#: ``(app, *, task)``: the task is ``FAILED``: its code could not be sent, and no other method was left.
task_failed = _signals.signal("task-failed")
#: ``(app, *, task)``: the task ended without success, as its ``status`` says.
task_ended = _signals.signal("task-ended")
#: ``(app, *, task, left)``: a pending task of ``add_task(remind=...)`` ends in ``left`` seconds; fires in one
#: process that has receivers, at least once.
task_expiring = _signals.signal("task-expiring")
#: ``(app, *, task_id, method, cause)``: a code was refused; ``cause`` is the error's ``code``.
otp_rejected = _signals.signal("otp-rejected")
#: ``(app, *, task, old, new)``: addresses changed; ``old`` and ``new`` map fields to masked addresses.
recipient_updated = _signals.signal("recipient-updated")
#: ``(app, *, task)``: a task was verified; fires once in every process that listens. With ``bridged=True``
#: another service says so, and nothing proves it: see ``TASKFLOW_BRIDGE_CHANNEL``.
task_verified = _signals.signal("task-verified")
#: ``(app, *, task, callback, delivery, error=None)``: a callback returned and its delivery is done.
callback_succeeded = _signals.signal("callback-succeeded")
#: ``(app, *, task, callback, delivery, error)``: an attempt failed and will be repeated.
callback_failed = _signals.signal("callback-failed")
#: ``(app, *, task, callback, delivery, error)``: a delivery was given up and is a dead letter.
callback_dead = _signals.signal("callback-dead")
#: ``(app, *, schedule, tick, delivery, error)``: a run of a schedule was given up and is a dead letter.
schedule_dead = _signals.signal("schedule-dead")


def emit(signal: NamedSignal, app: Flask, **arguments: Any) -> None:
    """Call every receiver that listens to an app, each on its own, in the caller's context.

    Coroutine functions run by the app's ``ensure_sync``, as Flask's own receivers do.

    :param signal: one of this module's signals.
    :param app: the sender.
    :param arguments: passed to the receivers by keyword.
    """
    for receiver in _receivers(signal, app):
        _call(signal, receiver, app, arguments)


def emit_apart(signal: NamedSignal, app: Flask, **arguments: Any) -> None:
    """Call every receiver as :func:`emit` does, but each in an app context of its own.

    What one of them leaves undone, as in a session of a database, is then no other's to commit.
    """
    hand = getattr(_here, "hand", None)
    for receiver in _receivers(signal, app):
        call = _CallApart(signal, receiver, app, arguments)
        if hand is None:
            call()
        else:
            hand(call)


def call_by(hand: Callable[[Callable[[], object]], None]) -> None:
    """Let what this thread emits by :func:`emit_apart` reach its receivers in another one: they may hang.

    :param hand: takes what the other thread is to call.
    """
    _here.hand = hand


@dataclass(frozen=True, slots=True)
class _CallApart:
    """The call of one receiver, in an app context of its own."""

    signal: NamedSignal
    receiver: Callable[..., Any]
    app: Flask
    arguments: Mapping[str, Any]

    def __call__(self) -> None:
        _call(self.signal, self.receiver, self.app, self.arguments, context=self.app.app_context())

    def __str__(self) -> str:
        name = getattr(self.receiver, "__qualname__", type(self.receiver).__name__)
        return f"{self.receiver.__module__}.{name}, a receiver of the signal {self.signal.name},"


def _receivers(signal: NamedSignal, app: Flask) -> list[Callable[..., Any]]:
    return [] if signal.is_muted else list(signal.receivers_for(app))


def _call(
    signal: NamedSignal,
    receiver: Callable[..., Any],
    app: Flask,
    arguments: Mapping[str, Any],
    context: AbstractContextManager[object] | None = None,
) -> None:
    try:
        with context or nullcontext():
            app.ensure_sync(receiver)(app, **arguments)
    except BaseException as error:
        if is_interrupt(error):
            raise
        # A thread of ours that ended by it would silence all later signals.
        logger.exception("A receiver of the signal %s raised.", signal.name)
