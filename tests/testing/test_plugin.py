"""The fixtures for pytest, in a project that has nothing but its tests."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs import ROOT, block
from tests.support.programs import bare_environment

SETTINGS = "TESTING=True, SECRET_KEY='for these tests only', TASKFLOW_REDIS_URL=taskflow_redis"
PROJECT = f"""
import logging

import pytest
from app import create_app, taskflow
from flask_taskflow import OutcomeUnknown, Retry, SendFailed

YOU = {{"email": "you@example.com"}}

def add():
    return taskflow.add_task("transfers", {{"amount": 5}}, allowed_methods=["EMAIL"], recipient=YOU)

@pytest.fixture
def app(taskflow_redis, taskflow_outbox):
    with create_app({SETTINGS}).app_context() as context:
        yield context.app

@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("number", range(4))
def test_limits_of_an_address_begin_anew(number, taskflow_outbox):
    for _ in range(5):
        add()
    assert len(taskflow_outbox) == 5

def test_time_passes_outside_of_contexts(taskflow_redis, taskflow_outbox, taskflow_travel):
    app = create_app({SETTINGS})
    task = app.test_client().post("/transfers", json={{"amount": 5}}).json["task"]
    taskflow_travel(601)
    with app.app_context():
        assert taskflow.get_task(task).status == "EXPIRED"

@pytest.mark.usefixtures("app")
def test_sends_fail_on_command(taskflow_outbox):
    taskflow_outbox.fail(Retry("busy"), OutcomeUnknown("no answer"))
    with pytest.raises(SendFailed):
        add()
    task, otp = add(), taskflow_outbox.last_code("you@example.com")
    assert taskflow.verify(task.id, "EMAIL", otp).status == "SUCCESS"

@pytest.mark.usefixtures("app", "no_code_in_logs")
def test_log_without_codes(taskflow_outbox):
    add()
    logging.getLogger("shop").debug("sent %r, 1%s1", taskflow_outbox[0].otp, taskflow_outbox[0].otp)

@pytest.mark.usefixtures("app", "no_code_in_logs")
def test_log_with_a_code(taskflow_outbox):
    add()
    logging.getLogger("shop").debug("sent %s", taskflow_outbox[0].otp)

@pytest.mark.usefixtures("app")
def test_callback_that_nothing_runs(taskflow_outbox):
    taskflow.verify(add().id, "EMAIL", taskflow_outbox[0].otp)
    assert "paid" == "due"

@pytest.mark.usefixtures("app")
def test_failure_of_another_kind(taskflow_outbox):
    taskflow.verify(add().id, "EMAIL", taskflow_outbox[0].otp)
    taskflow.run_due()
    assert "paid" == "twice"
"""


def run(folder: Path, project: str, *options: str) -> str:
    """Run the tests of a project, which has README's app, and return what pytest prints."""
    (folder / "app.py").write_text(block("README.md", "app"), "utf-8")
    (folder / "test_app.py").write_text(project, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "flask_taskflow.testing.plugin", *options]
    environment = bare_environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    told = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    return told.stdout + told.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), pytest.param(("-p", "xdist.plugin", "-n", "2"), marks=pytest.mark.slow)],
    ids=["one process", "two"],
)
def test_fixtures_serve_a_project_without_conftest(tmp_path: Path, options: tuple[str, ...]) -> None:
    told = run(tmp_path, PROJECT, *options)

    assert re.search(r"^2 failed, 8 passed, 1 error in", told, re.M), told
    assert re.search(r"the log shows codes:\n.*shop, DEBUG, test_app\.py:\d+: sent \*{6}\n", told)
    parts = re.split(r"^_+ (?:ERROR at teardown of )?(test_\w+) _+$", told, flags=re.M)[1:]
    reasons = {
        test: re.findall(r"- why nothing ran -+\n(.*)", text)
        for test, text in zip(parts[::2], parts[1::2], strict=True)
    }
    (reason,) = reasons.pop("test_callback_that_nothing_runs")
    assert reason.startswith(
        "1 of the callback transfers in the queue transfers wait: the app 'app' is TESTING without"
    )
    assert reasons == {"test_log_with_a_code": [], "test_failure_of_another_kind": []}


def test_flow_of_the_readme_has_six_lines_and_passes(tmp_path: Path) -> None:
    test = block("README.md", "test")

    assert len(test.partition("\n\n")[2].splitlines()) <= 6
    assert "1 passed" in run(tmp_path, test, "-W", "error")


def test_nothing_is_imported_for_projects_that_do_not_ask() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    module = config["options.entry_points"]["pytest11"].strip().removeprefix("taskflow = ")
    program = f"import sys, {module}; print({{'flask', 'redis', 'flask_taskflow'}} & set(sys.modules))"

    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert told.stdout == "set()\n"
