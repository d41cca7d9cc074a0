"""The page for a code, as a browser without JavaScript gets it; in a real one: ``test_page_browser.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask, abort, render_template_string
from flask_wtf import CSRFProtect
from jinja2 import DictLoader
from markupsafe import escape
from redis import Redis
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.test import TestResponse

import flask_taskflow
from flask_taskflow import BaseStrategy, ConfigError, InvalidTask, Task
from flask_taskflow._service import current_service
from flask_taskflow.testing import travel
from tests.support.hostile import hostile_strings
from tests.support.stage import Stage
from tests.support.tasks import BOTH, EMAIL, PHONE, other

OWN = {"Sec-Fetch-Site": "same-origin"}
TEXTS = (Path(flask_taskflow.__file__).parent / "_http/templates/taskflow/texts.html").read_text("utf-8")
RECIPIENT = {"email": EMAIL, "phone_number": PHONE}


class Browser:
    """A browser without JavaScript, and the task whose page it shows."""

    def __init__(self, stage: Stage, routes: tuple[str, ...] = ("page",), **settings: Any) -> None:
        self.stage = stage
        self.app: Flask = stage.app(**{"eager": True, "recipient_max_sends": 10_000, **settings})
        self.app.register_blueprint(stage.taskflow.create_blueprint(routes=routes), url_prefix="/taskflow")
        self.client = self.app.test_client()
        self.task: Task[Any]

    def add(self, **options: Any) -> Browser:
        given = {"allowed_methods": BOTH, "recipient": RECIPIENT, "holder": True, **options}
        self.task = self.stage.add(**given)
        if self.task.holder:
            self.client.set_cookie(f"taskflow-{self.task.id}", self.task.holder)
        return self

    @property
    def url(self) -> str:
        return f"/taskflow/tasks/{self.task.id}"

    def see(self, query: str = "") -> TestResponse:
        return self.client.get(self.url + query)

    def post(self, headers: Mapping[str, str] = OWN, **form: str) -> TestResponse:
        return self.client.post(self.url, data={"method": "EMAIL", **form}, headers=headers)

    def type(self, otp: str) -> TestResponse:
        return self.post(otp=otp, action="verify")


@pytest.fixture
def page(stage: Stage) -> Browser:
    return Browser(stage).add(summary="Pay 5 € to <Bob>")


def title(answer: TestResponse) -> str:
    found = re.search(r"<title>(.*)</title>", answer.text)
    assert found
    return found[1]


def problem(answer: TestResponse) -> str:
    found = re.search(r'role="alert" tabindex="-1" autofocus>.*?<p>(?:<a[^>]*>)?(.*?)<', answer.text, re.S)
    return found[1] if found else ""


def test_page_says_what_is_confirmed_and_where_the_code_went(page: Browser) -> None:
    answer = page.see()

    assert answer.status_code == 200
    assert "Pay 5 € to &lt;Bob&gt;" in answer.text
    assert "a****@example.com" in answer.text
    assert EMAIL not in answer.text
    assert page.stage.box[-1].otp not in answer.text
    assert '<html lang="en" dir="ltr">' in answer.text


def test_page_lets_nothing_of_others_in_and_nothing_out(page: Browser) -> None:
    headers = page.see().headers
    policy = headers["Content-Security-Policy"]

    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\bstyle=|<script>|\bon\w+=|https?:", page.see().text)
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "same-origin"


def test_right_code_leads_on_once(page: Browser) -> None:
    otp = page.stage.box[-1].otp
    answers = [page.type(otp), page.type(otp)]

    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[1].location == page.url
    assert title(page.see()) == "Confirmed"
    assert page.stage.taskflow.get_task(page.task.id).status == "SUCCESS"


def test_page_tells_what_becomes_of_it(page: Browser, stage: Stage) -> None:
    def told() -> tuple[str, str, bool]:
        answer = page.see()
        state = re.search(r"taskflow-outcome taskflow-([a-z]+)", answer.text)
        return state[1] if state else "", title(answer), "data-poll" in answer.text

    work = stage.work(ValueError, ValueError, max_attempts=2)
    current_service().operations.pause("q")
    page.type(stage.box[-1].otp)
    seen = [told()]
    current_service().operations.resume("q")
    for _ in range(2):
        stage.run(after=60)
        seen.append(told())
    current_service().operations.replay("q", "work", page.task.id)
    stage.run()

    waits = ("waiting", "Confirmed", True)
    assert [*seen, told()] == [
        waits,
        waits,
        ("unfinished", "Confirmed, but not finished", False),
        ("done", "Confirmed", False),
    ]
    assert len(work.tasks) == 3


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_browser_holds_a_task_while_it_looks_at_what_becomes_of_it(stage: Stage, accept: str) -> None:
    page = Browser(stage, ("page", "status")).add(ttl=60)

    def given() -> list[str]:
        answer = page.client.get(page.url, headers={"Accept": accept})
        return re.findall("Max-Age=[0-9]+", answer.headers.get("Set-Cookie", ""))

    stage.work()
    current_service().operations.pause("q")
    before = given()
    page.type(stage.box[-1].otp)
    travel(61)
    waiting = given()
    current_service().operations.resume("q")
    stage.run()

    assert (before, waiting, given()) == ([], ["Max-Age=3600"], [])
    with page.app.test_request_context():
        assert "Max-Age=120" in stage.taskflow.to_page(page.task).headers["Set-Cookie"]


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_browser_that_looks_at_what_becomes_of_a_task_holds_it_no_shorter(stage: Stage, accept: str) -> None:
    page = Browser(stage, ("page", "status")).add(ttl=86400)
    stage.work()
    current_service().operations.pause("q")
    page.type(stage.box[-1].otp)

    answer = page.client.get(page.url, headers={"Accept": accept})

    assert "Max-Age=86460" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("next_url", ["/done?for=1#x", "https://shop.example:8443/done"])
def test_right_code_leads_to_where_the_app_said(stage: Stage, next_url: str) -> None:
    page = Browser(stage, next_hosts=["shop.example:8443"]).add(next_url=next_url)
    before = page.see()
    answer = page.type(stage.box[-1].otp)

    assert next_url not in before.text
    assert ("https://shop.example:8443" in before.headers["Content-Security-Policy"]) == (next_url[0] != "/")
    assert (answer.status_code, answer.location) == (303, next_url)
    assert f'<a href="{next_url}">Continue</a>' in page.see().text


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "Type the code."),
        (" \u200b-", "Type the code."),
        ("12345", "The code is too short: it has 6 digits."),
        ("1234567", "The code is too long: it has 6 digits."),
        ("12345o", "The code has no letters, only digits."),
        ("12345!", "The code has only digits, such as 0 to 9."),
        ("1" * 5000, "The code is too long: it has 6 digits."),
    ],
)
def test_what_cannot_be_a_code_costs_nothing_and_is_told(page: Browser, typed: str, told: str) -> None:
    answer = page.type(typed)

    assert (answer.status_code, problem(answer)) == (422, told)
    assert title(answer).startswith("Error: ")
    assert 'aria-invalid="true" aria-describedby="taskflow-hint taskflow-error"' in answer.text
    assert typed == "" or typed not in answer.text
    assert page.stage.taskflow.get_task(page.task.id).attempts_left == 5


def test_refusals_have_one_text_until_the_task_is_locked(page: Browser) -> None:
    wrong = other(page.stage.box[-1].otp)
    texts = {problem(page.type(wrong)) for _ in range(3)} | {problem(page.post(otp=wrong, method="SMS"))}
    last = page.type(wrong)

    assert len(texts) == 1
    assert "not accepted" in texts.pop()
    assert (last.status_code, title(last), problem(last)) == (400, "Too many wrong codes", "")
    assert title(page.see()) == "Too many wrong codes"


def test_unknown_expired_and_malformed_look_the_same(page: Browser) -> None:
    page.add(ttl=60)
    travel(61)
    urls = [page.url, "/taskflow/tasks/" + "a" * 34, "/taskflow/tasks/x"]
    seen = [page.client.get(url) for url in urls]
    posted = [page.client.post(url, data={"otp": "123456"}, headers=OWN) for url in urls]

    assert {answer.status_code for answer in seen + posted} == {404}
    assert len({answer.data for answer in seen + posted}) == 1


@pytest.mark.promise("S68")
@pytest.mark.parametrize("cookie", [None, "x", ""])
def test_page_opened_elsewhere_shows_what_unknown_shows(page: Browser, cookie: str | None) -> None:
    elsewhere, unknown = page.app.test_client(), "/taskflow/tasks/" + "a" * 34
    if cookie is not None:
        elsewhere.set_cookie(f"taskflow-{page.task.id}", cookie)
    sent, otp = len(page.stage.box), page.stage.box[-1].otp
    forms = [{"otp": otp}, {"otp": other(otp)}, {"otp": "1"}, {"action": "resend"}, {"action": "reject"}]
    answers = [elsewhere.get(url) for url in (page.url, unknown)]
    for url in (page.url, unknown):
        answers += [elsewhere.post(url, data={"method": "EMAIL", **form}, headers=OWN) for form in forms]

    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.data for answer in answers}) == 1
    assert len(page.stage.box) == sent
    assert page.type(otp).status_code == 303


def test_task_without_holder_is_shown_only_where_the_app_says_so(stage: Stage) -> None:
    page = Browser(stage, page_holder=False).add(holder=False)
    assert page.see().status_code == 200
    with page.app.test_request_context():
        assert "Set-Cookie" not in stage.taskflow.to_page(page.task).headers

    assert Browser(stage).add(holder=False).see().status_code == 404


def test_way_to_the_page_lets_the_browser_hold_the_task(page: Browser, stage: Stage) -> None:
    with page.app.test_request_context():
        answer = stage.taskflow.to_page(page.task)
    assert (answer.status_code, answer.location) == (303, page.url)
    assert str(page.task.holder) in answer.headers["Set-Cookie"]

    with stage.app().test_request_context(), pytest.raises(ConfigError, match="serves no page"):
        stage.taskflow.to_page(page.task)


@pytest.mark.promise("S43")
def test_get_and_head_change_nothing(page: Browser, redis: Redis) -> None:
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    for query in ("", "?action=verify&otp=123456", "?action=resend&method=SMS", "?action=reject"):
        page.see(query)
        page.client.head(page.url + query)

    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWN, 303),
        ({"Origin": "http://localhost"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({}, 403),
    ],
)
def test_form_of_another_site_is_refused(page: Browser, headers: dict[str, str], status: int) -> None:
    assert page.post(headers, otp=page.stage.box[-1].otp).status_code == status


@pytest.mark.parametrize("html", [True, False])
@pytest.mark.parametrize(("path", "verb"), [("", "GET"), ("", "POST"), ("/replay", "GET")])
def test_what_a_guard_refuses_is_a_page_for_a_browser(stage: Stage, path: str, verb: str, html: bool) -> None:
    def guard(view: Any) -> Any:
        return lambda **names: abort(401, www_authenticate=WWWAuthenticate("basic", {"realm": "us"}))

    app = stage.app()
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["page"], decorators=[guard]))
    accept = {"Accept": "text/html" if html else "application/json"}
    answer = app.test_client().open(f"/tasks/{stage.add().id}{path}", method=verb, headers=accept)

    assert (answer.status_code, answer.www_authenticate.realm) == (401, "us")
    assert answer.mimetype == ("text/html" if html else "application/problem+json")
    assert ("There is nothing to confirm here" in answer.text) is html


def test_page_is_its_owners_and_for_others_there_is_none(stage: Stage) -> None:
    app = stage.app(page_holder=False)
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["page"], owner=lambda: "bob"))
    answer = app.test_client().get(f"/tasks/{stage.add(owner='ann').id}", headers={"Accept": "text/html"})

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "There is nothing to confirm here" in answer.text


def test_csrf_protection_of_flask_wtf_works_beside(stage: Stage) -> None:
    page = Browser(stage, WTF_CSRF_ENABLED=True)
    CSRFProtect(page.app)
    token = re.search(r'name="csrf_token" value="(.*?)"', page.add().see().text)
    assert token
    otp = stage.box[-1].otp

    assert page.type(otp).status_code == 400
    assert page.post(otp=otp, csrf_token=token[1]).status_code == 303


def test_code_is_sent_again_and_by_the_other_method(page: Browser) -> None:
    early = page.post(action="resend")
    travel(31)
    again = page.post(action="resend")
    other_way = page.post(action="resend", method="SMS")

    assert (early.status_code, problem(early)[:27]) == (429, "A code was sent just now. W")
    assert 1 <= int(early.headers["Retry-After"]) <= 30
    assert "its code works as well" in page.client.get(again.location).text
    shown = page.client.get(other_way.location).text
    assert "by text message to" in shown
    assert "data-webotp" in shown
    assert [message.addresses[0] for message in page.stage.box[-3:]] == [EMAIL, EMAIL, PHONE]
    assert page.post(otp=page.stage.box[-1].otp, method="SMS").status_code == 303


def test_page_asks_for_the_code_that_was_sent(stage: Stage) -> None:
    page = Browser(stage).add(send_via=["SMS"])
    shown, elsewhere = page.see().text, page.see("?method=EMAIL").text
    own = "{% from 'taskflow/form.html' import code_form %}{{ code_form(task) }}"
    with page.app.test_request_context():
        forms = [
            render_template_string(own, task=task)
            for task in (page.task, stage.taskflow.get_task(page.task.id))
        ]

    assert "We sent a code by text message to" in shown
    assert "We have sent no code by e-mail yet." in elsewhere
    assert "Send a code by e-mail to <bdi>" in elsewhere
    assert ['name="method" value="SMS"' in form for form in (*forms, shown)] == [True] * 3
    assert page.post(otp=stage.box[-1].otp, method="SMS").status_code == 303


def test_page_says_that_a_code_is_yet_to_come(stage: Stage) -> None:
    page = Browser(stage, eager=False, send="background")
    soon = page.add(send_at=datetime.now(UTC) + timedelta(hours=1), send_via=["SMS"]).see().text
    travel(3601)
    stage.run()

    assert "We will send a code by text message to" in soon
    assert re.search("You can ask for another code in 6[01] minutes.", soon)
    assert "We sent a code by text message to" in page.see().text


def test_end_of_the_messages_is_told(stage: Stage) -> None:
    page = Browser(stage, max_sends=1, resend_cooldown=0).add()

    assert 'value="resend"' not in page.see().text
    assert page.post(action="resend").status_code == 429


@pytest.mark.parametrize("correctable", [(), ("email",)])
def test_address_is_corrected_if_the_app_allows(stage: Stage, correctable: tuple[str, ...]) -> None:
    page = Browser(stage, correctable=correctable).add()
    answers = [page.post(action="correct", email=email) for email in ("no", "bo@example.com")]

    assert [answer.status_code for answer in answers] == ([422, 303] if correctable else [422, 422])
    assert ('name="email"' in page.see().text) == bool(correctable)
    assert 'name="email"' not in Browser(stage, correctable=["email"]).add(allowed_methods=["SMS"]).see().text
    now = stage.taskflow.get_task(page.task.id).recipient
    assert now.email == ("bo@example.com" if correctable else EMAIL)
    assert page.post(action="correct", phone_number="+441234567890").status_code == 422


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("bo@@<x>", "No code can be sent to this address. Look at each character."),
        ("", "Type where the code is to be sent."),
    ],
)
def test_address_that_is_refused_stays_in_its_field_3_3_1_and_3_3_7(
    stage: Stage, typed: str, told: str
) -> None:
    page = Browser(stage, correctable=["email", "phone_number"]).add()
    answer = page.post(action="correct", email=typed)
    details = re.findall(r"<details.*?</details>", answer.text, re.S)
    error = re.search(r'id="taskflow-email-error"><span.*?</span> (.*?)</p>', details[0])
    phone = re.search(r"<input id=.*?>", details[1], re.S)

    assert (answer.status_code, problem(answer)) == (422, told)
    assert title(answer) == "Error: Type your code"
    assert '<a href="#taskflow-email">' in answer.text
    assert (error and error[1], " open>" in details[0], " open>" in details[1]) == (told, True, False)
    assert f'name="email" value="{escape(typed)}"' in details[0]
    assert 'aria-invalid="true" aria-describedby="taskflow-email-error"' in details[0]
    assert phone
    assert ('value=""' in phone[0], "aria-" in phone[0]) == (True, False)
    assert "taskflow-error" not in answer.text.partition('id="taskflow-form"')[2].partition("</form>")[0]


def test_address_stays_in_its_field_whatever_kept_the_code_from_it(stage: Stage) -> None:
    page = Browser(stage, correctable=["email"], max_sends=1).add()
    answer = page.post(action="correct", email="bo@example.com")

    assert (answer.status_code, 'value="bo@example.com"' in answer.text) == (429, True)
    assert "aria-invalid" not in answer.text


def test_only_what_the_page_offers_is_corrected(stage: Stage) -> None:
    page = Browser(stage, correctable=["email", "phone_number"])
    page.add(recipient={"email": EMAIL}).post(action="correct", phone_number=PHONE)
    only_email = stage.taskflow.get_task(page.task.id)
    page.add(allowed_methods=["EMAIL"]).post(action="correct", phone_number="+12025550111")
    other_method = stage.taskflow.get_task(page.task.id)

    assert (only_email.recipient.phone_number, other_method.recipient.phone_number) == (None, PHONE)
    assert len(stage.box) == 2


@pytest.mark.parametrize("by_code", [False, True])
def test_who_did_not_ask_ends_it(page: Browser, by_code: bool) -> None:
    otp = page.stage.box[-1].otp
    if by_code:
        assert [page.post(action="reject", otp=typed).status_code for typed in ("1", other(otp))] == [
            422,
            400,
        ]
    answer = page.client.get(page.post(action="reject", otp=otp if by_code else "").location)

    assert title(answer) == "This request was withdrawn"
    status = page.stage.taskflow.get_task(page.task.id).status
    assert status == ("REJECTED" if by_code else "CANCELLED")
    assert page.type(page.stage.box[-1].otp).status_code == 400


def test_code_of_other_make_is_asked_for_as_it_is(stage: Stage) -> None:
    class Letters(BaseStrategy):
        address = None
        code_pattern = "[a-z]{4}"

        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            return None

    page = Browser(stage)
    stage.taskflow.register_strategy("PAPER_MAIL")(Letters())
    page.add(allowed_methods=["PAPER_MAIL"])

    assert "inputmode" not in page.see().text
    assert problem(page.post(otp="12", method="PAPER_MAIL")).startswith("This does not look like")


def test_outage_is_no_wrong_code(page: Browser, redis: Redis) -> None:
    key = next(key for key in redis.scan_iter() if f":task:{page.task.id}" in key.decode())
    redis.hset(key, "fixed", "{}")

    for answer in (page.see(), page.type("123456")):
        assert (answer.status_code, title(answer)) == (503, "Try again soon")
        assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("accept", "kind"), [("text/html,*/*;q=.8", "text/html"), ("*/*", "application/json")]
)
@pytest.mark.parametrize("routes", [("page", "status"), ("status", "page")])
def test_page_and_status_share_their_place(
    stage: Stage, routes: tuple[str, ...], accept: str, kind: str
) -> None:
    page = Browser(stage, routes).add()

    assert page.client.get(page.url, headers={"Accept": accept}).mimetype == kind


def test_page_is_of_the_language_and_direction_of_its_task(page: Browser) -> None:
    assert "Nhập mã của bạn" in page.add(locale="vi").see().text
    assert problem(page.type("1")) == "Mã quá ngắn: mã có 6 chữ số."
    assert '<html lang="vi" dir="ltr">' in page.see().text


@pytest.mark.parametrize(
    ("locale", "theirs", "shown"),
    [
        ("ar_EG", {"Type your code": "اكتب الرمز"}, 'lang="ar-EG" dir="rtl"'),
        ("ar_EG", {}, 'lang="en" dir="ltr"'),
        ("de", {}, 'lang="en" dir="ltr"'),
        ("en_GB", {}, 'lang="en-GB" dir="ltr"'),
    ],
)
def test_page_without_a_catalogue_says_that_it_is_in_english(
    page: Browser, locale: str, theirs: dict[str, str], shown: str
) -> None:
    page.app.jinja_env.globals["gettext"] = lambda text: theirs.get(text, text)

    assert f"<html {shown}>" in page.add(locale=locale).see().text


def test_page_whose_title_the_app_wrote_is_in_the_language_of_its_task(page: Browser) -> None:
    own = TEXTS.replace('_("Type your code")', '"Code eingeben"')
    page.app.jinja_loader = DictLoader({"taskflow/texts.html": own})

    assert '<html lang="de" dir="ltr">' in page.add(locale="de").see().text


def test_app_overrides_blocks_texts_style_and_has_the_form_in_pages_of_its_own(
    stage: Stage, tmp_path: Path
) -> None:
    files = {
        "templates/taskflow/page.html": "{% extends 'flask_taskflow/taskflow/page.html' %}"
        "{% block header %}<header>{{ _('Code') }} of {{ brand }}</header>{% endblock %}",
        "static/taskflow/page.css": "/* ours */",
    }
    page = Browser(stage).add()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, "utf-8")
    page.app.root_path = str(tmp_path)
    page.app.context_processor(lambda: {"brand": "Bank"})
    own = "{% from 'taskflow/form.html' import code_form %}{{ code_form(task) }}"

    assert "<header>Code of Bank</header>" in page.see().text
    with (
        page.client.get("/taskflow/page/page.css") as style,
        page.client.get("/taskflow/page/page.js") as script,
    ):
        assert (style.data, b"use strict" in script.data) == (b"/* ours */", True)
    assert page.client.get("/taskflow/page/page.py").status_code == 404
    with page.app.test_request_context():
        form = render_template_string(own, task=page.task)
    assert f'action="{page.url}"' in form
    assert form.count("<input") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"variable_start_string": "[[", "variable_end_string": "]]"},
        {"block_start_string": "<%", "block_end_string": "%>"},
        {"line_statement_prefix": "<", "line_comment_prefix": "{"},
        {"autoescape": False},
    ],
)
def test_page_is_itself_whatever_syntax_the_app_writes_in(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = Browser(stage, resend_cooldown=0).add(summary="Pay 5 € to <Bob>")
    own = tmp_path / "templates/taskflow/page.html"
    own.parent.mkdir(parents=True)
    own.write_text(
        '{% extends "flask_taskflow/taskflow/page.html" %}{% block footer %}{{ brand }}{% endblock %}',
        "utf-8",
    )
    expected = plain.see().text
    monkeypatch.setattr(Flask, "jinja_options", options)
    dressed, branded = (Browser(stage, resend_cooldown=0) for _ in range(2))
    dressed.task = plain.task
    dressed.client.set_cookie(f"taskflow-{plain.task.id}", str(plain.task.holder))
    branded.app.root_path = str(tmp_path)
    branded.app.context_processor(lambda: {"brand": "The Bank"})

    assert dressed.see().text == expected
    assert "The Bank" in branded.client.get("/taskflow/tasks/x").text


def test_what_an_app_calls_its_method_is_escaped_once(page: Browser, tmp_path: Path) -> None:
    texts = tmp_path / "templates/taskflow/texts.html"
    texts.parent.mkdir(parents=True)
    texts.write_text(TEXTS.replace('{{ _("e-mail") }}', '{{ "l\'e-mail & <b>" }}'), "utf-8")
    page.app.root_path = str(tmp_path)

    assert "We sent a code by l&#39;e-mail &amp; &lt;b&gt; to" in page.see().text


class Structure(HTMLParser):
    """What a page is made of, but for its texts, and where it leads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.urls: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.urls |= {
            urlsplit(value or "").path for name, value in attrs if name in ("href", "src", "action")
        }


