"""Who is woken by a verification: one process of those that wait, and whoever has receivers of the signal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flask_taskflow import task_verified
from flask_taskflow._store.deliveries import Wanted
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.stage import BELL, Stage

NAMES = ["one", "two"]


class Waiting:
    """A process as Redis sees it: subscribed to its channel, and it looks for work.

    :param names: the callbacks that it runs.
    """

    def __init__(self, stage: Stage, owner: str, names: list[str] = NAMES) -> None:
        self.owner, self.names = owner, names
        self.store = inside.store()
        self.pubsub = stage.redis.pubsub()
        self.pubsub.subscribe(inside.service().keys.presence(owner))
        assert self.pubsub.get_message(timeout=60)["type"] == "subscribe"

    def peek(self, *, waits: bool = True) -> Waiting:
        self.store.peek([("q", self.names)], self.owner, waits=waits)
        # It is told itself that it is heard.
        assert self.pubsub.get_message(timeout=60)["data"] == b""
        return self

    def claim(self, places: int) -> int:
        return len(self.store.turn("q", self.names, (), Wanted(places, places), owner=self.owner).deliveries)

    def woken(self) -> int:
        """Return how often it was woken."""
        count = 0
        while (message := self.pubsub.get_message(timeout=0.05)) is not None:
            assert message["data"].decode() == inside.service().keys.tag("q")
            count += 1
        return count

    def die(self) -> None:
        self.pubsub.close()


@pytest.fixture
def bells(stage: Stage) -> Callable[[], list[str]]:
    """Return what was told to all, and what was told to those with receivers, since it was asked last."""
    for name in NAMES:
        stage.taskflow.on_task_verified("q", name=name)(lambda task: None)
    stage.app(autostart=False, recipient_max_sends=1000)
    pubsub = stage.redis.pubsub()
    pubsub.subscribe(BELL, f"{BELL}:told")
    for _ in range(2):
        pubsub.get_message(timeout=60)

    def heard() -> list[str]:
        found = []
        while (message := pubsub.get_message(timeout=0.05)) is not None:
            found.append(message["channel"].decode().removeprefix(BELL))
        return found

    return heard


@pytest.mark.parametrize("how", ["peek", "turn"])
def test_one_is_woken_whoever_waits_longest_then_all_are_told(
    stage: Stage, bells: Callable[[], list[str]], how: str
) -> None:
    some = [Waiting(stage, name) for name in "abc"]
    for each in some:
        each.peek() if how == "peek" else each.claim(4)

    woken = []
    for _ in range(4):
        stage.verified()
        woken.append([each.woken() for each in some])

    assert woken == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert bells() == [":told", ":told", ":told", ""]


def test_who_is_gone_or_has_no_place_is_passed_by(stage: Stage, bells: Callable[[], list[str]]) -> None:
    gone, full, busy, last = (Waiting(stage, name) for name in ("gone", "full", "busy", "last"))
    gone.peek().die()
    full.peek(waits=False)
    stage.verified()
    assert (busy.claim(1), bells()) == (1, [""])
    last.peek() if last.claim(1) else None
    last.claim(4)

    stage.verified()

    assert [each.woken() for each in (full, busy, last)] == [0, 0, 1]


def test_each_callback_has_somebody_who_runs_it(stage: Stage, bells: Callable[[], list[str]]) -> None:
    one, both, two = Waiting(stage, "a", ["one"]), Waiting(stage, "b"), Waiting(stage, "c", ["two"])
    one.peek()
    stage.verified()
    assert (one.woken(), bells()) == (1, [""]), "nobody waited for the other one"

    while one.claim(4):
        pass
    while two.claim(4):
        pass
    both.peek()
    stage.verified()

    assert one.woken() == 1
    assert both.woken() + two.woken() == 1, "whichever of them waited longer"


def test_whoever_leaves_something_wakes_the_next(stage: Stage, bells: Callable[[], list[str]]) -> None:
    first, second = Waiting(stage, "a").peek(), Waiting(stage, "b").peek()
    stage.verified()
    assert [first.woken(), second.woken()] == [1, 0]

    first.claim(1)

    assert second.woken() == 1
    assert second.claim(4) == 1


@pytest.mark.parametrize("places", [2, 4, 8])
def test_whoever_has_a_place_left_stands_in_line_beside_what_it_runs(
    stage: Stage, bells: Callable[[], list[str]], places: int
) -> None:
    busy = Waiting(stage, "a", ["one"])
    stage.verified()

    assert busy.claim(places) == 1
    stage.verified()

    assert busy.woken() == 1


def test_call_is_handed_on_to_somebody_who_runs_the_same(
    stage: Stage, bells: Callable[[], list[str]]
) -> None:
    """And nobody else: whoever has no use for it stays in line."""
    full, other, useful = (
        Waiting(stage, name, [callback]) for name, callback in (("a", "one"), ("b", "two"), ("c", "one"))
    )
    other.peek()
    useful.peek()

    full.store.hand_on("q", full.names, full.owner)
    assert [other.woken(), useful.woken()] == [0, 1]

    useful.peek()
    useful.store.hand_on("q", useful.names, useful.owner)
    stage.verified()
    assert [other.woken(), useful.woken()] == [1, 0]


def test_callback_that_nobody_waits_for_empties_no_line(stage: Stage, bells: Callable[[], list[str]]) -> None:
    some = [Waiting(stage, name, ["one"]).peek() for name in "abc"]

    stage.verified()

    assert sum(each.woken() for each in some) == 1
    assert bells() == [""]


def test_whoever_looks_again_and_again_keeps_its_turn_and_writes_nothing(
    stage: Stage, bells: Callable[[], list[str]]
) -> None:
    first, second = Waiting(stage, "a").peek(), Waiting(stage, "b").peek()
    before = stage.redis.info("persistence")["rdb_changes_since_last_save"]

    first.peek()

    assert stage.redis.info("persistence")["rdb_changes_since_last_save"] == before
    stage.verified()
    assert [first.woken(), second.woken()] == [1, 0]


def test_process_that_stops_leaves_the_line(stage: Stage) -> None:
    stage.work()
    stage.start()
    wait_until(lambda: bool(stage.keys("waiting")))

    stage.taskflow.stop(0)

    assert not stage.keys("waiting")


def test_queue_without_callbacks_rings_for_those_who_may_have_one_by_now(
    stage: Stage, bells: Callable[[], list[str]]
) -> None:
    stage.verified("other")

    assert bells() == [""]


def test_sends_wait_for_their_own_bell_alone(stage: Stage, bells: Callable[[], list[str]]) -> None:
    sender = Waiting(stage, "a", ["@EMAIL"])
    sender.peek()

    stage.verified()

    assert (sender.woken(), bells()) == (0, [""])


def test_key_that_was_spoiled_wakes_all(stage: Stage, bells: Callable[[], list[str]]) -> None:
    stage.redis.set(inside.service().keys.of_queue("q", "waiting")[0], "spoiled")
    one = Waiting(stage, "a").peek()

    stage.verified()

    assert (one.claim(4), bells()) == (2, [""])


def test_receiver_that_comes_late_hears_of_what_somebody_was_woken_for(stage: Stage) -> None:
    work = stage.work()
    stage.start()
    wait_until(lambda: bool(stage.keys("waiting")))
    ear = stage.hear(task_verified)

    task = stage.verified()

    assert ear.tasks() == [task.id]
    assert work.begun.acquire(timeout=60)
