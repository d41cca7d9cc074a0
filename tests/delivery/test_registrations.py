"""Callbacks that come, go and are renamed while tasks are verified: nothing is lost, nothing runs twice."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from redis import Redis, ResponseError

from flask_taskflow import OutboxStrategy, Task, TaskFlow, current_delivery
from flask_taskflow._operator.doctor import examine
from flask_taskflow._service import current_service
from flask_taskflow._store.deliveries import End, Wanted
from flask_taskflow._store.registrations import Registration
from flask_taskflow.testing import Outbox, redis_server, travel
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.stage import Stage

#: What ran: the release, the task's data, the delivery's id.
Runs = list[tuple[str, Any, str]]


#: Three functions: the same one, registered again, would take its own place.
FUNCTIONS: list[Callable[[Callable[[Any], None]], Callable[[Any], None]]] = [
    lambda tell: lambda task: tell(task),
    lambda tell: lambda task: tell(task),
    lambda tell: lambda task: tell(task),
]


def _tell(runs: Runs, name: str, task: Task[Any]) -> None:
    runs.append((name, task.data, current_delivery.id))


class Release:
    """A process of one release: an extension of its own, whose callbacks of one queue tell of themselves."""

    def __init__(self, stage: Stage, name: str, runs: Runs, *callbacks: dict[str, Any]) -> None:
        self._stage = stage
        self.taskflow = TaskFlow()
        self.taskflow._channels = stage.taskflow._channels
        for make, options in zip(FUNCTIONS, callbacks, strict=False):
            as_name = options.get("name", name)
            tell = partial(
                lambda as_name, task: runs.append((as_name, task.data, current_delivery.id)), as_name
            )
            self.taskflow.on_task_verified("transfers", **options)(make(tell))
        self.app: Flask = stage.make_app(self.taskflow, recipient_max_sends=1000, poll=0.1)

    def confirm(self, data: Any) -> Task[Any]:
        with self.app.app_context():
            task = self.taskflow.add_task(
                "transfers", data, allowed_methods=["EMAIL"], recipient={"email": f"{data}@example.com"}
            )
            return self.taskflow.verify(task.id, "EMAIL", self._stage.box[-1].otp)

    def run(self) -> int:
        with self.app.app_context():
            return self.taskflow.run_due()

    def start(self) -> None:
        with self.app.app_context():
            self.taskflow.start()

    def stop(self) -> None:
        with self.app.app_context():
            self.taskflow.stop()


@pytest.fixture
def runs() -> Runs:
    return []


def test_callback_registered_between_two_verifications_runs_for_the_second(stage: Stage, runs: Runs) -> None:
    release = Release(stage, "one", runs, {"name": "pay"})
    release.confirm(1)

    release.taskflow.on_task_verified("transfers", name="notify")(partial(_tell, runs, "notify"))
    release.confirm(2)
    release.run()

    assert sorted((name, data) for name, data, _ in runs) == [("notify", 2), ("pay", 1), ("pay", 2)]


@pytest.mark.usefixtures("app")
def test_task_of_a_queue_without_callbacks_is_told_of_once_and_found_by_the_doctor(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.taskflow.on_task_verified("transfers")(print)
    stage.verified("transfers")
    for _ in range(3):
        stage.verified("tranfers")

    told = [line for line in caplog.messages if "no callback is registered" in line]
    found = [item for item in examine(current_service()) if item.subject == "tranfers"]

    assert len(told) == 1
    assert "did you mean transfers?" in told[0]
    assert [(item.level, item.text.split()[0]) for item in found] == [("bad", "3")]
    assert "did you mean transfers?" in found[0].cure


def test_task_of_a_queue_that_another_process_serves_is_not_told_of(
    stage: Stage, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    Release(stage, "worker", runs, {}).confirm(1)

    Release(stage, "web", runs).confirm(2)

    assert "no callback is registered" not in caplog.text


def test_callbacks_that_register_later_get_what_was_verified_while_there_was_none(
    stage: Stage, runs: Runs
) -> None:
    web = Release(stage, "web", runs)
    for number in (1, 2):
        web.confirm(number)
    worker = Release(stage, "worker", runs, {"name": "pay"}, {"name": "notify"})

    counts = [worker.run(), worker.run()]
    newer = Release(stage, "newer", runs, {"name": "pay"}, {"name": "notify"}, {"name": "audit"})
    counts.append(newer.run())
    web.confirm(3)
    counts.append(newer.run())

    assert counts == [4, 0, 0, 3]
    assert sorted((name, data) for name, data, _ in runs) == [
        ("audit", 3), ("notify", 1), ("notify", 2), ("notify", 3), ("pay", 1), ("pay", 2), ("pay", 3),
    ]  # fmt: skip


def test_task_waits_for_a_callback_for_its_retention_only(stage: Stage, runs: Runs) -> None:
    Release(stage, "web", runs).confirm(1)
    worker = Release(stage, "worker", runs, {})

    with worker.app.app_context():
        travel(86_401)

    assert worker.run() == 0
    assert stage.keys("unclaimed") == []


def test_tasks_that_wait_for_a_callback_are_bounded(stage: Stage, runs: Runs) -> None:
    web = Release(stage, "web", runs)
    web.confirm(1)
    (key,) = stage.keys("unclaimed")
    stage.redis.zadd(key, {f"{number:034}": stage.redis.time()[0] * 1000 for number in range(10_050)})

    last = web.confirm(2)

    assert stage.redis.zcard(key) == 10_000
    assert stage.redis.zscore(key, last.id) is not None


@pytest.mark.parametrize("aliases", [{}, {"aliases": ["pay"]}])
def test_rename_in_a_rolling_deploy_is_no_second_payment(
    stage: Stage, runs: Runs, aliases: dict[str, Any]
) -> None:
    """The old and the new release verify and run in turn; by the queue's name, or by an alias."""
    old = Release(stage, "old", runs, {"name": "pay"} if aliases else {})
    old.confirm(0)
    new = Release(stage, "new", runs, {"name": "transfer", **aliases} if aliases else {})

    for number in range(1, 9):
        (old, new)[number % 2].confirm(number)
        (old, new)[number // 2 % 2].run()
    old.run()
    new.confirm(9)
    new.run()

    assert sorted(data for _, data, _ in runs) == list(range(10))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("aliases", [{}, {"aliases": ["pay"]}])
def test_rename_of_a_busy_callback_pays_each_of_a_thousand_once(
    stage: Stage, runs: Runs, aliases: dict[str, Any]
) -> None:
    """The old release alone, then both, then the new one alone, their threads running all the while."""
    old = Release(stage, "old", runs, {"name": "pay"} if aliases else {})
    old.start()
    for number in range(200):
        old.confirm(number)
    new = Release(stage, "new", runs, {"name": "transfer", **aliases} if aliases else {})
    new.start()

    for number in range(200, 800):
        (old, new)[number % 2].confirm(number)
    old.stop()
    for number in range(800, 1000):
        new.confirm(number)
    wait_until(lambda: len(runs) >= 1000, within=60)
    new.stop()

    assert sorted(data for _, data, _ in runs) == list(range(1000))


def test_release_that_was_rolled_back_runs_what_the_new_one_left(stage: Stage, runs: Runs) -> None:
    old = Release(stage, "old", runs, {"name": "pay"})
    old.run()
    new = Release(stage, "new", runs, {"name": "transfer", "aliases": ["pay"]})
    new.confirm(1)

    again = Release(stage, "again", runs, {"name": "pay"})
    again.confirm(2)
    again.run()

    assert sorted(runs) == [("pay", data, f"{name}:transfer") for data, name in _ids(runs)]
    assert new.run() == 0


def _ids(runs: Runs) -> list[tuple[Any, str]]:
    return sorted((data, delivery.partition(":")[0]) for _, data, delivery in runs)


@pytest.mark.parametrize(
    "renames",
    [
        [("a", []), ("b", ["a"]), ("c", ["b"])],
        [("a", []), ("b", ["a"]), ("a", ["b"])],
        [("b", []), ("c", ["b"]), ("a", ["c"]), ("b", ["a"])],
        [("a", []), ("b", ["a"]), ("a", [])],
    ],
    ids=["again", "back", "round", "back without an alias"],
)
def test_callback_that_was_renamed_more_than_once_runs_once_for_each_task(
    stage: Stage, runs: Runs, renames: list[tuple[str, list[str]]]
) -> None:
    """Redis remembers each name that took the place of another one."""
    confirmed: list[str] = []
    for name, aliases in renames:
        release = Release(stage, name, runs, {"name": name, "aliases": aliases})
        for number in range(2):
            confirmed.append(f"{name}{number}{len(confirmed)}")
            release.confirm(confirmed[-1])
        release.run()

    assert sorted(data for _, data, _ in runs) == sorted(confirmed)


def test_callback_that_was_renamed_runs_no_more_at_once_than_may(stage: Stage, runs: Runs) -> None:
    Release(stage, "old", runs, {"name": "old", "max_running": 2}).confirm(1)
    release = Release(stage, "new", runs, {"name": "new", "aliases": ["old"], "max_running": 2})
    for number in range(2, 5):
        release.confirm(number)
    with release.app.app_context():
        store, names = inside.store(), inside.engine().served()["transfers"]
        first = store.turn("transfers", names, (), Wanted(64, 64), owner="-").deliveries
        second = store.turn("transfers", names, [End(first[0], "ack")], Wanted(64, 64), owner="-").deliveries

    assert sorted(item.callback for item in first) == ["new", "old"]
    assert len(second) == 1


def test_attempt_ends_under_the_name_that_it_began_under(stage: Stage, runs: Runs) -> None:
    release = Release(stage, "old", runs)
    Release(stage, "new", runs, {"name": "b", "aliases": ["a"]}).run()

    def rename(task: Task[Any]) -> None:
        Release(stage, "newest", runs, {"name": "c", "aliases": ["a"]}).run()
        with release.app.app_context():
            current_service().runtime._engine_for_due(None)._housekeeping.tidy()
        raise ValueError("no")

    release.taskflow.on_task_verified("transfers", name="a", max_attempts=1)(rename)
    release.confirm(1)
    release.run()

    with release.app.app_context():
        assert [letter.id.partition(":")[2] for letter in release.taskflow.operations.dead()] == ["b"]
    assert runs == []


def test_what_was_verified_before_any_callback_waits_while_the_key_of_one_is_spoiled(
    stage: Stage, runs: Runs
) -> None:
    web = Release(stage, "web", runs)
    web.confirm(1)
    (key,) = stage.keys("unclaimed")
    spoiled = key.replace("unclaimed", "h:notify:meta")
    stage.redis.set(spoiled, 1)
    worker = Release(stage, "worker", runs, {"name": "pay"}, {"name": "notify"})
    with pytest.raises(ResponseError):
        worker.run()

    stage.redis.delete(spoiled)
    Release(stage, "later", runs, {"name": "pay"}, {"name": "notify"}).run()

    assert sorted(name for name, _, _ in runs) == ["notify", "pay"]


def test_what_runs_later_keeps_its_time_when_it_moves(stage: Stage) -> None:
    work = stage.work(name="new")
    stage.work(name="old")
    stage.app()
    task = stage.verified(run_at=datetime.now(UTC) + timedelta(hours=1))
    stage.redis.delete(*stage.keys("h:new:meta", "h:new:body", "h:new:delay"))

    moved = stage.taskflow.operations.move("q", "old", "new")
    counts = [stage.run(), stage.run(after=3700)]

    assert (moved, counts) == (1, [0, 1])
    assert [each.id for each in work.tasks] == [task.id]


def _states(stage: Stage, task: Task[Any]) -> dict[str, tuple[str, int]]:
    outcomes = stage.taskflow.get_task(task.id).outcomes
    return {name: (told.state.value, told.attempts) for name, told in outcomes.items()}


def test_what_the_other_callback_is_done_with_does_not_move(stage: Stage) -> None:
    """Of a rename without aliases: both have each task, and one of them has run."""
    old = stage.work(name="old", max_attempts=1)
    stage.app()
    late = stage.verified()
    new = stage.work(ValueError("no"), name="new", max_attempts=1)
    del stage.taskflow._callbacks["q"]["old"]
    dead, done = stage.verified(), stage.verified()
    stage.run()

    moved = stage.taskflow.operations.move("q", "old", "new")
    stage.run()

    assert moved == 1
    assert [task.id for task in new.tasks] == [dead.id, done.id, late.id]
    assert [_states(stage, task) for task in (late, dead, done)] == [
        {"new": ("done", 1)},
        {"new": ("dead", 1), "old": ("waiting", 0)},
        {"new": ("done", 1), "old": ("waiting", 0)},
    ]
    assert old.tasks == []


def test_what_moves_is_told_of_as_waiting_or_dead(stage: Stage) -> None:
    stage.work(name="old")
    stage.app()
    dead, delayed, lost, ready = (stage.verified() for _ in range(4))
    store = inside.store()
    first, second, _ = store.claim("q", ["old"], 3).deliveries
    store.end(End(first, "bury"))
    store.end(End(second, "fail", delay=60))
    travel(31)

    moved = inside.service().operations.move("q", "old", "new")

    assert moved == 4
    assert [_states(stage, task)["new"] for task in (dead, delayed, lost, ready)] == [
        ("dead", 1),
        *[("waiting", 0)] * 3,
    ]
    due = [stage.taskflow.get_task(task.id).outcomes["new"].next_at is not None for task in (delayed, lost)]
    assert due == [True, False]


def test_move_goes_on_behind_what_stays(stage: Stage) -> None:
    """The other callback has the first of them already."""
    stage.work(name="old")
    stage.app(recipient_max_sends=10_000)
    for _ in range(505):
        stage.verified()
    stage.work(name="new")
    for task in [stage.verified() for _ in range(3)]:
        stage.redis.hdel(stage.keys("h:new:meta")[0], task.id)
    (old,) = stage.keys("h:old:meta")
    new = old.replace("h:old", "h:new")
    for task_id in list(stage.redis.hgetall(old))[:502]:
        stage.redis.hset(new, task_id, stage.redis.hget(old, task_id) or b"")

    moved = stage.taskflow.operations.move("q", "old", "new")

    assert moved == 6
    assert stage.redis.hlen(old) == 502


def test_what_waits_and_what_is_dead_moves_to_another_callback(stage: Stage, runs: Runs) -> None:
    old = Release(stage, "old", runs, {"name": "pay", "max_attempts": 1})
    old.taskflow._callbacks["transfers"]["pay"] = _failing(old.taskflow)
    old.confirm("dead")
    old.run()
    old.confirm("ready")
    new = Release(stage, "new", runs, {"name": "transfer"})

    result = new.app.test_cli_runner().invoke(args=["taskflow", "move", "transfers", "pay", "transfer"])

    assert result.output.startswith("Error: transfers has no callback transfer; it has: pay")
    new.run()
    result = new.app.test_cli_runner().invoke(args=["taskflow", "move", "transfers", "pay", "transfer"])
    dead = new.app.test_cli_runner().invoke(args=["taskflow", "dead", "transfers"]).output
    assert result.output == "2 deliveries of pay are those of transfer now.\n"
    assert ":transfer" in dead
    assert new.run() == 1
    assert [(name, data) for name, data, _ in runs] == [("transfer", "ready")]


def _failing(taskflow: TaskFlow) -> Any:
    def fail(task: Task[Any]) -> None:
        raise ValueError("no")

    return replace(taskflow._callbacks["transfers"]["pay"], function=fail)


def test_purge_of_one_callback_leaves_the_others(stage: Stage, runs: Runs) -> None:
    release = Release(stage, "one", runs, {"name": "pay"}, {"name": "notify"})
    release.confirm(1)

    result = release.app.test_cli_runner().invoke(args=["taskflow", "purge", "transfers", "pay", "--yes"])

    assert result.output == "1 deliveries of transfers are forgotten.\n"
    release.run()
    assert [(name, data) for name, data, _ in runs] == [("notify", 1)]


def test_registration_joins_what_redis_knows_with_a_process_own() -> None:
    known = Registration.read([b"pay", b"notify"], [b"pay", b"transfer"])

    joined = known.joined(Registration(frozenset({"transfer"}), {"old": "transfer"}))

    assert joined.current() == ["notify", "transfer"]
    assert joined.flat_aliases() == ["old", "transfer", "pay", "transfer"]
    assert Registration().epoch() == ""


@pytest.mark.promise("S61")
@pytest.mark.parametrize("spoiled", [{b"\xff": b"1"}, {b"#alias:pay": b"\xff"}])
def test_names_that_are_none_hold_no_verification_up(
    stage: Stage, runs: Runs, spoiled: dict[Any, Any]
) -> None:
    """Somebody wrote them to Redis: a step and its caller must see the same callbacks all the same."""
    release = Release(stage, "one", runs, {"name": "pay"})
    release.confirm(0)
    (handlers,) = stage.keys("handlers")
    stage.redis.hset(handlers, mapping={**spoiled, "#epoch": "changed"})

    release.confirm(1)
    release.run()

    assert [data for _, data, _ in runs] == [0, 1]


@pytest.mark.promise("S61")
def test_ids_that_are_none_hold_no_registration_up(stage: Stage, runs: Runs) -> None:
    before = Release(stage, "none", runs)
    before.confirm(1)
    (unclaimed,) = stage.keys("unclaimed")
    # More than one step answers, and each of them before the task.
    stage.redis.zadd(unclaimed, {b"\xff%d" % number: number for number in range(150)})

    Release(stage, "one", runs, {"name": "pay"}).run()

    assert [data for _, data, _ in runs] == [1]
    assert stage.keys("unclaimed") == []


@pytest.mark.slow
def test_server_of_another_locale_has_the_same_callbacks(
    taskflow: TaskFlow, box: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lua sorts by it: one that passes over `_` must not make steps and their callers disagree."""
    folder = tmp_path / "en_US.UTF-8"
    if shutil.which("localedef"):
        subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", folder], check=False, capture_output=True)
    if not folder.exists():
        pytest.skip("no locale can be made here")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    runs: Runs = []
    with redis_server() as url, Redis.from_url(url) as redis, ExitStack() as stack:
        assert redis.eval("return tostring('send_mail' < 'sendfax')", 0) == b"false"
        taskflow.register_strategy("EMAIL")(OutboxStrategy("email", messages=box))
        stage = Stage(taskflow, url, redis, stack, box)
        release = Release(stage, "one", runs, {"name": "send_mail"}, {"name": "sendfax"})

        release.confirm(1)
        release.run()

    assert sorted(name for name, _, _ in runs) == ["send_mail", "sendfax"]


@pytest.mark.promise("S61")
def test_names_that_are_none_hold_no_cancellation_up(stage: Stage, runs: Runs) -> None:
    release = Release(stage, "one", runs, {"name": "pay"})
    with release.app.app_context():
        taskflow, later = release.taskflow, datetime.now(UTC) + timedelta(days=1)
        task = taskflow.add_task(
            "transfers", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"}, run_at=later
        )
        taskflow.verify(task.id, "EMAIL", stage.box[-1].otp)
        stage.redis.hset(stage.keys("handlers")[0], b"\xff", b"1")

        assert taskflow.cancel_task(task.id).status == "CANCELLED"
