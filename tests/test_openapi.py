"""The OpenAPI document: printed, served, and true."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask

from flask_taskflow import ConfigError, TaskFlow
from flask_taskflow._cli import taskflow_cli
from flask_taskflow._openapi import openapi_document


@pytest.fixture
def mounted(app: Flask, taskflow: TaskFlow) -> Flask:
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    return app


def test_document_has_the_routes_where_they_are_mounted(mounted: Flask, taskflow: TaskFlow) -> None:
    only_verify = taskflow.create_blueprint(name="second", routes=["verify"])
    mounted.register_blueprint(only_verify, url_prefix="/b")

    document = openapi_document(mounted)

    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/taskflow/tasks/{task_id}/verify",
        "/taskflow/tasks/{task_id}/resend",
        "/b/tasks/{task_id}/verify",
    }
    resend = document["paths"]["/taskflow/tasks/{task_id}/resend"]["post"]
    assert set(resend["responses"]) == {"202", "413", "415", "422", "429", "503"}
    assert "Retry-After" in resend["responses"]["429"]["headers"]


def test_document_is_served_only_if_asked(make_app: MakeApp, taskflow: TaskFlow) -> None:
    routes = ("verify", "resend", "openapi")
    app = make_app()
    app.register_blueprint(taskflow.blueprint, url_prefix="/plain")
    app.register_blueprint(taskflow.create_blueprint(name="full", routes=routes), url_prefix="/full")

    plain, full = (app.test_client().get(f"/{name}/openapi.json") for name in ("plain", "full"))

    assert plain.status_code == 404
    assert full.json is not None
    assert "/full/tasks/{task_id}/verify" in full.json["paths"]


def test_command_prints_the_document(mounted: Flask) -> None:
    result = mounted.test_cli_runner().invoke(taskflow_cli, ["openapi"])

    assert result.exit_code == 0
    assert '"/taskflow/tasks/{task_id}/verify"' in result.output


def test_missing_extra_is_named(mounted: Flask, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "apispec", None)

    result = mounted.test_cli_runner().invoke(taskflow_cli, ["openapi"])

    assert result.exit_code == 1
    assert "pip install 'flask-taskflow[openapi]'" in result.output
    with pytest.raises(ConfigError, match="extra"):
        openapi_document(mounted)
