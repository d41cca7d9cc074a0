"""Hear by Redis Pub/Sub what other processes did: the doorbell.

A bell says that a task was verified, or that a code waits to be sent. Hearing it spares a process the wait
until it looks by itself; nothing depends on it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from redis import RedisError
from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError

from .. import signals
from .._log import Logger, tell_by
from .._redis.connector import Connector
from .._seldom import Seldom
from .._store.bells import read_bell
from .._store.keys import Keys
from .announcer import Announcer
from .telling import WatchedCalls

logger = Logger(__name__)

_PING = 10.0
_PONG = 5.0
#: How long a new subscription is waited for, seconds.
_CONFIRM = 1.0
_BACKOFF_MAX = 5.0
_QUEUE_MAX = 1000
_SETTLE = 10.0
#: A subscription that stood for so long shows that the server is there, seconds.
_LASTS = 0.5
_LOG = 2.0
_COMPLAIN = 60.0


class Wakeable(Protocol):
    """What a listener wakes; each call holds up the thread that reads."""

    def wake(self, task_id: str) -> None:
        """Run callbacks: a task was verified."""

    def call(self, tag: str) -> None:
        """Run callbacks of a queue: this process alone was woken for them."""

    def post(self, task_id: str, method: str) -> None:
        """Send codes: one of a task waits to be sent by a method."""

    def resync(self, lost: bool) -> None:
        """Make up for what was missed: a subscription began.

        :param lost: whether an earlier one was lost.
        """


class Listener:
    """Listen in two threads: one reads, the other hands bells to receivers.

    :param connector: makes a connection of its own.
    :param keys: the names of channels.
    :param owner: this process; being subscribed to a channel of that name shows that it lives.
    :param wakeable: is woken by bells.
    :param announcer: calls the receivers of ``task_verified``.
    :param ping: seconds between pings.
    :param pong: seconds that an answer may take.
    """

    def __init__(
        self,
        connector: Connector,
        keys: Keys,
        owner: str,
        wakeable: Wakeable,
        announcer: Announcer,
        *,
        ping: float = _PING,
        pong: float = _PONG,
    ) -> None:
        self._connector = connector
        self._channel = keys.bell
        self._told = keys.told
        self._presence = keys.presence(owner)
        bridge = announcer.bridge
        #: Where other services tell what they verified.
        self._bridge = None if bridge is None else bridge.channel.encode()
        #: How ``CLIENT LIST`` calls the connection.
        self._name = f"taskflow-listener:{owner}"
        self._sessions = 0
        self._since = 0.0
        self._wakeable = wakeable
        self._announcer = announcer
        self._ping = ping
        self._pong = pong
        self._stopped = threading.Event()
        self._subscribed = threading.Event()
        #: Ids of tasks, and messages of the bridge.
        self._bells: deque[str | bytes] = deque(maxlen=_QUEUE_MAX)
        #: How many of them were dropped since the log told.
        self._dropped = 0
        self._rung = threading.Event()
        #: Of receivers.
        self._calls = WatchedCalls("taskflow-signals")
        self._pubsub: PubSub | None = None
        #: Held while something is subscribed to: receivers may be connected in any thread.
        self._subscribing = threading.Lock()
        self._hears_all = threading.Event()
        self.threads: list[threading.Thread] = []
        self._seldom, self._complain = Seldom(_LOG), Seldom(_COMPLAIN)

    def start(self) -> None:
        """Start both threads."""
        for name, target in (("listener", self._read), ("signals", self._hand_out)):
            thread = threading.Thread(
                target=self._keep_on, args=(target,), name=f"taskflow-{name}", daemon=True
            )
            thread.start()
            self.threads.append(thread)

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
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _keep_on(self, work: Callable[[], None]) -> None:
        tell_by(self._announcer.tell)
        while not self._stopped.is_set():
            try:
                work()
            except BaseException:
                # Whatever was done to it: nothing would start it anew.
                logger.exception("A thread of the listener failed; it goes on.")

    def hear_all(self) -> None:
        """Hear also of verifications whose callbacks others were woken to run: somebody wants to know."""
        # It may be closed meanwhile: a session that begins asks for itself.
        with self._subscribing, suppress(RedisError, AttributeError, OSError):
            pubsub = self._pubsub
            if pubsub is not None and pubsub.subscribed and not self._hears_all.is_set():
                pubsub.subscribe(self._told)
                # What is verified from here on is heard.
                self._hears_all.wait(_CONFIRM)

    def _read(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self._session()
            except BaseException as error:
                if self._subscribed.is_set() and time.monotonic() - began >= _LASTS:
                    failures = 0
                failures += 1
                self._log_trouble(failures, error)
            self._subscribed.clear()
            # A connection that was cut is made anew at once, as it may be twice where a replica takes over; a
            # server that is away is let alone.
            if failures > 2:
                wait = min(_BACKOFF_MAX, 0.05 * 2 ** min(failures, 10))
                self._stopped.wait(wait * secrets.SystemRandom().uniform(0.5, 1))

    def _log_trouble(self, failures: int, error: BaseException) -> None:
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
            with self._subscribing:
                self._hears_all.clear()
                told = self._told if self._announcer.wanted else None
                # The last one is waited for.
                pubsub.subscribe(self._presence, *filter(None, (self._bridge, told)), self._channel)
            ping_at, pong_by = time.monotonic() + self._ping, float("inf")
            while not self._stopped.is_set():
                now = time.monotonic()
                self._calls.look(now, len(self._bells))
                if now >= pong_by:
                    raise RedisConnectionError("Redis did not answer a ping")
                if now >= ping_at:
                    pubsub.ping()
                    ping_at, pong_by = now + self._ping, min(pong_by, now + self._pong)
                message = pubsub.get_message(timeout=max(min(ping_at, pong_by) - now, 0.01))
                if message is not None:
                    # Each message shows that the connection stands; polls bring one.
                    ping_at, pong_by = time.monotonic() + self._ping, float("inf")
                    self._handle(message)
        finally:
            self._pubsub = None
            with suppress(RedisError, OSError):
                pubsub.close()
            client.connection_pool.disconnect()

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            if message["channel"] == self._told.encode():
                self._hears_all.set()
            if message["channel"] == self._channel.encode():
                self._sessions += 1
                self._since = time.monotonic()
                self._subscribed.set()
                self._wakeable.resync(self._sessions > 1)
        elif message["type"] == "message" and message["channel"] == self._bridge:
            self._queue(message["data"])
        elif message["type"] == "message" and message["channel"] == self._presence.encode():
            # It is empty where this process looked whether something is due.
            if message["data"]:
                self._wakeable.call(message["data"].decode(errors="replace"))
        elif message["type"] == "message":
            bell = read_bell(message["data"])
            if bell is None:
                self._log_junk(len(message["data"]))
            elif bell.method is None:
                if message["channel"] == self._channel.encode():
                    self._wakeable.wake(bell.task_id)
                self._queue(bell.task_id)
            else:
                self._wakeable.post(bell.task_id, bell.method)

    def _queue(self, bell: str | bytes) -> None:
        if len(self._bells) == _QUEUE_MAX:
            self._dropped += 1
            if self._complain():
                logger.warning(
                    "Receivers of task_verified are too slow: %d bells were dropped.", self._dropped
                )
                self._dropped = 0
        self._bells.append(bell)
        self._rung.set()

    def _log_junk(self, size: int) -> None:
        if self._seldom("junk"):
            logger.warning("Junk of %d bytes on channel %s was dropped.", size, self._channel)

    def _hand_out(self) -> None:
        signals.call_by(self._calls.call)
        while not self._stopped.is_set():
            # First: whatever ended this thread's work before may have left some.
            while self._bells and not self._stopped.is_set():
                self._announce(self._bells.popleft())
            self._rung.wait()
            self._rung.clear()

    def _announce(self, bell: str | bytes) -> None:
        try:
            if isinstance(bell, str):
                self._announcer.announce(bell)
            else:
                self._announcer.announce_bridged(bell)
        except RedisError as error:
            if self._seldom("bell"):
                logger.warning("task_verified is lost for %s: %s", _name(bell), error)
        except BaseException:
            logger.exception("task_verified is lost for %s.", _name(bell))


def _name(bell: str | bytes) -> str:
    return bell if isinstance(bell, str) else "a message of another service"
