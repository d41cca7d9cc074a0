"""The docs are right: each block runs or is checked, and tables say what the package does."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import difflib
import importlib
import inspect
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from docs_support import PAGES, ROOT, Block, Reader, block, blocks, claims, read, rows, shows
from flask import Flask, render_template
from flask.testing import FlaskClient
from redis import Redis
from selenium import webdriver
from selenium.webdriver.common.by import By
from test_email import Handler, authenticate, certificate, context, mail_server, texts, trusted
from test_quickstart import browser, wait_for
from test_sms import gateway
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

import flask_taskflow
from flask_taskflow import (
    BaseStrategy,
    ConfigError,
    InvalidCode,
    InvalidTask,
    SendFailed,
    StrategyFailed,
    TaskFlowError,
    WrongCode,
    callback_dead,
    callback_failed,
    callback_succeeded,
    errors,
    signals,
    task_verified,
)
from flask_taskflow._callbacks import compute_backoff
from flask_taskflow._cli import taskflow_cli
from flask_taskflow._config import PREFIX, Config
from flask_taskflow.blueprint import _TITLES
from flask_taskflow.testing import outbox, redis_server, travel

# Fixtures of other files.
__all__ = ["browser", "certificate", "trusted"]

ANN = {"email": "ann@example.com"}
ORDER = {"user": "ann", "to": "Bob", "amount": 50}
WITHIN = 15.0
# Each command of README is run by `.ci/run`, in a fresh copy of the tree: it installs from a registry.
RUN_ELSEWHERE = {
    ("README.md", "Try it"): "python3 -m venv .venv && .venv/bin/pip install",
    ("README.md", "Test it"): "python3 -m venv .venv && . .venv/bin/activate",
}

Load = Callable[..., Any]
Talk = Callable[[BaseHTTPRequestHandler], object]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import blocks of a page as one module; the page's files, and ``bank.py``, are there to be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def run(page: str, *shown: str) -> ModuleType:
        files = [one for one in (*blocks("start.md"), *blocks(page)) if one.mark == "file"]
        for one in files:
            (tmp_path / one.name).write_text(one.text)
        module = shown[0].removesuffix(".py")
        if module == shown[0]:
            module = f"shown_{re.sub(r'[^a-z]', '_', module)}"
            (tmp_path / f"{module}.py").write_text("\n".join(block(page, name) for name in shown))
        importlib.invalidate_caches()
        return importlib.import_module(module)

    yield run
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def bank(load: Load) -> Any:
    return load("start.md", "bank.py")


@pytest.fixture
def settings(redis: Redis, server: str) -> dict[str, Any]:
    return {"TESTING": True, "TASKFLOW_REDIS_URL": server}


@pytest.fixture
def eager(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "TASKFLOW_EAGER": True}


def ask(client: FlaskClient) -> str:
    answer = client.post("/transfers", json=ORDER)
    assert answer.status_code == 202
    return str(answer.get_json()["task"])


def type_code(client: FlaskClient, task_id: str, otp: str, **options: Any) -> TestResponse:
    body = {"method": "EMAIL", "otp": otp}
    return client.post(f"/taskflow/tasks/{task_id}/verify", json=body, **options)


def wrong(otp: str) -> str:
    return f"{(int(otp) + 1) % 10 ** len(otp):0{len(otp)}}"


def public_errors() -> list[type[TaskFlowError]]:
    classes = [error for error in vars(errors).values() if inspect.isclass(error)]
    return [error for error in classes if issubclass(error, TaskFlowError) and error.__name__[0] != "_"]


@pytest.fixture(scope="module")
def port_of_redis() -> Iterator[str]:
    with redis_server(port=True) as url:
        yield url.removeprefix("redis://127.0.0.1:").partition("/")[0]


def steps(page: str) -> list[Block]:
    return [one for one in blocks(page) if one.is_for_the_reader]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)])
def test_page_shows_what_its_reader_gets(page: str, port_of_redis: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    # What ignores SIGINT hands that down; a terminal's processes do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    Reader(tmp_path, {"6379": port_of_redis}).follow(page)


def runs_elsewhere(one: Block) -> bool:
    return any(one.page == page and one.text.startswith(text) for (page, _), text in RUN_ELSEWHERE.items())


def is_used(file: Block) -> bool:
    """Tell whether a file is named by another block of its page, or is one of those that pytest finds."""
    others = "".join(one.text for one in blocks(file.page) if one != file)
    stem = Path(file.name).stem
    return stem in others or (bool(re.match("conftest|test_", stem)) and "pytest" in others)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_checked(page: str) -> None:
    claimed = claims()

    unmarked = [one for one in blocks(page) if not (one.mark or one.is_for_the_reader or one.is_of_sphinx)]
    marked = {(one.page, one.name) for one in blocks(page) if one.mark == "test"}
    unused = [one.name for one in blocks(page) if one.mark == "file" and not is_used(one)]

    assert [one.text for one in unmarked if not runs_elsewhere(one)] == []
    assert marked - claimed == set()
    assert unused == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_seen(page: str) -> None:
    text = read(page)

    assert len(re.findall(r"^[ >]*(?:```|~~~)", text, re.M)) == 2 * len(blocks(page))
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert re.findall(r"\n\n(?: {4}|\t).*", outside) == []
    assert len(re.findall(r"<!-- (?:test|file): ", text)) == len([one for one in blocks(page) if one.mark])


@pytest.mark.parametrize(("page", "heading"), RUN_ELSEWHERE)
def test_block_that_is_run_elsewhere_is_there_and_run(page: str, heading: str) -> None:
    after = read(page).partition(f"\n## {heading}\n")[2]
    first = re.search(r"^```\w+\n(.*)$", after, re.M)
    script = (ROOT / ".ci" / "run").read_text("utf-8")

    assert first
    assert first[1].startswith(RUN_ELSEWHERE[page, heading])
    assert re.search(rf'readme_command .*"{heading}"', script)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"

    for target, anchor in re.findall(r"\]\((?=#|[\w/-]+\.md)([\w/-]+\.md)?#?([\w-]*)\)", read(page)):
        headings = re.findall(r"^#+ (.*)$", (folder / (target or page)).read_text("utf-8"), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs | {""}


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_a_page_are_there(page: str) -> None:
    for line in re.findall(r"`flask (?:--app \w+ )?taskflow ([a-z].*?)`", read(page).replace("\n", " ")):
        name, *words = line.split()
        options = {option for known in taskflow_cli.commands[name].params for option in known.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_taste_of_the_index_runs(
    load: Load, eager: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = load("index.md", "taste", "views")
    app = Flask("taste")
    app.config.update(eager, SECRET_KEY="for this test only: replace it")
    shown.taskflow.init_app(app)

    with app.app_context(), outbox(shown.taskflow) as box:
        asked = shown.transfer()
        with pytest.raises(WrongCode):
            shown.confirm(asked["task"], wrong(box[0].otp))
        confirmed = shown.confirm(asked["task"], box.last_code("ann@example.com"))

    assert confirmed == {"status": "SUCCESS"}
    assert "Paying 50" in capsys.readouterr().out


def test_other_things_of_the_start_page_run(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    shown = load("start.md", "service")
    app = bank.create_app(**eager)

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN)
        shown.other_things(task.id)

        assert bank.taskflow.get_task(task.id).status == "CANCELLED"
        assert [message.addresses for message in box] == [("ann@example.com",), ("ann@example.org",)]


def added_lines(before: str, after: str) -> int:
    difference = difflib.ndiff(before.splitlines(), after.splitlines())
    return len([line for line in difference if line.startswith("+ ")])


def test_email_confirmation_is_added_to_a_plain_app_in_under_30_lines(
    load: Load, redis: Redis, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = block("email.md", "plain"), block("email.md", "mailbank.py")
    order, handler = {"to": "bob", "amount": 50}, Handler()

    plain = load("email.md", "plain")
    moved = plain.app.test_client().post("/transfer", json=order)
    with mail_server(handler) as port:
        monkeypatch.setenv("FLASK_TASKFLOW_SMTP_URL", f"smtp://localhost:{port}?starttls=no")
        monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
        monkeypatch.setenv("FLASK_TASKFLOW_EAGER", "true")
        monkeypatch.setenv("FLASK_TESTING", "true")
        client = load("email.md", "mailbank.py").app.test_client()
        task_id = client.post("/transfer", json=order).get_json()["task"]
        (code,) = [line for line in texts(handler.taken[0])[0].splitlines() if line.isdecimal()]
        refused = type_code(client, task_id, wrong(code))
        waiting = client.get("/accounts").get_json()
        accepted = type_code(client, task_id, code)

    assert added_lines(before, after) < 30
    assert (moved.status_code, plain.accounts) == (200, {"ann": 50, "bob": 50})
    assert handler.taken[0].recipients == ["ann@example.com"]
    assert (refused.status_code, waiting) == (400, {"ann": 100, "bob": 0})
    assert accepted.status_code == 200
    assert client.get("/accounts").get_json() == {"ann": 50, "bob": 50}


@pytest.mark.parametrize("amount", [0, -50, 101, "50", 0.5, None])
def test_bad_orders_are_refused_by_both_apps_of_the_email_page(
    load: Load, redis: Redis, server: str, monkeypatch: pytest.MonkeyPatch, amount: object
) -> None:
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    monkeypatch.setenv("FLASK_TESTING", "true")

    for name in ("plain", "mailbank.py"):
        client = load("email.md", name).app.test_client()
        answer = client.post("/transfer", json={"to": "bob", "amount": amount})
        assert (name, answer.status_code) == (name, 422)


def test_template_example_is_the_message(
    load: Load, bank: Any, eager: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "templates" / "taskflow" / "email" / "code.txt"
    path.parent.mkdir(parents=True)
    path.write_text(block("email.md", "template"))
    bank.taskflow.register_strategy("EMAIL")(flask_taskflow.EmailStrategy)
    handler = Handler()

    with mail_server(handler) as port:
        url = f"smtp://localhost:{port}?starttls=no"
        app = bank.create_app(**eager, TASKFLOW_SMTP_URL=url, TASKFLOW_EMAIL_SENDER="codes@bank.example")
        ask(app.test_client())

    text = texts(handler.taken[0])[0]
    assert text.startswith("Hello ann@example.com,")
    assert 'your code for "Pay 50 to Bob" is, for 10 minutes:' in text
    assert re.search(r"^\d{6}\r?$", text, re.M)


def test_log_of_the_email_page_is_what_a_refusal_leaves(
    bank: Any, eager: dict[str, Any], trusted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank.taskflow.register_strategy("EMAIL")(flask_taskflow.EmailStrategy)
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True, "require_starttls": True}

    with mail_server(Handler(), tls_context=context(trusted), **options) as port:
        url = f"smtp://mailer:nonsense@localhost:{port}"
        app = bank.create_app(**eager, TASKFLOW_SMTP_URL=url, TASKFLOW_EMAIL_SENDER="codes@bank.example")
        with app.app_context(), pytest.raises(SendFailed):
            bank.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN)

    assert shows(caplog.text, block("email.md", "log").strip())


def test_log_of_the_sms_page_is_what_a_long_text_leaves(
    load: Load, eager: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shown = load("sms.md", "smsbank.py")
    summary = "Chuyển 1.000.000 cho ban cua toi o Ha Noi nhe"

    with shown.create_app(**eager).app_context(), pytest.raises(SendFailed):
        shown.taskflow.add_task(
            "transfers", allowed_methods=["SMS"], recipient={"phone_number": "0901234567"}, summary=summary
        )

    assert shows(caplog.text, block("sms.md", "log").replace("\n", " ").strip())


def test_sms_example_writes_the_number_in_one_form(load: Load, eager: dict[str, Any]) -> None:
    shown = load("sms.md", "smsbank.py")

    with gateway() as taken:
        url = f"json://127.0.0.1:{taken.port}/sms?:to={{to}}"
        client = shown.create_app(**eager, TASKFLOW_SMS_URL=url).test_client()
        ask(client)

    sent = json.loads(taken.requests[0][2])
    assert sent["to"] == "+84901234567"
    assert re.fullmatch(r"Code \d{6} \(max. 10 min\). Tell nobody.\nPay 50 to Bob", sent["message"])


def test_background_example_sends_or_says_that_it_could_not(
    load: Load, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shown = load("sending.md", "background")
    handler = Handler()

    with mail_server(handler) as port:
        url = f"smtp://localhost:{port}?starttls=no"
        app = shown.create_app(
            **settings,
            TASKFLOW_SMTP_URL=url,
            TASKFLOW_EMAIL_SENDER="codes@bank.example",
            TASKFLOW_SEND_ATTEMPTS=1,
        )
        with app.app_context():
            shown.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN)
            before = list(handler.taken)
            shown.taskflow.run_due()
            handler.failures = 1
            lost = shown.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN)
            shown.taskflow.run_due()

    assert (before, len(handler.taken)) == ([], 1)
    assert f"no code of {lost.id} could be sent" in caplog.text


def test_owner_example_lets_only_the_owner_in(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    load("http.md", "owner")
    client = bank.create_app(**eager).test_client()

    with outbox(bank.taskflow) as box:
        task_id = ask(client)
        otp = box.last_code("ann@example.com")
        nobody = type_code(client, task_id, otp)
        with client.session_transaction() as session:
            session["user"] = "bob"
        other = type_code(client, task_id, otp)
        resend = client.post(f"/taskflow/tasks/{task_id}/resend", json={"method": "EMAIL"})
        with client.session_transaction() as session:
            session["user"] = "ann"
        unknown = type_code(client, "a" * 34, otp)
        owner = type_code(client, task_id, otp)

    assert [nobody.status_code, other.status_code, resend.status_code, unknown.status_code] == [404] * 4
    assert other.data == unknown.data
    assert owner.status_code == 200


def masked(text: str) -> object:
    """Return a body without what differs from task to task."""
    return {name: "*" if name in ("id", "verified_at") else value for name, value in json.loads(text).items()}


def test_bodies_of_the_http_page_are_taken_and_answered(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    client = bank.create_app(**eager, TASKFLOW_RESEND_COOLDOWN=30).test_client()
    verify, resend = json.loads(block("http.md", "verify")), json.loads(block("http.md", "resend"))

    with outbox(bank.taskflow) as box:
        path = f"/taskflow/tasks/{ask(client)}"
        travel_in(client, 31)
        resent = client.post(f"{path}/resend", json=resend)
        otp = box.last_code("ann@example.com")
        rejected = client.post(f"{path}/verify", json={**verify, "otp": wrong(otp)})
        invalid = client.post(f"{path}/verify", json={**verify, "otp": "nonsense"})
        verified = client.post(f"{path}/verify", json={**verify, "otp": otp})

    answers = {"resent": resent, "rejected": rejected, "invalid": invalid, "verified": verified}
    assert [answer.status_code for answer in answers.values()] == [202, 400, 422, 200]
    assert masked(block("http.md", "resent")) == masked(resent.text)
    assert masked(block("http.md", "rejected")) == masked(rejected.text)
    assert masked(block("http.md", "invalid")) == masked(invalid.text)
    assert masked(block("http.md", "verified")) == masked(verified.text)


def travel_in(client: FlaskClient, seconds: float) -> None:
    with client.application.app_context():
        travel(seconds)


def test_register_example_serves_the_two_routes(load: Load, eager: dict[str, Any]) -> None:
    app = load("http.md", "register").create_app(**eager, SECRET_KEY="for this test only: replace it")

    served = {rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/taskflow")}
    assert served == {"/taskflow/tasks/<task_id>/verify", "/taskflow/tasks/<task_id>/resend"}


def test_second_blueprint_is_for_who_logged_in(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    shown = load("http.md", "second")
    app = bank.create_app(**eager)
    app.register_blueprint(shown.codes, url_prefix="/codes")
    client = app.test_client()

    with outbox(bank.taskflow) as box:
        path = f"/codes/tasks/{ask(client)}"
        body = {"method": "EMAIL", "otp": box.last_code("ann@example.com")}
        nobody = client.post(f"{path}/verify", json=body)
        with client.session_transaction() as session:
            session["user"] = "ann"
        resend = client.post(f"{path}/resend", json={"method": "EMAIL"})
        owner = client.post(f"{path}/verify", json=body)

    assert [nobody.status_code, resend.status_code, owner.status_code] == [401, 404, 200]


@pytest.mark.slow
def test_page_example_confirms_in_a_browser(
    load: Load, bank: Any, eager: dict[str, Any], browser: webdriver.Chrome, tmp_path: Path
) -> None:
    app = load("http.md", "csrf").create_protected_app(**eager)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "page.html").write_text(block("http.md", "page"))
    app.add_url_rule("/<task_id>", "page", lambda task_id: render_template("page.html", task_id=task_id))
    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", ORDER, allowed_methods=["EMAIL"], recipient=ANN)
    http = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()

    try:
        browser.get(f"http://127.0.0.1:{http.port}/{task.id}")
        for code in (wrong(box[0].otp), box[0].otp):
            field = browser.find_element(By.ID, "code")
            field.clear()
            field.send_keys(code)
            browser.find_element(By.ID, "confirm").click()
            told = wait_for(browser, "#answer", "SUCCESS" if code == box[0].otp else "not accepted").text
    finally:
        http.shutdown()
        thread.join()
        http.server_close()

    assert told == "SUCCESS"


def test_csrf_token_example_guards_the_routes(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    app = load("http.md", "csrf").create_protected_app(**eager)
    app.add_url_rule("/token", view_func=app.jinja_env.globals["csrf_token"])
    client = app.test_client()
    token = client.get("/token").text
    header = {"X-CSRFToken": token}

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", ORDER, allowed_methods=["EMAIL"], recipient=ANN)
        otp = box.last_code("ann@example.com")
        without = type_code(client, task.id, otp)
        with_token = type_code(client, task.id, otp, headers=header)

    assert (without.status_code, without.mimetype) == (400, "text/html")
    assert with_token.status_code == 200


def test_csrf_exempt_example_frees_the_routes_only(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    app = load("http.md", "csrf", "csrf-exempt").create_protected_app(**eager)
    client = app.test_client()

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", ORDER, allowed_methods=["EMAIL"], recipient=ANN)
        form = client.post(f"/taskflow/tasks/{task.id}/verify", data={"method": "EMAIL"})
        free = type_code(client, task.id, box.last_code("ann@example.com"))
        guarded = client.post("/transfers", json=ORDER)

    assert form.status_code == 415
    assert free.status_code == 200
    assert (guarded.status_code, guarded.mimetype) == (400, "text/html")


def test_problem_codes_of_the_http_page_are_the_blueprints() -> None:
    documented = {row[1]: int(row[0]) for row in rows("http.md", "## Errors")}
    classes = {error.code: error.http_status for error in public_errors()}

    assert set(documented) == set(_TITLES)
    for code in documented.keys() & classes.keys():
        assert documented[code] == classes[code]


class Device(BaseStrategy):
    """Takes every code once."""

    def send(self, task: Any, otp: str) -> None:
        pass

    def check(self, task: Any, otp: str, now: datetime) -> str:
        return otp


@pytest.fixture
def chat(load: Load, settings: dict[str, Any]) -> Any:
    """Ask the example's app to send through a real server that answers as told; return what it raised."""
    shown = load("strategies.md", "chatbank.py")

    def send(talk: Talk | None, recipient: str = "ann@example.com") -> Any:
        with gateway() as server:
            # Without anything to say it hangs up after two seconds: too late.
            server.answer = talk or (lambda request: server.over.wait(2))
            app = shown.create_app(**settings, CHAT_URL=server.url, CHAT_TIMEOUT=0.3)
            with app.app_context(), pytest.raises(Exception) as caught:  # noqa: PT011  # the caller looks
                shown.taskflow.add_task(
                    "transfers", allowed_methods=["CHAT"], recipient={"email": recipient}, summary="Pay 50"
                )
            server.over.set()
        return caught.value, [json.loads(body) for _, _, body in server.requests]

    return send


