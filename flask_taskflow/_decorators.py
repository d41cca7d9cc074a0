"""What an app registers by decorators, before or after ``init_app``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from ._calls import Calls
from ._checks import SCHEDULES, check_name, in_seconds, shown
from ._delivery.callbacks import Callback, add_callback
from ._delivery.schedules import Schedule, asking
from ._delivery.timing import Every, read_timing, read_zone
from ._new_task import NewTask
from ._store.records import Issued
from ._tasks import Status
from .errors import ConfigError, InvalidTask

#: The ends of a task but that by its code.
_ENDS = tuple(status.value for status in Status if status not in (Status.PENDING, Status.SUCCESS))

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Decorators(Calls):
    """The decorators; :class:`~flask_taskflow.TaskFlow` has them."""

    _callbacks: dict[str, dict[str, Callback]]

    def on_task_ended(
        self,
        queue: str,
        *,
        statuses: Iterable[str],
        name: str | None = None,
        max_attempts: int = 3,
        backoff_strategy: str = "fixed",
        backoff_time: float | timedelta = 1.0,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a callback: run it, in one process of the fleet, for each task of a queue that ends so.

        It is as durable as one of :meth:`on_task_verified`, whose other arguments it takes. A task that
        ``FAILED`` may be revived by a resend, and end again; or end once more as ``CANCELLED``.

        :param queue: whose tasks.
        :param statuses: which of ``EXPIRED``, ``LOCKED``, ``CANCELLED``, ``FAILED`` and ``REJECTED``. It runs
            within ``TASKFLOW_POLL`` of the time when a task expires.
        :raises ConfigError: for a bad argument, or a name that another one of the queue has already.
        """
        if callable(queue):
            raise ConfigError("name the queue: @taskflow.on_task_ended('transfers', statuses=...)")
        wanted = (statuses,) if isinstance(statuses, str) else _listed(statuses)
        if not wanted or any(status not in _ENDS for status in wanted):
            raise ConfigError(f"statuses must be some of {', '.join(_ENDS)}, not {shown(statuses)}")

        def register(function: FunctionT) -> FunctionT:
            chosen, wait = queue if name is None else name, _seconds(backoff_time)
            callback = Callback(
                queue, chosen, function, max_attempts, backoff_strategy, wait, statuses=wanted
            )
            add_callback(self._callbacks.setdefault(queue, {}), callback)
            return function

        return register

    def on_schedule(
        self,
        when: str | Every,
        *,
        name: str,
        timezone: str = "UTC",
        catch_up: str = "latest",
        jitter: float | timedelta = 0.0,
        confirm: str | None = None,
        max_attempts: int = 3,
        backoff_strategy: str = "fixed",
        backoff_time: float | timedelta = 1.0,
        timeout: float | timedelta | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a schedule: run a function, in one process of the fleet, at each tick.

        The function is called with the tick, an aware ``datetime``: the time that the run is for.

        :param when: five fields of cron, such as ``"0 9 * * MON"``; or ``@hourly``, ``@daily``, ``@weekly``,
            ``@monthly``, ``@yearly``; or :func:`~flask_taskflow.every`. All but that need the extra
            ``[schedule]``.
        :param name: the same in every release.
        :param timezone: whose clock an expression means, as ``"Europe/Paris"``.
        :param catch_up: which ticks run that were missed, since no process was there: ``"latest"``, one;
            ``"none"`` that is more than 10 seconds late; or ``"all"``, of many the last 100.
        :param jitter: seconds; each run begins up to so much later, at random.
        :param confirm: a queue. The function returns arguments of :meth:`add_task`, or ``None``; the task is
            added once a tick, and what it is for is done by the queue's callback.
        :param max_attempts: failures until the run is a dead letter; this and the backoff are as for
            :meth:`on_task_verified`.
        :param timeout: seconds for one attempt, default ``TASKFLOW_JOB_TIMEOUT``.
        :raises ConfigError: for a bad argument, a date that never comes, a zone without data, a name that
            there is already, or without the extra.
        """
        zone = read_zone(timezone)
        timing = read_timing(when, zone)

        def register(function: FunctionT) -> FunctionT:
            runs: Callable[[Any], object] = function
            if confirm is not None:
                runs = asking(_check_queue(confirm), function, add=self._add, resend=self.resend_otp)
            schedule = Schedule(
                SCHEDULES, name, runs, max_attempts, backoff_strategy, _seconds(backoff_time),
                timing=timing, zone=zone, catch_up=catch_up, jitter=_seconds(jitter),
                timeout=None if timeout is None else _seconds(timeout),
            )  # fmt: skip
            add_callback(self._callbacks.setdefault(SCHEDULES, {}), schedule)
            return function

        return register

    def _add(self, **options: Any) -> Issued:
        """Add a task; tell whether it was there before."""
        return self._service().add_task(NewTask(**options))


def _check_queue(queue: object) -> str:
    try:
        return check_name(queue, "the queue of confirm=")
    except InvalidTask as error:
        raise ConfigError(str(error)) from None


def _listed(value: object) -> tuple[Any, ...]:
    """Return what a list has, or nothing."""
    return tuple(value) if isinstance(value, Iterable) else ()


def _seconds(value: Any) -> Any:
    """Return a duration in seconds, or what is none as it is: it is refused where it is used."""
    seconds = in_seconds(value)
    return value if seconds is None else seconds
