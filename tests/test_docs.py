"""The docs are right: what they show compiles, and their main examples run."""

from __future__ import annotations

import ast
import dataclasses
import email
import importlib
import inspect
import os
import re
import signal
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.test import TestResponse

import flask_taskflow
from flask_taskflow import (
    BaseStrategy,
    ConfigError,
    InvalidCode,
    SendFailed,
    TaskFlowError,
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
from flask_taskflow.testing import outbox, travel

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
ANN = {"email": "ann@example.com"}
ORDER = {"user": "ann", "to": "Bob", "amount": 50}
WITHIN = 15.0

Load = Callable[..., Any]


def read(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def block(page: str, name: str) -> str:
    """Return the fenced block that follows ``<!-- test: name -->``."""
    found = re.findall(rf"^<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)^```$", read(page), re.M | re.S)
    assert len(found) == 1, f"{page} has {len(found)} blocks named {name}"
    return str(found[0])


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its head."""
    text = f"\n{read(page)}".partition(f"\n{heading}\n")[2]
    table = re.search(r"^\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    assert table, f"{page} has no table under {heading!r}"
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import blocks of a page as one module; ``bank``, the start page's app, is there to be imported."""
    (tmp_path / "bank.py").write_text(block("start.md", "bank"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ["bank"]

    def run(page: str, *shown: str) -> ModuleType:
        module = "bank" if shown == ("bank",) else f"shown_{shown[0]}"
        (tmp_path / f"{module}.py").write_text("\n".join(block(page, name) for name in shown))
        names.append(module)
        return importlib.import_module(module)

    yield run
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def bank(load: Load) -> Any:
    return load("start.md", "bank")


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


def public_errors() -> list[type[TaskFlowError]]:
    classes = [error for error in vars(errors).values() if inspect.isclass(error)]
    return [error for error in classes if issubclass(error, TaskFlowError) and error.__name__[0] != "_"]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_a_page_compile(page: str) -> None:
    for number, source in enumerate(re.findall(r"^```python\n(.*?)^```$", read(page), re.M | re.S)):
        compile(source, f"{page}:{number}", "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((\w+\.md)#?([\w-]*)\)", read(page)):
        headings = re.findall(r"^#+ (.*)$", read(target), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs | {""}


def test_taste_of_the_index_runs(
    load: Load, eager: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    taskflow = load("index.md", "taste").taskflow
    app = Flask("taste")
    app.config.update(eager, SECRET_KEY="for this test only: replace it")
    taskflow.init_app(app)

    with app.app_context(), outbox(taskflow) as box:
        task = taskflow.add_task("transfers", {"amount": 50}, allowed_methods=["EMAIL"], recipient=ANN)
        taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com"))

    assert "Paying 50" in capsys.readouterr().out


def test_first_app_as_written_pays(
    bank: Any, redis: Redis, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    app = bank.create_app()
    client = app.test_client()
    paid = threading.Event()

    def note(sender: Flask, **_: Any) -> None:
        paid.set()

    with callback_succeeded.connected_to(note, app):
        task_id = ask(client)
        line = re.search(r"\[taskflow\] code (\d{6}) for (.*)", capsys.readouterr().err)
        assert line
        first = type_code(client, task_id, line[1])
        second = type_code(client, task_id, line[1])
        try:
            assert paid.wait(WITHIN)
        finally:
            with app.app_context():
                bank.taskflow.stop()

    assert line[2] == "ann@example.com (Pay 50 to Bob)"
    assert (first.status_code, first.get_json()["status"]) == (200, "SUCCESS")
    assert (second.status_code, second.get_json()["code"]) == (400, "otp_rejected")
    assert "Paying 50 to Bob" in capsys.readouterr().out


def test_other_things_of_the_start_page_run(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    shown = load("start.md", "service")
    app = bank.create_app(**eager)

    with app.app_context(), outbox(bank.taskflow) as box:
        task = bank.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN)
        shown.other_things(task.id)

        assert bank.taskflow.get_task(task.id).status == "CANCELLED"
        assert [message.addresses for message in box] == [("ann@example.com",), ("ann@example.org",)]


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


class _Mail(socketserver.StreamRequestHandler):
    """Enough of SMTP to take one message."""

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        while line := self.rfile.readline():
            word = line.split()[0].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go\r\n")
                lines = list(iter(self.rfile.readline, b".\r\n"))
                self.server.taken.append(b"".join(lines))  # type: ignore[attr-defined]  # ours
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")


def test_email_example_sends_the_code(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    load("strategies.md", "email")
    with socketserver.TCPServer(("127.0.0.1", 0), _Mail) as mail:
        mail.taken = []  # type: ignore[attr-defined]  # ours
        thread = threading.Thread(target=mail.serve_forever)
        thread.start()
        try:
            app = bank.create_app(**eager, SMTP_HOST=f"127.0.0.1:{mail.server_address[1]}")
            client = app.test_client()
            task_id = ask(client)
            message = email.message_from_bytes(mail.taken[0])  # type: ignore[attr-defined]  # ours
        finally:
            mail.shutdown()
            thread.join()

    text = str(message.get_payload())
    code = re.search(r"Your code is (\d{6})", text)
    assert code
    assert message["To"] == "ann@example.com"
    assert text.startswith("Pay 50 to Bob?")
    assert type_code(client, task_id, code[1]).status_code == 200


def test_email_example_when_the_server_is_away_fails(load: Load, bank: Any, eager: dict[str, Any]) -> None:
    load("strategies.md", "email")
    with socketserver.TCPServer(("127.0.0.1", 0), _Mail) as gone:
        port = gone.server_address[1]
    app = bank.create_app(**eager, SMTP_HOST=f"127.0.0.1:{port}")

    with app.app_context(), pytest.raises(SendFailed) as caught:
        bank.taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient=ANN, summary="Pay")

    assert caught.value.methods == ("EMAIL",)


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


def test_recipe_of_the_testing_page_passes(tmp_path: Path) -> None:
    (tmp_path / "bank.py").write_text(block("start.md", "bank"))
    (tmp_path / "conftest.py").write_text(block("testing.md", "conftest"))
    (tmp_path / "test_bank.py").write_text(block("testing.md", "recipe"))

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_gunicorn_hook_makes_each_worker_listen_before_any_request(
    redis: Redis, server: str, tmp_path: Path
) -> None:
    (tmp_path / "bank.py").write_text(block("start.md", "bank"))
    (tmp_path / "gunicorn.conf.py").write_text(block("deploy.md", "gunicorn"))
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
    ("name", "given"),
    [("misspelt", {"TASKFLOW_TASK_TLL": 600}), ("bad value", {"TASKFLOW_TASK_TTL": "600"})],
)
def test_config_page_quotes_messages(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read(given)

    assert str(caught.value) == block("config.md", name).strip()


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
