"""The pages about the page for a code and about the gate: their examples run."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import render_template_string

from tests.docs.conftest import ANN, Bank, Load
from tests.support.docs import block

HTML = {"Accept": "text/html"}
OWN = {"Sec-Fetch-Site": "same-origin"}


def test_page_example_confirms_with_the_apps_own_look(load: Load, bank: Bank, tmp_path: Path) -> None:
    app = load("page.md", "app").create_app(**bank.settings, SECRET_KEY="the key of a reader, long enough")
    (tmp_path / "templates/taskflow").mkdir(parents=True)
    (tmp_path / "templates/taskflow/page.html").write_text(block("page.md", "brand"), "utf-8")
    app.root_path = str(tmp_path)

    with bank.app(app) as (client, box):
        with client.session_transaction() as session:
            session["user"] = "ann"
        url = client.post("/transfers").location
        shown = client.get(url).text
        task = bank.taskflow.get_task(url.rpartition("/")[2])
        with app.test_request_context():
            own = render_template_string(block("page.md", "own"), task=task)
        done = client.post(url, data={"method": "EMAIL", "otp": box.last_code(ANN)}, headers=OWN)

    assert "<header>The Bank</header>" in shown
    assert "brand.css" in shown
    assert f'action="{url}"' in own
    assert (done.status_code, done.location) == (303, url)


def test_gate_example_asks_browsers_and_clients_as_the_page_says(load: Load, bank: Bank) -> None:
    app = load("gate.md", "app").create_app(**bank.settings, SECRET_KEY="the key of a reader, long enough")
    with bank.app(app) as (client, box):
        with client.session_transaction() as session:
            session["user"] = "ann"
        asked = client.post("/transfers", data={"amount": "5", "to": "Bob"})
        told = asked.get_json(force=True)
        client.post(told["links"]["verify"], json={"method": "EMAIL", "otp": box.last_code(ANN)})
        headers = {"Taskflow-Task": told["task"]}
        done = client.post("/transfers", data={"amount": "5", "to": "Bob"}, headers=headers)

    shown = re.sub("[a-z2-7]{34}", "24opk4dw…", json.dumps(told, ensure_ascii=False))
    assert json.loads(shown) == json.loads(block("gate.md", "asked"))
    assert (asked.status_code, done.json) == (202, {"paid": "5"})


@pytest.mark.usefixtures("redis")
def test_first_example_of_the_readme_pays_after_the_code(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "embedded://" in block("README.md", "gate-run")
    monkeypatch.setenv("FLASK_SECRET_KEY", "a secret key of the reader, long enough")
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    monkeypatch.setenv("FLASK_TASKFLOW_EAGER", "true")
    source = block("README.md", "gate")
    (tmp_path / "gated_app.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    app = importlib.import_module("gated_app").app
    # As `flask run --debug` has it: the cookie goes over plain HTTP.
    app.debug = True
    client = app.test_client()
    assert "<form" in client.get("/").text
    page = client.post("/transfers", data={"amount": "5", "to": "Bob"}, headers=HTML).location
    code = re.search(r"\b\d{6}\b", "".join(capsys.readouterr()))
    assert code
    typed = client.post(page, data={"method": "EMAIL", "otp": code[0]}, headers={**HTML, **OWN})
    back = client.get(typed.location, headers=HTML).headers["Refresh"].removeprefix("0; url=")

    assert client.get(back, headers=HTML).json == {"paid": "5"}
    ours = source[source.index("taskflow = ") :].count("taskflow") + 4
    assert ours <= 12


@pytest.mark.parametrize(
    ("role", "status", "buttons"), [("", 401, 0), ("customer", 403, 0), ("staff", 200, 0), ("admin", 200, 2)]
)
def test_dashboard_of_the_page_is_for_staff_and_its_buttons_for_admins(
    load: Load, bank: Bank, role: str, status: int, buttons: int
) -> None:
    shown = load("dashboard.md", "app")
    app = shown.create_app(**bank.settings, SECRET_KEY="the key of a reader, long enough")
    person = SimpleNamespace(
        is_authenticated=True,
        is_staff=role in ("staff", "admin"),
        is_admin=role == "admin",
        get_id=lambda: "ann",
    )
    shown.logins.request_loader(lambda request: person if role else None)
    with bank.app(app) as (client, box):
        bank.confirm(box, data={"user": "ann", "to": "Bob", "amount": 50})
        answer = client.get("/staff/taskflow/")

    assert (answer.status_code, answer.text.count("<button>")) == (status, buttons)
