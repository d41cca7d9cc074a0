"""The HTTP contract, on a real server."""

from __future__ import annotations

import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, cast

import pytest
from conftest import MakeApp
from flask import Flask, abort, request
from flask.testing import FlaskClient
from redis import Redis
from task_support import PHONE, add, other
from werkzeug.test import TestResponse

from flask_taskflow import BaseStrategy, ConfigError, OutboxStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import TaskFlowError
from flask_taskflow.testing import Outbox, travel


@pytest.fixture
def mounted(make_app: MakeApp, taskflow: TaskFlow) -> Iterator[Flask]:
    app = make_app(recipient_max_sends=100)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    with app.app_context():
        yield app


@pytest.fixture
def client(mounted: Flask) -> FlaskClient:
    return mounted.test_client()


def verify(client: FlaskClient, task_id: str, otp: Any, method: Any = "EMAIL") -> TestResponse:
    return client.post(f"/taskflow/tasks/{task_id}/verify", json={"method": method, "otp": otp})


def resend(client: FlaskClient, task_id: str, method: Any = "EMAIL") -> TestResponse:
    return client.post(f"/taskflow/tasks/{task_id}/resend", json={"method": method})


def whole(response: TestResponse) -> tuple[Any, ...]:
    """All that a client can see, but for the date."""
    headers = [(name, value) for name, value in response.headers if name != "Date"]
    return response.status, headers, response.data


def assert_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    body = cast(dict[str, Any], json.loads(response.data))
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["title"]
    return body


def pointers(response: TestResponse) -> list[str]:
    return [error["pointer"] for error in assert_problem(response, 422, "invalid_request")["errors"]]


def stored(redis: Redis) -> dict[bytes, Any]:
    return {key: redis.dump(key) for key in cast(list[bytes], redis.keys("*"))}


