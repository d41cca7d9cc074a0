"""What runners share that serve all queues: those of what comes before a task is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from redis import ResponseError

from .._checks import SCHEDULES
from .._log import Logger
from .._seldom import Seldom
from .._store.deliveries import DeliveryStore
from .._store.keys import Consumer
from .._store.queues import Queues
from .._store.registrations import Registration

logger = Logger(__name__)

_COMPLAIN = 60.0


class AllQueues:
    """Serve every queue that there is, also those of which this process has no callback.

    :param consumer: what the deliveries stand under.
    :param queues: the queues that are known.
    :param deliveries: lists them.
    """

    #: None of these is a schedule's.
    ticks: Final = None

    def __init__(self, consumer: Consumer, queues: Queues, deliveries: DeliveryStore) -> None:
        self._names = [consumer]
        self._queues = queues
        self._deliveries = deliveries
        self._complain = Seldom(_COMPLAIN)

    def served(self) -> dict[str, Sequence[str]]:
        """Return every queue that this process has heard of, with the name that the deliveries have."""
        return self._named(self._queues.names())

    def refresh(self) -> dict[str, Sequence[str]]:
        """Hear of the queues that other processes add tasks to, then return the same."""
        try:
            return self._named(self._queues.refresh())
        except ResponseError as error:
            # The queues that are known are served all the same.
            if self._complain("queues"):
                logger.error("The list of queues in Redis cannot be read: %s", error)
            return self.served()

    def _named(self, queues: list[str]) -> dict[str, Sequence[str]]:
        return {queue: self._names for queue in queues if queue != SCHEDULES}

    def register(self, served: Mapping[str, Sequence[str]]) -> list[str]:
        """List the queues: they may have no callback that is registered there."""
        found = self._deliveries.register(dict.fromkeys(served, Registration()), served)
        return [queue for queue, (_, over) in found.items() if over]
