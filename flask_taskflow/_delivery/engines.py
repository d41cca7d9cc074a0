"""The engines of one app: one for its callbacks, one for each method by which it sends, one for reminders.

A provider that hangs so holds up nothing but its own codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import signals
from .._config.config import Config
from .._store.deliveries import DeliveryStore
from .._store.keys import REMINDERS
from .._store.limits import LeaseTerms
from .._store.queues import Queues
from .._store.reminders import ReminderStore
from .._store.schedules import ScheduleStore
from .._store.sends import CodeStore
from .callbacks import Callback, CallbackRunner
from .engine import Engine, EngineSettings
from .leases import Presence
from .reminders import ReminderRunner
from .schedules import Ticker
from .sender import Sender
from .sends import SendRunner, SendSettings

if TYPE_CHECKING:
    from flask import Flask

_LOST_MORE = 3


@dataclass(kw_only=True)
class Engines:
    """Make engines that are not started.

    :param app: whose context they run in.
    :param config: times and numbers.
    :param background: whether codes are stored to be sent, not sent at once.
    :param callbacks: queue -> name -> callback.
    :param store: makes a store of deliveries for some terms of leases.
    :param schedules: takes their ticks.
    :param reminders: tells of tasks that are about to end.
    :param queues: the queues that are known.
    :param codes: tells what is to be sent.
    :param sender: sends it.
    """

    app: Flask
    config: Config
    background: bool
    callbacks: Mapping[str, Mapping[str, Callback]]
    store: Callable[[LeaseTerms], DeliveryStore]
    schedules: ScheduleStore
    reminders: ReminderStore
    queues: Queues
    codes: CodeStore
    sender: Sender

    def narrow(self, queues: tuple[str, ...] | None, threads: int | None) -> None:
        """Serve fewer queues or run more or fewer callbacks at once than configured; before the start.

        :param queues: which queues, ``None`` as configured.
        :param threads: how many callbacks at once, ``None`` as configured.
        """
        self.config = replace(
            self.config,
            queues=self.config.queues if queues is None else queues,
            callback_threads=self.config.callback_threads if threads is None else threads,
        )

    @property
    def early(self) -> list[str]:
        """What needs an engine besides the callbacks: each method to send by, and reminders that are heard.

        There is none to send by if codes are sent at once.
        """
        heard = signals.task_expiring.has_receivers_for(self.app)
        methods = self.sender.methods if self.background else []
        # First: whoever is reminded may let codes be sent.
        return [REMINDERS, *methods] if heard else methods

    def for_early(self, name: str, presence: Presence, post: Callable[[str, str], None]) -> Engine:
        """Return an engine for the sends by a method, or for reminders.

        :param post: called with task and method when a send waits.
        """
        if name == REMINDERS:
            return self._for_reminders(presence)
        return self._for_sends(name, presence, post)

    def for_callbacks(self, presence: Presence, beside: Callable[[], Sequence[Engine]] = tuple) -> Engine:
        """Return an engine for callbacks.

        :param beside: returns the engines that it looks and tidies up for, too.
        """
        config, threads = self.config, self.config.callback_threads
        store = self.store(LeaseTerms.read(config))
        runner = CallbackRunner(
            store,
            self.callbacks,
            Ticker(self.schedules, self.callbacks),
            backoff_max=config.backoff_max,
            timeout=config.job_timeout,
        )
        # Threads that were written off may never end: at most as many of them as of the others.
        settings = self._settings(threads, most_threads=2 * threads, ahead=True)
        return Engine(self.app, store, runner, presence, settings, name="callbacks", beside=beside)

    def _for_sends(self, method: str, presence: Presence, post: Callable[[str, str], None]) -> Engine:
        config, threads, store = self.config, self.config.send_threads, self._patient_store()
        sends = SendSettings(
            method=method,
            timeout=config.send_timeout + 2 * config.redis_timeout,
            backoff=config.send_backoff,
            backoff_max=config.send_backoff_max,
            fallback=config.send_fallback or None,
            max_lost=config.max_lost,
            hanging_max=2 * threads,
        )
        runner = SendRunner(sends, self.sender, self.codes, store, self.queues, post)
        # The runner itself refuses to send while too many hang, so that there is always a free one.
        settings = self._settings(threads, most_threads=threads + sends.hanging_max, ahead=False)
        return Engine(self.app, store, runner, presence, settings, name=f"sends-{method}")

    def _for_reminders(self, presence: Presence) -> Engine:
        config, threads, store = self.config, self.config.callback_threads, self._patient_store()
        runner = ReminderRunner(
            self.reminders, store, self.queues, timeout=config.job_timeout, max_lost=config.max_lost
        )
        settings = self._settings(threads, most_threads=2 * threads, ahead=False)
        return Engine(self.app, store, runner, presence, settings, name="reminders")

    def _patient_store(self) -> DeliveryStore:
        # An attempt gives up what was lost too often. It may be lost as well: then it is a dead letter.
        terms = LeaseTerms.read(self.config)
        return self.store(terms._replace(max_lost=terms.max_lost + _LOST_MORE))

    def _settings(self, threads: int, *, most_threads: int, ahead: bool) -> EngineSettings:
        config = self.config
        return EngineSettings(
            threads=threads,
            most_threads=most_threads,
            ahead=ahead,
            queues=config.queues,
            lease=config.lease,
            poll=config.poll,
            redis_timeout=config.redis_timeout,
        )
