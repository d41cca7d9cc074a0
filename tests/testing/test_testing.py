"""What the package offers to the tests of apps: outbox, travel, which the whole suite uses, and server."""

from __future__ import annotations

import glob
import json
import logging
import runpy
import stat
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import BaseStrategy, ConfigError, EmailStrategy, OutboxStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import (
    InvalidTask,
    TaskExpired,
    TaskNotFound,
    WrongCode,
)
from flask_taskflow.testing import (
    Outbox,
    OutboxFile,
    no_code_in_logs,
    outbox,
    redis_server,
    travel,
    travel_on,
)
from tests.conftest import MakeApp
from tests.support.docs import block
from tests.support.tasks import EMAIL, PHONE, add, refused

BOB = {"email": "bob@example.com"}

in_an_app = pytest.mark.usefixtures("app")


@in_an_app
def test_outbox_keeps_what_would_be_sent_and_gives_strategies_back_even_after_an_error(
    taskflow: TaskFlow,
) -> None:
    real = OutboxStrategy()
    taskflow.register_strategy("EMAIL")(real)

    with outbox(taskflow) as messages:
        task = add(taskflow)
    with pytest.raises(ZeroDivisionError), outbox(taskflow):
        raise ZeroDivisionError
    add(taskflow, recipient=BOB)

    assert [(message.task, message.addresses) for message in messages] == [(task, (EMAIL,))]
    assert [message.addresses for message in real.messages] == [(BOB["email"],)]


@in_an_app
def test_outbox_finds_the_last_code_of_an_address_or_says_who_had_one(
    taskflow: TaskFlow, box: Outbox
) -> None:
    add(taskflow, recipient=BOB)
    with pytest.raises(LookupError, match=r"no code was sent to ann@example\.com; .* \['bob@example\.com'\]"):
        box.last_code(EMAIL)
    first, second = add(taskflow), add(taskflow)
    add(taskflow, recipient=BOB)

    assert box.last_code(EMAIL) == box[2].otp
    assert taskflow.verify(second.id, "EMAIL", box.last_code(EMAIL)).status is Status.SUCCESS
    assert taskflow.verify(first.id, "EMAIL", box[1].otp).status is Status.SUCCESS


@in_an_app
def test_outbox_keeps_to_addresses_and_codes_of_the_strategy(taskflow: TaskFlow) -> None:
    class Letters(OutboxStrategy):
        code_pattern = "[A-Z]{6}"

        def generate(self, task: Task[Any]) -> str:
            return "LETTER"

    letters = Letters("email")
    taskflow.register_strategy("LETTER")(letters)

    with outbox(taskflow) as messages:
        recipient = {"email": EMAIL, "phone_number": PHONE}
        task = add(taskflow, allowed_methods=["LETTER"], recipient=recipient)
        done = taskflow.verify(task.id, "LETTER", "LETTER")

    assert done.status is Status.SUCCESS
    assert messages[0].addresses == (EMAIL,)
    assert letters.messages == []


@in_an_app
def test_outbox_leaves_it_to_the_strategy_to_check_codes_made_elsewhere(taskflow: TaskFlow) -> None:
    class Device(BaseStrategy):
        def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
            return "first" if otp == "123456" else None

    taskflow.register_strategy("SMART_OTP")(Device)

    with outbox(taskflow) as messages:
        task = add(taskflow, allowed_methods=["SMART_OTP"], recipient={"device_id": "phone-1"})
        refused(WrongCode, taskflow.verify, task.id, "SMART_OTP", "654321")
        done = taskflow.verify(task.id, "SMART_OTP", "123456")

    assert done.status is Status.SUCCESS
    assert [(message.addresses, str(message.otp)) for message in messages] == [(("phone-1",), "")]


@in_an_app
def test_travel_ages_tasks(taskflow: TaskFlow, box: Outbox) -> None:
    task, age = add(taskflow), timedelta(seconds=590)

    travel(age)
    alive = taskflow.get_task(task.id)
    travel(11)

    assert alive.status is Status.PENDING
    assert (alive.created_at, alive.expires_at) == (task.created_at - age, task.expires_at - age)
    assert taskflow.get_task(task.id).status is Status.EXPIRED
    refused(TaskExpired, taskflow.verify, task.id, "EMAIL", box.last_code(EMAIL))
    travel(86400)
    refused(TaskNotFound, taskflow.get_task, task.id)


