"""What an operator does to the fleet, in Python; the commands and the dashboard are thin over it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .. import _journal
from .._checks import SCHEDULES, check_seconds
from .._course import CourseEntry
from .._delivery.schedules import Schedule
from .._erasure import erase
from .._people import find
from .._service import Service
from .._store.keys import delivery_id, read_delivery_id
from .._store.operations import Placed, QueueStats
from .._store.records import tick_id, time_of
from .._store.schedules import NEW
from .._tasks import Task
from ..errors import TargetNotFound

#: Stands for all queues where one may be paused or resumed.
EVERY = "*"
_MANY = 1_000_000
_PAUSE_MAX = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class ScheduleStats:
    """How a schedule stands.

    :param name: its name.
    :param when: its cron expression or ``every(...)``; ``None`` if this process does not have it.
    :param timezone: whose clock the expression means; ``None`` likewise.
    :param paused: whether it does not tick.
    :param ticks: the next ones, five if this process has it.
    :param last: the last tick that ran or is to run, ``None`` if there was none.
    :param outcome: of that one: ``ready``, ``delayed``, ``running``, ``dead`` or ``done``.
    :param by_hand: when it was run by hand last, ``None`` if it never was.
    :param by_hand_outcome: of that run.
    """

    name: str
    when: str | None
    timezone: str | None
    paused: bool
    ticks: Sequence[datetime]
    last: datetime | None
    outcome: str | None
    by_hand: datetime | None = None
    by_hand_outcome: str | None = None


class Operations:
    """The operator's calls on one app. Each that changes something is in the audit log.

    :param service: the app's.
    :param by: who acts, for the audit log.
    """

    def __init__(self, service: Service, *, by: str = "app") -> None:
        self._service = service
        self._store = service.operations
        self._schedules = service.runtime.engines.schedules
        self._by = by

    def queues(self) -> list[str]:
        """Return the names of all queues that were ever used.

        :raises redis.RedisError: if Redis did not answer; so do all of these.
        """
        return self._store.queues()

    def stats(self, queue: str | None = None) -> list[QueueStats]:
        """Count the tasks and deliveries of one queue, or of each.

        :raises TargetNotFound: if there is no such queue.
        """
        return [self._store.stats(name) for name in self._names(queue)]

    def dead(
        self, queue: str | None = None, *, callback: str | None = None, error: str = "", count: int = 100
    ) -> list[Placed]:
        """Return dead letters of one queue, or of each, of each callback the newest first.

        :param callback: only those of this one.
        :param error: only those whose error has this text in it.
        :param count: so many of each callback at most.
        :raises TargetNotFound: if there is no such queue or callback.
        """
        return [item for name in self._names(queue) for item in self._dead(name, callback, error, count)]

    def history(self, task_id: str) -> list[CourseEntry]:
        """Return what happened to a task, as ``get_course`` does.

        :raises TaskNotFound: if there is no such task, or it was forgotten.
        """
        return self._service.get_course(task_id)

    def find(self, person: str) -> list[Task[Any]]:
        """Return the tasks of an address or an owner that are kept, in all queues, the newest first.

        A task is found by the addresses that it has now, however they are spelt.

        :param person: an e-mail address, a telephone number, a device's id or an owner, as tasks have it.
        :return: the tasks, none if nobody is known by that.
        :raises InvalidTask: if it can be none of these.
        """
        return find(self._service, person)

    def replay(self, delivery: str) -> None:
        """Let a dead letter run again.

        :param delivery: its id, ``<task id>:<callback>``.
        :raises TargetNotFound: if it is no dead letter.
        """
        self._one("replay", delivery)

    def discard(self, delivery: str) -> None:
        """Forget a dead letter.

        :param delivery: its id, ``<task id>:<callback>``.
        :raises TargetNotFound: if it is no dead letter.
        """
        self._one("discard", delivery)

    def replay_all(
        self, queue: str, callback: str | None = None, error: str = "", before: datetime | None = None
    ) -> int:
        """Let dead letters of a queue run again; return how many.

        :param callback: only those of this one.
        :param error: only those whose error has this text in it.
        :param before: only those that died before, an aware time. What dies meanwhile is left alone.
        :raises TargetNotFound: if there is no such queue or callback.
        """
        return self._all("replay", queue, callback, error, before)

    def discard_all(
        self, queue: str, callback: str | None = None, error: str = "", before: datetime | None = None
    ) -> int:
        """Forget dead letters of a queue; return how many. It takes what :meth:`replay_all` takes.

        :raises TargetNotFound: if there is no such queue or callback.
        """
        return self._all("discard", queue, callback, error, before)

    def pause(self, queue: str, *, seconds: float | timedelta | None = None) -> list[str]:
        """Hold the callbacks of a queue; return which queues that were.

        :param queue: its name, or ``"*"`` for all, those to come, too. That is a layer of its own: to resume
            all resumes none that was paused by its name.
        :param seconds: for how long; by default until it is resumed.
        :raises InvalidTask: if that is no time.
        :raises TargetNotFound: if there is no such queue.
        """
        lasts = None if seconds is None else check_seconds(seconds, "seconds", maximum=_PAUSE_MAX)
        ends = 0 if lasts is None else self._store.now() + int(lasts * 1000)
        if queue == EVERY:
            held = self._store.pause_all(ends)
        else:
            held = self._names(queue)
            self._store.pause(queue, ends)
        self._tell("pause", queue, seconds=lasts)
        return held

    def resume(self, queue: str) -> list[str]:
        """Let the callbacks of a queue run again; return which queues are still held.

        :param queue: its name, or ``"*"`` to undo that.
        :raises TargetNotFound: if there is no such queue.
        """
        if queue == EVERY:
            names = self._store.resume_all()
        else:
            names = self._names(queue)
            self._store.resume(queue)
        self._tell("resume", queue)
        return [name for name in names if self._store.is_paused(name)]

    def purge(self, queue: str, callback: str | None = None) -> int:
        """Forget the deliveries of a queue that wait, or only those of one callback; return how many.

        :raises TargetNotFound: if there is no such queue or callback.
        """
        self._check_callback(queue, callback)
        count = self._store.purge(queue, callback)
        self._tell("purge", queue, callback, count=count)
        return count

    def move(self, queue: str, old: str, new: str) -> int:
        """Give what waits and what is dead of one callback to another, as after a rename; return how many.

        What the other one has of the same task already, or is done with, stays; the latter is known while the
        task is kept.

        :raises TargetNotFound: if there is no such queue or callback.
        """
        for name in (old, new):
            self._check_callback(queue, name)
        count = self._store.move(queue, old, new)
        self._tell("move", queue, old, to=new, count=count)
        return count

    def cancel(self, task_id: str) -> None:
        """End a pending task; its codes are worth nothing any more.

        :raises OTPRejected: if it is not pending.
        """
        task = self._service.cancel_task(task_id)
        self._tell("cancel", task.queue, task_id=task_id)

    def erase(self, task_id: str) -> list[str]:
        """Erase what is kept of a task, as ``taskflow.erase`` does; return the deliveries that stay.

        :raises TaskNotFound: if nothing is kept of it.
        """
        queue = self._store.queue_of(task_id)
        left = erase(self._service, task_id, None)
        self._tell("erase", queue or "", task_id=task_id)
        return left

    def schedules(self) -> list[ScheduleStats]:
        """Return how each schedule stands of which this process or Redis knows."""
        own, standings = self._service.callbacks.get(SCHEDULES, {}), self._schedules.all()
        now = self._store.now()
        found = []
        for name in sorted({*own, *standings}):
            definition, standing = own.get(name), standings.get(name)
            state = (standing and standing.state) or NEW
            ticks = [time_of(state.tick)] if state.tick else []
            if isinstance(definition, Schedule):
                before = state.tick - 1 if state.digest == definition.digest else now
                ticks = definition.next_ticks(before, 5)
            found.append(
                ScheduleStats(
                    name,
                    definition.timing.text if isinstance(definition, Schedule) else None,
                    str(definition.zone) if isinstance(definition, Schedule) else None,
                    bool(standing and standing.paused),
                    ticks,
                    time_of(state.last) if state.last else None,
                    self._outcome(name, tick_id(state.last)) if state.last else None,
                    *self._run_by_hand(name, standing.hand if standing else ""),
                )
            )
        return found

    def _run_by_hand(self, name: str, tick: str) -> tuple[datetime | None, str | None]:
        # Somebody else may have written there.
        with suppress(ValueError):
            return datetime.fromisoformat(tick), self._outcome(name, tick)
        return None, None

    def _outcome(self, name: str, tick: str) -> str:
        found = self._store.find(SCHEDULES, name, tick)
        return found.state if found else "done"

    def pause_schedule(self, name: str) -> None:
        """Let a schedule not tick; what ticked already runs.

        :raises TargetNotFound: if there is no such schedule.
        """
        self._schedules.pause(self._schedule(name))
        self._tell("pause_schedule", SCHEDULES, name)

    def resume_schedule(self, name: str) -> None:
        """Let a paused schedule tick again, within half a minute. It catches up on what it missed.

        :raises TargetNotFound: if there is no such schedule.
        """
        self._schedules.resume(self._schedule(name))
        self._tell("resume_schedule", SCHEDULES, name)

    def run_schedule(self, name: str) -> str:
        """Let a schedule run once besides its ticks, within the poll of its workers.

        :return: the delivery's id, ``<schedule>:<tick>``; the tick is now.
        :raises TargetNotFound: if there is no such schedule.
        """
        tick = self._schedules.run(self._schedule(name))
        self._tell("run_schedule", SCHEDULES, name, task_id=tick)
        return delivery_id(name, tick)

    def _schedule(self, name: str) -> str:
        known = {*self._service.callbacks.get(SCHEDULES, {}), *self._schedules.all()}
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise TargetNotFound(f"there is no schedule {name}; there are: {there}")
        return name

    def _names(self, queue: str | None) -> list[str]:
        known = self._store.queues()
        if queue is not None and queue not in known:
            raise TargetNotFound(unknown_queues([queue], known))
        return known if queue is None else [queue]

    def _check_callback(self, queue: str, callback: str | None) -> None:
        self._names(queue)
        known = [name for name in self._store.names(queue) if not name.method]
        if callback is not None and callback not in known:
            there = ", ".join(known) or "none"
            raise TargetNotFound(f"{queue} has no callback {callback}; it has: {there}")

    def _check_consumer(self, queue: str, callback: str | None) -> None:
        """Check that there is a callback, or a method by ``@`` and its name."""
        if callback is not None and callback not in self._store.names(queue):
            self._check_callback(queue, callback)

    def _dead(self, queue: str, callback: str | None, error: str, count: int) -> Iterator[Placed]:
        self._check_consumer(queue, callback)
        return self._store.dead(queue, count, name=callback, error=error)

    def _one(self, action: str, delivery: str) -> None:
        task_id, name = read_delivery_id(delivery)
        queue = SCHEDULES if ":" in task_id else self._store.queue_of(task_id)
        if queue is None or not name or not self._do(action, queue, name, task_id):
            raise TargetNotFound(
                f"{delivery} is no dead letter: `flask taskflow dead` lists them, each as `<task>:<callback>`"
            )
        self._tell(action, queue, name, task_id=task_id, count=1)

    def _do(self, action: str, queue: str, name: str, *task_ids: str) -> int:
        step = self._store.replay if action == "replay" else self._store.discard
        return step(queue, name, *task_ids)

    def _all(self, action: str, queue: str, callback: str | None, error: str, before: datetime | None) -> int:
        self._names(queue)
        self._check_consumer(queue, callback)
        # What runs again may die again: that is for another time.
        by = float(self._store.now()) if before is None else before.timestamp() * 1000 - 1
        total = 0
        for name in self._store.names(queue) if callback is None else [callback]:
            dead = list(self._store.dead(queue, _MANY, name=name, error=error, by=by))
            total += self._do(action, queue, name, *(read_delivery_id(item.id)[0] for item in dead))
        self._tell(f"{action}_all", queue, callback, error=error, count=total)
        return total

    def _tell(
        self, action: str, queue: str, callback: str | None = None, *, task_id: str = "", **fields: object
    ) -> None:
        told = {"callback": callback, **fields}
        given = {name: value for name, value in told.items() if value not in (None, "")}
        _journal.operated(action, by=self._by, task_id=task_id, queue=queue, **given)


def close_to(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the names, of those that are, that some others may stand for."""
    return sorted({match for name in names for match in difflib.get_close_matches(name, known, cutoff=0.7)})


def unknown_queues(names: Sequence[str], known: Collection[str]) -> str:
    """Return what to say of queues that are not there: close names, and those that are.

    :param names: one at least.
    :param known: those that are.
    """
    close = close_to(names, known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    there = ", ".join(sorted(known)) or "none"
    return f"there is no queue {', '.join(names)}; there are: {there}{hint}"
