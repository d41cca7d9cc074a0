"""Remind an app of tasks that are about to end: the signal ``task_expiring``.

The reminders of a task are one delivery, run as those of callbacks are, in processes that have receivers.
"""

from __future__ import annotations

import time
from functools import partial

from .. import _journal as journal
from .._log import Logger
from .._store.deliveries import DeliveryStore, End
from .._store.keys import REMINDERS
from .._store.queues import Queues
from .._store.records import Claimed
from .._store.reminders import Reminder, ReminderStore
from ..errors import KeyMissing, TaskTampered
from .all_queues import AllQueues
from .attempts import Attempt, Report, lost_text

logger = Logger(__name__)

#: Seconds until a reminder is tried again of which nobody heard.
_AGAIN = 1.0


class ReminderRunner(AllQueues):
    """Call the receivers of ``task_expiring``, and wait for a task's next reminder.

    :param reminders: tells what is due.
    :param deliveries: takes the reports.
    :param queues: the queues that are served.
    :param timeout: seconds that the receivers may take.
    :param max_lost: how often a reminder may be lost with its process.
    """

    def __init__(
        self,
        reminders: ReminderStore,
        deliveries: DeliveryStore,
        queues: Queues,
        *,
        timeout: float,
        max_lost: int,
    ) -> None:
        super().__init__(REMINDERS, queues, deliveries)
        self._reminders = reminders
        self._timeout, self._max_lost = timeout, max_lost
        self._telling: set[Attempt] = set()

    def begin(self, item: Claimed) -> Attempt:
        """Return an attempt that begins now."""
        return Attempt(item, self._timeout)

    def execute(self, attempt: Attempt, report: Report) -> None:
        """Tell that a task is about to end, if it is."""
        item = attempt.item
        try:
            reminder = self._look(item, report)
        except KeyMissing as error:
            report(partial(self._deliveries.leave, item, error.fingerprint))
            return
        looked = time.monotonic()
        if attempt.written_off:
            # Redis was away for so long; the next attempt is another's.
            return
        if item.lost > self._max_lost:
            self.end_lost(item)
            reminder = None
        elif reminder is not None and reminder.due:
            self._tell(attempt, reminder)
        attempt.reported = True
        report.end(attempt, _end(item, reminder, looked, looked), _ignore)

    def _tell(self, attempt: Attempt, reminder: Reminder) -> None:
        self._telling.add(attempt)
        try:
            journal.task_expiring(reminder.task, reminder.left)
        finally:
            self._telling.discard(attempt)

    def fail(self, attempt: Attempt, error: BaseException, report: Report) -> None:
        """Go on to the next reminder if a receiver hangs, since others heard of this one; or try again."""
        attempt.reported = True
        if attempt not in self._telling:
            # Redis was away for so long, or the app has no context now.
            report.end(attempt, End(attempt.item, "release", _AGAIN), _ignore)
            return
        logger.error("A receiver of task_expiring for task %s %s.", attempt.item.task_id, error)
        reminder = self._look(attempt.item, report)
        report.end(attempt, _end(attempt.item, reminder, attempt.started, time.monotonic()), _ignore)

    def end_lost(self, item: Claimed) -> None:
        """Tell of reminders that were lost with their process too often."""
        logger.error("The reminders of task %s end here: %s.", item.task_id, lost_text(item))

    def _look(self, item: Claimed, report: Report) -> Reminder | None:
        try:
            return report(partial(self._reminders.look, item.task_id))
        except TaskTampered:
            # Who tampered with the task was told of where it was noticed.
            return None


def _end(item: Claimed, reminder: Reminder | None, told: float, looked: float) -> End:
    """Return how a reminder ends: the task's next one waits until it is due.

    :param told: when the app was reminded, by the monotonic clock.
    :param looked: when the task was read.
    """
    wait = None if reminder is None else reminder.next_in(reminder.left + looked - told)
    if wait is None:
        return End(item, "ack")
    # A little late rather than early: then it would be the one before.
    return End(item, "release", max(wait - (time.monotonic() - looked), 0.0) + 0.001)


def _ignore(accepted: bool) -> None:
    """Tell nobody."""
