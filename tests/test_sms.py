"""SMS against a real gateway over HTTP: one that accepts, refuses, hangs, drips or answers garbage."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
import pytest
from conftest import MakeApp
from docs_support import read
from flask import Flask
from redis import Redis
from sending_support import Watched, failed_send

from flask_taskflow import (
    ConfigError,
    InvalidTask,
    Method,
    OutboxStrategy,
    SendFailed,
    SendLimitReached,
    SMSStrategy,
    Task,
    TaskFlow,
)
from flask_taskflow._sms import too_long
from flask_taskflow.testing import outbox

NUMBER = "+84901234567"
DEADLINE = 10.0
# A gateway with no fields but these two.
JSON = "json://127.0.0.1:{port}/sms?:to={{to}}&:message=text&:version=&:title=&:attachments=&:type="


@dataclass
class Gateway:
    """What a gateway was sent, and how it answers."""

    answer: Callable[[BaseHTTPRequestHandler], object]
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def status(code: int) -> Callable[[BaseHTTPRequestHandler], object]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@contextmanager
def gateway(code: int = 200) -> Iterator[Gateway]:
    made = Gateway(status(code))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            made.requests.append((self.path, self.headers["Content-Type"] or "", self.rfile.read(length)))
            with suppress(OSError):
                made.answer(self)

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.over.set()
            server.shutdown()
            thread.join(DEADLINE)


class WatchedSMS(Watched, SMSStrategy):
    pass


@pytest.fixture
def codes(taskflow: TaskFlow) -> list[str]:
    """The codes that were given to the strategy, sent or not."""
    strategy = WatchedSMS()
    taskflow.register_strategy(Method.SMS)(strategy)
    return strategy.codes


@pytest.fixture
def texting(make_app: MakeApp, codes: list[str]) -> Callable[..., Flask]:
    def make(port: int, **settings: Any) -> Flask:
        return make_app(**{"eager": True, "sms_url": JSON.format(port=port), **settings})

    return make


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["SMS"], "recipient": {"phone_number": NUMBER}}
    return taskflow.add_task("q", {"amount": 5}, **{**given, **options})


def fail(app: Flask, taskflow: TaskFlow, **options: Any) -> tuple[SendFailed, str]:
    """Add a task whose code cannot be sent; return the error and its traceback, with all local values."""
    return failed_send(app, lambda: add(taskflow, **options))


def test_code_arrives_through_a_json_gateway(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    with gateway() as taken, texting(taken.port).app_context():
        task = add(taskflow, summary="Pay 50 to <Bob>")
        verified = taskflow.verify(task.id, "SMS", codes[0])

    ((path, kind, body),) = taken.requests
    text = f"Code {codes[0]} (max. 10 min). Tell nobody.\nPay 50 to <Bob>"
    assert (path, kind) == ("/sms", "application/json")
    assert json.loads(body) == {"to": NUMBER, "text": text}
    assert verified.status == "SUCCESS"
    assert codes[0] not in caplog.text
    assert NUMBER[1:] not in caplog.text


def test_code_arrives_through_a_form_gateway(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    with gateway() as taken:
        url = f"form://127.0.0.1:{taken.port}/send?:phone={{to}}&:message=text"
        with texting(0, sms_url=url, locale="vi").app_context():
            add(taskflow)

    fields = parse_qs(taken.requests[0][2].decode())
    assert fields["phone"] == [NUMBER]
    assert fields["text"] == [f"Ma {codes[0]} (toi da 10 phut). Khong dua cho ai."]


def test_query_of_a_get_gateway_is_kept_out_of_the_log(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    with gateway() as taken:
        url = f"form://127.0.0.1:{taken.port}/send/{{to}}?method=get"
        with texting(0, sms_url=url).app_context():
            add(taskflow)

    assert codes[0] in taken.requests[0][0]
    assert codes[0] not in caplog.text
    assert NUMBER[1:] not in caplog.text


def test_last_line_is_for_the_browser_if_there_is_a_host(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    with gateway() as taken, texting(taken.port, webotp_host="bank.example").app_context():
        add(taskflow)

    text = json.loads(taken.requests[0][2])["text"]
    assert text.splitlines()[-2:] == ["", f"@bank.example #{codes[0]}"]


def hang(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    over.wait(DEADLINE)


def drip(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    """Answer without end, so slowly that no read is ever too late."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    while not over.wait(0.05):
        request.wfile.write(b".")
        request.wfile.flush()


