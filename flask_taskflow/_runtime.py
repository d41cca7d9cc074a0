"""The background threads of one app in one process: started, stopped, renewed after a fork."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ._callbacks import Callback, Runner
from ._config import Config
from ._connect import Connector
from ._deliveries import NOBODY, DeliveryStore
from ._engine import Engine
from ._listener import Announcer, Listener
from ._otp import Keyring
from ._store import Keys, TaskStore, tag_of

if TYPE_CHECKING:
    from flask import Flask

_SUBSCRIBE_WAIT = 1.0
_LISTENER_JOIN = 2.0


class Runtime:
    """A listener and an engine, at most one of each.

    :param app: whose they are.
    :param config: its configuration.
    :param callbacks: queue -> name -> callback.
    :param keyring: checks seals.
    :param connector: opens connections.
    :param keys: the names of keys.
    :param store: reads tasks.
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
    ) -> None:
        self._app = app
        self._config = config
        self._callbacks = callbacks
        self._keyring = keyring
        self._connector = connector
        self._keys = keys
        self._store = store
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
        """Whether the threads run."""
        return self._listener is not None

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
        """Return an engine that is not started."""
        store = DeliveryStore(self._client, self._keys, self._config, self._keyring)
        runner = Runner(self._app, store, self._config, self._callbacks)
        return Engine(self._app, store, runner, self._config, self, threads=self._config.callback_threads)

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
                    self.resync,
                )
                self._listener.start()
                # What is claimed from here on bears this process's name.
                self._listener.wait_subscribed(min(_SUBSCRIBE_WAIT, self._config.redis_timeout))
                self._engine.start()

    def wake(self, task_id: str | None = None) -> None:
        """Claim at once, unless a bell is for a queue that this process does not serve.

        :param task_id: the task of a bell.
        """
        engine = self._engine
        if engine is None:
            return
        if task_id is None or tag_of(task_id) in {self._keys.tag(queue) for queue in engine.queues()}:
            engine.wake()

    def resync(self, lost: bool) -> None:
        """Make up for what was missed while no bell could be heard.

        :param lost: whether bells were heard before.
        """
        engine = self._engine
        if engine is not None:
            engine.resync() if lost else engine.wake()

    def stop(self, timeout: float) -> None:
        """Stop the threads; wait at most ``timeout`` seconds for callbacks that run."""
        with self._lock:
            listener, engine = self._listener, self._engine
            self._listener = self._engine = None
        if engine is not None:
            engine.stop(timeout)
        if listener is not None:
            listener.stop(_LISTENER_JOIN)


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _renew_all() -> None:
    # A forked child has none of the parent's threads, and must not use its connections.
    for runtime in list(_runtimes):
        runtime._renew()


def _stop_all() -> None:
    for runtime in list(_runtimes):
        runtime.stop(runtime._config.drain)


os.register_at_fork(after_in_child=_renew_all)
