"""The HTTP contract, on a real server; what bodies may do is in ``tests/promises/test_hostile_bodies.py``."""

from __future__ import annotations

import io
import re
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial, wraps
from typing import Any, cast

import pytest
from flask import Blueprint, Flask, abort, request
from flask.testing import FlaskClient
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from werkzeug.test import TestResponse

from flask_taskflow import BaseStrategy, ConfigError, OutboxStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import (
    InvalidCode,
    InvalidTask,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskFlowError,
    TaskNotFound,
    TaskTampered,
    WrongCode,
)
from flask_taskflow.testing import Outbox, travel
from tests.conftest import MakeApp
from tests.support.tasks import PHONE, add, other, refused

UNKNOWN = "a" * 34
BODY = b'{"method": "EMAIL", "otp": "123456"}'
both_routes = pytest.mark.parametrize("route", ["verify", "resend"])


class Client:
    """A client of the two routes."""

    def __init__(self, app: Flask, prefix: str = "/taskflow") -> None:
        self.http: FlaskClient = app.test_client()
        self.prefix = prefix

    def post(self, task_id: str, route: str, **options: Any) -> TestResponse:
        return self.http.post(f"{self.prefix}/tasks/{task_id}/{route}", **options)

    def verify(self, task_id: str, otp: Any, method: Any = "EMAIL") -> TestResponse:
        return self.post(task_id, "verify", json={"method": method, "otp": otp})

    def resend(self, task_id: str, method: Any = "EMAIL") -> TestResponse:
        return self.post(task_id, "resend", json={"method": method})

    def ask(self, route: str, task_id: str, otp: Any = "123456") -> TestResponse:
        return self.resend(task_id) if route == "resend" else self.verify(task_id, otp)


@pytest.fixture
def mount(make_app: MakeApp, taskflow: TaskFlow) -> Callable[..., Client]:
    """Make an app with these settings and a blueprint, and a client of it."""

    def make(blueprint: Any = None, **settings: Any) -> Client:
        app = make_app(recipient_max_sends=100, **settings)
        app.register_blueprint(blueprint or taskflow.blueprint, url_prefix="/taskflow")
        return Client(app)

    return make


@pytest.fixture
def client(mount: Callable[..., Client]) -> Any:
    client = mount()
    with client.http.application.app_context():
        yield client


Mount = Callable[..., Client]


def whole(response: TestResponse) -> tuple[Any, ...]:
    """All that a client can see, but for the date."""
    headers = [(name, value) for name, value in response.headers if name != "Date"]
    return response.status, headers, response.data


def assert_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    body = cast(dict[str, Any], response.get_json(force=True))
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"].endswith(f"/errors.html#{code.replace('_', '-')}")
    assert body["title"]
    return body


def pointers(response: TestResponse) -> list[str]:
    return sorted(error["pointer"] for error in assert_problem(response, 422, "invalid_request")["errors"])


def stored(redis: Redis) -> dict[bytes, Any]:
    keys = [
        key for key in cast(list[bytes], redis.keys("*")) if not key.endswith((b":counters", b":history"))
    ]
    return {key: redis.dump(key) for key in keys}


