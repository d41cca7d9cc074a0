"""A task with a holder is for whoever brings its secret: its id alone neither locks nor silences it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from redis import Redis

from flask_taskflow import (
    BaseStrategy,
    ConfigError,
    InvalidTask,
    NotHolder,
    SendFailed,
    Task,
    TaskFlow,
    TaskTampered,
)
from flask_taskflow.errors import KeyMissing
from flask_taskflow.testing import Outbox, travel
from tests.conftest import Hear, MakeApp
from tests.support.tasks import EMAIL, PHONE, Tap, add, key_of, keys_like, other, refused, stored_task

CODE = "123456"
ROUTES = ("verify", "resend", "cancel", "status")
ASKED = {"email": EMAIL, "phone_number": PHONE, "device_id": "phone"}


class Device(BaseStrategy):
    """Takes one code."""

    address = "device_id"
    code_pattern = "[0-9]{6}"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        return task.id if otp == CODE else None


def held(taskflow: TaskFlow, method: str = "EMAIL", **options: Any) -> tuple[Task[Any], str]:
    """Add a task with a holder; return that secret as well."""
    task = add(taskflow, allowed_methods=[method], recipient=ASKED, holder=True, **options)
    assert task.holder
    return task, task.holder


def strangers(taskflow: TaskFlow, task: Task[Any]) -> list[str | None]:
    """What others may bring: nothing, another task's secret, the id."""
    return [None, held(taskflow)[1], "", "\ud800", task.id]


@pytest.mark.promise("S68")
@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("method", ["EMAIL", "DEVICE"])
def test_stranger_uses_no_attempt_and_sends_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, method: str
) -> None:
    taskflow.register_strategy("DEVICE")(Device())
    others = strangers(taskflow, held(taskflow)[0])
    task, holder = held(taskflow, method)
    code = box[-1].otp if method == "EMAIL" else CODE
    travel(31)
    before, sent = stored_task(redis, task), len(box)

    for brought in others:
        for otp in (code, other(code)):
            with pytest.raises(NotHolder):
                taskflow.verify(task.id, method, otp, holder=brought)
        with pytest.raises(NotHolder):
            taskflow.resend_otp(task.id, method, holder=brought)

    assert (stored_task(redis, task), len(box)) == (before, sent)
    taskflow.resend_otp(task.id, method, holder=holder)
    assert taskflow.verify(task.id, method, code, holder=holder).status == "SUCCESS"
    with pytest.raises(NotHolder):
        taskflow.verify(task.id, method, code)


@pytest.mark.promise("S31")
@pytest.mark.parametrize("holder", [True, False])
def test_mark_of_the_holder_that_is_changed_in_redis_is_noticed(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, holder: bool
) -> None:
    """Taken away, anybody could confirm the task; put there, its owner could not."""
    ran: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: ran.append(task.id))
    task = add(taskflow, holder=holder)
    key = key_of(redis, task)
    if holder:
        redis.hdel(key, "holder")
    else:
        redis.hset(key, "holder", "1")

    refused(TaskTampered, taskflow.get_task, task.id)
    with pytest.raises((TaskTampered, NotHolder)):
        taskflow.verify(task.id, "EMAIL", box[-1].otp)
    taskflow.run_due()
    refused(TaskTampered, taskflow.get_task, task.id)
    assert ran == []


