"""What an operator asks of Redis: counts, dead letters, pauses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice

from .._checks import METHOD, SCHEDULES
from .._inert import inert
from .keys import REMINDERS, Consumer, Keys, delivery_id, tag_of
from .queues import ALL
from .records import time_of
from .steps import Steps

#: How many deliveries one step looks at, or changes: others must not wait for it.
_BATCH = 500
#: What counts codes by a method.
_SENT = re.compile(f"codes ({METHOD.pattern}) ".encode())
#: What the history holds, in its order.
SERIES = ("added", "verified", "locked", "expired", "sent", "rejected", "done", "dead", "failed")
#: What holds a queue: it was paused by itself, or with all others.
_ITSELF = "queue"
STATES = {"ready": "ready", "delay": "delayed", "lease": "running", "dead": "dead"}


@dataclass(frozen=True, slots=True)
class CallbackStats:
    """How many deliveries of one callback stand where.

    :param callback: its name, ``@<method>`` for sends.
    :param ready: wait for a free place.
    :param delayed: wait for a retry.
    :param running: leased.
    :param dead: dead letters.
    :param oldest: seconds that the oldest of those has waited that could run now, or ``None``.
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
    :param paused: whether its callbacks are held, by itself or with all queues.
    :param callbacks: one entry for each, and for each method by which sends wait.
    :param counts: what happened so often, by the names of ``lua/shared/counters.lua``.
    """

    queue: str
    pending: int
    paused: bool
    callbacks: Sequence[CallbackStats]
    counts: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Process:
    """What a process said of one of its parts.

    :param owner: its name: host, number, and what makes that unique.
    :param part: ``callbacks``, ``reminders``, or ``sends-`` and a method.
    :param heard: when it said so last.
    :param since: when it said so first.
    :param version: of this package.
    :param queues: those that it serves.
    :param present: whether its listener is seen now; in a cluster only by the node that is asked.
    """

    owner: str
    part: str
    heard: datetime
    since: datetime
    version: str
    queues: tuple[str, ...]
    present: bool = False

    @classmethod
    def read(cls, name: str, told: str) -> Process:
        """Return what a field of Redis says."""
        owner, _, part = name.partition(" ")
        heard, since, version, queues = told.split(" ")
        return cls(
            owner, part, time_of(heard), time_of(since), version, tuple(filter(None, queues.split(",")))
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one delivery stands.

    :param id: ``<task id>:<callback>``, of a schedule ``<schedule>:<tick>``.
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


@dataclass(frozen=True, slots=True)
class Span:
    """The last moments of a queue's history.

    :param length: of one, seconds: some minutes, for the last 26 hours, or some hours, for the last 35 days.
    :param count: how many.
    """

    length: int
    count: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What a queue had in some minutes or hours.

    :param at: when it began, in seconds since 1970.
    :param counts: in the order of :data:`SERIES`.
    """

    at: int
    counts: Sequence[int]


