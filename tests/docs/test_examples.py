"""The blocks of the pages that a reader takes into an app do there what the page says."""

from __future__ import annotations

import difflib
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, render_template
from redis import Redis
from werkzeug.serving import make_server

from flask_taskflow import (
    EmailStrategy,
    callback_dead,
    callback_failed,
    callback_succeeded,
    task_expiring,
    task_verified,
)
from flask_taskflow.errors import InvalidCode, InvalidTask, KeyReused, SendFailed, StrategyFailed, WrongCode
from flask_taskflow.testing import outbox, travel
from tests.docs.conftest import ANN, ORDER, Bank, Load, ask, type_code
from tests.support.browser import chromium, submit, wait_for
from tests.support.docs import block, shows
from tests.support.gateway import Answer, answer, gateway
from tests.support.mail import (
    Handler,
    authenticate,
    context,
    mail_server,
    make_certificate,
)
from tests.support.tasks import other, refused

UNKNOWN = "a" * 34


def through(port: int, login: str = "", query: str = "?starttls=no") -> dict[str, Any]:
    """Return the settings of an app that sends through a mail server."""
    url = f"smtp://{login}localhost:{port}{query}"
    return {"TASKFLOW_SMTP_URL": url, "TASKFLOW_EMAIL_SENDER": "codes@bank.example"}


# index.md, start.md


