"""What crosses the process boundary as JSON: stored tasks, HTTP requests and answers."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, NoReturn

from marshmallow import Schema, ValidationError, fields, validate

from ._otp import TYPED_MAX
from ._task import METHOD, shown
from .errors import InvalidTask

SUMMARY_MAX = 200
#: Python reads JSON recursively: what one process could just write, a deeper stack could not read.
_DEPTH_MAX = 100


def dump_data(data: object, *, maximum: int) -> str:
    """Return an app's data as compact, strict JSON.

    :param data: any JSON value: no NaN, no keys but strings.
    :param maximum: how many bytes it may take.
    :raises InvalidTask: if it is no such value or too large.
    """
    try:
        _check_nested(data)
        text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise InvalidTask(f"data must be a JSON value: {error!s:.200}") from None
    if size > maximum:
        raise InvalidTask(
            f"data takes {size} bytes, more than TASKFLOW_MAX_DATA_SIZE = {maximum}: store it "
            "elsewhere and add its key to the task"
        )
    return text


def _check_nested(value: object, depth: int = 0) -> None:
    if depth == _DEPTH_MAX and isinstance(value, dict | list | tuple):
        raise ValueError(f"it is nested deeper than {_DEPTH_MAX} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {shown(key)} is not a string")
            _check_nested(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_nested(item, depth + 1)


def dump_fixed(
    *,
    queue: str,
    data: str,
    summary: str | None,
    allowed_methods: tuple[str, ...],
    priority: int,
    timeout: float,
    locale: str | None = None,
) -> str:
    """Return the part of a task that never changes, as it is stored and sealed.

    :param data: JSON already, see :func:`dump_data`; it goes in as it is.
    """
    rest: dict[str, Any] = {
        "queue": queue,
        "summary": summary,
        "allowed_methods": allowed_methods,
        "priority": priority,
        "timeout": timeout,
    }
    if locale is not None:
        rest["locale"] = locale
    head = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"data":{data}}}'


def load_fixed(text: str) -> dict[str, Any]:
    """Return the fields that :func:`dump_fixed` stored."""
    fixed: dict[str, Any] = json.loads(text)
    fixed["allowed_methods"] = tuple(fixed["allowed_methods"])
    return fixed


class InvalidRequest(Exception):
    """A request's body is not what the route takes.

    :param errors: where, as a JSON Pointer (RFC 6901) into the body, and why.
    """

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("invalid request")
        self.errors = errors


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


class FieldError(Schema):
    """Where a request is wrong: a JSON Pointer (RFC 6901) into its body, and why."""

    pointer = fields.String(required=True)
    detail = fields.String(required=True)


class Problem(Schema):
    """An error answer, RFC 9457, with a stable ``code``."""

    type = fields.Constant("about:blank", required=True, metadata={"type": "string"})
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    code = fields.String(required=True)
    errors = fields.List(fields.Nested(FieldError))
