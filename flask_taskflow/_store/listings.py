"""What a person has: the tasks of a queue that were added for an owner, or that an address has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from .._keyring import Keyring
from .._tasks import Task
from .keys import Keys
from .limits import Limits
from .records import names_of, read_sound
from .steps import Steps

#: So many tasks are read by one step.
_BATCH = 100


class ListingStore:
    """The steps on a person's tasks.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: names people, and checks seals.
    :param limits: of which the tasks tell what they leave to them.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring, limits: Limits) -> None:
        self._steps = steps
        self._keys = keys
        self._keyring = keyring
        self._limits = limits

    def newest_first(
        self, queues: Iterable[str], owner: str | None, addresses: Sequence[str] = ()
    ) -> list[Task[Any]]:
        """Return what :meth:`tasks` yields of some queues, the newest first."""
        found = [task for queue in queues for task in self.tasks(queue, owner, addresses)]
        return sorted(found, key=attrgetter("created_at"), reverse=True)

    def tasks(self, queue: str, owner: str | None, addresses: Sequence[str] = ()) -> Iterator[Task[Any]]:
        """Yield the tasks of a queue that are kept, are an owner's or an address's, and bear this app's seal.

        :param owner: whose they are, if anybody's.
        :param addresses: the names under which an address may be listed.
        :raises KeyMissing: if a seal is of a key that this process lacks.
        """
        owners = [] if owner is None else self._keyring.owners(owner)
        _, listed = self._steps.run(
            "tasks/listed", self._keys.listings(self._keys.tag(queue), owners, addresses)
        )
        ids = [item.decode(errors="replace") for item in listed]
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            keys = self._keys.of_queue(queue, *(f"task:{task_id}" for task_id in batch))
            _, now, *rows = self._steps.run("tasks/list", keys)
            for task in read_sound(zip(batch, rows, strict=True), int(now), self._keyring, self._limits):
                # Whoever writes to Redis could list anything.
                theirs = names_of(task.recipient.addresses(), self._keyring) if addresses else ()
                if (owner is not None and task.owner == owner) or not set(addresses).isdisjoint(theirs):
                    yield task
