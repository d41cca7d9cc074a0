"""Schedules: functions that run at times, and the ticks at which they do.

Each process that has a schedule offers its next tick once that is due. Redis takes the first offer, and
stores a delivery for it. So there is no leader, and nobody asks in between: a process knows until when it may
sleep.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import wraps
from typing import Any

from .._checks import SCHEDULES, check_seconds, shown
from .._config.config import current_config
from .._log import Logger
from .._store.records import Claimed, Issued
from .._store.schedules import NEW, Offer, ScheduleStore, Standing, State
from .._tasks import Status, Task
from ..errors import ConfigError, InvalidTask, KeyReused, OTPRejected, ResendTooSoon, Retry, SendLimitReached
from .attempts import current_delivery
from .callbacks import Callback
from .timing import Timing, digest_of, last_ticks

logger = Logger(__name__)

#: So many missed ticks ``catch_up="all"`` makes up for at most.
CATCH_UP_MAX = 100
_CATCH_UP = {"latest": 1, "none": 0, "all": CATCH_UP_MAX}
#: A tick that is not later than that was not missed, milliseconds.
_ON_TIME = 10_000
#: Seconds between two times that a process says how it defines its schedules.
_DEFINE = 30.0
_JITTER_MAX = 86400.0
_TIMEOUT_MAX = 365 * 86400.0
#: So many schedules tick in one step at most.
_AT_ONCE = 20
_RANDOM: random.Random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Callback):
    """A function that runs, in one process of the fleet, at each tick.

    :param timing: when that is.
    :param zone: the ticks' zone.
    :param catch_up: what becomes of ticks that were missed: ``latest``, ``none`` or ``all``.
    :param jitter: seconds; each run is put off by a part of them, at random.
    :param timeout: seconds that it may take, ``None`` as configured.
    """

    timing: Timing
    zone: tzinfo
    catch_up: str = "latest"
    jitter: float = 0.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        Callback.__post_init__(self)
        if self.catch_up not in list(_CATCH_UP):
            raise ConfigError(f"catch_up must be one of {sorted(_CATCH_UP)}, not {shown(self.catch_up)}")
        try:
            if self.jitter:
                check_seconds(self.jitter, "jitter", maximum=_JITTER_MAX)
            if self.timeout is not None:
                check_seconds(self.timeout, "timeout", maximum=_TIMEOUT_MAX)
        except InvalidTask as error:
            raise ConfigError(str(error)) from None

    def _check_queue(self) -> None:
        """Let the queue be that of all schedules."""

    def argument(self, item: Claimed) -> datetime | None:
        """Return the tick, in the schedule's zone."""
        return item.tick and item.tick.astimezone(self.zone)

    def time_limit(self, item: Claimed, default: float) -> float:
        """Return how many seconds an attempt may take."""
        return default if self.timeout is None else self.timeout

    @property
    def digest(self) -> str:
        """What tells this definition of its ticks from another."""
        return digest_of(self.timing, self.zone)

    def next_ticks(self, after: int, count: int) -> list[datetime]:
        """Return the next ticks, in the schedule's zone.

        :param after: milliseconds since 1970.
        """
        found: list[datetime] = []
        while len(found) < count:
            after = self.timing.after(after)
            found.append(datetime.fromtimestamp(after / 1000, self.zone))
        return found

    def offer(self, state: State, now: int) -> Offer:
        """Return what follows a state: from the next tick on, once that is due.

        :param now: the server's time, milliseconds since 1970.
        """
        changed = state.digest != self.digest
        if not state.tick or max(state.tick, state.due) > now:
            # It is new, or its definition is: what had been due under the old one is not.
            return Offer(state, State(self.digest, self.timing.after(max(now, state.last)), state.last))
        most = max(_CATCH_UP[self.catch_up], 1)
        due = [state.tick] if changed else last_ticks(self.timing, state.tick, now, most)
        ticks = [tick for tick in due if self.catch_up != "none" or tick > now - _ON_TIME]
        last = ticks[-1] if ticks else state.last
        follows = State(self.digest, self.timing.after(max(now, due[-1])), last)
        jitter = self.jitter
        return Offer(state, follows, True, [(tick, _RANDOM.uniform(0, jitter)) for tick in ticks])


