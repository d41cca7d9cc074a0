"""The courses of tasks, and what their callbacks did, as the steps noted it."""

from __future__ import annotations

from typing import Any

from .._course import CourseEntry, Event
from ..errors import TaskNotFound
from .keys import Consumer, Keys
from .records import time_of
from .steps import Steps

#: What follows an event, word by word, see ``lua/shared/happenings.lua`` and ``runs.lua``. The last
#: ones may be missing.
_MORE: dict[Event, tuple[str, ...]] = {
    **dict.fromkeys((Event.VERIFIED, Event.POSTED, Event.RESENT, Event.SENT, Event.TRIED), ("method",)),
    **dict.fromkeys(
        (Event.REFUSED, Event.SEND_FAILED, Event.SEND_UNKNOWN, Event.DROPPED, Event.GIVEN_UP),
        ("method", "cause"),
    ),
    Event.RECIPIENT_CHANGED: ("address",),
    **dict.fromkeys((Event.CLAIMED, Event.RETRIED), ("consumer", "process")),
    **dict.fromkeys((Event.FAILED, Event.DEAD), ("consumer", "cause", "place")),
    **dict.fromkeys((Event.LOST, Event.DONE, Event.REPLAYED, Event.DISCARDED, Event.MOVED), ("consumer",)),
    Event.CUT: ("count",),
}


class CourseStore:
    """The courses of tasks.

    :param steps: whose client is asked.
    :param keys: the names of keys.
    """

    def __init__(self, steps: Steps, keys: Keys) -> None:
        self._client = steps.client
        self._keys = keys

    def read(self, task_id: str) -> list[CourseEntry]:
        """Return what happened to a task, the oldest first.

        :raises TaskNotFound: if there is no course of it, or no more.
        """
        (key,) = self._keys.course(task_id)
        stored = self._client.lrange(key, 0, -1)
        if not stored:
            raise TaskNotFound("there is no such task")
        return [_entry(item.decode(errors="replace")) for item in stored]


def _entry(text: str) -> CourseEntry:
    """Return an entry as it is stored; nothing seals it."""
    try:
        at, word, *rest = text.split(" ")
        event = Event(word)
        told: dict[str, Any] = dict(zip(_MORE.get(event, ()), rest, strict=False))
        if consumer := told.pop("consumer", None):
            method = Consumer(consumer).method
            told |= {"method": method} if method else {"callback": consumer}
        if "count" in told:
            told["count"] = int(told["count"])
        return CourseEntry(event=event, at=time_of(at), **told)
    except (ValueError, OverflowError):
        return CourseEntry(event=Event.UNREADABLE)
