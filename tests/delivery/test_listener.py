"""The listener: junk on its channel, connections that break or idle, bells that it may have missed."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import task_verified
from flask_taskflow._delivery import telling
from tests.conftest import Spawn
from tests.support.fleet import wait_until
from tests.support.stage import BELL, Stage

ID = b"a" * 34
JUNK: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "JSON": b'{"id": "' + ID + b'"}',
    "deep JSON": b"[" * 100_000,
    "a megabyte": b"1 " + b"a" * 1_000_000,
    "binary": bytes(range(256)),
    "another version": b"2 " + ID,
    "line end": b"1 " + ID + b"\n",
    "upper case": b"1 " + ID.upper(),
    "two ids": b"1 " + ID + b" " + ID,
    "not UTF-8": b"1 " + b"\xff" * 34,
}


@pytest.mark.promise("S47")
@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.promise("S47")
def test_junk_on_the_channel_is_logged_and_dropped(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stage.start()
    ear = stage.hear(task_verified)

    stage.redis.publish(BELL, JUNK[kind])
    task = stage.verified()

    assert ear.tasks() == [task.id]
    assert ear.rest() == []
    assert f"Junk of {len(JUNK[kind])} bytes" in caplog.text
    assert "lost Redis" not in caplog.text


@pytest.mark.promise("S47")
def test_junk_in_masses_is_logged_now_and_then(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.start()
    ear = stage.hear(task_verified)
    began = time.monotonic()

    for _ in range(300):
        stage.redis.publish(BELL, "junk")
    task = stage.verified()

    assert ear.tasks() == [task.id]
    lines = [record for record in caplog.records if "Junk" in record.getMessage()]
    assert 1 <= len(lines) <= 2 + (time.monotonic() - began)


@pytest.mark.promise("F8")
def test_connection_that_is_cut_is_back_within_a_second(stage: Stage) -> None:
    stage.start(recipient_max_sends=1000)
    ear = stage.hear(task_verified)
    taken: list[float] = []

    # A busy machine may hold some of them up.
    while len(taken) < 3 or (min(taken) >= 1 and len(taken) < 20):
        assert stage.redis.client_kill_filter(_type="pubsub") == 1
        killed, verified, heard = time.monotonic(), [], ""
        # What was verified before the cut may be heard late.
        while heard not in verified:
            verified.append(stage.verified().id)
            try:
                heard = ear.next(within=0.05)["task"].id
            except queue.Empty:
                assert time.monotonic() - killed < 60
        taken.append(time.monotonic() - killed)

    assert min(taken) < 1


@pytest.mark.slow
def test_connection_that_is_cut_again_and_again_is_made_anew_less_and_less_often(stage: Stage) -> None:
    stage.start()
    before = stage.redis.info("commandstats")["cmdstat_subscribe"]["calls"]

    until = time.monotonic() + 3
    while time.monotonic() < until:
        stage.redis.client_kill_filter(_type="pubsub")

    # Without a pause they are hundreds.
    assert stage.redis.info("commandstats")["cmdstat_subscribe"]["calls"] - before < 30


@pytest.mark.parametrize("end", [SystemExit, RuntimeError])
def test_log_filter_that_raises_ends_no_thread(stage: Stage, end: type[BaseException]) -> None:
    class Fails(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise end

    stage.start()
    ear = stage.hear(task_verified)
    loggers = [logging.getLogger(f"flask_taskflow._delivery.{name}") for name in ("listener", "announcer")]
    fails = Fails()
    for logger in loggers:
        logger.addFilter(fails)
    try:
        for message in (b"junk", b"1 " + ID):
            stage.redis.publish(BELL, message)
        assert stage.redis.client_kill_filter(_type="pubsub") == 1
        wait_until(lambda: stage.listeners() == 1)
        task = stage.verified()

        assert ear.tasks() == [task.id]
    finally:
        for logger in loggers:
            logger.removeFilter(fails)


def test_receiver_that_hangs_is_told_of_once(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_LONG", 0.1)
    began, go = threading.Event(), threading.Event()

    def hang(sender: Flask, **details: Any) -> None:
        began.set()
        go.wait(60)

    stage.start()
    with task_verified.connected_to(hang):
        stage.verified()
        assert began.wait(60)
        for _ in range(1500):
            stage.redis.publish(BELL, b"1 " + ID)
        stage.redis.publish(BELL, "junk")
        wait_until(lambda: "Junk" in caplog.text)
        wait_until(lambda: stage.redis.publish(BELL, "junk") and "has run for" in caplog.text)
        go.set()

    assert caplog.text.count("Receivers of task_verified are too slow") == 1
    assert caplog.text.count("hang, a receiver of the signal task-verified, has run for") == 1


def test_connection_that_idles_longer_than_the_timeout_stays(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.start(redis_timeout=1)
    ear = stage.hear(task_verified)

    threading.Event().wait(1.5)
    task = stage.verified()

    assert ear.tasks() == [task.id]
    assert "lost Redis" not in caplog.text


def test_verification_right_after_start_is_never_missed(stage: Stage) -> None:
    stage.app()
    ear = stage.hear(task_verified)

    for _ in range(50):
        task = stage.add()
        stage.taskflow.start()
        stage.verify(task)

        assert ear.tasks() == [task.id]
        stage.taskflow.stop(0)


def test_process_that_was_frozen_hears_what_it_missed(stage: Stage, spawn: Spawn) -> None:
    stage.app()
    process = spawn("alone")
    ((_, pid),) = process.lines(1)

    os.kill(process.pid, signal.SIGSTOP)
    task = stage.verified()
    os.kill(process.pid, signal.SIGCONT)

    assert process.lines(1) == [["heard", pid, task.id]]


@pytest.mark.promise("F16")
@pytest.mark.parametrize("apart", ["database", "prefix"])
@pytest.mark.promise("F16")
def test_apps_apart_do_not_hear_each_other(stage: Stage, apart: str) -> None:
    changed = {"redis_url": f"{stage.server}?db=1"} if apart == "database" else {"key_prefix": "other"}
    apps = [stage.start(), stage.start(**changed)]
    ear = stage.hear(task_verified)

    for app in apps:
        with app.app_context():
            task = stage.verified()
        told = ear.next()
        assert (told["app"], told["task"].id) == (app, task.id)
    assert ear.rest() == []