def answer(status: int, body: bytes) -> Talk:
    def talk(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.end_headers()
        request.wfile.write(body)

    return talk


@pytest.mark.parametrize(
    ("talk", "cause"),
    [
        (answer(200, b'{"ok": false}'), "ChatRefused"),
        (answer(500, b"{}"), "HTTPError"),
        (answer(200, b"<html>"), "JSONDecodeError"),
        (answer(200, b'{"quite": "other"}'), "KeyError"),
        (lambda request: None, "RemoteDisconnected"),
        (None, "TimeoutError"),
    ],
)
def test_chat_example_when_the_chat_does_not_take_it_fails(
    chat: Any, caplog: pytest.LogCaptureFixture, talk: Any, cause: str
) -> None:
    error, sent = chat(talk)

    assert isinstance(error, SendFailed)
    assert f"{cause} raised by Chat" in caplog.text
    (code,) = re.findall(r"\d{6}", sent[0]["text"])
    assert code not in caplog.text
    assert sent[0]["to"] == "ann@example.com"


def test_chat_example_refuses_who_is_no_member_before_anything_is_sent(chat: Any) -> None:
    error, sent = chat(answer(200, b"{}"), "Ann@example.org")

    assert isinstance(error, InvalidTask)
    assert sent == []


def test_failed_example_answers_503(load: Load, settings: dict[str, Any]) -> None:
    shown, ok = load("strategies.md", "failed"), {"email": "ann@example.com"}
    bank = load("strategies.md", "chatbank.py")

    with gateway() as server:
        server.answer = answer(200, b'{"ok": true}')
        with bank.create_app(**settings, CHAT_URL=server.url).app_context():
            sent = shown.ask(ORDER, ok)
            server.answer = answer(200, b'{"ok": false}')
            failed = shown.ask(ORDER, ok)
            kept = bank.taskflow.get_task(failed[0]["task"])

    assert (sent[0]["sent"], sent[1]) == (True, 202)
    assert (failed[0]["sent"], failed[1]) == (False, 503)
    assert kept.status == "PENDING"


def test_register_example_takes_an_instance(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    called: list[tuple[str, str]] = []

    class Station:
        def call(self, number: str, text: str) -> None:
            called.append((number, text))

    load("strategies.md", "register").use(Station())

    with bank.create_app(**eager).app_context():
        bank.taskflow.add_task(
            "q", allowed_methods=["SMS"], recipient={"phone_number": "+12025550110"}, summary="Open the door"
        )

    ((number, text),) = called
    assert number == "+12025550110"
    assert re.fullmatch(r"Open the door\? \d{6}", text)


def test_check_example_takes_the_code_of_the_day_once(
    load: Load, bank: Any, eager: dict[str, Any], redis: Redis
) -> None:
    shown = load("strategies.md", "check")
    day = datetime.fromtimestamp(redis.time()[0], UTC).date().isoformat()
    shown.sheets["sheet-7"] = {day: "02345678", "2020-01-01": "99999999"}
    tries = {"allowed_methods": ["SHEET"], "recipient": {"device_id": "sheet-7"}}

    with bank.create_app(**eager).app_context():
        first, second = (bank.taskflow.add_task("q", **tries) for _ in range(2))
        with pytest.raises(WrongCode):
            bank.taskflow.verify(first.id, "SHEET", "99999999")
        verified = bank.taskflow.verify(first.id, "SHEET", "0234 5678")
        with pytest.raises(WrongCode):
            bank.taskflow.verify(second.id, "SHEET", "02345678")
        unknown = bank.taskflow.add_task("q", allowed_methods=["SHEET"], recipient={"device_id": "none"})
        with pytest.raises(StrategyFailed):
            bank.taskflow.verify(unknown.id, "SHEET", "02345678")

    assert verified.status == "SUCCESS"


def test_generate_example_makes_its_own_codes(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    shown = load("strategies.md", "generate")
    letter = shown.Letter()
    bank.taskflow.register_strategy("LETTER")(letter)
    app = bank.create_app(**eager)

    with app.app_context():
        task = bank.taskflow.add_task(
            "letters", allowed_methods=["LETTER"], recipient={}, summary="Move to Oslo"
        )
        first = letter.printed[0].partition("Move to Oslo: ")[2]
        with pytest.raises(InvalidCode):
            bank.taskflow.verify(task.id, "LETTER", first.lower())
        travel(31)
        bank.taskflow.resend_otp(task.id, "LETTER")
        second = letter.printed[1].partition("Move to Oslo: ")[2]
        verified = bank.taskflow.verify(task.id, "LETTER", f" {second[:4]}-{second[4:]} ")

    assert re.fullmatch("[A-Z]{8}", first)
    assert first != second
    assert verified.status == "SUCCESS"


def test_receiver_example_hears(
    load: Load, bank: Any, eager: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shown = load("events.md", "receiver")
    app = bank.create_app(**eager)

    caplog.set_level("INFO")
    try:
        with app.app_context(), outbox(bank.taskflow) as box:
            task = bank.taskflow.add_task("other", allowed_methods=["EMAIL"], recipient=ANN)
            bank.taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))
    finally:
        task_verified.disconnect(shown.tell_the_browser)

    assert f"{task.id} was confirmed by EMAIL" in caplog.text


def test_callback_example_ships(
    load: Load, bank: Any, eager: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    load("events.md", "callback")
    app = bank.create_app(**eager)

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("orders", "a book", allowed_methods=["EMAIL"], recipient=ANN)
        bank.taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))

    assert "Shipping a book" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "heard", "due_again_after"),
    [
        ({"amount": 0, "bank": "open"}, ["dead"], None),
        ({"amount": 9, "bank": "closed"}, ["failed"], 3600),
        ({"amount": 9, "bank": "open"}, ["succeeded"], None),
    ],
)
def test_retry_example_retries_and_rejects(
    load: Load,
    bank: Any,
    eager: dict[str, Any],
    data: dict[str, Any],
    heard: list[str],
    due_again_after: float | None,
) -> None:
    load("events.md", "retry")
    app = bank.create_app(**eager)
    events: list[str] = []

    def failed(sender: Flask, **_: Any) -> None:
        events.append("failed")

    def dead(sender: Flask, **_: Any) -> None:
        events.append("dead")

    def succeeded(sender: Flask, **_: Any) -> None:
        events.append("succeeded")

    with (
        callback_failed.connected_to(failed, app),
        callback_dead.connected_to(dead, app),
        callback_succeeded.connected_to(succeeded, app),
        app.app_context(),
        outbox(bank.taskflow) as box,
    ):
        task = bank.taskflow.add_task("refunds", data, allowed_methods=["EMAIL"], recipient=ANN)
        bank.taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))
        now = list(events)
        travel((due_again_after or 3600) - 5)
        early = bank.taskflow.run_due()
        travel(10)
        late = bank.taskflow.run_due()

    assert now == heard
    assert (early, late) == (0, 1 if due_again_after else 0)


