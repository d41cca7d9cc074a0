"""The optional HTTP routes, by the contract in ``docs/http.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

from flask import Blueprint, Response, current_app, g, jsonify, request
from marshmallow import Schema
from werkzeug.exceptions import NotFound, RequestEntityTooLarge, UnsupportedMediaType

from .._config.config import current_config
from .._otp import OTP
from .._service import current_service
from .._tasks import Task
from ..errors import CodeRepeated, ConfigError, InvalidCode, NotHolder, OTPRejected, TaskNotFound
from .gate import replay
from .health import look
from .metrics import CONTENT_TYPE, exposition
from .openapi import TaskFlowBlueprint, openapi_document
from .page import add_page, page_of_error, wants_page
from .problems import ANSWERS, answer_for
from .schemas import (
    Accepted,
    CancelRequest,
    InvalidRequest,
    ResendRequest,
    Verified,
    VerifyRequest,
    holder_of,
    read_request,
)
from .status import answer_status, status_of

#: A verification needs less than 200 bytes; OWASP ASVS 5.0, 1.5 asks for a limit.
BODY_MAX = 16 * 1024
#: Endpoints that answer to a browser.
_FOR_BROWSERS = ("page", "act", "replay")


def make_blueprint(
    *,
    name: str,
    routes: Iterable[str],
    decorators: Iterable[Callable[..., Any]],
    frank: bool,
    openapi: Mapping[str, Any],
    owner: Callable[[], str | None] | None,
) -> Blueprint:
    """Return a blueprint with the asked routes; see ``TaskFlow.create_blueprint``.

    An app may mount it under a prefix or a subdomain with variables: the views take and ignore those.

    :raises ConfigError: for an unknown route, and for a frank one without a guard.
    """
    decorators = tuple(decorators)
    if frank and not (decorators or owner):
        raise ConfigError(
            "frank=True tells whoever knows an id what became of its task: give owner=..., or "
            "decorators=[...] that let only its owner in"
        )
    blueprint = TaskFlowBlueprint(name, __name__)
    blueprint.frank, blueprint.openapi, blueprint.owned = frank, openapi, owner is not None
    if owner is not None:
        blueprint.before_request(partial(_only_the_owner, owner))
    wanted = list(routes)
    if "page" in wanted:
        # It is first: where `status` has the same rule, it asks which of the two is wanted.
        add_page(blueprint, decorators)
        wanted[wanted.index("page")] = "replay"
    for route in wanted:
        if route not in _ROUTES:
            there = sorted({*_ROUTES, "page"} - {"replay"})
            raise ConfigError(f"create_blueprint() knows no route {route!r}; it has {there}")
        served = _ROUTES[route]
        view = served.view
        for decorator in decorators:
            view = decorator(view)
        blueprint.add_url_rule(served.rule, endpoint=route, view_func=view, methods=[served.verb])
    answer = partial(_answer, frank=frank)
    for known in ANSWERS:
        for error in known.errors:
            blueprint.register_error_handler(error, answer)
    blueprint.after_request(_no_store)
    return blueprint


def _only_the_owner(owner: Callable[[], str | None]) -> None:
    task_id = (request.view_args or {}).get("task_id")
    # A preflight bears no cookie, and acts on nothing.
    if task_id is None or request.method == "OPTIONS":
        return
    service = current_service()
    try:
        if request.method in ("GET", "HEAD"):
            # Once for the view, too; a form may bring elsewhere what its browser holds the task by.
            g.taskflow_seen = task, _ = service.look(task_id, holder_of(task_id))
        else:
            task = service.get_task(task_id)
    except (NotHolder, TaskNotFound):
        raise NotFound from None
    who: object = owner()
    if not (who is None or isinstance(who, str)):
        raise ConfigError(f"owner= of create_blueprint() must return a str or None, not {type(who).__name__}")
    if task.owner is None or task.owner != who:
        raise NotFound


def _answer(error: Exception, *, frank: bool) -> Response:
    """Return the problem that answers an error, or the page of one if a browser asked for a page."""
    if (request.endpoint or "").rpartition(".")[2] in _FOR_BROWSERS and wants_page():
        return page_of_error(error)
    return answer_for(error, frank=frank)


def _verify(task_id: str, **prefix: object) -> Response:
    body = _body(VerifyRequest(), task_id)
    otp = OTP(body.pop("otp"))
    try:
        task = current_service().verify(task_id, body["method"], otp, body["holder"])
        return jsonify(Verified().dump(task))
    except CodeRepeated as error:
        # A form that was submitted twice, or an answer that was lost.
        return jsonify(Verified().dump(error.task))
    except InvalidCode:
        raise InvalidRequest([("/otp", "This cannot be a code.")]) from None


def _resend(task_id: str, **prefix: object) -> tuple[Response, int]:
    body = _body(ResendRequest(), task_id)
    try:
        issued = current_service().resend(task_id, body["method"], body["holder"])
        seconds = issued.resend_after
    except OTPRejected:
        own = current_app.blueprints[request.blueprint or ""]
        if isinstance(own, TaskFlowBlueprint) and own.frank:
            raise
        # Whether there is such a task is nobody's business.
        seconds = current_config().resend_cooldown
    return jsonify(Accepted().dump({"resend_after": math.ceil(seconds)})), 202


def _cancel(task_id: str, **prefix: object) -> Response:
    body = _body(CancelRequest(), task_id)
    current_service().look(task_id, body["holder"])
    return jsonify(status_of(current_service().cancel_task(task_id)))


def _reject(task_id: str, **prefix: object) -> Response:
    body = _body(VerifyRequest(), task_id)
    try:
        task = current_service().reject(task_id, body["method"], OTP(body.pop("otp")), body["holder"])
        return jsonify(status_of(task))
    except CodeRepeated as error:
        return jsonify(status_of(cast(Task[Any], error.task)))
    except InvalidCode:
        raise InvalidRequest([("/otp", "This cannot be a code.")]) from None


def _status(task_id: str, **prefix: object) -> Response:
    try:
        seen = g.pop("taskflow_seen", None)
        return answer_status(*(seen or current_service().look(task_id, holder_of(task_id))))
    except (NotHolder, TaskNotFound):
        raise NotFound from None


def _health(**prefix: object) -> tuple[Response, int]:
    found = look(current_service())
    return jsonify(asdict(found)), 200 if found.ok else 503


def _metrics(**prefix: object) -> Response:
    return Response(exposition(current_service()), content_type=CONTENT_TYPE)


def _openapi(**prefix: object) -> Response:
    document = openapi_document(current_app)
    return jsonify({"servers": [{"url": request.script_root or "/"}], **document})


@dataclass(frozen=True, slots=True)
class _Route:
    """What a route is served by, and where.

    :param verb: its HTTP method; ``GET`` changes nothing.
    """

    verb: str
    rule: str
    view: Callable[..., Any]


_ROUTES = {
    "verify": _Route("POST", "/tasks/<task_id>/verify", _verify),
    "resend": _Route("POST", "/tasks/<task_id>/resend", _resend),
    "cancel": _Route("POST", "/tasks/<task_id>/cancel", _cancel),
    "reject": _Route("POST", "/tasks/<task_id>/reject", _reject),
    "status": _Route("GET", "/tasks/<task_id>", _status),
    "health": _Route("GET", "/health", _health),
    "replay": _Route("GET", "/tasks/<task_id>/replay", replay),
    "metrics": _Route("GET", "/metrics", _metrics),
    "openapi": _Route("GET", "/openapi.json", _openapi),
}


def _body(schema: Schema, task_id: str) -> dict[str, Any]:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    # One more than the limit: Werkzeug cuts a body without a length at its maximum and says nothing.
    request.max_content_length = BODY_MAX + 1
    # A code is not kept with the request, which trackers of errors read.
    raw = request.get_data(cache=False)
    if len(raw) > BODY_MAX:
        raise RequestEntityTooLarge
    return read_request(schema, raw, task_id)


def _no_store(response: Response) -> Response:
    if request.endpoint is None or not request.endpoint.endswith(".asset"):
        response.headers["Cache-Control"] = "no-store"
    return response
