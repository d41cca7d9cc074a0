"""Does the package take longer to import, to add or verify a task, or to run a callback, than it did?

Each is measured in processes of their own, of the package as it was and as it is in turns, so that
whatever drifts, drifts for both; what counts is the ratio of the medians. The import, that of Flask and
redis-py included, is the process's own time, which other processes of the machine do not add to; the
sources are compiled before. A warm step is an ``add_task()``, a ``verify()`` with the right code, or a
``run_due()`` with one callback, by the clock, Redis's answer included: of a process what the fastest
quarter of them takes at most, since the slower ones wait for the machine, not for the package. Every
process has an app of its own on the same throw-away server. On a machine with ten busy processes two
equal packages came out 5% apart over ten rounds: use a quiet one.

The exit status is 1 if a ratio is above the bound.

    python -m benchmarks.start --was f6c23e6
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.trees import PACKAGE, add_was, run_in, tree_of

_WARM_UP = 20
_STEPS = ("add_task", "verify", "run_due")


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.split("\n")[0])
    add_was(parser)
    parser.add_argument("--rounds", type=int, default=20, help="how many processes of each (20)")
    parser.add_argument("--times", default="500", help="how many steps in each process (500)")
    parser.add_argument("--within", type=float, default=1.05, help="the highest ratio that is good (1.05)")
    parser.add_argument("--here", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(repr(_import() if arguments.here == ["import"] else _step(*arguments.here)))
        return 0
    if arguments.was is None:
        parser.error("there is nothing to compare with: give --was")
    # The child processes import the package, this one only its throw-away server.
    from flask_taskflow.testing import redis_server

    with tree_of(arguments.was) as was, tree_of() as now, redis_server() as url:
        trees = (was, now)
        ratios = [
            _compare(f"import {PACKAGE}", trees, arguments.rounds, "import"),
            *(
                _compare(f"warm {step}", trees, arguments.rounds, step, url, arguments.times)
                for step in _STEPS
            ),
        ]
    return judge(ratios, arguments.within)


def judge(ratios: Sequence[float], within: float) -> int:
    """Print whether no ratio is above the bound; return the exit status."""
    good = max(ratios) <= within
    print(f"at most {within:g} is wanted: {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def _compare(title: str, trees: tuple[Path, Path], rounds: int, *what: str) -> float:
    """Measure in turns; print the medians and return their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    # The first processes of each compile.
    for number in range(rounds + 1):
        for tree, found in zip(trees, times, strict=True):
            took = float(run_in(tree, "benchmarks.start", "--here", *what).splitlines()[-1])
            if number:
                found.append(took)
    before, after = map(statistics.median, times)
    print(f"{title}: was {before * 1e3:.3f} ms, is {after * 1e3:.3f} ms, ratio {after / before:.3f}")
    return after / before


def _import() -> float:
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} was imported before it was measured")
    began = time.process_time()
    importlib.import_module(PACKAGE)
    return time.process_time() - began


def _step(step: str, url: str, count: str) -> float:
    from benchmarks.app import add, app_on
    from flask_taskflow.testing import outbox

    times: list[float] = []
    with (
        app_on(url, TASKFLOW_KEY_PREFIX=f"{step}-{time.time_ns()}") as taskflow,
        outbox(taskflow) as messages,
    ):
        for number in range(_WARM_UP + int(count)):
            began = time.perf_counter()
            task_id = add(taskflow, number)
            added = time.perf_counter()
            taskflow.verify(task_id, "EMAIL", messages[-1].otp)
            verified = time.perf_counter()
            taskflow.run_due()
            ran = time.perf_counter()
            took = {"add_task": added - began, "verify": verified - added, "run_due": ran - verified}
            times.append(took[step])
    return statistics.quantiles(times[_WARM_UP:], n=4)[0]


if __name__ == "__main__":
    sys.exit(main())
