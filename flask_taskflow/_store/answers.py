"""What a view answered once its code was typed: kept for a short time, for who asks again."""

from __future__ import annotations

import json
from typing import NamedTuple

from .._keyring import Keyring
from ..errors import TaskNotFound
from .keys import Keys
from .steps import Steps

#: Milliseconds that an answer is kept.
_KEPT = 60_000


class Kept(NamedTuple):
    """An answer of a view.

    :param status: its HTTP status.
    :param headers: its headers, but cookies.
    :param body: its body.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class AnswerStore:
    """Runs of views that wait for a code: one a task.

    :param steps: runs Lua steps.
    :param keys: the names of keys.
    :param keyring: seals answers.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring) -> None:
        self._steps = steps
        self._keys = keys
        self._keyring = keyring

    def begin(self, task_id: str) -> Kept | float | None:
        """Begin the run of a verified task: return ``None`` if it is ours to do.

        :return: else its answer, or, while there is none, how many seconds ago it began.
        :raises TaskNotFound: if there is no verified task.
        """
        word, *reply = self._steps.run("tasks/begin", self._both(task_id))
        if word == "unknown":
            raise TaskNotFound("there is no such task")
        if word == "kept":
            found = self._read(task_id, reply[0])
            return 60.0 if found is None else found
        return int(reply[0]) / 1000 if word == "begun" else None

    def keep(self, task_id: str, answer: Kept | None) -> None:
        """Keep an answer for a minute, or that there is none: who waits for it need not wait any more."""
        if answer is None:
            self._steps.client.set(self._both(task_id)[1], b"", px=_KEPT)
            return
        head = json.dumps([answer.status, answer.headers]).encode()
        text = len(head).to_bytes(4) + head + answer.body
        seal = self._keyring.seal("answer", task_id, text).encode()
        self._steps.client.set(self._both(task_id)[1], seal + b" " + text, px=_KEPT)

    def _read(self, task_id: str, raw: bytes) -> Kept | None:
        """Return a kept answer; ``None`` if there is none, or if it was changed from outside."""
        seal, _, text = raw.partition(b" ")
        if not self._keyring.holds(seal.decode(errors="replace"), "answer", task_id, text):
            return None
        size = int.from_bytes(text[:4])
        status, headers = json.loads(text[4 : 4 + size])
        return Kept(status, tuple((name, value) for name, value in headers), text[4 + size :])

    def _both(self, task_id: str) -> list[str]:
        return self._keys.task(task_id, f"answer:{task_id}")
