"""The quickstart as its users meet it: in the terminal and in a browser; README's app against a server."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_support import block
from flask import Flask
from redis import Redis
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from flask_taskflow import callback_succeeded

ROOT = Path(__file__).parents[1]
FLASK = [sys.executable, "-m", "flask", "--app", "examples/quickstart/app.py"]
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,900",
]


def in_directory(directory: Path) -> dict[str, str]:
    """Return an environment in which the quickstart keeps its data in a directory, and waits less."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    env |= {"FLASK_TASKFLOW_REDIS_URL": f"embedded://{directory}", "FLASK_TASKFLOW_BACKOFF_MAX": "0.2"}
    return env | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a quickstart that runs; Ctrl-C ends it, and its embedded server with it."""
    # What ignores SIGINT hands that down; a terminal's processes do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*FLASK, "run", "--port", "0"],
        cwd=ROOT,
        env=in_directory(tmp_path / "data"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Running on (http://\S+)", line):
                break
        else:
            raise AssertionError("it did not start:\n" + "".join(lines))
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        yield found[1]
        os.killpg(process.pid, signal.SIGINT)
        drain.join()
    assert process.returncode == 0
    assert not (tmp_path / "data" / "valkey.sock").exists()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def start_transfer(browser: webdriver.Chrome, address: str) -> str:
    """Start a transfer and return the code that the page's inbox shows."""
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    return str(wait_for(browser, "#inbox li:last-child strong").text)


def type_code(browser: webdriver.Chrome, code: str) -> None:
    field = wait_for(browser, "#code")
    field.clear()
    field.send_keys(code)
    browser.find_element(By.CSS_SELECTOR, "#code-form .row button").click()


def wait_for(browser: webdriver.Chrome, selector: str, text: str = "") -> Any:
    def look(_: object) -> Any:
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        return next((item for item in found if item.is_displayed() and text in item.text), None)

    return WebDriverWait(browser, 15, poll_frequency=0.1).until(look, f"{selector} with {text!r}")


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
def test_page_when_code_is_wrong_or_resent_too_soon_says_so(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)

    type_code(browser, "12")
    wait_for(browser, "#message", "Type the 6 digits of the code.")
    type_code(browser, f"{(int(code) + 1) % 1_000_000:06}")
    wait_for(browser, "#message", "The code was not accepted.")
    browser.find_element(By.ID, "resend").click()
    message = wait_for(browser, "#message", "A code was sent just now.").text

    assert re.fullmatch(r"A code was sent just now\. Try again in (30|2\d) s\.", message)
    assert wait_for(browser, "#status").text == "Waiting for your code"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#inbox li")) == 1


@pytest.mark.slow
def test_page_of_a_transfer_does_not_serve_another_session(browser: webdriver.Chrome, address: str) -> None:
    code = start_transfer(browser, address)
    browser.delete_all_cookies()

    type_code(browser, code)

    assert wait_for(browser, "#message", "not your transfer")


def test_demo_tells_the_story_that_readme_shows(tmp_path: Path) -> None:
    told = subprocess.run(
        [*FLASK, "demo"],
        cwd=ROOT,
        env=in_directory(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    shown = block("README.md", "demo").partition("\n")[2]
    assert without_numbers(told.stdout) == without_numbers(shown)


def test_demo_when_code_is_not_accepted_says_what_is_missing(tmp_path: Path) -> None:
    told = subprocess.run(
        [*FLASK, "demo"],
        cwd=ROOT,
        env=in_directory(tmp_path) | {"FLASK_TASKFLOW_OTP_MAX_ATTEMPTS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert told.returncode == 1
    assert "This did not happen: callback-failed, callback-succeeded, task-verified." in told.stderr


def test_readme_app_when_code_is_typed_runs_its_callback(
    redis: Redis,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLASK_SECRET_KEY", "a secret key of the reader, long enough")
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    (tmp_path / "readme_app.py").write_text(block("README.md", "app"), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    readme_app = importlib.import_module("readme_app")
    app = readme_app.create_app()
    client, succeeded = app.test_client(), threading.Event()

    def on_succeeded(sender: Flask, **_: object) -> None:
        succeeded.set()

    with callback_succeeded.connected_to(on_succeeded, app):
        added = client.post("/transfers", json={"amount": 120, "to": {"email": "you@example.com"}})
        code = re.search(r"code is (\d{6})", capsys.readouterr().out)
        assert code
        url = f"/taskflow/tasks/{added.get_json()['task']}/verify"
        verified = client.post(url, json={"method": "EMAIL", "otp": code[1]})
        assert succeeded.wait(10)
    with app.app_context():
        readme_app.taskflow.stop()

    assert added.status_code == 202
    assert verified.get_json()["status"] == "SUCCESS"
    assert "Paying 120" in capsys.readouterr().out


def without_numbers(text: str) -> str:
    return re.sub(r"\d{2}:\d{2}:\d{2}|\d{6}", "*", text).strip()