def test_verify_with_the_right_code_answers_the_task(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, data={"secret": "of the app"})

    response = client.verify(task.id, box[0].otp)

    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert response.headers["Cache-Control"] == "no-store"
    body = cast(dict[str, Any], response.json)
    at = body.pop("verified_at")
    assert body == {"id": task.id, "queue": "q", "status": "SUCCESS", "method": "EMAIL"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", at)
    assert datetime.fromisoformat(at) == taskflow.get_task(task.id).verified_at
    assert datetime.fromisoformat(at).utcoffset() == timedelta(0)


@pytest.mark.promise("S41")
@pytest.mark.parametrize(
    "typed",
    [
        lambda code: f" {code} ",
        lambda code: f"{code[0]}{code[1]}{code[2]} {code[3:]}",
        lambda code: f"{code[0]}-{code[1:]}",
        lambda code: "".join(chr(ord("０") + int(digit)) for digit in code),
        lambda code: "".join(chr(ord("٠") + int(digit)) for digit in code),
    ],
    ids=["blanks", "a blank", "a hyphen", "full width", "Arabic"],
)
def test_verify_forgives_digits_of_other_scripts(
    client: Client, taskflow: TaskFlow, box: Outbox, typed: Callable[[str], str]
) -> None:
    """Blanks and hyphens, too."""
    task = add(taskflow)

    assert client.verify(task.id, typed(str(box[0].otp))).status_code == 200


@pytest.mark.promise("S73")
def test_form_that_is_submitted_twice_gets_the_same_answer(
    client: Client, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)

    first, second = (client.verify(task.id, box[0].otp) for _ in range(2))
    wrong, unknown = client.verify(task.id, other(box[0].otp)), client.verify(UNKNOWN, box[0].otp)

    assert first.status_code == 200
    assert whole(second) == whole(first)
    assert whole(wrong) == whole(unknown)
    travel(61)
    assert whole(client.verify(task.id, box[0].otp)) == whole(unknown)


@pytest.mark.promise("S18")
def test_verify_gives_one_answer_for_every_cause(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    ttls = {"a": 600, "b": 600, "c": 600, "d": 90}
    recipients = ({"email": f"{name}@example.com", "phone_number": PHONE} for name in ttls)
    wrong, locked, done, expired = (
        add(taskflow, recipient=recipient, ttl=ttl).id
        for recipient, ttl in zip(recipients, ttls.values(), strict=True)
    )
    codes = [message.otp for message in box]
    for number in range(1, 6):
        locking = client.verify(locked, other(codes[1], number))
    client.verify(done, codes[2])
    blocked = [add(taskflow, recipient={"email": "e@example.com"}) for _ in range(5)]
    for task in blocked[:4]:
        for number in range(1, 6):
            client.verify(task.id, other(box[-1].otp, number))
    travel(91)

    answers = {
        "recipient blocked": client.verify(blocked[4].id, box[-1].otp),
        "unknown id": client.verify(UNKNOWN, codes[0]),
        "wrong code": client.verify(wrong, other(codes[0])),
        "expired": client.verify(expired, codes[3]),
        "just locked": locking,
        "locked": client.verify(locked, codes[1]),
        "already verified": client.verify(done, codes[2]),
        "method not allowed": client.verify(wrong, codes[0], method="SMART_OTP"),
        "method of nobody": client.verify(wrong, codes[0], method="OTHER"),
        "no code by this method": client.verify(wrong, codes[0], method="SMS"),
        "malformed id": client.verify("x", codes[0]),
    }

    assert_problem(answers["unknown id"], 400, "otp_rejected")
    different = {cause for cause, answer in answers.items() if whole(answer) != whole(answers["wrong code"])}
    assert not different


@pytest.mark.promise("S18")
def test_verify_of_a_code_that_is_over_gives_the_same_answer(
    mount: Mount, taskflow: TaskFlow, box: Outbox
) -> None:
    client = mount(otp_ttl=60)
    with client.http.application.app_context():
        task = add(taskflow)
        travel(61)

    assert whole(client.verify(task.id, box[0].otp)) == whole(client.verify(UNKNOWN, box[0].otp))


@pytest.mark.promise("S20")
def test_verify_answers_the_same_sequence_for_an_unknown_id(
    client: Client, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    typed = [other(box[0].otp, number) for number in range(1, 8)]

    known, unknown = (
        [whole(client.verify(task_id, otp)) for otp in typed] for task_id in (task.id, task.id[:-4] + "aaaa")
    )

    assert known == unknown


MALFORMED: list[Any] = ["", " ", "abcdef", "1234567", "12345", "1" * 10_000, "\0", "12345\0", "１２３"]
MALFORMED += [[], ["123456"], {}, 123456, None, True, 1.5, "123456\n123456"]


@pytest.mark.promise("S40")
@pytest.mark.parametrize("otp", MALFORMED, ids=lambda otp: ascii(otp)[:20])
def test_verify_with_what_cannot_be_a_code_uses_no_attempt(
    client: Client, taskflow: TaskFlow, redis: Redis, otp: Any
) -> None:
    """The same for every id, and nothing asks Redis."""
    task = add(taskflow)
    before = stored(redis)
    redis.config_resetstat()

    answers = [client.verify(task_id, otp) for task_id in (task.id, UNKNOWN, "x")]

    assert pointers(answers[0]) == ["/otp"]
    assert len({str(whole(answer)) for answer in answers}) == 1
    assert "evalsha" not in str(redis.info("commandstats"))
    assert stored(redis) == before


@pytest.mark.promise("S58")
@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("verify", {}, ["/method", "/otp"]),
        ("verify", {"method": "EMAIL"}, ["/otp"]),
        ("verify", {"otp": "123456"}, ["/method"]),
        ("verify", {"method": "EMAIL", "otp": "123456", "task": 1}, ["/task"]),
        ("verify", {"method": "EMAIL", "otp": "123456", "a/b~c": 1}, ["/a~1b~0c"]),
        ("verify", {"method": "email", "otp": "123456"}, ["/method"]),
        ("verify", {"method": "EMAIL\n", "otp": "123456"}, ["/method"]),
        ("verify", {"method": 1, "otp": "123456"}, ["/method"]),
        ("verify", {"method": None, "otp": "123456"}, ["/method"]),
        ("verify", [], [""]),
        ("verify", "EMAIL", [""]),
        ("verify", 1, [""]),
        ("resend", {}, ["/method"]),
        ("resend", {"method": "x"}, ["/method"]),
        ("resend", {"method": "EMAIL", "otp": "1"}, ["/otp"]),
        ("resend", [], [""]),
    ],
)
def test_unusable_body_is_pointed_at_by_its_fields_whatever_the_id(
    client: Client, taskflow: TaskFlow, route: str, body: Any, expected: list[str]
) -> None:
    known, unknown = (client.post(task_id, route, json=body) for task_id in (add(taskflow).id, "x"))

    assert pointers(known) == expected
    assert whole(known) == whole(unknown)


@pytest.mark.promise("S58")
@both_routes
def test_body_of_another_type_is_refused(client: Client, route: str) -> None:
    response = client.post(UNKNOWN, route, data=BODY, content_type="text/plain")

    assert_problem(response, 415, "unsupported_media_type")


def body_of(size: int, *, chunked: bool = False) -> dict[str, Any]:
    """Return what sends a body of so many bytes, with its length or without one."""
    padded = BODY.ljust(size)
    if not chunked:
        return {"content_type": "application/json", "data": padded}
    terminated = {"wsgi.input_terminated": True}
    stream = io.BytesIO(padded)
    return {"content_type": "application/json", "input_stream": stream, "environ_overrides": terminated}


@pytest.mark.promise("S58")
@both_routes
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "without a length"])
def test_body_over_16_kilobytes_is_refused(client: Client, route: str, chunked: bool) -> None:
    """No more than the limit is read."""
    bodies = [body_of(size, chunked=chunked) for size in (16 * 1024, 16 * 1024 + 1, 10_000_000)]

    fits, over, much = (client.post(UNKNOWN, route, **body) for body in bodies)

    assert fits.status_code in (400, 422)
    assert_problem(over, 413, "too_large")
    assert_problem(much, 413, "too_large")
    assert not chunked or bodies[2]["input_stream"].tell() < 100_000


