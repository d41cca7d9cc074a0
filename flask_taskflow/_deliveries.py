"""Everything that this package says to Redis about deliveries: the engine's steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from ._audit import record
from ._config import Config
from ._keys import KINDS, SENDS, Keys, Queues, Scripts
from ._otp import Keyring
from ._seldom import Seldom
from ._store import read_task
from ._task import Task
from .errors import TaskTampered

logger = logging.getLogger(__name__)

#: The owner of a lease that has no channel of its own.
NOBODY = "-"
_CLAIM_MAX = 16
_MOVES_MAX = 500
_ERROR_MAX = 1024
_COMPLAIN = 60.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this process leased.

    :param queue: its queue.
    :param callback: its callback's name.
    :param task_id: its id, which is the task's.
    :param token: what reports carry; ``0`` for one that was just given up.
    :param failures: attempts that failed so far.
    :param lost: attempts whose process vanished so far.
    :param task: the task, or ``None`` if its stored strings were changed from outside, and for a send.
    """

    queue: str
    callback: str
    task_id: str
    token: int
    failures: int
    lost: int
    task: Task[Any] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim answered.

    :param deliveries: what to run now, most urgent first.
    :param dead: what was lost too often and is a dead letter now.
    :param again: whether another claim should follow at once.
    :param wait: seconds to the next due item, or ``None``.
    :param held: leases of the queue's callbacks, this process's included.
    """

    deliveries: Sequence[Claimed]
    dead: Sequence[Claimed]
    again: bool
    wait: float | None
    held: int


#: A lease whose process is gone: index of its callback, id, token, deadline.
Suspect = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look for vanished processes answered.

    :param suspects: leases without their process.
    :param taken: how many seen before were taken over.
    :param held: leases of the queue's callbacks.
    """

    suspects: Sequence[Suspect]
    taken: int
    held: int


