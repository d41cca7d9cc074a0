"""Which callbacks a queue has: those of one process, and those that Redis knows of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Renamed(Protocol):
    """A callback, as far as its names go."""

    @property
    def aliases(self) -> Iterable[str]:
        """The names that it had before."""

    @property
    def statuses(self) -> Iterable[str]:
        """The ends that it follows, none for a verification."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Callbacks of a queue, and the names that took the place of others.

    :param names: of callbacks, in any order.
    :param aliases: old name -> new name: deliveries are stored under the new one alone.
    :param endings: what follows other ends than a verification, each with these.
    """

    names: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    endings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, callbacks: Mapping[str, Renamed]) -> Registration:
        """Return what a process says in Redis of its callbacks of a queue, by name."""
        aliases = {alias: name for name, callback in callbacks.items() for alias in callback.aliases}
        endings = {name: ",".join(callback.statuses) for name, callback in callbacks.items()}
        endings = {name: statuses for name, statuses in endings.items() if statuses}
        return cls(frozenset(callbacks) - endings.keys(), aliases, endings)

    @classmethod
    def read(cls, names: Iterable[bytes], aliases: Sequence[bytes]) -> Registration:
        """Return what a step answered: names, and (old name, new name) in a row."""
        words = [word.decode(errors="replace") for word in aliases]
        pairs = dict(zip(words[::2], words[1::2], strict=True))
        return cls(frozenset(name.decode(errors="replace") for name in names), pairs)

    def joined(self, other: Registration) -> Registration:
        """Return both together; where they differ, the other one's alias counts."""
        return Registration(self.names | other.names, {**self.aliases, **other.aliases})

    def current(self) -> list[str]:
        """Return the names that deliveries are stored under, sorted."""
        return sorted({_latest(name, self.aliases) for name in self.names})

    def renamings(self) -> frozenset[tuple[str, str]]:
        """Return each old name with each of those that took its place, one after the other."""
        return frozenset((old, new) for old in self.aliases for new in _names_of(old, self.aliases))

    def flat_aliases(self) -> list[str]:
        """Return old name, new name, and so on, as steps take them."""
        return [word for pair in sorted(self.aliases.items()) for word in pair]

    def told(self) -> tuple[list[str], list[str], list[str]]:
        """Return what ``lua/deliveries/register.lua`` takes."""
        endings = [word for pair in sorted(self.endings.items()) for word in pair]
        return sorted(self.names), self.flat_aliases(), endings

    def epoch(self) -> str:
        """Return the digest that Redis keeps of these, see ``lua/shared/handlers.lua``."""
        if not self.names:
            return ""
        joined = ",".join([*self.current(), *self.flat_aliases()])
        return hashlib.sha1(joined.encode(), usedforsecurity=False).hexdigest()


def _names_of(name: str, aliases: Mapping[str, str]) -> list[str]:
    """Return a name and those that took its place, one after the other; each once."""
    names: list[str] = []
    while name not in names:
        names.append(name)
        name = aliases.get(name, name)
    return names


def _latest(name: str, aliases: Mapping[str, str]) -> str:
    """Return the name that took a name's place in the end; of those that took each other's the first."""
    names = _names_of(name, aliases)
    again = aliases.get(names[-1], names[-1])
    return min(names[names.index(again) :])
