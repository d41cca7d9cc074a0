"""The steps on schedules: how they stand, and their ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .._checks import NAME, SCHEDULES
from .._keyring import Keyring
from .._log import Logger
from .._seldom import Seldom
from ..errors import KeyMissing
from .keys import Keys
from .records import dump_tick
from .steps import Steps

logger = Logger(__name__)

#: For how long a definition counts that no process says any more, milliseconds; they say theirs each 30 s.
_LASTS = 90_000
_COMPLAIN = 60.0


@dataclass(frozen=True, slots=True)
class State:
    """How a schedule stands; times are milliseconds since 1970.

    :param digest: of the definition that the next tick is of.
    :param tick: the next tick.
    :param last: the last one, 0 if there was none.
    :param raw: as it is stored, empty if nothing is.
    :param due: when the next tick is due: the same, unless somebody else wrote to Redis.
    """

    digest: str
    tick: int
    last: int
    raw: bytes = b""
    due: int = 0


#: How a schedule stands of which Redis knows nothing.
NEW = State("", 0, 0)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process hears of a schedule.

    :param state: how it stands, ``None`` if that cannot be read here: others have its secret key.
    :param newest: the digest of the definition that counts.
    :param paused: whether it is.
    :param hand: the id of the tick that was run by hand last, empty if there was none. Nothing seals it.
    """

    state: State | None
    newest: str
    paused: bool
    hand: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a process offers to let a schedule do.

    :param read: the state that it goes by.
    :param follows: the state that follows.
    :param when_due: whether it must not be taken before the next tick is due.
    :param ticks: what is to run, each with the seconds by which it is put off.
    """

    read: State
    follows: State
    when_due: bool = False
    ticks: Sequence[tuple[int, float]] = ()


class ScheduleStore:
    """The steps on schedules. All of an app share a slot, that of their deliveries' queue.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: makes and checks seals.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring) -> None:
        self._steps, self._keys, self._keyring = steps, keys, keyring
        self._seldom = Seldom(_COMPLAIN)

    def define(self, digests: Mapping[str, str]) -> tuple[int, dict[str, Standing]]:
        """Say how this process defines its schedules; return the time and how they stand.

        :param digests: of their definitions, by name.
        """
        keys = self._keys.of_queue(SCHEDULES, "schedules")
        rows = [word for pair in digests.items() for word in pair]
        _, now, *reply = self._steps.run("schedules/define", keys, _LASTS, rows)
        return self._time(now), {
            name: Standing(self._read(name, reply[3 * i]), reply[3 * i + 1].decode(), bool(reply[3 * i + 2]))
            for i, name in enumerate(digests)
        }

    def tick(self, offers: Mapping[str, Offer]) -> tuple[int, dict[str, tuple[State | None, str]]]:
        """Let schedules tick; return the time, and by name the state and what became of the offer.

        ``lua/schedules/tick.lua`` has the words.
        """
        keys = self._keys.deliveries(SCHEDULES, offers, after=["schedules", "paused", "seq"])
        rows: list[str | int | bytes] = []
        ticks: list[str | int] = []
        for index, (name, offer) in enumerate(offers.items()):
            rows += [name, offer.read.raw, self._dump(name, offer.follows), int(offer.when_due)]
            for tick, delay in offer.ticks:
                ticks += [index, *dump_tick(name, tick, self._keyring), int(delay * 1000)]
        _, now, *reply = self._steps.run("schedules/tick", keys, rows, ticks)
        return self._time(now), {
            name: (self._read(name, reply[2 * i]), reply[2 * i + 1].decode()) for i, name in enumerate(offers)
        }

    def run(self, name: str) -> str:
        """Let a schedule run once, now; return the tick's id."""
        keys = self._keys.deliveries(SCHEDULES, [name], after=["seq", "schedules"])
        seconds, microseconds = self._steps.client.time()
        tick = self._time(seconds * 1000 + microseconds // 1000)
        identity, body = dump_tick(name, tick, self._keyring)
        self._steps.run("schedules/run", keys, identity, body, name)
        return identity

    def pause(self, name: str) -> None:
        """Let a schedule not tick."""
        self._steps.client.hset(self._key, f"{name}:paused", 1)

    def resume(self, name: str) -> None:
        """Let a schedule tick again."""
        self._steps.client.hdel(self._key, f"{name}:paused")

    def forget(self, name: str) -> None:
        """Forget how a schedule stands."""
        self._steps.client.hdel(self._key, name, f"{name}:said", f"{name}:paused", f"{name}:hand")

    def all(self) -> dict[str, Standing]:
        """Return how all schedules stand of which Redis knows."""
        stored = {
            name.decode(errors="replace"): value
            for name, value in self._steps.client.hgetall(self._key).items()
        }
        # What somebody wrote from outside may be no name.
        return {
            name: Standing(
                self._read(name, stored[name]),
                "",
                f"{name}:paused" in stored,
                stored.get(f"{name}:hand", b"").decode(errors="replace"),
            )
            for name in sorted(stored)
            if NAME.fullmatch(name)
        }

    @property
    def _key(self) -> str:
        return self._keys.of_queue(SCHEDULES, "schedules")[0]

    def _time(self, now: Any) -> int:
        """Return the server's time as this process's tests see it."""
        return int(now) + self._keyring.ahead

    def _dump(self, name: str, state: State) -> str:
        seal = self._keyring.seal("schedule", name, state.digest, str(state.tick), str(state.last))
        return f"{state.digest} {state.tick - self._keyring.ahead} {state.tick} {state.last} {seal}"

    def _read(self, name: str, raw: bytes) -> State | None:
        text = raw.decode(errors="replace")
        if not text:
            return NEW
        try:
            digest, due, tick, last, seal = text.split(" ")
            state = State(digest, int(tick), int(last), raw, self._time(due))
            for time in (state.tick, state.due):
                datetime.fromtimestamp(time / 1000, UTC)
            if self._keyring.hold_all([(seal, ("schedule", name, digest, tick, last))]):
                return state
        except KeyMissing:
            return None
        except (ValueError, OverflowError, OSError):
            pass
        if self._seldom(name):
            logger.error("Schedule %s was changed in Redis from outside: it begins anew.", name)
        return State("", 0, 0, raw)
