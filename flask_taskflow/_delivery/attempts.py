"""One attempt at a delivery of any kind: how it ends, how that is reported, when the next one is due."""

from __future__ import annotations

import math
import os
import random
import secrets
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

from flask import current_app, has_app_context
from werkzeug.local import LocalProxy

from .._checks import in_seconds
from .._inert import inert
from .._interrupts import is_a
from .._store.deliveries import DeliveryStore, End
from .._store.records import Claimed
from ..errors import Retry

#: Failures so far -> how many times the base of the backoff to wait.
BACKOFFS: Mapping[str, Callable[[int], int]] = {
    "fixed": lambda failures: 1,
    "linear": lambda failures: failures,
    "exponential": lambda failures: 2 ** min(failures - 1, 63),
}
_JITTER = 0.1
_RANDOM: random.Random = secrets.SystemRandom()
#: The longest that a Retry may ask for, seconds.
_AFTER_MAX = 30 * 86400.0

_HERE = f"{Path(__file__).parents[1]}{os.sep}"
_STANDARD = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
_INSTALLED = frozenset({"site-packages", "dist-packages"})

T = TypeVar("T")


class Report(Protocol):
    """How a runner tells Redis something: once, or again and again until it got through."""

    def __call__(self, step: Callable[[], T], /) -> T:
        """Take a step of a store and return what it answered.

        :raises redis.RedisError: if it cannot be taken.
        """

    def end(self, attempt: Attempt, end: End, tell: Callable[[bool], None], /) -> None:
        """Let an attempt end so, and then tell somebody whether Redis accepted it, in an app context.

        :raises redis.RedisError: if it cannot be reported, and nobody does so later.
        """


@dataclass(frozen=True, slots=True)
class ReportOnce:
    """Report in the caller's thread, once, for those who must not wait.

    :param store: takes ends.
    """

    store: DeliveryStore

    def __call__(self, step: Callable[[], T], /) -> T:
        """Take a step."""
        return step()

    def end(self, attempt: Attempt, end: End, tell: Callable[[bool], None], /) -> None:
        """Report how an attempt ended, and tell."""
        tell(self.store.end(end))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One callback's share of a verified task, or a tick of a schedule, as :data:`current_delivery` shows it.

    :param id: the same for all attempts, unique and stable: the idempotency key.
    :param attempt: counts from 1, lost processes included.
    :param failures: attempts that failed so far, lost processes left out.
    :param claims: how often a process took it, those before a replay included.
    """

    id: str
    attempt: int
    failures: int = 0
    claims: int = 1


#: What ``current_delivery`` shows in this context.
running: ContextVar[Delivery] = ContextVar("flask_taskflow.delivery")

#: The :class:`Delivery` that runs, inside a callback.
current_delivery = cast(
    Delivery,
    LocalProxy(running, unbound_message="current_delivery is only there inside a callback"),
)


@dataclass(slots=True, eq=False)
class Attempt:
    """A delivery that this process has claimed.

    :param item: the delivery.
    :param timeout: seconds that it may take.
    :param started: by the monotonic clock; infinite while it waits for a place.
    :param warned: whether the log has told that it takes long.
    :param written_off: whether it counts as failed although it still runs.
    :param lease_lost: whether the log has told that another process may run it.
    :param acks: how often its success was reported.
    :param reported: whether its end was reported, or is on its way to be.
    :param cut_off: whether its process ends before it: a failure is not its own.
    """

    item: Claimed
    timeout: float
    started: float = math.inf
    warned: bool = False
    written_off: bool = False
    lease_lost: bool = False
    acks: int = 0
    reported: bool = False
    cut_off: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether it runs, or ran."""
        return self.started < math.inf

    def is_of(self, item: Claimed) -> bool:
        """Tell whether it is at the same delivery, under whatever token."""
        return (self.item.callback, self.item.task_id) == (item.callback, item.task_id)

    @property
    def look_at(self) -> float:
        """When its time must be looked at next, by the monotonic clock."""
        return self.started + (self.timeout if self.warned else self.timeout / 2)


