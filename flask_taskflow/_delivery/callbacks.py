"""Callbacks: what they are, and how one attempt at a delivery to one runs."""

from __future__ import annotations

import inspect
import logging
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from flask import current_app

from .. import _journal as journal
from .._checks import SCHEDULES, check_name, check_seconds
from .._inert import inert
from .._interrupts import end_child, is_a, is_interrupt
from .._log import Logger
from .._store.deliveries import DeliveryStore, End
from .._store.keys import Consumer
from .._store.records import Claimed
from .._store.registrations import Registration
from ..errors import ConfigError, InvalidTask, Reject
from .attempts import (
    BACKOFFS,
    Attempt,
    Delivery,
    Report,
    Ticks,
    asked_after,
    compute_backoff,
    lost_text,
    own_place,
    running,
    said_by,
)

logger = Logger(__name__)


@dataclass(frozen=True, slots=True)
class Callback:
    """A function that runs, in one process of the fleet, after a task was verified, or ended in another way.

    :param queue: whose tasks.
    :param name: unique in the queue, the same in every release that should serve its deliveries.
    :param function: called with the task, or what else :meth:`argument` returns.
    :param max_attempts: runs until it counts as dead.
    :param backoff_strategy: ``fixed``, ``linear`` or ``exponential``.
    :param backoff_time: seconds, the base of the backoff.
    :param aliases: names that it had in earlier releases.
    :param max_running: how many may run at once in the fleet, ``None`` for any number.
    :param statuses: the ends that it follows, none for a verification.
    """

    queue: str
    name: str
    function: Callable[[Any], object]
    max_attempts: int = 3
    backoff_strategy: str = "fixed"
    backoff_time: float = 1.0
    aliases: tuple[str, ...] = ()
    max_running: int | None = None
    statuses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_function(self.function)
        try:
            self._check_queue()
            for name in (self.name, *self.aliases):
                check_name(name, "a callback's name or alias")
            check_seconds(self.backoff_time, "backoff_time", maximum=30 * 86400)
        except InvalidTask as error:
            raise ConfigError(str(error)) from None
        if self.backoff_strategy not in list(BACKOFFS):
            raise ConfigError(
                f"backoff_strategy of {self.name} must be one of {sorted(BACKOFFS)}, "
                f"not {self.backoff_strategy!r}"
            )
        most = 1 if self.max_running is None else self.max_running
        for what, number in (("max_attempts", self.max_attempts), ("max_running", most)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{what} of {self.name} must be an integer from 1")

    def _check_queue(self) -> None:
        check_name(self.queue, "a queue")

    def argument(self, item: Claimed) -> object | None:
        """Return what the function is called with, ``None`` if that was changed from outside."""
        return item.task

    def time_limit(self, item: Claimed, default: float) -> float:
        """Return how many seconds an attempt may take.

        :param default: as configured, for what says nothing of it itself.
        """
        return item.task.timeout if item.task else math.inf

    @property
    def consumer(self) -> str:
        """What its deliveries stand under."""
        return Consumer.following(self.name) if self.statuses else self.name

    def is_another(self, other: Callback) -> bool:
        """Tell whether another function is meant: a factory that runs again defines the same one anew."""
        return _place_of(self.function) != _place_of(other.function)


def _place_of(function: Callable[..., object]) -> object:
    """Return where a function is written; what has no code of its own is only itself."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return function if code is None else (code.co_filename, code.co_firstlineno, code.co_qualname)


def _check_function(function: Callable[..., object]) -> None:
    if _runs_later(function):
        raise ConfigError("a callback must be a plain function: a coroutine or generator would never run")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ConfigError("a callback is called with one argument: the task, or the tick") from None
    except ValueError:
        # Some built-in functions do not tell their arguments.
        return


def _runs_later(function: object) -> bool:
    """Tell whether a call only makes what would have to be run then: a coroutine or a generator."""
    while isinstance(function, partial):
        function = function.func
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    meant = (function, inspect.unwrap(cast(Any, function)), type(function).__dict__.get("__call__"))
    return any(kind(each) for kind in kinds for each in meant)


def _check_result(result: object) -> None:
    """Refuse what a decorated coroutine function returned without having run."""
    if inspect.isawaitable(result) or inspect.isasyncgen(result) or inspect.isgenerator(result):
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
        raise TypeError(f"the callback returned a {type(result).__name__}, which nobody runs")


def add_callback(known: dict[str, Callback], callback: Callback) -> None:
    """Add a callback to those of its queue, or put the same function, defined anew, in its place.

    :raises ConfigError: if another callback has one of its names, or is meant by the queue's name.
    """
    queue = callback.queue
    for other in known.values():
        # What follows other ends has names of its own.
        if bool(other.statuses) != bool(callback.statuses) or not callback.is_another(other):
            continue
        if queue in (callback.name, other.name):
            raise ConfigError(
                f"queue {queue} has more than one callback: set name=... of each, the same in every release"
            )
        if taken := {callback.name, *callback.aliases} & {other.name, *other.aliases}:
            raise ConfigError(f"queue {queue} has a callback {min(taken)} already: set another name=...")
    known[callback.consumer] = callback


class CallbackRunner:
    """Run attempts of one app's callbacks and schedules, and report how they ended.

    :param store: takes the reports.
    :param callbacks: queue -> name -> callback, read anew at each turn.
    :param ticks: those of the schedules.
    :param backoff_max: the longest wait after a failed attempt, in seconds.
    :param timeout: seconds that an attempt may take which says nothing of it itself.
    """

    def __init__(
        self,
        store: DeliveryStore,
        callbacks: Mapping[str, Mapping[str, Callback]],
        ticks: Ticks,
        *,
        backoff_max: float,
        timeout: float,
    ) -> None:
        self._store, self.ticks = store, ticks
        self._backoff_max, self._timeout = backoff_max, timeout
        self._callbacks = callbacks
        #: By queue, what Redis knew of at any time: (old name, new name).
        self._renamings: dict[str, frozenset[tuple[str, str]]] = {}

    def served(self) -> Mapping[str, Sequence[str]]:
        """Return the queues that have callbacks, each with all the names that these have, sorted."""
        return {queue: sorted(self._consumers(queue)) for queue in list(self._callbacks)}

    def _consumers(self, queue: str) -> list[str]:
        return [
            Consumer(name, each.max_running or 0, of=each.consumer)
            if each.max_running or each.statuses
            else name
            for name, each in self._by_name(queue).items()
        ]

    def refresh(self) -> Mapping[str, Sequence[str]]:
        """Return the same: callbacks are known from their registration on."""
        return self.served()

    def register(self, served: Mapping[str, Sequence[str]]) -> list[str]:
        """Say in Redis which callbacks of some queues this process has, and hear of their newer names."""
        own = {queue: Registration.of(self._callbacks.get(queue, {})) for queue in served}
        found = self._store.register(own, served)
        for queue, (registration, _) in found.items():
            # Redis may have been emptied: what was claimed under a newer name must end under it.
            self._renamings[queue] = self._renamings.get(queue, frozenset()) | registration.renamings()
        return [queue for queue, (_, over) in found.items() if over]

    def _by_name(self, queue: str) -> dict[str, Callback]:
        """Return a queue's callbacks by all their names: also by those of earlier and later releases."""
        own = self._callbacks[queue]
        newer = {new: own[old] for old, new in self._renamings.get(queue, ()) if old in own}
        older = {alias: callback for callback in own.values() for alias in callback.aliases}
        return {**newer, **older, **own}

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""
        return Attempt(item, self._callback(item).time_limit(item, self._timeout))

    def execute(self, attempt: Attempt, report: Report) -> None:
        """Run a callback once in this thread and report how it ended."""
        item, callback = attempt.item, self._callback(attempt.item)
        argument = callback.argument(item)
        if argument is None:
            self.fail(attempt, Reject("tampered: changed in Redis from outside"), report)
            return
        error = self._run(item, partial(callback.function, argument))
        if error is not None:
            self.fail(attempt, error, report)
            return
        attempt.reported = True
        report.end(attempt, End(item, "ack"), partial(self._tell_done, item))

    def _tell_done(self, item: Claimed, accepted: bool) -> None:
        if accepted:
            journal.callback_succeeded(**_told_of(item))
            return
        logger.warning("%s succeeded, but its delivery was lost or taken: it may run twice.", item)

    def _run(self, item: Claimed, function: Callable[[], object]) -> BaseException | None:
        """Call a callback in an app context of its own; return what it raised.

        The context is torn down before anybody hears how it ended, and its teardown functions are given the
        error. One of them that raises fails the attempt.
        """
        app, mark = cast(Any, current_app)._get_current_object(), running.set(_delivery_of(item))
        try:
            with app.app_context():
                process = os.getpid()
                try:
                    result = function()
                finally:
                    if os.getpid() != process:
                        end_child()
                _check_result(result)
        except BaseException as error:
            if is_interrupt(error):
                raise
            # SystemExit, CancelledError, gevent.Timeout: whatever ends an attempt is how it failed.
            return error
        finally:
            running.reset(mark)
        return None

    def fail(self, attempt: Attempt, error: BaseException, report: Report) -> None:
        """Report a failed attempt: again later, or a dead letter."""
        item, callback = attempt.item, self._callback(attempt.item)
        if attempt.cut_off:
            # Python refuses it a thread by now, or has taken its modules apart.
            report.end(attempt, End(item, "release"), _ignore)
            return
        failures, text, place = item.failures + 1, _text_of(error), own_place(error)
        # The text may hold data of the task: its course tells no more than this.
        cause, line = type(error).__name__, inert(f"{place.module}:{place.line}") if place else ""
        shown = f"{text} (at {line})" if place else text
        stored = f"{text} (at {place})" if place else text
        attempt.reported = True
        over = is_a(error, Reject) or failures >= callback.max_attempts
        if over or callback.argument(item) is None:
            tell = partial(self._tell_failed, item, error, f"{shown}; it is a dead letter", True)
            report.end(attempt, End(item, "bury", error=stored, cause=cause, place=line), tell)
        else:
            delay = self._delay(callback, failures, error)
            tell = partial(self._tell_failed, item, error, f"{shown}; next in {delay:.3g} s", False)
            report.end(attempt, End(item, "fail", delay, stored, cause, line), tell)

    def _tell_failed(
        self, item: Claimed, error: BaseException, what: str, last: bool, accepted: bool
    ) -> None:
        """Tell of a failed attempt."""
        if not accepted:
            logger.info("%s failed after that was reported: it is void.", item)
            return
        logger.log(
            logging.ERROR if last else logging.WARNING,
            "%s failed, attempt %d of %d: %s.",
            item,
            item.failures + 1,
            self._callback(item).max_attempts,
            what,
            exc_info=error if last else None,
        )
        if last:
            self._tell_dead(item, error)
        else:
            journal.callback_failed(**_told_of(item), error=error)

    def _delay(self, callback: Callback, failures: int, error: BaseException) -> float:
        after = asked_after(error)
        if after is not None:
            return after
        strategy, base = callback.backoff_strategy, callback.backoff_time
        return compute_backoff(strategy, base, failures, cap=self._backoff_max)

    def end_lost(self, item: Claimed) -> None:
        """Tell of a delivery that was lost with its process too often."""
        error = RuntimeError(lost_text(item))
        logger.error("%s is dead: %s.", item, error)
        self._tell_dead(item, error)

    def _tell_dead(self, item: Claimed, error: BaseException) -> None:
        journal.callback_dead(**_told_of(item), error=error)
        if (tick := self._callback(item).argument(item)) is not None and item.tick:
            journal.schedule_dead(item.callback, tick, _delivery_of(item), error)

    def _callback(self, item: Claimed) -> Callback:
        return self._by_name(item.queue)[item.callback]


def _delivery_of(item: Claimed) -> Delivery:
    attempt = item.failures + item.lost + item.spared + 1
    parts = (item.callback, item.task_id) if item.queue == SCHEDULES else (item.task_id, item.callback)
    return Delivery(":".join(parts), attempt, item.failures, item.token)


def _told_of(item: Claimed) -> dict[str, Any]:
    """Return what is told of every attempt."""
    return {
        "task_id": item.task_id,
        "task": item.task,
        "queue": item.queue,
        "callback": item.callback,
        "delivery": _delivery_of(item),
    }


def _ignore(accepted: bool) -> None:
    """Tell nobody."""


def _text_of(error: BaseException) -> str:
    # One line for the log and the operator, whatever the app put into the error.
    try:
        text = "".join(traceback.format_exception_only(error))
    except BaseException:
        # It asks for attributes, which the app's code may make up.
        text = f"{type(error).__name__}: {said_by(error)}"
    return inert(text.strip())
