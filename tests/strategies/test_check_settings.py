"""Settings with which nothing can be sent are told of before the first user meets them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo

from flask_taskflow import ConfigError, EmailStrategy, Method, SMSStrategy, TaskFlow
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow.testing import outbox
from tests.conftest import SECRET_KEY, MakeApp

MAIL = {"TASKFLOW_SMTP_URL": "smtp://localhost", "TASKFLOW_EMAIL_SENDER": "codes@bank.example"}
MISSING = [
    ({}, "TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
    ({"TASKFLOW_SMTP_URL": MAIL["TASKFLOW_SMTP_URL"]}, "TASKFLOW_EMAIL_SENDER"),
    ({"TASKFLOW_EMAIL_SENDER": MAIL["TASKFLOW_EMAIL_SENDER"]}, "TASKFLOW_SMTP_URL"),
]


def bare_app(**settings: Any) -> Flask:
    app = Flask("app")
    app.config.update(SECRET_KEY=SECRET_KEY, **settings)
    return app


@pytest.mark.parametrize(("settings", "named"), MISSING)
def test_app_that_cannot_send_does_not_start(settings: dict[str, str], named: str) -> None:
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(EmailStrategy)
    app = bare_app(**settings)

    with pytest.raises(ConfigError, match=named):
        taskflow.init_app(app)

    app.config.update(MAIL)
    taskflow.init_app(app)


@pytest.mark.parametrize(("settings", "named"), MISSING)
def test_strategy_that_comes_later_is_refused_by_an_app_it_cannot_send_for(
    settings: dict[str, str], named: str
) -> None:
    app = bare_app(**settings)
    taskflow = TaskFlow(app)

    with pytest.raises(ConfigError, match=named):
        taskflow.register_strategy(Method.EMAIL)(EmailStrategy)

    assert taskflow._channels == {}


GATEWAY = {"TASKFLOW_SMS_URL": "json://localhost/?to={to}"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "set TASKFLOW_SMS_URL"),
        (
            {"TASKFLOW_SMS_URL": "nobody://localhost/{to}"},
            "TASKFLOW_SMS_URL is not a URL that Apprise can read",
        ),
        ({"TASKFLOW_SMS_URL": "twilio://half/{to}"}, "TASKFLOW_SMS_URL is not a URL that Apprise can read"),
        ({**GATEWAY, "TASKFLOW_PHONE_REGION": "UK"}, "TASKFLOW_PHONE_REGION: UK"),
        ({**GATEWAY, "TASKFLOW_PHONE_COUNTRIES": ["VN", "UK"]}, "TASKFLOW_PHONE_COUNTRIES: UK"),
    ],
)
def test_gateway_that_cannot_send_is_named(settings: dict[str, Any], named: str) -> None:
    app = bare_app(**settings)

    with pytest.raises(ConfigError, match=named):
        TaskFlow(app).register_strategy(Method.SMS)(SMSStrategy)


def test_app_with_its_settings_and_app_for_tests_start(make_app: MakeApp) -> None:
    app = bare_app(**MAIL)
    taskflow = TaskFlow(app)
    taskflow.register_strategy(Method.EMAIL)(EmailStrategy)

    with make_app(taskflow).app_context(), outbox(taskflow) as box:
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})
        assert taskflow.verify(task.id, "EMAIL", box.last_code("ann@example.com")).status == "SUCCESS"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("check", 1, "set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
        ("doctor", 1, "set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
        ("worker", 1, "ConfigError: set TASKFLOW_SMTP_URL and TASKFLOW_EMAIL_SENDER"),
    ],
)
def test_commands_say_what_a_strategy_lacks(
    make_app: MakeApp, taskflow: TaskFlow, command: str, status: int, said: str
) -> None:
    taskflow.register_strategy(Method.EMAIL)(EmailStrategy)
    taskflow.on_task_verified("q")(print)

    result = run(make_app(), command)

    assert result.exit_code == status, result.output
    assert said in result.output


def test_check_needs_no_server_and_finds_nothing_in_a_sound_app(
    make_app: MakeApp, taskflow: TaskFlow
) -> None:
    taskflow.register_strategy(Method.EMAIL)(EmailStrategy)

    app = make_app(
        redis_url="redis://localhost:1", smtp_url="smtp://localhost", email_sender="codes@bank.example"
    )
    result = run(app, "check", "--json")

    assert result.exit_code == 0, result.output
    assert [(item["level"], item["subject"], item["text"]) for item in json.loads(result.output)] == [
        ("ok", "EMAIL", "EmailStrategy"),
        ("ok", "SMS", "OutboxStrategy"),
    ]


def run(app: Flask, *words: str) -> Any:
    return CliRunner().invoke(taskflow_cli, list(words), obj=ScriptInfo(create_app=lambda: app))