class Ticker:
    """Offer the ticks of the schedules that this process has.

    :param store: takes them.
    :param callbacks: queue -> name -> callback, read anew at each turn; those of schedules are schedules.
    """

    def __init__(self, store: ScheduleStore, callbacks: Mapping[str, Mapping[str, Callback]]) -> None:
        self._store, self._callbacks = store, callbacks
        self._standings: dict[str, Standing] = {}
        #: By name, when something is to be offered, by the monotonic clock.
        self._due: dict[str, float] = {}
        self._define_at = 0.0
        #: The server's clock less the monotonic one, ms.
        self._ahead = 0.0

    def look_anew(self) -> None:
        """Ask how the schedules stand before the next tick."""
        self._define_at = 0.0

    @property
    def next_at(self) -> float:
        """When there is something to do, by the monotonic clock."""
        return min(self._define_at, *self._due.values()) if self._due else self._define_at

    def tick(self) -> bool:
        """Offer what is due; return whether anything was stored that is to run.

        :raises redis.RedisError: if Redis did not answer.
        """
        schedules, stored = self._schedules(), False
        while True:
            if time.monotonic() >= self._define_at or schedules.keys() != self._standings.keys():
                self._define(schedules)
            now = time.monotonic()
            due = [name for name, at in self._due.items() if now >= at]
            if not due:
                return stored
            stored = self._offer({name: schedules[name] for name in due[:_AT_ONCE]}) or stored

    def _schedules(self) -> dict[str, Schedule]:
        all_ = dict(self._callbacks.get(SCHEDULES, {}))
        return {name: schedule for name, schedule in all_.items() if isinstance(schedule, Schedule)}

    def _define(self, schedules: Mapping[str, Schedule]) -> None:
        # First: what cannot be done now is not tried at once again.
        self._define_at, self._due = time.monotonic() + _DEFINE, {}
        now, self._standings = self._store.define({name: each.digest for name, each in schedules.items()})
        self._hear(now)
        for name, standing in self._standings.items():
            state, own = standing.state, schedules[name].digest
            if state is not None and standing.newest == own and not standing.paused:
                # Nobody has this definition's ticks in mind yet.
                self._due[name] = self._at(state) if state.digest == own else 0.0

    def _hear(self, now: int) -> None:
        self._ahead = now - time.monotonic() * 1000

    def _at(self, state: State) -> float:
        return (state.due - self._ahead) / 1000

    def _offer(self, schedules: Mapping[str, Schedule]) -> bool:
        for name in schedules:
            del self._due[name]
        now = int(time.monotonic() * 1000 + self._ahead)
        offers = {
            name: schedule.offer(self._standings[name].state or NEW, now)
            for name, schedule in schedules.items()
        }
        heard, answers = self._store.tick(offers)
        self._hear(heard)
        stored = False
        for name, (state, word) in answers.items():
            self._standings[name] = replace(self._standings[name], state=state)
            if state is None or word in ("paused", "broken"):
                # That is asked again with the definitions.
                continue
            if state.digest != schedules[name].digest:
                # Only who asks knows which of two definitions counts.
                self.look_anew()
            else:
                self._due[name] = self._at(state)
            stored = stored or (word == "set" and bool(offers[name].ticks))
        return stored


def asking(
    queue: str,
    function: Callable[[datetime], Any],
    *,
    add: Callable[..., Issued],
    resend: Callable[..., Task[Any]],
) -> Callable[[datetime], None]:
    """Return a function that adds a task at each tick, once however often it runs.

    :param queue: the task's.
    :param function: returns the other arguments of ``add_task``, or ``None`` if there is nothing to confirm.
    :param add: takes what ``add_task`` takes, by name, and tells whether the task was there before.
    :param resend: its ``resend_otp``.
    """

    @wraps(function)
    def ask(tick: datetime) -> None:
        options = function(tick)
        if options is None:
            return
        if not isinstance(options, Mapping):
            raise TypeError("a schedule with confirm= returns the arguments of add_task, or None")
        task: Task[Any] | None
        try:
            issued = add(queue=queue, key=current_delivery.id, **options)
            task, known = issued.task, issued.known
        except KeyReused as error:
            logger.info("The task of %s is there already, with other arguments.", current_delivery.id)
            task, known = error.task, True
        at_once = not current_config().sends_in_background
        again = known and current_delivery.claims > 1
        if at_once and again and task is not None and task.status is Status.PENDING:
            # An attempt before may have stored the task and sent nothing.
            via = [method for method in options.get("send_via") or () if method in task.resend_after]
            method = next(iter(via or task.resend_after), None)
            if method is None:
                raise SendLimitReached(f"task {task.id} may have no more messages, and no code may have come")
            _send_again(task, method, resend)

    return ask


def _send_again(task: Task[Any], method: str, resend: Callable[..., Task[Any]]) -> None:
    """Send the code of a tick's task again, unless it is known to have gone out, or is wanted no more."""
    try:
        with suppress(OTPRejected):
            resend(task.id, method)
    except ResendTooSoon as error:
        # Who sees a send fail ends its cooldown. A process that vanished saw nothing.
        if current_delivery.attempt - 1 > current_delivery.failures:
            message = f"nobody knows whether the code of task {task.id} was sent"
            raise Retry(message, after=error.retry_after) from None
