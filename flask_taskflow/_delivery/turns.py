"""A turn: report how attempts ended, claim what is next, and let it run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from redis import RedisError, ResponseError

from .._checks import PRIORITY_LIMIT
from .._log import Logger
from .._seldom import Seldom
from .._store.deliveries import NOBODY, Claim, DeliveryStore, End, Wanted
from .._store.records import Claimed
from .attempts import Attempt, Runner
from .leases import HEARTBEAT, Leases, Presence
from .outbox import Ended, Outbox, ends_of
from .places import Places
from .rota import Rota
from .telling import Teller

logger = Logger(__name__)

_COMPLAIN = 60.0
#: In so many queues what has expired is followed in one turn: a heartbeat must not wait for that.
_EXPIRING = 8
#: What a server answers that cannot write now, and can later.
_TEMPORARY = (
    "ACL failure", "BUSY", "CLUSTERDOWN", "LOADING", "MISCONF", "NOPERM", "NOREPLICAS", "OOM", "READONLY",
    # Redis 7.0 says so of what an ACL forbids.
    "The user executing the script",
)  # fmt: skip


class Beside(Protocol):
    """An engine of this process."""

    @property
    def name(self) -> str:
        """What it does."""

    def served(self, *, refresh: bool = False) -> Mapping[str, Sequence[str]]:
        """Return the queues that it serves, each with the names under which deliveries stand."""

    def tell(self, due: Mapping[str, float], looked: float) -> None:
        """Take note when something is due, by queue, as it was seen a moment ago."""


@dataclass(kw_only=True)
class Turns:
    """The turns of one engine. Only its scheduler's thread takes them, which calls Redis and nothing else.

    :param store: the engine's steps.
    :param runner: knows what a claimed delivery needs.
    :param presence: under which name this process leases.
    :param lease: seconds that a lease lasts.
    :param rota: whose turn it is.
    :param places: where attempts run.
    :param outbox: how they ended.
    :param teller: tells others.
    :param leases: of this process and of others.
    :param end_lost: ends what was lost with its process too often.
    :param follows_ends: tells whether some names stand for what follows other ends than a verification.
    :param beside: returns the engines that this one looks for, too.
    """

    store: DeliveryStore
    runner: Runner
    presence: Presence
    lease: float
    rota: Rota
    places: Places
    outbox: Outbox
    teller: Teller
    leases: Leases
    end_lost: Callable[[Sequence[Claimed]], None]
    follows_ends: Callable[[Sequence[str]], bool]
    beside: Callable[[], Sequence[Beside]] = tuple
    draining: bool = False
    _handed_on: bool = False
    #: Claims of which it is not known what they leased: by queue, under which name, and for what.
    _unheard: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    #: Queues with expired tasks that are to be followed, in order.
    _expired: dict[str, None] = field(default_factory=dict)
    _pause_until: float = 0.0
    _complain: Seldom = field(default_factory=lambda: Seldom(_COMPLAIN))

    def take(self) -> None:
        """Take as many turns as there is something to report, or to claim and a place for it."""
        polled = self.rota.hear(time.monotonic())
        if not self.draining:
            self._give_back_unheard()
        if not self.draining and (polled or len(self.rota.unknown) > 1):
            self._peek(self.beside() if polled else ())
        self._follow_expired()
        if polled:
            self._tell_if_stuck()
        while not self.draining and (queue := self.rota.next()) is not None:
            places, ahead = self._room()
            if places + ahead == 0:
                self._tell_if_stuck()
                break
            floor = self.rota.floor(queue)
            claim = self._at(queue, Wanted(places + ahead, places, floor, self.leases.may_reap))
            if claim is None or claim.deliveries:
                continue
            if not places:
                # What is next may not be claimed ahead: it waits for a place.
                break
            if claim.most_urgent is not None and (claim.most_urgent >= floor or floor == -PRIORITY_LIMIT):
                # Somebody wrote a priority to Redis that no task may have.
                self.rota.set_aside(queue)
        for queue in self.outbox.queues():
            while self.outbox.first(queue):
                places, ahead = self._room()
                if not self._at(queue, Wanted(places + ahead, places, self.rota.floor(queue), reap=False)):
                    break
        if self.draining:
            # What ended goes first.
            self._give_back_unheard()
        if self.draining and not self._handed_on:
            self.rota.called.update(self.rota.served)
            self._handed_on = True
        while self.rota.called:
            # This process was woken for it, or might be, and takes nothing more.
            queue = self.rota.called.pop()
            self.store.hand_on(queue, self.rota.served.get(queue, ()), self.presence.owner)

    def _room(self) -> tuple[int, int]:
        if self.draining or time.monotonic() < self._pause_until:
            return 0, 0
        return self.places.free(), self.places.room_ahead()

    def _peek(self, beside: Sequence[Beside]) -> None:
        """Look what is due, also for other engines of this process."""
        own = [(queue, self.rota.served[queue]) for queue in self.rota.unknown]
        others = [(engine, list(engine.served().items())) for engine in beside]
        asked = own + [each for _, served in others for each in served]
        try:
            waits = self._room()[0] > 0
            found = iter(self.store.peek(asked, self.presence.present_owner, waits=waits))
        except ResponseError as error:
            # One of them may be spoiled: each is asked for itself.
            if not is_spoiled(error):
                raise
            return
        now = time.monotonic()
        for queue, _ in own:
            told = next(found)
            self.rota.learn(queue, told, now)
            self.leases.look_soon(told.held, self._ours(queue))
            if told.expired and self.follows_ends(self.rota.served[queue]):
                self._expired[queue] = None
        for engine, served in others:
            due = {queue: now + next(found).due_in for queue, _ in served}
            engine.tell({queue: at for queue, at in due.items() if at < math.inf}, now)

    @property
    def next_at(self) -> float:
        """When turns can be taken again that could not, by the monotonic clock."""
        if self._expired:
            return 0.0
        return self._pause_until if self._pause_until > time.monotonic() else math.inf

    def attempts(self) -> list[Attempt]:
        """Return the attempts whose leases are to be kept: they run, wait, or are not reported yet."""
        return [*self.places.held(), *self.outbox.attempts()]

    def _ours(self, queue: str) -> int:
        """Return how many leases of a queue are this process's."""
        return sum(each.item.queue == queue for each in self.attempts())

    def _at(self, queue: str, wanted: Wanted) -> Claim | None:
        """Take one turn at a queue; ``None`` if that was not possible."""
        asked, ended = time.monotonic(), self.outbox.first(queue)
        names = self.rota.served.get(queue, ())
        if gone := {each.attempt.item.callback for each in ended}.difference(names):
            # What runs no more here under that name is only reported.
            names, wanted = sorted({*names, *gone}), Wanted(0, 0)
        with self.isolated(queue):
            owner = self.presence.present_owner
            try:
                claim = self.store.turn(queue, names, ends_of(ended), wanted, owner=owner)
            except RedisError:
                # It may have got through.
                for each in ended:
                    each.tried = True
                if wanted.most and owner != NOBODY:
                    self._unheard[queue] = owner, names
                raise
            # First: what was given back may have been claimed again by the same turn.
            self._tell(queue, claim)
            self._keep(queue, claim, asked)
            return claim
        self.rota.set_aside(queue)
        return None

    def _give_back_unheard(self) -> None:
        """Give back what was leased by claims whose replies were lost."""
        for queue, (owner, names) in list(self._unheard.items()):
            ours = [each.item for each in (*self.places.all(), *self.outbox.attempts())]
            known = [item for item in ours if item.queue == queue and item.callback in names]
            with self.isolated(queue):
                self.store.give_back(queue, names, owner, known)
            del self._unheard[queue]

    def _tell(self, queue: str, claim: Claim) -> None:
        ended = self.outbox.first(queue)[: len(claim.words)]
        self.outbox.drop(queue, len(ended))
        for each, word in zip(ended, claim.words, strict=True):
            if each.tell is not None:
                self.teller.put(partial(each.tell, each.accepts(word)))
        if claim.dead:
            self.end_lost(claim.dead)

    def _keep(self, queue: str, claim: Claim, asked: float) -> None:
        """Let what was claimed run, and remember what is left."""
        now = time.monotonic()
        self.rota.learn(queue, claim, now)
        if claim.left:
            # Those who have the key go first.
            self.rota.set_aside(queue)
        if self.draining or now - asked >= self.lease:
            # This process ends, or it or the reply was held up and others may run these already.
            for item in claim.deliveries:
                self.store.release(item)
            return
        begun: list[Attempt] = []
        for item in claim.deliveries:
            here = next((each for each in self.attempts() if each.is_of(item)), None)
            if here is None:
                begun.append(self.runner.begin(item))
            else:
                # The server's clock stepped over its lease: what runs here goes on, under the new token.
                here.item = item
        self._let_run(begun)
        self.leases.look_soon(claim.held, self._ours(queue))

    def _let_run(self, attempts: list[Attempt]) -> None:
        if not attempts:
            return
        try:
            self.places.put(attempts)
        except RuntimeError as error:
            # A limit of the container, as it may be.
            self._pause_until = time.monotonic() + HEARTBEAT
            if self._complain("thread"):
                logger.error("A delivery waits, since no thread could be started: %s.", error)
            self.give_back(self.places.take_back())

    def give_back(self, attempts: list[Attempt]) -> None:
        """Release what was claimed and did not begin."""
        for attempt in attempts:
            self.outbox.put(Ended(attempt, End(attempt.item, "release"), None))

    def take_over(self) -> None:
        """Look whether the owners of leases live, and take over those of processes that vanished."""
        if not self.leases.begin_look():
            return
        for queue, names in self.rota.served.items():
            with self.isolated(queue):
                if self.leases.take_over(queue, names, self._ours(queue)):
                    self.rota.unknown.add(queue)

    def _tell_if_stuck(self) -> None:
        hanging = self.places.hanging()
        if hanging and self._complain("stuck"):
            logger.error(
                "All places of taskflow-%s are taken by %d attempts that hang past their time: nothing more "
                "runs in this process. Restart it, and let what they call have a time limit.",
                self.places.name,
                hanging,
            )
            self.store.processes.tell_stuck(self.presence.owner)

    def _follow_expired(self) -> None:
        """Store what follows the expired tasks of some queues; the next turn goes on with the others."""
        for queue in [] if self.draining else list(self._expired)[:_EXPIRING]:
            del self._expired[queue]
            with self.isolated(queue):
                if self.store.trim(queue, ()):
                    # Behind the others.
                    self._expired[queue] = None
                self.rota.unknown.update({queue} & self.rota.served.keys())

    @contextmanager
    def isolated(self, queue: str) -> Iterator[None]:
        """Go on if a queue cannot be read."""
        # A queue whose keys something else has spoiled must not stop the others.
        try:
            yield
        except ResponseError as error:
            if not is_spoiled(error):
                raise
            if self._complain(queue):
                logger.error("Queue %s stands still, its keys in Redis were spoiled: %s", queue, error)


def is_spoiled(error: RedisError) -> bool:
    """Tell whether a script met a key of a wrong type or a value that it cannot read.

    What the server refuses for a while is none of that, also where redis-py has no class for it.
    """
    text = str(error)
    return type(error) is ResponseError and "script" in text and not any(word in text for word in _TEMPORARY)