def garble(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    request.wfile.write(b"\x00\xff garbage\r\n\r\n")


def vanish(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    request.close_connection = True


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        (hang, ("not done within", "the gateway did not take it")),
        (drip, ("not done within 0.5 seconds",)),
        (garble, ("the gateway did not take it",)),
        (vanish, ("the gateway did not take it",)),
        (lambda request, over: status(500)(request), ("the gateway did not take it",)),
        (lambda request, over: status(302)(request), ("the gateway did not take it",)),
    ],
    ids=["hangs", "drips", "garbles", "closes", "refuses", "redirects to nowhere"],
)
def test_bad_gateway_fails_the_send_in_time(
    texting: Callable[..., Flask],
    taskflow: TaskFlow,
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[BaseHTTPRequestHandler, threading.Event], object],
    reasons: tuple[str, ...],
) -> None:
    caplog.set_level(logging.DEBUG)

    with gateway() as taken:
        taken.answer = lambda request: answer(request, taken.over)
        app = texting(taken.port, send_timeout=0.5)
        began = time.monotonic()
        error, shown = fail(app, taskflow)
        took = time.monotonic() - began

    assert took < 2
    assert len(taken.requests) == 1
    assert error.task is not None
    assert any(
        f"The SMS for task {error.task.id} was not sent: {reason}" in caplog.text for reason in reasons
    )
    assert (error.__cause__, error.__context__) == (None, None)
    assert codes[0] not in shown + caplog.text
    assert NUMBER[1:] not in caplog.text


def test_failed_code_is_sent_again_by_a_resend(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    with gateway(500) as taken:
        app = texting(taken.port)
        error, _ = fail(app, taskflow)
        assert error.task is not None
        taken.answer = status(200)
        with app.app_context():
            taskflow.resend_otp(error.task.id, "SMS")
            verified = taskflow.verify(error.task.id, "SMS", codes[0])

    assert codes[0] == codes[1]
    assert verified.status == "SUCCESS"


def test_other_uses_of_apprise_log_as_before(
    texting: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    import apprise

    caplog.set_level(logging.DEBUG)

    with gateway() as taken:
        apprise.Apprise(f"json://127.0.0.1:{taken.port}/").notify(body="hello 123456")

    assert "hello 123456" in caplog.text


@pytest.mark.parametrize(
    ("typed", "region"),
    [
        ("+84 901 234 567", None),
        ("+84 (0) 901-234.567", None),
        ("0901 234 567", "VN"),
        ("84901234567", "VN"),
        ("0084901234567", "VN"),
        (NUMBER, "US"),
    ],
)
def test_number_is_kept_in_the_form_of_e164(
    texting: Callable[..., Flask], taskflow: TaskFlow, typed: str, region: str | None
) -> None:
    with gateway() as taken, texting(taken.port, phone_region=region).app_context():
        task = add(taskflow, recipient={"phone_number": typed})

        assert task.recipient.phone_number == NUMBER
        assert taskflow.get_task(task.id) == task
    assert json.loads(taken.requests[0][2])["to"] == NUMBER


@pytest.mark.parametrize("typed", ["0901 234 567", "+84 12", "+999 901234567", "+1 5555555555", "112"])
def test_number_that_does_not_exist_is_refused(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], redis: Redis, typed: str
) -> None:
    refused = pytest.raises(InvalidTask, match="phone_number is no number in use")
    with texting(1).app_context(), refused as caught:
        add(taskflow, recipient={"phone_number": typed})

    assert typed not in str(caught.value)
    assert "TASKFLOW_PHONE_REGION" in str(caught.value)
    assert codes == []
    assert redis.dbsize() == 0


@pytest.mark.parametrize(
    "typed", ["+84901234567\r\nX: y", "+84901234567&to=1", "+84901234567,+84901234568", "{to}"]
)
def test_number_that_would_inject_is_refused(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], typed: str
) -> None:
    with texting(1).app_context(), pytest.raises(InvalidTask, match="phone_number is not usable"):
        add(taskflow, recipient={"phone_number": typed})

    assert codes == []


