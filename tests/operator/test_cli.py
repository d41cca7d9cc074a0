"""The operator's commands, on a real server; `worker` is in test_worker.py."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner
from flask import current_app
from flask.cli import FlaskGroup

from flask_taskflow import OutboxStrategy, Reject, Task, TaskFlow
from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow._operator.doctor import examine
from flask_taskflow._service import current_service
from flask_taskflow.testing import redis_server, travel
from tests.support.docs import block
from tests.support.stage import Stage


class _Unplugged(OutboxStrategy):
    def send(self, task: Task[Any], otp: str) -> None:
        raise ConnectionRefusedError


@pytest.fixture
def shop(stage: Stage) -> Stage:
    """A stage whose callback dies of orders of ``"bad"``."""

    @stage.taskflow.on_task_verified("orders", name="pack")
    def pack(task: Task[Any]) -> None:
        if task.data == "bad":
            raise Reject("no such article")

    stage.app()
    return stage


@pytest.fixture
def dead(shop: Stage) -> Task[Any]:
    """An order whose delivery is a dead letter."""
    task = shop.verified("orders", "bad", summary="An order", recipient={"email": "somebody@example.com"})
    shop.run()
    return task


def run(*words: str, code: int = 0, text: str | None = None) -> str:
    """Run a command on the current app; return what it shows."""
    result = current_app.test_cli_runner().invoke(taskflow_cli, list(words), input=text)
    assert result.exit_code == code, result.output
    return result.output


def test_dead_letter_is_found_understood_replayed_and_done(shop: Stage, dead: Task[Any]) -> None:
    listed = run("dead")
    shown = run("show", dead.id)
    shop.taskflow._callbacks["orders"].clear()
    shop.taskflow.on_task_verified("orders", name="pack")(lambda task: None)
    replayed = run("replay", f"{dead.id}:pack")

    assert f"{dead.id}:pack" in listed
    assert "Reject: no such article (at " in listed
    assert "SUCCESS" in shown
    assert "dead" in shown
    assert "somebody" not in shown
    assert replayed == f"{dead.id}:pack runs again.\n"
    assert shop.run() == 1
    assert run("dead", "--json").strip() == "[]"


def test_history_tells_why_a_code_never_came(shop: Stage) -> None:
    shop.app(TaskFlow(), send="background")
    current_app.extensions["taskflow"].register_strategy("EMAIL")(_Unplugged())
    task = current_app.extensions["taskflow"].add_task(
        "orders", allowed_methods=["EMAIL"], recipient={"email": "somebody@example.com"}
    )
    current_app.extensions["taskflow"].run_due()

    shown = run("history", task.id)

    at = re.compile(r"^[\d-]+T[\d:]+\+00:00", re.M)
    assert at.sub("", shown) == at.sub("", block("operations.md", "history"))
    assert json.loads(run("history", task.id, "--json"))[1]["method"] == "EMAIL"
    assert run("history", f"{task.id}:pack") == run("history", task.id)
    for unknown in ("a" * 34, f"{'a' * 34}:pack", "tick:2020-01-01T00:00:00+00:00"):
        assert f"there is no task {unknown}" in run("history", unknown, code=1)


def test_show_tells_what_became_of_callbacks_that_are_done(shop: Stage) -> None:
    task = shop.verified("orders")
    shop.run()

    told = json.loads(run("show", task.id, "--json"))

    assert (told["outcome"], told["deliveries"]) == ("done", [])
    assert [(row["callback"], row["state"], row["attempts"]) for row in told["outcomes"]] == [
        ("pack", "done", 1)
    ]
    assert "pack      done" in run("show", task.id)


def test_replay_of_what_is_no_dead_letter_says_so(shop: Stage) -> None:
    task = shop.verified("orders")

    for delivery in (f"{task.id}:pack", f"{task.id}:other", "nonsense", f"{'a' * 34}:pack"):
        assert "is no dead letter" in run("replay", delivery, code=1)


@pytest.mark.parametrize("only", [["--error", "zzz"], ["--callback", "pack"], ["--before", "2020-01-01"]])
def test_one_dead_letter_is_not_chosen_by_filters(dead: Task[Any], only: list[str]) -> None:
    for command in (["discard", "--yes"], ["replay"]):
        assert "say --all" in run(*command, f"{dead.id}:pack", *only, code=2)

    assert dead.id in run("dead")


def test_discard_asks_then_forgets(dead: Task[Any]) -> None:
    refused = run("discard", f"{dead.id}:pack", code=1, text="n\n")
    kept = run("dead", "orders")
    run("discard", f"{dead.id}:pack", "--yes")

    assert "Aborted" in refused
    assert dead.id in kept
    assert dead.id not in run("dead")


@pytest.mark.usefixtures("dead")
def test_stats_count_every_state(shop: Stage) -> None:
    shop.verified("orders"), shop.verified("orders"), shop.add("orders")
    travel(60)

    (queue,) = json.loads(run("stats", "--json"))
    head, line = (row.split() for row in run("stats").splitlines())

    assert queue["callbacks"][0].pop("oldest") == pytest.approx(60, abs=5)
    assert queue.pop("counts")["tasks verified"] == 3
    assert queue == {
        "queue": "orders",
        "pending": 1,
        "paused": False,
        "callbacks": [{"callback": "pack", "ready": 2, "delayed": 0, "running": 0, "dead": 1}],
    }
    assert head == ["queue", "pending", "callback", "ready", "delayed", "running", "dead", "oldest"]
    assert line[:7] == ["orders", "1", "pack", "2", "0", "0", "1"]


def test_tasks_are_listed_masked_the_next_to_expire_first(shop: Stage) -> None:
    recipient = {"email": "somebody@example.com"}
    second, first = shop.add("orders", ttl=601), shop.add("orders", recipient=recipient)
    (key,) = shop.redis.scan_iter(match=f"*:task:{second.id}")
    shop.redis.hset(key, "fixed", "{}")

    rows = json.loads(run("tasks", "orders", "--json"))

    assert [row["id"] for row in rows] == [first.id, second.id]
    assert rows[0]["recipient"] == "so****@example.com"
    assert rows[1]["methods"] == "task_tampered"


def test_show_of_an_unknown_task_says_so(shop: Stage) -> None:
    task = shop.verified("orders")

    assert "no queue of this app" in run("show", "a" * 34, code=1)
    for options in ([], ["--json"]):
        assert "there is no task" in run("show", task.id[:8] + "a" * 26, *options, code=1)


def test_show_takes_what_dead_lists(shop: Stage) -> None:
    task = shop.verified("orders")

    shown = [run("show", each) for each in (task.id, f"{task.id}:pack")]

    assert shown[0] == shown[1]
    assert "None" not in shown[0]


def test_paused_queue_verifies_and_holds_its_callbacks(shop: Stage) -> None:
    shop.verified("orders"), shop.verified("orders")

    run("pause", "orders")
    shop.verified("orders")
    held = shop.run()
    shown = run("stats")
    run("resume", "orders")

    assert held == 0
    assert "orders (paused)" in shown
    assert shop.run() == 3


def test_purge_asks_and_forgets_what_waits(shop: Stage) -> None:
    for _ in range(3):
        shop.verified("orders")

    run("purge", "orders", code=1, text="n\n")
    output = run("purge", "orders", text="y\n")

    assert "3 deliveries of orders are forgotten." in output
    assert shop.run() == 0
    assert shop.keys("meta", "body") == []


def test_unknown_queue_is_named_with_those_that_are(shop: Stage) -> None:
    shop.verified("orders")

    for command in ("tasks", "dead", "pause", "resume", "purge"):
        told = run(command, "odrers", code=1)
        assert "there is no queue odrers; there are: orders; did you mean orders?" in told
    assert "did you mean" not in run("tasks", "letters", code=1)


def test_show_of_a_forgotten_task_whose_delivery_is_dead_shows_that(shop: Stage, dead: Task[Any]) -> None:
    travel(86401)

    told = json.loads(run("show", dead.id, "--json"))

    assert told["status"] == "forgotten"
    assert [row["state"] for row in told["deliveries"]] == ["dead"]


def test_show_of_an_expired_task_says_so(shop: Stage) -> None:
    task = shop.add("orders", ttl=60)
    travel(61)

    assert json.loads(run("show", task.id, "--json"))["status"] == "EXPIRED"


@pytest.mark.parametrize("background", [False, True])
def test_worker_of_a_misspelt_queue_says_so(stage: Stage, background: bool) -> None:
    stage.taskflow.on_task_verified("orders", name="pack")(lambda task: None)
    stage.app(send="background" if background else "inline")

    for given in ("odrers", "orders, odrers"):
        told = run("worker", "--queues", given, code=1)
        assert "there is no queue odrers; there are: orders; did you mean orders?" in told
    assert "name at least one queue" in run("worker", "--queues", " , ", code=2)


def test_worker_of_an_app_that_runs_no_thread_says_so(stage: Stage) -> None:
    stage.taskflow.on_task_verified("orders")(lambda task: None)
    with stage.make_app(eager=True).app_context():
        assert "unset TASKFLOW_EAGER" in run("worker", code=1)


def test_forgotten_callback_gets_no_more_deliveries(shop: Stage) -> None:
    shop.taskflow.on_task_verified("orders", name="old")(lambda task: None)
    shop.verified("orders")
    del shop.taskflow._callbacks["orders"]["old"]

    busy = run("forget", "orders", "old", "--yes", code=1)
    run("purge", "orders", "--yes")
    run("forget", "orders", "old", "--yes")
    missing = run("forget", "orders", "old", "--yes", code=1)
    shop.verified("orders")

    assert "old has 1 deliveries" in busy
    assert "has no callback old" in missing
    assert [row["callback"] for row in json.loads(run("handlers", "--json"))] == ["pack"]
    assert shop.keys("h:old:*") == []


@pytest.mark.usefixtures("dead")
def test_doctor_names_each_finding_and_its_cure(shop: Stage) -> None:
    shop.taskflow.on_task_verified("orders", name="old")(lambda task: None)
    shop.verified("orders"), shop.add("orders")
    del shop.taskflow._callbacks["orders"]["old"]
    del shop.taskflow._channels["EMAIL"]
    travel(100)
    run("pause", "orders")
    shop.redis.config_set("maxmemory-policy", "allkeys-lru")

    try:
        found = run("doctor", code=1)
    finally:
        shop.redis.config_set("maxmemory-policy", "noeviction")

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


def test_doctor_of_a_sound_app_finds_nothing(shop: Stage) -> None:
    with redis_server("--appendonly", "yes") as url:
        shop.start(redis_url=url)
        findings = json.loads(run("doctor", "--json"))
        shop.taskflow.stop()

    assert {finding["level"] for finding in findings} == {"ok"}


def test_command_without_a_server_says_what_to_check(stage: Stage) -> None:
    app = stage.make_app(redis_url="redis://user:hidden@127.0.0.1:1/0")
    with app.app_context():
        shown = run("doctor", code=1)
        error = run("stats", code=1)

    assert "check TASKFLOW_REDIS_URL" in shown
    assert error.startswith("Error: ConnectionError: ")
    assert "hidden" not in shown + error


def test_commands_are_known_to_the_apps_own_runner_and_listed_once(stage: Stage) -> None:
    app = stage.make_app()

    result = app.test_cli_runner().invoke(args=["taskflow", "handlers", "--json"])
    listed = CliRunner().invoke(FlaskGroup(create_app=lambda: app), ["--help"]).output

    assert (result.exit_code, result.output) == (0, "[]\n")
    assert listed.count("Run and inspect one-time code tasks.") == 1


def test_command_of_an_app_with_a_bad_configuration_is_a_sentence(stage: Stage) -> None:
    flask = FlaskGroup(create_app=lambda: stage.make_app(lease=0))

    result = CliRunner().invoke(flask, ["taskflow", "stats"])

    assert result.exit_code == 1
    assert result.output.startswith("Error: ConfigError: TASKFLOW_LEASE = 0 cannot be used: ")


def test_doctor_compares_the_secret_keys_of_the_fleet(shop: Stage) -> None:
    old, new = "the old key of the fleet, long", "the new key of the fleet, long"
    with shop.make_app(TaskFlow(), SECRET_KEY=old).app_context():
        lacking = current_service().keyring.fingerprints[0]
        other: TaskFlow = current_app.extensions["taskflow"]
        other.register_strategy("EMAIL")(OutboxStrategy())
        other.run_due()
        for number in range(2):
            other.add_task("q", allowed_methods=["EMAIL"], recipient={"email": f"{number}@example.com"})
    with shop.make_app(TaskFlow(), SECRET_KEY=new, SECRET_KEY_FALLBACKS=[old]).app_context():
        newest = current_service().keyring.fingerprints[0]
        fleet = _secret_keys()
    with shop.make_app(TaskFlow(), SECRET_KEY=new).app_context():
        strange = _secret_keys()
        shop.redis.delete("taskflow:fingerprints")
        alone = _secret_keys()

    assert [level for level, _ in fleet] == ["bad"]
    assert f"keys {lacking} lacks the SECRET_KEY whose fingerprint is {newest}," in fleet[0][1]
    assert [level for level, _ in strange] == ["bad", "bad"]
    assert (
        f"this process lacks the SECRET_KEY whose fingerprint is {lacking}," in strange[0][1] + strange[1][1]
    )
    assert alone == [("bad", f"2 pending tasks need the SECRET_KEY whose fingerprint is {lacking}")]


def test_doctor_says_what_it_may_not_ask(shop: Stage) -> None:
    shop.redis.acl_setuser(
        "poor",
        enabled=True,
        nopass=True,
        keys=["*"],
        channels=["*"],
        commands=["+@all", "-info", "-pubsub", "-publish"],
    )
    try:
        url = shop.server.replace("unix://", "unix://poor@") + "?password=any"
        with shop.make_app(TaskFlow(), redis_url=url).app_context():
            found = {finding.subject: finding.level for finding in examine(current_service())}
    finally:
        shop.redis.acl_deluser("poor")

    assert (found["server"], found["permissions"], found["listeners"]) == ("note", "bad", "note")


def _secret_keys() -> list[tuple[str, str]]:
    findings = examine(current_service())
    return [(finding.level, finding.text) for finding in findings if finding.subject == "secret keys"]


def test_doctor_forgets_keys_that_no_process_has_said_for_a_while(shop: Stage) -> None:
    shop.redis.hset("taskflow:fingerprints", "abcde", 1)
    before = len(_secret_keys())
    shop.run()

    assert before == 1
    assert _secret_keys() == [("ok", " ".join(current_service().keyring.fingerprints))]
    assert shop.redis.hlen("taskflow:fingerprints") == 1
