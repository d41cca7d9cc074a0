"""Probes: what a process says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import Server
from flask_taskflow.testing import travel
from tests.operator.test_cli import run
from tests.support import inside
from tests.support.fleet import Fleet, wait_until
from tests.support.stage import Stage


def probe(stage: Stage) -> list[Any]:
    """Return the status over HTTP, and all that is told."""
    app = stage.app(health_oldest=60)
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["health"]))
    answer = app.test_client().get("/health")
    told: Any = answer.json
    return [
        answer.status_code,
        told["ok"],
        told["redis"],
        told["listening"],
        told["oldest"],
    ]


@pytest.mark.parametrize(
    ("age", "paused", "expected"),
    [
        (None, False, [200, True, True, None, None]),
        (40, False, [200, True, True, None, pytest.approx(40, abs=10)]),
        (65, False, [503, False, True, None, pytest.approx(65, abs=10)]),
        (65, True, [200, True, True, None, None]),
    ],
)
def test_what_waits_for_long_is_unhealthy(
    stage: Stage, age: float | None, paused: bool, expected: list[Any]
) -> None:
    stage.work()
    stage.app(health_oldest=60)
    if age:
        stage.verified()
        travel(age)
    if paused:
        stage.taskflow.operations.pause("q")

    assert probe(stage) == expected
    assert "True" in run("health", code=0 if expected[1] else 1)


def test_process_that_listens_says_so_until_its_thread_is_gone(stage: Stage) -> None:
    stage.start()
    listening = stage.taskflow.health()
    inside.service().runtime._all()[0].stop(0)

    assert (listening.ok, listening.listening) == (True, True)
    assert (stage.taskflow.health().ok, stage.taskflow.health().listening) == (False, False)


def test_away_server_is_unhealthy(stage: Stage, mortal: Server) -> None:
    app = stage.app(redis_url=mortal.url)
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["health"]))
    mortal.kill()

    answer = app.test_client().get("/health")

    assert (answer.status_code, answer.json) == (
        503,
        {"ok": False, "redis": False, "listening": None, "oldest": None},
    )


@pytest.mark.slow
def test_worker_touches_its_health_file_and_takes_it_away(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "health"
    command = ["flask", "--app", "survivor", "taskflow", "worker", "--health-file", str(path)]
    process = fleet.start(*command, until="Serving fleet")
    wait_until(path.exists)
    first = path.stat().st_mtime

    wait_until(lambda: path.stat().st_mtime > first)
    process.terminate()
    process.wait(60)

    assert not path.exists()


def test_health_file_that_cannot_be_written_is_told(stage: Stage) -> None:
    stage.work()
    stage.app()

    assert "the health file cannot be written" in run("worker", "--health-file", "/nowhere/health", code=1)
