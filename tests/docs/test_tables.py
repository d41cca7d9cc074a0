"""Tables and settings on the pages are those of the package; ``tests/config`` has the page of settings."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from redis import Redis

import flask_taskflow
from flask_taskflow import BaseStrategy, Event, Outcome, TaskNotFound, signals
from flask_taskflow._config.config import Config
from flask_taskflow._delivery.attempts import compute_backoff
from flask_taskflow._http.problems import ANSWERS, FRANK, OF_GATE, OF_ROUTES, OF_VIEWS, Answer
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow.testing import redis_server, travel
from tests.docs.conftest import ANN, Bank
from tests.support import inside
from tests.support.docs import block, read, rows
from tests.support.tasks import refused


@pytest.mark.parametrize("answers", [ANSWERS, OF_VIEWS, FRANK], ids=["routes", "views", "frank"])
def test_tables_of_problems_of_the_http_page_are_complete(answers: tuple[Answer, ...]) -> None:
    lines = [f"| {answer.status} | `{answer.code}` | {answer.when} |" for answer in answers]

    assert "\n".join(["|---|---|---|", *lines]) + "\n\n" in read("http.md")


@pytest.mark.parametrize("answer", [*ANSWERS, *FRANK, *OF_VIEWS, *OF_GATE], ids=lambda answer: answer.code)
def test_type_of_a_problem_leads_to_its_section(answer: Answer) -> None:
    errors = [error.__name__ for error in answer.errors if error not in OF_ROUTES]
    raised = f" In Python: `{'` or `'.join(errors)}`." if errors else ""

    section = f'\n### `{answer.code}`\n\nStatus {answer.status}: "{answer.title}"{raised}\n\n'
    assert section in read("errors.md")
    # The anchors of Sphinx are those of docutils.
    assert answer.type.endswith(f"/errors.html#{answer.code.replace('_', '-')}")


def test_backoff_table_of_the_events_page_is_right() -> None:
    for strategy, *waits, _ in rows("events.md", "### Retries"):
        computed = [compute_backoff(strategy.strip('"'), 5, n, cap=3600, jitter=0) for n in (1, 2, 3, 4)]
        assert computed == [float(wait) for wait in waits]


def test_signals_table_of_the_events_page_is_complete() -> None:
    source = inspect.getsource(signals)
    declared = re.findall(r"^#: ``\(app, \*, (.*?)\)``.*?\n(?:#:.*\n)*(\w+) = ", source, re.M)
    documented = {row[0]: row[3].replace("`", "") for row in rows("events.md", "## Signals")}

    assert documented == {name: arguments.replace("=None", "") for arguments, name in declared}


def test_commands_table_of_the_operations_page_is_complete() -> None:
    cells = " ".join(row[0] for row in rows("operations.md", "# Operations"))

    assert set(re.findall(r"[a-z]+", cells)) == set(taskflow_cli.commands)


def test_events_of_a_course_are_all_explained() -> None:
    explained = " ".join(row[0] for row in rows("operations.md", "## What happened to a task"))

    assert set(re.findall(r"[a-z_]+", explained)) == set(Event)


def test_outcomes_are_explained_the_worse_the_later() -> None:
    explained = [row[0].strip("`") for row in rows("events.md", "### What became of it")]

    assert explained == list(Outcome)[1:]


def test_api_page_lists_every_public_name() -> None:
    directives = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", read("api.md"), re.M)

    assert {*flask_taskflow.__all__, "outbox", "travel", "redis_server"} <= set(directives)


def test_keys_table_of_the_deploy_page_is_complete(bank: Bank, server: str) -> None:
    client: Any = Redis.from_url(server, decode_responses=True)
    seen: set[tuple[str, str]] = set()

    class Device(BaseStrategy):
        def check(self, task: Any, otp: str, now: datetime) -> str:
            return otp

    def look() -> None:
        for key in client.scan_iter():
            name = re.sub(r"\{taskflow\.\w{8}\}", "T", key).replace("taskflow", "P")
            name = re.sub(
                r":(task|course):\w+",
                r":\1:<id>",
                re.sub(r":(used|owner|address|key):[\w.-]+", r":\1:<HMAC>", name),
            )
            kind = str(client.type(key)).replace("zset", "sorted set")
            seen.add((re.sub(r":h:\w+:", ":h:N:", name), kind))

    def looks(task: Any) -> None:
        look()
        raise ValueError("an error to keep")

    taskflow = bank.taskflow
    taskflow._callbacks.clear()
    taskflow.on_task_verified("transfers", name="looks", max_attempts=2, backoff_time=1)(looks)
    taskflow.on_schedule("@daily", name="looks")(looks)
    with client, bank.app(TASKFLOW_EAGER=False) as (http, box):
        inside.store().processes.tell_stuck("a process")
        inside.store().processes.tell_parts("a process", {"callbacks": ["transfers"]})
        inside.store().peek([("transfers", ["looks"])], "a process", waits=True)
        task = taskflow.add_task(
            "nowhere", allowed_methods=["EMAIL"], recipient={"email": ANN}, owner="user:17", key="k"
        )
        taskflow.verify(task.id, "EMAIL", box.last_code(ANN))
        task = bank.add()
        look()
        refused(TaskNotFound, taskflow.verify, task.id[:8] + "a" * 26, "EMAIL", "123456")
        taskflow.verify(task.id, "EMAIL", box.last_code(ANN))
        look()
        taskflow.run_due()
        look()
        travel(2)
        taskflow.run_due()
        taskflow.register_strategy("DEVICE")(Device)
        taskflow.verify(bank.add(allowed_methods=["DEVICE"], recipient={}).id, "DEVICE", "123456")
        http.application.test_cli_runner().invoke(taskflow_cli, ["pause", "--all"])
        for key in client.scan_iter("*:counters"):
            client.hincrby(key, "@minute", -1)
        bank.add(recipient={"email": "bob@example.com"})
        look()

    assert {(row[0], row[1]) for row in rows("redis.md", "## Keys")} == seen


def test_memory_of_a_task_is_what_the_deploy_page_says(bank: Bank, redis: Redis) -> None:
    with bank.app():
        task = bank.add(data={"amount": 1})

    key = next(iter(redis.scan_iter(match=f"*:task:{task.id}")))
    # Every field counts: a sample of them says up to 10% too much.
    assert 1200 < int(redis.memory_usage(key, samples=0) or 0) < 2200


def test_config_page_shows_keys_that_are_taken() -> None:
    app = Flask("app")
    places = {"app": app, "os": SimpleNamespace(environ={"OLD_KEY": "k" * 16}), "fetch_key": lambda: "n" * 16}

    exec(block("config.md", "keys"), places)  # noqa: S102  # The page's own words.

    assert list(Config.read(app.config).keys or ()) == ["2026-11", "2025-11"]


def test_settings_of_redis_on_the_page_please_the_doctor(bank: Bank) -> None:
    shown = block("redis.md", "redis.conf")
    options = [word for line in shown.splitlines() for word in ("--" + line).split()]

    with (
        redis_server(*options) as url,
        Redis.from_url(url) as client,
        bank.app(TASKFLOW_REDIS_URL=url, TASKFLOW_EAGER=False) as (http, _),
    ):
        bank.taskflow.start()
        result = http.application.test_cli_runner().invoke(taskflow_cli, ["doctor", "--json"])
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
    path, program = tmp_path / "bank-worker@.service", unit["Service"]["ExecStart"].split()[0]
    path.write_text(text.replace(program, sys.executable).replace("/srv/bank", "/"))

    command = ["systemd-analyze", "verify", str(path)]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)

    assert path.name not in verified.stderr
    assert verified.returncode == 0, verified.stderr


@pytest.mark.slow
def test_gunicorn_hook_makes_each_worker_listen_before_any_request(
    redis: Redis, server: str, tmp_path: Path
) -> None:
    (tmp_path / "bank.py").write_text(block("start.md", "bank.py"))
    (tmp_path / "gunicorn.conf.py").write_text(block("deploy.md", "gunicorn.conf.py"))
    bind = ["-b", f"unix:{tmp_path / 'http.sock'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "-w", "2", *bind, "bank:create_app()"],
        cwd=tmp_path,
        env={**os.environ, "FLASK_TASKFLOW_REDIS_URL": server},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline, pause = time.monotonic() + 30, threading.Event()
        while redis.pubsub_numsub("taskflow:0:bell")[0][1] != 2:
            assert time.monotonic() < deadline
            pause.wait(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
