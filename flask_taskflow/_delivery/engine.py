"""The engine: what it consists of, how it starts and stops.

A scheduler thread watches the clock and calls Redis: it claims, reports, keeps leases alive. Attempts run in
threads that are kept, at most ``CALLBACK_THREADS`` at a time. Two more tell what happened: one logs, one
calls the receivers of signals. So nothing that an app brings holds up a heartbeat, and no receiver the log.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from redis import RedisError

from .._checks import SCHEDULES, fits
from .._store.deliveries import NOBODY, DeliveryStore, Wanted
from .._store.keys import Consumer
from .asides import Asides
from .attempts import ReportOnce, Runner
from .housekeeping import Housekeeping
from .leases import HEARTBEAT, Leases, Presence
from .outbox import Outbox
from .places import Places
from .rota import Rota
from .running import ReportUntil, Running
from .scheduler import RETRY_MAX, Scheduler
from .telling import Teller
from .turns import Turns
from .watch import Watch

if TYPE_CHECKING:
    from flask import Flask

#: Whether Python starts threads while it waits, at its end, for those that run: 3.12 does not.
_STARTS_THREADS = sys.version_info[:2] != (3, 12)
#: While something waits that was claimed ahead, nobody says when its place was free: a look at it, seconds.
_GLANCE = 0.01
#: While the process ends, what is to be logged has at least so long, seconds.
_LAST_WORDS = 1.0
#: After a lost connection, how long the leases of others are let alone: until they tried again.
_GRACE = RETRY_MAX + HEARTBEAT


class EngineSettings(NamedTuple):
    """How one engine works; durations in seconds.

    :param threads: how many deliveries run at once.
    :param most_threads: how many may run with those that were written off and still run.
    :param ahead: whether deliveries are claimed while no place is free.
    :param queues: which queues are served, by names or patterns, ``None`` for all that the runner knows.
    :param lease: how long a delivery is kept unless that is extended.
    :param poll: the longest wait between two claims.
    :param redis_timeout: the longest wait for an answer of Redis.
    """

    threads: int
    most_threads: int
    ahead: bool
    queues: tuple[str, ...] | None
    lease: float
    poll: float
    redis_timeout: float


class Engine:
    """Run deliveries of one app in one process.

    :param app: whose context they run in.
    :param store: the engine's steps.
    :param runner: runs them.
    :param presence: tells whether this process and others can be seen to live.
    :param settings: how many at once, how long, how often.
    :param name: what the engine does, for the names of its threads.
    :param beside: returns the engines of this process that this one looks and tidies up for, too.
    """

    def __init__(
        self,
        app: Flask,
        store: DeliveryStore,
        runner: Runner,
        presence: Presence,
        settings: EngineSettings,
        *,
        name: str,
        beside: Callable[[], Sequence[Engine]] = tuple,
    ) -> None:
        self.name = name
        self._app, self._store, self._runner, self._settings = app, store, runner, settings
        self._outbox, self._signals = Outbox(), Teller(app, f"taskflow-{name}-signals")
        self._teller = Teller(app, f"taskflow-{name}-log", self._signals)
        self._asides = Asides(name, self._signals.put)
        self._scheduler = Scheduler(self, name, self._teller.put)
        report = ReportUntil(store, self._outbox, self._scheduler.stopped)
        self._running = running = Running(
            app=app, runner=runner, report=report, asides=self._asides, wake=self.wake
        )
        self._places = Places(name, running.work, self._place_is_free, settings)
        self._leases = Leases(store, presence, lease=settings.lease)
        self._rota = Rota(store.tag, poll=settings.poll)
        self._watch = Watch(self._places, running.time_out)
        self._turns = Turns(
            store=store,
            runner=runner,
            presence=presence,
            lease=settings.lease,
            rota=self._rota,
            places=self._places,
            outbox=self._outbox,
            teller=self._teller,
            leases=self._leases,
            end_lost=running.end_lost_soon,
            follows_ends=_follows_ends,
            beside=beside,
        )
        self._housekeeping = Housekeeping(engine=self, turns=self._turns)
        self._registered: set[str] = set()
        self._anew = True

    def start(self) -> None:
        """Start the scheduler thread."""
        self._rota.serve(self.served())
        self._scheduler.start()

    def register(self) -> None:
        """Say what is served before the first turn does: what ends from now on is followed."""
        # One that fails is tried again by that turn, which tells of it.
        with suppress(RedisError):
            self._runner.register(self.served())

    @property
    def runs(self) -> bool:
        """Whether its scheduler thread lives."""
        return self._scheduler.runs

    def wake(self, tag: str | None = None, *, called: bool = False) -> bool:
        """Claim at once: something may be due; false if this engine does not know where that is.

        :param tag: marks the queue; without one all are asked.
        :param called: whether this process alone was woken.
        """
        self._scheduler.supervise()
        self._anew = self._anew or tag is None
        known = self._rota.ring(tag, called=called)
        if known:
            self._scheduler.wake()
        return known

    def refresh(self) -> None:
        """Learn at once which queues there are, and claim."""
        self._housekeeping.stale = True
        self.wake()

    def resync(self) -> None:
        """Claim at once, but take over nothing yet: Redis was away, or this process was."""
        self._leases.reap_after(_GRACE)
        self._store.relist()
        self.refresh()

    def drain(self) -> None:
        """Claim nothing more."""
        self._turns.draining = True
        self._scheduler.wake()

    def stop(self, timeout: float, *, for_good: bool = False) -> None:
        """Claim nothing more, wait for what runs, at most ``timeout`` seconds.

        :param for_good: whether the process ends: what fails from then on is not counted.
        """
        deadline = time.monotonic() + timeout
        self.drain()
        if for_good and not _STARTS_THREADS:
            self._cut_off()
        self._places.wait_idle(timeout)
        # What ended has to get through, too.
        while self._outbox and self._scheduler.runs and time.monotonic() < deadline:
            time.sleep(0.002)
        try:
            if self._scheduler.stop(self._settings.redis_timeout + 1):
                with suppress(RedisError):
                    self._turns.take()
        finally:
            if for_good:
                self._cut_off()
            self._places.close(1.0)
            self._teller.stop(max(deadline - time.monotonic(), _LAST_WORDS))
            # What was reported until now has reached it.
            self._signals.stop(deadline - time.monotonic())

    def _cut_off(self) -> None:
        for attempt in self._places.running():
            attempt.cut_off = True

    def served(self, *, refresh: bool = False) -> Mapping[str, Sequence[str]]:
        """Return the queues that are served, the runner's or fewer, each with the names of its deliveries.

        :param refresh: whether Redis is asked which queues there are.
        """
        served = self._runner.refresh() if refresh else self._runner.served()
        wanted = self._settings.queues
        return {queue: names for queue, names in served.items() if wanted is None or fits(queue, wanted)}

    def run_due(self) -> int:
        """Run what is due in this thread, most urgent first; return the number of attempts."""
        count, report, waiting = 0, ReportOnce(self._store), dict(self._known())
        for queue, names in waiting.items():
            if _follows_ends(names):
                with self._turns.isolated(queue):
                    while self._store.trim(queue, ()):
                        pass
        if SCHEDULES in waiting:
            self._housekeeping.tick(anew=True)
        while waiting:
            # In turn, so that no queue waits until another is empty.
            for queue, names in list(waiting.items()):
                claim = self._store.turn(queue, names, (), Wanted(1, 1), owner=NOBODY)
                if claim.dead:
                    self._running.end_lost(claim.dead)
                for item in claim.deliveries:
                    attempt = self._runner.begin(item)
                    attempt.started = time.monotonic()
                    with self._app.app_context():
                        self._runner.execute(attempt, report)
                    count += 1
                if not (claim.deliveries or claim.again or claim.left):
                    del waiting[queue]
        return count

    def _known(self) -> Mapping[str, Sequence[str]]:
        """Return the queues that are served, once Redis knows that they are."""
        served = self.served(refresh=True)
        new = served.keys() - self._registered
        if new or not self._registered:
            self._store.processes.tell_keys()
        if new:
            self._runner.register({queue: served[queue] for queue in new})
            self._registered |= new
            # What others call the same callbacks is known only now.
            served = self.served()
        return served

    def turn(self) -> float:
        """Do what is due: the scheduler's chores; return the seconds until something is again."""
        now, keeping = time.monotonic(), self._housekeeping
        self._watch.look(now)
        self._signals.look(now)
        if now >= self._leases.extend_at and (ours := self._turns.attempts()):
            self._leases.extend(ours)
        if keeping.stale or now >= keeping.next_at:
            keeping.keep(now)
        draining, places = self._turns.draining, self._places
        self._turns.give_back(places.take_back() if draining else places.take_back_if_lying())
        self._turns.take()
        self._asides.retry()
        if draining:
            return HEARTBEAT / 4
        next_tick = math.inf
        if SCHEDULES in self._rota.served:
            # After what frees memory: a tick wants some.
            anew, self._anew = self._anew, False
            next_tick = keeping.tick(anew=anew)
        if now >= self._leases.look_at:
            self._turns.take_over()
        chores = 0.0 if keeping.stale else min(keeping.next_at, self._leases.look_at)
        soonest = min(self._rota.next_at, self._turns.next_at, next_tick, chores)
        if self._turns.attempts():
            soonest = min(soonest, self._leases.extend_at, self._watch.next_at)
        wait = max(soonest - time.monotonic(), 0.0)
        return min(wait, _GLANCE) if places.any_waits else wait

    def lost(self, wait: float) -> None:
        """Take note that Redis is away, and is tried again in a while."""
        # Living owners could not renew their leases either.
        self._leases.reap_after(wait + _GRACE)
        self._leases.extend_soon()
        self._rota.ring(None)

    def tell(self, due: Mapping[str, float], looked: float) -> None:
        """Take note of what another engine saw in this one's queues, and that it tidied up there.

        :param due: when something is due, by queue.
        :param looked: when that was, by the monotonic clock.
        """
        self._rota.tell(due, looked)
        self._housekeeping.done_for(looked)
        if due.keys() - self._rota.served.keys():
            # Another process has listed a queue since.
            self._housekeeping.stale = True
        if due:
            self._scheduler.wake()

    def _place_is_free(self) -> None:
        if self._places.wants_more:
            self._scheduler.wake()


def _follows_ends(names: Sequence[str]) -> bool:
    """Tell whether some of these stand for what follows other ends than a verification."""
    return any(isinstance(name, Consumer) and name.ending for name in names)