@pytest.mark.parametrize("texts", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["summary", "device_id", "email", "next_url", "method"])
def test_hostile_texts_are_inert(page: Browser, stage: Stage, what: str, texts: int) -> None:
    """As a browser reads them: no tag, no attribute, and no place to go to comes of them."""
    stage.taskflow.register_strategy("PAPER")(Paper())

    def seen(text: str) -> Structure:
        options: dict[str, Any] = {"allowed_methods": ["PAPER"], "recipient": {"device_id": "phone"}}
        if what == "email":
            options = {"allowed_methods": ["EMAIL"], "recipient": {"email": f"{text}@example.com"}}
        elif what == "device_id":
            options["recipient"] = {"device_id": text}
        elif what == "method":
            with pytest.raises(InvalidTask):
                page.add(allowed_methods=[text])
        else:
            options[what] = f"/done?{text}" if what == "next_url" else text
        page.add(**options)
        if what == "next_url":
            page.post(method="PAPER", otp=str(PAPER[-1]), action="verify")
        posted = page.post(method=text, otp="1").text if what == "method" else ""
        return Structure(page.see(f"?method={text[:50]}&sent={text[:50]}").text + posted)

    clean, count = seen("x"), 0
    for text in hostile_strings(texts):
        try:
            shown = seen(text[:200])
        except ValueError:
            continue
        count += 1
        assert shown.tags == clean.tags
        assert {url.replace(page.task.id, "") for url in shown.urls} == {
            re.sub("[a-z2-7]{34}", "", url) for url in clean.urls
        }
    assert count > texts / 100


PAPER: list[str] = []


class Paper(BaseStrategy):
    """Sends to a device's id, whatever that looks like."""

    address = "device_id"

    def send(self, task: Task[Any], otp: str) -> None:
        PAPER.append("".join(otp))
