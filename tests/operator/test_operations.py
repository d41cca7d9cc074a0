"""The operator in Python, and the commands that are thin over it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from redis import Redis

from flask_taskflow import (
    InvalidTask,
    OutboxStrategy,
    Reject,
    Retry,
    SendLimitReached,
    TargetNotFound,
    Task,
    TaskFlow,
)
from flask_taskflow._operator.operations import Operations
from flask_taskflow._store.deliveries import End
from flask_taskflow.testing import travel
from tests.conftest import watch
from tests.operator.test_cli import run
from tests.support import inside
from tests.support.stage import Stage
from tests.support.tasks import refused


@pytest.fixture
def shop(stage: Stage) -> Stage:
    """A stage of two queues, with 3 dead letters of one callback and 2 of the other."""

    def pack(task: Any) -> None:
        raise Reject(str(task.data))

    for queue in ("orders", "letters"):
        stage.taskflow.on_task_verified(queue, name="pack")(pack)
    stage.app(recipient_max_sends=100)
    for data in ("no stock", "no stock", "no price"):
        stage.verified("orders", data)
    for _ in range(2):
        stage.verified("letters", "no stock")
    stage.run()
    return stage


@pytest.fixture
def operations(shop: Stage) -> Operations:
    return shop.taskflow.operations


def dead(operations: Operations, **filters: Any) -> int:
    return len(operations.dead(**filters))


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, 2),
        ({"callback": "pack"}, 2),
        ({"error": "no stock"}, 3),
        ({"error": "Timeout"}, 5),
        ({"before": datetime(2020, 1, 1, tzinfo=UTC)}, 5),
        ({"before": datetime.now(UTC) + timedelta(days=1)}, 2),
    ],
)
@pytest.mark.parametrize("action", ["replay_all", "discard_all"])
def test_dead_letters_are_taken_that_fit(
    shop: Stage, operations: Operations, action: str, filters: dict[str, Any], left: int
) -> None:
    count = getattr(operations, action)("orders", **filters)

    assert (count, dead(operations)) == (5 - left, left)
    assert shop.run() == (count if action == "replay_all" else 0)


def test_dead_letters_are_listed_that_fit(operations: Operations) -> None:
    assert [dead(operations, **filters) for filters in ({}, {"queue": "orders"}, {"count": 1})] == [5, 3, 2]
    assert dead(operations, error="no stock", count=3) == 4
    assert dead(operations, callback="@EMAIL") == 0


class Fax(OutboxStrategy):
    address = None


def test_sends_by_a_method_that_no_release_has_are_seen_and_discarded(stage: Stage) -> None:
    old, new = TaskFlow(), TaskFlow()
    old.register_strategy("FAX")(Fax())
    with stage.make_app(old, send="background").app_context():
        task = old.add_task("q", allowed_methods=["FAX"], recipient={})
        (item,) = inside.store("FAX").claim("q", ["@FAX"], 1).deliveries
        inside.store("FAX").end(End(item, "bury", error="no paper"))

    with stage.make_app(new, send="background").app_context():
        stats = [(each.callback, each.dead) for each in new.operations.stats("q")[0].callbacks]
        dead = [letter.id for letter in new.operations.dead("q")]
        new.operations.discard(dead[0])

        assert stats == [("@FAX", 1)]
        assert dead == [f"{task.id}:@FAX"]
        assert new.operations.dead("q") == []


def test_many_dead_letters_are_replayed_in_batches(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 by a hundred scripts at most."""
    stage.work()
    stage.app()
    stage.verified()
    (ready,), (dead_key,), (meta,) = (
        stage.keys(f"h:work:{kind}") or [""] for kind in ("ready", "dead", "meta")
    )
    dead_key = ready.replace(":ready", ":dead")
    pipe = stage.redis.pipeline()
    for number in range(10_000):
        task_id = f"{number:034}"
        pipe.zadd(dead_key, {f"{number + 9:016x}:{task_id}": 1})
        pipe.hset(meta, task_id, f"1 {number + 9:016x} 0 1 0 1 1 -")
    pipe.execute()

    stage.redis.config_resetstat()
    count = stage.taskflow.operations.replay_all("q")

    assert (count, stage.redis.zcard(ready)) == (10_000, 10_001)
    stats: Any = stage.redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] <= 10_000 / 100