def test_body_that_a_hook_has_read_already_is_refused_just_so(mount: Mount) -> None:
    client = mount()
    client.http.application.before_request(lambda: request.get_data() and None)

    assert_problem(client.post(UNKNOWN, "verify", **body_of(20_000)), 413, "too_large")


def test_resend_sends_and_tells_when_the_next_may_follow(
    client: Client, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(30)

    response = client.resend(task.id)

    assert (response.status_code, response.json) == (202, {"status": "accepted", "resend_after": 60})
    assert response.headers["Cache-Control"] == "no-store"
    assert len(box) == 2


@pytest.mark.parametrize(
    "case", ["unknown", "malformed", "verified", "cancelled", "not allowed", "no strategy"]
)
def test_resend_that_sends_nothing_is_accepted_all_the_same(
    client: Client, taskflow: TaskFlow, box: Outbox, case: str
) -> None:
    task = add(taskflow)
    expected = whole(client.resend(add(taskflow).id, "SMS"))
    sent = len(box)
    if case == "verified":
        taskflow.verify(task.id, "EMAIL", box[0].otp)
    if case == "cancelled":
        taskflow.cancel_task(task.id)
    task_id = {"unknown": UNKNOWN, "malformed": "x"}.get(case, task.id)
    method = {"not allowed": "SMART_OTP", "no strategy": "NOBODY"}.get(case, "EMAIL")
    taskflow.register_strategy("SMART_OTP")(OutboxStrategy(messages=box))

    response = client.resend(task_id, method)

    assert response.json == {"status": "accepted", "resend_after": 30}
    assert whole(response) == expected
    assert len(box) == sent


@pytest.mark.promise("S22")
def test_resend_within_the_cooldown_tells_the_seconds_left_rounded_up(
    client: Client, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    task = add(taskflow)
    travel(28.1)
    before = stored(redis)

    response = client.resend(task.id)

    assert_problem(response, 429, "resend_too_soon")
    assert response.headers["Retry-After"] == "2"
    assert len(box) == 1
    assert stored(redis) == before
    travel(1)
    assert client.resend(task.id).headers["Retry-After"] == "1"


@pytest.mark.promise("S25")
def test_resend_at_a_limit_tells_how_long_it_holds(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=7200)
    for _ in range(5):
        travel(600)
        response = client.resend(task.id)

    assert_problem(response, 429, "send_limit")
    assert 4140 <= int(response.headers["Retry-After"]) <= 4200
    assert len(box) == 5


def test_resend_that_fails_is_unavailable(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    class Broken(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            raise OSError(f"550 cannot deliver {otp}")

    task = add(taskflow)
    travel(30)
    taskflow.register_strategy("EMAIL")(Broken())

    response = client.resend(task.id)

    assert_problem(response, 503, "send_failed")
    assert int(response.headers["Retry-After"]) >= 1
    assert str(box[0].otp).encode() not in response.data


@pytest.mark.promise("S31")
@pytest.mark.parametrize("poison", [{"seal": "forged"}, {"expires": b"\xff"}, {"status": b"\xff"}, "type"])
@both_routes
def test_task_changed_in_redis_is_unavailable(
    client: Client, taskflow: TaskFlow, box: Outbox, redis: Redis, route: str, poison: Any
) -> None:
    task = add(taskflow)
    travel(30)
    (key,) = cast(list[bytes], redis.keys("*:task:*"))
    if poison == "type":
        redis.set(key, "x")
    else:
        redis.hset(key, mapping=poison)

    assert_problem(client.ask(route, task.id, box[0].otp), 503, "unavailable")
    assert len(box) == 1


@pytest.mark.promise("S48")
@pytest.mark.parametrize("listening", [False, True], ids=["refuses", "never answers"])
@both_routes
def test_redis_that_is_away_is_unavailable_soon(mount: Mount, route: str, listening: bool) -> None:
    """Within twice the timeout, and it may be tried again."""
    timeout = 1
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if listening:
            deaf.listen()
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        client = mount(redis_url=url, redis_timeout=timeout)
        taken: list[float] = []
        # A busy machine may hold some of them up.
        while not taken or (min(taken) >= 2 * timeout and len(taken) < 20):
            began = time.monotonic()
            response = client.ask(route, UNKNOWN)
            taken.append(time.monotonic() - began)
    assert_problem(response, 503, "unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert min(taken) < 2 * timeout


@pytest.mark.promise("S43")
@both_routes
@pytest.mark.parametrize("verb", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
def test_only_post_acts(
    client: Client, taskflow: TaskFlow, box: Outbox, redis: Redis, route: str, verb: str
) -> None:
    task = add(taskflow)
    travel(30)
    before = stored(redis)
    body = {"method": "EMAIL", "otp": box[0].otp} if route == "verify" else {"method": "EMAIL"}
    path = f"/taskflow/tasks/{task.id}/{route}"

    answers = [client.http.open(path, method=verb, json=body) for _ in range(10)]

    assert {answer.status_code for answer in answers} == {200 if verb == "OPTIONS" else 405}
    assert stored(redis) == before
    assert len(box) == 1
    assert taskflow.get_task(task.id).status is Status.PENDING


@pytest.mark.promise("S55")
def test_addresses_and_data_appear_in_no_answer(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, data="confidential", summary="intimate")
    answers = [client.resend(task.id)]
    travel(30)
    answers += [client.resend(task.id), client.verify(task.id, other(box[0].otp))]
    answers += [client.verify(task.id, box[0].otp), client.resend(task.id)]

    shown = "".join(answer.text for answer in answers)
    assert not [text for text in ("ann@", "5550", "confidential", "intimate") if text in shown]


def test_routing_and_errors_of_the_app_stay_its_own(mount: Mount) -> None:
    client = mount()
    app, http = client.http.application, client.http

    @app.get("/task-error")
    def task_error() -> str:
        raise TaskFlowError("of the app's own making")

    app.add_url_rule("/big", view_func=lambda: abort(413))
    errors: tuple[Any, ...] = (404, 405, 413, TaskFlowError)
    for error in errors:
        app.register_error_handler(error, lambda raised, known=error: (f"the app's {known}", 500))

    assert http.get("/nothing").text == "the app's 404"
    assert http.post("/taskflow/tasks/").text == "the app's 404"
    assert http.get("/taskflow/tasks/x/verify").text == "the app's 405"
    assert http.get("/big").text == "the app's 413"
    assert http.get("/task-error").text == f"the app's {TaskFlowError}"
    assert "Cache-Control" not in http.get("/big").headers
    assert_problem(client.verify("x", "123456"), 400, "otp_rejected")
    assert_problem(client.post("x", "verify"), 415, "unsupported_media_type")


ERRORS: dict[str, tuple[Exception, int, str, str | None]] = {
    "outage": (RedisConnectionError("away"), 503, "unavailable", "5"),
    "checked nothing": (StrategyFailed("no answer"), 503, "unavailable", "5"),
    "changed": (TaskTampered("changed"), 503, "unavailable", "5"),
    "too soon": (ResendTooSoon("wait", retry_after=29.2), 429, "resend_too_soon", "30"),
    "limit": (SendLimitReached("enough", retry_after=599.5), 429, "send_limit", "600"),
    "not sent": (SendFailed("away"), 503, "send_failed", "1"),
    "wrong": (WrongCode("no", attempts_left=2), 400, "otp_rejected", None),
    "unknown": (TaskNotFound("no"), 400, "otp_rejected", None),
    "no code": (InvalidCode("no"), 422, "invalid_code", None),
    "no task": (InvalidTask("ann@example.com is not usable"), 422, "invalid_task", None),
}


@pytest.mark.parametrize("where", ["app", "blueprint"])
@pytest.mark.parametrize("case", ERRORS)
def test_view_of_the_app_answers_our_errors_where_it_asked_for_that(
    make_app: MakeApp, taskflow: TaskFlow, where: str, case: str
) -> None:
    error, status, code, wait = ERRORS[case]

    def fail() -> str:
        raise error

    app, own = make_app(), Blueprint("own", __name__, url_prefix="/own")
    taskflow.register_error_handlers(app if where == "app" else own)
    own.add_url_rule("/", view_func=fail)
    app.register_blueprint(own)
    app.add_url_rule("/other", view_func=fail)

    answer = app.test_client().get("/own/")

    assert_problem(answer, status, code)
    assert answer.headers.get("Retry-After") == wait
    assert "example.com" not in answer.text
    if where == "blueprint":
        with pytest.raises(type(error)):
            app.test_client().get("/other")


def test_view_whose_code_was_not_sent_tells_the_task(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    app = make_app()
    taskflow.register_error_handlers(app)
    app.add_url_rule("/", view_func=lambda: add(taskflow).id)
    box.fail(OSError("no"))

    answer = app.test_client().get("/")

    assert_problem(answer, 503, "send_failed")
    with app.app_context():
        assert taskflow.get_task(answer.get_json()["task"]).status == "PENDING"


def test_view_of_the_app_keeps_its_other_errors(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()
    taskflow.register_error_handlers(app)
    app.add_url_rule("/big", "big", lambda: abort(413))
    app.add_url_rule("/config", "config", lambda: str(taskflow.create_blueprint(routes=["x"])))

    assert app.test_client().get("/big").mimetype == "text/html"
    with pytest.raises(ConfigError):
        app.test_client().get("/config")


def test_error_in_the_apps_configuration_is_not_hidden(make_app: MakeApp) -> None:
    extension = TaskFlow(redis="not a client")
    app = make_app(extension)
    app.register_blueprint(extension.blueprint, url_prefix="/taskflow")

    refused(ConfigError, Client(app).verify, UNKNOWN, "123456")


def test_blueprint_has_the_routes_that_were_asked_for(mount: Mount, taskflow: TaskFlow) -> None:
    client = mount(taskflow.create_blueprint(routes=["verify"]))

    assert [client.ask(route, "x").status_code for route in ("verify", "resend")] == [400, 404]
    with pytest.raises(ConfigError, match=r"'delete'.*'resend', 'status', 'verify'"):
        taskflow.create_blueprint(routes=["delete"])


def test_blueprints_of_two_names_stand_side_by_side(client: Client, taskflow: TaskFlow, box: Outbox) -> None:
    app = client.http.application
    app.register_blueprint(taskflow.create_blueprint(name="internal", routes=["verify"]))

    response = Client(app, prefix="").verify(add(taskflow).id, box[0].otp)

    assert response.status_code == 200
    assert {"taskflow.verify", "taskflow.resend", "internal.verify"} <= set(app.view_functions)
    assert taskflow.blueprint is taskflow.blueprint


def test_decorators_wrap_every_view_the_first_innermost(mount: Mount, taskflow: TaskFlow) -> None:
    seen: list[str] = []

    def tell(name: str, view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def wrapped(**arguments: Any) -> Any:
            seen.append(name)
            return view(**arguments)

        return wrapped

    decorators = (partial(tell, name) for name in ("inner", "outer"))
    client = mount(taskflow.create_blueprint(decorators=decorators))

    client.verify("x", "123456")
    client.resend("x")

    assert seen == ["outer", "inner"] * 2


@pytest.mark.parametrize(
    ("mounted", "host"),
    [
        ({"url_prefix": "/<tenant>/<int:site>"}, "localhost"),
        ({"url_prefix": "/acme/7", "subdomain": "<tenant>"}, "acme.localhost"),
        ({"url_prefix": "/acme/7", "url_defaults": {"tenant": "acme"}}, "localhost"),
    ],
)
def test_routes_work_where_the_prefix_has_variables(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, mounted: dict[str, Any], host: str
) -> None:
    app = make_app(SERVER_NAME="localhost" if "subdomain" in mounted else None)
    app.subdomain_matching = "subdomain" in mounted
    blueprint = taskflow.create_blueprint(routes=["verify", "resend", "openapi"])
    seen: list[object] = []
    blueprint.before_request(lambda: seen.append((request.view_args or {})["tenant"]))
    app.register_blueprint(blueprint, **mounted)
    with app.app_context():
        task = add(taskflow)
    client = Client(app, prefix=f"http://{host}/acme/7")

    resent, verified = client.resend(task.id), client.verify(task.id, box[0].otp)
    document = client.http.get(f"{client.prefix}/openapi.json")

    assert [resent.status_code, verified.status_code, document.status_code] == [429, 200, 200]
    assert seen == ["acme"] * 3


def test_preflight_is_answered_without_decorators(mount: Mount, taskflow: TaskFlow) -> None:
    client = mount(taskflow.create_blueprint(decorators=[lambda view: lambda **names: abort(401)]))
    path = "/taskflow/tasks/x/verify"

    preflight, head, post = client.http.options(path), client.http.head(path), client.http.post(path)

    assert [preflight.status_code, head.status_code, post.status_code] == [200, 405, 401]
    assert preflight.headers["Cache-Control"] == "no-store"


def test_hook_of_the_blueprint_may_refuse(mount: Mount, taskflow: TaskFlow, box: Outbox) -> None:
    blueprint = taskflow.create_blueprint()
    blueprint.before_request(lambda: abort(403))
    client = mount(blueprint)

    with client.http.application.app_context():
        task = add(taskflow)
        assert client.verify(task.id, box[0].otp).status_code == 403
        assert taskflow.get_task(task.id).status is Status.PENDING


def test_code_is_not_kept_with_its_request(make_app: MakeApp, taskflow: TaskFlow) -> None:
    """Trackers of errors send the body of the request in which something was logged."""
    seen: list[str] = []

    class Away(BaseStrategy):
        address = "email"

        def check(self, task: Task[Any], otp: str, now: datetime) -> str:
            seen.append(f"{request.get_data(as_text=True)} {request.form.to_dict()}")
            raise OSError

    taskflow.register_strategy("PAD")(Away)
    app = make_app(page_holder=False)
    app.register_blueprint(taskflow.create_blueprint(routes=["verify", "page"]))
    with app.app_context():
        path = f"/tasks/{add(taskflow, allowed_methods=['PAD']).id}"
    client, code = app.test_client(), {"method": "PAD", "otp": "271828"}

    answers = [
        client.post(f"{path}/verify", json=code),
        client.post(path, data=code, headers={"Sec-Fetch-Site": "same-origin"}),
    ]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert [("PAD" in each, "271828" in each) for each in seen] == [(False, False), (True, False)]