class Operations:
    """The operator's steps.

    :param steps: runs them.
    :param keys: the names of keys.
    :param methods: the methods that there may be sends by.
    """

    def __init__(self, steps: Steps, keys: Keys, methods: Collection[str] = ()) -> None:
        self._steps = steps
        self._client = steps.client
        self._keys = keys
        self._methods = methods

    def queues(self) -> list[str]:
        """Return the names of all queues that were ever used."""
        return sorted(_name(name) for name in self._client.hvals(self._keys.queues))

    def queue_of(self, task_id: object) -> str | None:
        """Return the queue that a task's id points to, or ``None``."""
        name = self._client.hget(self._keys.queues, tag_of(task_id)) if isinstance(task_id, str) else None
        return None if name is None else _name(name)

    def handlers(self, queue: str) -> dict[str, datetime]:
        """Return the registered callbacks of a queue and when a process last said that it has them."""
        (key,) = self._keys.of_queue(queue, "handlers")
        stored = self._client.hgetall(key)
        return {
            _name(name): _time(at.partition(b" ")[0])
            for name, at in sorted(stored.items())
            if name[:1] != b"#"
        }

    def aliases(self, queue: str) -> dict[str, str]:
        """Return the names that callbacks of a queue had in earlier releases: old name -> new name."""
        (key,) = self._keys.of_queue(queue, "handlers")
        mark, stored = b"#alias:", self._client.hgetall(key)
        return {
            _name(name.removeprefix(mark)): _name(new)
            for name, new in sorted(stored.items())
            if name.startswith(mark)
        }

    def unclaimed(self, queue: str) -> int:
        """Return how many verified tasks of a queue wait for a callback to register: there was none."""
        return int(self._client.zcard(*self._keys.of_queue(queue, "unclaimed")))

    def stuck(self) -> list[str]:
        """Return the processes that told within minutes that nothing can run in them any more."""
        return sorted(_name(name) for name in self._client.hkeys(self._keys.stuck))

    def processes(self) -> list[Process]:
        """Return the processes that said within minutes that they run deliveries, by their names."""
        found = []
        for name, told in sorted(self._client.hgetall(self._keys.processes).items()):
            # Somebody else may have written there.
            with suppress(ValueError, OverflowError):
                found.append(Process.read(_name(name), _name(told)))
        channels = {one.owner: self._keys.presence(one.owner).encode() for one in found}
        seen = dict(self._client.pubsub_numsub(*channels.values())) if found else {}
        return [replace(one, present=bool(seen.get(channels[one.owner]))) for one in found]

    def close_to(self, queue: str) -> list[str]:
        """Return the names of other queues that are spelt much like one, the closest first."""
        return difflib.get_close_matches(queue, [name for name in self.queues() if name != queue], cutoff=0.7)

    def fingerprints(self) -> dict[tuple[str, ...], datetime]:
        """Return the secret keys that processes have, newest first, and when one last said so."""
        said = self._client.hgetall(self._keys.fingerprints)
        return {tuple(_name(own).split()): _time(at) for own, at in sorted(said.items())}

    def names(self, queue: str) -> list[Consumer]:
        """Return what a queue's deliveries may stand under: its callbacks, and its sends by each method."""
        key, counters = self._keys.of_queue(queue, "handlers", "counters")
        # Also by those that no release has any more: what was sent by them was counted.
        counted = map(_SENT.match, self._client.hkeys(counters))
        used = {_name(found[1]) for found in counted if found}
        sends = (Consumer.sending(method) for method in sorted(used.union(self._methods)))
        named = {_name(name).removeprefix("#alias:") for name in self._client.hkeys(key)} - {"#epoch"}
        return [*map(Consumer, sorted(named)), *sends]

    def stats(self, queue: str) -> QueueStats:
        """Count what a queue holds."""
        return self.stats_and_history(queue, Span(0, 0))[0]

    def stats_and_history(self, queue: str, span: Span) -> tuple[QueueStats, list[Moment]]:
        """Count what a queue holds, and return what it had in the last moments, where it had anything."""
        names = self.names(queue)
        keys = self._keys.deliveries(queue, names, after=["pending", "paused"])
        reply = self._steps.run("operations/stats", keys, span.length * 1000, span.count)
        _, pending, holds, counted, had, *counts = reply
        rows = [counts[i : i + 5] for i in range(0, len(counts), 5)]
        callbacks = [
            CallbackStats(name, ready, delayed, running, dead, None if age == b"-1" else _number(age) / 1000)
            for name, (ready, delayed, running, dead, age) in zip(names, rows, strict=True)
            if not name.method or ready + delayed + running + dead
        ]
        size = len(SERIES) + 1
        history = [Moment(_number(had[i]) // 1000, had[i + 1 : i + size]) for i in range(0, len(had), size)]
        return QueueStats(queue, pending, bool(holds), callbacks, _counts(counted)), history

    def listening(self) -> int:
        """Return how many processes listen."""
        ((_, count),) = self._client.pubsub_numsub(self._keys.bell)
        return int(count)

    def pending(self, queue: str, count: int) -> list[str]:
        """Return the ids of pending tasks, the next to expire first."""
        (key,) = self._keys.of_queue(queue, "pending")
        return [_name(item) for item in self._client.zrangebyscore(key, self.now(), "+inf", 0, count)]

    def find(self, queue: str, name: str, task_id: str) -> Placed | None:
        """Tell where a delivery stands, or ``None`` if there is none: done, discarded or never made."""
        word, *row = self._steps.run("operations/find", self._all(queue, name), task_id)
        if word == "none":
            return None
        at, failures, lost, owner, error = row
        return Placed(
            delivery_id(name, task_id),
            queue,
            STATES[word],
            _time(at),
            failures,
            lost,
            owner.decode(errors="replace"),
            error.decode(errors="replace"),
        )

    def dead(
        self, queue: str, count: int, *, name: str | None = None, error: str = "", by: float | None = None
    ) -> Iterator[Placed]:
        """Yield dead letters of a queue, of each callback the newest first.

        :param count: so many of each callback at most.
        :param name: only those of this callback.
        :param error: only those whose error has this in it.
        :param by: only those that died by then, ms.
        """
        for each in self.names(queue) if name is None else [Consumer(name)]:
            yield from islice(self._dead_of(queue, each, count, error, by), count)

    def _dead_of(
        self, queue: str, name: Consumer, count: int, error: str, by: float | None
    ) -> Iterator[Placed]:
        batch = _BATCH if error else min(count, _BATCH)
        until = "+inf" if by is None else str(int(by))
        looked, seen = batch, 0
        while looked == batch:
            keys = self._all(queue, name)
            _, looked, *rows = self._steps.run("operations/dead", keys, until, seen, batch, error)
            seen += looked
            for i in range(0, len(rows), 5):
                task_id, died, failures, lost, text = rows[i : i + 5]
                yield Placed(
                    delivery_id(name, task_id.decode(errors="replace")),
                    queue,
                    "dead",
                    _time(died),
                    failures,
                    lost,
                    "-",
                    text.decode(errors="replace"),
                )

    def replay(self, queue: str, name: str, *task_ids: str) -> int:
        """Let dead letters run again; return how many of these were some."""
        method = Consumer(name).method or ""
        # Bells tell of tasks.
        bell = "" if queue == SCHEDULES else self._keys.bell
        return self._in_batches("operations/replay", queue, name, task_ids, bell, method)

    def discard(self, queue: str, name: str, *task_ids: str) -> int:
        """Forget dead letters; return how many of these were some."""
        return self._in_batches("operations/discard", queue, name, task_ids)

    def _in_batches(self, step: str, queue: str, name: str, task_ids: Sequence[str], *args: str) -> int:
        keys = self._all(queue, name)
        batches = (task_ids[i : i + _BATCH] for i in range(0, len(task_ids), _BATCH))
        return sum(self._steps.run(step, keys, *args, batch)[1] for batch in batches)

    def erase(self, task_id: str, owners: Sequence[str], addresses: Sequence[str]) -> list[str] | None:
        """Forget a task, what happened to it, and what is over of its deliveries.

        :param owners: the names under which its owner has tasks.
        :param addresses: those under which its addresses have.
        :return: the ids of the deliveries that stay, since they are to run; ``None`` if nothing was there.
        """
        queue = self.queue_of(task_id)
        if queue is None:
            return None
        # Callbacks come first.
        names = self.names(queue)
        callbacks = [name for name in names if name.method is None]
        keys = self._keys.task(task_id, f"course:{task_id}", f"answer:{task_id}", "pending", "unclaimed")
        listings = self._keys.listings(tag_of(task_id), owners, addresses)
        keys += listings + self._keys.deliveries(queue, [*names, REMINDERS])
        counts = len(listings), len(callbacks)
        _, found, left = self._steps.run("operations/erase", keys, task_id, *counts)
        return [delivery_id(names[int(index)], task_id) for index in left] if found else None

    def is_paused(self, queue: str) -> bool:
        """Tell whether a queue's callbacks are held."""
        return bool(self._client.exists(*self._keys.of_queue(queue, "paused")))

    def pause(self, queue: str, ends: int = 0, *, layer: str = _ITSELF) -> None:
        """Hold a queue's callbacks; its tasks can be verified all the same.

        :param ends: when that ends by itself, ms; 0 for never.
        """
        self._steps.run("operations/hold", self._keys.of_queue(queue, "paused"), layer, ends)

    def resume(self, queue: str, *, layer: str = _ITSELF) -> None:
        """Let a queue's callbacks run again, unless something else holds it."""
        self._steps.run("operations/release", self._keys.of_queue(queue, "paused"), layer)

    def pause_all(self, ends: int = 0) -> list[str]:
        """Hold all queues, and those to come; return their names.

        :param ends: when that ends by itself, ms; 0 for never.
        """
        self._client.set(self._keys.paused, ends, pxat=ends or None)
        for queue in (queues := self.queues()):
            self.pause(queue, ends, layer=ALL)
        return queues

    def resume_all(self) -> list[str]:
        """Let all queues run again but those that are paused by themselves; return the names of all."""
        self._client.delete(self._keys.paused)
        for queue in (queues := self.queues()):
            self.resume(queue, layer=ALL)
        return queues

    def now(self) -> int:
        """Return the server's time in ms."""
        seconds, microseconds = self._client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def purge(self, queue: str, name: str | None = None) -> int:
        """Forget what waits in a queue, also what a process that vanished had; return how many deliveries.

        :param name: only what waits for this callback.
        """
        total = 0
        for each in self.handlers(queue) if name is None else [name]:
            while count := self._steps.run("operations/purge", self._all(queue, each))[1]:
                total += count
        return total

    def move(self, queue: str, old: str, new: str) -> int:
        """Give what waits or is dead of one callback to another, as after a rename; return how many.

        What the other one has of the same task already, or is known to be done with, stays where it is.
        """
        total = 0
        keys = self._keys.deliveries(queue, [old, new], after=["seq"])
        for place in ("ready", "delay", "dead", "lease"):
            stay, more = 0, 1
            while more:
                _, moved, seen, more = self._steps.run("operations/move", keys, place, stay)
                total, stay = total + moved, stay + seen
        return total

    def forget(self, queue: str, name: str) -> int | None:
        """Forget a callback that no process has any more.

        :return: how many deliveries forbid it; 0 if it was forgotten, ``None`` if there is no such one.
        """
        keys = self._keys.deliveries(queue, [name], "meta", after=["handlers"])
        word, *rest = self._steps.run("operations/forget", keys, name)
        return None if word == "none" else int(rest[0]) if rest else 0

    def unblock(self, names: Sequence[str]) -> list[str]:
        """Lift the limits of an address or an owner.

        :param names: the names under which it may be counted.
        :return: the queues where something was counted, among them `*` for what counts over all.
        """
        where: dict[tuple[str, ...], str] = {}
        for queue in self.queues():
            sends, sends_expiry, *budgets = self._keys.counts(self._keys.tag(queue))
            where |= {(sends, sends_expiry): queue, tuple(budgets): queue if self._keys.apart else "*"}
        lifted = {
            name for keys, name in where.items() if self._steps.run("operations/unblock", keys, names)[1]
        }
        return sorted(lifted)

    def _all(self, queue: str, name: str) -> list[str]:
        return self._keys.deliveries(queue, [name])


def _name(raw: bytes) -> str:
    """Return a name as it is stored; whoever writes to Redis may have put anything there."""
    return inert(raw.decode(errors="replace"))


def _number(raw: bytes | int) -> int:
    """Return a number as it is stored, 0 for what is none: it must not keep an operator from the rest."""
    if isinstance(raw, int):
        return raw if abs(raw) < 10**14 else 0
    found = re.match(rb"-?[0-9]{1,14}(?![0-9])", raw)
    return int(found[0]) if found else 0


def _time(raw: bytes | int) -> datetime:
    # No calendar has the first years that a number may mean.
    return time_of(max(_number(raw), 0))


def _counts(counted: Sequence[bytes]) -> dict[str, int]:
    pairs = zip(counted[::2], counted[1::2], strict=True)
    return {_name(name): max(_number(value), 0) for name, value in pairs if name[:1] != b"@"}
