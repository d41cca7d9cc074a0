"""The optional HTTP routes: verify and resend, by the contract in ``docs/http.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request
from redis import RedisError
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from ._openapi import TaskFlowBlueprint, openapi_document
from ._otp import OTP
from ._schemas import (
    Accepted,
    InvalidRequest,
    Problem,
    ResendRequest,
    Verified,
    VerifyRequest,
    read_body,
)
from .errors import (
    ConfigError,
    InvalidCode,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskTampered,
)

if TYPE_CHECKING:
    from ._extension import TaskFlow

#: A verification needs less than 200 bytes; OWASP ASVS 5.0, 1.5 asks for a limit.
BODY_MAX = 16 * 1024
_RETRY_AFTER_OUTAGE = 5

#: A ConfigError is not among them: it is the app's to mend, and a 500.
_ANSWERED: tuple[type[Exception], ...] = (
    InvalidRequest,
    OTPRejected,
    RedisError,
    RequestEntityTooLarge,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskTampered,
    UnsupportedMediaType,
)

_TITLES = {
    "otp_rejected": "The code was not accepted.",
    "invalid_request": "The request is not valid.",
    "too_large": "The request is too large.",
    "unsupported_media_type": "Send application/json.",
    "resend_too_soon": "A code was sent just now.",
    "send_limit": "No more codes can be sent for now.",
    "send_failed": "The code could not be sent.",
    "unavailable": "Try again soon.",
}


def make_blueprint(
    taskflow: TaskFlow,
    *,
    name: str,
    routes: Iterable[str],
    decorators: Iterable[Callable[..., Any]],
) -> Blueprint:
    """Return a blueprint with the asked routes; see ``TaskFlow.create_blueprint``.

    :raises ConfigError: for an unknown route.
    """
    views = {"verify": _verify_view, "resend": _resend_view, "openapi": _openapi_view}
    blueprint = TaskFlowBlueprint(name, __name__)
    decorators = tuple(decorators)
    for route in routes:
        if route not in views:
            raise ConfigError(f"create_blueprint() knows no route {route!r}; it has {sorted(views)}")
        view = views[route](taskflow)
        for decorator in decorators:
            view = decorator(view)
        rule, verb = f"/tasks/<task_id>/{route}", "POST"
        if route == "openapi":
            rule, verb = "/openapi.json", "GET"
        blueprint.add_url_rule(rule, endpoint=route, view_func=view, methods=[verb])
    for error in _ANSWERED:
        blueprint.register_error_handler(error, _problem_for)
    blueprint.after_request(_no_store)
    return blueprint


def _verify_view(taskflow: TaskFlow) -> Callable[..., Any]:
    def verify(task_id: str) -> Response:
        body = _body(VerifyRequest())
        otp = OTP(body.pop("otp"))
        try:
            task = taskflow.verify(task_id, body["method"], otp)
        except InvalidCode:
            raise InvalidRequest([("/otp", "This cannot be a code.")]) from None
        return jsonify(Verified().dump(task))

    return verify


def _resend_view(taskflow: TaskFlow) -> Callable[..., Any]:
    def resend(task_id: str) -> tuple[Response, int]:
        body = _body(ResendRequest())
        try:
            seconds = taskflow._service().resend(task_id, body["method"]).resend_after
        except OTPRejected:
            # Whether there is such a task is nobody's business.
            seconds = taskflow._service().config.resend_cooldown
        return jsonify(Accepted().dump({"resend_after": math.ceil(seconds)})), 202

    return resend


def _openapi_view(taskflow: TaskFlow) -> Callable[..., Any]:
    def openapi() -> Response:
        document = openapi_document(current_app)
        return jsonify({**document, "servers": [{"url": request.script_root or "/"}]})

    return openapi


def _body(schema: VerifyRequest | ResendRequest) -> dict[str, Any]:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    # One more than the limit: Werkzeug cuts a body without a length at its maximum and says nothing.
    request.max_content_length = BODY_MAX + 1
    raw = request.get_data()
    if len(raw) > BODY_MAX:
        raise RequestEntityTooLarge
    return read_body(schema, raw)


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _problem_for(error: Exception) -> Response:
    if isinstance(error, InvalidRequest):
        return _problem(422, "invalid_request", errors=error.errors)
    if isinstance(error, RequestEntityTooLarge):
        return _problem(413, "too_large")
    if isinstance(error, UnsupportedMediaType):
        return _problem(415, "unsupported_media_type")
    if isinstance(error, OTPRejected):
        return _problem(400, OTPRejected.code)
    if isinstance(error, ResendTooSoon | SendLimitReached | SendFailed):
        wait = getattr(error, "retry_after", 1.0)
        return _problem(error.http_status, error.code, retry_after=max(math.ceil(wait), 1))
    return _problem(503, "unavailable", retry_after=_RETRY_AFTER_OUTAGE)


def _problem(
    status: int,
    code: str,
    *,
    retry_after: int | None = None,
    errors: Sequence[tuple[str, str]] = (),
) -> Response:
    body: dict[str, Any] = {"title": _TITLES[code], "status": status, "code": code}
    if errors:
        body["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in errors]
    response = jsonify(Problem().dump(body))
    response.status_code = status
    response.mimetype = "application/problem+json"
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response
