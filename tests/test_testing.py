"""What the package offers to the tests of apps: outbox, travel, server."""

from __future__ import annotations

import glob
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask
from redis import Redis

from flask_taskflow import (
    BaseStrategy,
    CodeExpired,
    OutboxStrategy,
    ResendTooSoon,
    SendLimitReached,
    Status,
    Task,
    TaskExpired,
    TaskFlow,
    TaskNotFound,
    WrongCode,
)
from flask_taskflow.testing import Outbox, outbox, redis_server, travel

ANN, BOB = "ann@example.com", "bob@example.com"


def add(taskflow: TaskFlow, address: str = ANN, **changes: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": address}, **changes}
    return taskflow.add_task("q", **given)


def test_outbox_keeps_what_would_be_sent_and_gives_strategies_back(app: Flask, taskflow: TaskFlow) -> None:
    real = OutboxStrategy()
    taskflow.register_strategy("EMAIL")(real)

    with outbox(taskflow) as messages:
        task = add(taskflow)
        kept = list(messages)
    add(taskflow, BOB)

    assert [(message.task, message.addresses) for message in kept] == [(task, (ANN,))]
    assert [message.addresses for message in real.messages] == [(BOB,)]


def test_outbox_gives_strategies_back_after_an_error(app: Flask, taskflow: TaskFlow) -> None:
    before = dict(taskflow._channels)

    with pytest.raises(ZeroDivisionError), outbox(taskflow):
        raise ZeroDivisionError

    assert taskflow._channels == before


def test_outbox_finds_the_last_code_of_an_address(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    first, second = add(taskflow), add(taskflow)
    add(taskflow, BOB)

    assert box.last_code(ANN) == box[1].otp
    assert taskflow.verify(second.id, "EMAIL", box.last_code(ANN)).status is Status.SUCCESS
    assert taskflow.verify(first.id, "EMAIL", box[0].otp).status is Status.SUCCESS


def test_outbox_without_a_code_says_who_had_one(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    add(taskflow, BOB)

    with pytest.raises(LookupError, match=r"no code was sent to ann@example\.com; .* \['bob@example\.com'\]"):
        box.last_code(ANN)


def test_outbox_keeps_to_addresses_and_codes_of_the_strategy(app: Flask, taskflow: TaskFlow) -> None:
    class Letters(OutboxStrategy):
        code_pattern = "[A-Z]{6}"

        def generate(self, task: Task[Any]) -> str:
            return "LETTER"

    letters = Letters("email")
    taskflow.register_strategy("LETTER")(letters)

    with outbox(taskflow) as messages:
        task = add(
            taskflow, allowed_methods=["LETTER"], recipient={"email": ANN, "phone_number": "+12025550110"}
        )
        done = taskflow.verify(task.id, "LETTER", "LETTER")

    assert done.status is Status.SUCCESS
    assert messages[0].addresses == (ANN,)
    assert letters.messages == []


def test_outbox_leaves_it_to_the_strategy_to_check_codes_made_elsewhere(
    app: Flask, taskflow: TaskFlow
) -> None:
    class Device(BaseStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            return "first" if otp == "123456" else None

    taskflow.register_strategy("SMART_OTP")(Device)

    with outbox(taskflow) as messages:
        task = add(taskflow, allowed_methods=["SMART_OTP"], recipient={"device_id": "phone-1"})
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "SMART_OTP", "654321")
        done = taskflow.verify(task.id, "SMART_OTP", "123456")

    assert done.status is Status.SUCCESS
    assert [(message.addresses, str(message.otp)) for message in messages] == [(("phone-1",), "")]


def test_travel_ages_tasks(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    travel(timedelta(seconds=599))
    alive = taskflow.get_task(task.id)
    travel(2)

    assert alive.status is Status.PENDING
    assert alive.created_at == task.created_at - timedelta(seconds=599)
    assert alive.expires_at == task.expires_at - timedelta(seconds=599)
    assert taskflow.get_task(task.id).status is Status.EXPIRED
    with pytest.raises(TaskExpired):
        taskflow.verify(task.id, "EMAIL", box.last_code(ANN))
    travel(60)
    with pytest.raises(TaskNotFound):
        taskflow.get_task(task.id)


def test_travel_ages_finished_tasks(app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    task = add(taskflow)
    done = taskflow.verify(task.id, "EMAIL", box.last_code(ANN))
    assert done.verified_at is not None

    travel(86000)
    again = taskflow.get_task(task.id)
    travel(500)

    assert again.verified_at == done.verified_at - timedelta(seconds=86000)
    with pytest.raises(TaskNotFound):
        taskflow.get_task(task.id)


def test_travel_ages_codes(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow, ttl=timedelta(days=1))

    travel(601)

    with pytest.raises(CodeExpired):
        taskflow.verify(task.id, "EMAIL", box.last_code(ANN))


def test_travel_ages_cooldowns(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)

    travel(29)
    with pytest.raises(ResendTooSoon) as caught:
        taskflow.resend_otp(task.id, "EMAIL")
    travel(1.5)
    taskflow.resend_otp(task.id, "EMAIL")

    assert 0 < caught.value.retry_after <= 1
    assert len(box) == 2


def test_travel_ages_windows_of_recipients(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    for _ in range(5):
        add(taskflow)

    travel(590)
    with pytest.raises(SendLimitReached):
        add(taskflow)
    travel(11)

    assert add(taskflow).status is Status.PENDING


def test_travel_ages_retries(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    attempts: list[str] = []

    @taskflow.on_task_verified("q", name="work", backoff_time=100)
    def work(task: Task[Any]) -> None:
        attempts.append(task.id)
        raise RuntimeError("not yet")

    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box.last_code(ANN))

    travel(99)
    early = taskflow.run_due()
    travel(12)
    late = taskflow.run_due()

    assert (early, late, len(attempts)) == (0, 1, 2)


def test_travel_leaves_other_prefixes_and_keys_alone(
    make_app: MakeApp, taskflow: TaskFlow, redis: Redis, box: Outbox
) -> None:
    redis.set("other", "value", ex=100)
    with make_app(key_prefix="shop2").app_context():
        other = add(taskflow)
    with make_app(key_prefix="shop").app_context():
        add(taskflow)
        travel(3600)
        (left,) = redis.scan_iter(match="shop*:task:*")

    assert b"shop2" in left
    assert other.id.encode() in left
    assert redis.ttl("other") > 90


def test_travel_outside_a_context_says_so() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        travel(1)


@pytest.mark.parametrize("port", [False, True])
def test_server_runs_and_leaves_nothing(port: bool) -> None:
    before = set(glob.glob(f"{tempfile.gettempdir()}/taskflow-*"))

    with redis_server("--maxmemory", "64mb", port=port) as url:
        client = Redis.from_url(url)
        limit = client.config_get("maxmemory")
        new = set(glob.glob(f"{tempfile.gettempdir()}/taskflow-*")) - before
        client.close()

    assert limit == {"maxmemory": str(64 * 2**20)}
    assert url.startswith("redis://127.0.0.1:" if port else "unix://")
    assert new
    assert not any(Path(name).joinpath("redis.sock").exists() for name in new)


def test_server_that_does_not_start_says_why() -> None:
    reason = r"did not come up:[\s\S]*'no-such-option"

    with pytest.raises(RuntimeError, match=reason), redis_server("--no-such-option", "1"):
        raise AssertionError("it came up")


def test_server_that_ends_at_once_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"/false.* did not come up"), redis_server(binary="/bin/false"):
        raise AssertionError("it came up")


def test_server_that_ends_while_it_is_waited_for_is_told_at_once(tmp_path: Path) -> None:
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\nsleep 0.1\necho no licence\n")
    binary.chmod(0o700)

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no licence"), redis_server(binary=str(binary)):
        raise AssertionError("it came up")

    assert time.monotonic() - began < 2


def test_server_without_a_binary_names_it() -> None:
    with pytest.raises(OSError, match="/no/such/server"), redis_server(binary="/no/such/server"):
        raise AssertionError("it came up")