def test_verify_with_the_right_code_answers_the_task(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow, data={"secret": "of the app"})

    response = verify(client, task.id, box[0].otp)

    done = taskflow.get_task(task.id)
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    body = cast(dict[str, Any], response.json)
    at = body.pop("verified_at")
    assert body == {"id": task.id, "queue": "q", "status": "SUCCESS", "method": "EMAIL"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", at)
    assert datetime.fromisoformat(at) == done.verified_at
    assert datetime.fromisoformat(at).utcoffset() == timedelta(0)


@pytest.mark.parametrize("typed", [" {} ", "{0[0]}{0[1]}{0[2]} {0[3]}{0[4]}{0[5]}", "{0[0]}-{1}"])
def test_verify_forgives_blanks_and_hyphens(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, typed: str
) -> None:
    """S41."""
    task = add(taskflow)
    code = str(box[0].otp)

    response = verify(client, task.id, typed.format(code, code[1:]))

    assert response.status_code == 200


@pytest.mark.parametrize("zero", ["０", "٠"])
def test_verify_forgives_digits_of_other_scripts(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, zero: str
) -> None:
    """S41."""
    task = add(taskflow)
    typed = "".join(chr(ord(zero) + int(digit)) for digit in str(box[0].otp))

    assert verify(client, task.id, typed).status_code == 200


def _causes(client: FlaskClient, taskflow: TaskFlow, box: Outbox) -> dict[str, TestResponse]:
    wrong, locked, done, expired = (
        add(taskflow, recipient={"email": f"{name}@example.com", "phone_number": PHONE}, ttl=ttl)
        for name, ttl in (("a", 600), ("b", 600), ("c", 600), ("d", 90))
    )
    codes = [message.otp for message in box]
    for number in range(1, 6):
        locking = verify(client, locked.id, other(codes[1], number))
    verify(client, done.id, codes[2])
    travel(91)
    return {
        "unknown id": verify(client, "a" * 34, codes[0]),
        "wrong code": verify(client, wrong.id, other(codes[0])),
        "expired": verify(client, expired.id, codes[3]),
        "just locked": locking,
        "locked": verify(client, locked.id, codes[1]),
        "already verified": verify(client, done.id, codes[2]),
        "method not allowed": verify(client, wrong.id, codes[0], method="SMART_OTP"),
        "method of nobody": verify(client, wrong.id, codes[0], method="OTHER"),
        "no code by this method": verify(client, wrong.id, codes[0], method="SMS"),
        "malformed id": verify(client, "x", codes[0]),
    }


def test_verify_gives_one_answer_for_every_cause(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    """S18."""
    answers = _causes(client, taskflow, box)

    assert_problem(answers["unknown id"], 400, "otp_rejected")
    different = {cause for cause, answer in answers.items() if whole(answer) != whole(answers["wrong code"])}
    assert not different


def test_verify_of_a_code_that_is_over_gives_the_same_answer(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S18."""
    app = make_app(otp_ttl=60)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    with app.app_context():
        task = add(taskflow)
        travel(61)

    over = verify(app.test_client(), task.id, box[0].otp)

    assert whole(over) == whole(verify(app.test_client(), "a" * 34, box[0].otp))


def test_verify_answers_the_same_sequence_for_an_unknown_id(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    """S20."""
    task = add(taskflow)
    typed = [other(box[0].otp, number) for number in range(1, 8)]

    known = [whole(verify(client, task.id, otp)) for otp in typed]
    unknown = [whole(verify(client, task.id[:-4] + "aaaa", otp)) for otp in typed]

    assert known == unknown


MALFORMED: list[Any] = [
    "",
    " ",
    "abcdef",
    "1234567",
    "12345",
    "1" * 10_000,
    [],
    ["123456"],
    {},
    "\0",
    "12345\0",
]
MALFORMED += [123456, None, True, 1.5, "１２３", "123456\n123456"]


@pytest.mark.parametrize("otp", MALFORMED, ids=lambda otp: ascii(otp)[:20])
def test_verify_with_what_cannot_be_a_code_uses_no_attempt(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, redis: Redis, otp: Any
) -> None:
    """S40: the same for every id, and nothing asks Redis."""
    task = add(taskflow)
    before = stored(redis)
    redis.config_resetstat()

    answers = [verify(client, task_id, otp) for task_id in (task.id, "a" * 34, "x")]

    assert pointers(answers[0]) == ["/otp"]
    assert len({str(whole(answer)) for answer in answers}) == 1
    assert "evalsha" not in str(redis.info("commandstats"))
    assert stored(redis) == before


BODIES: dict[str, tuple[Any, list[str]]] = {
    "nothing": ({}, ["/method", "/otp"]),
    "no code": ({"method": "EMAIL"}, ["/otp"]),
    "no method": ({"otp": "123456"}, ["/method"]),
    "unknown field": ({"method": "EMAIL", "otp": "123456", "task": 1}, ["/task"]),
    "field that needs escapes": ({"method": "EMAIL", "otp": "123456", "a/b~c": 1}, ["/a~1b~0c"]),
    "method in lower case": ({"method": "email", "otp": "123456"}, ["/method"]),
    "method with a line": ({"method": "EMAIL\n", "otp": "123456"}, ["/method"]),
    "method of a wrong type": ({"method": 1, "otp": "123456"}, ["/method"]),
    "method of null": ({"method": None, "otp": "123456"}, ["/method"]),
    "list": ([], [""]),
    "text": ("EMAIL", [""]),
    "number": (1, [""]),
}


@pytest.mark.parametrize("what", BODIES)
def test_verify_of_an_unusable_body_points_at_its_fields(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, what: str
) -> None:
    """S58."""
    task = add(taskflow)
    body, expected = BODIES[what]

    answers = [client.post(f"/taskflow/tasks/{task_id}/verify", json=body) for task_id in (task.id, "x")]

    assert sorted(pointers(answers[0])) == expected
    assert whole(answers[0]) == whole(answers[1])


RAW = {
    "nothing": b"",
    "null": b"null",
    "lone surrogate": b'{"method": "EMAIL", "otp": "\\ud800"}',
    "field that is a lone surrogate": b'{"method": "EMAIL", "otp": "123456", "\\ud800": 1}',
    "broken": b"{",
    "not UTF-8": b'{"method": "\xff"}',
    "deep": b"[" * 16_000,
    "deep object": b'{"otp":' * 2_000,
    "huge number": b'{"otp": ' + b"9" * 10_000 + b"}",
    "two values": b"{} {}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "comment": b"{} // no",
}


@pytest.mark.parametrize("route", ["verify", "resend"])
@pytest.mark.parametrize("what", RAW)
def test_body_that_is_no_json_is_invalid(client: FlaskClient, what: str, route: str) -> None:
    path = f"/taskflow/tasks/{'a' * 34}/{route}"

    response = client.post(path, data=RAW[what], content_type="application/json")

    assert pointers(response)


@pytest.mark.parametrize("route", ["verify", "resend"])
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_body_of_another_type_is_refused(client: FlaskClient, kind: str | None, route: str) -> None:
    """S58."""
    path = f"/taskflow/tasks/{'a' * 34}/{route}"

    response = client.post(path, data=b'{"method": "EMAIL", "otp": "123456"}', content_type=kind)

    assert_problem(response, 415, "unsupported_media_type")


def test_body_of_json_with_a_character_set_is_read(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    body = json.dumps({"method": "EMAIL", "otp": box[0].otp})

    response = client.post(
        f"/taskflow/tasks/{task.id}/verify", data=body, content_type="application/json; charset=utf-8"
    )

    assert response.status_code == 200


def _padded(size: int) -> bytes:
    body = b'{"method": "EMAIL", "otp": "123456"}'
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("route", ["verify", "resend"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "without a length"])
def test_body_over_16_kilobytes_is_refused(client: FlaskClient, route: str, chunked: bool) -> None:
    """S58."""
    path = f"/taskflow/tasks/{'a' * 34}/{route}"

    def post(size: int) -> TestResponse:
        given: dict[str, Any] = {"content_type": "application/json"}
        if chunked:
            given |= {
                "input_stream": io.BytesIO(_padded(size)),
                "environ_overrides": {"wsgi.input_terminated": True},
            }
        else:
            given |= {"data": _padded(size)}
        return client.post(path, **given)

    fits, over, much = post(16 * 1024), post(16 * 1024 + 1), post(10_000_000)

    assert fits.status_code in (400, 422)
    assert_problem(over, 413, "too_large")
    assert_problem(much, 413, "too_large")


def test_body_that_a_hook_has_read_already_is_refused_just_so(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()
    app.before_request(lambda: request.get_data() and None)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")

    response = app.test_client().post(
        f"/taskflow/tasks/{'a' * 34}/verify", data=_padded(20_000), content_type="application/json"
    )

    assert_problem(response, 413, "too_large")


def test_resend_sends_and_tells_when_the_next_may_follow(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(30)

    response = resend(client, task.id)

    assert (response.status_code, response.json) == (202, {"status": "accepted", "resend_after": 60})
    assert response.headers["Cache-Control"] == "no-store"
    assert len(box) == 2


@pytest.mark.parametrize(
    "case", ["unknown", "malformed", "verified", "cancelled", "not allowed", "no strategy"]
)
def test_resend_that_sends_nothing_is_accepted_all_the_same(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, case: str
) -> None:
    task = add(taskflow)
    expected = whole(resend(client, add(taskflow).id, "SMS"))
    sent = len(box)
    if case == "verified":
        taskflow.verify(task.id, "EMAIL", box[0].otp)
    if case == "cancelled":
        taskflow.cancel_task(task.id)
    task_id = {"unknown": "a" * 34, "malformed": "x"}.get(case, task.id)
    method = {"not allowed": "SMART_OTP", "no strategy": "NOBODY"}.get(case, "EMAIL")
    taskflow.register_strategy("SMART_OTP")(OutboxStrategy(messages=box))

    response = resend(client, task_id, method)

    assert response.json == {"status": "accepted", "resend_after": 30}
    assert whole(response) == expected
    assert len(box) == sent


def test_resend_within_the_cooldown_tells_the_seconds_left_rounded_up(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S22."""
    task = add(taskflow)
    travel(28.5)
    before = stored(redis)

    response = resend(client, task.id)

    assert_problem(response, 429, "resend_too_soon")
    assert response.headers["Retry-After"] == "2"
    assert len(box) == 1
    assert stored(redis) == before
    travel(0.7)
    assert resend(client, task.id).headers["Retry-After"] == "1"


def test_resend_at_a_limit_tells_how_long_it_holds(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox
) -> None:
    """S25."""
    task = add(taskflow, ttl=7200)
    for _ in range(4):
        travel(600)
        resend(client, task.id)

    travel(600)
    response = resend(client, task.id)

    assert_problem(response, 429, "send_limit")
    assert 4195 <= int(response.headers["Retry-After"]) <= 4200
    assert len(box) == 5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["/method"]),
        ({"method": "x"}, ["/method"]),
        ({"method": "EMAIL", "otp": "1"}, ["/otp"]),
        ([], [""]),
    ],
)
def test_resend_of_an_unusable_body_points_at_its_fields(
    client: FlaskClient, body: Any, expected: list[str]
) -> None:
    response = client.post("/taskflow/tasks/x/resend", json=body)

    assert pointers(response) == expected


