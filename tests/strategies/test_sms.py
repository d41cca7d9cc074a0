"""SMS against a real gateway over HTTP: one that accepts, refuses, hangs, drips or answers garbage."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import apprise
import gsm0338
import jinja2
import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import ConfigError, InvalidTask, SendLimitReached, SMSStrategy, TaskFlow
from flask_taskflow.strategies._gsm import BASIC, EXTENSION, too_long
from flask_taskflow.testing import outbox
from tests.conftest import MakeApp
from tests.support.cases import each
from tests.support.docs import read
from tests.support.gateway import Gateway, answer, gateway
from tests.support.strategies import Sending, Watched

NUMBER = "+84901234567"
# A gateway with no fields but these two.
JSON = "json://127.0.0.1:{port}/sms?:to={{to}}&:message=text&:version=&:title=&:attachments=&:type="


Log = pytest.LogCaptureFixture

# Apprise imports it, whichever test makes it load its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


class WatchedSMS(Watched, SMSStrategy):
    pass


class Texting(Sending):
    """Apps that send codes by SMS."""

    @contextmanager
    def to(self, port: int, url: str = JSON, **settings: Any) -> Iterator[Flask]:
        """Push the context of an app that sends through the gateway at a port."""
        with self.app(sms_url=url.format(port=port), **settings) as app:
            yield app

    @contextmanager
    def through(self, url: str = JSON, **settings: Any) -> Iterator[Gateway]:
        """Push the context of an app that sends through a gateway which takes all; yield the gateway."""
        with gateway() as taken, self.to(taken.port, url, **settings):
            yield taken


@pytest.fixture
def texting(make_app: MakeApp, taskflow: TaskFlow) -> Texting:
    return Texting(make_app, taskflow, "SMS", WatchedSMS(), {"phone_number": NUMBER})


@pytest.fixture
def log(caplog: Log) -> pytest.LogCaptureFixture:
    """What is logged, down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    return caplog


def sent(taken: Gateway) -> dict[str, str]:
    """Return the fields of the first message that a gateway was sent as JSON."""
    fields: dict[str, str] = json.loads(taken.requests[0][2])
    return fields


def test_code_arrives_through_a_json_gateway(texting: Texting, log: Log) -> None:
    with texting.through() as taken:
        texting.assert_verifies(texting.add(summary="Pay 50 to <Bob>"))

    ((path, kind, _),), (code,) = taken.requests, texting.codes
    assert (path, kind) == ("/sms", "application/json")
    text = f"Code {code} (max. 10 min). Tell nobody.\nPay 50 to <Bob>"
    assert sent(taken) == {"to": NUMBER, "text": text}
    assert code not in log.text
    assert NUMBER[1:] not in log.text


def test_code_arrives_through_a_form_gateway(texting: Texting) -> None:
    with texting.through("form://127.0.0.1:{port}/send?:phone={{to}}&:message=text", locale="vi") as taken:
        texting.add()

    fields = parse_qs(taken.requests[0][2].decode())
    assert fields["phone"] == [NUMBER]
    assert fields["text"] == [f"Ma {texting.codes[0]} (toi da 10 phut). Khong dua cho ai."]


def test_query_of_a_get_gateway_is_kept_out_of_the_log(texting: Texting, log: Log) -> None:
    with texting.through("form://127.0.0.1:{port}/send/{{to}}?method=get") as taken:
        texting.add()

    assert texting.codes[0] in taken.requests[0][0]
    assert texting.codes[0] not in log.text
    assert NUMBER[1:] not in log.text


def test_last_line_is_for_the_browser_if_there_is_a_host(texting: Texting) -> None:
    with texting.through(webotp_host="bank.example") as taken:
        texting.add()

    assert sent(taken)["text"].splitlines()[-2:] == ["", f"@bank.example #{texting.codes[0]}"]


@pytest.mark.parametrize("code", [500, 302, 400])
def test_gateway_that_refuses_fails_the_send(texting: Texting, log: Log, code: int) -> None:
    with texting.through() as taken:
        taken.answer = answer(code)
        task, shown = texting.fail()

    assert len(taken.requests) == 1
    assert re.search(rf"for task {task.id} failed: \w+ raised by WatchedSMS \(the gateway .*{code}", log.text)
    assert texting.codes[0] not in shown + log.text
    assert NUMBER[1:] not in log.text


def test_failed_code_is_sent_again_by_a_resend(texting: Texting) -> None:
    with texting.through() as taken:
        taken.answer = answer(500)
        task, _ = texting.fail()
        taken.answer = answer(200)
        texting.taskflow.resend_otp(task.id, "SMS")
        texting.assert_verifies(task)

    assert texting.codes[0] == texting.codes[1]


