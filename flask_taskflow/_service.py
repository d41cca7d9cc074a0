"""The use cases of one app: what happens to a task, and who is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import click
from flask import Flask, current_app, has_app_context
from redis import RedisError

from . import _journal
from ._bridge import Bridge
from ._checks import TTL_MAX, check_label, check_method, check_name, check_seconds
from ._config.config import Config
from ._course import CourseEntry
from ._delivery.announcer import Announcer
from ._delivery.callbacks import Callback
from ._delivery.engines import Engines
from ._delivery.sender import Sender
from ._delivery.threads import Runtime
from ._keyring import Keyring, Presented
from ._lock import Lock
from ._log import Logger
from ._new_task import NewTask, read_change
from ._otp import OTP, read_code
from ._redis.connector import Connector
from ._seldom import Seldom
from ._store.courses import CourseStore
from ._store.deliveries import DeliveryStore
from ._store.keys import TASK_ID, Keys
from ._store.limits import Limits
from ._store.listings import ListingStore
from ._store.new_tasks import NewTaskStore
from ._store.operations import Operations
from ._store.queues import Queues
from ._store.records import Ended, Issued, time_of
from ._store.reminders import ReminderStore
from ._store.schedules import ScheduleStore
from ._store.sends import CodeStore
from ._store.steps import Steps
from ._store.tasks import TaskStore
from ._tasks import Recipient, Status, Task, is_gated
from .errors import (
    CodeRepeated,
    ConfigError,
    MethodNotAllowed,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskFlowError,
    TaskNotFound,
    WrongCode,
)
from .strategies import Channel, Channels

logger = Logger(__name__)

_STATE = "taskflow.state"
_COMPLAIN = 60.0


@dataclass(slots=True)
class AppState:
    """What one app owns of an extension.

    :param config: the app's configuration.
    :param keyring: its secret keys.
    :param given: the client or function that ``TaskFlow(redis=...)`` was given, or ``None``.
    :param channels: the extension's strategies, by method.
    :param callbacks: the extension's callbacks, by queue and name.
    :param service: made at the first use.
    :param complain: says whether the log may tell again that no threads could be started.
    """

    config: Config
    keyring: Keyring
    given: object = field(repr=False)
    channels: Channels
    callbacks: Mapping[str, Mapping[str, Callback]]
    service: Service | None = None
    complain: Seldom = field(default_factory=lambda: Seldom(_COMPLAIN))
    lock: Lock = field(default_factory=Lock)

    def keep(self, app: Flask) -> None:
        """Let :func:`current_service` find this in an app."""
        app.extensions[_STATE] = self


def current_service() -> Service:
    """Return the service of the current app, made at its first use.

    :raises ConfigError: if no client can be made.
    :raises RuntimeError: without an app context, or if the app has no TaskFlow.
    """
    if not has_app_context():
        raise RuntimeError(
            "Flask-TaskFlow works inside an app context: wrap the call in `with app.app_context():`"
        )
    state = current_app.extensions.get(_STATE)
    if not isinstance(state, AppState):
        raise RuntimeError("this app has no TaskFlow: call taskflow.init_app(app) first")
    if state.service is None:
        with state.lock:
            state.service = state.service or compose(cast(Any, current_app)._get_current_object(), state)
    return state.service


def start_at_request(app: Flask, **_: Any) -> None:
    """Start an app's threads at its first request: a receiver of ``request_started``."""
    with app.app_context():
        try:
            current_service().start_lazily()
        except Exception as error:
            # Pages that need none of this must be served: a function that gives the client may raise.
            _tell_not_started(app, error)


def _tell_not_started(app: Flask, error: Exception) -> None:
    if app.extensions[_STATE].complain():
        logger.error("The threads could not be started; the next request tries again.", exc_info=error)