class Ticks(Protocol):
    """What stores the ticks of schedules."""

    @property
    def next_at(self) -> float:
        """When there is something to do, by the monotonic clock."""

    def look_anew(self) -> None:
        """Ask how the schedules stand before the next tick."""

    def tick(self) -> bool:
        """Let the schedules tick that are due; return whether anything was stored that is to run."""


class Runner(Protocol):
    """A kind of delivery and how it is run; an engine may ask it from several threads at once.

    ``execute``, ``fail`` and ``end_lost`` are called inside the app's context.
    """

    @property
    def ticks(self) -> Ticks | None:
        """What stores the ticks of schedules, if some of these deliveries are theirs."""

    def served(self) -> Mapping[str, Sequence[str]]:
        """Return the queues that may have deliveries, each with the names under which these stand."""

    def refresh(self) -> Mapping[str, Sequence[str]]:
        """Learn from Redis which queues there are, then return the same."""

    def register(self, served: Mapping[str, Sequence[str]]) -> list[str]:
        """Say in Redis that this process runs deliveries of some queues.

        :param served: each with the names under which deliveries stand that this process runs.
        :return: those of which something is to be trimmed.
        """

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""

    def execute(self, attempt: Attempt, report: Report) -> None:
        """Run an attempt to its end and report how it ended."""

    def fail(self, attempt: Attempt, error: BaseException, report: Report) -> None:
        """Report a failed attempt."""

    def end_lost(self, item: Claimed) -> None:
        """Give up a delivery that was lost with its process too often."""


def compute_backoff(
    strategy: str, base: float, failures: int, *, cap: float, jitter: float = _JITTER
) -> float:
    """Return the seconds to wait after a failed attempt.

    :param strategy: ``fixed``, ``linear`` or ``exponential``.
    :param base: seconds.
    :param failures: attempts that failed so far, from 1.
    :param cap: the longest wait before jitter, in seconds.
    :param jitter: the largest share that is added at random, so that retries do not come in step.
    """
    wait = min(cap, base * BACKOFFS[strategy](failures))
    return wait * (1 + _RANDOM.uniform(0, jitter))


def asked_after(error: BaseException) -> float | None:
    """Return the seconds after which a :class:`Retry` wants another try; ``None`` if it says none."""
    if not is_a(error, Retry):
        return None
    try:
        # A subclass may have set nothing, or work it out from what is not there.
        after = getattr(error, "after", None)
        seconds = None if after != after else in_seconds(after)
    except Exception:
        return None
    return None if seconds is None else min(max(seconds, 0.0), _AFTER_MAX)


def said_by(value: object) -> str:
    """Return a value as text, empty if it cannot be shown."""
    try:
        return str(value)
    except BaseException:
        return ""


class Place(NamedTuple):
    """Where code stands: the file, the line, and the module."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return inert(f"{self.file}:{self.line}")


def own_place(error: BaseException) -> Place | None:
    """Return where the app's own code stood last when an error was raised, ``None`` if nowhere.

    That is the last frame outside the standard library, this package and what is installed. An app that is
    installed itself is known by its root; else what is installed is better than nothing.
    """
    root = f"{current_app.root_path}{os.sep}" if has_app_context() else None
    own = installed = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = Place(frame.f_code.co_filename, line, frame.f_globals.get("__name__", "?"))
        # The interpreter's own modules and generated code have no file.
        if place.file.startswith(("<", _HERE)):
            continue
        if not _INSTALLED.isdisjoint(Path(place.file).parts):
            installed = place
            own = installed if root and place.file.startswith(root) else own
        elif not place.file.startswith(_STANDARD):
            own = place
    return own or installed


def lost_text(item: Claimed) -> str:
    """Return why a delivery ends that was lost with its process too often."""
    return f"lost with its process {item.lost} times"
