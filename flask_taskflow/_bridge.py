"""Tell services that run ``@sotatech/nest-taskflow`` on the same Redis what is verified, and hear them.

Their messages are JSON on one channel, see :class:`Bridge`. Nothing proves who wrote one.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from redis import Redis, RedisError

from ._checks import check_label, check_priority, check_seconds, is_text
from ._log import Logger
from ._seldom import Seldom
from ._store.keys import TASK_ID
from ._store.records import dump_data, time_of
from ._tasks import Recipient, Status, Task
from .errors import InvalidTask

logger = Logger(__name__)

#: A longer message is not read, in bytes.
_LONGEST = 2**20
_TIMEOUT_MAX = 365 * 86400.0
_ADDRESS_MAX = 1000
_COMPLAIN = 2.0
#: What each field of a recipient is called there.
_FIELDS = {"email": "email", "phone_number": "phoneNumber", "device_id": "deviceId"}
#: Where no time to live was given, a task is there until it is verified.
_NEVER = datetime.max.replace(tzinfo=UTC)


class Bridge:
    """Write and read the messages that the original publishes when a task is verified.

    :param channel: theirs is ``task_verified``.
    :param client: publishes.
    """

    def __init__(self, channel: str, client: Redis) -> None:
        self.channel = channel
        self._client = client
        self._seldom = Seldom(_COMPLAIN)

    def publish(self, task: Task[Any]) -> None:
        """Tell of a task that was verified here. If Redis fails the log tells; the task stays verified."""
        try:
            self._client.publish(self.channel, _written(task))
        except RedisError as error:
            logger.warning("Channel %s was not told of task %s: %s", self.channel, task.id, error)

    def read(self, message: bytes) -> Task[Any] | None:
        """Return the task that another service verified; the message tells neither when nor by which method.

        ``None`` for a message of this package, which has bells for that, and for one that is not as the
        original writes them, of which the log tells now and then.
        """
        try:
            task = _read(message)
        except (InvalidTask, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if self._seldom():
                cause = type(error).__name__
                logger.warning(
                    "Junk of %d bytes on channel %s was dropped: %s.", len(message), self.channel, cause
                )
            return None
        # Theirs are UUIDs.
        return None if TASK_ID.fullmatch(task.id) else task


def _written(task: Task[Any]) -> str:
    told = {
        "id": task.id,
        "queue": task.queue,
        "data": task.data,
        "recipient": {_FIELDS[name]: address for name, address in task.recipient.addresses().items()},
        # The original reads a task before it ends it: its services know no other status.
        "status": Status.PENDING,
        "priority": task.priority,
        "timeout": round(task.timeout * 1000),
        "timestamp": round(task.created_at.timestamp() * 1000),
        "ttl": round((task.expires_at - task.created_at) / timedelta(milliseconds=1)),
    }
    return json.dumps(told)


def _read(message: bytes) -> Task[Any]:
    if len(message) > _LONGEST:
        raise ValueError("it is too long")
    told = _object(json.loads(message.decode(), parse_constant=_refuse))
    data = told.get("data")
    # What no JSON of ours could hold is no task's data either.
    dump_data(data, maximum=_LONGEST)
    created = time_of(_number(told["timestamp"]))
    ttl = _number(-1 if told.get("ttl") is None else told["ttl"])
    return Task(
        id=check_label(told["id"], "id"),
        queue=check_label(told["queue"], "queue"),
        data=data,
        summary=None,
        recipient=_recipient(_object(told.get("recipient") or {})),
        allowed_methods=(),
        status=Status.SUCCESS,
        priority=check_priority(int(_number(told["priority"]))),
        timeout=check_seconds(_number(told["timeout"]) / 1000, "timeout", maximum=_TIMEOUT_MAX),
        created_at=created,
        expires_at=_NEVER if ttl < 0 else created + timedelta(milliseconds=ttl),
    )


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise TypeError("it is no object")


def _recipient(told: dict[str, Any]) -> Recipient:
    addresses: dict[str, str] = {}
    for name, theirs in _FIELDS.items():
        address = told.get(theirs)
        if address is not None:
            if not is_text(address) or len(address) > _ADDRESS_MAX:
                raise TypeError(f"{theirs} is no address")
            addresses[name] = address
    return Recipient(**addresses)


def _number(value: object) -> float:
    """Return a number, which Redis may have made a text of."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("it is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it is no number")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
