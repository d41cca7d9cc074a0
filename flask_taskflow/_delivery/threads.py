"""The background threads of one app in one process: started, stopped, renewed after a fork."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - its exit is to be registered before ours
import os
import secrets
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress

from .. import signals
from .._interrupts import is_ours
from .._lock import Lock
from .._log import Logger
from .._redis.connector import Connector
from .._store.deliveries import NOBODY
from .._store.keys import Keys, tag_of
from .announcer import Announcer
from .engine import Engine
from .engines import Engines
from .listener import Listener

logger = Logger(__name__)

_SUBSCRIBE_WAIT = 1.0
_LISTENER_JOIN = 2.0


class Runtime:
    """A listener and the engines, at most one of each.

    :param engines: makes the engines.
    :param connector: opens the listener's connection.
    :param keys: the names of channels.
    :param announcer: hands bells to the receivers of signals.
    :param patience: seconds to wait for the listener's subscription at the start.
    :param drain: seconds to wait for what runs when the process ends.
    """

    def __init__(
        self,
        engines: Engines,
        connector: Connector,
        keys: Keys,
        announcer: Announcer,
        *,
        patience: float,
        drain: float,
    ) -> None:
        self.engines = engines
        self.announcer = announcer
        self._connector = connector
        self._keys = keys
        self._patience = min(_SUBSCRIBE_WAIT, patience)
        self.drain = drain
        self._lock = Lock()
        self.renew()
        signals.task_verified.receiver_connected.connect(self._hear_all)
        _runtimes.add(self)
        # The last one registered runs first: before the embedded server that callbacks report to is left.
        atexit.unregister(_stop_all)
        atexit.register(_stop_all)

    def renew(self) -> None:
        """Begin anew, with no threads: in a forked child there are none of its parent's."""
        self._process = os.getpid()
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._listener: Listener | None = None
        self._engine: Engine | None = None
        self._senders: dict[str, Engine] = {}
        self._stopping = False
        #: Engines without threads, made once: by method, ``None`` for callbacks.
        self._unstarted: dict[str | None, Engine] = {}
        self._fallen_back: deque[str] = deque()
        self.announcer.forget()

    @property
    def owner(self) -> str:
        """This process's name, another one in each forked child."""
        return self._owner

    @property
    def present_owner(self) -> str:
        """The name under which this process leases: its own once others can see that it lives."""
        listener = self._listener
        seen = self._connector.sees_subscribers and listener is not None and listener.present
        return self.owner if seen else NOBODY

    @property
    def may_look(self) -> bool:
        """Whether this process can tell which others live."""
        listener = self._listener
        return self._connector.sees_subscribers and listener is not None and listener.settled

    @property
    def started(self) -> bool:
        """Whether the threads run, for every strategy and receiver that is registered by now."""
        self._notice_fork()
        return self._listener is not None and not self._missing()

    @property
    def may_start(self) -> bool:
        """Whether they may start by themselves: not while they stop, nor for what still runs of them."""
        return not self._stopping and not is_ours()

    def alive(self) -> bool | None:
        """Tell whether the threads live and bells are heard; ``None`` if none were started."""
        self._notice_fork()
        listener = self._listener
        if listener is None:
            return None
        heard = listener.present and all(thread.is_alive() for thread in listener.threads)
        return heard and all(engine.runs for engine in self._all())

    def _notice_fork(self) -> None:
        # A server that is no Python program may fork without Python's hooks.
        if self._process != os.getpid():
            self.renew()

    def new_engine(self) -> Engine:
        """Return an engine for callbacks that is not started."""
        return self.engines.for_callbacks(self, self._senders_started)

    def _senders_started(self) -> list[Engine]:
        return list(self._senders.values())

    def new_sender(self, method: str) -> Engine:
        """Return an engine that sends by a method, or reminds, and is not started."""
        return self.engines.for_early(method, self, self.post)

    def _missing(self) -> list[str]:
        """Return what needs an engine besides the callbacks and has none."""
        return [name for name in self.engines.early if name not in self._senders]

    def run_due(self) -> int:
        """Run in this thread what is due, sends first; return the number of attempts."""
        count = self.send_due()
        return count + self.run_callbacks_due()

    def run_callbacks_due(self) -> int:
        """Run in this thread the callbacks that are due; return the number of attempts."""
        return self._engine_for_due(None).run_due()

    def send_due(self) -> int:
        """Remind and send in this thread what is due, fall-backs included; return the number of attempts."""
        count, methods = 0, self.engines.early
        while methods:
            count += sum(self._engine_for_due(method).run_due() for method in methods)
            methods = self._take_fallen_back()
        return count

    def _take_fallen_back(self) -> list[str]:
        """Return the methods that sends fell back to: each has something due."""
        taken: list[str] = []
        # Another thread may take some of them meanwhile.
        with suppress(IndexError):
            while True:
                taken.append(self._fallen_back.popleft())
        return list(dict.fromkeys(taken))

    def _engine_for_due(self, method: str | None) -> Engine:
        engine = self._unstarted.get(method)
        if engine is None:
            made = (
                self.new_engine() if method is None else self.engines.for_early(method, self, self._fall_back)
            )
            engine = self._unstarted[method] = made
        return engine

    def _fall_back(self, task_id: str, method: str) -> None:
        self._fallen_back.append(method)
        self.post(task_id, method)

    def start(self) -> None:
        """Start the threads unless they run; return once subscribed, or after a second.

        :raises RuntimeError: if the system has no thread for them now. None runs then that was not there.
        """
        with self._lock:
            self._notice_fork()
            self._stopping = False
            if self._listener is None:
                self._start()
            for method in self._missing():
                sender = self._senders[method] = self.new_sender(method)
                try:
                    sender.start()
                except BaseException:
                    del self._senders[method]
                    raise

    def _start(self) -> None:
        engine = self._engine = self.new_engine()
        listener = self._listener = Listener(self._connector, self._keys, self.owner, self, self.announcer)
        try:
            listener.start()
            # What is claimed from here on bears this process's name.
            if listener.wait_subscribed(self._patience):
                engine.register()
            engine.start()
        except BaseException:
            # Whoever comes next tries again.
            self._listener = self._engine = None
            listener.stop(_LISTENER_JOIN)
            raise

    def wake(self, task_id: str | None = None) -> None:
        """Run callbacks at once, unless a bell is for a queue that this process does not serve.

        :param task_id: the task of a bell; without one codes are sent at once, too.
        """
        engine = self._engine
        if engine is None:
            return
        if task_id is None:
            for each in self._all():
                each.wake()
        else:
            tag, queues = tag_of(task_id), self.engines.queues
            # A callback may have been registered since.
            if not engine.wake(tag) and (own := queues.own_by_tag(tag)) and own in engine.served():
                engine.refresh()

    def _hear_all(self, *_: object, **__: object) -> None:
        """Hear of all verifications, since now there is a receiver."""
        self._notice_fork()
        listener = self._listener
        if listener is not None and self.announcer.wanted:
            listener.hear_all()

    def call(self, tag: str) -> None:
        """Run callbacks of a queue at once: this process alone was woken for them.

        :param tag: marks the queue.
        """
        engine = self._engine
        if engine is not None:
            engine.wake(tag, called=True)

    def post(self, task_id: str, method: str) -> None:
        """Send at once, if this process sends by a method.

        :param task_id: the task.
        """
        engine, tag = self._senders.get(method), tag_of(task_id)
        if engine is not None and not engine.wake(tag):
            queue = self.engines.queues.by_tag(tag)
            # It is new here, or left to others.
            if queue is None or queue in engine.served():
                engine.refresh()

    def post_own(self, task_id: str, method: str) -> None:
        """Send at once what this process stored, unless it hears its own bell."""
        if self._listener is None or not self._listener.present:
            self.post(task_id, method)

    def resync(self, lost: bool) -> None:
        """Make up for what was missed while no bell could be heard.

        :param lost: whether bells were heard before.
        """
        for engine in self._all():
            if lost:
                engine.resync()
            else:
                engine.wake()

    def stop(self, timeout: float, *, for_good: bool = False) -> None:
        """Stop the threads; wait at most ``timeout`` seconds for callbacks that run.

        :param for_good: whether the process ends, by which callbacks that go on may fail.
        """
        self._notice_fork()
        with self._lock:
            self._stopping = True
            listener, engines = self._listener, self._all()
            self._listener = self._engine = None
            self._senders = {}
        deadline = time.monotonic() + timeout
        for engine in engines:
            engine.drain()
        try:
            for engine in engines:
                try:
                    engine.stop(max(deadline - time.monotonic(), 0.0), for_good=for_good)
                except Exception:
                    logger.exception("The threads of taskflow-%s could not be stopped.", engine.name)
        finally:
            if listener is not None:
                listener.stop(_LISTENER_JOIN)
            self._stopping = for_good

    def _all(self) -> list[Engine]:
        return [*([] if self._engine is None else [self._engine]), *self._senders.values()]


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def runtimes() -> list[Runtime]:
    """Return those of all apps in this process that were used."""
    return list(_runtimes)


def _renew_all() -> None:
    # A forked child has none of the parent's threads, and must not use its connections.
    for runtime in runtimes():
        runtime.renew()


def _stop_all() -> None:
    for runtime in runtimes():
        try:
            runtime.stop(runtime.drain, for_good=True)
        except Exception:
            logger.exception("The threads of an app could not be stopped.")


os.register_at_fork(after_in_child=_renew_all)
# Exit handlers run when Python's thread pools take nothing more, which callbacks may use. What is registered
# here runs before, the last one first; it is Python's own, so it may be gone one day.
getattr(threading, "_register_atexit", atexit.register)(_stop_all)
