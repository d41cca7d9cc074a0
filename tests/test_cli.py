"""The operator's commands, on a real server; `worker` is in test_worker.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import MakeApp
from flask import Flask
from flask.cli import FlaskGroup

from flask_taskflow import Reject, Task, TaskFlow
from flask_taskflow._cli import taskflow_cli
from flask_taskflow.testing import Outbox, redis_server, travel

Run = Callable[..., Result]


@pytest.fixture
def shop(make_app: MakeApp, taskflow: TaskFlow) -> Flask:
    """An app whose callback dies of a task with data ``"bad"``."""

    @taskflow.on_task_verified("orders", name="pack")
    def pack(task: Task[Any]) -> None:
        if task.data == "bad":
            raise Reject("no such article")

    return make_app()


@pytest.fixture
def run(shop: Flask) -> Run:
    def invoke(*words: str, code: int = 0, text: str | None = None) -> Result:
        result = shop.test_cli_runner().invoke(taskflow_cli, list(words), input=text)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def add(shop: Flask, taskflow: TaskFlow, box: Outbox) -> Callable[..., Task[Any]]:
    def add_one(data: str = "good", *, verify: bool = True, ttl: float = 600) -> Task[Any]:
        with shop.app_context():
            address = f"somebody{len(box)}@example.com"
            task = taskflow.add_task(
                "orders",
                data,
                allowed_methods=["EMAIL"],
                recipient={"email": address},
                summary="An order",
                ttl=ttl,
            )
            return taskflow.verify(task.id, "EMAIL", box[-1].otp) if verify else task

    return add_one


def work(shop: Flask, taskflow: TaskFlow) -> int:
    with shop.app_context():
        return taskflow.run_due()


def test_dead_letter_is_found_understood_replayed_and_done(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]]
) -> None:
    task = add("bad")
    work(shop, taskflow)

    listed = run("dead").output
    shown = run("show", task.id).output
    with shop.app_context():
        taskflow._callbacks["orders"].clear()
        taskflow.on_task_verified("orders", name="pack")(lambda task: None)
    replayed = run("replay", f"{task.id}:pack").output
    ran = work(shop, taskflow)

    assert f"{task.id}:pack" in listed
    assert "Reject: no such article (at " in listed
    assert "SUCCESS" in shown
    assert "dead" in shown
    assert "somebody" not in shown
    assert replayed == f"{task.id}:pack runs again.\n"
    assert ran == 1
    assert run("dead", "--json").output.strip() == "[]"


def test_replay_of_what_is_no_dead_letter_says_so(run: Run, add: Callable[..., Task[Any]]) -> None:
    task = add()

    for delivery in (f"{task.id}:pack", f"{task.id}:other", "nonsense", f"{'a' * 34}:pack"):
        assert "is no dead letter" in run("replay", delivery, code=1).output


def test_discard_asks_then_forgets(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]]
) -> None:
    task = add("bad")
    work(shop, taskflow)

    refused = run("discard", f"{task.id}:pack", code=1, text="n\n").output
    kept = run("dead", "orders").output
    run("discard", f"{task.id}:pack", "--yes")

    assert "Aborted" in refused
    assert task.id in kept
    assert task.id not in run("dead").output


def test_stats_count_every_state(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]]
) -> None:
    add("bad")
    work(shop, taskflow)
    add(), add(), add(verify=False)
    with shop.app_context():
        travel(60)

    (queue,) = json.loads(run("stats", "--json").output)
    lines = run("stats").output.splitlines()

    oldest = queue["callbacks"][0].pop("oldest")
    assert oldest == pytest.approx(60, abs=5)
    assert queue == {
        "queue": "orders",
        "pending": 1,
        "paused": False,
        "callbacks": [{"callback": "pack", "ready": 2, "delayed": 0, "running": 0, "dead": 1}],
    }
    assert lines[0].split() == [
        "queue",
        "pending",
        "callback",
        "ready",
        "delayed",
        "running",
        "dead",
        "oldest",
    ]
    assert lines[1].split()[:7] == ["orders", "1", "pack", "2", "0", "0", "1"]


def test_tasks_are_listed_masked_the_next_to_expire_first(
    run: Run, add: Callable[..., Task[Any]], redis: Any
) -> None:
    second, first = add(verify=False, ttl=601), add(verify=False)
    (key,) = redis.scan_iter(match=f"*:task:{second.id}")
    redis.hset(key, "fixed", "{}")

    rows = json.loads(run("tasks", "orders", "--json").output)

    assert [row["id"] for row in rows] == [first.id, second.id]
    assert rows[0]["recipient"] == "so****@example.com"
    assert rows[1]["methods"] == "task_tampered"


def test_show_of_an_unknown_task_says_so(run: Run, add: Callable[..., Task[Any]]) -> None:
    task = add()

    assert "no queue of this app" in run("show", "a" * 34, code=1).output
    unknown = json.loads(run("show", task.id[:8] + "a" * 26, "--json").output)
    assert unknown["status"] == "not readable: there is no such task"


def test_paused_queue_verifies_and_holds_its_callbacks(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]]
) -> None:
    add(), add()

    run("pause", "orders")
    add()
    held = work(shop, taskflow)
    shown = run("stats").output
    run("resume", "orders")

    assert held == 0
    assert "orders (paused)" in shown
    assert work(shop, taskflow) == 3


def test_purge_asks_and_forgets_what_waits(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]], redis: Any
) -> None:
    for _ in range(3):
        add()

    run("purge", "orders", code=1, text="n\n")
    output = run("purge", "orders", text="y\n").output

    assert "3 deliveries of orders are forgotten." in output
    assert work(shop, taskflow) == 0
    assert [key for kind in ("meta", "body") for key in redis.scan_iter(match=f"*:{kind}")] == []


def test_unknown_queue_is_named_with_those_that_are(run: Run, add: Callable[..., Task[Any]]) -> None:
    add()

    for command in ("tasks", "dead", "pause", "resume", "purge"):
        assert "there is no queue odrers; there are: orders" in run(command, "odrers", code=1).output


def test_forgotten_callback_gets_no_more_deliveries(
    shop: Flask, make_app: MakeApp, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]], redis: Any
) -> None:
    taskflow.on_task_verified("orders", name="old")(lambda task: None)
    add()
    del taskflow._callbacks["orders"]["old"]

    busy = run("forget", "orders", "old", "--yes", code=1).output
    run("purge", "orders", "--yes")
    run("forget", "orders", "old", "--yes")
    missing = run("forget", "orders", "old", "--yes", code=1).output
    add()

    assert "old has 1 deliveries" in busy
    assert "has no callback old" in missing
    assert [row["callback"] for row in json.loads(run("handlers", "--json").output)] == ["pack"]
    assert list(redis.scan_iter(match="*:h:old:*")) == []


def test_doctor_names_each_finding_and_its_cure(
    shop: Flask, taskflow: TaskFlow, run: Run, add: Callable[..., Task[Any]], redis: Any
) -> None:
    add("bad")
    work(shop, taskflow)
    taskflow.on_task_verified("orders", name="old")(lambda task: None)
    add(), add(verify=False)
    del taskflow._callbacks["orders"]["old"]
    del taskflow._channels["EMAIL"]
    with shop.app_context():
        travel(100)
    run("pause", "orders")
    redis.config_set("maxmemory-policy", "allkeys-lru")

    found = run("doctor", code=1).output
    redis.config_set("maxmemory-policy", "noeviction")

    for text in (
        "set appendonly yes",
        "set maxmemory-policy noeviction",
        "start a worker or serve a request",
        "pending tasks need EMAIL",
        "flask taskflow resume orders",
        "old: no process has it since",
        "flask taskflow forget orders old",
        "pack: 1 dead letters",
    ):
        assert text in found


def test_doctor_of_a_sound_app_finds_nothing(make_app: MakeApp, taskflow: TaskFlow) -> None:
    taskflow.on_task_verified("orders", name="pack")(lambda task: None)

    with redis_server("--appendonly", "yes") as url:
        app = make_app(redis_url=url)
        with app.app_context():
            taskflow.start()
            result = app.test_cli_runner().invoke(taskflow_cli, ["doctor", "--json"])
            taskflow.stop()

    assert result.exit_code == 0, result.output
    assert {finding["level"] for finding in json.loads(result.output)} == {"ok"}


def test_doctor_without_a_server_says_what_to_check(make_app: MakeApp) -> None:
    app = make_app(redis_url="redis://user:hidden@127.0.0.1:1/0")

    result = app.test_cli_runner().invoke(taskflow_cli, ["doctor"])

    assert result.exit_code == 1
    assert "check TASKFLOW_REDIS_URL" in result.output
    assert "hidden" not in result.output


def test_command_without_a_server_is_a_sentence(make_app: MakeApp) -> None:
    app = make_app(redis_url="redis://127.0.0.1:1/0")

    result = app.test_cli_runner().invoke(taskflow_cli, ["stats"])

    assert result.exit_code == 1
    assert result.output.startswith("Error: ConnectionError: ")


def test_commands_are_known_to_the_apps_own_runner_and_listed_once(make_app: MakeApp) -> None:
    app = make_app()

    result = app.test_cli_runner().invoke(args=["taskflow", "handlers", "--json"])
    listed = CliRunner().invoke(FlaskGroup(create_app=lambda: app), ["--help"]).output

    assert (result.exit_code, result.output) == (0, "[]\n")
    assert listed.count("Run and inspect one-time code tasks.") == 1


def test_command_of_an_app_with_a_bad_configuration_is_a_sentence(make_app: MakeApp) -> None:
    flask = FlaskGroup(create_app=lambda: make_app(lease=0))

    result = CliRunner().invoke(flask, ["taskflow", "stats"])

    assert result.exit_code == 1
    assert result.output.startswith("Error: ConfigError: TASKFLOW_LEASE = 0 cannot be used: ")


def test_queues_of_the_config_are_the_only_ones_served(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    ran: list[str] = []
    for queue in ("one", "two"):
        taskflow.on_task_verified(queue, name="work")(lambda task: ran.append(task.queue))

    app = make_app(queues=["two"])
    with app.app_context():
        for queue in ("one", "two"):
            recipient = {"email": f"{queue}@example.com"}
            task = taskflow.add_task(queue, allowed_methods=["EMAIL"], recipient=recipient)
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
        taskflow.run_due()

    assert ran == ["two"]