def test_idempotency_example_when_redis_is_rolled_back_debits_once(
    load: Load, bank: Any, settings: dict[str, Any], redis: Redis, tmp_path: Path
) -> None:
    load("events.md", "idempotent")
    path = tmp_path / "bank.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE deliveries (id TEXT PRIMARY KEY)")
        database.execute("CREATE TABLE accounts (owner TEXT, balance INTEGER)")
        database.execute("INSERT INTO accounts VALUES ('ann', 100)")
    app = bank.create_app(**settings, DATABASE=path)

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task(
            "payments", {"user": "ann", "amount": 30}, allowed_methods=["EMAIL"], recipient=ANN
        )
        bank.taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))
        before: dict[Any, Any] = {key: redis.dump(key) for key in redis.scan_iter()}
        runs = [bank.taskflow.run_due()]
        redis.flushall()
        for key, value in before.items():
            redis.restore(key, 0, value)
        runs.append(bank.taskflow.run_due())

    with closing(sqlite3.connect(path)) as database:
        balance = database.execute("SELECT balance FROM accounts").fetchone()
        deliveries = database.execute("SELECT id FROM deliveries").fetchall()
    assert runs == [1, 1]
    assert balance == (70,)
    assert deliveries == [(f"{task.id}:debit",)]


def test_backoff_table_of_the_events_page_is_right() -> None:
    for strategy, *waits, _ in rows("events.md", "### Retries"):
        computed = [compute_backoff(strategy.strip('"'), 5, n, cap=3600, jitter=0) for n in (1, 2, 3, 4)]
        assert computed == [float(wait) for wait in waits]


