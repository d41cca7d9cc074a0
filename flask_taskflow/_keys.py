"""The names of keys, the queues that there are, and how a Lua step is run."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b32encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from redis import Redis, RedisError
from redis.exceptions import NoScriptError

TASK_ID = re.compile(r"[a-z2-7]{34}", re.ASCII)
_TAG_LENGTH = 8
#: The kinds of keys that hold one callback's deliveries, or one method's sends.
KINDS = ("ready", "delay", "lease", "dead", "meta", "body", "error")
#: Before a method's name, what its sends stand under; no callback's name begins so.
SENDS = "@"


class Scripts:
    """The Lua steps of ``lua/``, each behind what they share, on one client.

    :param client: answers bytes.
    """

    _SHARED = ("prelude", "limits", "handlers", "verification", "deliveries", "outcomes", "sending")

    def __init__(self, client: Redis) -> None:
        self._folder = files(__package__) / "lua"
        self._head = "\n".join(self._read(part) for part in self._SHARED)
        self._client = client
        self._scripts: dict[str, Any] = {}

    def run(self, step: str, keys: Sequence[str], *args: str | int) -> list[Any]:
        """Run a step and return its reply, the leading word decoded.

        :raises redis.RedisError: if Redis could not be reached or did not answer in time; the step may
            have had its effect once.
        """
        script = self._scripts.get(step)
        if script is None:
            text = f"{self._head}\n{self._read(step)}"
            script = self._scripts[step] = self._client.register_script(text)
        try:
            reply: list[Any] = script(keys=keys, args=args)
        except NoScriptError:
            # The scripts were flushed once more, between loading and running.
            reply = self._client.eval(str(script.script), len(keys), *keys, *args)
        return [reply[0].decode(), *reply[1:]]

    def _read(self, name: str) -> str:
        return (self._folder / f"{name}.lua").read_text("utf-8")


class Keys:
    """The names of all keys, see the table in ``docs/deploy.md``.

    :param prefix: the configured prefix.
    :param database: the database number, part of the channel because Pub/Sub ignores databases.
    """

    def __init__(self, prefix: str, database: int) -> None:
        self.prefix = prefix
        self.queues = f"{prefix}:queues"
        self.bell = f"{prefix}:{database}:bell"
        #: Followed by a process's name: the channel that shows that it lives.
        self.presence = f"{prefix}:{database}:here:"
        self._tags: dict[str, str] = {}

    def tag(self, queue: str) -> str:
        """Return the eight characters that mark a queue in its keys and its tasks' ids."""
        if queue not in self._tags:
            digest = hashlib.sha256((self.prefix + queue).encode()).digest()
            self._tags[queue] = b32encode(digest)[:_TAG_LENGTH].decode().lower()
        return self._tags[queue]

    def new_id(self, queue: str) -> str:
        """Return the id of a new task: the queue's tag and 128 random bits."""
        return self.tag(queue) + b32encode(secrets.token_bytes(16))[:26].decode().lower()

    def of(self, tag: str, *names: str) -> list[str]:
        """Return keys of a queue; all of them share one hash slot."""
        return [f"{self.prefix}:{{{self.prefix}.{tag}}}:{name}" for name in names]

    def task(self, task_id: str) -> list[str]:
        """Return the key of a task."""
        return self.of(tag_of(task_id), f"task:{task_id}")

    def handler(self, tag: str, name: str, *kinds: str) -> list[str]:
        """Return keys of a callback's deliveries."""
        return self.of(tag, *(f"h:{name}:{kind}" for kind in kinds))

    def sends(self, tag: str, methods: Iterable[str]) -> list[str]:
        """Return the keys that a step needs to store sends by some methods."""
        names = [f"h:{SENDS}{method}:{kind}" for method in methods for kind in KINDS]
        return self.of(tag, "seq", *names)


class Queues:
    """The queues that are known: to this process, and in Redis.

    :param client: answers bytes.
    :param keys: the names of keys.
    :param own: those that this process has callbacks of, as they are registered.
    """

    def __init__(self, client: Redis, keys: Keys, own: Iterable[str]) -> None:
        self._client: Any = client
        self._keys = keys
        self._own = own
        self._names: set[str] = set()
        self._listed: set[str] = set()

    def names(self) -> list[str]:
        """Return the queues that this process has heard of."""
        return list({*self._names, *list(self._own)})

    def knows(self, tag: str) -> bool:
        """Tell whether this process has heard of the queue that a tag marks."""
        return any(self._keys.tag(name) == tag for name in self.names())

    def add(self, queue: str) -> None:
        """List a queue in Redis, once."""
        self._names.add(queue)
        if queue not in self._listed:
            # In a cluster the list may lie on a shard that is away.
            with suppress(RedisError):
                self._client.hset(self._keys.queues, self._keys.tag(queue), queue)
                self._listed.add(queue)

    def relist(self) -> None:
        """List queues anew at the next occasion: Redis may have lost them."""
        self._listed.clear()

    def refresh(self) -> None:
        """Hear of the queues that other processes listed.

        :raises redis.RedisError: if Redis did not answer.
        """
        listed = self._client.hgetall(self._keys.queues)
        self._names.update(name.decode(errors="replace") for name in listed.values())


def tag_of(task_id: str) -> str:
    """Return the tag of the queue that a task belongs to."""
    return task_id[:_TAG_LENGTH]
