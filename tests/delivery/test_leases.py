"""Leases: who may report on a delivery, and what becomes of those of processes that died."""

from __future__ import annotations

import threading

import pytest

from flask_taskflow import callback_dead, callback_succeeded
from flask_taskflow._delivery.attempts import Attempt
from flask_taskflow._delivery.outbox import Ended, Outbox
from flask_taskflow._delivery.running import ReportUntil
from flask_taskflow._store.deliveries import End
from flask_taskflow._store.records import Claimed
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.stage import Stage


@pytest.fixture
def claimed(stage: Stage) -> Claimed:
    """A delivery that a process has claimed which does nothing more."""
    stage.app()
    stage.work(max_attempts=1)
    stage.verified()
    return claim()[0]


def claim() -> list[Claimed]:
    return [*inside.store().claim("q", ["work"], 1).deliveries]


def test_lost_lease_runs_again_then_waits_then_is_dead(stage: Stage) -> None:
    dead, work = stage.hear(callback_dead), stage.work(max_attempts=1)
    stage.app(max_lost=2)
    task = stage.verified()
    lost = []

    for _ in range(4):
        lost += [(item.token, item.lost, item.failures) for item in claim()]
        travel(30.1)
    stage.run()

    assert lost == [(1, 0, 0), (2, 1, 0), (3, 2, 0)]
    (told,) = dead.rest()
    assert (told["task"].id, told["delivery"].attempt) == (task.id, 4)
    assert str(told["error"]) == "lost with its process 3 times"
    assert work.tasks == []
    assert stage.keys("lease") == []


def test_reports_hold_only_for_the_newest_token(claimed: Claimed) -> None:
    store = inside.store()
    travel(31)
    (second,) = claim()

    failures = [End(claimed, "fail", 1), End(claimed, "bury")]
    stale = [store.end(end) for end in (End(claimed, "ack"), *failures, End(claimed, "release"))]
    lost = store.extend("q", [claimed, second])
    reports = [store.ack(second), store.ack(second)]

    assert stale == [False] * 4
    assert lost == [claimed]
    assert reports == [True, False]


def test_late_ack_counts_while_nobody_has_claimed_again(stage: Stage, claimed: Claimed) -> None:
    store = inside.store()

    failed = [store.end(End(claimed, "fail", 60, "timed out")) for _ in range(2)]
    acked = store.ack(claimed)

    assert (failed, acked) == ([True, False], True)
    assert stage.keys("delay", "meta", "body") == []


class StoppedMeanwhile(Outbox):
    """One to which an end comes in the moment in which the engine stops, before its last turn or after it."""

    def __init__(self, seen: bool) -> None:
        super().__init__()
        self.stopped, self._seen = threading.Event(), seen

    def put(self, ended: Ended) -> None:
        super().put(ended)
        self.stopped.set()
        if self._seen:
            self.queues()


@pytest.mark.parametrize("seen", [False, True])
def test_end_is_reported_by_the_last_turn_or_by_who_brought_it(claimed: Claimed, seen: bool) -> None:
    outbox, told = StoppedMeanwhile(seen), list[bool]()
    report = ReportUntil(inside.store(), outbox, outbox.stopped)

    report.end(Attempt(claimed, 60), End(claimed, "ack"), told.append)

    assert (told, len(outbox.attempts())) == (([], 1) if seen else ([True], 0))


def test_released_delivery_runs_again_and_counts_nothing(stage: Stage) -> None:
    work = stage.work()
    stage.app()
    stage.verified()
    (item,) = claim()
    released = inside.store().release(item)
    stage.run()

    assert (released, work.attempts) == (True, [1])


@pytest.mark.promise("F10")
def test_clock_that_steps_over_a_lease_takes_it_from_nobody(stage: Stage) -> None:
    stage.work(name="work")
    stage.app()
    engine, other = inside.engine(), inside.store()
    engine.turn()
    stage.verified()
    (item,) = other.claim("q", ["work"], 1).deliveries

    # As if the server had gone two minutes forwards since it was asked last.
    engine._store.clocks._ahead[""] -= 120_000
    travel(120)
    engine.wake()
    engine.turn()

    assert other.extend("q", [item]) == []
    assert other.ack(item)


@pytest.mark.slow
def test_callback_longer_than_its_lease_runs_once(stage: Stage) -> None:
    succeeded = stage.hear(callback_succeeded)
    # Some leases; another process would claim at the end of the first.
    work = stage.work(lambda task: threading.Event().wait(2.5))
    stage.start(lease=1, poll=0.1)

    task = stage.verified(data={"of": ["what", "cannot", "be", "hashed"]})

    assert succeeded.tasks() == [task.id]
    assert work.attempts == [1]
