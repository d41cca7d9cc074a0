"""The recipes of the cookbook are short, and pass the tests that stand beside them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from flask_taskflow.testing import outbox
from tests.docs.conftest import ANN, Load
from tests.support.browser import chromium, submit, wait_for
from tests.support.docs import RECIPES, blocks
from tests.support.programs import bare_environment
from tests.support.tasks import other


@pytest.mark.slow
def test_recipes_pass_their_tests(tmp_path: Path) -> None:
    files = [one for page in RECIPES for one in blocks(page)]
    for one in files:
        (tmp_path / one.name).write_text(one.text, "utf-8")
    apps = [one for one in files if not one.name.startswith("test_") and one.language == "python"]

    options = ["-q", "-n0", "-W", "error", "-p", "no:cacheprovider", "-p", "no:valkey"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare_environment(), capture_output=True, text=True, check=False
    )

    assert {one.mark for one in files} == {"file"}
    assert {one.page for one in apps} == set(RECIPES)
    assert [(one.name, lines) for one in apps if (lines := one.text.count("\n")) >= 80] == []
    # These two had tables of their own for what the package keeps now.
    short = {one.name: one.text.count("\n") < 60 for one in apps if one.name in ("email_change.py", "api.py")}
    assert short == {"email_change.py": True, "api.py": True}
    assert done.returncode == 0, done.stdout
    passed = re.search(r"^(\d+) passed", done.stdout, re.M)
    assert passed
    assert int(passed[1]) >= len(RECIPES)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.slow
def test_client_of_the_cookbook_confirms_from_another_origin(
    load: Load, settings: dict[str, str], tmp_path: Path
) -> None:
    module = load("cookbook/clients.md", "api.py")
    with HTTPServer(("localhost", 0), partial(Quiet, directory=tmp_path)) as pages:
        origin = f"http://localhost:{pages.server_port}"
        app = module.create_app(**settings, TASKFLOW_EAGER=True, ORIGIN=origin)
        api = make_server("localhost", 0, app, threaded=True)
        client = tmp_path / "client.html"
        client.write_text(client.read_text("utf-8").replace("localhost:5000", f"localhost:{api.server_port}"))
        for server in (pages, api):
            threading.Thread(target=server.serve_forever, daemon=True).start()

        with outbox(module.taskflow) as box, chromium(tmp_path / "profile") as browser:
            browser.get(f"{origin}/client.html")
            browser.find_element("id", "ask").click()
            wait_for(browser, "#again", "Send again in 2")
            wait_for(browser, "#state", "PENDING")
            submit(browser, "code", other(box.last_code(ANN)), "#form button")
            wait_for(browser, "#state", "The code is wrong. 4")
            submit(browser, "code", box.last_code(ANN), "#form button")
            wait_for(browser, "#state", "SUCCESS")
        pages.shutdown()
        api.shutdown()
        api.server_close()