def test_spellings_of_a_number_share_its_limits(texting: Callable[..., Flask], taskflow: TaskFlow) -> None:
    with (
        gateway() as taken,
        texting(taken.port, phone_region="VN", recipient_max_sends=2).app_context(),
    ):
        add(taskflow, recipient={"phone_number": "0901234567"})
        add(taskflow, recipient={"phone_number": "+84901234567"})
        with pytest.raises(SendLimitReached):
            add(taskflow, recipient={"phone_number": "+84 (0)901 234 567"})


def test_change_of_the_recipient_is_normalised_too(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str]
) -> None:
    with gateway() as taken, texting(taken.port, phone_region="VN").app_context():
        task = add(taskflow)
        same = taskflow.update_recipient(task.id, {"phone_number": "0901 234 567"})
        other = taskflow.update_recipient(task.id, {"phone_number": "0901 234 568"})
        with pytest.raises(InvalidTask, match="phone_number is no number in use"):
            taskflow.update_recipient(task.id, {"phone_number": "0901"})

    assert same == task
    assert other.recipient.phone_number == "+84901234568"
    assert len(codes) == 2


def test_outbox_stands_in_for_the_strategy(texting: Callable[..., Flask], taskflow: TaskFlow) -> None:
    with texting(1, phone_region="VN").app_context(), outbox(taskflow) as box:
        task = add(taskflow, recipient={"phone_number": "0901 234 567"})

        assert taskflow.verify(task.id, "SMS", box.last_code(NUMBER)).status == "SUCCESS"


def test_address_of_an_own_strategy_is_checked_after_it_normalised_it(app: Flask, taskflow: TaskFlow) -> None:
    class Broken(OutboxStrategy):
        def normalise(self, address: str) -> str:
            return f"{address}\r\nBcc: eve@example.com"

    taskflow.register_strategy(Method.EMAIL)(Broken)

    with pytest.raises(InvalidTask, match="email is not usable"):
        taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a" * 160, None),
        ("a" * 161, "161 of 160 septets of GSM-7"),
        ("€" * 80, None),
        ("€" * 80 + "a", "161 of 160 septets of GSM-7"),
        ("[]{}\\^~|\f" * 8 + "a" * 17, "161 of 160 septets of GSM-7"),
        ("@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉäöñüà¿§ÄÖÑÜ¡¤", None),
        ("ậ" * 70, None),
        ("ậ" * 70 + "a", "71 of 70 units of UCS-2, because GSM-7 has no 'ậ'"),
        ("🏦" * 35, None),
        ("🏦" * 36, "72 of 70 units of UCS-2, because GSM-7 has no '🏦'"),
        ("`" + "a" * 70, "71 of 70 units of UCS-2, because GSM-7 has no '`'"),
        ("a\u2019" + "a" * 69, "71 of 70 units of UCS-2, because GSM-7 has no '\u2019'"),
    ],
)
def test_length_of_a_message_is_counted_as_phones_do(text: str, reason: str | None) -> None:
    problem = too_long(text)

    assert problem is None if reason is None else problem is not None and problem.startswith(reason)


