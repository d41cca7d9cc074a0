"""The benchmarks that hold numbers, in their short form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def run_benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_wrong_code_takes_as_long_as_unknown_id(fsync: str) -> None:
    """S19. The standard error of 300 pairs is 0.024: 0.1 is four of them, one false alarm in 30,000 runs."""
    result = run_benchmark("timing", "--fsync", fsync, "--pairs", "300", "--within", "0.1")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "300 pairs" in result.stdout


def test_expired_tasks_are_forgotten_and_cost_nothing() -> None:
    """S53. A scan of the 20,000 costs a hundred times more; a busy machine may cost half as much."""
    result = run_benchmark("expired", "--tasks", "20000", "--ended", "56", "--rounds", "5", "--within", "0.5")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "20,000 (20,000 after" in result.stdout


def test_provider_that_hangs_costs_the_caller_nothing_and_falls_back() -> None:
    """A call that waited for it would cost hundreds of times more; a busy machine may cost half as much."""
    result = run_benchmark("sending", "--rounds", "300", "--fall-backs", "10", "--within", "0.5")

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("10 of 10") == 2
