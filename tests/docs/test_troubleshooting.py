"""The commands of the page on troubleshooting show what it says, once the trouble is there."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import EmailStrategy
from flask_taskflow.errors import SendLimitReached
from tests.docs.conftest import ORDER, Bank
from tests.support.docs import block, shows
from tests.support.tasks import refused

_ID = re.compile(r"\b[a-z2-7]{34}\b")


def type_in(app: Flask, shown: str, task_id: str = "") -> None:
    """Type the commands that a page shows, about this task; see that they print what it shows."""
    commands = re.findall(r"^\$ flask --app bank (.+)\n((?:(?!\$ ).*\n)+)", shown, re.M)
    assert len(commands) == shown.count("$ ")
    for line, output in commands:
        printed = app.test_cli_runner().invoke(args=shlex.split(_ID.sub(task_id, line))).output
        assert shows(printed, output), printed


def paying(bank: Bank, *names: str) -> None:
    """Let the bank's callbacks have these names; each fails."""

    def pay(task: Any) -> None:
        raise TimeoutError("the bank did not answer")

    bank.taskflow._callbacks.clear()
    for name in names:
        bank.taskflow.on_task_verified("transfers", name=name, max_attempts=1)(pay)


def test_code_that_did_not_come(bank: Bank) -> None:
    app = bank.make(TASKFLOW_EAGER=False, TASKFLOW_SEND="background")
    bank.taskflow.register_strategy("EMAIL")(EmailStrategy)
    with bank.app(app) as (_, box):
        box.fail(ConnectionRefusedError())
        task = bank.add()
        bank.taskflow.run_due()

        type_in(app, block("troubleshooting.md", "no code"), task.id)
        type_in(app, block("troubleshooting.md", "check"))


def test_tasks_of_somebody(bank: Bank) -> None:
    with bank.app() as (http, _):
        task = bank.add()
        type_in(http.application, block("troubleshooting.md", "whose"), task.id)


def test_callback_that_did_not_run(bank: Bank) -> None:
    with bank.app(TASKFLOW_EAGER=False) as (http, box):
        task = bank.confirm(box)
        bank.taskflow.operations.pause("transfers")
        type_in(http.application, block("troubleshooting.md", "nothing happens"), task.id)

        assert block("troubleshooting.md", "why").strip() == box.why_nothing_ran()
        bank.confirm(box, "transfer")
        type_in(http.application, block("troubleshooting.md", "misspelt"))


def test_callback_that_ran_twice(bank: Bank) -> None:
    paying(bank, "pay", "transfer")
    with bank.app(TASKFLOW_EAGER=False) as (http, box):
        type_in(http.application, block("troubleshooting.md", "twice"), bank.confirm(box).id)


def test_refusals_after_a_deploy(bank: Bank) -> None:
    with bank.app():
        bank.add()
        bank.taskflow.run_due()  # a process says which keys it has
    with bank.app(SECRET_KEY="another one, of sixteen bytes") as (http, _):
        type_in(http.application, block("troubleshooting.md", "refused"))


def test_limit_and_how_it_is_lifted(bank: Bank) -> None:
    with bank.app() as (http, _):
        for _ in range(5):
            bank.add()
        answer = http.post("/transfers", json=ORDER)
        refused(SendLimitReached, bank.add)
        type_in(http.application, block("troubleshooting.md", "unblock"))

        assert answer.get_json() == json.loads(block("troubleshooting.md", "limit"))
        bank.add()


def test_redis_that_is_away(bank: Bank) -> None:
    type_in(bank.make(TASKFLOW_REDIS_URL="redis://localhost:1"), block("troubleshooting.md", "redis is away"))


def test_dead_letters(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    paying(bank, "transfers")
    with bank.app() as (http, box):
        for _ in range(2):
            bank.confirm(box)
        type_in(http.application, block("troubleshooting.md", "dead"))

    assert caplog.text.count("it is a dead letter") == 2
