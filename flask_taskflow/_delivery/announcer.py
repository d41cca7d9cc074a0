"""Fire ``task_verified`` for what bells say, if it is true.

A bell may be lost, forged or repeated, so it is only a hint: the signal fires for a task that Redis itself
holds as verified, once in a process.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from .. import _journal as journal
from .. import signals
from .._bridge import Bridge
from .._lock import Lock
from .._log import Logger, Work
from .._seldom import Seldom
from .._store.tasks import TaskStore
from .._tasks import Status
from ..errors import KeyMissing, TaskFlowError

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

#: A bell older than this is a replay; younger tasks are remembered, so that each fires once. Seconds.
_FRESH = 600.0
_COMPLAIN = 60.0
#: So many tasks are remembered at most.
_REMEMBERED = 50_000


class Announcer:
    """Fire ``task_verified`` for tasks that are verified indeed, each once in this process.

    :param app: whose receivers are asked for.
    :param store: reads tasks.
    :param bridge: reads what other services tell, if this app listens to any.
    """

    def __init__(self, app: Flask, store: TaskStore, bridge: Bridge | None = None) -> None:
        self._app = app
        self._store = store
        self.bridge = bridge
        self._seldom = Seldom(_COMPLAIN)
        self.forget()

    def forget(self) -> None:
        """Begin anew, as if nothing had fired: a forked child's receivers have heard of nothing."""
        self._fired: OrderedDict[str, datetime | None] = OrderedDict()
        self._forgotten: datetime | None = None
        self._lock = Lock()

    def tell(self, work: Work) -> None:
        """Call what may be an app's own, such as a log filter, in a context; no error of it ends a thread."""
        with suppress(BaseException), self._app.app_context():
            work()

    @property
    def wanted(self) -> bool:
        """Whether there is a receiver."""
        return bool(signals.task_verified.has_receivers_for(self._app))

    def announce(self, task_id: str) -> None:
        """Look a task up and fire, if it is verified and this process has not fired for it.

        :raises redis.RedisError: if the task could not be read.
        """
        if not self.wanted:
            return
        try:
            task, now = self._store.get(task_id)
        except KeyMissing as error:
            if self._seldom(error.fingerprint):
                logger.warning("task_verified does not fire here for tasks of other processes: %s.", error)
            return
        except TaskFlowError as error:
            logger.warning("A bell for task %s is void: %s.", task_id, error.code)
            return
        verified = task.verified_at
        if task.status is not Status.SUCCESS or verified is None:
            logger.warning("A bell for task %s is void: it is %s.", task_id, task.status)
        elif (now - verified).total_seconds() < _FRESH and self._first(task_id, verified):
            with self._app.app_context():
                journal.task_verified(task)

    def announce_bridged(self, message: bytes) -> None:
        """Fire for what another service tells, unproven and as often as it is told."""
        task = self.bridge and self.bridge.read(message)
        if task:
            with self._app.app_context():
                journal.task_verified(task, bridged=True)

    def _first(self, task_id: str, verified: datetime | None = None) -> bool:
        """Remember a task; false if it was fired for already, or is as old as one that is forgotten."""
        with self._lock:
            old = verified and self._forgotten and verified <= self._forgotten
            if old or task_id in self._fired:
                return False
            self._fired[task_id] = verified
            if len(self._fired) > _REMEMBERED:
                _, forgotten = self._fired.popitem(last=False)
                self._forgotten = max(filter(None, (forgotten, self._forgotten)), default=None)
            return True
