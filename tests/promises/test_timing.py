"""The benchmarks that hold numbers, in their short form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_benchmark(name: str, *arguments: str, timeout: float = 580) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.promise("S19")
@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_wrong_code_takes_as_long_as_unknown_id(fsync: str) -> None:
    """And tasks that are over, of an authenticator, or of an owner, and the page of another browser's.

    The standard error of 300 pairs is 0.024: 0.1 is four of them, one false alarm in 10,000 times. Two times
    one after the other are no false alarm.
    """
    for _ in range(2):
        result = run_benchmark("timing", "--fsync", fsync, "--pairs", "300", "--within", "0.1")
        if result.returncode == 0:
            break

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("300 pairs") == 5


@pytest.mark.promise("S53")
def test_expired_tasks_are_forgotten_and_cost_nothing() -> None:
    """A scan of the 20,000 costs a hundred times more; a busy machine may cost some times as much."""
    bounds = ("--there", "20", "--within", "20")
    still = 0
    # A busy machine may need longer to measure than they are there.
    for left in ("12", "60", "180"):
        result = run_benchmark("expired", "--tasks", "20000", "--left", left, "--rounds", "5", *bounds)
        found = re.search(r"20,000 \(([0-9,]+) after", result.stdout)
        assert found, result.stdout + result.stderr
        still = int(found[1].replace(",", ""))
        if still >= 20_000:
            break

    assert result.returncode == 0, result.stdout + result.stderr
    # None was forgotten meanwhile. What counts wrong codes may come and go as a key of its own.
    assert 20_000 <= still < 20_010


def test_provider_that_hangs_costs_the_caller_nothing_and_falls_back() -> None:
    """A call that waited for it would cost hundreds of times more; a busy machine some times as much."""
    bounds = ("--within", "20", "--slack", "40")
    result = run_benchmark("sending", "--rounds", "100", "--fall-backs", "10", *bounds)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("10 of 10") == 2


@pytest.mark.chaos
def test_tables_of_the_docs_can_be_made_anew() -> None:
    options = ("--tasks", "40", "--sizes", "1", "2", "--waiting", "100", "--seconds", "1")
    result = run_benchmark("speed", *options)

    assert result.returncode == 0, result.stdout + result.stderr
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    made, kept = (re.findall("^## .*", text, re.M) for text in (result.stdout, page))
    # The last one is of `benchmarks.peers`.
    assert made == kept[:-1]


def test_clients_that_poll_are_answered_by_one_script_each() -> None:
    result = run_benchmark("polling", "--clients", "50", "--polls", "2")

    assert result.returncode == 0, result.stdout + result.stderr


def test_dashboard_takes_one_script_a_queue() -> None:
    options = ("--queues", "3", "--pending", "100", "--dead", "10", "--rounds", "1")
    result = run_benchmark("dashboard", *options, "--within", "20", "--share", "1")

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("3 scripts (at most 3)") == 3


def test_package_is_compared_with_another_tree_of_it() -> None:
    """The same package twice; one process of each says little of time, and much of whether both run."""
    result = run_benchmark("start", "--was", str(ROOT), "--rounds", "1", "--times", "20", "--within", "100")

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ratio") == 4
