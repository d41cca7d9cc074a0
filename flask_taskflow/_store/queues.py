"""The queues that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from redis import RedisError

from .keys import Keys
from .registrations import Registration, Renamed
from .steps import Steps

#: The layer that holds a queue because all are paused.
ALL = "all"


class Queues:
    """The queues that are known: to this process, and in Redis.

    :param steps: whose client is asked.
    :param keys: the names of keys.
    :param own: those that this process has callbacks of, and these by name, as they are registered.
    """

    def __init__(self, steps: Steps, keys: Keys, own: Mapping[str, Mapping[str, Renamed]]) -> None:
        self._steps, self._client = steps, steps.client
        self._keys = keys
        self.own = own
        self._names: set[str] = set()
        self._listed: set[str] = set()

    def names(self) -> list[str]:
        """Return the queues that this process has heard of."""
        return list({*self._names, *list(self.own)})

    def own_by_tag(self, tag: str) -> str | None:
        """Return the queue that a tag marks, if this process has callbacks of it."""
        return self._by_tag(tag, list(self.own))

    def by_tag(self, tag: str) -> str | None:
        """Return the queue that a tag marks, if this process has heard of it."""
        return self._by_tag(tag, self.names())

    def _by_tag(self, tag: str, names: Iterable[str]) -> str | None:
        return next((name for name in names if self._keys.tag(name) == tag), None)

    def add(self, queue: str) -> None:
        """List a queue in Redis, once."""
        self._names.add(queue)
        if queue not in self._listed:
            # In a cluster the list may lie on a shard that is away.
            with suppress(RedisError):
                new = self._client.hset(self._keys.queues, self._keys.tag(queue), queue)
                if new and (ends := self._client.get(self._keys.paused)):
                    # Somebody else may have written it: then nothing ends by itself.
                    until = int(ends) if re.fullmatch(rb"[0-9]{1,15}", ends) else 0
                    self._steps.run("operations/hold", self._keys.of_queue(queue, "paused"), ALL, until)
                self._follow(queue)
                self._listed.add(queue)

    def _follow(self, queue: str) -> None:
        """Register what follows the ends of tasks, if this process has it, before anybody ends one."""
        own = Registration.of(self.own.get(queue, {}))
        if own.endings:
            self._steps.run("deliveries/register", self._keys.registering(queue), 0, 1, 0, *own.told())

    def relist(self) -> None:
        """List queues anew at the next occasion: Redis may have lost them."""
        self._listed.clear()

    def refresh(self) -> list[str]:
        """Hear of the queues that other processes listed; return all that are known.

        :raises redis.RedisError: if Redis did not answer.
        """
        listed = self._client.hgetall(self._keys.queues)
        self._names.update(name.decode(errors="replace") for name in listed.values())
        return self.names()