def test_pause_for_a_time_ends_by_itself_unless_another_layer_holds(
    stage: Stage, operations: Operations
) -> None:
    def paused(after: float = 0) -> dict[str, bool]:
        travel(after)
        return {queue.queue: queue.paused for queue in operations.stats()}

    run("pause", "orders", "--for", "2m")
    operations.pause("*", seconds=60)
    operations.pause("letters")
    stage.verified("new")
    states = [paused(), paused(61), paused(60)]
    operations.pause("orders")
    operations.pause("orders", seconds=60)
    operations.pause("*")
    operations.resume("orders")
    states += [paused(61), paused() if operations.resume("*") else {}]

    assert states[:3] == [
        {"letters": True, "new": True, "orders": True},
        {"letters": True, "new": False, "orders": True},
        {"letters": True, "new": False, "orders": False},
    ]
    assert states[3:] == [dict.fromkeys(["letters", "new", "orders"], True), states[2]]
    assert "no duration" in run("pause", "orders", "--for", "soon", code=2)


def test_pause_of_all_is_a_layer_of_its_own(shop: Stage, operations: Operations) -> None:
    operations.pause("orders")
    assert operations.pause("*") == ["letters", "orders"]
    shop.taskflow.on_task_verified("later", name="pack")(lambda task: None)
    for queue in ("orders", "letters", "later"):
        shop.verified(queue, "x")
    held = shop.run()
    assert operations.resume("*") == ["orders"]

    assert (held, shop.run()) == (0, 2)
    assert [queue.paused for queue in operations.stats()] == [False, False, True]
    assert "orders was paused by its name" in run("resume", "--all")
    assert (operations.resume("orders"), shop.run()) == ([], 1)


def test_oldest_is_of_what_could_run_now(stage: Stage) -> None:
    """Of 150 of a higher priority none hides it; a retry that waits does not count."""
    work = stage.work(Retry(after=1000), max_attempts=2)
    stage.app(recipient_max_sends=1000)
    stage.verified()
    stage.run()
    travel(60)

    def oldest() -> float | None:
        (queue,) = stage.taskflow.operations.stats()
        return queue.callbacks[0].oldest

    assert (len(work.tasks), oldest()) == (1, None)
    stage.verified(priority=-5)
    travel(30)
    for number in range(150):
        stage.verified(priority=number)
    assert oldest() == pytest.approx(30, abs=5)
    travel(1000)
    (lease,) = inside.service().keys.deliveries("q", ["work"], "delay")
    assert stage.redis.zcard(lease) == 1
    assert oldest() == pytest.approx(1030, abs=5)


@pytest.mark.parametrize("again", ["due", "replayed"])
def test_what_waits_again_is_no_older_than_that(stage: Stage, again: str) -> None:
    """A retry waited on purpose; a dead letter was dead."""
    stage.work(Retry(after=7200), max_attempts=1 if again == "replayed" else 2)
    stage.app()
    task = stage.verified()
    stage.run()
    travel(7230)
    if again == "replayed":
        stage.taskflow.operations.replay(f"{task.id}:work")
        travel(30)
    # All places are busy: what is due waits with what is ready.
    inside.store().claim("q", ["work"], 0)

    (queue,) = stage.taskflow.operations.stats()

    assert queue.callbacks[0].ready == 1
    assert queue.callbacks[0].oldest == pytest.approx(30, abs=5)
    assert stage.taskflow.health().ok


def test_oldest_is_found_in_a_bounded_time_among_any_number_of_priorities(stage: Stage) -> None:
    stage.work()
    stage.app(recipient_max_sends=1000)
    stage.verified(priority=-5)
    travel(60)
    for number in range(150):
        stage.verified(priority=number)

    stage.redis.config_resetstat()
    (queue,) = stage.taskflow.operations.stats()

    assert queue.callbacks[0].oldest == pytest.approx(60, abs=5)
    assert stage.redis.info("commandstats")["cmdstat_zrevrangebyscore"]["calls"] < 150


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda one: one.stats("x"), "no queue x; there are: letters, orders"),
        (lambda one: one.pause("x"), "no queue x"),
        (lambda one: one.resume("x"), "no queue x"),
        (lambda one: one.dead("orders", callback="x"), "orders has no callback x; it has: pack"),
        (lambda one: one.replay_all("orders", "x"), "has no callback x"),
        (lambda one: one.purge("orders", "x"), "has no callback x"),
        (lambda one: one.move("orders", "pack", "x"), "has no callback x"),
        (lambda one: one.replay("nonsense"), "nonsense is no dead letter"),
        (lambda one: one.discard("a:b"), "a:b is no dead letter"),
    ],
)
def test_what_is_not_there_is_named(operations: Operations, call: Any, told: str) -> None:
    assert told in str(refused(TargetNotFound, call, operations))


