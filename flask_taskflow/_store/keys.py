"""The names of keys and channels, and what deliveries stand under."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b32encode
from collections.abc import Iterable

TASK_ID = re.compile(r"[a-z2-7]{34}", re.ASCII)
_TAG_LENGTH = 8
#: The kinds of keys that hold one consumer's deliveries.
KINDS = ("ready", "delay", "lease", "dead", "meta", "body", "error")
#: Stands for the tag in keys that all queues have in common. No tag is as short.
_ALL = "all"
_SENDS = "@"
_ENDINGS = "+"
_REMINDERS = "%reminders"


class Consumer(str):
    """What deliveries are for, as their keys name it: a callback, the sends by one method, or reminders.

    No callback's name begins like one of these, or like one that follows other ends than a verification.
    """

    __slots__ = ("early", "ending", "limit", "method", "of")

    #: The method that codes are sent by, ``None`` for a callback.
    method: str | None
    #: How many deliveries of the callback may run at once, under all of its names; 0 for any number.
    limit: int
    #: The callback's own name: this may be one that it had, or will have.
    of: str
    #: Whether it follows tasks that ended without success.
    ending: bool
    #: Whether it comes before a task is verified.
    early: bool

    def __new__(cls, name: str, limit: int = 0, *, of: str = "") -> Consumer:
        """Return the one that a name stands for."""
        consumer = super().__new__(cls, name)
        consumer.method = name[len(_SENDS) :] if name.startswith(_SENDS) else None
        consumer.limit = limit
        consumer.of = of or name
        consumer.ending = name.startswith(_ENDINGS)
        consumer.early = name.startswith((_SENDS, _REMINDERS))
        return consumer

    @classmethod
    def following(cls, name: str) -> Consumer:
        """Return the one for a callback of that name that follows other ends than a verification."""
        return cls(f"{_ENDINGS}{name}")

    @classmethod
    def sending(cls, method: str) -> Consumer:
        """Return the one for the sends by a method."""
        return cls(f"{_SENDS}{method}")


#: What reminders of tasks that are about to end stand under.
REMINDERS = Consumer(_REMINDERS)


class Keys:
    """The names of all keys, see the table in ``docs/redis.md``, and of channels.

    :param prefix: the configured prefix.
    :param database: the database number, part of channels because Pub/Sub ignores databases.
    :param apart: whether no step may reach keys of two slots, as in a cluster.
    """

    def __init__(self, prefix: str, database: int, *, apart: bool = False) -> None:
        self._prefix = prefix
        self._database = database
        #: As given.
        self.apart = apart
        self.queues = f"{prefix}:queues"
        #: Which secret keys the processes of the fleet have.
        self.fingerprints = f"{prefix}:fingerprints"
        #: The processes that run deliveries, and which.
        self.processes = f"{prefix}:processes"
        #: The processes in which nothing can run any more.
        self.stuck = f"{prefix}:stuck"
        #: There while all queues are paused, those to come, too.
        self.paused = f"{prefix}:paused"
        #: Set and read to see whether that is allowed.
        self.probe = f"{prefix}:doctor"
        #: The channel of bells.
        self.bell = f"{prefix}:{database}:bell"
        #: The channel of verifications whose callbacks somebody was woken to run, see `lua/shared/bells.lua`.
        self.told = f"{self.bell}:told"
        #: What `SCAN` finds the keys of all queues by: no prefix has a character that means more there.
        self.pattern = f"{prefix}:{{{prefix}.*"
        self._tags: dict[str, str] = {}

    def tag(self, queue: str) -> str:
        """Return the eight characters that mark a queue in its keys and its tasks' ids."""
        if queue not in self._tags:
            digest = hashlib.sha256((self._prefix + queue).encode()).digest()
            self._tags[queue] = b32encode(digest)[:_TAG_LENGTH].decode().lower()
        return self._tags[queue]

    def new_id(self, queue: str) -> str:
        """Return the id of a task: the queue's tag and 128 random bits."""
        return self.tag(queue) + b32encode(secrets.token_bytes(16))[:26].decode().lower()

    def of(self, tag: str, *names: str) -> list[str]:
        """Return keys of a queue; all of them share one hash slot."""
        return [f"{self._prefix}:{{{self._prefix}.{tag}}}:{name}" for name in names]

    def of_queue(self, queue: str, *names: str) -> list[str]:
        """Return keys of a queue, by its name."""
        return self.of(self.tag(queue), *names)

    def task(self, task_id: str, *beside: str) -> list[str]:
        """Return the key of a task, and keys of its queue."""
        return self.of(tag_of(task_id), f"task:{task_id}", *beside)

    def course(self, task_id: str) -> list[str]:
        """Return the key of what happened to a task."""
        return self.of(tag_of(task_id), f"course:{task_id}")

    def counts(self, tag: str) -> list[str]:
        """Return the keys that count messages to a queue's recipients, and wrong codes, see `recipients.lua`.

        Wrong codes count over all queues wherever one step can reach the keys of two.
        """
        shared = tag if self.apart else _ALL
        return [
            *self.of(tag, "recipients", "recipients:expiry"),
            *self.of(shared, "budgets", "budgets:expiry"),
        ]

    def registering(self, queue: str) -> list[str]:
        """Return the keys of a queue that a step needs to register callbacks, and to see what is over."""
        tag = self.tag(queue)
        return [*self.of(tag, "handlers", "unclaimed", "pending"), *self.counts(tag)[1::2]]

    def pending(self, task_id: str) -> list[str]:
        """Return the key of a task, and those of its queue that a step needs to count messages and codes."""
        return self.task(task_id, "pending") + self.counts(tag_of(task_id))

    def locate(self, task_id: str) -> tuple[str, str]:
        """Return the key of a task, and the tag of its queue."""
        return self.task(task_id)[0], tag_of(task_id)

    def success(self, tag: str, callbacks: Iterable[str]) -> list[str]:
        """Return the keys that a step needs, besides the task's, to end it and to store its deliveries."""
        keys = self.of(tag, "pending") + self.counts(tag)
        keys += self.of(tag, "decoy", "handlers", "seq", "unclaimed", "waiting")
        for name in callbacks:
            keys += self.handler(tag, name, "ready", "delay", "meta", "body")
        return keys

    def claiming(self, queue: str, task_id: str, callbacks: Iterable[str]) -> list[str]:
        """Return the keys that a step needs to store deliveries of a task that was verified before.

        :param task_id: as it is listed in the queue, so it may be none.
        """
        keys = self.of_queue(queue, f"task:{task_id}", "unclaimed", "seq")
        return keys + self.deliveries(queue, callbacks, "ready", "delay", "meta", "body")

    def handler(self, tag: str, consumer: str, *kinds: str) -> list[str]:
        """Return keys of a consumer's deliveries, of all kinds unless some are given."""
        return self.of(tag, *(f"h:{consumer}:{kind}" for kind in kinds or KINDS))

    def deliveries(
        self, queue: str, consumers: Iterable[str], *kinds: str, after: Iterable[str] = ()
    ) -> list[str]:
        """Return keys of several consumers' deliveries, of all kinds unless some are given.

        :param after: names of keys of the queue that come first.
        """
        tag = self.tag(queue)
        return self.of(tag, *after) + [
            key for consumer in consumers for key in self.handler(tag, consumer, *kinds)
        ]

    def sends(self, task_id: str, methods: Iterable[str]) -> list[str]:
        """Return the keys that a step needs to store sends of a task's codes by some methods."""
        tag = tag_of(task_id)
        keys = self.of(tag, "seq")
        for method in methods:
            keys += self.handler(tag, Consumer.sending(method))
        return keys

    def listings(self, tag: str, owners: Iterable[str] = (), addresses: Iterable[str] = ()) -> list[str]:
        """Return the keys that list a person's tasks in a queue.

        :param owners: MACs of an owner.
        :param addresses: MACs of addresses.
        """
        owned = [f"owner:{name}" for name in owners]
        return self.of(tag, *owned, *(f"address:{name}" for name in addresses))

    def named(self, task_id: str, names: Iterable[str]) -> list[str]:
        """Return the keys that say which task of a queue has a key that its app gave.

        :param task_id: of a task of the queue.
        :param names: MACs of the key.
        """
        return self.of(tag_of(task_id), *(f"key:{name}" for name in names))

    def used(self, use: str) -> str:
        """Return the key that says that a code made elsewhere was used.

        :param use: an HMAC of what was used.
        """
        return f"{self._prefix}:used:{use}"

    def presence(self, owner: str) -> str:
        """Return the channel which shows, by its subscriber, that a process lives.

        :param owner: the process's name; without one this is how all these channels begin.
        """
        return f"{self._prefix}:{self._database}:here:{owner}"


def tag_of(task_id: str) -> str:
    """Return the tag of the queue that a task belongs to."""
    return task_id[:_TAG_LENGTH]


def delivery_id(consumer: str, item: str) -> str:
    """Return the id by which people know a delivery: ``<task id>:<callback>``, or ``<schedule>:<tick>``.

    :param item: the id of a task, or of a tick, which has colons.
    """
    return f"{consumer}:{item}" if ":" in item else f"{item}:{consumer}"


def read_delivery_id(text: str) -> tuple[str, str]:
    """Return what a delivery's id is made of: the id of the task or tick, and the callback or schedule."""
    first, _, rest = text.partition(":")
    return (rest, first) if ":" in rest else (first, rest)