@in_an_app
def test_travel_ages_finished_tasks(taskflow: TaskFlow, box: Outbox) -> None:
    task = add(taskflow)
    done = taskflow.verify(task.id, "EMAIL", box.last_code(EMAIL))
    assert done.verified_at is not None

    travel(86000)
    again = taskflow.get_task(task.id)
    travel(500)

    assert again.verified_at == done.verified_at - timedelta(seconds=86000)
    refused(TaskNotFound, taskflow.get_task, task.id)


@pytest.mark.usefixtures("box")
def test_travel_leaves_other_prefixes_and_keys_alone(
    make_app: MakeApp, taskflow: TaskFlow, redis: Redis
) -> None:
    redis.set("other", "value", ex=100)
    with make_app(key_prefix="shop2").app_context():
        other = add(taskflow)
    with make_app(key_prefix="shop").app_context():
        add(taskflow)
        travel(600 + 86400)
        (left,) = redis.scan_iter(match="shop*:task:*")

    assert b"shop2" in left
    assert other.id.encode() in left
    assert redis.ttl("other") > 50


@pytest.mark.parametrize("way", ["inline", "background"])
def test_codes_go_to_a_file_for_tests_in_another_process(
    make_app: MakeApp, taskflow: TaskFlow, tmp_path: Path, way: str
) -> None:
    taskflow.register_strategy("EMAIL")(EmailStrategy)
    path = str(tmp_path / "codes")
    codes = OutboxFile(path)
    with make_app(outbox_file=path, send=way, autostart=False, TESTING=False, DEBUG=True).app_context():
        with pytest.raises(LookupError, match="codes were sent to \\[\\]"):
            codes.last_code(EMAIL, within=0)
        task, _ = add(taskflow), add(taskflow, recipient=BOB)
        taskflow.run_due()

        (tmp_path / "read.py").write_text(block("testing.md", "file").replace("/tmp/codes", path), "utf-8")
        code = runpy.run_path(str(tmp_path / "read.py"))["code"]
        assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS
    line = json.loads(codes.path.read_text().splitlines()[0])
    assert line == {
        "task": task.id,
        "queue": "q",
        "method": "EMAIL",
        "addresses": [EMAIL],
        "otp": codes.last_code(EMAIL),
    }
    assert stat.S_IMODE(codes.path.stat().st_mode) == 0o600