def test_resend_that_fails_is_unavailable(client: FlaskClient, taskflow: TaskFlow, box: Outbox) -> None:
    class Broken(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            raise OSError(f"550 cannot deliver {otp}")

    task = add(taskflow)
    travel(30)
    taskflow.register_strategy("EMAIL")(Broken())

    response = resend(client, task.id)

    assert_problem(response, 503, "send_failed")
    assert int(response.headers["Retry-After"]) >= 1
    assert str(box[0].otp).encode() not in response.data


@pytest.mark.parametrize("route", ["verify", "resend"])
def test_task_changed_in_redis_is_unavailable(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, redis: Redis, route: str
) -> None:
    """S31."""
    task = add(taskflow)
    travel(30)
    (key,) = cast(list[bytes], redis.keys("*:task:*"))
    redis.hset(key, "seal", "forged")

    response = resend(client, task.id) if route == "resend" else verify(client, task.id, box[0].otp)

    assert_problem(response, 503, "unavailable")
    assert len(box) == 1


@pytest.mark.parametrize("poison", ["expires", "status", "type"])
@pytest.mark.parametrize("route", ["verify", "resend"])
def test_poison_in_redis_is_unavailable(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, redis: Redis, route: str, poison: str
) -> None:
    task = add(taskflow)
    (key,) = cast(list[bytes], redis.keys("*:task:*"))
    if poison == "type":
        redis.delete(key)
        redis.set(key, "x")
    else:
        redis.hset(key, poison, b"\xff")

    response = resend(client, task.id) if route == "resend" else verify(client, task.id, box[0].otp)

    assert_problem(response, 503, "unavailable")


@pytest.mark.parametrize("listening", [False, True], ids=["refuses", "never answers"])
@pytest.mark.parametrize("route", ["verify", "resend"])
def test_redis_that_is_away_is_unavailable_soon(
    make_app: MakeApp, taskflow: TaskFlow, route: str, listening: bool
) -> None:
    """S48: within twice the timeout, and it may be tried again."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if listening:
            deaf.listen()
        app = make_app(redis_url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", redis_timeout=0.5)
        app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
        client, began = app.test_client(), time.monotonic()

        response = resend(client, "a" * 34) if route == "resend" else verify(client, "a" * 34, "123456")

        took = time.monotonic() - began
    assert_problem(response, 503, "unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert took < 1


@pytest.mark.parametrize("route", ["verify", "resend"])
@pytest.mark.parametrize("verb", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
def test_only_post_acts(
    client: FlaskClient, taskflow: TaskFlow, box: Outbox, redis: Redis, route: str, verb: str
) -> None:
    """S43."""
    task = add(taskflow)
    travel(30)
    before = stored(redis)
    body = {"method": "EMAIL", "otp": box[0].otp} if route == "verify" else {"method": "EMAIL"}

    answers = [client.open(f"/taskflow/tasks/{task.id}/{route}", method=verb, json=body) for _ in range(10)]

    assert {answer.status_code for answer in answers} == {200 if verb == "OPTIONS" else 405}
    assert stored(redis) == before
    assert len(box) == 1
    assert taskflow.get_task(task.id).status is Status.PENDING


def test_addresses_and_data_appear_in_no_answer(client: FlaskClient, taskflow: TaskFlow, box: Outbox) -> None:
    """S55."""
    task = add(taskflow, data="confidential", summary="intimate")
    answers = [resend(client, task.id)]
    travel(30)
    answers += [resend(client, task.id), verify(client, task.id, other(box[0].otp))]
    answers += [verify(client, task.id, box[0].otp), resend(client, task.id)]

    for answer in answers:
        for text in ("ann", "555", "confidential", "intimate"):
            assert text not in answer.text


def test_routing_and_errors_of_the_app_stay_its_own(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")

    @app.get("/big")
    def big() -> str:
        abort(413)

    @app.get("/task-error")
    def task_error() -> str:
        raise TaskFlowError("of the app's own making")

    app.register_error_handler(404, lambda error: ("the app's 404", 404))
    app.register_error_handler(405, lambda error: ("the app's 405", 405))
    app.register_error_handler(413, lambda error: ("the app's 413", 413))
    app.register_error_handler(TaskFlowError, lambda error: ("the app's error", 500))
    client = app.test_client()

    assert client.get("/nothing").text == "the app's 404"
    assert client.post("/taskflow/tasks/").text == "the app's 404"
    assert client.get("/taskflow/tasks/x/verify").text == "the app's 405"
    assert client.get("/big").text == "the app's 413"
    assert client.get("/task-error").text == "the app's error"
    assert "Cache-Control" not in client.get("/big").headers
    assert_problem(verify(client, "x", "123456"), 400, "otp_rejected")
    assert_problem(client.post("/taskflow/tasks/x/verify"), 415, "unsupported_media_type")


def test_error_in_the_apps_configuration_is_not_hidden(make_app: MakeApp, box: Outbox) -> None:
    extension = TaskFlow(redis="not a client")
    app = make_app(extension)
    app.register_blueprint(extension.blueprint, url_prefix="/taskflow")

    with pytest.raises(ConfigError):
        verify(app.test_client(), "a" * 34, "123456")


def test_blueprint_has_the_routes_that_were_asked_for(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()
    app.register_blueprint(taskflow.create_blueprint(routes=["verify"]), url_prefix="/taskflow")
    client = app.test_client()

    assert verify(client, "x", "123456").status_code == 400
    assert resend(client, "x").status_code == 404


def test_route_that_does_not_exist_is_a_config_error(taskflow: TaskFlow) -> None:
    with pytest.raises(ConfigError, match=r"'delete'.*'resend', 'verify'"):
        taskflow.create_blueprint(routes=["delete"])


def test_blueprints_of_two_names_stand_side_by_side(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    app = make_app()
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    app.register_blueprint(taskflow.create_blueprint(name="internal", routes=["verify"]))
    with app.app_context():
        task = add(taskflow)

    response = app.test_client().post(f"/tasks/{task.id}/verify", json={"method": "EMAIL", "otp": box[0].otp})

    assert response.status_code == 200
    assert {"taskflow.verify", "taskflow.resend", "internal.verify"} <= set(app.view_functions)
    assert taskflow.blueprint is taskflow.blueprint


def test_decorators_wrap_every_view_the_first_innermost(make_app: MakeApp, taskflow: TaskFlow) -> None:
    seen: list[str] = []

    def named(name: str) -> Callable[..., Any]:
        def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(view)
            def wrapped(**arguments: Any) -> Any:
                seen.append(name)
                return view(**arguments)

            return wrapped

        return decorate

    app = make_app()
    decorators = (named(name) for name in ("inner", "outer"))
    app.register_blueprint(taskflow.create_blueprint(decorators=decorators), url_prefix="/taskflow")
    client = app.test_client()

    verify(client, "x", "123456")
    resend(client, "x")

    assert seen == ["outer", "inner"] * 2


def test_hook_of_the_blueprint_may_refuse(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> None:
    app = make_app()
    blueprint = taskflow.create_blueprint()
    blueprint.before_request(lambda: abort(403))
    app.register_blueprint(blueprint, url_prefix="/taskflow")
    with app.app_context():
        task = add(taskflow)

        response = verify(app.test_client(), task.id, box[0].otp)

        assert response.status_code == 403
        assert taskflow.get_task(task.id).status is Status.PENDING


def test_body_that_is_endless_is_read_up_to_the_limit_only(client: FlaskClient) -> None:
    """S58."""
    stream = io.BytesIO(_padded(10_000_000))

    response = client.post(
        "/taskflow/tasks/x/verify",
        input_stream=stream,
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True},
    )

    assert_problem(response, 413, "too_large")
    assert stream.tell() < 100_000
