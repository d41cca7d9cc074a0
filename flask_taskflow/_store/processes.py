"""What a process says of itself, for operators; no delivery depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version

from redis import RedisError

from .._keyring import Keyring
from .._seldom import Seldom
from .keys import Keys
from .steps import Steps

#: Milliseconds.
_STUCK_TOLD = 180_000
#: Seconds between two times that a process says which keys it has: a little less than the housekeeping's.
_TELL = 40.0
#: A process says that it lives not more often than this, seconds.
_TELL_ALIVE = 20.0


class ProcessStore:
    """The steps by which processes say how they are.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: the secret keys that this process has.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring) -> None:
        self._steps, self._keys, self._keyring = steps, keys, keyring
        self._keys_told, self._life_told = Seldom(_TELL), Seldom(_TELL_ALIVE)
        #: What this process said last of its parts.
        self._said: list[str] = []

    def tell_stuck(self, owner: str) -> None:
        """Let the operator know, for three minutes, that a process runs nothing any more."""
        with suppress(RedisError):
            self._steps.client.hset(self._keys.stuck, owner, 1)
            self._steps.client.pexpire(self._keys.stuck, _STUCK_TOLD)

    def tell_parts(self, owner: str, parts: Mapping[str, Iterable[str]]) -> None:
        """Say, now and then and if anything is new, that a process lives.

        :param parts: its engines, each with the queues that it serves.
        """
        told = [
            word
            for part, queues in parts.items()
            for word in (f"{owner} {part}", f"{_version()} {','.join(sorted(queues))}")
        ]
        if self._life_told() or told != self._said:
            self._said = told
            with suppress(RedisError):
                self._steps.run("deliveries/tell_process", [self._keys.processes], told)

    def tell_keys(self) -> None:
        """Say now and then, for ``doctor``, which secret keys this process has."""
        if self._keys_told():
            with suppress(RedisError):
                fingerprints = " ".join(self._keyring.fingerprints)
                self._steps.run("deliveries/tell_keys", [self._keys.fingerprints], fingerprints)


@cache
def _version() -> str:
    return version("Flask-TaskFlow")
