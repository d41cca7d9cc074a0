"""The doorbell: hear of verified tasks by Redis Pub/Sub and fire ``task_verified``.

A bell may be lost, forged or repeated, so it is only a hint: the signal fires for a task that Redis itself
holds as verified, once in a process.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import RedisError
from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError

from . import signals
from ._connect import Connector
from ._keys import TASK_ID
from ._seldom import Seldom
from ._store import TaskStore
from ._task import METHOD, Status
from .errors import TaskFlowError

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger(__name__)

_ID = TASK_ID.pattern.encode()
#: A task was verified, or a code of a task waits to be sent by a method.
_BELL = re.compile(rb"1 (" + _ID + rb")|2 (" + _ID + rb") (" + METHOD.pattern.encode() + rb")")
_PING = 10.0
_PONG = 5.0
_BACKOFF_MAX = 5.0
_QUEUE_MAX = 1000
_SETTLE = 10.0
_LOG = 2.0
#: A bell older than this is a replay; younger tasks are remembered, so that each fires once.
_FRESH = 600.0


class Announcer:
    """Fire ``task_verified`` for tasks that are verified indeed, each once in this process.

    :param app: the sender.
    :param store: reads tasks.
    """

    def __init__(self, app: Flask, store: TaskStore) -> None:
        self._app = app
        self._store = store
        self._fired: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def announce(self, task_id: str) -> None:
        """Look a task up and fire, if it is verified and this process has not fired for it.

        :raises redis.RedisError: if the task could not be read.
        """
        if not signals.task_verified.has_receivers_for(self._app):
            return
        try:
            task, now = self._store.get(task_id)
        except TaskFlowError as error:
            logger.warning("A bell for task %s is void: %s.", task_id, error.code)
            return
        verified = task.verified_at
        if task.status is not Status.SUCCESS or verified is None:
            logger.warning("A bell for task %s is void: it is %s.", task_id, task.status)
        elif (now - verified).total_seconds() < _FRESH and self._first(task_id):
            with self._app.app_context():
                signals.emit(signals.task_verified, self._app, task=task)

    def _first(self, task_id: str) -> bool:
        now = time.monotonic()
        with self._lock:
            while self._fired and next(iter(self._fired.values())) < now - 2 * _FRESH:
                self._fired.popitem(last=False)
            if task_id in self._fired:
                return False
            self._fired[task_id] = now
            return True


class Listener:
    """Listen in two threads: one reads, the other hands bells to receivers.

    :param connector: makes a connection of its own.
    :param channel: where bells come in.
    :param presence: a channel of this process's own; being subscribed to it shows that it lives.
    :param name: how ``CLIENT LIST`` calls the connection.
    :param announcer: what to do with a bell.
    :param wake: called with the id of a task that was verified.
    :param post: called with the id of a task and the method by which a code of it is to be sent.
    :param resync: called after each subscription, with whether an earlier one was lost.
    :param ping: seconds between pings.
    :param pong: seconds that an answer may take.
    """

    def __init__(
        self,
        connector: Connector,
        channel: str,
        presence: str,
        name: str,
        announcer: Announcer,
        wake: Callable[[str], None],
        post: Callable[[str, str], None],
        resync: Callable[[bool], None],
        *,
        ping: float = _PING,
        pong: float = _PONG,
    ) -> None:
        self._connector = connector
        self._channel = channel
        self._presence = presence
        self._sessions = 0
        self._since = 0.0
        self._name = name
        self._announcer = announcer
        self._wake = wake
        self._post = post
        self._resync = resync
        self._ping = ping
        self._pong = pong
        self._stopped = threading.Event()
        self._subscribed = threading.Event()
        self._bells: deque[str] = deque(maxlen=_QUEUE_MAX)
        self._rung = threading.Event()
        self._pubsub: PubSub | None = None
        self._threads: list[threading.Thread] = []
        self._seldom = Seldom(_LOG)

    def start(self) -> None:
        """Start both threads."""
        for name, target in (("listener", self._read), ("signals", self._hand_out)):
            thread = threading.Thread(target=target, name=f"taskflow-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait_subscribed(self, timeout: float) -> bool:
        """Wait until the subscription is confirmed; false if that takes longer."""
        return self._subscribed.wait(timeout)

    @property
    def present(self) -> bool:
        """Whether other processes can see that this one lives."""
        return self._subscribed.is_set()

    @property
    def settled(self) -> bool:
        """Whether others have had time to come back since this process lost them from sight, if it did."""
        return self.present and (self._sessions == 1 or time.monotonic() - self._since >= _SETTLE)

    def stop(self, timeout: float) -> None:
        """End both threads, waiting at most ``timeout`` seconds for each."""
        self._stopped.set()
        self._rung.set()
        with suppress(RedisError, AttributeError, OSError):
            pubsub = self._pubsub
            if pubsub is not None and pubsub.connection is not None:
                # The answer ends the reader's wait.
                pubsub.unsubscribe()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _read(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                self._session()
            except Exception as error:
                if self._subscribed.is_set():
                    failures = 0
                failures += 1
                self._log_trouble(failures, error)
            self._subscribed.clear()
            if failures:
                wait = min(_BACKOFF_MAX, 0.05 * 2 ** min(failures, 10))
                self._stopped.wait(wait * secrets.SystemRandom().uniform(0.5, 1))

    def _log_trouble(self, failures: int, error: Exception) -> None:
        if self._stopped.is_set():
            return
        if isinstance(error, RedisError | OSError):
            if failures == 1 and self._seldom("lost"):
                logger.warning("The listener lost Redis: %s: %s", type(error).__name__, error)
        else:
            logger.error("The listener failed; it starts again.", exc_info=error)

    def _session(self) -> None:
        client = self._connector.listener_client(self._name)
        pubsub = self._pubsub = client.pubsub()
        try:
            pubsub.subscribe(self._presence, self._channel)
            ping_at, pong_by = time.monotonic() + self._ping, float("inf")
            while not self._stopped.is_set():
                now = time.monotonic()
                if now >= pong_by:
                    raise RedisConnectionError("Redis did not answer a ping")
                if now >= ping_at:
                    pubsub.ping()
                    ping_at, pong_by = now + self._ping, min(pong_by, now + self._pong)
                message = pubsub.get_message(timeout=max(min(ping_at, pong_by) - now, 0.01))
                if message is not None:
                    pong_by = float("inf")
                    self._handle(message)
        finally:
            self._pubsub = None
            with suppress(RedisError, OSError):
                pubsub.close()
            client.connection_pool.disconnect()

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            if message["channel"] == self._channel.encode():
                self._sessions += 1
                self._since = time.monotonic()
                self._subscribed.set()
                self._resync(self._sessions > 1)
        elif message["type"] == "message":
            match = _BELL.fullmatch(message["data"])
            if match is None:
                self._log_junk(len(message["data"]))
            elif match[1]:
                self._ring(match[1].decode())
            else:
                self._post(match[2].decode(), match[3].decode())

    def _ring(self, task_id: str) -> None:
        self._wake(task_id)
        if len(self._bells) == _QUEUE_MAX:
            logger.warning("Receivers of task_verified are too slow: the oldest bell is dropped.")
        self._bells.append(task_id)
        self._rung.set()

    def _log_junk(self, size: int) -> None:
        if self._seldom("junk"):
            logger.warning("Junk of %d bytes on channel %s was dropped.", size, self._channel)

    def _hand_out(self) -> None:
        while not self._stopped.is_set():
            self._rung.wait()
            self._rung.clear()
            while self._bells and not self._stopped.is_set():
                task_id = self._bells.popleft()
                try:
                    self._announcer.announce(task_id)
                except RedisError as error:
                    if self._seldom("bell"):
                        logger.warning("task_verified is lost for %s: %s", task_id, error)
                except Exception:
                    logger.exception("task_verified is lost for %s.", task_id)
