"""Threads that tell and threads that watch the clock live on, whatever is done in them."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from flask import Flask

from flask_taskflow._delivery import telling
from flask_taskflow._delivery.asides import Asides
from flask_taskflow._delivery.scheduler import Scheduler
from flask_taskflow._delivery.telling import Teller
from flask_taskflow._log import Work


def fail() -> None:
    raise OSError("not now")


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_teller_goes_on_after_what_fails_and_tells_what_it_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "_WAITING_MAX", 2)
    teller, told = Teller(Flask("app"), "test"), list[int]()
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go.wait(60)

    teller.put(wait)
    assert began.wait(60)

    teller.put(fail)
    for number in range(3):
        teller.put(lambda number=number: told.append(number))  # type: ignore[misc]
    go.set()
    teller.stop(10)

    assert told == [1, 2]
    assert "2 calls were dropped" in caplog.text


def test_thread_of_receivers_starts_along_with_that_of_the_log() -> None:
    """Python 3.12 starts none while it ends."""
    app = Flask("app")
    receivers = Teller(app, "test-receivers")
    log, logged = Teller(app, "test-log", receivers), threading.Event()

    log.put(logged.set)
    assert logged.wait(60)
    names = {thread.name for thread in threading.enumerate()}
    log.stop(10)
    receivers.stop(10)

    assert {"test-log", "test-receivers"} <= names


def test_call_that_hangs_is_told_of_once_from_another_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "_WAITING_MAX", 2)
    teller, began, go = Teller(Flask("app"), "test"), threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        go.wait(60)

    teller.put(hang)
    assert began.wait(60)
    for _ in range(4):
        teller.put(lambda: None)

    for _ in range(2):
        teller.look(time.monotonic() + 3600)
    go.set()
    teller.stop(10)

    assert [record.getMessage().partition(" in ")[2] for record in caplog.records] == [
        "test, where 2 calls wait for it. Let what it calls have a time limit.",
        "",
    ]
    assert "2 calls were dropped" in caplog.text
    assert "has run for 36" in caplog.text


def test_teller_without_a_thread_tells_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teller, told = Teller(Flask("app"), "test"), list[str]()
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        teller.put(lambda: told.append("first"))

    teller.put(fail)
    teller.put(lambda: told.append("second"))
    teller.stop(10)

    assert told == ["first", "second"]
    assert "Something was not told by" in caplog.text


def test_aside_without_a_thread_is_done_at_the_next_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asides, failed = Asides("test", lambda work: None), threading.Event()

    def work() -> None:
        failed.set()
        fail()

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        asides.put(work)
    assert not failed.is_set()

    asides.retry()

    assert failed.wait(60)
    for thread in threading.enumerate():
        if thread.name == "taskflow-test-ends":
            thread.join(10)
    assert "could not be told" in caplog.text


class Chores:
    def __init__(self) -> None:
        self.turns, self.again = 0, threading.Event()

    def turn(self) -> float:
        self.turns += 1
        if self.turns == 1:
            raise SystemExit("whatever")
        self.again.set()
        return 60.0

    def lost(self, wait: float) -> None: ...

    def resync(self) -> None: ...


class Counted(Chores):
    """Notes which threads take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def turn(self) -> float:
        self.threads.add(threading.get_ident())
        self.again.set()
        return 60.0


@pytest.mark.slow
def test_scheduler_that_just_starts_is_not_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """Bells come at any time, and each looks whether it lives."""
    for _ in range(200):
        chores, ended = Counted(), threading.Event()
        scheduler = Scheduler(chores, "test", lambda work: None)

        def supervise(scheduler: Scheduler = scheduler, ended: threading.Event = ended) -> None:
            while not ended.is_set():
                scheduler.supervise()

        ringing = threading.Thread(target=supervise)
        ringing.start()
        scheduler.start()
        assert chores.again.wait(60)
        ended.set()
        ringing.join()
        assert scheduler.stop(10)
        assert len(chores.threads) == 1
    assert caplog.text == ""


def test_scheduler_goes_on_and_is_started_anew_if_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    chores, told = Chores(), list[Work]()
    scheduler = Scheduler(chores, "test", told.append)
    scheduler.start()
    assert chores.again.wait(60), "the turn that failed was not the last one"
    assert scheduler.stop(10)

    scheduler.stopped.clear()
    chores.again.clear()
    scheduler.supervise()

    assert chores.again.wait(60)
    assert scheduler.stop(10)
    for work in told:
        work()
    assert "it goes on" in caplog.text
    assert "it is started again" in caplog.text
