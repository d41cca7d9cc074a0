"""The OpenAPI 3.1 document of the blueprint's routes, made from the schemas that serve them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask

from ._keys import TASK_ID
from ._schemas import Accepted, Problem, ResendRequest, Verified, VerifyRequest
from .errors import ConfigError


class TaskFlowBlueprint(Blueprint):
    """A blueprint of this package's routes."""


_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds until the same request can succeed.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_NO_STORE = {"Cache-Control": {"schema": {"type": "string", "const": "no-store"}}}
_COMMON = {
    413: "The body is larger than 16 KiB.",
    415: "The body is not `application/json`.",
    422: "The body is not valid; `errors` points to the fields.",
    503: "Redis or the sender of codes did not answer.",
}
_ROUTES: dict[str, dict[str, Any]] = {
    "verify": {
        "summary": "Verify a task with the code that its user received.",
        "request": VerifyRequest,
        "success": (200, "The task is verified.", Verified),
        "failures": {400: "The code was not accepted; one answer for every cause."},
    },
    "resend": {
        "summary": "Send the code of a task again.",
        "request": ResendRequest,
        "success": (202, "Accepted, also where nothing is sent.", Accepted),
        "failures": {429: "Too soon, or too many codes."},
    },
}


def openapi_document(app: Flask) -> dict[str, Any]:
    """Return the document of the routes of this package that an app serves, wherever they are mounted.

    :param app: an app that registered the blueprint.
    :raises ConfigError: if the extra ``[openapi]`` is not installed.
    """
    try:
        from apispec import APISpec
        from apispec.ext.marshmallow import MarshmallowPlugin
    except ImportError:
        raise ConfigError(
            "the OpenAPI document needs the extra [openapi]: pip install 'flask-taskflow[openapi]'"
        ) from None
    spec = APISpec(
        title="Flask-TaskFlow",
        version=version("Flask-TaskFlow"),
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin()],
    )
    for rule in app.url_map.iter_rules():
        blueprint, _, name = rule.endpoint.rpartition(".")
        if isinstance(app.blueprints.get(blueprint), TaskFlowBlueprint) and name in _ROUTES:
            path = rule.rule.replace("<task_id>", "{task_id}")
            operation = {"operationId": rule.endpoint, **_operation(_ROUTES[name])}
            spec.path(path, operations={"post": operation})
    document: dict[str, Any] = spec.to_dict()
    return document


def _operation(route: dict[str, Any]) -> dict[str, Any]:
    status, description, schema = route["success"]
    responses: dict[str, Any] = {
        str(status): {
            "description": description,
            "headers": _NO_STORE,
            "content": {"application/json": {"schema": schema}},
        }
    }
    for failure, text in {**route["failures"], **_COMMON}.items():
        responses[str(failure)] = {
            "description": text,
            "headers": {**_NO_STORE, **(_RETRY_AFTER if failure in (429, 503) else {})},
            "content": {"application/problem+json": {"schema": Problem}},
        }
    return {
        "summary": route["summary"],
        "parameters": [
            {
                "name": "task_id",
                "in": "path",
                "required": True,
                "description": f"A task's id; others than `{TASK_ID.pattern}` are unknown tasks.",
                "schema": {"type": "string", "pattern": "^[^/]+$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": route["request"]}},
        },
        "responses": dict(sorted(responses.items())),
    }
