"""What HTTP requests and answers hold."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any, NoReturn

from flask import Response, current_app, request
from marshmallow import Schema, ValidationError, fields, validate

from .._checks import METHOD
from .._course import Outcome
from .._log import Logger
from .._otp import TYPED_MAX
from .._tasks import Status, Task
from ..errors import ConfigError

logger = Logger(__name__)

_COOKIE = "taskflow-"
#: A browser takes a cookie of such a name from this very host alone, over HTTPS, for all paths (RFC 6265bis,
#: 4.1.3.2): no other subdomain and nobody on the network can plant one.
_GUARDED = "__Host-"


#: Seconds that a browser holds a task after its end, to see what becomes of it; and after each look at that.
#: Cookies that last as long as their tasks are kept would fill the requests of who confirms much.
_AFTER, _MORE = 60.0, 3600.0


class InvalidRequest(Exception):
    """A request's body is not what the route takes.

    :param errors: where, as a JSON Pointer (RFC 6901) into the body, and why.
    """

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("invalid request")
        self.errors = errors


def read_request(schema: Schema, raw: bytes, task_id: str) -> dict[str, Any]:
    """Return what the current request brings: its body, and what its browser holds a task by.

    :raises InvalidRequest: if the body is not what a schema wants.
    """
    return {**read_body(schema, raw), "holder": holder_of(task_id)}


def hold(response: Response, task: Task[Any], *, beyond: float = 0.0) -> None:
    """Set the cookie of a task; see ``TaskFlow.hold``.

    :param beyond: seconds that it lives longer than the task.
    :raises ConfigError: if the task carries no holder.
    """
    if task.holder is None:
        raise ConfigError("this task has no holder: hold() takes what add_task(..., holder=True) returned")
    if not (request.is_secure or _is_plain()):
        logger.warning(
            "The cookie that holds task %s is Secure, and this request came over plain HTTP: the browser may "
            "drop it. Serve HTTPS; behind a proxy that ends TLS set Werkzeug's ProxyFix.",
            task.id,
        )
    _set(response, task.id, task.holder, _life(task) + beyond)


def hold_on(response: Response, task: Task[Any]) -> None:
    """Let a browser that holds a task, and looks at what becomes of it, see more of that, and no less."""
    holder = holder_of(task.id)
    if holder is not None:
        _set(response, task.id, holder, max(_life(task), _MORE))


def _life(task: Task[Any]) -> float:
    return (task.expires_at - task.created_at).total_seconds() + _AFTER


def _set(response: Response, task_id: str, holder: str, lasts: float) -> None:
    response.set_cookie(
        _name(task_id),
        holder,
        max_age=math.ceil(lasts),
        secure=not _is_plain(),
        httponly=True,
        samesite="Lax",
    )


def holder_of(task_id: str) -> str | None:
    """Return what the current request's browser holds a task by, or ``None``."""
    return request.cookies.get(_name(task_id))


def _name(task_id: str) -> str:
    return f"{'' if _is_plain() else _GUARDED}{_COOKIE}{task_id}"


def _is_plain() -> bool:
    # Not every browser takes http://localhost for secure.
    return not request.is_secure and (current_app.debug or current_app.testing)


def read_body(schema: Schema, raw: bytes) -> dict[str, Any]:
    """Return a request's body, UTF-8 without a byte order mark, as a schema wants it.

    :raises InvalidRequest: for anything else.
    """
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_read_object, parse_constant=_refuse_constant)
        loaded: dict[str, Any] = schema.load(value)
    except ValidationError as error:
        messages = error.normalized_messages()
        raise InvalidRequest(
            [
                ("" if name == "_schema" else f"/{_escaped(name)}", str(texts[0]))
                for name, texts in messages.items()
            ]
        ) from None
    except (ValueError, RecursionError):
        raise InvalidRequest([("", "Not valid JSON.")]) from None
    return loaded


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # I-JSON (RFC 7493, 2.1 and 2.3): what stands in front may read a repeated name or half of a surrogate
    # pair in another way than we do.
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name stands twice")
    for item in chain.from_iterable(pairs):
        if isinstance(item, str):
            item.encode()
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _escaped(name: object) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


class ResendRequest(Schema):
    """The body of ``POST /tasks/<id>/resend``."""

    # JSON Schema has no \Z, and Python's $ would let a line feed pass.
    method = fields.String(
        required=True,
        validate=validate.Regexp(f"{METHOD.pattern}\\Z"),
        metadata={"pattern": f"^{METHOD.pattern}$"},
    )


class VerifyRequest(ResendRequest):
    """The body of ``POST /tasks/<id>/verify``; ``otp`` is checked by the method's pattern."""

    otp = fields.String(required=True, validate=validate.Length(max=TYPED_MAX))


class Verified(Schema):
    """What a verification answers."""

    id = fields.String(required=True)
    queue = fields.String(required=True)
    status = fields.String(required=True)
    method = fields.String(required=True, attribute="verification_method")
    verified_at = fields.AwareDateTime(required=True)


class Accepted(Schema):
    """What a resend answers."""

    status = fields.Constant("accepted", required=True, metadata={"type": "string"})
    resend_after = fields.Integer(required=True)


class CancelRequest(Schema):
    """The body of ``POST /tasks/<id>/cancel``: an empty object, which no form of another site can send."""


class MethodStatus(Schema):
    """A method by which a task may be confirmed."""

    method = fields.String(required=True)
    address = fields.String(required=True, allow_none=True, metadata={"description": "Masked."})
    resend_after = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Seconds until a code can be asked for; null if none can."},
    )


class TaskStatus(Schema):
    """How a task stands."""

    id = fields.String(required=True)
    queue = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(list(Status)))
    outcome = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf(list(Outcome)),
        metadata={"description": "What became of a verified task; null before."},
    )
    methods = fields.List(fields.Nested(MethodStatus), required=True)
    send_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "When its codes go out, if not at once."}
    )
    expires_at = fields.AwareDateTime(required=True)
    verified_at = fields.AwareDateTime(required=True, allow_none=True)
    attempts_left = fields.Integer(required=True, allow_none=True)


class FieldError(Schema):
    """Where a request is wrong: a JSON Pointer (RFC 6901) into its body, and why."""

    pointer = fields.String(required=True)
    detail = fields.String(required=True)


class Problem(Schema):
    """An error answer, RFC 9457, with a stable ``code``."""

    type = fields.String(
        required=True, metadata={"format": "uri", "description": "A link to what the docs say of the code."}
    )
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    code = fields.String(required=True)
    attempts_left = fields.Integer(metadata={"description": "Of frank routes only."})
    resend_after = fields.Integer(metadata={"description": "In seconds, of frank routes only."})
    errors = fields.List(fields.Nested(FieldError))
