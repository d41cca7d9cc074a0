"""The dashboard as a blueprint: its routes, who may take them, and what answers when all is not well."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

from flask import Blueprint, Response, current_app, g, request
from flask.typing import ResponseReturnValue
from redis import RedisError
from werkzeug.exceptions import Forbidden

from ..._http.origin import is_own
from ...errors import ConfigError, OTPRejected, TargetNotFound, TaskNotFound
from . import views
from .access import NO_ACCESS, Access, Visitor
from .actions import act
from .polls import Polls
from .rendering import render

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the dashboard.

    :param rule: its path.
    :param view: answers it.
    :param level: what whoever takes it needs.
    :param methods: its methods.
    :param defaults: arguments of the view that the path does not have.
    """

    rule: str
    view: Callable[..., ResponseReturnValue]
    level: str = "read"
    methods: tuple[str, ...] = ("GET",)
    defaults: Mapping[str, Any] = field(default_factory=dict)


ROUTES = {
    "overview": Route("/", views.overview),
    "queue": Route("/queues/<queue>", views.queue),
    "callback": Route("/queues/<queue>/callbacks/<name>", views.consumer),
    "method": Route("/queues/<queue>/methods/<name>", views.consumer, defaults={"method": True}),
    "dead": Route("/dead", views.dead),
    "find": Route("/tasks", views.find, methods=("GET", "POST")),
    "task": Route("/tasks/<task_id>", views.task),
    "schedules": Route("/schedules", views.schedules),
    "processes": Route("/processes", views.processes),
    "health": Route("/health", views.health),
    "act": Route("/actions/<action>", act, "operate", ("POST",)),
    "asset": Route("/static/<filename>", views.asset),
}


#: What a page that is open reads again.
_OPEN = ("overview", "queue", "callback", "method", "dead", "task", "schedules", "processes")


def make_dashboard(*, access: Access | None, name: str) -> Blueprint:
    """Return the dashboard's blueprint; see ``TaskFlow.create_dashboard``.

    :raises ConfigError: without ``access``.
    """
    if not callable(access):
        raise ConfigError(NO_ACCESS)
    blueprint = Blueprint(name, __name__)
    blueprint.url_defaults(_keep_prefix)
    blueprint.before_request(partial(_admit, access))
    blueprint.after_request(_protect)
    polls = Polls()
    for endpoint, route in ROUTES.items():
        view = _without_prefix(route)
        view = polls.shared(view) if endpoint in _OPEN else view
        blueprint.add_url_rule(route.rule, endpoint, view, methods=route.methods, defaults=route.defaults)
    for errors, status, title in (
        ((Forbidden,), 403, "This is not for you"),
        ((TargetNotFound, TaskNotFound), 404, "There is no such thing"),
        ((OTPRejected,), 409, "This cannot be done any more"),
        ((RedisError,), 503, "Redis does not answer"),
    ):
        for error in errors:
            blueprint.register_error_handler(error, partial(_problem, status, title))
    return blueprint


def _without_prefix(route: Route) -> Callable[..., ResponseReturnValue]:
    """Return a view that leaves out what the prefix or subdomain brings that an app mounts it under."""
    own = {*re.findall(r"<(\w+)>", route.rule), *route.defaults}

    @wraps(route.view)
    def serve(**arguments: Any) -> ResponseReturnValue:
        return route.view(**{name: arguments[name] for name in arguments if name in own})

    return serve


def _keep_prefix(endpoint: str, values: dict[str, Any]) -> None:
    """Lead from one page to another one under the same prefix."""
    for name, value in ((request and request.view_args) or {}).items():
        if current_app.url_map.is_endpoint_expecting(endpoint, name):
            values.setdefault(name, value)


def _admit(access: Access) -> None:
    """Let in whoever has the level that a route needs, and take forms from our own pages only."""
    visitor = Visitor.read(current_app.ensure_sync(access)(request))
    endpoint = (request.endpoint or "").rpartition(".")[2]
    if not visitor.may(ROUTES[endpoint].level) or (request.method not in _SAFE and not is_own()):
        raise Forbidden
    g.visitor = visitor
    # In tests, several requests may share a context.
    g.pop("taskflow_now", None)


def _problem(status: int, title: str, error: Exception) -> ResponseReturnValue:
    # The text of another error may tell of the server what a visitor need not know.
    text = str(error) if isinstance(error, TargetNotFound | OTPRejected) else ""
    return render("problem.html", status, title=title, text=text, note="")


def _protect(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = _POLICY
    # By "no-referrer" a browser would send "Origin: null" with its forms (Fetch, 3.2.5).
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if not (request.endpoint or "").endswith(".asset"):
        response.headers["Cache-Control"] = "no-store"
    return response
