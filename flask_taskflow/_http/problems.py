"""What HTTP answers to an error: one table, for handlers, the OpenAPI document and pages of the docs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request
from redis import RedisError
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    NotFound,
    RequestEntityTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)

from ..errors import (
    CodeExpired,
    InvalidCode,
    InvalidTask,
    KeyMissing,
    KeyReused,
    MethodNotAllowed,
    OTPRejected,
    RecipientBlocked,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskExpired,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    TaskTampered,
    WrongCode,
)
from .schemas import InvalidRequest, Problem

#: The page on which each code has its section: what a problem's ``type`` leads to, and names it by.
_PAGE = "https://flask-taskflow.readthedocs.io/en/latest/errors.html"
#: Seconds after which to try again when Redis or a strategy did not answer.
_RETRY_AFTER_OUTAGE = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How some errors are answered.

    :param errors: their classes; subclasses are answered alike.
    :param status: the HTTP status.
    :param code: the problem's stable ``code``.
    :param title: its title.
    :param when: in which cases, for the documentation.
    :param routes: the routes that may answer it.
    :param retry_after: the seconds in ``Retry-After`` if the error has none of its own; ``None``: no header.
    """

    errors: tuple[type[Exception], ...]
    status: int
    code: str
    title: str
    when: str
    routes: tuple[str, ...] = ("verify", "resend", "cancel", "reject")
    retry_after: float | None = None

    @property
    def type(self) -> str:
        """The problem's ``type``, a URI that leads to its section of the docs."""
        return f"{_PAGE}#{self.code.replace('_', '-')}"


#: A ConfigError is not among them: it is the app's to mend, and a 500.
ANSWERS = (
    Answer(
        (OTPRejected,),
        OTPRejected.http_status,
        OTPRejected.code,
        "The code was not accepted.",
        "unknown task, wrong code, expired, locked, verified already (but by this code within a minute), "
        "method not allowed: one answer for all",
        routes=("verify", "cancel", "reject"),
    ),
    Answer((Unauthorized,), 401, "unauthorized", "Log in first.", "a guard of the app says so", routes=()),
    Answer((Forbidden,), 403, "forbidden", "This is not permitted.", "a guard of the app says so", routes=()),
    Answer(
        (NotFound,),
        404,
        "not_found",
        "There is no such task.",
        "`status` of a task that is unknown or forgotten; or a guard of the app says so",
        routes=("status",),
    ),
    Answer((RequestEntityTooLarge,), 413, "too_large", "The request is too large.", "the body is over 16 kB"),
    Answer(
        (UnsupportedMediaType,),
        415,
        "unsupported_media_type",
        "Send application/json.",
        "not `application/json`",
    ),
    Answer(
        (InvalidRequest,),
        422,
        "invalid_request",
        "The request is not valid.",
        "the body is not what the route takes, or the text cannot be a code; no attempt is used",
    ),
    Answer(
        (ResendTooSoon,),
        ResendTooSoon.http_status,
        ResendTooSoon.code,
        "A code was sent just now.",
        "the cooldown runs",
        routes=("resend",),
        retry_after=1.0,
    ),
    Answer(
        (SendLimitReached,),
        SendLimitReached.http_status,
        SendLimitReached.code,
        "No more codes can be sent for now.",
        "the task or its recipient had all the codes it may have for now",
        routes=("resend",),
        retry_after=1.0,
    ),
    Answer(
        (SendFailed,),
        SendFailed.http_status,
        SendFailed.code,
        "The code could not be sent.",
        "the strategy could not send; try again at once",
        routes=("resend",),
        retry_after=1.0,
    ),
    Answer(
        (RedisError, StrategyFailed, TaskTampered, KeyMissing),
        503,
        "unavailable",
        "Try again soon.",
        "Redis did not answer, a strategy could not check the code, the task was changed from outside, or "
        "another secret key made it",
        routes=("verify", "resend", "cancel", "reject", "status"),
        retry_after=_RETRY_AFTER_OUTAGE,
    ),
)

#: What a frank blueprint answers instead of ``otp_rejected``.
FRANK = (
    Answer((TaskNotFound,), 404, TaskNotFound.code, "There is no such task.", "there is none, or no more"),
    Answer(
        (WrongCode,),
        400,
        WrongCode.code,
        "The code is wrong.",
        "as `attempts_left` tells",
        ("verify", "reject"),
    ),
    Answer(
        (CodeExpired,),
        400,
        CodeExpired.code,
        "The code is over.",
        "a resend makes a new one",
        ("verify", "reject"),
    ),
    Answer(
        (MethodNotAllowed,),
        400,
        MethodNotAllowed.code,
        "The task is not confirmed in this way.",
        "it does not allow the method, or has no address for it",
        ("verify", "resend", "reject"),
    ),
    Answer(
        (RecipientBlocked,),
        429,
        RecipientBlocked.code,
        "Too many wrong codes for this address.",
        "over all tasks of an address or an owner; none is compared for now",
        ("verify", "reject"),
        retry_after=60.0,
    ),
    Answer((TaskExpired,), 409, TaskExpired.code, "The task's time is over.", "add a new one"),
    Answer((TaskLocked,), 409, TaskLocked.code, "Too many wrong codes.", "the task is over"),
    Answer((TaskNotPending,), 409, TaskNotPending.code, "The task is over.", "it ended already"),
)