@pytest.mark.parametrize(
    "person", ["user:17", "ann@example.com", "ANN@example.com ", "+1 202-555-0110", "pixel"]
)
def test_tasks_are_found_by_an_owner_or_an_address_without_a_look_through_keys(
    stage: Stage, redis: Redis, person: str
) -> None:
    """In all queues, whatever became of them; an address that was left finds nothing, one that came does."""
    stage.app(recipient_max_sends=100)
    recipient = {"email": "ann@example.com", "phone_number": "+12025550110", "device_id": "pixel"}
    ids = [stage.add(queue, owner="user:17", recipient=recipient).id for queue in ("a", "a", "b")]
    moved = stage.add("b", recipient={**recipient, "email": "old@example.com"})
    if "@" in person:
        stage.taskflow.update_recipient(moved.id, {"email": "ann@example.com"})
    stage.taskflow.cancel_task(ids[0])
    found: list[Task[Any]] = []

    sent, scripted = watch(redis, lambda: found.extend(stage.taskflow.operations.find(person)))

    assert {task.id for task in found} == {*ids, *([] if person == "user:17" else [moved.id])}
    assert [task.created_at for task in found] == sorted((task.created_at for task in found), reverse=True)
    assert not {line.split()[0].upper() for line in sent + scripted} & {"SCAN", "KEYS"}
    shown = run("find", person)
    assert [task.id in shown for task in found] == [True] * len(found)
    assert "ann@" not in shown.lower()
    for erased in (ids[1], moved.id):
        stage.taskflow.operations.erase(erased)
        assert erased not in inside.dump(redis)
    travel(2 * 86400)
    assert stage.taskflow.operations.find(person) == []


def test_address_that_one_strategy_refuses_is_that_of_another(stage: Stage) -> None:
    class German(OutboxStrategy):
        def normalise(self, address: str) -> str:
            if not address.startswith("+49"):
                raise InvalidTask("only German numbers")
            return address

    class Plain(OutboxStrategy):
        def normalise(self, address: str) -> str:
            return "".join(char for char in address if char in "+0123456789")

    stage.taskflow.register_strategy("SMS")(German("phone_number"))
    stage.taskflow.register_strategy("WHATSAPP")(Plain("phone_number"))
    stage.app(recipient_max_sends=1)
    person = "+33 6 12 34 56 78"
    options: dict[str, Any] = {"allowed_methods": ["WHATSAPP"], "recipient": {"phone_number": person}}
    task = stage.add(**options)
    refused(SendLimitReached, partial(stage.add, **options))

    assert [found.id for found in stage.taskflow.operations.find(person)] == [task.id]
    assert stage.taskflow.unblock(person) == 1
    stage.add(**options)


def test_nobody_is_found_in_a_sentence_and_what_is_no_person_is_refused(stage: Stage, redis: Redis) -> None:
    stage.app()
    stage.taskflow.update_recipient(
        stage.add(recipient={"email": "old@example.com"}).id, {"email": "new@example.com"}
    )
    (forged,) = inside.service().keys.listings(
        inside.service().keys.tag("q"), addresses=inside.service().keyring.recipients("device_id", "evil")
    )
    redis.zadd(forged, {stage.add().id: 9e12, "junk": 9e12})

    for person in ("nobody@example.com", "old@example.com", "user:1", "evil"):
        assert stage.taskflow.operations.find(person) == []
        assert run("find", person) == "No task that is kept has this address or owner.\n"
    assert run("find", "evil", "--json") == "[]\n"
    bad: list[Any] = ["", "two\nlines", "x" * 2000, 7, None]
    for each in bad:
        assert "no address and no owner" in str(refused(InvalidTask, stage.taskflow.operations.find, each))
    assert run("find", "", code=1) == "Error: InvalidTask: this is usable as no address and no owner\n"


def test_what_an_operator_changes_is_in_the_audit_log(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_taskflow.audit")
    caplog.clear()

    operations.replay(operations.dead("orders")[0].id)
    run("discard", "--all", "orders", "--error", "price", "--yes")

    told = [(r.action, r.by, r.queue, r.count) for r in caplog.records if r.message == "operated"]  # type: ignore[attr-defined]
    assert told == [("replay", "app", "orders", 1), ("discard_all", "command", "orders", 0)]


def test_commands_take_all_or_one(shop: Stage) -> None:
    assert (
        run("replay", "--all", "orders", "--before", "2020-01-01") == "0 dead letters of orders run again.\n"
    )
    assert run("replay", "--all", "orders", "--error", "stock") == "2 dead letters of orders run again.\n"
    assert "1 dead letters of orders are forgotten" in run("discard", "--all", "orders", text="y\n")
    for words in (["pause"], ["pause", "orders", "--all"], ["resume"]):
        assert "name a queue, or say --all" in run(*words, code=2)
    run("pause", "--all")
    run("pause", "orders")
    assert "still held" in run("resume", "orders")
