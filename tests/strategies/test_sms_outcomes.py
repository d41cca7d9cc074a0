"""What became of an SMS: taken, refused for good or for now, or nobody knows. Against a real gateway."""

from __future__ import annotations

import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from flask import Flask

from flask_taskflow import Recipient, SMSStrategy
from flask_taskflow._config.config import current_config
from flask_taskflow._otp import OTP
from flask_taskflow.errors import OutcomeUnknown, Reject, Retry
from flask_taskflow.strategies._gateway import deliver, find_gateway
from flask_taskflow.strategies._sms import _sample
from tests.conftest import MakeApp
from tests.support.gateway import Gateway, gateway

NUMBER, CODE = "+84901234567", "493817"
JSON = "json://127.0.0.1:{port}/sms?:to={{to}}"

Talk = Callable[[BaseHTTPRequestHandler, Gateway], object]


def hang(request: BaseHTTPRequestHandler, made: Gateway) -> None:
    made.over.wait(60)


def drip(request: BaseHTTPRequestHandler, made: Gateway) -> None:
    """Answer without end, so slowly that no read is ever too late."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    while not made.over.wait(0.05):
        request.wfile.write(b".")
        request.wfile.flush()


def garble(request: BaseHTTPRequestHandler, made: Gateway) -> None:
    request.wfile.write(b"\x00\xff garbage\r\n\r\n")


def vanish(request: BaseHTTPRequestHandler, made: Gateway) -> None:
    request.close_connection = True


def break_off(request: BaseHTTPRequestHandler, made: Gateway) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100")
    request.end_headers()
    request.wfile.write(b"half")
    request.close_connection = True


@contextmanager
def silence() -> Iterator[int]:
    """Listen on a port, and never say anything: no handshake of TLS ends.

    It hangs up when the client has begun: Python's ssl leaves a socket open that was reset before.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.settimeout(60)
        client, _ = server.accept()
        with client:
            client.settimeout(60)
            client.recv(1)


@pytest.fixture
def texting(make_app: MakeApp) -> Callable[..., Flask]:
    # The first one imports every gateway.
    SMSStrategy()

    def make(url: str, timeout: float = 60) -> Flask:
        return make_app(sms_url=url, send_timeout=timeout)

    return make


def outcome(app: Flask) -> Exception:
    """Send a code, and return what the strategy raises; nothing of it shows the code."""
    task = replace(_sample(None), recipient=Recipient(phone_number=NUMBER))
    with app.app_context(), pytest.raises((Reject, Retry, OutcomeUnknown)) as caught:
        SMSStrategy().send(task, OTP(CODE))
    assert CODE not in str(caught.value)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("talk", [hang, drip, garble, vanish, break_off])
def test_message_that_went_out_without_an_answer_may_have_arrived(
    texting: Callable[..., Flask], talk: Talk
) -> None:
    with gateway() as made:
        made.answer = lambda request: talk(request, made)
        app = texting(JSON.format(port=made.port), 2 if talk in (hang, drip) else 60)
        began = time.monotonic()
        error = outcome(app)
        took = time.monotonic() - began

    assert type(error) is OutcomeUnknown
    assert took < 30
    assert len(made.requests) == 1
    assert str(error).startswith("the gateway did not answer")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((code, Reject) for code in (400, 404, 405, 410, 413, 415, 422)),
        *((code, Retry) for code in (401, 402, 403, 408, 409, 425, 429, 500, 502, 503, 302)),
        (504, OutcomeUnknown),
    ],
)
def test_status_of_an_answer_tells_whether_another_try_is_of_use(
    texting: Callable[..., Flask], status: int, expected: type[Exception]
) -> None:
    with gateway(status) as made:
        error = outcome(texting(JSON.format(port=made.port)))

    assert (type(error), len(made.requests)) == (expected, 1)
    assert str(status) in str(error)


def lead_on(status: int) -> Talk:
    def talk(request: BaseHTTPRequestHandler, made: Gateway) -> None:
        request.send_response(status if request.path.startswith("/sms") else 200)
        request.send_header("Location", "/elsewhere")
        request.send_header("Content-Length", "0")
        request.end_headers()

    return talk


