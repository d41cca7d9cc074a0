"""The background threads of one app in one process: started, stopped, renewed after a fork.

Callbacks have an engine, and so does each method of sending, so that a provider that hangs holds up nothing
but its own codes.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ._background import SendRunner
from ._callbacks import Callback, Runner
from ._codes import CodeStore
from ._config import Config
from ._connect import Connector
from ._deliveries import NOBODY, DeliveryStore
from ._engine import Engine
from ._keys import Keys, Queues, tag_of
from ._listener import Announcer, Listener
from ._otp import Keyring
from ._sending import Sender
from ._store import TaskStore

if TYPE_CHECKING:
    from flask import Flask

_SUBSCRIBE_WAIT = 1.0
_LISTENER_JOIN = 2.0
_LOST_MORE = 3


class Runtime:
    """A listener and the engines, at most one of each.

    :param app: whose they are.
    :param config: its configuration.
    :param callbacks: queue -> name -> callback.
    :param keyring: checks seals.
    :param connector: opens connections.
    :param keys: the names of keys.
    :param store: reads tasks.
    :param queues: the queues that are known.
    :param codes: tells what is to be sent.
    :param sender: sends it.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        callbacks: Mapping[str, Mapping[str, Callback]],
        keyring: Keyring,
        connector: Connector,
        keys: Keys,
        store: TaskStore,
        queues: Queues,
        codes: CodeStore,
        sender: Sender,
    ) -> None:
        self._app = app
        self._config = config
        self._callbacks = callbacks
        self._keyring = keyring
        self._connector = connector
        self._keys = keys
        self._store = store
        self._queues = queues
        self._codes = codes
        self._sender = sender
        self._client = connector.client()
        self._renew()
        _runtimes.add(self)
        # The last one registered runs first: before the embedded server that callbacks report to is left.
        atexit.unregister(_stop_all)
        atexit.register(_stop_all)

    def _renew(self) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._engine: Engine | None = None
        self._senders: dict[str, Engine] = {}
        self.announcer = Announcer(self._app, self._store)

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
        """Whether the threads run, for every strategy that is registered by now."""
        return self._listener is not None and not self._missing()

    def narrow(self, queues: tuple[str, ...] | None, threads: int | None) -> None:
        """Serve fewer queues or run more or fewer callbacks at once than configured; before the start.

        :param queues: which queues, ``None`` as configured.
        :param threads: how many callbacks at once, ``None`` as configured.
        """
        config = self._config
        self._config = replace(
            config,
            queues=config.queues if queues is None else queues,
            callback_threads=config.callback_threads if threads is None else threads,
        )

    def new_engine(self) -> Engine:
        """Return an engine for callbacks that is not started."""
        store = self._new_store(self._config)
        runner = Runner(self._app, store, self._config, self._callbacks)
        threads = self._config.callback_threads
        # Threads that were written off may never end: at most as many of them as of the others.
        return Engine(self._app, store, runner, self._config, self, threads=threads, most_threads=2 * threads)

    def _new_sender(self, method: str) -> Engine:
        config = self._config
        # An attempt gives up what was lost too often. It may be lost as well: then it is a dead letter.
        store = self._new_store(replace(config, max_lost=config.max_lost + _LOST_MORE))
        runner = SendRunner(
            self._app,
            method,
            self._sender,
            self._codes,
            store,
            config,
            self._queues,
            self.post,
        )
        threads = config.send_threads
        # The runner itself refuses to send while too many hang, so that there is always a free one.
        return Engine(
            self._app, store, runner, config, self, threads=threads, most_threads=threads + runner.hanging_max
        )

    def _new_store(self, config: Config) -> DeliveryStore:
        return DeliveryStore(self._client, self._keys, config, self._keyring, self._queues)

    def _missing(self) -> list[str]:
        """Return the methods that need an engine to send by and have none."""
        return [method for method in self._wanted() if method not in self._senders]

    def _wanted(self) -> list[str]:
        return self._sender.methods if self._config.sends_in_background else []

    def run_due(self) -> int:
        """Run in this thread what is due, sends first; return the number of attempts."""
        count = self.send_due()
        return count + self.new_engine().run_due()

    def send_due(self) -> int:
        """Send in this thread what is due, fall-backs included; return the number of attempts."""
        engines = [self._new_sender(method) for method in self._wanted()]
        count = 0
        while more := sum(engine.run_due() for engine in engines):
            count += more
        return count

    def start(self) -> None:
        """Start the threads unless they run; return once subscribed, or after a second."""
        with self._lock:
            if self._listener is None:
                self._engine = self.new_engine()
                self._listener = Listener(
                    self._connector,
                    self._keys.bell,
                    self._keys.presence + self.owner,
                    f"taskflow-listener:{self.owner}",
                    self.announcer,
                    self.wake,
                    self.post,
                    self.resync,
                )
                self._listener.start()
                # What is claimed from here on bears this process's name.
                self._listener.wait_subscribed(min(_SUBSCRIBE_WAIT, self._config.redis_timeout))
                self._engine.start()
            for method in self._missing():
                self._senders[method] = self._new_sender(method)
                self._senders[method].start()

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
        elif tag_of(task_id) in {self._keys.tag(queue) for queue in engine.queues()}:
            engine.wake()

    def post(self, task_id: str, method: str) -> None:
        """Send at once, if this process sends by a method.

        :param task_id: the task.
        """
        engine = self._senders.get(method)
        if engine is not None:
            engine.wake() if self._queues.knows(tag_of(task_id)) else engine.refresh()

    def post_own(self, task_id: str, method: str) -> None:
        """Send at once what this process stored, unless it hears its own bell."""
        if self._listener is None or not self._listener.present:
            self.post(task_id, method)

    def resync(self, lost: bool) -> None:
        """Make up for what was missed while no bell could be heard.

        :param lost: whether bells were heard before.
        """
        for engine in self._all():
            engine.resync() if lost else engine.wake()

    def stop(self, timeout: float) -> None:
        """Stop the threads; wait at most ``timeout`` seconds for callbacks that run."""
        with self._lock:
            listener, engines = self._listener, self._all()
            self._listener = self._engine = None
            self._senders = {}
        deadline = time.monotonic() + timeout
        for engine in engines:
            engine.drain()
        for engine in engines:
            engine.stop(max(deadline - time.monotonic(), 0.0))
        if listener is not None:
            listener.stop(_LISTENER_JOIN)

    def _all(self) -> list[Engine]:
        return [*([] if self._engine is None else [self._engine]), *self._senders.values()]


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _renew_all() -> None:
    # A forked child has none of the parent's threads, and must not use its connections.
    for runtime in list(_runtimes):
        runtime._renew()


def _stop_all() -> None:
    for runtime in list(_runtimes):
        runtime.stop(runtime._config.drain)


os.register_at_fork(after_in_child=_renew_all)
