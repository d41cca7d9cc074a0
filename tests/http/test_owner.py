"""Routes for the owner of a task, and for who did not ask for it."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, request
from redis import Redis

from flask_taskflow import ConfigError
from flask_taskflow._http.openapi import openapi_document
from tests.conftest import watch
from tests.support.stage import Stage

ROUTES = ("verify", "resend", "cancel", "reject", "status")


@pytest.fixture
def app(stage: Stage) -> Flask:
    app = stage.app()
    owned = stage.taskflow.create_blueprint(
        routes=ROUTES, owner=lambda: request.headers.get("User"), frank=True
    )
    app.register_blueprint(owned)
    return app


def ask(app: Flask, task_id: str, route: str, user: str | None, otp: str = "123456") -> Any:
    bodies: dict[str, Any] = {"resend": {"method": "EMAIL"}, "cancel": {}}
    body = bodies.get(route, {"method": "EMAIL", "otp": otp})
    verb, path = ("GET", "") if route == "status" else ("POST", f"/{route}")
    headers = {"User": user} if user else {}
    given = {} if route == "status" else {"json": body}
    return app.test_client().open(f"/tasks/{task_id}{path}", method=verb, headers=headers, **given)


@pytest.mark.parametrize("route", ROUTES)
def test_routes_answer_for_the_owner_only(stage: Stage, app: Flask, route: str) -> None:
    task, nobodys = stage.add(owner="ann"), stage.add()
    otp = str(stage.box[0].otp)

    others = [ask(app, task.id, route, user, otp) for user in ("bob", None)]
    others += [ask(app, task_id, route, "ann", otp) for task_id in (nobodys.id, "a" * 34)]
    others += [ask(app, nobodys.id, route, None, otp)]
    own = ask(app, task.id, route, "ann", otp)

    assert {answer.status_code for answer in others} == {404}
    assert len({answer.data for answer in others}) == 1
    assert own.status_code == (429 if route == "resend" else 200)


def test_owned_status_is_one_script(stage: Stage, app: Flask, redis: Redis) -> None:
    task = stage.add(owner="ann")
    ask(app, task.id, "status", "ann")

    sent, _ = watch(redis, lambda: ask(app, task.id, "status", "ann"))

    assert [command.split()[0] for command in sent] == ["EVALSHA"]


def test_right_code_rejects_what_nobody_asked_for(stage: Stage, app: Flask) -> None:
    task = stage.add(owner="ann")

    wrong = ask(app, task.id, "reject", "ann", "nonsense")
    answers = [ask(app, task.id, "reject", "ann", str(stage.box[0].otp)) for _ in range(2)]

    assert [wrong.status_code, *(answer.status_code for answer in answers)] == [422, 200, 200]
    assert answers[0].json == answers[1].json
    assert answers[0].json["status"] == stage.taskflow.get_task(task.id).status == "REJECTED"


def test_document_tells_of_404(app: Flask, stage: Stage) -> None:
    paths = openapi_document(app)["paths"]

    assert all("404" in item["responses"] for path in paths.values() for item in path.values())
    with pytest.raises(ConfigError, match="owner="):
        stage.taskflow.create_blueprint(frank=True)


def test_owner_that_is_no_text_is_the_apps_to_mend(stage: Stage) -> None:
    app = stage.app()
    wrong: Any = lambda: 17  # noqa: E731 # what a database has
    app.register_blueprint(stage.taskflow.create_blueprint(routes=ROUTES, owner=wrong))

    with pytest.raises(ConfigError, match="must return a str or None, not int"):
        ask(app, stage.add(owner="17").id, "status", None)