class DeliveryStore:
    """The engine's steps, each one atomic and one round trip.

    :param client: answers bytes and does not retry.
    :param keys: the names of keys.
    :param config: lease, limits and retention.
    :param keyring: checks seals.
    :param queues: where queues are listed.
    """

    def __init__(self, client: Redis, keys: Keys, config: Config, keyring: Keyring, queues: Queues) -> None:
        self._scripts = Scripts(client)
        self._keys = keys
        self._config = config
        self._keyring = keyring
        self._queues = queues
        #: The server's clock less the monotonic one, ms.
        self._ahead: float | None = None
        self._seldom = Seldom(_COMPLAIN)

    def relist(self) -> None:
        """List queues anew at the next occasion: Redis may have lost them."""
        self._queues.relist()

    def register(self, queue: str, names: Sequence[str]) -> None:
        """Say that this process has these callbacks of a queue."""
        tag = self._keys.tag(queue)
        self._scripts.run("register", self._keys.of(tag, "handlers"), len(names), *names)
        self._queues.add(queue)

    def claim(
        self, queue: str, names: Sequence[str], most: int, *, owner: str = NOBODY, reap: bool = True
    ) -> Claim:
        """Lease at most ``most`` deliveries, the smallest by (-priority, number) first.

        A claim that Redis comes to when this process has given it up, as a frozen server does, has no
        effect: it would lease for nobody, and rob owners who could not renew their leases either.

        :param names: the callbacks that this process has.
        :param owner: the present process's name; nobody's lease is not taken over early.
        :param reap: whether expired leases of others may be taken over.
        """
        word, now, *reply = self._scripts.run(
            "claim",
            [
                *(key for name in names for key in self._all(queue, name)),
                *self._keys.of(self._keys.tag(queue), "paused"),
            ],
            self._deadline(),
            min(most, _CLAIM_MAX),
            int(self._config.lease * 1000),
            owner,
            self._config.max_lost,
            int(self._config.lease * 1000),
            int(reap),
            # A pause holds what comes after a verification, not the way there.
            int(not any(name.startswith(SENDS) for name in names)),
            _MOVES_MAX,
        )
        self._ahead = int(now) - time.monotonic() * 1000
        if word == "late":
            return Claim([], [], again=True, wait=None, held=0)
        wait, dropped, held, broken, *rows = reply
        if dropped:
            logger.error("Dropped %d unreadable deliveries of queue %s.", dropped, queue)
        for index in broken.split():
            self._complain(queue, names[int(index)])
        claimed = [self._claimed(queue, names[rows[i]], rows[i + 1 : i + 6]) for i in range(0, len(rows), 6)]
        return Claim(
            deliveries=[item for item in claimed if item.token],
            dead=[item for item in claimed if not item.token],
            again=word == "again",
            wait=None if wait == b"-1" else int(wait) / 1000,
            held=held,
        )

    def look(self, queue: str, names: Sequence[str], owner: str, seen: Sequence[Suspect]) -> Look:
        """Look for leases whose process is gone; take over those that were seen so before.

        :param owner: the own name, left alone.
        :param seen: what an earlier look answered.
        """
        _, held, taken, *rows = self._scripts.run(
            "look",
            [key for name in names for key in self._all(queue, name)],
            self._keys.presence,
            owner,
            self._config.max_lost,
            int(self._config.lease * 1000),
            4 * len(seen),
            *(part for suspect in seen for part in suspect),
        )
        words = [str(part if isinstance(part, int) else part.decode()) for part in rows]
        suspects = list(zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True))
        return Look(suspects, taken, held)

    def extend(self, queue: str, running: Sequence[Claimed]) -> list[Claimed]:
        """Prolong leases; return those that are no longer ours."""
        names = sorted({item.callback for item in running})
        keys = [key for name in names for key in self._keys_of(queue, name, "lease", "meta")]
        rows = [part for item in running for part in (names.index(item.callback), item.task_id, item.token)]
        _, *held = self._scripts.run("extend", keys, int(self._config.lease * 1000), len(rows), *rows)
        return [item for item, ours in zip(running, held, strict=True) if not ours]

    def ack(self, item: Claimed, *, again: bool = False) -> bool:
        """Report success; false if a newer claim holds the delivery, or it is gone.

        :param again: the reply to an earlier report was lost: if the delivery is gone, it went with that.
        """
        word = self._report("ack", item, item.task_id, item.token)
        return word == "ok" or (again and word == "gone")

    def fail(self, item: Claimed, delay: float, error: str) -> bool:
        """Report a failed attempt, due again in ``delay`` seconds; false if it is not ours any more."""
        return self._report("fail", item, int(delay * 1000), item.task_id, item.token, _cut(error)) == "ok"

    def bury(self, item: Claimed, error: str) -> bool:
        """Report the last failed attempt: a dead letter; false if it is not ours any more."""
        return self._report("bury", item, item.task_id, item.token, _cut(error)) == "ok"

    def release(self, item: Claimed) -> bool:
        """Give back what was not started; false if it is not ours any more."""
        return self._report("release", item, item.task_id, item.token) == "ok"

    def trim(self, queue: str, names: Sequence[str]) -> bool:
        """Forget what is over; true if there may be more."""
        tag = self._keys.tag(queue)
        keys = self._keys.of(tag, "pending", "recipients", "recipients:expiry")
        keys += [key for name in names for key in self._all(queue, name)]
        _, more, forgotten = self._scripts.run("trim", keys, int(self._config.dead_retention * 1000))
        if forgotten:
            logger.warning("Forgot %d dead letters of queue %s: too old.", forgotten, queue)
        return bool(more)

    def _report(self, step: str, item: Claimed, *args: str | int) -> str:
        word, *_ = self._scripts.run(step, self._all(item.queue, item.callback), *args)
        return str(word)

    def _deadline(self) -> int:
        if self._ahead is None:
            return 0
        return int(time.monotonic() * 1000 + self._ahead + self._config.redis_timeout * 1000)

    def _complain(self, queue: str, name: str) -> None:
        if self._seldom(f"{queue} {name}"):
            logger.error(
                "Callback %s of queue %s stands still: one of its keys in Redis has a wrong type, written "
                "by something else. Delete that key.",
                name,
                queue,
            )

    def _all(self, queue: str, name: str) -> list[str]:
        return self._keys_of(queue, name, *KINDS)

    def _keys_of(self, queue: str, name: str, *kinds: str) -> list[str]:
        return self._keys.handler(self._keys.tag(queue), name, *kinds)

    def _claimed(self, queue: str, callback: str, row: Sequence[Any]) -> Claimed:
        task_id, token, failures, lost, body = row
        identity = task_id.decode(errors="replace")
        if callback.startswith(SENDS):
            # A send reads the task as it stands when it runs.
            return Claimed(queue, callback, identity, token, failures, lost, None)
        try:
            task = read_task(identity, _unpack(body), 0, self._keyring)
        except (TaskTampered, ValueError, ArithmeticError, OSError):
            task = None
        if task is not None and task.queue != queue:
            # The seal is right, but the callbacks of this queue never asked for this task.
            record("task_tampered", identity, level=logging.WARNING)
            task = None
        return Claimed(queue, callback, identity, token, failures, lost, task)


def _unpack(body: bytes) -> Mapping[str, str]:
    parts: list[str] = []
    position = 0
    while position < len(body):
        colon = body.index(b":", position)
        size = int(body[position:colon])
        if size < 0:
            # It would lead back to where it was read.
            raise ValueError("a length is negative")
        start, position = colon + 1, colon + 1 + size
        parts.append(body[start:position].decode())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _cut(error: str) -> str:
    return error.encode(errors="replace")[:_ERROR_MAX].decode(errors="ignore")
