"""The audit log: one structured record for each thing that happens to a task.

The records go to the logger ``flask_taskflow.audit``. The message is the event's name; everything else is
in ``extra`` fields, which ``docs/audit.md`` lists. No record holds a code; addresses are masked.
"""

from __future__ import annotations

import logging
from typing import Any

from flask import has_request_context, request

logger = logging.getLogger("flask_taskflow.audit")
# Where logging is not set up, Python would print the bare event names.
logger.addHandler(logging.NullHandler())

_USER_AGENT_MAX = 200


def record(event: str, task_id: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one record.

    :param event: its name, from the list in ``docs/audit.md``.
    :param task_id: the task it is about, as the caller gave it.
    :param level: ``INFO`` for what was asked for, ``WARNING`` for what somebody should look at.
    :param fields: more, without codes and with addresses masked.
    """
    if not logger.isEnabledFor(level):
        return
    extra = {"event": event, "task_id": str(task_id)[:64], **fields}
    if has_request_context():
        extra["remote_addr"] = request.remote_addr
        extra["user_agent"] = request.user_agent.string[:_USER_AGENT_MAX]
    logger.log(level, event, extra=extra)
