"""The routes for clients that wait: how a task stands, and its cancellation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import abort
from flask.testing import FlaskClient
from redis import Redis

from flask_taskflow import CodeExpired, ResendTooSoon, Retry, SendFailed, WrongCode
from flask_taskflow.testing import travel
from tests.conftest import watch
from tests.support.stage import Stage
from tests.support.tasks import other, refused

BOTH: dict[str, Any] = {
    "allowed_methods": ["EMAIL", "SMS"],
    "recipient": {"email": "ann@example.com", "phone_number": "+12025550123"},
}


@pytest.fixture
def http(stage: Stage) -> Iterator[FlaskClient]:
    app = stage.app()
    blueprint = stage.taskflow.create_blueprint(routes=("verify", "resend", "status", "cancel"))
    app.register_blueprint(blueprint, url_prefix="/t")
    with app.test_client() as client:
        yield client


def test_status_tells_how_a_task_stands_without_data_or_addresses(stage: Stage, http: FlaskClient) -> None:
    task = stage.add(data={"secret": "of the app"}, **BOTH)

    answer = http.get(f"/t/tasks/{task.id}")

    body: Any = answer.json
    assert body == {
        "id": task.id,
        "queue": "q",
        "status": "PENDING",
        "outcome": None,
        "methods": [
            {"method": "EMAIL", "address": "a****@example.com", "resend_after": 30},
            {"method": "SMS", "address": "+12****23", "resend_after": 0},
        ],
        "send_at": None,
        "expires_at": task.expires_at.isoformat(),
        "verified_at": None,
        "attempts_left": 5,
    }
    assert (answer.headers["Cache-Control"], answer.headers["Retry-After"]) == ("no-store", "3")


def test_status_is_304_until_something_changes(stage: Stage, http: FlaskClient, redis: Redis) -> None:
    """Time that passes is no change; that a code can be asked for again is one. One script each."""
    task = stage.add()
    seen: list[int] = []
    tag = ""

    def poll() -> None:
        nonlocal tag
        answer = http.get(f"/t/tasks/{task.id}", headers={"If-None-Match": tag})
        tag = answer.headers["ETag"]
        seen.append(answer.status_code)
        assert answer.status_code == 200 or not answer.data

    poll()
    sent, _ = watch(redis, poll)
    travel(31)
    poll()
    refused(WrongCode, stage.taskflow.verify, task.id, "EMAIL", other(stage.box[-1].otp))
    poll()
    stage.verify(task)
    poll()
    poll()

    assert seen == [200, 304, 200, 200, 200, 304]
    assert [command.split()[0] for command in sent] == ["EVALSHA"]


@pytest.mark.parametrize(
    ("end", "status"), [("verify", "SUCCESS"), ("cancel", "CANCELLED"), ("expire", "EXPIRED")]
)
def test_status_of_a_task_that_is_over_asks_for_no_more(
    stage: Stage, http: FlaskClient, end: str, status: str
) -> None:
    task = stage.add()
    if end == "expire":
        travel(601)
    else:
        right = {"method": "EMAIL", "otp": stage.box[-1].otp}
        http.post(f"/t/tasks/{task.id}/{end}", json=right if end == "verify" else {})

    answer = http.get(f"/t/tasks/{task.id}")

    body: Any = answer.json
    assert (body["status"], body["attempts_left"], body["methods"][0]["resend_after"]) == (status, None, None)
    assert "Retry-After" not in answer.headers


def test_status_of_a_verified_task_asks_for_more_until_its_callbacks_are_done(
    stage: Stage, http: FlaskClient
) -> None:
    stage.work(Retry(after=5))
    task, seen = stage.verified(), [("", "", "")]
    for after in (None, 0, None, 6):
        if after is not None:
            stage.run(after)
        answer = http.get(f"/t/tasks/{task.id}", headers={"If-None-Match": seen[-1][0]})
        told: Any = answer.json or {}
        seen.append(
            (answer.headers["ETag"], told.get("outcome", "304"), answer.headers.get("Retry-After", ""))
        )

    assert [row[1:] for row in seen[1:]] == [("waiting", "3"), ("retrying", "3"), ("304", "3"), ("done", "")]


def test_cancel_ends_a_pending_task_once(stage: Stage, http: FlaskClient) -> None:
    task = stage.add()
    path = f"/t/tasks/{task.id}/cancel"

    bodies: list[dict[str, Any]] = [{"data": {"a": 1}}, {"json": {"a": 1}}, {"json": {}}, {"json": {}}]
    answers = [http.post(path, **body) for body in bodies]

    assert [answer.status_code for answer in answers] == [415, 422, 200, 400]
    assert (answers[2].json or {})["status"] == "CANCELLED"
    assert stage.taskflow.get_task(task.id).status == "CANCELLED"


@pytest.mark.parametrize(("refusal", "code"), [(401, "unauthorized"), (403, "forbidden"), (404, "not_found")])
def test_refusal_of_a_guard_is_a_problem(stage: Stage, refusal: int, code: str) -> None:
    app = stage.app()
    guarded = stage.taskflow.create_blueprint(
        routes=["status"], decorators=[lambda view: lambda **_: abort(refusal)]
    )
    app.register_blueprint(guarded)

    answer = app.test_client().get("/tasks/x")

    assert (answer.status_code, answer.mimetype) == (refusal, "application/problem+json")
    assert (answer.get_json(force=True) or {})["code"] == code


@pytest.mark.parametrize("task_id", ["x", "a" * 34])
def test_status_of_an_unknown_task_is_404(http: FlaskClient, task_id: str) -> None:
    assert http.get(f"/t/tasks/{task_id}").get_json(force=True)["code"] == "not_found"


def test_results_and_errors_tell_what_is_left(stage: Stage) -> None:
    stage.app(otp_ttl=300)
    taskflow, task = stage.taskflow, stage.add(**BOTH)
    assert (task.attempts_left, task.resend_after) == (5, {"EMAIL": 30.0, "SMS": 0.0})

    wrong = refused(WrongCode, taskflow.verify, task.id, "EMAIL", other(stage.box[-1].otp))
    soon = refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")
    travel(61)
    resent = taskflow.resend_otp(task.id, "EMAIL")
    travel(301)
    late = refused(CodeExpired, taskflow.verify, task.id, "EMAIL", stage.box[-1].otp)
    got = taskflow.get_task(task.id)

    assert wrong.attempts_left == 4
    assert 29 < (wrong.resend_after or 0) <= 30
    assert 29 < (soon.resend_after or 0) <= 30
    assert (resent.attempts_left, resent.resend_after["EMAIL"]) == (4, 60.0)
    assert (late.attempts_left, late.resend_after) == (3, 0.0)
    assert (got.attempts_left, got.resend_after) == (3, {"EMAIL": 0.0, "SMS": 0.0})
    assert [each.codes for each in (task, resent, got)] == [{"EMAIL": True}] * 3


def test_task_that_had_all_its_messages_tells_of_no_resend(stage: Stage) -> None:
    stage.app(max_sends=1)

    assert stage.add().resend_after == {}


def test_failed_send_may_be_repeated_at_once(bare_stage: Stage) -> None:
    assert SendFailed("no").resend_after == 0