@pytest.mark.usefixtures("app")
def test_task_without_a_holder_takes_any(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    assert task.holder is None
    assert taskflow.verify(task.id, "EMAIL", box[-1].otp, holder="anything").status == "SUCCESS"
    with pytest.raises(InvalidTask, match="holder must be the text"):
        taskflow.verify(task.id, "EMAIL", box[-1].otp, holder=5)  # type: ignore[arg-type]  # What it refuses.


@pytest.mark.promise("S68")
@pytest.mark.usefixtures("app")
def test_holder_is_nowhere_but_in_what_add_task_returns(
    taskflow: TaskFlow, box: Outbox, redis: Redis, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    from flask_taskflow import task_added, task_verified

    ears = [hear(task_added), hear(task_verified)]
    task, holder = held(taskflow)
    taskflow.verify(task.id, "EMAIL", box[-1].otp, holder=holder)
    told = [ear.next()["task"] for ear in ears] + [taskflow.get_task(task.id), box[-1].task]
    stored = [redis.dump(key) for key in keys_like(redis, "*")]

    assert [one.holder for one in told] == [None] * 4
    assert holder not in repr(task) + repr([record.__dict__ for record in caplog.records])
    assert not any(holder.encode() in (value or b"") for value in stored)


@pytest.mark.usefixtures("app")
def test_task_of_a_failed_send_carries_its_holder(taskflow: TaskFlow) -> None:
    taskflow.register_strategy("EMAIL")(Tap(ValueError()))

    error = refused(SendFailed, held, taskflow)

    assert error.task is not None
    assert error.task.holder


@pytest.mark.promise("S67", "S68")
def test_holder_outlives_a_change_of_keys(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> None:
    old, new = "the old key of the fleet, long", "the new key of the fleet, long"
    with make_app(SECRET_KEY=old).app_context():
        task, holder = held(taskflow)
    with make_app(SECRET_KEY=new).app_context():
        for brought in (holder, None):
            with pytest.raises(KeyMissing):
                taskflow.verify(task.id, "EMAIL", box[-1].otp, holder=brought)
    with make_app(SECRET_KEY=new, SECRET_KEY_FALLBACKS=[old]).app_context():
        assert taskflow.verify(task.id, "EMAIL", box[-1].otp, holder=holder).status == "SUCCESS"


# Over HTTP.


def browser(make_app: MakeApp, taskflow: TaskFlow, **settings: Any) -> FlaskClient:
    """A client of the routes, and of a view that adds a task and lets the client hold it."""
    app = make_app(**settings)
    app.register_blueprint(taskflow.create_blueprint(routes=ROUTES), url_prefix="/taskflow")

    @app.post("/tasks")
    def add_one() -> Response:
        task, _ = held(taskflow)
        response = Response(task.id)
        taskflow.hold(response, task)
        return response

    return app.test_client()


def ask(client: FlaskClient, task_id: str, route: str, base: str, **body: str) -> tuple[object, ...]:
    """Return all that a client can see of the answer but for the date."""
    path = f"/taskflow/tasks/{task_id}"
    if route == "status":
        response = client.get(path, base_url=base)
    else:
        response = client.post(f"{path}/{route}", base_url=base, json=body)
    return response.status, [item for item in response.headers if item[0] != "Date"], response.data


@pytest.mark.promise("S18", "S68")
@pytest.mark.parametrize(("base", "prefix"), [("https://localhost", "__Host-"), ("http://localhost", "")])
def test_cookie_of_a_browser_holds_the_task(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, base: str, prefix: str
) -> None:
    client = browser(make_app, taskflow)
    stranger = client.application.test_client()
    response = client.post("/tasks", base_url=base)
    task_id, (cookie,) = response.text, response.headers.getlist("Set-Cookie")
    flags = {"HttpOnly", "Path=/", "SameSite=Lax", "Max-Age=660"} | ({"Secure"} if prefix else set())

    name, *found = cookie.split("; ")
    assert re.fullmatch(rf"{prefix}taskflow-{task_id}=[\w-]{{22}}", name)
    assert {flag for flag in found if not flag.startswith("Expires")} == flags

    otp = box[-1].otp
    method = {"method": "EMAIL"}
    right, wrong = method | {"otp": otp}, method | {"otp": other(otp)}
    asked = [("verify", right), ("verify", wrong), ("resend", method), ("cancel", {}), ("status", {})]
    for route, body in asked:
        unknown = ask(stranger, "a" * 34, route, base, **body)
        assert ask(stranger, task_id, route, base, **body) == unknown
    assert ask(client, task_id, "status", base)[0] == "200 OK"
    assert ask(client, task_id, "resend", base, **method)[0] == "429 TOO MANY REQUESTS"
    assert ask(client, task_id, "verify", base, **right)[0] == "200 OK"


@pytest.mark.promise("S68")
def test_plain_cookie_is_for_debug_and_tests(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    client = browser(make_app, taskflow, TESTING=False, autostart=False)

    (cookie,) = client.post("/tasks", base_url="http://localhost").headers.getlist("Set-Cookie")

    assert cookie.startswith("__Host-taskflow-")
    assert "; Secure; " in cookie
    assert "is Secure, and this request came over plain HTTP" in caplog.text


def test_only_what_add_task_returned_can_be_held(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    for task in (add(taskflow), taskflow.get_task(held(taskflow)[0].id)):
        with pytest.raises(ConfigError, match="holder=True"):
            taskflow.hold(Response(), task)
