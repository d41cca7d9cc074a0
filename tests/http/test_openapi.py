"""The OpenAPI document: printed, served, and true."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from apispec import APISpec
from flask import Flask

from flask_taskflow import ConfigError, TaskFlow
from flask_taskflow._http.openapi import openapi_document
from flask_taskflow._operator.cli import taskflow_cli
from tests.conftest import MakeApp


@pytest.fixture
def mounted(app: Flask, taskflow: TaskFlow) -> Flask:
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    return app


def test_document_has_the_routes_where_they_are_mounted(mounted: Flask, taskflow: TaskFlow) -> None:
    only_verify = taskflow.create_blueprint(name="second", routes=["verify"])
    mounted.register_blueprint(only_verify, url_prefix="/b")

    document = openapi_document(mounted)
    printed = mounted.test_cli_runner().invoke(taskflow_cli, ["openapi"])

    verify, resend = (f"/taskflow/tasks/{{task_id}}/{route}" for route in ("verify", "resend"))
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {verify, resend, "/b/tasks/{task_id}/verify"}
    responses = document["paths"][resend]["post"]["responses"]
    assert set(responses) == {"202", "413", "415", "422", "429", "503"}
    assert "Retry-After" in responses["429"]["headers"]
    assert printed.exit_code == 0
    assert f'"{verify}"' in printed.output


def test_variables_of_the_prefix_are_parameters(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()
    prefix = "/<tenant>/<any('a:b', c):kind>/<int(min=1):site>"
    app.register_blueprint(taskflow.blueprint, url_prefix=prefix)

    paths = openapi_document(app)["paths"]

    path = "/{tenant}/{kind}/{site}/tasks/{task_id}/verify"
    assert path in paths
    parameters = paths[path]["post"]["parameters"]
    assert [item["name"] for item in parameters] == ["tenant", "kind", "site", "task_id"]
    assert all(item["in"] == "path" and item["required"] for item in parameters)


def test_document_is_served_only_if_asked(make_app: MakeApp, taskflow: TaskFlow) -> None:
    full_one = taskflow.create_blueprint(name="full", routes=("verify", "resend", "openapi"))
    app = make_app()
    app.register_blueprint(taskflow.blueprint, url_prefix="/plain")
    app.register_blueprint(full_one, url_prefix="/full")

    plain, full = (app.test_client().get(f"/{name}/openapi.json") for name in ("plain", "full"))

    assert plain.status_code == 404
    assert full.json is not None
    assert "/full/tasks/{task_id}/verify" in full.json["paths"]


def test_missing_extra_is_named(mounted: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apispec", None)

    result = mounted.test_cli_runner().invoke(taskflow_cli, ["openapi"])

    assert result.exit_code == 1
    assert "pip install 'flask-taskflow[openapi]'" in result.output
    with pytest.raises(ConfigError, match="extra"):
        openapi_document(mounted)


def test_document_says_what_the_app_adds(make_app: MakeApp, taskflow: TaskFlow) -> None:
    more = {
        "info": {"title": "Bank", "version": "7"},
        "components": {"securitySchemes": {"session": {"type": "apiKey", "in": "cookie", "name": "session"}}},
        "security": [{"session": []}],
    }
    app = make_app()
    app.register_blueprint(taskflow.create_blueprint(routes=["verify"], openapi=more))

    document = openapi_document(app)

    assert document["info"] == more["info"]
    assert document["security"] == more["security"]
    assert document["components"].keys() == {"schemas", "securitySchemes"}
    responses = document["paths"]["/tasks/{task_id}/verify"]["post"]["responses"]
    assert "unauthorized" in responses["401"]["description"]


def test_routes_are_merged_into_a_document_of_the_apps(mounted: Flask, taskflow: TaskFlow) -> None:
    spec = APISpec("Bank", "7", "3.1.0")
    spec.path("/accounts", operations={"get": {}})
    plain: dict[str, Any] = {"paths": {"/accounts": {}}}

    for document in (spec, plain):
        taskflow.merge_into(document)
        with pytest.raises(ConfigError, match=r"/taskflow/tasks/.* already"):
            taskflow.merge_into(document)

    assert spec.to_dict()["components"] == plain["components"]
    assert spec.to_dict()["paths"].keys() == plain["paths"].keys()
    assert spec.to_dict()["info"]["title"] == "Bank"


def test_schema_of_the_apps_is_not_overwritten(mounted: Flask, taskflow: TaskFlow) -> None:
    with pytest.raises(ConfigError, match="Problem"):
        taskflow.merge_into({"components": {"schemas": {"Problem": {"type": "string"}}}})
