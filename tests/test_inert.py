"""What strangers write reaches no terminal and no log as more than text."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from flask import current_app
from flask.testing import FlaskClient

from flask_taskflow import ConsoleStrategy, Task, TaskFlow, otp_rejected
from flask_taskflow._inert import inert
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow._operator.tables import print_json, print_table
from flask_taskflow._otp import OTP
from tests.conftest import Hear, MakeApp
from tests.support.hostile import hostile_strings
from tests.support.stage import Stage
from tests.support.tasks import add

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\nFORGED  orders  all is well",
    "\r\nINFO code_accepted task=abc",
    "\x00\x08\x0b\x0c\x7f",
    "\x85\x9b31m",
    "\u2028\u2029FORGED",
    "\u202etxt.exe\u202c \u2066\u2069 \u200e\u200f\u061c",
    "\ud800 half a pair",
    "\U000e0041\ufeff\xad",
]
#: People's words, which stay as they are.
WORDS = ["Zoë", "năm mươi 50 ₫", "می\u200cخواهم", "👩\u200d👧", "50\u202f000,00\xa0€", "C:\\new", "नमस्ते"]


def assert_inert(text: str) -> None:
    active = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    found = [c for c in text if unicodedata.category(c) in active and c not in "\u200c\u200d"]
    assert not found, f"{text!r}"


@pytest.mark.promise("S69")
def test_hostile_text_becomes_inert() -> None:
    for text in [*HOSTILE, *hostile_strings()]:
        assert_inert(inert(text))
        assert inert(inert(text)) == inert(text)


def test_table_of_hostile_cells_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    texts = hostile_strings()

    print_table(False, texts, ("text", "next"), [(text, "next") for text in texts])

    lines = capsys.readouterr().out.split("\n")[:-1]
    assert len(lines) == len(texts) + 1
    for line in lines:
        assert_inert(line)


def test_json_of_hostile_texts_tells_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    texts = hostile_strings()

    print_json(texts)

    told = capsys.readouterr().out
    assert_inert(told.replace("\n", ""))
    assert json.loads(told) == texts


@pytest.mark.parametrize("text", WORDS)
def test_words_of_people_stay_as_they_are(text: str) -> None:
    assert inert(text) == text


@pytest.fixture
def dying(stage: Stage) -> Stage:
    """A stage whose callback dies of whatever its order holds."""

    @stage.taskflow.on_task_verified("orders", name="pack", max_attempts=1)
    def pack(task: Task[Any]) -> None:
        raise ValueError(f"no article {task.data}")

    stage.app()
    return stage


def run(*words: str, code: int = 0) -> str:
    result = current_app.test_cli_runner().invoke(taskflow_cli, list(words))
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.promise("S69")
@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_no_command_writes_what_a_user_typed_to_the_terminal(
    dying: Stage, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    task = dying.verified("orders", text)
    dying.run()
    # Whoever can write to Redis is a stranger, too.
    (key,) = dying.redis.scan_iter(match="*:h:pack:error")
    dying.redis.hset(key, task.id, f"raw {text}")

    tables = [run("dead"), run("show", task.id), run("stats"), run("doctor", code=1)]
    tables += [run(*words, code=1) for words in (("show", text), ("tasks", text), ("replay", text))]
    told = json.loads(run("dead", "--json"))

    for table in tables:
        for line in table.split("\n"):
            assert_inert(line)
    assert len(tables[0].rstrip("\n").split("\n")) == 2, "a dead letter is one line"
    assert_inert(run("dead", "--json").replace("\n", ""))
    assert told[0]["error"] == f"raw {text}"
    for item in caplog.records:
        assert_inert(item.getMessage())
        for line in logging.Formatter().format(item).split("\n"):
            assert_inert(line)
            assert not line.startswith(("FORGED", "INFO")), "a traceback has no line of a stranger's"


@pytest.mark.promise("S69")
def test_no_request_writes_a_line_of_its_own_into_the_audit_log(
    make_app: MakeApp, taskflow: TaskFlow, hear: Hear
) -> None:
    texts = [text for text in [*HOSTILE, *hostile_strings()] if "\ud800" not in text]
    app = make_app()
    app.register_blueprint(taskflow.blueprint)
    written, ear = io.StringIO(), hear(otp_rejected)
    handler = logging.StreamHandler(written)
    names = ("event", "task_id", "remote_addr", "user_agent", "method", "cause")
    handler.setFormatter(logging.Formatter(" ".join(f"%({name})s" for name in names)))
    audit = logging.getLogger("flask_taskflow.audit")
    audit.addHandler(handler)
    try:
        for text in texts:
            # A slash would make another path of it.
            path = f"/tasks/x{quote(text.replace('/', ''))}/verify"
            assert post(app.test_client(), path, text) == 400
    finally:
        audit.removeHandler(handler)

    lines = written.getvalue().split("\n")[:-1]
    told = ear.rest()
    assert len(lines) == len(told) == len(texts) > 900
    for line in lines:
        assert_inert(line)
    for heard in told:
        assert_inert(heard["task_id"])


def post(client: FlaskClient, path: str, text: str) -> int:
    agent = text.encode("latin-1", "replace").decode("latin-1").replace("\r", "").replace("\n", "")
    body = {"method": "EMAIL", "otp": "123456"}
    overrides = {"REMOTE_ADDR": f"10.0.0.1{text}", "HTTP_USER_AGENT": agent}
    return client.post(path, json=body, environ_overrides=overrides).status_code


def test_development_strategy_prints_one_line(
    make_app: MakeApp, taskflow: TaskFlow, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_app().app_context():
        task = add(taskflow)
    hostile = replace(task, summary="".join(text for text in HOSTILE if "\ud800" not in text))

    ConsoleStrategy().send(hostile, OTP("123456"))

    (line,) = capsys.readouterr().err.rstrip("\n").split("\n")
    assert_inert(line)
    assert "123456" in line
