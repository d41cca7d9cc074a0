"""Frank routes, which tell the owner of a task why."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_taskflow import ConfigError
from flask_taskflow.testing import travel
from tests.support.stage import Stage
from tests.support.tasks import other

ADDRESS = {"email": "ann@example.com"}


@pytest.fixture
def app(stage: Stage) -> Flask:
    app = stage.app(otp_ttl=300)
    blueprint = stage.taskflow.create_blueprint(
        routes=("verify", "resend", "cancel"), decorators=[lambda view: view], frank=True
    )
    app.register_blueprint(blueprint)
    return app


@pytest.fixture
def http(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(http: FlaskClient, task_id: str, route: str, otp: str = "123456", method: str = "EMAIL") -> list[Any]:
    bodies = {"verify": {"method": method, "otp": otp}, "resend": {"method": method}, "cancel": {}}
    answer = http.post(f"/tasks/{task_id}/{route}", json=bodies[route])
    told: Any = answer.get_json(force=True)
    assert answer.headers["Cache-Control"] == "no-store"
    return [answer.status_code, told.get("code"), told.get("attempts_left"), told.get("resend_after")]


def test_frank_verify_tells_wrong_expired_and_locked_apart(stage: Stage, http: FlaskClient) -> None:
    wrong, over, locked, expired = (stage.add(ttl=ttl).id for ttl in (600, 600, 600, 200))
    codes = {message.task.id: str(message.otp) for message in stage.box}

    assert ask(http, wrong, "verify", other(codes[wrong])) == [400, "wrong_code", 4, 30]
    for number in range(1, 6):
        last = ask(http, locked, "verify", other(codes[locked], number))
    assert last == [409, "task_locked", 0, None]
    assert ask(http, wrong, "verify", method="SMS") == [400, "method_not_allowed", 3, None]
    travel(301)
    assert ask(http, over, "verify", codes[over]) == [400, "code_expired", 4, 0]
    assert ask(http, expired, "verify", codes[expired]) == [409, "task_expired", None, None]
    assert ask(http, "a" * 34, "verify") == [404, "task_not_found", None, None]


@pytest.mark.parametrize("route", ["resend", "cancel", "verify"])
def test_frank_route_answers_a_finished_task_by_409(stage: Stage, http: FlaskClient, route: str) -> None:
    task = stage.add()
    first = stage.box[-1].otp

    assert ask(http, task.id, "verify", first)[0] == 200
    travel(61)
    assert ask(http, task.id, route, first)[:2] == [409, "task_not_pending"]


def test_frank_verify_tells_that_a_recipient_is_blocked(stage: Stage, http: FlaskClient) -> None:
    tasks = [stage.add(recipient=ADDRESS).id for _ in range(5)]
    for task_id in tasks[:4]:
        for number in range(1, 6):
            ask(http, task_id, "verify", other(stage.box[-1].otp, number))

    assert ask(http, tasks[4], "verify", stage.box[-1].otp)[:2] == [429, "recipient_blocked"]


def test_frank_routes_need_a_guard(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="only its owner in"):
        stage.taskflow.create_blueprint(frank=True)


def test_document_of_frank_routes_has_their_codes(app: Flask, stage: Stage) -> None:
    document: dict[str, Any] = {}
    stage.taskflow.merge_into(document)

    answers = document["paths"]["/tasks/{task_id}/resend"]["post"]["responses"]
    assert {"404", "409"} <= answers.keys()
    members = document["components"]["schemas"]["Problem"]["properties"]
    codes = members["code"]["enum"]
    assert [uri.rpartition("#")[2].replace("-", "_") for uri in members["type"]["enum"]] == codes
    assert "task_locked" in codes
    assert "otp_rejected" not in codes