@pytest.mark.parametrize(
    ("status", "expected"), [*((code, Retry) for code in (301, 302, 307, 308)), (303, OutcomeUnknown)]
)
def test_gateway_that_leads_elsewhere_is_not_followed(
    texting: Callable[..., Flask], status: int, expected: type[Exception]
) -> None:
    with gateway() as made:
        made.answer = lambda request: lead_on(status)(request, made)
        error = outcome(texting(JSON.format(port=made.port)))

    assert (type(error), len(made.requests)) == (expected, 1)
    assert str(status) in str(error)


def test_outcome_is_told_where_logging_is_switched_off(texting: Callable[..., Flask]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        with gateway(400) as made:
            error = outcome(texting(JSON.format(port=made.port)))
    finally:
        logging.disable(logging.NOTSET)

    assert type(error) is Reject


def test_outcome_is_told_where_a_filter_raises(
    texting: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    class Away(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise AttributeError("request_id")

    away, log = Away(), logging.getLogger("apprise")
    log.addFilter(away)
    try:
        with gateway(400) as made:
            error = outcome(texting(JSON.format(port=made.port)))
    finally:
        log.removeFilter(away)

    assert (type(error), len(made.requests)) == (Reject, 1)
    assert "What Apprise logs was not logged: AttributeError." in caplog.text


def test_gateway_that_refuses_connections_gets_another_try(texting: Callable[..., Flask]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    error = outcome(texting(JSON.format(port=port)))

    assert (type(error), str(error)) == (Retry, "the gateway could not be reached")


def test_gateway_without_an_address_gets_another_try(texting: Callable[..., Flask]) -> None:
    assert type(outcome(texting("json://gateway.invalid/?:to={to}"))) is Retry


def test_handshake_that_does_not_end_sent_nothing(texting: Callable[..., Flask]) -> None:
    with silence() as port:
        error = outcome(texting(f"jsons://127.0.0.1:{port}/?:to={{to}}&cto=0.3", 60))

    assert (type(error), str(error)) == (Retry, "the gateway could not be reached")


@pytest.mark.slow
def test_time_that_is_over_before_there_is_a_connection_sent_nothing(
    texting: Callable[..., Flask],
) -> None:
    with silence() as port, texting(f"jsons://127.0.0.1:{port}/?:to={{to}}").app_context():
        made = find_gateway(current_config(), NUMBER)
        made.socket_connect_timeout = 60.0
        with pytest.raises(Retry, match=r"could not be reached: not done within 2 seconds"):
            deliver(made, "text", hidden=(), timeout=2)


def test_answer_may_take_the_whole_time_of_a_send(texting: Callable[..., Flask]) -> None:
    url = JSON.format(port=1)

    with texting(url, 30).app_context():
        made = find_gateway(current_config(), NUMBER)
    with texting(f"{url}&rto=3&cto=2", 30).app_context():
        told = find_gateway(current_config(), NUMBER)

    assert (made.socket_connect_timeout, made.socket_read_timeout) == (4.0, 30)
    assert (told.socket_connect_timeout, told.socket_read_timeout) == (2.0, 3.0)


def test_retries_of_apprise_are_not_made(texting: Callable[..., Flask]) -> None:
    with gateway(500) as made:
        error = outcome(texting(JSON.format(port=made.port) + "&retry=3&wait=0"))

    assert (type(error), len(made.requests)) == (Retry, 1)


def test_number_that_is_refused_since_the_task_was_added_is_refused_for_good(make_app: MakeApp) -> None:
    error = outcome(make_app(sms_url=JSON.format(port=1), phone_countries=["US"]))

    assert type(error) is Reject
    assert "TASKFLOW_PHONE_COUNTRIES" in str(error)


def test_frames_of_an_error_do_not_show_the_message(texting: Callable[..., Flask]) -> None:
    with gateway(500) as made, texting(JSON.format(port=made.port)).app_context():
        plugin = find_gateway(current_config(), NUMBER)
        with pytest.raises(Retry) as caught:
            deliver(plugin, f"Code {CODE}", hidden=(CODE,), timeout=60)

    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)
    inner = [
        line for line in traceback.walk_tb(error.__traceback__) if "apprise" in line[0].f_code.co_filename
    ]
    assert inner == []
