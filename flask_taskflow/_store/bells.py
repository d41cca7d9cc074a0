"""What a bell says: that a task was verified, that a code of it waits to be sent, or that a reminder waits.

Bells are rung by ``ring`` in ``lua/shared/bells.lua``, by the steps that they tell of.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .._checks import METHOD
from .keys import REMINDERS, TASK_ID

_ID = TASK_ID.pattern
_BELL = re.compile(f"1 ({_ID})|2 ({_ID}) ({METHOD.pattern}|{REMINDERS})".encode())


class Bell(NamedTuple):
    """A message on the channel of bells: only a hint, since it may be lost, forged or repeated.

    :param task_id: the task.
    :param method: by which a code of it is to be sent, or what reminders stand under; ``None`` if it was
        verified.
    """

    task_id: str
    method: str | None


def read_bell(message: bytes) -> Bell | None:
    """Return what a message says, ``None`` if it is no bell."""
    match = _BELL.fullmatch(message)
    if match is None:
        return None
    if match[1]:
        return Bell(match[1].decode(), None)
    return Bell(match[2].decode(), match[3].decode())