@pytest.mark.usefixtures("texting")
def test_other_uses_of_apprise_log_as_before(log: Log) -> None:
    with gateway() as taken:
        apprise.Apprise(f"json://127.0.0.1:{taken.port}/").notify(body="hello 123456")

    assert "hello 123456" in log.text


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
def test_number_is_kept_in_the_form_of_e164(texting: Texting, typed: str, region: str | None) -> None:
    with texting.through(phone_region=region) as taken:
        task = texting.add(recipient={"phone_number": typed})

        assert task.recipient.phone_number == NUMBER
        assert texting.taskflow.get_task(task.id) == task
    assert sent(taken)["to"] == NUMBER


NO_NUMBERS = {
    "phone_number is no number in use.*TASKFLOW_PHONE_REGION": [
        *("0901 234 567", "+84 12", "+999 901234567", "+1 5555555555", "112")
    ],
    "phone_number is not usable": ["+84901234567\r\nX: y"],
    "phone_number is no number in use": ["+84901234567&to=1", "+84901234567,+84901234568", "{to}"],
}


@pytest.mark.parametrize(("reason", "typed"), each(NO_NUMBERS))
def test_number_that_does_not_exist_or_would_inject_is_refused(
    texting: Texting, redis: Redis, reason: str, typed: str
) -> None:
    with texting.to(1), pytest.raises(InvalidTask, match=reason) as caught:
        texting.add(recipient={"phone_number": typed})

    assert typed not in str(caught.value)
    assert texting.codes == []
    assert redis.dbsize() == 0


def test_spellings_of_a_number_share_its_limits(texting: Texting) -> None:
    with texting.through(phone_region="VN", recipient_max_sends=2):
        texting.add(recipient={"phone_number": "0901234567"})
        texting.add(recipient={"phone_number": "+84901234567"})
        with pytest.raises(SendLimitReached):
            texting.add(recipient={"phone_number": "+84 (0)901 234 567"})


def test_change_of_the_recipient_is_normalised_too(texting: Texting) -> None:
    change = texting.taskflow.update_recipient
    with texting.through(phone_region="VN"):
        task = texting.add()
        same = change(task.id, {"phone_number": "0901 234 567"})
        other = change(task.id, {"phone_number": "0901 234 568"})
        with pytest.raises(InvalidTask, match="phone_number is no number in use"):
            change(task.id, {"phone_number": "0901"})

    assert same == task
    assert other.recipient.phone_number == "+84901234568"
    assert len(texting.codes) == 2


def test_outbox_stands_in_for_the_strategy(texting: Texting) -> None:
    with texting.to(1, phone_region="VN"), outbox(texting.taskflow) as box:
        task = texting.add(recipient={"phone_number": "0901 234 567"})

        texting.assert_verifies(task, box.last_code(NUMBER))


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


def test_alphabet_is_that_of_another_implementation() -> None:
    codec = gsm0338.Codec()

    def characters(before: bytes) -> set[str]:
        decoded = {codec.decode(before + bytes([number]), "ignore")[0] for number in range(128)}
        # A code that stands for nothing, and the escape, which is none without the next one.
        return decoded - {""}

    assert characters(b"") == BASIC
    assert characters(b"\x1b") == EXTENSION


def test_characters_of_a_code_are_not_named() -> None:
    assert "Ж" not in str(too_long("ЖЖ " + "ậ" * 70, secret="ЖЖ"))


def test_template_of_the_app_wins_by_its_path(texting: Texting, tmp_path: Path) -> None:
    (tmp_path / "taskflow/sms").mkdir(parents=True)
    (tmp_path / "taskflow/sms/code.txt").write_text("{{ otp }} for {{ summary }} & co")

    with gateway() as taken, texting.to(taken.port) as app:
        app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
        texting.add(summary="<Bob>")

    assert sent(taken)["text"] == f"{texting.codes[0]} for <Bob> & co"


def test_missing_url_fails_the_send_and_is_named(texting: Texting, log: Log) -> None:
    with texting.app():
        texting.fail()

    assert "raised by WatchedSMS (set TASKFLOW_SMS_URL" in log.text


@pytest.mark.parametrize("url", ["nosuchgateway://:hunter2@localhost/{to}", "twilio://hunter2/{to}"])
def test_url_that_apprise_cannot_read_is_refused_at_rehearsal(make_app: MakeApp, log: Log, url: str) -> None:
    with make_app(sms_url=url).app_context(), pytest.raises(ConfigError, match="Apprise can read") as caught:
        SMSStrategy().rehearse()

    assert "hunter2" not in str(caught.value) + log.text


def test_rehearsal_tells_which_summaries_fit(texting: Texting) -> None:
    with texting.to(1, webotp_host="bank.example"):
        SMSStrategy().rehearse(summary="a" * 80)
        with pytest.raises(ConfigError, match=r"too long for one SMS: .* septets of GSM-7"):
            SMSStrategy().rehearse(summary="a" * 130)


def test_gateways_of_the_page_are_known() -> None:
    schemas = apprise.Apprise().details()["schemas"]
    kinds = {"protocols", "secure_protocols"}
    known = {name for schema in schemas for kind in kinds for name in schema[kind] or ()}

    named = set(re.findall(r"^\|.*`(\w+)://.*{to}", read("sms.md"), re.M))

    assert named
    assert named <= known
