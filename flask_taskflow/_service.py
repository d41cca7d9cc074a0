"""The use cases of one app: what happens to a task, who hears of it, what the audit log says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import click
from flask import Flask
from redis import RedisError

from . import signals
from ._audit import record
from ._callbacks import Callback
from ._codes import CodeStore
from ._config import Config
from ._connect import Connector
from ._drafting import draft_task, read_recipient
from ._keys import TASK_ID, Keys, Queues, tag_of
from ._operations import Operations
from ._otp import OTP, Keyring, mask_all, read_code
from ._runtime import Runtime
from ._sending import Sender
from ._store import Issued, TaskStore
from ._task import Recipient, Task, check_method
from .errors import (
    ConfigError,
    MethodNotAllowed,
    OTPRejected,
    ResendTooSoon,
    SendLimitReached,
    StrategyFailed,
    TaskExpired,
    TaskNotFound,
    WrongCode,
)
from .strategies import Channel

logger = logging.getLogger(__name__)


class Service:
    """Tasks of one app, from its first use on.

    :param app: the app.
    :param config: its configuration.
    :param keyring: its secret keys.
    :param given: the client or function that ``TaskFlow(redis=...)`` was given, or ``None``.
    :param channels: the extension's strategies, by method.
    :param callbacks: the extension's callbacks, by queue and name.
    :raises ConfigError: if no client can be made.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        keyring: Keyring,
        given: object,
        channels: Mapping[str, Channel],
        callbacks: Mapping[str, Mapping[str, Callback]],
    ) -> None:
        connector = Connector(config, given, app.instance_path)
        self._app = app
        self.config = config
        self._keyring = keyring
        self._channels = channels
        self._callbacks = callbacks
        self.client = connector.client()
        self.keys = Keys(config.key_prefix, connector.database)
        self.operations = Operations(self.client, self.keys, channels)
        queues = Queues(self.client, self.keys, callbacks)
        self._store = TaskStore(self.client, self.keys, config, keyring, queues)
        codes = CodeStore(self.client, self.keys, config, keyring)
        self._sender = Sender(app, config, keyring, codes, channels)
        self.runtime = Runtime(
            app, config, callbacks, keyring, connector, self.keys, self._store, queues, codes, self._sender
        )

    def add_task(self, queue: object, data: object, **options: Any) -> Task[Any]:
        """Store a task and send its first codes; the arguments are those of ``TaskFlow.add_task``."""
        draft, methods = draft_task(self.config, self.keys, self._channels, queue, data, **options)
        codes = [self._sender.new_code(draft.id, method) for method in methods]
        self._start_at_call()
        try:
            issued = self._store.add(draft, codes)
        except SendLimitReached as error:
            self._record_limit("send_refused", draft.id, error, queue=draft.queue)
            raise
        addresses = draft.recipient.masked()
        record("task_added", draft.id, queue=draft.queue, addresses=addresses)
        signals.emit(signals.task_added, self._app, task=issued.task)
        self._send(issued)
        return issued.task

    def verify(self, task_id: str, method: str, otp: str) -> Task[Any]:
        """Consume a code."""
        name = check_method(method)
        code = read_code(otp, self._sender.pattern(name))
        del otp
        self._start_at_call()
        try:
            _check_id(task_id)
            channel = self._channels.get(name)
            if channel is not None and channel.checks:
                task = self._verify_foreign(task_id, channel, code)
            else:
                digests = self._keyring.digests(task_id, name, code)
                task = self._store.verify(task_id, name, digests, self._names(task_id))
        except OTPRejected as error:
            self._refused(task_id, name, error)
            raise
        record("code_accepted", task_id, queue=task.queue, method=name)
        if self.config.eager:
            self._run_eagerly(task_id)
        return task

    def _verify_foreign(self, task_id: str, channel: Channel, code: OTP) -> Task[Any]:
        """Verify a code that was made elsewhere: count the attempt, check, take its use, end the task."""
        task, now, left = self._store.reserve(task_id, channel.method)
        use = problem = None
        try:
            use = channel.strategy.check(task, code, now)
        except Exception as error:
            # The error's text and frames may hold the code: only its class may be told.
            problem = str(error) if isinstance(error, ConfigError) else type(error).__name__
        if problem is not None:
            logger.error("Checking %s for task %s failed: %s.", channel.method, task_id, problem)
            raise StrategyFailed("the code could not be checked; the log says why. The attempt counts")
        if use is not None:
            address = channel.address(task.recipient)
            if self._store.claim_use(task_id, channel.method, address, use):
                return self._store.consume(task_id, channel.method, self._names(task_id))
        elif left == 0:
            self._store.lock(task_id)
        raise WrongCode("this code is wrong, or was used before", attempts_left=left)

    def resend(self, task_id: str, method: str) -> Issued:
        """Send a code again."""
        name = check_method(method)
        try:
            _check_id(task_id)
            if name not in self._channels:
                raise MethodNotAllowed(f"{name} has no strategy in this process")
            self._start_at_call()
            keep = self._channels[name].derives and self.config.resend_policy == "same"
            issued = self._store.resend(task_id, self._sender.new_code(task_id, name), keep=keep)
        except (OTPRejected, ResendTooSoon, SendLimitReached) as error:
            self._record_limit("resend_refused", task_id, error, method=name)
            raise
        self._send(issued)
        return issued

    def update_recipient(self, task_id: str, recipient: Recipient | Mapping[str, str | None]) -> Task[Any]:
        """Change addresses of a pending task."""
        addresses = read_recipient(self._channels, recipient).addresses()
        self._start_at_call()
        try:
            _check_id(task_id)
            codes = [self._sender.new_code(task_id, method) for method in self._channels]
            issued, old = self._store.update_recipient(task_id, addresses, codes)
        except (OTPRejected, SendLimitReached) as error:
            self._record_limit("send_refused", task_id, error)
            raise
        if old:
            before, after = mask_all(old), mask_all({name: addresses[name] for name in old})
            record("recipient_changed", task_id, queue=issued.task.queue, old=before, new=after)
            signals.emit(signals.recipient_updated, self._app, task=issued.task, old=before, new=after)
        self._send(issued)
        return issued.task

    def get_task(self, task_id: str) -> Task[Any]:
        """Return a task."""
        _check_id(task_id)
        return self._store.get(task_id)[0]

    def cancel_task(self, task_id: str) -> Task[Any]:
        """End a pending task."""
        _check_id(task_id)
        task = self._store.cancel(task_id)
        record("task_cancelled", task_id, queue=task.queue)
        return task

    def start_lazily(self) -> None:
        """Start the threads, if the configuration wants that and they do not run."""
        wanted = self.config.autostart and not self.config.eager and not self._app.testing
        if wanted and not self.runtime.started:
            self.runtime.start()

    def _start_at_call(self) -> None:
        # A one-off command ends soon: it must not claim callbacks.
        if click.get_current_context(silent=True) is None:
            self.start_lazily()

    def _names(self, task_id: str) -> list[str]:
        tag = tag_of(task_id)
        served = [queue for queue in list(self._callbacks) if self.keys.tag(queue) == tag]
        return [name for queue in served for name in self._callbacks[queue]]

    def _refused(self, task_id: str, method: str, error: OTPRejected) -> None:
        record("code_refused", task_id, level=logging.WARNING, method=method, cause=error.code)
        if error.attempts_left == 0:
            record("task_locked", task_id, level=logging.WARNING, method=method)
        elif isinstance(error, TaskExpired):
            record("task_expired", task_id, method=method)
        signals.emit(signals.otp_rejected, self._app, task_id=task_id, method=method, cause=error.code)

    def _record_limit(
        self, event: str, task_id: str, error: OTPRejected | ResendTooSoon | SendLimitReached, **fields: str
    ) -> None:
        wait = getattr(error, "retry_after", None)
        record(event, task_id, level=logging.WARNING, cause=error.code, retry_after=wait, **fields)

    def _send(self, issued: Issued) -> None:
        if not self.config.sends_in_background:
            self._sender.send(issued)
        elif self.config.eager:
            self.runtime.send_due()
        else:
            for code in issued.codes:
                self.runtime.post_own(issued.task.id, code.method)

    def _run_eagerly(self, task_id: str) -> None:
        try:
            self.runtime.announcer.announce(task_id)
            self.runtime.new_engine().run_due()
        except RedisError as error:
            logger.warning("TASKFLOW_EAGER: the bell of task %s is lost: %s", task_id, error)


def _check_id(task_id: object) -> None:
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise TaskNotFound("there is no such task")
