"""The extension object: one per app, or one for several apps."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, current_app, has_app_context, request_started

from ._callbacks import Callback
from ._config import Config, read_secrets
from ._otp import OTP, Keyring
from ._service import Service
from ._task import Recipient, Task, check_method
from .blueprint import make_blueprint
from .errors import ConfigError, InvalidTask
from .strategies import BaseStrategy, Channel

StrategyT = TypeVar("StrategyT", bound=BaseStrategy | type[BaseStrategy])
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(slots=True)
class _State:
    """What one app owns of an extension."""

    config: Config
    keyring: Keyring
    lock: threading.Lock = field(default_factory=threading.Lock)
    service: Service | None = None


class TaskFlow:
    """Tasks that wait for a one-time code.

    :param app: calls :meth:`init_app` with it.
    :param redis: a ``redis.Redis`` whose settings are copied, or a function that returns one, called at
        first use; else ``TASKFLOW_REDIS_URL`` counts.
    """

    def __init__(self, app: Flask | None = None, *, redis: object = None) -> None:
        self._redis = redis
        self._states: WeakKeyDictionary[Flask, _State] = WeakKeyDictionary()
        self._channels: dict[str, Channel] = {}
        self._callbacks: dict[str, dict[str, Callback]] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration and register the extension; opens no connection.

        :raises ConfigError: for a bad configuration.
        :raises RuntimeError: if the app has a TaskFlow already.
        """
        # Here, since the commands import the extension.
        from ._cli import taskflow_cli

        if "taskflow" in app.extensions:
            raise RuntimeError("this app has a TaskFlow already: call init_app() once for each app")
        config = Config.read(app.config)
        keys, problem = read_secrets(app.config, lenient=app.debug or app.testing)
        if problem:
            warnings.warn(problem, stacklevel=2)
        self._states[app] = _State(config, Keyring(keys))
        app.extensions["taskflow"] = self
        # The entry point is not known to app.test_cli_runner().
        app.cli.add_command(taskflow_cli)
        request_started.connect(self._start_at_request, app)

    def register_strategy(self, method: str) -> Callable[[StrategyT], StrategyT]:
        """Register a strategy, a class (made without arguments) or an instance, for a method.

        Works before and after ``init_app``, for all its apps; registering a method again replaces it.

        :param method: a :class:`~flask_taskflow.Method` or a name of the app's own.
        :raises ConfigError: if the strategy cannot be used.
        """
        try:
            name = check_method(method)
        except InvalidTask as error:
            raise ConfigError(str(error)) from None

        def register(strategy: StrategyT) -> StrategyT:
            instance = strategy() if isinstance(strategy, type) else strategy
            self._channels[name] = Channel(name, instance)
            return strategy

        return register

    def on_task_verified(
        self,
        queue: str,
        *,
        name: str | None = None,
        max_attempts: int = 3,
        backoff_strategy: str = "fixed",
        backoff_time: float | timedelta = 1.0,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a callback: run it, in one process of the fleet, for each verified task of a queue.

        :param queue: whose tasks.
        :param name: the same in every release; default the function's ``__qualname__``.
        :param max_attempts: failures until the delivery is a dead letter.
        :param backoff_strategy: ``fixed``, ``linear`` or ``exponential``.
        :param backoff_time: seconds, the base of the backoff.
        :raises ConfigError: for a bad argument, or a name that the queue has already.
        """
        if callable(queue):
            raise ConfigError("name the queue: @taskflow.on_task_verified('transfers')")
        if isinstance(backoff_time, timedelta):
            backoff_time = backoff_time.total_seconds()

        def register(function: FunctionT) -> FunctionT:
            chosen = getattr(function, "__qualname__", "").replace("<locals>.", "") if name is None else name
            callback = Callback(queue, chosen, function, max_attempts, backoff_strategy, backoff_time)
            known = self._callbacks.setdefault(queue, {})
            if chosen in known:
                raise ConfigError(f"queue {queue} has a callback {chosen} already: set name=...")
            known[chosen] = callback
            return function

        return register

    def add_task(
        self,
        queue: str,
        data: Any = None,
        *,
        allowed_methods: Iterable[str],
        recipient: Recipient | Mapping[str, str | None],
        summary: str | None = None,
        priority: int = 0,
        ttl: float | timedelta | None = None,
        timeout: float | timedelta | None = None,
        send_via: Iterable[str] | None = None,
        locale: str | None = None,
    ) -> Task[Any]:
        """Store a task and send a code for it.

        :param queue: ``[A-Za-z0-9_.-]{1,64}``; callbacks are registered for it.
        :param data: any JSON value, for the app.
        :param allowed_methods: the methods by which it may be confirmed; each needs a strategy.
        :param recipient: the addresses, each optional; at least one allowed method needs its own.
        :param summary: one line saying what is being confirmed.
        :param priority: within ±2^31, callbacks of higher ones run first.
        :param ttl: seconds to live, default ``TASKFLOW_TASK_TTL``.
        :param timeout: seconds for one attempt of a callback, default ``TASKFLOW_JOB_TIMEOUT``.
        :param send_via: the methods to send by now; default the first one that has its address.
        :param locale: the language of its messages, as ``vi``; default that of the request, by Flask-Babel.
        :raises InvalidTask: for an unusable argument; nothing was stored or sent.
        :raises SendLimitReached: if a recipient had enough; nothing was stored or sent.
        :raises SendFailed: if a strategy raised; the task exists.
        :raises redis.RedisError: if Redis did not answer; the task may exist, unsent.
        """
        return self._service().add_task(
            queue,
            data,
            allowed_methods=allowed_methods,
            recipient=recipient,
            summary=summary,
            priority=priority,
            ttl=ttl,
            timeout=timeout,
            send_via=send_via,
            locale=locale,
        )

    def verify(self, task_id: str, method: str, otp: str) -> Task[Any]:
        """Consume a code: the task becomes ``SUCCESS`` once, and its callbacks are stored to run.

        :param task_id: the task.
        :param method: how the code was sent.
        :param otp: what was typed; spaces, hyphens and digits of other scripts are understood.
        :raises InvalidCode: if it cannot be a code; no attempt was used.
        :raises OTPRejected: if it was not accepted; the subclass says why.
        :raises redis.RedisError: if Redis did not answer; the code may have been consumed.
        """
        if isinstance(otp, str):
            # A traceback that shows locals shows this frame's, too.
            otp = OTP(otp)
        return self._service().verify(task_id, method, otp)

    def resend_otp(self, task_id: str, method: str) -> Task[Any]:
        """Send a code again: the same one while it lasts a minute more, else a new one.

        :param task_id: a pending task.
        :param method: one of its methods.
        :raises OTPRejected: if the task takes no code by this method.
        :raises ResendTooSoon: during the cooldown.
        :raises SendLimitReached: if the task or the recipient had enough.
        :raises SendFailed: if the strategy raised; a resend may follow at once.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().resend(task_id, method).task

    def update_recipient(self, task_id: str, recipient: Recipient | Mapping[str, str | None]) -> Task[Any]:
        """Change addresses of a pending task: codes sent to the old ones die, new ones go out.

        :param task_id: a pending task.
        :param recipient: the addresses that change; the others stay.
        :raises InvalidTask: for an unusable recipient.
        :raises OTPRejected: if the task is not pending.
        :raises SendLimitReached: if the task or a recipient had enough; nothing was changed.
        :raises SendFailed: if a strategy raised; the addresses are changed.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().update_recipient(task_id, recipient)

    def get_task(self, task_id: str) -> Task[Any]:
        """Return a task.

        :raises TaskNotFound: if there is none, or it was forgotten.
        :raises TaskTampered: if it was changed in Redis from outside.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().get_task(task_id)

    def cancel_task(self, task_id: str) -> Task[Any]:
        """End a pending task; its codes are worth nothing any more.

        :raises OTPRejected: if it is not pending.
        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().cancel_task(task_id)

    def start(self) -> None:
        """Start this process's threads; return once they listen, or after a second. Idempotent.

        Does nothing under ``TASKFLOW_EAGER``.
        """
        service = self._service()
        if not service.config.eager:
            service.runtime.start()

    def stop(self, timeout: float | None = None) -> None:
        """Stop this process's threads. Idempotent.

        :param timeout: seconds to wait for callbacks that run, default ``TASKFLOW_DRAIN``.
        """
        service = self._service()
        service.runtime.stop(service.config.drain if timeout is None else timeout)

    def run_due(self) -> int:
        """Run the sends and callbacks that are due in this thread; return how many attempts ran. For tests.

        :raises redis.RedisError: if Redis did not answer.
        """
        return self._service().runtime.run_due()

    @cached_property
    def blueprint(self) -> Blueprint:
        """The default blueprint, with the routes ``verify`` and ``resend``."""
        return self.create_blueprint()

    def create_blueprint(
        self,
        *,
        name: str = "taskflow",
        routes: Iterable[str] = ("verify", "resend"),
        decorators: Iterable[Callable[..., Any]] = (),
    ) -> Blueprint:
        """Return a new blueprint.

        :param name: its name, for ``url_for``.
        :param routes: which routes it has.
        :param decorators: wrapped around each view, the first one innermost.
        :raises ConfigError: for an unknown route.
        """
        return make_blueprint(self, name=name, routes=routes, decorators=decorators)

    def _service(self) -> Service:
        if not has_app_context():
            raise RuntimeError(
                "Flask-TaskFlow works inside an app context: wrap the call in `with app.app_context():`"
            )
        app = cast(Any, current_app)._get_current_object()
        state = self._states.get(app)
        if state is None:
            raise RuntimeError("this TaskFlow does not know the app: call taskflow.init_app(app) first")
        if state.service is None:
            with state.lock:
                state.service = state.service or Service(
                    app, state.config, state.keyring, self._redis, self._channels, self._callbacks
                )
        return state.service

    def _start_at_request(self, app: Flask, **_: Any) -> None:
        with app.app_context():
            self._service().start_lazily()
