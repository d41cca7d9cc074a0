"""Leases: keep those of what runs here, take over those of processes that vanished."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

from .._log import Logger
from .._store.deliveries import DeliveryStore, Suspect
from .attempts import Attempt

logger = Logger(__name__)

#: Seconds between two extensions of what runs.
HEARTBEAT = 1.0
#: While others hold leases, seconds between two looks at whether they live.
_LOOK = 1.0
#: After so many seconds all that live have extended what they run, whatever the time is now.
_EXTENDED = 2 * HEARTBEAT
#: The least time between the two looks that see the same lease without its process, seconds.
_LOOK_AGAIN = 2.0


class Presence(Protocol):
    """What must be known of the listener beside an engine."""

    @property
    def owner(self) -> str:
        """This process's name."""

    @property
    def present_owner(self) -> str:
        """The name under which this process leases."""

    @property
    def may_look(self) -> bool:
        """Whether this process can tell which others live."""


class Leases:
    """The leases that matter to one engine: its own, and those of processes that may have vanished.

    Only the engine's scheduler thread uses it.

    :param store: the engine's steps.
    :param presence: tells whether this process and others can be seen to live.
    :param lease: seconds that a lease lasts unless it is extended.
    """

    def __init__(self, store: DeliveryStore, presence: Presence, *, lease: float) -> None:
        self._store = store
        self._presence = presence
        self._heartbeat = min(HEARTBEAT, lease / 3)
        #: When the own leases must be extended and others' be looked at, by the monotonic clock.
        self.extend_at = 0.0
        self.look_at = math.inf
        self._reap_at = 0.0
        #: Queue -> leases that were seen without their process, and when that was first.
        self._suspects: dict[str, dict[Suspect, float]] = {}

    @property
    def may_reap(self) -> bool:
        """Whether a claim may take over leases that expired.

        When the server's clock stepped over them, their owners extend them first.
        """
        return time.monotonic() >= max(self._reap_at, self._store.clocks.stepped_at + _EXTENDED)

    def reap_after(self, seconds: float) -> None:
        """Let the expired leases of others alone for a while: they could not extend them."""
        self._reap_at = max(self._reap_at, time.monotonic() + seconds)

    def extend_soon(self) -> None:
        """Extend the own leases as soon as Redis can be reached."""
        self.extend_at = 0.0

    def extend(self, running: Sequence[Attempt]) -> None:
        """Extend the leases of what runs here; tell of those that were lost."""
        extend_at = time.monotonic() + self._heartbeat
        for queue in {attempt.item.queue for attempt in running}:
            ours = [attempt for attempt in running if attempt.item.queue == queue]
            lost = self._store.extend(queue, [attempt.item for attempt in ours])
            for attempt in ours:
                # One whose end is on its way to Redis may be over there already.
                if attempt.item in lost and not (attempt.lease_lost or attempt.reported):
                    attempt.lease_lost = True
                    logger.warning("%s may run twice: its lease was lost.", attempt.item)
        self.extend_at = extend_at

    def look_soon(self, held: int, ours: int) -> None:
        """Look at others' leases in a moment, if there are any.

        :param held: how many leases a queue has.
        :param ours: how many of them are this process's.
        """
        if held > ours:
            self.look_at = min(self.look_at, time.monotonic() + _LOOK)

    def begin_look(self) -> bool:
        """Begin a look at all queues; false if this process cannot tell now which others live."""
        may_look = self._presence.may_look
        self.look_at = math.inf if may_look else time.monotonic() + _LOOK
        return may_look

    def take_over(self, queue: str, names: Sequence[str], ours: int) -> bool:
        """Take over the leases of processes that vanished: seen so in two looks, not extended between.

        :param queue: whose leases.
        :param names: the names under which the queue's deliveries stand.
        :param ours: how many leases of the queue are this process's.
        :return: whether any was taken over.
        """
        now, before = time.monotonic(), self._suspects.get(queue, {})
        old = [suspect for suspect, since in before.items() if now - since >= _LOOK_AGAIN]
        look = self._store.look(queue, names, self._presence.present_owner, old)
        self._suspects[queue] = {item: before.get(item, now) for item in look.suspects}
        if look.taken:
            logger.warning("Took over %d deliveries of a process that vanished.", look.taken)
        self.look_soon(look.held, ours)
        return look.taken > 0