def test_file_for_codes_is_refused_where_real_users_are(make_app: MakeApp, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TASKFLOW_OUTBOX_FILE .* debug and testing, so unset it"):
        make_app(outbox_file=str(tmp_path / "codes"), TESTING=False)


def test_outbox_of_all_keeps_what_is_registered_inside_and_stands_behind_that_of_one(
    make_app: MakeApp, taskflow: TaskFlow
) -> None:
    late, other = OutboxStrategy(), TaskFlow()
    with outbox() as all_of_them, outbox(taskflow) as one:
        other.register_strategy("EMAIL")(late)
        for extension in (taskflow, other):
            with make_app(extension, eager=True).app_context():
                add(extension, allowed_methods=["EMAIL"])

    assert (len(all_of_them), len(one), late.messages) == (1, 1, [])


@in_an_app
def test_outboxes_nest_either_way_and_leave_nothing_behind(taskflow: TaskFlow) -> None:
    real = OutboxStrategy()
    taskflow.register_strategy("EMAIL")(real)

    with outbox(taskflow):
        pass
    with outbox() as outer:
        with outbox(taskflow) as inner:
            add(taskflow)
        add(taskflow, recipient=BOB)
    with outbox(taskflow) as passed_over, outbox() as innermost:
        add(taskflow)
    add(taskflow)

    assert [len(box) for box in (outer, inner, passed_over, innermost)] == [1, 1, 0, 1]
    assert outer[0].addresses == (BOB["email"],)
    assert len(real.messages) == 1


def test_outbox_of_one_leaves_what_is_registered_inside_to_an_outer_one_and_to_the_file(
    make_app: MakeApp, taskflow: TaskFlow, tmp_path: Path
) -> None:
    late, path = OutboxStrategy(), tmp_path / "codes"
    with outbox() as outer, outbox(taskflow) as box, make_app(eager=True).app_context():
        taskflow.register_strategy("EMAIL")(late)
        add(taskflow)
    with outbox(taskflow) as box_of_file, make_app(outbox_file=str(path), autostart=False).app_context():
        taskflow.register_strategy("EMAIL")(late)
        task = add(taskflow)

    assert (len(outer), len(box), len(box_of_file), late.messages) == (1, 0, 0, [])
    assert json.loads(path.read_text())["task"] == task.id


def _with_a_level(otp: str) -> None:
    logging.getLogger("shop.views").info("code %s", otp)


def _apart(otp: str) -> None:
    logging.getLogger("shop.apart").debug("code %s", otp)


def _as_extra(otp: str) -> None:
    logging.getLogger("shop").info("typed", extra={"form": {"otp": otp, "at": datetime.now(UTC)}})


def _with_a_wrong_format(otp: str) -> None:
    logging.getLogger("shop").info("number %d", str(otp))


def _in_a_traceback(otp: str) -> None:
    try:
        raise ValueError(f"wrong: {otp}")
    except ValueError:
        logging.getLogger("shop").exception("refused")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a handler of the app's own gets, of loggers that are set up as apps do."""
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.levelname)

    monkeypatch.setattr(logging.getLogger("shop"), "handlers", [Keep()])
    monkeypatch.setattr(logging.getLogger("shop.views"), "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger("shop.apart"), "propagate", False)
    return kept


@in_an_app
@pytest.mark.parametrize("write", [_with_a_level, _apart, _as_extra, _with_a_wrong_format, _in_a_traceback])
def test_code_in_the_log_is_found_wherever_it_stands(
    taskflow: TaskFlow, box: Outbox, kept: list[str], write: Callable[[str], None]
) -> None:
    def test() -> None:
        with no_code_in_logs(box):
            add(taskflow)
            write(box[-1].otp)

    assert "the log shows codes:\nshop" in str(refused(AssertionError, test))
    assert set(kept) <= {"ERROR"}


@pytest.mark.parametrize("seconds", [-5, "5", float("nan"), float("inf"), timedelta(seconds=-1), None])
def test_travel_goes_forwards_only(make_app: MakeApp, taskflow: TaskFlow, server: str, seconds: Any) -> None:
    with outbox(taskflow), make_app().app_context():
        task = add(taskflow)

        refused(InvalidTask, travel, seconds)
        refused(InvalidTask, travel_on, server, seconds)

        assert taskflow.get_task(task.id) == task


def test_travel_outside_a_context_says_so() -> None:
    with pytest.raises(RuntimeError, match="inside an app context"):
        travel(1)


@pytest.mark.parametrize("port", [False, True])
def test_server_runs_and_leaves_nothing(port: bool) -> None:
    before = set(glob.glob(f"{tempfile.gettempdir()}/taskflow-*"))

    with redis_server("--maxmemory", "64mb", port=port) as url, Redis.from_url(url) as client:
        limit = client.config_get("maxmemory")
        new = set(glob.glob(f"{tempfile.gettempdir()}/taskflow-*")) - before

    assert limit == {"maxmemory": str(64 * 2**20)}
    assert url.startswith("redis://127.0.0.1:" if port else "unix://")
    assert new
    assert port or not Path(url.removeprefix("unix://")).exists()


@pytest.mark.parametrize(
    ("options", "binary", "error", "reason"),
    [
        (["--no-such-option", "1"], None, RuntimeError, r"did not come up:[\s\S]*'no-such-option"),
        ([], "/bin/false", RuntimeError, r"/false.* did not come up"),
        ([], "/no/such/server", OSError, "/no/such/server"),
    ],
)
def test_server_that_does_not_start_says_why(
    options: list[str], binary: str | None, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason), redis_server(*options, binary=binary):
        raise AssertionError("it came up")


def test_server_that_ends_while_it_is_waited_for_is_told_at_once(tmp_path: Path) -> None:
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\nsleep 0.1\necho no licence\n")
    binary.chmod(0o700)

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no licence"), redis_server(binary=str(binary)):
        raise AssertionError("it came up")

    assert time.monotonic() - began < 30
