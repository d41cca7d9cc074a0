"""What does it cost that a verification is proven by two MACs?

Two apps in this process, on one throw-away server, add, verify and run tasks in turns. One is the package as
it is. The other one makes and checks no MAC of a proof, and stores next to nothing in its place; all else is
the same, the digest of the code and the seals among it. What counts is the median of the ratios of
neighbouring blocks, as a rate: 0.95 says that the package does 95 in the time in which the other does 100.

The exit status is 1 if a rate is below the bound.

    python -m benchmarks.proofs
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise

from benchmarks.app import add, app_on
from flask_taskflow import TaskFlow
from flask_taskflow._keyring import Keyring, Presented, current_keyring
from flask_taskflow.testing import Outbox, outbox, redis_server

_STEPS = ("add", "verify", "claim")
_PER_BLOCK = 50
_NO_MAC = "-"


class _Unproven(Keyring):
    """A keyring that makes and checks no MAC of a proof."""

    def issued(self, task_id: str, method: str, digest: str, *, lasts: float) -> str:
        return f"{_NO_MAC} {self.now_ms() + int(lasts * 1000)}"

    def presented(
        self, task_id: str, method: str, code: str, holder: str | None = None, *, confirms: bool = True
    ) -> Presented:
        digests = self.digests(task_id, method, code)
        held = self.is_holder(task_id, holder)
        admitted = self._backstop.admit(task_id, digests[0], held=held, now=self.now_ms())
        return Presented(digests, [f"{_NO_MAC} {self.now_ms()}"] * len(digests), held, admitted)

    def hold_all(self, sealed: Iterable[tuple[str, Sequence[str]]]) -> bool:
        return super().hold_all(one for one in sealed if one[0] != _NO_MAC)


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proofs", description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=100, help=f"how many blocks of {_PER_BLOCK} (100)")
    parser.add_argument("--within", type=float, default=0.95, help="the lowest rate that is good (0.95)")
    arguments = parser.parse_args()
    proven: list[tuple[float, ...]] = []
    unproven: list[tuple[float, ...]] = []
    with redis_server() as url:
        # The first block of each warms up.
        for number in range(arguments.blocks + 1):
            kinds = [(proven, Keyring), (unproven, _Unproven)]
            for found, kind in kinds if number % 2 else reversed(kinds):
                took = _block(url, number, kind)
                if number:
                    found.append(took)
    rates = []
    for index, step in enumerate(_STEPS):
        ratios = [without[index] / with_[index] for with_, without in zip(proven, unproven, strict=True)]
        rates.append(statistics.median(ratios))
        medians = [statistics.median(block[index] for block in blocks) for blocks in (proven, unproven)]
        each = " and ".join(f"{seconds / _PER_BLOCK * 1e6:.0f} us" for seconds in medians)
        print(f"{step}: with and without proofs {each}, rate {rates[-1]:.3f}")
    good = min(rates) >= arguments.within
    print(f"at least {arguments.within:g} is wanted: {'as required' if good else 'NOT AS REQUIRED'}")
    return 0 if good else 1


def _block(url: str, number: int, kind: type[Keyring]) -> tuple[float, ...]:
    """Return how long the tasks of a block take in each step, seconds."""
    with ExitStack() as stack:
        taskflow = stack.enter_context(app_on(url, TASKFLOW_KEY_PREFIX=f"{kind.__name__}-{number}"))
        current_keyring().__class__ = kind
        messages = stack.enter_context(outbox(taskflow))
        _run(taskflow, messages, range(3))
        return _run(taskflow, messages, range(3, 3 + _PER_BLOCK))


def _run(taskflow: TaskFlow, messages: Outbox, numbers: Iterable[int]) -> tuple[float, ...]:
    times = [time.perf_counter()]
    added = [(add(taskflow, number), messages[-1].otp) for number in numbers]
    times.append(time.perf_counter())
    for task_id, otp in added:
        taskflow.verify(task_id, "EMAIL", otp)
    times.append(time.perf_counter())
    taskflow.run_due()
    times.append(time.perf_counter())
    return tuple(after - before for before, after in pairwise(times))


if __name__ == "__main__":
    sys.exit(main())