def test_characters_of_a_code_are_not_named() -> None:
    assert "Ж" not in str(too_long("ЖЖ " + "ậ" * 70, secret="ЖЖ"))


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        ("a" * 121, "161 of 160 septets of GSM-7"),
        ("Chuyển 500 cho " + "a" * 30, "85 of 70 units of UCS-2, because GSM-7 has no 'ể'"),
    ],
)
def test_text_that_is_too_long_fails_the_send_and_says_why(
    texting: Callable[..., Flask],
    taskflow: TaskFlow,
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    summary: str,
    reason: str,
) -> None:
    with gateway() as taken:
        fail(texting(taken.port), taskflow, summary=summary)

    assert f"was not sent: the text is too long for one SMS: {reason}" in caplog.text
    assert taken.requests == []
    assert codes[0] not in caplog.text


def test_template_of_the_app_wins_by_its_path(
    texting: Callable[..., Flask], taskflow: TaskFlow, codes: list[str], tmp_path: Path
) -> None:
    (tmp_path / "taskflow/sms").mkdir(parents=True)
    (tmp_path / "taskflow/sms/code.txt").write_text("{{ otp }} for {{ summary }} & co")

    with gateway() as taken:
        app = texting(taken.port)
        app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
        with app.app_context():
            add(taskflow, summary="<Bob>")

    assert json.loads(taken.requests[0][2])["text"] == f"{codes[0]} for <Bob> & co"


def test_missing_url_fails_the_send_and_is_named(
    make_app: MakeApp, taskflow: TaskFlow, codes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    fail(make_app(eager=True), taskflow)

    assert "was not sent: set TASKFLOW_SMS_URL" in caplog.text


@pytest.mark.parametrize(
    "url", ["json://localhost", "{to}", "", 7, b"json://{to}", "json://:hunter2@h/{to}\r\n"]
)
def test_url_without_a_place_for_the_number_is_refused(make_app: MakeApp, url: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_SMS_URL cannot be used: use an Apprise URL") as caught:
        make_app(sms_url=url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["nosuchgateway://:hunter2@localhost/{to}", "twilio://hunter2/{to}"])
def test_url_that_apprise_cannot_read_is_refused_at_rehearsal(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    caplog.set_level(logging.DEBUG)

    with make_app(sms_url=url).app_context(), pytest.raises(ConfigError, match="Apprise can read") as caught:
        SMSStrategy().rehearse()

    assert "hunter2" not in str(caught.value) + caplog.text


def test_rehearsal_tells_which_summaries_fit(make_app: MakeApp) -> None:
    app = make_app(sms_url=JSON.format(port=1), webotp_host="bank.example")

    with app.app_context():
        SMSStrategy().rehearse(summary="a" * 80)
        with pytest.raises(ConfigError, match=r"too long for one SMS: .* septets of GSM-7"):
            SMSStrategy().rehearse(summary="a" * 130)


@pytest.mark.parametrize(
    "host", ["https://bank.example", "bank.example:443", "Bank.example", "bank..example", "", 7]
)
def test_webotp_host_when_bad_is_refused(make_app: MakeApp, host: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_WEBOTP_HOST = .*use the host of your pages"):
        make_app(webotp_host=host)


@pytest.mark.parametrize("region", ["vn", "VNM", "", 84])
def test_phone_region_when_bad_is_refused(make_app: MakeApp, region: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_PHONE_REGION = .*two capital letters"):
        make_app(phone_region=region)


@pytest.mark.parametrize("locale", ["", "e", "en US", "../vi", None, 7])
def test_locale_when_bad_is_refused(make_app: MakeApp, locale: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_LOCALE = .*the name of a language"):
        make_app(locale=locale)


@pytest.mark.parametrize("name", re.findall(r"^\|.*`(\w+)://.*{to}", read("sms.md"), re.M))
def test_gateways_of_the_page_are_known(name: str) -> None:
    import apprise

    schemas = apprise.Apprise().details()["schemas"]

    kinds = [[*(known["protocols"] or ()), *(known["secure_protocols"] or ())] for known in schemas]
    assert any(name in kind for kind in kinds)
