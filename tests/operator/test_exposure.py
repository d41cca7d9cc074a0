"""What the doctor says of what hands codes to others."""

from __future__ import annotations

import re
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import ConsoleStrategy, OutboxStrategy, TaskFlow
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow._operator.doctor import examine
from flask_taskflow._operator.exposure import exposures
from flask_taskflow._service import current_service
from flask_taskflow.testing import redis_server
from tests.support.stage import Stage

EXPOSED: list[tuple[dict[str, Any], str, str]] = [
    ({"eager": True}, "bad", "TASKFLOW_EAGER"),
    ({"allow_weak_codes": True, "otp_length": 4}, "note", "TASKFLOW_OTP_LENGTH = 4"),
    ({"allow_weak_codes": True, "otp_ttl": 900}, "note", "TASKFLOW_OTP_TTL = 900"),
    ({"allow_weak_codes": True, "otp_max_attempts": 11}, "note", "TASKFLOW_OTP_MAX_ATTEMPTS = 11"),
    ({"allow_weak_codes": True, "recipient_max_failures": 101}, "note", "RECIPIENT_MAX_FAILURES = 101"),
    ({"smtp_url": "smtp://localhost?starttls=no"}, "note", "without TLS"),
    ({"sms_url": "json://localhost/?to={to}"}, "note", "without TLS"),
    ({"recipient_failure_window": 60}, "note", "TASKFLOW_RECIPIENT_FAILURE_WINDOW = 60"),
    ({"frame_ancestors": "*"}, "note", "TASKFLOW_FRAME_ANCESTORS"),
]


def found(
    stage: Stage, extension: TaskFlow | None = None, strict: bool = False, **settings: Any
) -> list[tuple[str, str]]:
    app = stage.make_app(extension or TaskFlow(), **{"TESTING": False, "autostart": False, **settings})
    with app.app_context():
        items = [each for each in examine(current_service(), strict=strict) if each.subject == "security"]
    assert all(re.fullmatch(r"(ASVS|NIST) [0-9.]+", item.clause) for item in items)
    return [(item.level, item.text) for item in items]


@pytest.mark.parametrize(("settings", "level", "text"), EXPOSED)
def test_setting_that_exposes_codes_is_told(
    stage: Stage, settings: dict[str, Any], level: str, text: str
) -> None:
    ((told, what),) = found(stage, **settings)

    assert told == level
    assert text in what
    assert found(stage, TESTING=True, **settings) == []
    assert found(stage, strict=True, TESTING=True, **settings) == [("bad", what)]


def test_strict_doctor_fails_with_the_clause(stage: Stage) -> None:
    app = stage.make_app(TaskFlow(), allow_weak_codes=True, otp_ttl=900, autostart=False)

    result = app.test_cli_runner().invoke(taskflow_cli, ["doctor", "--strict"])

    assert result.exit_code == 1
    assert re.search(r"bad +security +TASKFLOW_OTP_TTL = 900.* NIST 3\.1\.3\.2\n", result.output)


def test_debug_is_told_by_the_strict_doctor(stage: Stage) -> None:
    ((level, what),) = found(stage, strict=True, DEBUG=True)

    assert (level, "debug" in what) == ("bad", True)
    assert found(stage, DEBUG=True) == []


@pytest.mark.parametrize("strategy", [ConsoleStrategy, OutboxStrategy])
def test_strategy_that_shows_codes_is_told(stage: Stage, strategy: Any) -> None:
    extension = TaskFlow()
    extension.register_strategy("EMAIL")(strategy)

    ((level, what),) = found(stage, extension)

    assert (level, strategy.__name__ in what) == ("bad", True)


def test_redis_without_a_password_is_told_where_a_network_reaches_it(stage: Stage) -> None:
    with redis_server(port=True) as url, Redis.from_url(url) as admin:
        open_to_all = found(stage, redis_url=url)
        admin.config_set("requirepass", "hunter2")
        known = found(stage, redis_url=url.replace("//", "//:hunter2@"))

    assert known == []
    assert [level for level, _ in open_to_all] == ["note"]
    assert found(stage) == []


def test_redis_without_tls_is_told_but_on_this_machine(stage: Stage) -> None:
    def told(url: str) -> list[str]:
        with stage.make_app(TaskFlow(), TESTING=False, redis_url=url).app_context():
            return [each.what for each in exposures(current_service())]

    assert told("redis://:hunter2@localhost") == told("rediss://:hunter2@redis.example.com") == []
    assert [
        "redis.example.com has no TLS" in what for what in told("redis://:hunter2@redis.example.com")
    ] == [True]