def test_signals_table_of_the_events_page_is_complete() -> None:
    source = inspect.getsource(signals)
    declared = re.findall(r"^#: ``\(app, \*, (.*?)\)``.*?\n(?:#:.*\n)*(\w+) = ", source, re.M)
    documented = {row[0]: row[3].replace("`", "") for row in rows("events.md", "## Signals")}

    assert documented == {name: arguments.replace("=None", "") for arguments, name in declared}


def test_gunicorn_hook_makes_each_worker_listen_before_any_request(
    redis: Redis, server: str, tmp_path: Path
) -> None:
    for page, name in (("start.md", "bank.py"), ("deploy.md", "gunicorn.conf.py")):
        (tmp_path / name).write_text(block(page, name))
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "-w", "2"]
    command += ["-b", f"unix:{tmp_path / 'http.sock'}", "bank:create_app()"]
    environment = {**os.environ, "FLASK_TASKFLOW_REDIS_URL": server}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline, pause = time.monotonic() + WITHIN, threading.Event()
        while redis.pubsub_numsub("taskflow:0:bell")[0][1] != 2:
            assert time.monotonic() < deadline
            pause.wait(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def config_blocks() -> dict[str, str]:
    parts = re.split(r"^### `(\w+)`$", read("config.md"), flags=re.M)
    return {name: text.partition("\n## ")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def item(text: str, name: str) -> str:
    found = re.search(rf"^- {name}: (.*(?:\n  .*)*)", text, re.M)
    assert found, f"a block has no {name}"
    return found[1]


def literals(text: str) -> list[Any]:
    """Return the values between backticks; names of keys are none."""
    values = []
    for source in re.findall(r"`([^`]+)`", text):
        try:
            values.append(ast.literal_eval(source))
        except (SyntaxError, ValueError):
            continue
    return values


def test_config_page_has_each_key_with_its_default() -> None:
    keys = {PREFIX + field.name.upper(): [field.default] for field in dataclasses.fields(Config)}

    documented = {name: literals(item(text, "Default")) for name, text in config_blocks().items()}

    assert documented == keys


@pytest.mark.parametrize(("key", "text"), config_blocks().items())
def test_config_block_tells_what_is_taken_and_refused(key: str, text: str) -> None:
    takes, refused = literals(item(text, "Type")), literals(item(text, "Refused"))
    loose = {
        "TASKFLOW_ALLOW_WEAK_CODES": True,
        "TASKFLOW_RESEND_COOLDOWN": 0,
        "TASKFLOW_RESEND_COOLDOWN_MAX": 86400,
    }

    assert takes
    assert len(refused) == 1
    for value in takes:
        Config.read({**loose, key: value})
    with pytest.raises(ConfigError, match=key):
        Config.read({key: refused[0]})
    numbers = [value for value in takes if type(value) in (int, float)]
    for beyond in [min(numbers) - 1, max(numbers) + 1] if numbers else []:
        with pytest.raises(ConfigError, match=key):
            Config.read({**loose, key: beyond})


@pytest.mark.parametrize(
    ("shown", "given"),
    [
        (block("config.md", "misspelt"), {"TASKFLOW_TASK_TLL": 600}),
        (block("config.md", "bad value"), {"TASKFLOW_TASK_TTL": "600"}),
    ],
    ids=["misspelt", "bad value"],
)
def test_config_page_quotes_messages(shown: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read(given)

    assert str(caught.value) == shown.strip()


@pytest.mark.parametrize("shown", [block("deploy.md", "redis.conf"), block("redis.md", "redis.conf")])
def test_settings_of_redis_on_the_pages_please_the_doctor(bank: Any, shown: str) -> None:
    options = [word for line in shown.splitlines() for word in ("--" + line).split()]

    with redis_server(*options) as url, Redis.from_url(url) as client:
        app = bank.create_app(TESTING=True, TASKFLOW_REDIS_URL=url)
        with app.app_context():
            bank.taskflow.start()
            result = app.test_cli_runner().invoke(taskflow_cli, ["doctor", "--json"])
            bank.taskflow.stop()
        values = {name: client.config_get(name)[name] for name, _ in map(str.split, shown.splitlines())}

    assert {finding["level"] for finding in json.loads(result.output)} == {"ok"}
    assert values == dict(map(str.split, shown.splitlines()))


def test_unit_of_the_deploy_page_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = block("deploy.md", "unit")
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # keys keep their case
    unit.read_string(text)
    assert float(unit["Service"]["TimeoutStopSec"]) > Config().drain
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = unit["Service"]["ExecStart"].split()[0]
    path = tmp_path / "bank-worker@.service"
    path.write_text(text.replace(program, sys.executable).replace("/srv/bank", "/"))

    verified = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )

    assert path.name not in verified.stderr
    assert verified.returncode == 0, verified.stderr


def test_level_of_the_audit_page_lets_records_through(
    load: Load, bank: Any, eager: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("flask_taskflow.audit")
    before = logger.level

    try:
        load("audit.md", "level")
        with outbox(bank.taskflow):
            ask(bank.create_app(**eager).test_client())
    finally:
        logger.setLevel(before)

    assert [record.message for record in caplog.records if record.name == logger.name] == [
        "task_added",
        "code_sent",
    ]


def test_keys_table_of_the_deploy_page_is_complete(bank: Any, settings: dict[str, Any], server: str) -> None:
    app = bank.create_app(**settings)
    client: Any = Redis.from_url(server, decode_responses=True)
    seen: set[tuple[str, str]] = set()

    def look() -> None:
        for key in client.scan_iter():
            name = re.sub(r"\{taskflow\.\w{8}\}", "T", key).replace("taskflow:", "P:", 1)
            name = re.sub(r":task:\w+", ":task:<id>", re.sub(r":used:\w+", ":used:<HMAC>", name))
            kind = str(client.type(key)).replace("zset", "sorted set")
            seen.add((re.sub(r":h:\w+:", ":h:N:", name), kind))

    def looks(task: Any) -> None:
        look()
        raise ValueError("an error to keep")

    bank.taskflow.on_task_verified("transfers", name="looks", max_attempts=2, backoff_time=1)(looks)
    with client, app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", ORDER, allowed_methods=["EMAIL"], recipient=ANN)
        look()
        with pytest.raises(flask_taskflow.TaskNotFound):
            bank.taskflow.verify(task.id[:8] + "a" * 26, "EMAIL", "123456")
        bank.taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))
        look()
        bank.taskflow.run_due()
        look()
        travel(2)
        bank.taskflow.run_due()
        bank.taskflow.register_strategy("DEVICE")(Device)
        task = bank.taskflow.add_task("transfers", ORDER, allowed_methods=["DEVICE"], recipient={})
        bank.taskflow.verify(task.id, "DEVICE", "123456")
        app.test_cli_runner().invoke(taskflow_cli, ["pause", "transfers"])
        look()

    assert {(row[0], row[1]) for row in rows("deploy.md", "### Keys")} == seen


def test_commands_table_of_the_operations_page_is_complete() -> None:
    cells = " ".join(row[0] for row in rows("operations.md", "# Operations"))

    assert set(re.findall(r"[a-z]+", cells)) == set(taskflow_cli.commands)


def test_memory_of_a_task_is_what_the_deploy_page_says(
    bank: Any, eager: dict[str, Any], redis: Redis
) -> None:
    app = bank.create_app(**eager)

    with app.app_context(), outbox(bank.taskflow):
        task = bank.taskflow.add_task("transfers", {"amount": 1}, allowed_methods=["EMAIL"], recipient=ANN)

    key = next(iter(redis.scan_iter(match=f"*{task.id}")))
    # Every field counts: a sample of them says up to 10% too much.
    size = int(redis.memory_usage(key, samples=0) or 0)
    assert 1300 < size < 2200


def test_api_page_lists_every_public_name() -> None:
    directives = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", read("api.md"), re.M)

    assert set(flask_taskflow.__all__) <= set(directives)
    assert {"outbox", "travel", "redis_server"} <= set(directives)


def test_errors_table_of_the_api_page_is_right() -> None:
    documented = [(row[0], row[1], int(row[2])) for row in rows("api.md", "## Errors")]

    assert documented == [(error.__name__, error.code, error.http_status) for error in public_errors()]
