"""S7: a month of guessing is worth at most one in 10,000 for an account, though its owner succeeds daily.

Somebody guesses at an account whenever a code is compared at all, for 30 days, each time in a task of another
queue and another device that bears the account's `owner`. The owner confirms one task a day, with some typing
errors before, where that is not refused. 10,000 such accounts are gone through with a model of the budget, at
hours and with errors that differ; a few also on a real server, where the same guesses must be compared.

    python -m benchmarks.guessing
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

from flask import Flask

from flask_taskflow import BaseStrategy, OTPRejected, RecipientBlocked, SendLimitReached, Task, TaskFlow
from flask_taskflow._config.config import Config
from flask_taskflow.testing import redis_server, travel

DAYS = 30
#: The chance of one guess: six digits, of an authenticator three codes that are good at once (S37).
ODDS = {"a code that was sent": 1e-6, "an authenticator's code": 3e-6}
CHANCE_MAX = 1e-4
_HOUR = 3600.0
_DEBT = 3
_RIGHT, _WRONG = "123456", "654321"


@dataclass
class Budget:
    """What ``lua/shared/recipients.lua`` counts of failures; times in seconds.

    :param most: ``RECIPIENT_MAX_FAILURES``.
    :param window: ``RECIPIENT_FAILURE_WINDOW``.
    """

    most: int
    window: float
    failures: int = 0
    failures_end: float = 0.0
    debt_end: float = 0.0

    def is_blocked(self, now: float) -> bool:
        """Tell whether nothing is compared."""
        if now >= self.failures_end:
            self.failures = 0
        return self.failures >= self.most or self.debt_end - now >= _DEBT * self.window * self.most

    def fail(self, now: float) -> None:
        """Count a wrong code."""
        if self.failures == 0:
            self.failures_end = now + self.window
        self.failures += 1
        self.debt_end = max(self.debt_end, now) + _DEBT * self.window

    def give_back(self, failures: int) -> None:
        """Take back the wrong codes of a task whose code was right."""
        self.failures = max(self.failures - failures, 0)
        self.debt_end -= _DEBT * self.window * failures


@dataclass(frozen=True)
class Account:
    """One account's month.

    :param hour: when its owner confirms a task, each day.
    :param errors: how many wrong codes the owner types before, each day.
    """

    hour: int
    errors: tuple[int, ...]


def draw(chance: random.Random) -> Account:
    """Return an account like others: most days without an error."""
    errors = chance.choices([0, 1, 2, 3, 4], [80, 12, 5, 2, 1], k=DAYS)
    return Account(chance.randrange(24), tuple(errors))


def guesses_in_model(account: Account, config: Config) -> int:
    """Return how many guesses at an account are compared in the month."""
    budget = Budget(config.recipient_max_failures, config.recipient_failure_window)
    compared = 0
    for hour in range(DAYS * 24):
        now = hour * _HOUR
        if hour % 24 == account.hour:
            _confirm(budget, account.errors[hour // 24], now)
        while not budget.is_blocked(now):
            budget.fail(now)
            compared += 1
    return compared


def _confirm(budget: Budget, errors: int, now: float) -> None:
    for error in range(errors):
        if budget.is_blocked(now):
            return
        budget.fail(now)
        if error == errors - 1 and not budget.is_blocked(now):
            budget.give_back(errors)


class _Device(BaseStrategy):
    address = "device_id"
    code_pattern = "[0-9]{6}"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        return task.id if otp == _RIGHT else None


@contextmanager
def _app() -> Iterator[TaskFlow]:
    taskflow = TaskFlow()
    taskflow.register_strategy("DEVICE")(_Device())
    app = Flask("guessing")
    with redis_server() as url:
        app.config.update(TESTING=True, SECRET_KEY="k" * 32, TASKFLOW_REDIS_URL=url)
        taskflow.init_app(app)
        with app.app_context():
            yield taskflow


def guesses_on_server(account: Account) -> int:
    """Return the same, as a server with default settings has it."""
    compared = 0
    with _app() as taskflow:

        def attempt(task: Task[Any], otp: str) -> bool:
            """Return whether a code was compared."""
            try:
                taskflow.verify(task.id, "DEVICE", otp)
            except RecipientBlocked:
                return False
            except OTPRejected:
                return True
            return True

        numbers = count()

        def add() -> Task[Any]:
            number = next(numbers)
            return taskflow.add_task(
                f"queue-{number % 5}",
                allowed_methods=["DEVICE"],
                recipient={"device_id": f"device-{number}"},
                owner="user:17",
            )

        for hour in range(DAYS * 24):
            try:
                if hour % 24 == account.hour:
                    own = add()
                    for otp in [_WRONG] * account.errors[hour // 24] + [_RIGHT]:
                        attempt(own, otp)
                while attempt(add(), _WRONG):
                    compared += 1
            except SendLimitReached:
                # Nothing is sent either while nothing is compared.
                pass
            travel(_HOUR)
    return compared


def run(*, accounts: int, real: int, seed: int) -> bool:
    """Print what a month of guessing is worth; return whether that is little enough.

    :param accounts: how many accounts the model goes through.
    :param real: how many of them the server goes through as well.
    :param seed: repeats the accounts of a run.
    """
    chance = random.Random(seed)  # Which accounts there are is no secret.
    drawn = [draw(chance) for _ in range(accounts)]
    compared = [guesses_in_model(account, Config()) for account in drawn]
    print(f"{accounts} accounts, {DAYS} days, seed {seed}")
    print(f"guesses compared: {min(compared)} to {max(compared)} an account")
    fine = True
    for what, odds in ODDS.items():
        worst = 1 - (1 - odds) ** max(compared)
        fine &= worst <= CHANCE_MAX
        broken = sum(1 - (1 - odds) ** guesses for guesses in compared)
        print(f"{what}: chance {worst:.2e} at most, {CHANCE_MAX:.0e} allowed; {broken:.3f} accounts expected")
    for account, wanted in zip(drawn[:real], compared, strict=False):
        on_server = guesses_on_server(account)
        print(f"on a server {on_server}, in the model {wanted}")
        fine &= on_server == wanted
    return fine


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    fine = run(accounts=options.accounts, real=options.real, seed=options.seed)
    print("as required" if fine else "NOT AS REQUIRED")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
