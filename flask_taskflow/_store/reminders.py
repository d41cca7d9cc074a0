"""How a task stands whose app is to be reminded of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._keyring import Keyring
from .._tasks import Status, Task
from .keys import Keys
from .limits import Limits
from .records import is_near, pairs_of, read_task
from .steps import Steps


class Reminder(NamedTuple):
    """What a task's reminders come to by now.

    :param task: the task.
    :param left: seconds until it ends.
    :param due: whether its app is to be reminded now.
    """

    task: Task[Any]
    left: float
    due: bool

    def next_in(self, told: float) -> float | None:
        """Return in how many seconds the next reminder is due, ``None`` if there is none.

        :param told: how many seconds were left when the app was last reminded.
        """
        waits = [self.left - each for each in self.task.remind if each < told]
        return max(min(waits), 0.0) if waits else None


class ReminderStore:
    """Reads tasks that are about to end.

    :param steps: runs the step.
    :param keys: the names of keys.
    :param keyring: checks seals: only who has a key can ask for a reminder.
    :param limits: of which the task tells what they leave to it.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring, limits: Limits) -> None:
        self._steps, self._keys, self._keyring, self._limits = steps, keys, keyring, limits

    def look(self, task_id: str) -> Reminder | None:
        """Return what a task's reminders come to, ``None`` if there is no such task, or it ended for good.

        Of several that are due only one is told: their task has only one time left.

        :raises TaskTampered: if the task was changed from outside.
        :raises KeyMissing: if it is of a secret key that this process lacks.
        """
        word, *reply = self._steps.run("tasks/get", self._keys.task(task_id))
        if word != "ok":
            return None
        now, fields = int(reply[0]), pairs_of(reply[1])
        task = read_task(task_id, fields, now, self._keyring, self._limits)
        left = int(fields["expires"]) - now
        # One that failed is pending again with its next message.
        if task.status not in (Status.PENDING, Status.FAILED) or left <= 0:
            return None
        at = [int(each * 1000) for each in task.remind]
        due = any(left <= each for each in at) and is_near(fields, max(at), self._keyring)
        return Reminder(task, left / 1000, due and task.status is Status.PENDING)