def compose(app: Flask, state: AppState) -> Service:
    """Return an app's service with all that it is made of; no connection is opened.

    :raises ConfigError: if no client can be made.
    """
    config, keyring, channels, callbacks = state.config, state.keyring, state.channels, state.callbacks
    connector = Connector(config, state.given, app.instance_path)
    keys = Keys(config.key_prefix, connector.database, apart=connector.is_cluster)
    limits, background = Limits.read(config), config.sends_in_background
    steps = Steps(connector.client(), limits.retention)
    # Requests that use up their connections must not hold up a heartbeat.
    steps_of_threads = Steps(connector.client(), limits.retention)
    queues = Queues(steps, keys, callbacks)
    store = TaskStore(steps, keys, keyring, queues, limits, background=background)
    codes = CodeStore(steps, keys, keyring, limits)
    sender = Sender(keyring, codes, channels, otp_length=config.otp_length, otp_ttl=config.otp_ttl)
    engines = Engines(
        app=app,
        config=config,
        background=background,
        callbacks=callbacks,
        store=lambda terms: DeliveryStore(steps_of_threads, keys, keyring, queues, terms),
        schedules=ScheduleStore(steps_of_threads, keys, keyring),
        reminders=ReminderStore(steps_of_threads, keys, keyring, limits),
        queues=queues,
        codes=codes,
        sender=sender,
    )
    bridge = Bridge(config.bridge_channel, steps.client) if config.bridge_channel else None
    announcer = Announcer(app, store, bridge)
    return Service(
        app=app,
        config=config,
        channels=channels,
        callbacks=callbacks,
        keyring=keyring,
        keys=keys,
        steps=steps,
        steps_of_threads=steps_of_threads,
        new_tasks=NewTaskStore(steps, keys, keyring, queues, limits, background=background),
        store=store,
        courses=CourseStore(steps, keys),
        listings=ListingStore(steps, keys, keyring, limits),
        operations=Operations(steps, keys, channels),
        sender=sender,
        bridge=bridge,
        runtime=Runtime(
            engines, connector, keys, announcer, patience=config.redis_timeout, drain=config.drain
        ),
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Service:
    """Tasks of one app, from its first use on. :func:`compose` makes it.

    :param app: the app.
    :param config: its configuration.
    :param channels: the extension's strategies, by method.
    :param callbacks: the extension's callbacks, by queue and name.
    :param keyring: the app's secret keys.
    :param keys: the names of keys.
    :param steps: the client of calls, and what runs on it.
    :param steps_of_threads: the same for the background threads.
    :param new_tasks: the step that stores a task.
    :param store: the other steps of tasks.
    :param courses: what happened to tasks.
    :param listings: what a person has.
    :param operations: the operator's steps.
    :param sender: makes codes and hands them to strategies.
    :param bridge: tells services that run the original, if the app is asked to.
    :param runtime: the background threads.
    :param unserved: queues that the log has told of: tasks were verified that no callback was registered for.
    """

    app: Flask
    config: Config
    channels: Channels
    callbacks: Mapping[str, Mapping[str, Callback]]
    keyring: Keyring
    keys: Keys
    steps: Steps
    steps_of_threads: Steps
    new_tasks: NewTaskStore
    store: TaskStore
    courses: CourseStore
    listings: ListingStore
    operations: Operations
    sender: Sender
    bridge: Bridge | None
    runtime: Runtime
    unserved: set[str] = field(default_factory=set)

    @property
    def client(self) -> Any:
        """The Redis client that the steps run on."""
        return self.steps.client

    def add_task(self, new: NewTask) -> Issued:
        """Store a task and send its first codes."""
        draft, methods = new.checked(self.config, self.keys, self.keyring, self.channels)
        codes = [self.sender.new_code(draft.id, method, send_at=draft.send_at) for method in methods]
        self._start_at_call()
        try:
            issued = self.new_tasks.add(draft, codes)
        except SendLimitReached as error:
            _journal.send_refused(draft.id, error, queue=draft.queue)
            raise
        if issued.known:
            return issued
        for old in issued.replaced:
            self._tell_ended(old)
        _journal.task_added(issued.task)
        held = issued.task if draft.holder is None else replace(issued.task, holder=draft.holder)
        try:
            self._send(issued)
        except SendFailed as error:
            error.task = held
            raise
        return issued._replace(task=held)

    def verify(self, task_id: str, method: str, otp: str, holder: str | None = None) -> Task[Any]:
        """Consume a code."""
        name, code = self._typed(method, otp)
        del otp
        done = self._consume(task_id, name, code, holder, Status.SUCCESS)
        if done.again:
            raise _repeated(done.task, name)
        _journal.code_accepted(done.task, name)
        if self.bridge is not None:
            self.bridge.publish(done.task)
        if not (done.deliveries or is_gated(done.task) or done.task.queue in self.unserved):
            self.unserved.add(done.task.queue)
            _warn_of_unserved(done.task, self.operations)
        if self.config.eager:
            self._run_eagerly(task_id)
        return done.task

    def reject(self, task_id: str, method: str, otp: str, holder: str | None) -> Task[Any]:
        """End a task by its code, as unwanted."""
        name, code = self._typed(method, otp)
        del otp
        done = self._consume(task_id, name, code, holder, Status.REJECTED)
        if done.again:
            raise _repeated(done.task, name)
        return self._tell_ended(done.task)

    def pattern(self, method: str) -> re.Pattern[str]:
        """Return what a typed code of a method may look like."""
        channel = self.channels.get(method)
        return (channel and channel.pattern) or self.sender.digits

    def _typed(self, method: str, otp: str) -> tuple[str, OTP]:
        """Return a method, and a code as somebody typed it."""
        channel = self.channels.get(method) if isinstance(method, str) else None
        name = channel.method if channel else check_method(method)
        return name, read_code(otp, self.pattern(name))

    def _consume(self, task_id: str, method: str, code: OTP, holder: str | None, status: Status) -> Ended:
        self._start_at_call()
        try:
            _check_id(task_id)
            typed = self.keyring.presented(task_id, method, code, holder, confirms=status is Status.SUCCESS)
            channel = self.channels.get(method)
            if channel is not None and channel.checks:
                return self._consume_foreign(task_id, channel, code, typed, status)
            return self.store.verify(task_id, method, typed, status=status)
        except OTPRejected as error:
            _journal.code_refused(task_id, method, error)
            if error.attempts_left == 0:
                self._tell_locked(task_id)
            raise

    def _tell_ended(self, task: Task[Any]) -> Task[Any]:
        """Tell that a task ended without success, let run what follows, and return it."""
        _journal.task_ended(task)
        follow = self.runtime.run_callbacks_due if self.config.eager else partial(self.runtime.wake, task.id)
        follow()
        return task

    def _tell_locked(self, task_id: str) -> None:
        with suppress(RedisError, TaskFlowError):
            self._tell_ended(self.store.get(task_id)[0])

    def _consume_foreign(
        self, task_id: str, channel: Channel, code: OTP, typed: Presented, status: Status
    ) -> Ended:
        """Consume a code that was made elsewhere: count the attempt, check, take its use, end the task."""
        try:
            reserved = self.store.reserve(task_id, channel.method, typed, status=status)
        except OTPRejected:
            self._pretend(channel, code)
            raise
        if isinstance(reserved, Ended):
            return reserved
        task, left = reserved.task, reserved.left
        use = problem = cause = None
        try:
            use = channel.strategy.check(task, code, reserved.now) if typed.admitted else None
        except Exception as error:
            # The error's text and frames may hold the code: only its class may be told.
            cause = type(error).__name__
            problem = str(error) if isinstance(error, ConfigError) else cause
        if problem is not None and cause is not None:
            _journal.check_failed(task_id, channel.method, cause)
            logger.error("Checking %s for task %s failed: %s.", channel.method, task_id, problem)
        address = channel.address(task.recipient)
        if use is not None and self.store.claim_use(task_id, channel.method, address, use):
            return self.store.consume(task_id, channel.method, typed.digests, status=status)
        if left == 0:
            self.store.lock(task_id)
        if problem is not None:
            raise StrategyFailed("the code could not be checked; the log says why. The attempt counts")
        wait = task.resend_after.get(channel.method)
        raise WrongCode("this code is wrong, or was used before", attempts_left=left, resend_after=wait)

    def _pretend(self, channel: Channel, code: OTP) -> None:
        """Take as long for a task that takes no code as for one whose device is asked."""
        decoy = self.store.decoys.read(self.store.decoys.stored(channel.method))
        with suppress(Exception):
            channel.strategy.pretend(decoy, code, time_of(self.keyring.now_ms()))

    def resend(self, task_id: str, method: str, holder: str | None = None) -> Issued:
        """Send a code again."""
        name = check_method(method)
        try:
            _check_id(task_id)
            if name not in self.channels:
                raise MethodNotAllowed(f"{name} has no strategy in this process")
            self._start_at_call()
            keep = self.channels[name].derives and self.config.resend_policy == "same"
            held = self.keyring.is_holder(task_id, holder)
            issued = self.store.resend(task_id, self.sender.new_code(task_id, name), keep=keep, held=held)
        except (OTPRejected, ResendTooSoon, SendLimitReached) as error:
            _journal.resend_refused(task_id, name, error)
            raise
        self._send(issued)
        return issued

    def update_recipient(self, task_id: str, recipient: Recipient | Mapping[str, str | None]) -> Task[Any]:
        """Change addresses of a pending task."""
        self._start_at_call()
        try:
            _check_id(task_id)
            done = None
            while done is None:
                task = self.store.get(task_id)[0]
                # What a task allows never changes: only its strategies are asked about its addresses.
                allowed = [method for method in task.allowed_methods if method in self.channels]
                addresses = read_change({method: self.channels[method] for method in allowed}, recipient)
                codes = [self.sender.new_code(task.id, each, send_at=task.send_at) for each in self.channels]
                done = self.store.update_recipient(task, addresses, codes)
            issued, old = done
        except (OTPRejected, SendLimitReached) as error:
            _journal.send_refused(task_id, error)
            raise
        if old:
            _journal.recipient_changed(issued.task, old, {name: addresses[name] for name in old})
        self._send(issued)
        return issued.task

    def get_task(self, task_id: str) -> Task[Any]:
        """Return a task."""
        _check_id(task_id)
        return self.store.get(task_id)[0]

    def get_course(self, task_id: str) -> list[CourseEntry]:
        """Return what happened to a task."""
        _check_id(task_id)
        return self.courses.read(task_id)

    def look(self, task_id: str, holder: str | None) -> tuple[Task[Any], datetime]:
        """Return a task and the server's time, to its holder if it has one."""
        _check_id(task_id)
        return self.store.get(task_id, held=self.keyring.is_holder(task_id, holder))

    def cancel_task(self, task_id: str) -> Task[Any]:
        """End a task that is pending or may be again, or one that is verified and runs later."""
        _check_id(task_id)
        return self._tell_ended(self.store.cancel(task_id))

    def tasks_of(self, owner: str, queue: str | None) -> list[Task[Any]]:
        """Return the tasks of an owner, the newest first."""
        label = check_label(owner, "owner")
        queues = self.operations.queues() if queue is None else [check_name(queue, "queue")]
        return self.listings.newest_first(queues, label)

    def cancel_tasks(self, owner: str, queue: str | None) -> list[Task[Any]]:
        """End the tasks of an owner that are pending, or may be again."""
        ended = []
        for task in self.tasks_of(owner, queue):
            if task.status in (Status.PENDING, Status.FAILED):
                # It may have ended meanwhile.
                with suppress(OTPRejected):
                    ended.append(self.cancel_task(task.id))
        return ended

    def start(self) -> None:
        """Start this process's threads; does nothing under ``TASKFLOW_EAGER``."""
        if not self.config.eager:
            self.runtime.start()

    def stop(self, timeout: float | timedelta | None = None) -> None:
        """Stop this process's threads.

        :param timeout: seconds to wait for what runs, default ``TASKFLOW_DRAIN``.
        """
        wait = self.config.drain if timeout is None else timeout
        self.runtime.stop(check_seconds(wait, "timeout", maximum=TTL_MAX, minimum=0))

    def start_lazily(self) -> None:
        """Start the threads, if the configuration wants that and they do not run."""
        wanted = self.config.autostart and not self.config.eager and not self.app.testing
        if wanted and self.runtime.may_start and not self.runtime.started:
            self.runtime.start()

    def _start_at_call(self) -> None:
        # A one-off command ends soon: it must not claim callbacks.
        if click.get_current_context(silent=True) is not None:
            return
        try:
            self.start_lazily()
        except RuntimeError as error:
            # The system has no thread for them now. What is stored is run by others, or later.
            _tell_not_started(self.app, error)

    def _send(self, issued: Issued) -> None:
        if not self.config.sends_in_background:
            self.sender.send(issued)
        elif self.config.eager:
            self.runtime.send_due()
        else:
            for code in issued.codes:
                self.runtime.post_own(issued.task.id, code.method)

    def _run_eagerly(self, task_id: str) -> None:
        try:
            self.runtime.announcer.announce(task_id)
            self.runtime.run_callbacks_due()
        except RedisError as error:
            logger.warning("TASKFLOW_EAGER: the bell of task %s is lost: %s", task_id, error)


def _check_id(task_id: object) -> None:
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise TaskNotFound("there is no such task")


def _repeated(task: Task[Any], method: str) -> CodeRepeated:
    """Tell that the code that ended a task came again, and return the error."""
    _journal.code_repeated(task, method)
    return CodeRepeated("this code ended the task just now: nothing was done", task=task)


def _warn_of_unserved(task: Task[Any], operations: Operations) -> None:
    """Tell that a task was verified and nothing follows: the queue is misspelt, or its worker is to come."""
    close: list[str] = []
    with suppress(RedisError):
        close = operations.close_to(task.queue)
    logger.warning(
        "Task %s of queue %s was verified, but no callback is registered for this queue%s. It waits for one "
        "for TASKFLOW_RETENTION; this is told once for the queue.",
        task.id,
        task.queue,
        f"; did you mean {' or '.join(close)}?" if close else "",
    )
