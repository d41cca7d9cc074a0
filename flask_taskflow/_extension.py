"""The extension object: one per app, or one for several apps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar, cast
from weakref import WeakSet

from flask import Blueprint, Flask, Response, request_started

from ._checks import TTL_MAX, check_method, check_methods, check_name, check_seconds
from ._config.config import Config, current_config, read_secrets
from ._decorators import Decorators
from ._delivery.callbacks import Callback, add_callback
from ._http.health import Health, look
from ._keyring import Backstop, Keyring
from ._operator.cli import taskflow_cli
from ._operator.operations import Operations
from ._service import AppState, start_at_request
from ._tasks import Recipient, Task
from .errors import ConfigError, InvalidTask
from .strategies import BaseStrategy, Channel, Channels

StrategyT = TypeVar("StrategyT", bound=BaseStrategy | type[BaseStrategy])
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class TaskFlow(Decorators):
    """Tasks that wait for a one-time code.

    :param app: calls :meth:`init_app` with it.
    :param redis: a ``redis.Redis`` whose settings are copied, or a function that returns one, called at
        first use; else ``TASKFLOW_REDIS_URL`` counts.
    """

    def __init__(self, app: Flask | None = None, *, redis: object = None) -> None:
        self._redis = redis
        self._channels = Channels()
        self._callbacks: dict[str, dict[str, Callback]] = {}
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration and register the extension; opens no connection.

        :raises ConfigError: for a bad configuration, or one that a registered strategy cannot send with.
        :raises RuntimeError: if the app has a TaskFlow already.
        """
        if "taskflow" in app.extensions:
            raise RuntimeError("this app has a TaskFlow already: call init_app() once for each app")
        config = Config.read(app.config)
        config.check_for(app)
        keys, problem = read_secrets(app.config, lenient=app.debug or app.testing)
        if problem:
            warnings.warn(problem, stacklevel=2)
        backstop = Backstop(most=config.otp_max_attempts, memory=config.otp_ttl)
        keyring = Keyring(keys, names=config.keys or (), backstop=backstop)
        config.keep(app)
        keyring.keep(app)
        _check_settings(app, self._channels.values())
        AppState(config, keyring, self._redis, self._channels, self._callbacks).keep(app)
        app.extensions["taskflow"] = self
        # The entry point is not known to app.test_cli_runner().
        app.cli.add_command(taskflow_cli)
        self._apps.add(app)
        request_started.connect(start_at_request, app)

    def register_strategy(self, method: str) -> Callable[[StrategyT], StrategyT]:
        """Register a strategy, a class (made without arguments) or an instance, for a method.

        Works before and after ``init_app``, for all its apps; registering a method again replaces it.

        :param method: a :class:`~flask_taskflow.Method` or a name of the app's own.
        :raises ConfigError: if the strategy cannot be used, or not with the settings of an app.
        """
        try:
            name = check_method(method)
        except InvalidTask as error:
            raise ConfigError(str(error)) from None

        def register(strategy: StrategyT) -> StrategyT:
            instance = strategy() if isinstance(strategy, type) else strategy
            channel = Channel(name, instance)
            for app in list(self._apps):
                _check_settings(app, [channel])
            self._channels[name] = channel
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
        aliases: Iterable[str] = (),
        max_running: int | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a callback: run it, in one process of the fleet, for each verified task of a queue.

        :param queue: whose tasks.
        :param name: the same in every release; default the queue's own name, whatever the function is called.
            Two callbacks of one queue need a name each.
        :param max_attempts: failures until the delivery is a dead letter.
        :param backoff_strategy: ``fixed``, ``linear`` or ``exponential``.
        :param backoff_time: seconds, the base of the backoff.
        :param aliases: names that it had in earlier releases. A verified task is delivered once, whichever
            release stores or runs it.
        :param max_running: how many of its attempts may run at once in the fleet; the others wait.
        :raises ConfigError: for a bad argument, or a name that the queue has already.
        """
        if callable(queue):
            raise ConfigError("name the queue: @taskflow.on_task_verified('transfers')")
        if isinstance(backoff_time, timedelta):
            backoff_time = backoff_time.total_seconds()

        if isinstance(aliases, str) or not isinstance(aliases, Iterable):
            raise ConfigError("aliases must be a list of names")

        def register(function: FunctionT) -> FunctionT:
            chosen = queue if name is None else name
            callback = Callback(
                queue, chosen, function, max_attempts, backoff_strategy, backoff_time,
                tuple(aliases), max_running,
            )  # fmt: skip
            add_callback(self._callbacks.setdefault(queue, {}), callback)
            return function

        return register

    def requires_confirmation(
        self,
        queue: str,
        *,
        recipient: Callable[[], Recipient | Mapping[str, str | None]],
        summary: Callable[[], str | None] | None = None,
        owner: Callable[[], str] | None = None,
        allowed_methods: Iterable[str] | None = None,
        fresh: float | timedelta | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Let a view wait for a code: it runs once, with the request as it was confirmed.

        A browser is led to the page, which the app has to serve, and from there back. A client gets a 202
        with links, and sends the same request again with the header ``Taskflow-Task``.

        :param queue: whose tasks these are.
        :param recipient: called in the request: whom to send the code.
        :param summary: called in the request: one line saying what is being confirmed.
        :param owner: called in the request: who asks; default Flask-Login's user, else the session.
        :param allowed_methods: default all methods that have an address in ``recipient``.
        :param fresh: seconds for which a code serves further requests of the same owner, queue and browser.
        :raises InvalidTask: for a bad argument.
        """
        from ._http.gate import Gate

        methods = None if allowed_methods is None else check_methods(allowed_methods, "allowed_methods")
        gate = Gate(
            queue=check_name(queue, "queue"),
            recipient=recipient,
            summary=summary,
            owner=owner,
            allowed_methods=methods,
            fresh=None if fresh is None else check_seconds(fresh, "fresh", maximum=TTL_MAX),
        )
        return cast(Callable[[FunctionT], FunctionT], gate.guard)

    def hold(self, response: Response, task: Task[Any]) -> None:
        """Let the browser that gets a response hold a task, by a cookie that the routes read.

        No script of a page can read it, and no other site can have it sent. It lives as long as the task,
        and longer while somebody looks at what becomes of that. A browser takes it over HTTPS only; while the
        app is in debug or ``TESTING``, over plain HTTP as well.

        :param response: what the view returns.
        :param task: what ``add_task(holder=True)`` returned.
        :raises ConfigError: if the task carries no ``holder``.
        """
        # Here, as below: marshmallow is a tenth of the time that this package takes to import.
        from ._http.schemas import hold

        hold(response, task)

    def to_page(self, task: Task[Any]) -> Response:
        """Return the answer, a 303, that leads a browser to the page of a task and lets it hold the task.

        :param task: what ``add_task(holder=True)`` returned.
        :raises ConfigError: if the app serves no page, or the task carries no ``holder``.
        """
        from ._http.page import to_page

        return to_page(task)

    def start(self) -> None:
        """Start this process's threads; return once they listen, or after a second. Idempotent.

        Does nothing under ``TASKFLOW_EAGER``.
        """
        self._service().start()

    def stop(self, timeout: float | timedelta | None = None) -> None:
        """Stop this process's threads. Idempotent.

        :param timeout: seconds to wait for callbacks that run, default ``TASKFLOW_DRAIN``.
        :raises InvalidTask: if that is no time.
        """
        self._service().stop(timeout)

    def register_error_handlers(self, target: Flask | Blueprint) -> None:
        """Let the views of an app, or of a blueprint of its own, answer the errors of this package.

        ``429`` and ``503`` have ``Retry-After``; bodies are those of the routes. A :exc:`ConfigError` stays a
        ``500``.

        :param target: whose views. ``redis.RedisError`` is answered as well, whoever raised it there.
        """
        from ._http.problems import register_error_handlers

        register_error_handlers(target)

    def health(self) -> Health:
        """Return whether this process can do its work: Redis answers, it listens, nothing waits for long."""
        return look(self._service())

    @property
    def operations(self) -> Operations:
        """What an operator does to the fleet of the current app."""
        return Operations(self._service())

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
        frank: bool = False,
        openapi: Mapping[str, Any] | None = None,
        owner: Callable[[], str | None] | None = None,
    ) -> Blueprint:
        """Return a new blueprint.

        :param name: its name, for ``url_for``.
        :param routes: which routes it has: ``verify``, ``resend``, ``openapi``, ``health``, ``metrics``; and,
            for tasks that a guard of yours protects, ``status``, ``cancel`` and ``reject``.
        :param decorators: wrapped around each view, the first one innermost.
        :param frank: whether refusals say why. Only for tasks that a guard protects: it tells who knows an id
            what became of the task.
        :param openapi: what the OpenAPI document says besides, in its own words: ``info``, ``security``,
            ``components`` and so on.
        :param owner: returns who asks, as ``add_task(owner=...)`` names people, or ``None``: other people's
            tasks are a ``404``, as those that are not there.
        :raises ConfigError: for an unknown route, and for a frank one without a guard.
        """
        from ._http.blueprint import make_blueprint

        return make_blueprint(
            name=name, routes=routes, decorators=decorators, frank=frank, openapi=openapi or {}, owner=owner
        )

    def create_dashboard(
        self, *, access: Callable[[Any], Any] | None = None, name: str = "taskflow_dashboard"
    ) -> Blueprint:
        """Return a blueprint with pages for operators: what the fleet does, and what can be done about it.

        :param access: takes each request; answers ``"none"``, ``"read"``, ``"operate"``, or a name for the
            audit log and one of these. It may also ``abort``, as with an answer that leads to a log-in.
        :param name: its name, for ``url_for``.
        :raises ConfigError: without ``access``: nobody is let in by default.
        """
        from ._operator.dashboard.blueprint import make_dashboard

        return make_dashboard(access=access, name=name)

    def merge_into(self, spec: Any) -> None:
        """Add the routes of this package that the current app serves to an OpenAPI document of the app's.

        :param spec: a dictionary, or an ``apispec.APISpec``.
        :raises ConfigError: without the extra ``[openapi]``, or if the document has one of these paths or
            another schema of the same name.
        """
        from ._http.openapi import merge_into

        merge_into(spec)


def _check_settings(app: Flask, channels: Iterable[Channel]) -> None:
    """Let strategies refuse an app's settings, unless an outbox takes their place."""
    with app.app_context():
        if not app.testing and current_config().outbox_file is None:
            for channel in channels:
                channel.strategy.check_settings()
