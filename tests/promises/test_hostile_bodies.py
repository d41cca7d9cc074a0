"""Hostile bodies get 4xx, in bounded time and memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from flask_taskflow import TaskFlow
from flask_taskflow.testing import Outbox
from tests.conftest import MakeApp
from tests.support.tasks import add

ROOT = Path(__file__).parents[2]
PATH = f"/tasks/{'a' * 34}"
LIMIT = 16 * 1024
# What reads a body in square time takes minutes for these; a busy machine may take a second.
WITHIN = 30.0

#: Not JSON at all, or JSON that two readers may read in two ways: RFC 8259, and RFC 7493 (I-JSON).
NOT_JSON = {
    "empty": b"",
    "blank": b" \n ",
    "cut off": b'{"method": "EMAIL", "otp": "12',
    "trailing": b'{"method": "EMAIL", "otp": "123456"} x',
    "two values": b'{"method": "EMAIL", "otp": "123456"}{}',
    "comment": b'{"method": "EMAIL", "otp": "123456"} // x',
    "trailing comma": b'{"method": "EMAIL", "otp": "123456",}',
    "single quotes": b"{'method': 'EMAIL', 'otp': '123456'}",
    "form": b"method=EMAIL&otp=123456",
    "raw NUL": b'{"method": "EMAIL", "otp": "123\x00456"}',
    "NUL behind": b'{"method": "EMAIL", "otp": "123456"}\x00',
    "raw line feed": b'{"method": "EMAIL", "otp": "123\n456"}',
    "not UTF-8": b'{"method": "EMAIL", "otp": "\xff\xfe"}',
    "overlong UTF-8": b'{"method": "EMAIL", "otp": "\xc0\xb1"}',
    "surrogate in UTF-8": b'{"method": "EMAIL", "otp": "\xed\xa0\x80"}',
    "byte order mark": '\ufeff{"method": "EMAIL", "otp": "123456"}'.encode(),
    "UTF-16": '{"method": "EMAIL", "otp": "123456"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"method": "EMAIL", "otp": "123456"}'.encode("utf-16-le"),
    "UTF-32": '{"method": "EMAIL", "otp": "123456"}'.encode("utf-32"),
    "lone surrogate": b'{"method": "EMAIL", "otp": "12345\\ud800"}',
    "lone surrogate as a name": b'{"method": "EMAIL", "otp": "123456", "\\udfff": 1}',
    "the same name twice": b'{"method": "EMAIL", "otp": "000000", "otp": "123456"}',
    "the same name twice, escaped": b'{"method": "EMAIL", "otp": "123456", "\\u006ftp": "123456"}',
    "the same name twice, deeper": b'{"method": "EMAIL", "otp": {"a": 1, "a": 2}}',
    "NaN": b'{"method": "EMAIL", "otp": NaN}',
    "Infinity": b'{"method": "EMAIL", "otp": -Infinity}',
    "arrays nested 16,000 deep": b"[" * 8000 + b"]" * 8000,
    "objects nested deep": b'{"a":' * 2700 + b"1" + b"}" * 2700,
    "brackets never closed": b"[" * 16_000,
    "number of 16,000 digits": b'{"method": "EMAIL", "otp": ' + b"9" * 16_000 + b"}",
}
WRONG_TYPES = {
    "array": b'["EMAIL", "123456"]',
    "array of pairs": b'[["method", "EMAIL"], ["otp", "123456"]]',
    "string": b'"EMAIL"',
    "number": b"123456",
    "null": b"null",
    "true": b"true",
    "no fields": b"{}",
    "number with exponent": b'{"method": "EMAIL", "otp": 1e999}',
    "number of 4,000 digits": b'{"method": "EMAIL", "otp": ' + b"9" * 4000 + b"}",
    "code as a number": b'{"method": "EMAIL", "otp": 123456}',
    "code as a list": b'{"method": "EMAIL", "otp": ["123456"]}',
    "code as an object": b'{"method": "EMAIL", "otp": {"$ne": ""}}',
    "code null": b'{"method": "EMAIL", "otp": null}',
    "code with NUL": b'{"method": "EMAIL", "otp": "123456\\u0000"}',
    "code of 10 kB": b'{"method": "EMAIL", "otp": "' + b"1" * 10_000 + b'"}',
    "astral code": '{"method": "EMAIL", "otp": "😀😀😀😀😀😀"}'.encode(),
    "method with line feed": b'{"method": "EMAIL\\n", "otp": "123456"}',
    "method with NUL": b'{"method": "EMAIL\\u0000", "otp": "123456"}',
    "method as an object": b'{"method": {}, "otp": "123456"}',
    "unknown field": b'{"method": "EMAIL", "otp": "123456", "__proto__": {"admin": true}}',
    "many unknown fields": b"{" + b",".join(b'"%d":0' % number for number in range(1800)) + b"}",
    "nested 900 deep": b'{"method": "EMAIL", "otp": ' + b"[" * 900 + b"]" * 900 + b"}",
}
TOO_LARGE = {
    "one byte too many": b'{"method": "EMAIL", "otp": "123456"}'.ljust(LIMIT + 1),
    "100,000 brackets": b"[" * 100_000,
    "number of a million digits": b'{"method": "EMAIL", "otp": ' + b"9" * 1_000_000 + b"}",
    "10 MB": b'{"method": "EMAIL", "otp": "' + b"1" * 10_000_000 + b'"}',
}

CASES = [(422, NOT_JSON), (422, WRONG_TYPES), (413, TOO_LARGE)]


@pytest.fixture
def client(make_app: MakeApp, taskflow: TaskFlow) -> FlaskClient:
    app = make_app(eager=True)
    app.register_blueprint(taskflow.blueprint)
    return app.test_client()


@pytest.mark.promise("S40", "S58")
@pytest.mark.parametrize(
    ("name", "body", "status"),
    [pytest.param(name, body, status, id=name) for status, some in CASES for name, body in some.items()],
)
def test_hostile_body_is_refused(client: FlaskClient, name: str, body: bytes, status: int) -> None:
    """As a whole: nothing of it reaches a task."""
    for route in ("verify", "resend"):
        began = time.monotonic()
        answer = client.post(f"{PATH}/{route}", data=body, content_type="application/json")
        took = time.monotonic() - began

        assert answer.status_code == status, route
        assert answer.mimetype == "application/problem+json"
        problem = answer.get_json(force=True)
        assert problem["code"] == ("invalid_request" if status == 422 else "too_large")
        # How deep JSON is read at all is another thing in each Python.
        if name in NOT_JSON and "nested" not in name:
            assert problem["errors"] == [{"pointer": "", "detail": "Not valid JSON."}]
        assert took < WITHIN


@pytest.mark.promise("S58")
@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 400),
        ("application/json; charset=utf-8", 400),
        ("application/json;charset=UTF-8", 400),
        ("Application/JSON", 400),
        ("text/json", 415),
        ("text/plain", 415),
        ("application/problem+json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
        ("application/json, text/plain", 415),
        ("application/jsonx", 415),
        ("\x7f;;=", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_content_type(client: FlaskClient, content_type: str | None, status: int) -> None:
    """What a form can send without asking the browser is refused."""
    body = b'{"method": "EMAIL", "otp": "123456"}'

    answer = client.post(f"{PATH}/verify", data=body, content_type=content_type)

    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"


def test_body_at_the_limit_is_read(client: FlaskClient, taskflow: TaskFlow, box: Outbox) -> None:
    with client.application.app_context():
        task = add(taskflow)
    body = f'{{"method": "EMAIL", "otp": "{box[-1].otp}"}}'.encode().ljust(LIMIT)

    answer = client.post(f"/tasks/{task.id}/verify", data=body, content_type="application/json")

    assert answer.status_code == 200


@pytest.fixture(scope="module")
def process(server: str) -> Iterator[tuple[int, int]]:
    """The port and the process id of a worker of gunicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--log-level", "warning", "benchmarks.app:create_app()"]
        master = subprocess.Popen(
            [*command, "--bind", f"fd://{number}"],
            cwd=ROOT,
            env={**os.environ, "FLASK_TASKFLOW_REDIS_URL": server},
            pass_fds=[number],
            start_new_session=True,
        )
    try:
        assert _send(port, [b'{"method": "EMAIL", "otp": "123456"}']).startswith(b"HTTP/1.1 400")
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        yield port, int(children[0])
    finally:
        os.killpg(master.pid, signal.SIGKILL)
        master.wait()


