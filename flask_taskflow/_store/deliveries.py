"""The steps on deliveries: the engine's."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from redis import Redis

from .._checks import PRIORITY_LIMIT
from .._keyring import Keyring
from .._log import Logger
from .._seldom import Seldom
from .keys import Consumer, Keys
from .limits import LeaseTerms
from .processes import ProcessStore
from .queues import Queues
from .records import Claimed, read_delivery
from .registrations import Registration
from .steps import Argument, Steps

logger = Logger(__name__)

#: The owner of a lease that has no channel of its own.
NOBODY = "-"
#: As many verified tasks as one step of registering answers.
_REGISTER_MAX = 100
#: So many queues one script looks at, so that it takes no longer than a few ms.
_TOGETHER_MAX = 250
#: By so much the server's clock may go another way than this process's, milliseconds.
_STEP = 1000
#: So many deliveries, and so many ends, one turn takes.
TURN_MAX = 64
_MOVES_MAX = 500
_ERROR_MAX = 1024
_WORD_MAX = 80
_COMPLAIN = 60.0


class Claim(NamedTuple):
    """What one claim answered.

    :param deliveries: what to run now, most urgent first.
    :param left: how many were left to others, whose key this process lacks.
    :param dead: what was lost too often and is a dead letter now.
    :param again: whether another claim should follow at once.
    :param wait: seconds to the next due item, or ``None``.
    :param most_urgent: the priority of what was left there, ``None`` if nothing was.
    :param words: what became of each end that was reported.
    :param held: leases of the queue's callbacks, this process's included.
    """

    deliveries: Sequence[Claimed]
    dead: Sequence[Claimed]
    again: bool
    wait: float | None
    held: int
    left: int = 0
    most_urgent: int | None = None
    words: Sequence[str] = ()


class End(NamedTuple):
    """How an attempt ended, as one turn reports it.

    :param item: the delivery.
    :param how: what follows.
    :param delay: seconds until it is due again, for a failure that is not the last one.
    :param error: of a failure.
    :param cause: the class of that error.
    :param place: the app's own line that raised it, ``<module>:<line>``, if there is one.
    """

    item: Claimed
    how: Literal["ack", "fail", "bury", "release"]
    delay: float = 0.0
    error: str = ""
    cause: str = ""
    place: str = ""


class Registered(NamedTuple):
    """What there is of a queue.

    :param registration: its callbacks, of all processes.
    :param over: whether there is something to trim.
    """

    registration: Registration
    over: bool


class Peek(NamedTuple):
    """What is due in a queue.

    :param most_urgent: the priority of the first that is ready, ``None`` if nothing is.
    :param wait: seconds until a delay or a lease ends, or ``None``.
    :param held: leases, this process's included.
    :param expired: whether tasks have expired of which nobody was told.
    """

    most_urgent: int | None
    wait: float | None
    held: int
    expired: bool = False

    @property
    def due_in(self) -> float:
        """Seconds until a claim may find something; who holds leases may have vanished."""
        if self.most_urgent is not None or self.held:
            return 0.0
        return math.inf if self.wait is None else self.wait


class Wanted(NamedTuple):
    """What a claim may lease.

    :param most: so many deliveries at most.
    :param places: for so many of them a place is free; what comes beyond is claimed ahead.
    :param floor: the least priority.
    :param reap: whether expired leases of others may be taken over.
    """

    most: int
    places: int
    floor: int = -PRIORITY_LIMIT
    reap: bool = True


#: A lease whose process is gone: index of its callback, id, token, deadline.
Suspect = tuple[str, str, str, str]


class Look(NamedTuple):
    """What a look for vanished processes answered.

    :param suspects: leases without their process.
    :param taken: how many seen before were taken over.
    :param held: leases of the queue's callbacks.
    """

    suspects: Sequence[Suspect]
    taken: int
    held: int


class _Share(NamedTuple):
    """What some consumers of a queue have of its keys.

    :param consumers: the callbacks, or the sends by a method.
    :param keys: of their deliveries, of all kinds.
    :param pending: the key of the queue's pending tasks.
    :param around: the queue's own keys: one says whether it is paused, one who waits for something to run.
    :param waits: as who a process waits, behind its channel, see ``lua/shared/waiting.lua``.
    :param pausable: whether a pause holds these: it holds what comes after a verification, not the way there.
    :param limits: of each consumer, how many may run at once of its callback, and which that is.
    """

    consumers: Sequence[Consumer]
    keys: Sequence[str]
    pending: str
    around: Sequence[str]
    waits: str
    pausable: bool
    limits: Sequence[str]

    @classmethod
    def of(cls, queue: str, names: Sequence[str], keys: Keys) -> _Share:
        """Return that of some names of a queue."""
        consumers = [name if isinstance(name, Consumer) else Consumer(name) for name in names]
        return cls(
            consumers,
            keys=keys.deliveries(queue, names),
            pending=keys.of_queue(queue, "pending")[0],
            around=keys.of_queue(queue, "paused", "waiting"),
            waits=f"{keys.tag(queue)} {','.join(names)}",
            pausable=not any(consumer.early for consumer in consumers),
            limits=[f"{consumer.limit} {consumer.of}" for consumer in consumers],
        )

    def caller(self, channel: str) -> str:
        """Return as who a process waits, empty if it cannot be woken alone.

        :param channel: its own, empty if nobody can see that it lives.
        """
        return f"{channel} {self.waits}" if channel and self.pausable else ""


class Clocks:
    """What is known of the clocks of servers, as answers told.

    :param apart: whether each queue may be on a server of its own.
    """

    def __init__(self, *, apart: bool) -> None:
        self._apart = apart
        #: By queue, or for all: the server's clock less the monotonic one, ms.
        self._ahead: dict[str, float] = {}
        #: When one was last seen to be not where it was, by the monotonic clock.
        self.stepped_at = -math.inf

    def hear(self, queue: str, now: int | bytes) -> None:
        """Take note of what the time is, ms, where a queue is."""
        clock, ahead = queue if self._apart else "", int(now) - time.monotonic() * 1000
        if abs(ahead - self._ahead.get(clock, ahead)) > _STEP:
            self.stepped_at = time.monotonic()
        self._ahead[clock] = ahead

    def deadline(self, queue: str, patience: int) -> int:
        """Return what the time will be, where a queue is, in so many ms; 0 if that is not known."""
        ahead = self._ahead.get(queue if self._apart else "")
        return 0 if ahead is None else int(time.monotonic() * 1000 + ahead + patience)


class DeliveryStore:
    """The engine's steps, each one atomic and one round trip.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: checks seals.
    :param queues: where queues are listed.
    :param terms: how long leases and dead letters last.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring, queues: Queues, terms: LeaseTerms) -> None:
        self._steps = steps
        self._keys = keys
        self._keyring = keyring
        self._queues = queues
        self._terms = terms
        #: Of so many queues one script may have keys: in a cluster each may be elsewhere.
        self._together = _TOGETHER_MAX if isinstance(steps.client, Redis) else 1
        #: By queue and names, each made once.
        self._shares: dict[tuple[str, ...], _Share] = {}
        self.processes = ProcessStore(steps, keys, keyring)
        self.clocks = Clocks(apart=self._together == 1)
        self._seldom = Seldom(_COMPLAIN)

    def tag(self, queue: str) -> str:
        """Return what marks a queue in the ids of its tasks."""
        return self._keys.tag(queue)

    def relist(self) -> None:
        """List queues anew at the next occasion: Redis may have lost them."""
        self._queues.relist()

    def register(
        self, own: Mapping[str, Registration], names: Mapping[str, Sequence[str]]
    ) -> dict[str, Registered]:
        """Say that this process has these callbacks of some queues; return what there is of each.

        What was verified while there was none at all is stored for those that there are now.

        :param own: by queue.
        :param names: of each queue, those under which deliveries stand, whoever runs them.
        """
        found: dict[str, Registered] = {}
        waiting = list(own)
        while waiting:
            some = waiting[: self._together]
            keys, arguments = list[str](), list[Argument]()
            for queue in some:
                # The step knows the callbacks.
                others = [name for name in names[queue] if isinstance(name, Consumer) and name.early]
                dead = self._keys.deliveries(queue, others, "dead")
                keys += [*self._keys.registering(queue), *dead]
                arguments += [len(dead), *own[queue].told()]
            retention = self._terms.dead_retention
            _, *rows = self._steps.run("deliveries/register", keys, retention, len(some), *arguments)
            for queue, row in zip(some, _rows_of(rows, 4), strict=True):
                found[queue] = self._registered(queue, row)
                if len(row[2]) < _REGISTER_MAX:
                    waiting.remove(queue)
        return found

    def _registered(self, queue: str, row: Sequence[Any]) -> Registered:
        names, renames, unclaimed, over = row
        registration = Registration.read(names, renames)
        for word in unclaimed:
            claiming = self._keys.claiming(queue, word.decode(errors="replace"), registration.current())
            # As it stands there: what is no id must go, too.
            self._steps.run("deliveries/claim_verified", claiming, word, registration.current())
        self._queues.add(queue)
        return Registered(registration, bool(over))

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
        return self.turn(queue, names, (), Wanted(most, most, reap=reap), owner=owner)

    def turn(
        self, queue: str, names: Sequence[str], ends: Sequence[End], wanted: Wanted, *, owner: str
    ) -> Claim:
        """Report how attempts at deliveries of a queue ended, and lease what is next.

        :param names: the callbacks that this process has.
        :param ends: at most ``TURN_MAX``. Each holds whether or not anything is leased.
        :param owner: the present process's name.
        """
        share, terms = self._share(queue, names), self._terms
        word, now, words, *reply = self._steps.run(
            "deliveries/turn",
            [*share.around, *share.keys],
            len(ends),
            *(part for end in ends for part in (names.index(end.item.callback), end.how, *_parts(end))),
            self.clocks.deadline(queue, terms.redis_timeout),
            min(wanted.most, TURN_MAX),
            wanted.places,
            wanted.floor,
            terms.lease,
            owner,
            terms.max_lost,
            terms.lease,
            int(wanted.reap),
            int(share.pausable),
            _MOVES_MAX,
            share.caller(self._channel(owner)),
            share.limits,
        )
        self.clocks.hear(queue, now)
        told = [each.decode(errors="replace") for each in words]
        if word == "late":
            return Claim([], [], again=True, wait=None, held=0, words=told)
        claim = self._read_claim(share, queue, reply)
        return claim._replace(again=word == "again", words=told)

    def _read_claim(self, share: _Share, queue: str, reply: Sequence[Any]) -> Claim:
        wait, most_urgent, dropped, held, broken, *rows = reply
        if dropped:
            logger.error("Dropped %d unreadable deliveries of queue %s.", dropped, queue)
        for index in broken.split():
            self._complain(queue, share.consumers[int(index)])
        claimed = [
            read_delivery(queue, share.consumers[rows[i]], rows[i + 1 : i + 7], self._keyring)
            for i in range(0, len(rows), 7)
        ]
        running = [item for item in claimed if item.token]
        left = [item for item in running if item.missing and self.leave(item, item.missing)]
        return Claim(
            deliveries=[item for item in running if not item.missing],
            dead=[item for item in claimed if not item.token],
            again=False,
            wait=None if wait == b"-1" else int(wait) / 1000,
            held=held,
            left=len(left),
            most_urgent=int(most_urgent) if most_urgent else None,
        )

    def look(self, queue: str, names: Sequence[str], owner: str, seen: Sequence[Suspect]) -> Look:
        """Look for leases whose process is gone; take over those that were seen so before.

        :param owner: the own name, left alone.
        :param seen: what an earlier look answered.
        """
        _, held, taken, *rows = self._steps.run(
            "deliveries/look",
            self._share(queue, names).keys,
            self._keys.presence(""),
            owner,
            self._terms.max_lost,
            self._terms.lease,
            [part for suspect in seen for part in suspect],
        )
        words = [str(part if isinstance(part, int) else part.decode(errors="replace")) for part in rows]
        suspects = list(zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True))
        return Look(suspects, taken, held)

    def give_back(self, queue: str, names: Sequence[str], owner: str, known: Iterable[Claimed]) -> None:
        """Give back what a process leased and does not know of: the reply to its claim was lost.

        :param names: those that the claim was for.
        :param owner: the process's name.
        :param known: what it has claimed of the queue.
        """
        rows = [part for item in known for part in (names.index(item.callback), item.task_id, item.token)]
        self._steps.run("deliveries/give_back", self._share(queue, names).keys, owner, rows)

    def extend(self, queue: str, running: Sequence[Claimed]) -> list[Claimed]:
        """Prolong leases; return those that are no longer ours."""
        names = sorted({item.callback for item in running})
        keys = self._keys.deliveries(queue, names, "lease", "meta")
        rows = [part for item in running for part in (names.index(item.callback), item.task_id, item.token)]
        _, *held = self._steps.run("deliveries/extend", keys, self._terms.lease, rows)
        return [item for item, ours in zip(running, held, strict=True) if not ours]

    def end(self, end: End) -> bool:
        """Report how an attempt ended; false if the delivery is not ours any more."""
        return self._report(end) == "ok"

    def peek(
        self, asked: Sequence[tuple[str, Sequence[str]]], owner: str, *, waits: bool = False
    ) -> list[Peek]:
        """Look what is due in some queues, and lease nothing.

        :param asked: queues, each with the names under which the deliveries stand that matter.
        :param owner: the present process's name, whose listener is told that it is heard.
        :param waits: whether it is to be woken where nothing is ready.
        """
        found, channel = list[Peek](), self._channel(owner)
        for start in range(0, len(asked), self._together):
            shares = [self._share(queue, names) for queue, names in asked[start : start + self._together]]
            _, now, *rows = self._steps.run(
                "deliveries/peek",
                [key for share in shares for key in (share.pending, *share.around, *share.keys)],
                channel,
                [len(share.consumers) for share in shares],
                [int(share.pausable) for share in shares],
                [share.caller(channel) if waits else "" for share in shares],
            )
            self.clocks.hear(asked[start][0], now)
            for head, wait, held, over in _rows_of(rows, 4):
                seconds = None if wait == b"-1" else int(wait) / 1000
                found.append(Peek(int(head) if head else None, seconds, held, bool(over)))
        return found

    def hand_on(self, queue: str, names: Sequence[str], owner: str) -> None:
        """Let another process be woken for a queue instead of this one.

        :param names: the callbacks that this process has.
        :param owner: its name.
        """
        share = self._share(queue, names)
        if caller := share.caller(self._keys.presence(owner)):
            self._steps.run("deliveries/hand_on", share.around[1:], caller)

    def _channel(self, owner: str) -> str:
        return "" if owner == NOBODY else self._keys.presence(owner)

    def ack(self, item: Claimed, *, again: bool = False) -> bool:
        """Report success; false if a newer claim holds the delivery, or it is gone.

        :param again: the reply to an earlier report was lost: if the delivery is gone, it went with that.
        """
        word = self._report(End(item, "ack"))
        return word == "ok" or (again and word == "gone")

    def release(self, item: Claimed) -> bool:
        """Give back what was not started; false if it is not ours any more."""
        return self.end(End(item, "release"))

    def leave(self, item: Claimed, fingerprint: str) -> bool:
        """Leave a delivery to processes that have its key, uncounted; false if it is not ours any more.

        :param fingerprint: names the secret key that this process lacks.
        """
        if self._seldom(f"{fingerprint} {item.queue} {item.callback}"):
            logger.warning(
                "This process leaves deliveries for %s of queue %s to others: it lacks a SECRET_KEY whose "
                "fingerprint is %s. Add it to SECRET_KEY_FALLBACKS.",
                item.callback,
                item.queue,
                fingerprint,
            )
        return self.end(End(item, "release", self._terms.poll / 1000))

    def trim(self, queue: str, names: Sequence[str]) -> bool:
        """Forget what is over; true if there may be more."""
        tag = self._keys.tag(queue)
        keys = self._keys.of(tag, "pending") + self._keys.counts(tag) + self._keys.deliveries(queue, names)
        _, more, forgotten = self._steps.run("deliveries/trim", keys, self._terms.dead_retention)
        if forgotten:
            logger.warning("Forgot %d dead letters of queue %s: too old.", forgotten, queue)
        return bool(more)

    def _report(self, end: End) -> str:
        keys = self._share(end.item.queue, [end.item.callback]).keys
        word, *_ = self._steps.run(f"deliveries/{end.how}", keys, *_parts(end))
        return str(word)

    def _share(self, queue: str, names: Sequence[str]) -> _Share:
        known = self._shares.get((queue, *names))
        if known is None:
            known = self._shares[queue, *names] = _Share.of(queue, names, self._keys)
        return known

    def _complain(self, queue: str, name: str) -> None:
        if self._seldom(f"{queue} {name}"):
            logger.error(
                "Callback %s of queue %s stands still: one of its keys in Redis has a wrong type, written "
                "by something else. Delete that key.",
                name,
                queue,
            )


def _rows_of(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _parts(end: End) -> tuple[str | int, ...]:
    """Return what ``take_end`` in ``lua/shared/ends.lua`` takes."""
    item, delay = end.item, int(end.delay * 1000)
    # How many ms it is since it was leased.
    took = int((time.monotonic() - item.since) * 1000)
    return item.task_id, item.token, delay, cut_error(end.error), words_of(end.cause, end.place), took


def cut_error(error: str) -> str:
    """Return what is kept of an error's text."""
    return error.encode(errors="replace")[:_ERROR_MAX].decode(errors="ignore")


def words_of(*names: str) -> str:
    """Return names that come from an app, fit for the course of a task; empty ones are left out."""
    words = " ".join(re.sub(r"\s+", "_", name)[:_WORD_MAX] for name in names if name)
    # A file's name may be no UTF-8, and its module's name then holds half a pair.
    return words.encode(errors="replace").decode()
