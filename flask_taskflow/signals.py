"""The Blinker signals of the extension; the sender is always the Flask app.

Receivers run inside the app context. Each one is isolated: one that raises is logged and silences no
other. No signal carries a code.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from blinker import NamedSignal, Namespace

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)

_signals = Namespace()

#: ``(app, *, task)``: a task was stored; its code is not sent yet.
task_added = _signals.signal("task-added")
#: ``(app, *, task, method)``: a strategy took a code for sending.
otp_sent = _signals.signal("otp-sent")
#: ``(app, *, task)``: the task is ``FAILED``: its code could not be sent, and no other method was left.
task_failed = _signals.signal("task-failed")
#: ``(app, *, task_id, method, cause)``: a code was refused; ``cause`` is the error's ``code``.
otp_rejected = _signals.signal("otp-rejected")
#: ``(app, *, task, old, new)``: addresses changed; ``old`` and ``new`` map fields to masked addresses.
recipient_updated = _signals.signal("recipient-updated")
#: ``(app, *, task)``: a task was verified; fires once in every process that listens.
task_verified = _signals.signal("task-verified")
#: ``(app, *, task, callback, delivery, error=None)``: a callback returned and its delivery is done.
callback_succeeded = _signals.signal("callback-succeeded")
#: ``(app, *, task, callback, delivery, error)``: an attempt failed and will be repeated.
callback_failed = _signals.signal("callback-failed")
#: ``(app, *, task, callback, delivery, error)``: a delivery was given up and is a dead letter.
callback_dead = _signals.signal("callback-dead")


def emit(signal: NamedSignal, app: Flask, **arguments: Any) -> None:
    """Call every receiver that listens to an app, each on its own.

    :param signal: one of this module's signals.
    :param app: the sender.
    :param arguments: passed to the receivers by keyword.
    """
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **arguments)
        except Exception:
            logger.exception("A receiver of the signal %s raised.", signal.name)
