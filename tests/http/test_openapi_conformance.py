"""The running server answers as its own OpenAPI document says, whatever schemathesis sends."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from werkzeug.serving import make_server

from flask_taskflow import Method, OTPRejected, TaskFlow
from flask_taskflow.testing import Outbox, travel

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
QUEUE, PENDING = "q", 40


@pytest.fixture
def seeds(app: Flask, taskflow: TaskFlow, box: Outbox) -> list[tuple[str, str]]:
    """Ids of tasks in every status, each with its right code."""

    def add(number: int) -> str:
        recipient = {"email": f"user{number}@example.com", "phone_number": "+12025550100"}
        return taskflow.add_task(QUEUE, allowed_methods=[Method.EMAIL, Method.SMS], recipient=recipient).id

    expired = add(0)
    travel(601)
    success, locked, cancelled, spent = (add(number) for number in range(1, 5))
    codes = {message.task.id: str(message.otp) for message in box}
    taskflow.verify(success, Method.EMAIL, codes[success])
    for task_id, wrong in ((locked, 5), (spent, 4)):
        for _ in range(wrong):
            with pytest.raises(OTPRejected):
                taskflow.verify(task_id, Method.EMAIL, f"{(int(codes[task_id]) + 1) % 10**6:06}")
    taskflow.cancel_task(cancelled)
    pending = [add(number) for number in range(5, 5 + PENDING)]
    codes |= {message.task.id: str(message.otp) for message in box}
    statuses = {taskflow.get_task(i).status for i in (expired, success, locked, cancelled, pending[0])}
    assert len(statuses) == 5
    unknown = pending[0][:8] + "a" * 26
    ended = [expired, success, locked, cancelled]
    malformed = ["a", "A" * 34, "a" * 35, pending[0].upper(), "a b", "ä" * 34, "%00", "..a", "'\"<>"]
    tasks = [*pending[:3], unknown, *pending[3:], *ended, spent, *malformed]
    return [(task_id, codes.get(task_id, "123456")) for task_id in tasks]


@pytest.fixture
def url(app: Flask, taskflow: TaskFlow) -> Iterator[str]:
    app.register_blueprint(
        taskflow.create_blueprint(routes=("verify", "resend", "status", "cancel", "openapi")), url_prefix="/t"
    )
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=lambda: server.serve_forever(0.01))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def requests_for(operation: Any, seeds: list[tuple[str, str]]) -> st.SearchStrategy[Case[Any]]:
    """Make requests by the document, right and wrong; most name a seeded task, many of them its code."""

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case[Any]:
        mode = draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
        case: Case[Any] = draw(operation.as_strategy(mode))
        task_id, otp = draw(st.sampled_from(seeds))
        # Dot segments and slashes are another path: it is the app's to answer there.
        own = str(case.path_parameters.get("task_id", ""))
        if draw(st.integers(0, 9)) < 9 or "/" in own or not own.strip("."):
            case.path_parameters = {"task_id": task_id}
        if isinstance(case.body, dict):
            typed = [otp, "123456", f" {otp[:3]}-{otp[3:]} ", "12345", ""]
            likely = {"method": ["EMAIL", "SMS", "SMART_OTP"], "otp": typed}
            right = draw(st.integers(0, 2)) == 0
            for name in sorted(likely.keys() & case.body.keys()):
                if right or draw(st.booleans()):
                    value = likely[name][0] if right else draw(st.sampled_from(likely[name]))
                    case.body = {**case.body, name: value}
        return case

    return draw_case()


#: Of the seeds; the first three are left to these requests.
RIGHT, RESENT, CANCELLED, UNKNOWN = 0, 1, 2, 3
CODE = "the code of the task"
#: Route -> status -> a seed, and a body that is answered by it.
CERTAIN: dict[str, dict[int, tuple[int, dict[str, Any] | None]]] = {
    "verify": {
        200: (RIGHT, {"method": "EMAIL", "otp": CODE}),
        400: (UNKNOWN, {"method": "EMAIL", "otp": "123456"}),
        422: (RIGHT, {}),
    },
    "resend": {202: (RESENT, {"method": "EMAIL"}), 429: (RESENT, {"method": "EMAIL"}), 422: (RIGHT, {})},
    "{task_id}": {200: (RIGHT, None), 404: (UNKNOWN, None)},
    "cancel": {200: (CANCELLED, {}), 400: (UNKNOWN, {}), 422: (RIGHT, {"holder": 7})},
}


def answers_of(operation: Any, url: str, seeds: list[tuple[str, str]], examples: int) -> Counter[int]:
    """Send requests to a route and check each answer; return how often each status was answered."""
    answers: Counter[int] = Counter()

    def send(case: Case[Any]) -> int:
        response = case.call(base_url=url)
        case.validate_response(response, checks=CHECKS)
        return int(response.status_code)

    @settings(max_examples=examples, derandomize=examples < 1000, suppress_health_check=list(HealthCheck))
    @given(case=requests_for(operation, seeds[3:]))
    def check(case: Case[Any]) -> None:
        answers[send(case)] += 1

    check()
    # Whatever was drawn, each of its answers is seen. A first resend is not too early, a second one is.
    travel(60)
    for status, (seed, body) in CERTAIN[operation.path.rpartition("/")[2]].items():
        task_id, otp = seeds[seed]
        if body is not None:
            body = {name: otp if value is CODE else value for name, value in body.items()}
        options = {} if body is None else {"body": body, "media_type": "application/json"}
        assert send(operation.Case(path_parameters={"task_id": task_id}, **options)) == status
    return answers


LONG = pytest.param(1000, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])


@pytest.mark.parametrize("examples", [25, LONG])
def test_server_answers_as_documented(url: str, seeds: list[tuple[str, str]], examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/t/openapi.json")
    routes = []

    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        assert answers_of(operation, url, seeds, examples).total() >= examples
        routes.append(operation.path.rpartition("/")[2])
    assert sorted(routes) == sorted(CERTAIN)
