"""The OpenAPI 3.1 document of the blueprint's routes, made from the schemas that serve them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from flask import Blueprint, Flask, current_app

from .._store.keys import TASK_ID
from ..errors import ConfigError, OTPRejected
from .problems import ANSWERS, FRANK, Answer
from .schemas import (
    Accepted,
    CancelRequest,
    Problem,
    ResendRequest,
    TaskStatus,
    Verified,
    VerifyRequest,
)


class TaskFlowBlueprint(Blueprint):
    """A blueprint of this package's routes."""

    #: Whether its refusals say why.
    frank = False
    #: Whether they answer for tasks of one owner only.
    owned = False
    #: What the document of its app says besides.
    openapi: Mapping[str, Any] = MappingProxyType({})


#: A variable of a rule, as Werkzeug reads it: ``<tenant>``, ``<int:tenant>``, ``<any(a, b):tenant>``.
_VARIABLE = re.compile(r"<(?:[a-zA-Z_]\w*(?:\(.*?\))?:)?([a-zA-Z]\w*)>", re.ASCII)
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds until the same request can succeed.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_NO_STORE = {"Cache-Control": {"schema": {"type": "string", "const": "no-store"}}}
_POLLED = {**_NO_STORE, **_RETRY_AFTER, "ETag": {"schema": {"type": "string"}}}
_ROUTES: dict[str, dict[str, Any]] = {
    "verify": {
        "summary": "Verify a task with the code that its user received.",
        "request": VerifyRequest,
        "success": (200, "The task is verified.", Verified),
    },
    "resend": {
        "summary": "Send the code of a task again.",
        "request": ResendRequest,
        "success": (202, "Accepted, also where nothing is sent.", Accepted),
    },
    "cancel": {
        "summary": "End a pending task; its codes are worth nothing any more.",
        "request": CancelRequest,
        "success": (200, "The task is cancelled.", TaskStatus),
    },
    "reject": {
        "summary": "Say with a right code that this was not asked for: the task is over.",
        "request": VerifyRequest,
        "success": (200, "The task is rejected.", TaskStatus),
    },
    "status": {
        "summary": "Tell how a task stands.",
        "success": (200, "How it stands; nothing changes any more without `Retry-After`.", TaskStatus),
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
    found: set[Answer] = set()
    for rule in app.url_map.iter_rules():
        blueprint, _, name = rule.endpoint.rpartition(".")
        own = app.blueprints.get(blueprint)
        if isinstance(own, TaskFlowBlueprint) and name in _ROUTES:
            failures = _failures(name, own)
            found |= {answer for answers in failures.values() for answer in answers}
            operation = _operation(name, _VARIABLE.findall(rule.rule), failures)
            verb = "post" if "request" in _ROUTES[name] else "get"
            operations = {verb: {"operationId": rule.endpoint, **operation}}
            spec.path(_VARIABLE.sub(r"{\1}", rule.rule), operations=operations)
    document: dict[str, Any] = spec.to_dict()
    if found:
        members = document["components"]["schemas"]["Problem"]["properties"]
        for name in ("code", "type"):
            members[name]["enum"] = sorted({getattr(answer, name) for answer in found})
    for own in app.blueprints.values():
        if isinstance(own, TaskFlowBlueprint):
            _merge(document, own.openapi)
    return document


def _merge(document: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping):
            _merge(document.setdefault(name, {}), value)
        else:
            document[name] = value


def merge_into(spec: Any) -> None:
    """Add the current app's routes to a document; see ``TaskFlow.merge_into``."""
    document = openapi_document(current_app)
    schemas = document.get("components", {}).get("schemas", {})
    held = spec if isinstance(spec, dict) else spec.to_dict()
    taken = held.get("paths", {}).keys() & document["paths"].keys()
    there = held.get("components", {}).get("schemas", {})
    taken |= {name for name, schema in schemas.items() if there.get(name, schema) != schema}
    if taken:
        raise ConfigError(f"the document has a {min(taken)} of its own already")
    if isinstance(spec, dict):
        _merge(spec, {"paths": document["paths"], "components": document.get("components", {})})
        return
    for name in schemas.keys() - there.keys():
        spec.components.schema(name, component=schemas[name])
    for path, operations in document["paths"].items():
        spec.path(path, operations=operations)


def _operation(
    name: str, variables: Iterable[str], failures: Mapping[int, Iterable[Answer]]
) -> dict[str, Any]:
    route = _ROUTES[name]
    status, description, schema = route["success"]
    responses: dict[str, Any] = {
        str(status): {
            "description": description,
            "headers": _NO_STORE,
            "content": {"application/json": {"schema": schema}},
        }
    }
    if name == "status":
        responses["200"]["headers"] = _POLLED
        responses["304"] = {
            "description": "Nothing changed since the answer with this ETag.",
            "headers": _POLLED,
        }
    for failure, answers in failures.items():
        waits = any(answer.retry_after is not None for answer in answers)
        responses[str(failure)] = {
            "description": "\n".join(f"`{answer.code}`: {answer.when}." for answer in answers),
            "headers": {**_NO_STORE, **(_RETRY_AFTER if waits else {})},
            "content": {"application/problem+json": {"schema": Problem}},
        }
    operation = {
        "summary": route["summary"],
        "parameters": [_parameter(variable) for variable in variables],
        "responses": dict(sorted(responses.items())),
    }
    if "request" in route:
        content = {"application/json": {"schema": route["request"]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(variable: str) -> dict[str, Any]:
    about = "Of the prefix under which the app mounts this."
    if variable == "task_id":
        about = f"A task's id; others than `{TASK_ID.pattern}` are unknown tasks."
    schema = {"type": "string", "pattern": "^[^/]+$"}
    return {"name": variable, "in": "path", "required": True, "description": about, "schema": schema}


def _failures(name: str, blueprint: TaskFlowBlueprint) -> dict[int, list[Answer]]:
    """Return the answers to errors of a blueprint's route, by status."""
    found: dict[int, list[Answer]] = {}
    for answer in (*(FRANK if blueprint.frank else ()), *ANSWERS):
        guards = (answer.code == "unauthorized" and "security" in blueprint.openapi) or (
            answer.code == "not_found" and blueprint.owned
        )
        plain = name in answer.routes and not (blueprint.frank and answer.errors == (OTPRejected,))
        if guards or plain:
            found.setdefault(answer.status, []).append(answer)
    return found
