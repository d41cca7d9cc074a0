"""Sends in the background when processes and Redis fail: real processes, as in ``test_failures.py``."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from redis import Redis

from benchmarks.chaos import Server
from flask_taskflow import Reject, Status, Task, otp_sent
from flask_taskflow.signals import task_failed
from tests.conftest import MakeFleet
from tests.support import inside
from tests.support.fleet import Fleet, Proxy, wait_until
from tests.support.sending import Post

pytestmark = pytest.mark.slow


@pytest.fixture
def senders(make_fleet: MakeFleet, redis: Redis, server: str) -> Fleet:
    """A fleet that sends in the background, on the session's server."""
    return make_fleet(server, send="background")


@pytest.mark.promise("F1")
@pytest.mark.parametrize("other", ["beside it", "later"])
def test_kill_while_a_code_is_sent_lets_another_process_send_it_long_before_the_lease_ends(
    senders: Fleet, other: str
) -> None:
    workers = [senders.sender() for _ in range(2 if other == "beside it" else 1)]
    task = senders.add("wait")
    (first,) = senders.wait("sending")

    os.kill(first["pid"], signal.SIGKILL)
    since = time.monotonic()
    if other == "later":
        workers.append(senders.sender())
        since = time.monotonic()
    second = senders.wait("sending", 2)[1]
    senders.go()
    (took,) = senders.wait("took")

    assert second["at"] - since < 20
    assert {first["pid"], second["pid"]} == {worker.pid for worker in workers}
    assert first["otp"] == second["otp"]
    assert senders.verify_sent(took).id == task.id
    wait_until(senders.has_sent_all)


def test_kill_after_the_provider_took_a_code_sends_the_same_one_again(senders: Fleet) -> None:
    senders.sender(), senders.sender()

    senders.add("kill")

    first, second = senders.wait("took", 2)
    wait_until(senders.has_sent_all)
    assert second["at"] - first["at"] < 20
    assert first["pid"] != second["pid"]
    assert first["otp"] == second["otp"]
    assert len(senders.events("took")) == 2
    assert senders.verify_sent(first).status is Status.SUCCESS


def test_sigterm_while_a_code_is_sent_lets_it_be_sent_once(senders: Fleet) -> None:
    worker = senders.sender()
    senders.add("wait")
    senders.wait("sending")

    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in senders.log(worker))
    senders.go()

    assert worker.wait(60) == 0
    assert senders.has_sent_all()
    (took,) = senders.events("took")
    assert senders.verify_sent(took).status is Status.SUCCESS
    assert "Traceback" not in senders.log(worker)


def test_redis_killed_while_codes_are_sent_loses_none(make_fleet: MakeFleet, mortal: Server) -> None:
    senders = make_fleet(mortal.url, send="background")
    worker = senders.sender(send_threads=2, redis_timeout=0.5)
    tasks = [senders.add("wait") for _ in range(5)]
    senders.wait("sending", 2)

    mortal.kill()
    senders.go()
    wait_until(lambda: len(senders.events("took")) == 2)
    mortal.start()
    took = senders.wait("took", 5)
    wait_until(senders.has_sent_all)

    assert {event["task"] for event in took} == {task.id for task in tasks}
    assert len(senders.events("took")) == 5
    assert {senders.verify_sent(event).status for event in took} == {Status.SUCCESS}
    assert "Traceback" not in senders.log(worker)


def test_redis_frozen_while_a_code_is_sent_is_no_failure_of_that(
    make_fleet: MakeFleet, mortal: Server
) -> None:
    senders = make_fleet(mortal.url, send="background")
    workers = [senders.sender(send_timeout=2, redis_timeout=0.2) for _ in range(2)]
    senders.add("wait", "EMAIL", "SMS")
    senders.wait("sending")

    mortal.signal(signal.SIGSTOP)
    senders.go()
    senders.wait("took")
    # Longer than the attempt may take; nothing tells when it is over but the time.
    senders.settle(3.5)
    mortal.signal(signal.SIGCONT)
    wait_until(senders.has_sent_all)
    senders.settle()

    (took,) = senders.events("took")
    assert senders.events("failed") == []
    assert senders.verify_sent(took).status is Status.SUCCESS
    for worker in workers:
        assert "given up" not in senders.log(worker)
        assert "Traceback" not in senders.log(worker)


def test_task_that_nobody_can_be_reached_for_fails_once_in_the_fleet(senders: Fleet) -> None:
    workers = [senders.sender(poll=0.2) for _ in range(2)]

    task = senders.add("refuse", "EMAIL", "SMS")

    (failed,) = senders.wait("failed")
    wait_until(senders.has_sent_all)
    senders.settle()
    assert failed["task"] == task.id
    assert len(senders.events("failed")) == 1
    assert [event["method"] for event in senders.events("sending")] == ["EMAIL", "SMS"]
    for worker in workers:
        assert not any(event["otp"] in senders.log(worker) for event in senders.events("sending"))


@pytest.mark.parametrize("step", ["give_up", "sent"])
def test_reply_to_the_report_of_a_send_is_lost(
    post: Post, proxy: Proxy, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = post.hear(task_failed if step == "give_up" else otp_sent)

    def end(task: Task[Any], otp: str) -> None:
        if step == "give_up":
            raise Reject("as told")
        post.email.deliver(task, otp)

    def end_and_lose_the_reply(task: Task[Any], otp: str) -> None:
        # The server has the script from the first send on.
        proxy.cut_next_reply_to = inside.sha_of(f"sends/{step}")
        end(task, otp)

    post.email.moods = [end, end_and_lose_the_reply]
    post.start(redis_url=proxy.url, poll=60)
    tasks = []
    for _ in range(2):
        post.add()
        tasks += told.tasks()
        wait_until(lambda: not post.waiting())
    wait_until(lambda: not inside.service().runtime._senders["EMAIL"]._places.held())
    post.taskflow.stop()

    assert proxy.cuts == 1
    assert len(set(tasks)) == 2
    assert told.rest() == []
    assert len(post.sent) == (0 if step == "give_up" else 2)
    assert "may be sent twice" not in caplog.text
