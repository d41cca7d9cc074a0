"""The quickstart as its users meet it: in the terminal and in a browser; README's app against a server."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from selenium import webdriver
from selenium.webdriver.common.by import By

from flask_taskflow import callback_succeeded
from tests.support.browser import chromium, submit, wait_for
from tests.support.docs import block
from tests.support.fleet import wait_until
from tests.support.programs import bare_environment, running
from tests.support.tasks import other

ROOT = Path(__file__).parents[2]
FLASK = [sys.executable, "-m", "flask", "--app", "examples/quickstart/app.py"]


def in_directory(directory: Path) -> dict[str, str]:
    """Return an environment in which the quickstart keeps its data in a directory, and waits less."""
    settings = {"FLASK_TASKFLOW_REDIS_URL": f"embedded://{directory}", "FLASK_TASKFLOW_BACKOFF_MAX": "0.2"}
    return bare_environment() | settings


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a quickstart that runs; Ctrl-C ends it, and its embedded server with it."""
    # What ignores SIGINT hands that down; a terminal's processes do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command, environment = [*FLASK, "run", "--port", "0"], in_directory(tmp_path / "data")
    with running(command, ROOT, environment, "Running on http", logs=tmp_path) as process:
        yield re.findall(r"Running on (http://\S+)", process.log)[0]
        assert process.end(signal.SIGINT) == 0
    assert not (tmp_path / "data" / "valkey.sock").exists()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile") as driver:
        yield driver


def start_transfer(browser: webdriver.Chrome, address: str) -> str:
    """Start a transfer and return the code that the page's inbox shows."""
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    return str(wait_for(browser, "#inbox li:last-child strong").text)


def type_code(browser: webdriver.Chrome, code: str) -> None:
    submit(browser, "code", code, "#code-form .row button")


@pytest.mark.slow
def test_page_when_right_code_is_typed_shows_whole_story(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)

    type_code(browser, code)
    wait_for(browser, "#end", "Done: confirmed once, paid once.")

    assert browser.find_element(By.ID, "status").text == "Verified"
    assert not browser.find_element(By.ID, "code-form").is_displayed()
    told = [str(item.get_attribute("class")) for item in browser.find_elements(By.CSS_SELECTOR, "#events li")]
    assert told[:3] == ["task-added", "otp-sent", "verified"]
    assert sorted(told[3:]) == ["callback-failed", "callback-succeeded", "task-verified"]
    assert told.index("callback-failed") < told.index("callback-succeeded")


@pytest.mark.slow
def test_code_may_be_typed_on_the_packages_own_page(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)

    browser.get(str(wait_for(browser, "#transfer a", "own page").get_attribute("href")))
    wait_for(browser, "h1", "Type your code")
    submit(browser, "taskflow-otp", code, ".taskflow-button")

    wait_for(browser, "#end", "Done: confirmed once, paid once.")


@pytest.mark.slow
def test_page_when_code_is_wrong_or_resent_too_soon_says_so(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)

    type_code(browser, "12")
    wait_for(browser, "#message", "Type the 6 digits of the code.")
    type_code(browser, other(code))
    wait_for(browser, "#message", "The code was not accepted.")
    browser.find_element(By.ID, "resend").click()
    message = wait_for(browser, "#message", "A code was sent just now.").text

    assert re.fullmatch(r"A code was sent just now\. Try again in (30|[12]?\d) s\.", message)
    assert wait_for(browser, "#status").text == "Waiting for your code"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#inbox li")) == 1


@pytest.mark.slow
def test_page_of_a_transfer_does_not_serve_another_session(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)
    browser.delete_all_cookies()

    # The page, which asks for the state all the time, may hide its form before or after this.
    browser.execute_script(
        "document.getElementById('code').value = arguments[0];"
        "document.getElementById('code-form').requestSubmit();",
        code,
    )

    message = browser.find_element(By.ID, "message")
    wait_until(lambda: "not your transfer" in str(message.get_property("textContent")))


def demo(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command, env = [*FLASK, "demo"], in_directory(directory) | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=50)


@pytest.mark.slow
def test_demo_tells_the_story_that_readme_shows(tmp_path: Path) -> None:
    told = demo(tmp_path)

    assert (told.returncode, told.stderr) == (0, "")
    shown = block("README.md", "demo").partition("\n")[2]
    assert without_numbers(told.stdout) == without_numbers(shown)


@pytest.mark.slow
def test_demo_when_code_is_not_accepted_says_what_is_missing(tmp_path: Path) -> None:
    told = demo(tmp_path, FLASK_TASKFLOW_OTP_MAX_ATTEMPTS="1")

    assert told.returncode == 1
    assert "This did not happen: callback-failed, callback-succeeded, task-verified." in told.stderr


def test_routes_are_for_the_session_and_for_preflights(taskflow_server: str) -> None:
    program = (
        "from app import create_app\n"
        f"client = create_app(TASKFLOW_REDIS_URL={taskflow_server!r}).test_client()\n"
        "route = '/taskflow/tasks/x/verify'\n"
        "print(client.options(route).status_code, client.post(route, json={}).status_code)\n"
    )

    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "examples" / "quickstart",
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert told.stdout.split() == ["200", "404"]


def test_readme_app_when_code_is_typed_runs_its_callback(
    taskflow_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASK_SECRET_KEY", "a secret key of the reader, long enough")
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", taskflow_redis)
    (tmp_path / "readme_app.py").write_text(block("README.md", "app"), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    readme_app = importlib.import_module("readme_app")
    app = readme_app.create_app()
    client, succeeded = app.test_client(), threading.Event()

    def on_succeeded(sender: Flask, **_: object) -> None:
        succeeded.set()

    with callback_succeeded.connected_to(on_succeeded, app):
        added = client.post("/transfers", json={"amount": 120})
        code = re.search(r"code is (\d{6})", capsys.readouterr().out)
        assert code
        url = f"/taskflow/tasks/{added.get_json()['task']}/verify"
        verified = client.post(url, json={"method": "EMAIL", "otp": code[1]})
        assert succeeded.wait(60)
    more = [client.post("/transfers", json={"amount": 1}) for _ in range(6)]
    with app.app_context():
        readme_app.taskflow.stop()

    assert added.status_code == 202
    assert [answer.status_code for answer in more] == [202] * 5 + [429]
    assert verified.get_json()["status"] == "SUCCESS"
    assert "Paying 120" in capsys.readouterr().out


def without_numbers(text: str) -> str:
    return re.sub(r"\d{2}:\d{2}:\d{2}|\d{6}", "*", text).strip()
