"""How a task stands, for the clients that poll it."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from typing import Any

from flask import Response, jsonify, request

from .._course import Outcome
from .._service import current_service
from .._tasks import Status, Task, mask
from .schemas import TaskStatus, hold_on

#: Seconds after which to ask again while something may change.
_ASK_AGAIN = 3
#: What a verified task does not stay at.
_PASSING = (Outcome.WAITING, Outcome.RUNNING, Outcome.RETRYING)


def answer_status(task: Task[Any], now: datetime) -> Response:
    """Return how a task stands; nothing but a 304 to who knows that already.

    An answer without ``Retry-After`` is the last one: nothing changes any more by itself.

    :param now: the server's time.
    """
    body = status_of(task)
    response = jsonify(body)
    response.set_etag(_digest(body, task, now), weak=True)
    if task.status is Status.PENDING or task.outcome in _PASSING:
        response.headers["Retry-After"] = str(_ASK_AGAIN)
    if task.outcome in _PASSING:
        hold_on(response, task)
    response.make_conditional(request)
    return response


def status_of(task: Task[Any]) -> dict[str, Any]:
    """Return how a task stands, as JSON tells it; addresses are masked, and its data is left out."""
    channels, methods = current_service().channels, []
    for method in task.allowed_methods:
        channel, wait = channels.get(method), task.resend_after.get(method)
        address = channel.address(task.recipient) if channel else ""
        methods.append(
            {
                "method": method,
                "address": mask(address) if address else None,
                "resend_after": None if wait is None else math.ceil(wait),
            }
        )
    told = {
        "id": task.id,
        "queue": task.queue,
        "status": task.status.value,
        "outcome": task.outcome,
        "methods": methods,
        "send_at": task.send_at,
        "expires_at": task.expires_at,
        "verified_at": task.verified_at,
        "attempts_left": task.attempts_left,
    }
    body: dict[str, Any] = TaskStatus().dump(told)
    return body


def _digest(body: dict[str, Any], task: Task[Any], now: datetime) -> str:
    # Seconds that merely pass are no change: when a wait ends is part of it, and that it ended.
    ends = [round(now.timestamp() * 1000 + 1000 * wait) if wait else 0 for wait in task.resend_after.values()]
    methods = [{**item, "resend_after": item["resend_after"] is None} for item in body["methods"]]
    stable = json.dumps([{**body, "methods": methods}, ends])
    return hashlib.sha256(stable.encode()).hexdigest()[:32]
