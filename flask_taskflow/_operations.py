"""What an operator asks of Redis: counts, dead letters, pauses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from ._keys import KINDS, SENDS, Keys, Scripts, tag_of

STATES = {"ready": "ready", "delay": "delayed", "lease": "running", "dead": "dead"}


@dataclass(frozen=True, slots=True)
class CallbackStats:
    """How many deliveries of one callback stand where.

    :param callback: its name, ``@<method>`` for sends.
    :param ready: wait for a free place.
    :param delayed: wait for a retry.
    :param running: leased.
    :param dead: dead letters.
    :param oldest: seconds that the oldest of those that wait has waited, or ``None``.
    """

    callback: str
    ready: int
    delayed: int
    running: int
    dead: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How a queue stands.

    :param queue: its name.
    :param pending: tasks that wait for a code.
    :param paused: whether its callbacks are held.
    :param callbacks: one entry for each, and for each method by which sends wait.
    """

    queue: str
    pending: int
    paused: bool
    callbacks: Sequence[CallbackStats]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one delivery stands.

    :param id: ``<task id>:<callback>``.
    :param queue: its queue.
    :param state: ``ready``, ``delayed``, ``running`` or ``dead``.
    :param at: since when it waits or is dead, until when it is delayed or leased.
    :param failures: attempts that failed.
    :param lost: attempts whose process vanished.
    :param owner: the process that had it last, ``-`` if unknown.
    :param error: the last error, empty if there was none.
    """

    id: str
    queue: str
    state: str
    at: datetime
    failures: int
    lost: int
    owner: str
    error: str


class Operations:
    """The operator's steps.

    :param client: answers bytes.
    :param keys: the names of keys.
    :param methods: the methods that there may be sends by.
    """

    def __init__(self, client: Redis, keys: Keys, methods: Collection[str] = ()) -> None:
        self._client: Any = client
        self._scripts = Scripts(client)
        self._keys = keys
        self._methods = methods

    def queues(self) -> list[str]:
        """Return the names of all queues that were ever used."""
        return sorted(name.decode() for name in self._client.hvals(self._keys.queues))

    def queue_of(self, task_id: str) -> str | None:
        """Return the queue that a task's id points to, or ``None``."""
        name = self._client.hget(self._keys.queues, tag_of(task_id))
        return None if name is None else str(name.decode())

    def handlers(self, queue: str) -> dict[str, datetime]:
        """Return the registered callbacks of a queue and when a process last said that it has them."""
        (key,) = self._of(queue, "handlers")
        stored = self._client.hgetall(key)
        return {name.decode(): _time(at) for name, at in sorted(stored.items()) if name != b"#epoch"}

    def names(self, queue: str) -> list[str]:
        """Return what a queue's deliveries may stand under: its callbacks, and its sends by each method."""
        return [*self.handlers(queue), *(SENDS + method for method in sorted(self._methods))]

    def stats(self, queue: str) -> QueueStats:
        """Count what a queue holds."""
        names = self.names(queue)
        keys = [key for name in names for key in self._all(queue, name)]
        _, pending, *counts = self._scripts.run("stats", self._of(queue, "pending") + keys)
        rows = [counts[i : i + 5] for i in range(0, len(counts), 5)]
        callbacks = [
            CallbackStats(name, ready, delayed, running, dead, None if age == b"-1" else int(age) / 1000)
            for name, (ready, delayed, running, dead, age) in zip(names, rows, strict=True)
            if not name.startswith(SENDS) or ready + delayed + running + dead
        ]
        return QueueStats(queue, pending, self.is_paused(queue), callbacks)

    def pending(self, queue: str, count: int) -> list[str]:
        """Return the ids of pending tasks, the next to expire first."""
        (key,) = self._of(queue, "pending")
        seconds, microseconds = self._client.time()
        now = seconds * 1000 + microseconds // 1000
        return [item.decode() for item in self._client.zrangebyscore(key, now, "+inf", 0, count)]

    def find(self, queue: str, name: str, task_id: str) -> Placed | None:
        """Tell where a delivery stands, or ``None`` if there is none: done, discarded or never made."""
        word, *row = self._scripts.run("find", self._all(queue, name), task_id)
        if word == "none":
            return None
        at, failures, lost, owner, error = row
        return Placed(
            f"{task_id}:{name}",
            queue,
            STATES[word],
            _time(float(at)),
            failures,
            lost,
            owner.decode(errors="replace"),
            error.decode(errors="replace"),
        )

    def dead(self, queue: str, count: int) -> Iterator[Placed]:
        """Yield dead letters of a queue, of each callback the newest first."""
        for name in self.names(queue):
            _, *rows = self._scripts.run("list_dead", self._all(queue, name), count)
            for i in range(0, len(rows), 6):
                task_id, died, failures, lost, _, error = rows[i : i + 6]
                yield Placed(
                    f"{task_id.decode(errors='replace')}:{name}",
                    queue,
                    "dead",
                    _time(float(died)),
                    failures,
                    lost,
                    "-",
                    error.decode(errors="replace"),
                )

    def replay(self, queue: str, name: str, task_id: str) -> bool:
        """Let a dead letter run again; false if it is none."""
        word, *_ = self._scripts.run("replay", self._all(queue, name), task_id)
        bell = f"2 {task_id} {name[len(SENDS) :]}" if name.startswith(SENDS) else f"1 {task_id}"
        self._client.publish(self._keys.bell, bell)
        return bool(word == "ok")

    def discard(self, queue: str, name: str, task_id: str) -> bool:
        """Forget a dead letter; false if it is none."""
        word, *_ = self._scripts.run("discard", self._all(queue, name), task_id)
        return bool(word == "ok")

    def is_paused(self, queue: str) -> bool:
        """Tell whether a queue's callbacks are held."""
        return bool(self._client.exists(*self._of(queue, "paused")))

    def pause(self, queue: str) -> None:
        """Hold a queue's callbacks; its tasks can be verified all the same."""
        self._client.set(*self._of(queue, "paused"), "1")

    def resume(self, queue: str) -> None:
        """Let a queue's callbacks run again."""
        self._client.delete(*self._of(queue, "paused"))

    def purge(self, queue: str) -> int:
        """Forget what waits in a queue, ready or delayed; return how many deliveries."""
        total = 0
        for name in self.handlers(queue):
            while count := self._scripts.run("purge", self._all(queue, name))[1]:
                total += count
        return total

    def forget(self, queue: str, name: str) -> int | None:
        """Forget a callback that no process has any more.

        :return: how many deliveries forbid it; 0 if it was forgotten, ``None`` if there is no such one.
        """
        keys = self._all(queue, name) + self._of(queue, "handlers")
        word, *rest = self._scripts.run("forget", keys, name)
        return None if word == "none" else int(rest[0]) if rest else 0

    def _of(self, queue: str, *names: str) -> list[str]:
        return self._keys.of(self._keys.tag(queue), *names)

    def _all(self, queue: str, name: str) -> list[str]:
        return self._keys.handler(self._keys.tag(queue), name, *KINDS)


def _time(milliseconds: float | bytes) -> datetime:
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)
