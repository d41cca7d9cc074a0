"""Metrics: what Prometheus reads, and what graphs are drawn of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from benchmarks.chaos import Server
from flask_taskflow import CodeExpired, ConfigError, Reject, ResendTooSoon, Retry, TaskLocked, WrongCode
from flask_taskflow._http.metrics import BOUNDS, exposition
from flask_taskflow._service import current_service
from flask_taskflow._store.operations import Span
from flask_taskflow.testing import travel
from tests.operator.test_cli import run
from tests.support import inside
from tests.support.docs import ROOT, block, read
from tests.support.fleet import wait_until
from tests.support.stage import Stage
from tests.support.tasks import other, refused

LUA = ROOT / "flask_taskflow" / "_store" / "lua" / "shared" / "counters.lua"
MINUTES, HOURS = Span(60, 26 * 60), Span(3600, 35 * 24)


def told(stage: Stage) -> dict[str, float]:
    """Return what is told, by name and labels, but for bounds."""
    lines = exposition(current_service()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
    return {name: float(value) for name, value in pairs}


def of(metrics: dict[str, float], name: str) -> dict[str, float]:
    """Return the values of one name, by the labels after the queue."""
    found = {}
    for each, value in metrics.items():
        labels = dict(re.findall(r'(\w+)="(.*?)"', each))
        if each.partition("{")[0] == name and labels.pop("queue") == "q":
            order = sorted(
                labels, key=["callback", "method", "event", "outcome", "cause", "limit", "state", "le"].index
            )
            found[",".join(labels[label] for label in order)] = value
    return found


@pytest.fixture
def lived(stage: Stage) -> Stage:
    """A stage on which one of each happened."""
    stage.work(Retry(after=10), Reject("no"), max_attempts=3)
    stage.app(otp_ttl=300, recipient_max_sends=100)
    taskflow = stage.taskflow
    task = stage.add()
    refused(WrongCode, taskflow.verify, task.id, "EMAIL", other(stage.box[-1].otp))
    refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")
    travel(20)
    stage.verify(task)
    stage.run()
    stage.run(after=11)
    stage.verified()
    stage.run()
    taskflow.cancel_task(stage.add().id)
    taskflow.reject_task(stage.add().id, "EMAIL", stage.box[-1].otp)
    locked = stage.add()
    for number in range(1, 6):
        refused(
            TaskLocked if number == 5 else WrongCode,
            taskflow.verify,
            locked.id,
            "EMAIL",
            other(stage.box[-1].otp, number),
        )
    late = stage.add()
    travel(301)
    refused(CodeExpired, taskflow.verify, late.id, "EMAIL", stage.box[-1].otp)
    travel(300)
    stage.add()
    return stage


def test_each_thing_that_happens_is_counted_once(lived: Stage) -> None:
    metrics = told(lived)

    assert of(metrics, "taskflow_tasks_total") == {
        "added": 7, "rejected": 1, "verified": 2, "cancelled": 1, "locked": 1, "expired": 1,
    }  # fmt: skip
    assert of(metrics, "taskflow_codes_sent_total") == {"EMAIL,posted": 7}
    assert of(metrics, "taskflow_codes_rejected_total") == {"EMAIL,code_expired": 1, "EMAIL,wrong_code": 6}
    assert of(metrics, "taskflow_limits_total") == {"cooldown": 1}
    assert of(metrics, "taskflow_deliveries_total") == {"work,done": 1, "work,dead": 1, "work,failed": 1}
    assert of(metrics, "taskflow_deliveries")["work,dead"] == 1
    assert of(metrics, "taskflow_tasks_pending") == {"": 1}
    assert of(metrics, "taskflow_queue_paused") == {"": 0}
    assert of(metrics, "taskflow_verification_seconds_count") == {"EMAIL": 2}
    assert of(metrics, "taskflow_verification_seconds_sum")["EMAIL"] == pytest.approx(20, abs=2)
    buckets = of(metrics, "taskflow_verification_seconds_bucket")
    assert (buckets["EMAIL,10"], buckets["EMAIL,30"], buckets["EMAIL,+Inf"]) == (1, 2, 2)
    assert of(metrics, "taskflow_delivery_wait_seconds_count") == {"work": 2}
    assert of(metrics, "taskflow_delivery_run_seconds_count") == {"work": 3}
    assert metrics["taskflow_processes"] == 0


def test_bounds_of_histograms_are_those_of_the_steps() -> None:
    lists = re.findall(r"\{ (\d[\d., ]+) \}", LUA.read_text())

    verify, others = (tuple(map(float, values.split(", "))) for values in lists)
    assert {"verify": verify, "wait": others, "took": others} == BOUNDS


def test_made_up_ids_and_methods_leave_no_counters(stage: Stage) -> None:
    stage.app()
    for method in ("EMAIL", "OTHER"):
        with pytest.raises(Exception, match="there is no such task"):
            stage.taskflow.verify("a" * 34, method, "123456")

    assert stage.keys("counters") == []


def test_spoiled_counters_fail_no_step(stage: Stage) -> None:
    stage.app()
    stage.add()
    (key,) = stage.keys("counters")
    stage.redis.delete(key)
    stage.redis.set(key, "x")

    assert stage.verified().status == "SUCCESS"


def test_metrics_are_printed_and_served(lived: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    app = lived.app()
    app.register_blueprint(lived.taskflow.create_blueprint(routes=["metrics"]))
    answer = app.test_client().get("/metrics")

    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert 'taskflow_tasks_total{event="added",queue="q"} 7.0' in answer.text
    assert "taskflow_tasks_total{" in run("metrics")
    assert "@example.com" not in answer.text
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "pip install 'flask-taskflow[metrics]'" in run("metrics", code=1)
    refused(ConfigError, exposition, current_service())


def test_scrape_while_redis_is_away_is_503(stage: Stage, mortal: Server) -> None:
    app = stage.app(redis_url=mortal.url)
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["metrics"]))
    mortal.kill()

    assert app.test_client().get("/metrics").status_code == 503


def test_history_tells_minutes_and_hours(stage: Stage) -> None:
    stage.app(recipient_max_sends=1000)
    operations = inside.service().operations
    # All of it is to be counted in one minute.
    wait_until(lambda: stage.redis.time()[0] % 60 < 50)
    stage.add(), stage.verified()
    (key,) = stage.keys("counters")
    stage.redis.hincrby(key, "@minute", -61)
    stage.add()

    first, second = operations.stats_and_history("q", MINUTES)[1]
    earlier, now = operations.stats_and_history("q", HOURS)[1]
    by_days = operations.stats_and_history("q", Span(86400, 30))[1]

    assert (first.counts[:2], second.counts[:2]) == ([2, 1], [1, 0])
    assert second.at - first.at == 61 * 60
    assert (earlier.counts[4], now.counts[4]) == (2, 1)
    assert now.at - earlier.at in (3600, 7200)
    assert sum(day.counts[4] for day in by_days) == 3
    assert operations.stats_and_history("q", Span(60, 5))[1] == [second]


@pytest.mark.slow
def test_history_of_a_busy_queue_takes_64_kilobytes(stage: Stage) -> None:
    """Thousands a minute, of five callbacks, for 36 days; what is older is gone."""
    stage.app()
    stage.add()
    (key,) = stage.keys("counters")
    busy = {
        "tasks added": 1500,
        "tasks verified": 1400,
        "codes EMAIL posted": 1500,
        "rejected EMAIL wrong_code": 90,
    }
    busy |= {f"run c{number} done": 250 for number in range(5)}
    text = LUA.with_name("base.lua").read_text() + LUA.read_text()
    keys = [key, key.replace("counters", "history")]
    tally = f"{text}\ntally(tonumber(take()) * 60000, take_list())"
    given = [item for name, count in busy.items() for item in (name, count)]
    minute = int(stage.redis.hget(key, "@minute"))
    for ago in range(36 * 24 * 60, -1, -1):
        if ago % 60 == 0 or ago < 27 * 60:
            stage.redis.eval(tally, 2, *keys, minute - ago, len(given), *given)
    (history,) = stage.keys("history")

    size = stage.redis.memory_usage(history, samples=0)

    assert size is not None
    assert 20_000 < int(size) <= 64 * 1024
    operations = inside.service().operations
    minutes, hours = (operations.stats_and_history("q", span)[1] for span in (MINUTES, HOURS))
    # The minute may have ended since.
    assert len(minutes) >= 25 * 60
    assert len(hours) >= 35 * 24


def test_scrape_takes_one_script_a_queue(stage: Stage, redis: Redis) -> None:
    stage.app(recipient_max_sends=1000)
    for number in range(100):
        stage.work(queue=f"q{number}")
        stage.verified(f"q{number}")
    exposition(current_service())
    redis.config_resetstat()

    exposition(current_service())

    stats: Any = redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 100


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_alert_rules_and_metrics_are_taken_by_promtool(lived: Stage, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(block("monitoring.md", "rules"))

    checked = subprocess.run(
        ["promtool", "check", "rules", rules], capture_output=True, text=True, check=False
    )
    metrics = exposition(current_service())
    linted = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert b"error" not in linted.stderr, linted.stderr


def test_page_and_dashboard_name_only_metrics_that_there_are(lived: Stage) -> None:
    names = {
        line.split()[2] for line in exposition(current_service()).decode().splitlines() if "# TYPE" in line
    }
    dashboard = (ROOT / "docs" / "grafana.json").read_text()
    used = set(re.findall(r"\btaskflow_\w+", dashboard + block("monitoring.md", "rules")))

    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= names
    assert set(re.findall(r"^\| `(taskflow_\w+)", read("monitoring.md"), re.M)) == names
    assert json.loads(dashboard)["panels"]
