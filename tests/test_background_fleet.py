"""Processes that send in the background are killed and ended in the middle of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeApp
from flask import Flask
from fleet_support import Fleet, wait_until
from redis import Redis

from flask_taskflow import TaskFlow

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(server: str, redis: Redis, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(server, tmp_path)
    yield fleet
    fleet.close()


@pytest.fixture
def app(make_app: MakeApp) -> Iterator[Flask]:
    """An app that stores sends and has no thread."""
    app = make_app(send="background", autostart=False)
    with app.app_context():
        yield app


def start_worker(fleet: Fleet) -> subprocess.Popen[bytes]:
    """Start a worker with the default settings."""
    return fleet.start("flask", "--app", "post", "taskflow", "worker", until="sending codes")


def add(taskflow: TaskFlow) -> str:
    return taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"}).id


def is_done(redis: Redis) -> bool:
    return not list(redis.scan_iter(match="*:h:@*"))


def test_send_whose_process_is_killed_is_done_by_another_within_five_seconds(
    fleet: Fleet, app: Flask, taskflow: TaskFlow, redis: Redis
) -> None:
    first = start_worker(fleet)
    task_id = add(taskflow)
    (begun,) = fleet.wait("begun")
    start_worker(fleet)

    first.kill()
    killed_at = time.monotonic()
    again = fleet.wait("begun", 2)[1]
    fleet.go()
    (sent,) = fleet.wait("sent")
    wait_until(lambda: is_done(redis))

    assert again["at"] - killed_at < 5
    assert again["pid"] != begun["pid"]
    assert [event["task"] for event in (begun, again, sent)] == [task_id] * 3
    assert len({event["code"] for event in (begun, again, sent)}) == 1


def test_send_whose_only_process_is_killed_waits_for_the_next_one(
    fleet: Fleet, app: Flask, taskflow: TaskFlow, redis: Redis
) -> None:
    first = start_worker(fleet)
    add(taskflow)
    fleet.wait("begun")

    first.kill()
    first.wait()
    start_worker(fleet)
    fleet.wait("begun", 2)
    fleet.go()
    fleet.wait("sent")

    wait_until(lambda: is_done(redis))


def test_worker_that_is_asked_to_end_sends_to_the_end_first(
    fleet: Fleet, app: Flask, taskflow: TaskFlow, redis: Redis
) -> None:
    worker = start_worker(fleet)
    add(taskflow)
    fleet.wait("begun")

    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in fleet.log(worker))
    fleet.go()

    assert worker.wait(15) == 0
    assert len(fleet.events("begun")) == len(fleet.events("sent")) == 1
    assert is_done(redis)