def test_taste_of_the_index_runs(
    load: Load, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = load("index.md", "taste", "views")
    app = Flask("taste")
    app.config.update(settings, TASKFLOW_EAGER=True, SECRET_KEY="for this test only: replace it")
    shown.taskflow.init_app(app)

    with app.app_context(), outbox(shown.taskflow) as box:
        asked = shown.transfer()
        refused(WrongCode, shown.confirm, asked["task"], other(box[0].otp))
        confirmed = shown.confirm(asked["task"], box.last_code(ANN))

    assert confirmed == {"status": "SUCCESS"}
    assert "Paying 50" in capsys.readouterr().out


def test_other_things_of_the_start_page_run(load: Load, bank: Bank) -> None:
    shown = load("start.md", "service")

    with bank.app() as (_, box):
        task = bank.add()
        shown.other_things(task.id)

        assert bank.taskflow.get_task(task.id).status == "CANCELLED"
        assert [message.addresses for message in box] == [(ANN,), ("ann@example.org",)]

    owned = load("start.md", "owner")
    with bank.app() as (_, box):
        first, second = (owned.pay(17, 991, ANN) for _ in range(2))

        assert (first.id, first.owner) == (second.id, "user:17")
        assert len(box) == 1
        refused(KeyReused, owned.pay, 17, 991, "other@example.com")


# email.md


@pytest.fixture
def environment(redis: Redis, server: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    monkeypatch.setenv("FLASK_TASKFLOW_EAGER", "true")
    monkeypatch.setenv("FLASK_TESTING", "true")
    return monkeypatch


def test_email_confirmation_is_added_to_a_plain_app_in_under_30_lines(
    load: Load, environment: pytest.MonkeyPatch
) -> None:
    texts = (block("email.md", "plain").splitlines(), block("email.md", "mailbank.py").splitlines())
    order, handler = {"to": "bob", "amount": 50}, Handler()

    plain = load("email.md", "plain")
    moved = plain.app.test_client().post("/transfer", json=order)
    with mail_server(handler) as port:
        environment.setenv("FLASK_TASKFLOW_SMTP_URL", f"smtp://localhost:{port}?starttls=no")
        client = load("email.md", "mailbank.py").app.test_client()
        task_id = client.post("/transfer", json=order).get_json()["task"]
        (code,) = [line for line in handler.taken[0].body().splitlines() if line.isdecimal()]
        refused = type_code(client, task_id, other(code))
        waiting = client.get("/accounts").get_json()
        accepted = type_code(client, task_id, code)

    assert len([line for line in difflib.ndiff(*texts) if line.startswith("+ ")]) < 30
    assert (moved.status_code, plain.accounts) == (200, {"ann": 50, "bob": 50})
    assert handler.taken[0].recipients == [ANN]
    assert (refused.status_code, waiting) == (400, {"ann": 100, "bob": 0})
    assert (accepted.status_code, client.get("/accounts").get_json()) == (200, {"ann": 50, "bob": 50})


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("amount", [0, -50, 101, "50", 0.5, None])
def test_bad_orders_are_refused_by_both_apps_of_the_email_page(load: Load, amount: object) -> None:
    for name in ("plain", "mailbank.py"):
        client = load("email.md", name).app.test_client()
        answer = client.post("/transfer", json={"to": "bob", "amount": amount})
        assert (name, answer.status_code) == (name, 422)


def test_template_example_is_the_message(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "templates" / "taskflow" / "email" / "code.txt"
    path.parent.mkdir(parents=True)
    path.write_text(block("email.md", "template"))
    bank.taskflow.register_strategy("EMAIL")(EmailStrategy)
    handler = Handler()

    with mail_server(handler) as port:
        ask(bank.make(**through(port)).test_client())

    text = handler.taken[0].body()
    assert text.startswith("Hello ann@example.com,")
    assert 'your code for "Pay 50 to Bob" is, for 10 minutes:' in text
    assert re.search(r"^\d{6}\r?$", text, re.M)


def test_log_of_the_email_page_is_what_a_refusal_leaves(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    bank.taskflow.register_strategy("EMAIL")(EmailStrategy)
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True, "require_starttls": True}

    with mail_server(Handler(), tls_context=context(certificate), **options) as port:
        app = bank.make(**through(port, "mailer:nonsense@", ""))
        with app.app_context(), pytest.raises(SendFailed):
            bank.add()

    assert shows(caplog.text, block("email.md", "log").strip())


# sms.md, sending.md


@pytest.fixture
def sms_bank(load: Load, bank: Bank) -> Bank:
    return Bank(load("sms.md", "smsbank.py"), bank.settings)


def test_log_of_the_sms_page_is_what_a_long_summary_leaves(
    sms_bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    summary, recipient = (
        "Заплатить Ивану Ивановичу Петрову за квартиру номер 17",
        {"phone_number": "0901234567"},
    )

    with sms_bank.make().app_context(), pytest.raises(SendFailed):
        sms_bank.add(allowed_methods=["SMS"], recipient=recipient, summary=summary)

    assert shows(caplog.text, block("sms.md", "log").replace("\n", " ").strip())


def test_sms_example_writes_the_number_in_one_form(sms_bank: Bank) -> None:
    with gateway() as taken:
        ask(sms_bank.make(TASKFLOW_SMS_URL=f"json://127.0.0.1:{taken.port}/sms?:to={{to}}").test_client())

    sent = json.loads(taken.requests[0][2])
    assert sent["to"] == "+84901234567"
    assert re.fullmatch(r"Code \d{6} \(max. 10 min\). Tell nobody.\nPay 50 to Bob", sent["message"])


def test_background_example_sends_or_says_that_it_could_not(
    load: Load, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bank, handler = Bank(load("sending.md", "background"), settings), Handler()

    with (
        mail_server(handler) as port,
        bank.make(**through(port)).app_context(),
    ):
        bank.add()
        before = list(handler.taken)
        bank.taskflow.run_due()
        handler.failures = 1
        lost = bank.add()
        bank.taskflow.run_due()

    assert (before, len(handler.taken)) == ([], 1)
    assert f"no code of {lost.id} could be sent" in caplog.text


# http.md


def log_in(client: Any, user: str) -> None:
    with client.session_transaction() as session:
        session["user"] = user


def test_owner_example_lets_only_the_owner_in(load: Load, bank: Bank) -> None:
    load("http.md", "owner")

    with bank.app() as (client, box):
        task_id, otp = ask(client), box.last_code(ANN)
        nobody = type_code(client, task_id, otp)
        log_in(client, "bob")
        another = type_code(client, task_id, otp)
        preflight = client.options(f"/taskflow/tasks/{task_id}/verify")
        resend = client.post(f"/taskflow/tasks/{task_id}/resend", json={"method": "EMAIL"})
        log_in(client, "ann")
        unknown, owner = type_code(client, UNKNOWN, otp), type_code(client, task_id, otp)

    assert [one.status_code for one in (nobody, another, resend, unknown)] == [404] * 4
    assert another.data == unknown.data
    assert preflight.status_code == 200
    assert owner.status_code == 200


def test_views_example_answers_the_sixth_letter_with_429(load: Load, bank: Bank) -> None:
    app = bank.make(PROPAGATE_EXCEPTIONS=False)
    app.register_blueprint(load("http.md", "views").letters)

    with bank.app(app) as (client, _):
        log_in(client, "ann")
        answers = [client.post("/letters") for _ in range(6)]

    assert [answer.status_code for answer in answers] == [202] * 5 + [429]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 600


def test_holder_example_is_for_the_browser_that_asked(load: Load, bank: Bank) -> None:
    app = bank.make()
    app.register_blueprint(load("http.md", "holder").parcels)

    with bank.app(app) as (client, box):
        log_in(client, "ann")
        task_id = client.post("/parcels").get_json()["task"]
        otp = box.last_code(ANN)
        answers = [type_code(one, task_id, otp) for one in (app.test_client(), client)]

    assert [answer.status_code for answer in answers] == [400, 200]


def test_first_app_answers_its_sixth_request_with_429(bank: Bank) -> None:
    with bank.app(PROPAGATE_EXCEPTIONS=False) as (client, _):
        answers = [client.post("/transfers", json=ORDER) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [202] * 5 + [429]
    assert answers[-1].get_json()["code"] == "send_limit"


def test_bodies_of_the_http_page_are_taken_and_answered(bank: Bank) -> None:
    def masked(text: str) -> object:
        body = json.loads(text)
        changing = ("id", "verified_at", "expires_at")
        return {name: "*" if name in changing else value for name, value in body.items()}

    verify, resend = json.loads(block("http.md", "verify")), json.loads(block("http.md", "resend"))
    app = bank.make(TASKFLOW_RESEND_COOLDOWN=30)
    app.register_blueprint(
        bank.taskflow.create_blueprint(name="more", routes=["status"]), url_prefix="/taskflow"
    )
    with bank.app(app) as (client, box):
        path = f"/taskflow/tasks/{ask(client)}"
        status = client.get(path)
        travel(31)
        resent = client.post(f"{path}/resend", json=resend)
        otp = box.last_code(ANN)
        rejected, invalid, verified = (
            client.post(f"{path}/verify", json={**verify, "otp": typed})
            for typed in (other(otp), "nonsense", otp)
        )

    for code, shown, answered in (
        (200, block("http.md", "status"), status),
        (202, block("http.md", "resent"), resent),
        (400, block("http.md", "rejected"), rejected),
        (422, block("http.md", "invalid"), invalid),
        (200, block("http.md", "verified"), verified),
    ):
        assert (code, masked(shown)) == (answered.status_code, masked(answered.text))


def test_job_of_the_operations_page_replays_what_fits(load: Load, bank: Bank) -> None:
    with bank.app() as (_, box):
        bank.confirm(box)

        assert load("operations.md", "replay timeouts").replay_timeouts() == 0


def test_register_example_serves_the_two_routes(load: Load, settings: dict[str, Any]) -> None:
    app = load("http.md", "register").create_app(**settings, SECRET_KEY="for this test only: replace it")

    served = {rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/taskflow")}
    assert served == {"/taskflow/tasks/<task_id>/verify", "/taskflow/tasks/<task_id>/resend"}


def test_second_blueprint_is_for_who_logged_in(load: Load, bank: Bank) -> None:
    app = bank.make()
    app.register_blueprint(load("http.md", "second").codes, url_prefix="/codes")

    with bank.app(app) as (client, box):
        task_id, otp = ask(client), box.last_code(ANN)
        nobody = type_code(client, task_id, otp, at="/codes")
        log_in(client, "ann")
        resend = client.post(f"/codes/tasks/{task_id}/resend", json={"method": "EMAIL"})
        owner = type_code(client, task_id, otp, at="/codes")

    assert [nobody.status_code, resend.status_code, owner.status_code] == [401, 404, 200]


@pytest.mark.slow
def test_page_example_confirms_in_a_browser(load: Load, bank: Bank, tmp_path: Path) -> None:
    app = load("http.md", "csrf").create_protected_app(**bank.settings)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "page.html").write_text(block("http.md", "page"))
    app.add_url_rule("/<task_id>", "page", lambda task_id: render_template("page.html", task_id=task_id))
    with bank.app(app) as (_, box):
        task = bank.add(data=ORDER)
    http = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()

    try:
        with chromium(tmp_path / "profile") as browser:
            browser.get(f"http://127.0.0.1:{http.port}/{task.id}")
            for code, answered in ((other(box[0].otp), "not accepted"), (box[0].otp, "SUCCESS")):
                submit(browser, "code", code, "#confirm")
                told = wait_for(browser, "#answer", answered).text
    finally:
        http.shutdown()
        thread.join()
        http.server_close()

    assert told == "SUCCESS"


def test_csrf_token_example_guards_the_routes(load: Load, bank: Bank) -> None:
    app = load("http.md", "csrf").create_protected_app(**bank.settings)
    app.add_url_rule("/token", view_func=app.jinja_env.globals["csrf_token"])

    with bank.app(app) as (client, box):
        task_id = bank.add(data=ORDER).id
        otp, header = box.last_code(ANN), {"X-CSRFToken": client.get("/token").text}
        without, with_token = type_code(client, task_id, otp), type_code(client, task_id, otp, headers=header)

    assert (without.status_code, without.mimetype) == (400, "text/html")
    assert with_token.status_code == 200


def test_csrf_exempt_example_frees_the_routes_only(load: Load, bank: Bank) -> None:
    with bank.app(load("http.md", "csrf", "csrf-exempt").create_protected_app(**bank.settings)) as (
        client,
        box,
    ):
        task_id = bank.add(data=ORDER).id
        form = client.post(f"/taskflow/tasks/{task_id}/verify", data={"method": "EMAIL"})
        free = type_code(client, task_id, box.last_code(ANN))
        guarded = client.post("/transfers", json=ORDER)

    assert [form.status_code, free.status_code, guarded.status_code] == [415, 200, 400]
    assert guarded.mimetype == "text/html"


# strategies.md


@pytest.fixture
def chat_bank(load: Load, settings: dict[str, Any]) -> Bank:
    return Bank(load("strategies.md", "chatbank.py"), settings)


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
    chat_bank: Bank, caplog: pytest.LogCaptureFixture, talk: Answer | None, cause: str
) -> None:
    with gateway() as server:
        server.answer = talk or (lambda request: server.over.wait(60))
        app = chat_bank.make(CHAT_URL=server.url, CHAT_TIMEOUT=10 if talk else 0.3)
        with app.app_context(), pytest.raises(SendFailed):
            chat_bank.add(allowed_methods=["CHAT"], summary="Pay 50")

    sent = json.loads(server.requests[0][2])
    (code,) = re.findall(r"\d{6}", sent["text"])
    assert sent["to"] == ANN
    assert f"{cause} raised by Chat" in caplog.text
    assert code not in caplog.text


def test_chat_example_refuses_who_is_no_member_before_anything_is_sent(chat_bank: Bank) -> None:
    with gateway() as server, chat_bank.make(CHAT_URL=server.url).app_context(), pytest.raises(InvalidTask):
        chat_bank.add(allowed_methods=["CHAT"], recipient={"email": "Ann@example.org"})

    assert server.requests == []


def test_failed_example_answers_503(load: Load, chat_bank: Bank) -> None:
    shown = load("strategies.md", "failed")

    with gateway() as server, chat_bank.make(CHAT_URL=server.url).app_context():
        server.answer = answer(200, b'{"ok": true}')
        sent = shown.ask(ORDER, {"email": ANN})
        server.answer = answer(200, b'{"ok": false}')
        failed = shown.ask(ORDER, {"email": ANN})
        kept = chat_bank.taskflow.get_task(failed[0]["task"])

    assert (sent[0]["sent"], sent[1]) == (True, 202)
    assert (failed[0]["sent"], failed[1]) == (False, 503)
    assert kept.status == "PENDING"


def test_register_example_takes_an_instance(load: Load, bank: Bank) -> None:
    called: list[tuple[str, str]] = []

    class Station:
        def call(self, number: str, text: str) -> None:
            called.append((number, text))

    load("strategies.md", "register").use(Station())
    with bank.make().app_context():
        bank.add(allowed_methods=["SMS"], recipient={"phone_number": "+12025550110"}, summary="Open the door")

    ((number, text),) = called
    assert number == "+12025550110"
    assert re.fullmatch(r"Open the door\? \d{6}", text)


def test_check_example_takes_the_code_of_the_day_once(load: Load, bank: Bank, redis: Redis) -> None:
    shown, verify = load("strategies.md", "check"), bank.taskflow.verify
    day = datetime.fromtimestamp(redis.time()[0], UTC).date().isoformat()
    shown.sheets["sheet-7"] = {day: "02345678", "2020-01-01": "99999999"}

    with bank.make().app_context():
        first, second, unknown = (
            bank.add(allowed_methods=["SHEET"], recipient={"device_id": sheet}).id
            for sheet in ("sheet-7", "sheet-7", "none")
        )
        refused(WrongCode, verify, first, "SHEET", "99999999")
        verified = verify(first, "SHEET", "0234 5678")
        refused(WrongCode, verify, second, "SHEET", "02345678")
        refused(StrategyFailed, verify, unknown, "SHEET", "02345678")

    assert verified.status == "SUCCESS"


def test_generate_example_makes_its_own_codes(load: Load, bank: Bank) -> None:
    letter = load("strategies.md", "generate").Letter()
    bank.taskflow.register_strategy("LETTER")(letter)

    with bank.make().app_context():
        task = bank.add(allowed_methods=["LETTER"], recipient={}, summary="Move to Oslo")
        travel(31)
        bank.taskflow.resend_otp(task.id, "LETTER")
        first, second = (printed.partition("Move to Oslo: ")[2] for printed in letter.printed)
        refused(InvalidCode, bank.taskflow.verify, task.id, "LETTER", second.lower())
        verified = bank.taskflow.verify(task.id, "LETTER", f" {second[:4]}-{second[4:]} ")

    assert re.fullmatch("[A-Z]{8}", first)
    assert first != second
    assert verified.status == "SUCCESS"


# events.md, audit.md


def test_receiver_example_hears(load: Load, bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    shown = load("events.md", "receiver")

    caplog.set_level("INFO")
    try:
        with bank.app() as (_, box):
            task = bank.confirm(box, "other")
    finally:
        task_verified.disconnect(shown.tell_the_browser)

    assert f"{task.id} was confirmed by EMAIL" in caplog.text


def test_reminder_example_sends_again(load: Load, bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    shown = load("events.md", "reminder")

    caplog.set_level("INFO")
    try:
        with bank.app(TASKFLOW_EAGER=False) as (_, box):
            task = bank.add(ttl=3600, remind=[600])
            travel(3010)
            bank.taskflow.run_due()
    finally:
        task_expiring.disconnect(shown.offer_again)

    assert re.search(f"{task.id} ends in 5[0-9]+ s", caplog.text)
    assert len(box) == 2


def test_callback_example_ships(load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    load("events.md", "callback")

    with bank.app() as (_, box):
        bank.confirm(box, "orders", "a book")

    assert "Shipping a book" in capsys.readouterr().out


def test_schedules_of_the_page_tick(load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    load("schedules.md", "payouts", "salaries")

    with bank.app(TASKFLOW_EAGER=False) as (_, box):
        bank.taskflow.run_due()
        travel(31 * 86400)
        bank.taskflow.run_due()
        task = box[-1].task
        bank.taskflow.verify(task.id, "EMAIL", box[-1].otp)
        bank.taskflow.run_due()

    paid, salaries = capsys.readouterr().out.splitlines()
    assert paid.endswith("09:00")
    assert salaries == f"Paying the salaries of {task.data['month']}"


def test_example_of_other_ends_releases(load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    load("events.md", "ended")

    with bank.app(TASKFLOW_EAGER=False):
        bank.add()
        travel(601)
        bank.taskflow.run_due()

    assert capsys.readouterr().out == "Nobody confirmed None: EXPIRED\n"


def test_outcomes_example_tells(load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    load("events.md", "callback")
    shown = load("events.md", "outcomes")

    with bank.app() as (_, box):
        assert shown.tell(bank.confirm(box, "orders", "a book").id) == "done"

    assert "ship: done since " in capsys.readouterr().out


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The names of signals of callbacks that were sent."""
    names: list[str] = []
    with ExitStack() as stack:
        for signal in (callback_failed, callback_dead, callback_succeeded):

            def hear(sender: Flask, name: str = signal.name, **_: Any) -> None:
                names.append(name)

            stack.enter_context(signal.connected_to(hear))
        yield names


@pytest.mark.parametrize(
    ("data", "expected", "due_again_after"),
    [
        ({"amount": 0, "bank": "open"}, ["callback-dead"], None),
        ({"amount": 9, "bank": "closed"}, ["callback-failed"], 3600),
        ({"amount": 9, "bank": "open"}, ["callback-succeeded"], None),
    ],
)
def test_retry_example_retries_and_rejects(
    load: Load, bank: Bank, heard: list[str], data: Any, expected: list[str], due_again_after: float | None
) -> None:
    load("events.md", "retry")

    with bank.app() as (_, box):
        bank.confirm(box, "refunds", data)
        assert heard == expected
        travel((due_again_after or 3600) - 30)
        early = bank.taskflow.run_due()
        travel(35)
        late = bank.taskflow.run_due()

    assert (early, late) == (0, 1 if due_again_after else 0)


def test_idempotency_example_when_redis_is_rolled_back_debits_once(
    load: Load, bank: Bank, redis: Redis, tmp_path: Path
) -> None:
    load("events.md", "idempotent")
    path = tmp_path / "bank.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE deliveries (id TEXT PRIMARY KEY)")
        database.execute("CREATE TABLE accounts (owner TEXT, balance INTEGER)")
        database.execute("INSERT INTO accounts VALUES ('ann', 100)")

    with bank.app(DATABASE=path, TASKFLOW_EAGER=False) as (_, box):
        task = bank.confirm(box, "payments", {"user": "ann", "amount": 30})
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


def test_level_of_the_audit_page_lets_records_through(
    load: Load, bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("flask_taskflow.audit")
    before = logger.level

    try:
        load("audit.md", "level")
        with bank.app() as (client, _):
            ask(client)
    finally:
        logger.setLevel(before)

    told = [record.message for record in caplog.records if record.name == logger.name]
    assert told == ["task_added", "code_sent"]