def _send(port: int, body: list[bytes], *, length: int | None = None, chunked: bool = False) -> bytes:
    """Send a body piece by piece; return the answer even if the server stops reading."""
    head = b"POST /taskflow/tasks/%s/verify HTTP/1.1\r\nHost: x\r\n" % (b"a" * 34)
    head += b"Content-Type: application/json\r\nConnection: close\r\n"
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n"
        body = [*(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in body), b"0\r\n\r\n"]
    else:
        head += b"Content-Length: %d\r\n" % (sum(map(len, body)) if length is None else length)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(head + b"\r\n")
            for piece in body:
                connection.sendall(piece)
        except OSError:
            pass
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def _peak(pid: int) -> int:
    """Return the most memory that a process ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


MEGABYTE = b" " * 1_000_000


@pytest.mark.promise("S58")
@pytest.mark.parametrize(
    ("pieces", "options"),
    [
        pytest.param([MEGABYTE] * 10, {}, id="with its length"),
        pytest.param([MEGABYTE] * 10, {"chunked": True}, id="chunked"),
        pytest.param([MEGABYTE], {"length": 10**15}, id="with a length it has not"),
        pytest.param([b"[" * 100_000], {}, id="100,000 brackets"),
        pytest.param([b"[" * 100] * 1000, {"chunked": True}, id="100,000 brackets, chunked"),
    ],
)
def test_ten_megabytes_cost_the_server_nothing(
    process: tuple[int, int], pieces: list[bytes], options: dict[str, Any]
) -> None:
    """The peak may rise by what one read of the server takes, far below the body's size."""
    port, pid = process
    before, began = _peak(pid), time.monotonic()

    answers = [_send(port, pieces, **options) for _ in range(3)]

    took = time.monotonic() - began
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 413 REQUEST ENTITY TOO LARGE"] * 3
    assert took < 3 * WITHIN
    assert _peak(pid) - before < 2_000_000


def test_body_without_length_is_no_body(process: tuple[int, int]) -> None:
    port, _ = process

    answer = _send(port, [], length=0)

    assert answer.startswith(b"HTTP/1.1 422")