#: What views of an app may meet besides; the routes tell more of it, see ``InvalidRequest``.
OF_VIEWS = (
    Answer(
        (InvalidCode,),
        InvalidCode.http_status,
        InvalidCode.code,
        "This cannot be a code.",
        "the text cannot be a code; no attempt is used",
        routes=(),
    ),
    Answer(
        (InvalidTask,),
        InvalidTask.http_status,
        InvalidTask.code,
        "The request is not valid.",
        "an argument is not usable, such as an address; nothing was stored or sent",
        routes=(),
    ),
    Answer(
        (KeyReused,),
        KeyReused.http_status,
        KeyReused.code,
        "This was asked before, in another way.",
        "a task was added with the same key and other arguments; nothing was stored or sent",
        routes=(),
    ),
)
#: What views behind the gate answer, which no error stands for.
OF_GATE = (
    Answer(
        (),
        202,
        "confirmation_required",
        "Confirm this by a code, and send the request again with its task.",
        "the view waits for a code; no failure",
        routes=(),
    ),
    Answer(
        (),
        403,
        "not_confirmed",
        "This request is not confirmed.",
        "the task that came with it is not verified, or confirms another request",
        routes=(),
    ),
    Answer(
        (),
        409,
        "done_before",
        "This was confirmed before, and begun.",
        "the view ran for this code already, and its answer is not kept any more",
        routes=(),
    ),
)
#: Errors of Werkzeug and of a body: the app answers them as it likes.
OF_ROUTES = (
    Unauthorized,
    Forbidden,
    NotFound,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InvalidRequest,
)


def register_error_handlers(target: Flask | Blueprint) -> None:
    """Let the views of an app or a blueprint answer our errors; see ``TaskFlow.register_error_handlers``."""
    for answer in (*ANSWERS, *OF_VIEWS):
        for error in answer.errors:
            if error not in OF_ROUTES:
                target.register_error_handler(error, answer_of_view)


def is_answered_by_app(error: Exception) -> bool:
    """Tell whether the app has a handler of its own for such an error, not for all errors."""
    kinds = [kind for kind in type(error).__mro__ if kind not in (Exception, BaseException, object)]
    for place in (*request.blueprints, None):
        handlers = current_app.error_handler_spec.get(place, {}).get(None, {})
        found = next((handlers[kind] for kind in kinds if kind in handlers), None)
        if found is not None:
            return found is not answer_of_view
    return False


def answer_of_view(error: Exception) -> Response:
    """Return the problem that answers an error in a view of the app."""
    # The task is stored: who asked needs its id for another code.
    stored = error.task.id if isinstance(error, SendFailed) and error.task else None
    response = answer_for(error, task=stored)
    response.headers["Cache-Control"] = "no-store"
    return response


def problem(code: str, **more: object) -> Response:
    """Return a problem, RFC 9457, that no error stands for.

    :param code: one of ``OF_GATE``.
    :param more: members that it has besides.
    """
    answer = next(item for item in OF_GATE if item.code == code)
    response = _respond(answer, {}, **more)
    response.headers["Cache-Control"] = "no-store"
    return response


def _respond(answer: Answer, known: dict[str, Any], **more: object) -> Response:
    body = {"type": answer.type, "title": answer.title, "status": answer.status, "code": answer.code, **known}
    response = jsonify({**Problem().dump(body), **more})
    response.status_code, response.mimetype = answer.status, "application/problem+json"
    return response


def answer_for(error: Exception, *, frank: bool = False, task: str | None = None) -> Response:
    """Return the problem, RFC 9457, that answers an error.

    :param frank: whether it says why a code was not accepted.
    :param task: the id of the task that it is about, if that is to be told.
    """
    known = (*(FRANK if frank else ()), *ANSWERS, *OF_VIEWS)
    answer = next(item for item in known if isinstance(error, item.errors))
    body: dict[str, Any] = {}
    if answer in FRANK and isinstance(error, OTPRejected):
        if error.attempts_left is not None:
            body["attempts_left"] = error.attempts_left
        if error.resend_after is not None:
            body["resend_after"] = math.ceil(error.resend_after)
    if isinstance(error, InvalidRequest):
        body["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in error.errors]
    response = _respond(answer, body, **({} if task is None else {"task": task}))
    keep_headers(response, error)
    if answer.retry_after is not None:
        # RFC 9110, 10.2.3: whole seconds, rounded up, since what comes earlier is refused again.
        wait = getattr(error, "retry_after", answer.retry_after)
        response.headers["Retry-After"] = str(max(math.ceil(wait), 1))
    return response


def keep_headers(response: Response, error: Exception) -> None:
    """Let a response have what an error of HTTP says besides its content, such as how to log in."""
    if isinstance(error, HTTPException):
        for name, value in error.get_response().headers:
            if not name.lower().startswith("content-"):
                response.headers.add(name, value)
