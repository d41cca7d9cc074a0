"""The life of tasks whose codes are sent in the call, in any order of steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flask import Flask
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from flask_taskflow import Task, task_verified
from tests.models.machine import RARELY, TaskMachine, run_machine, runs, with_tasks


class Inline(TaskMachine):
    """Codes are sent in the call, and callbacks run in it."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.taskflow.on_task_verified("q", name="act")(self.act)
        task_verified.connect(self.on_verified)

    def act(self, task: Task[Any]) -> None:
        self.ran[task.id] += 1

    def on_verified(self, app: Flask, task: Task[Any]) -> None:
        self.fired[task.id] += 1

    def teardown(self) -> None:
        task_verified.disconnect(self.on_verified)
        super().teardown()

    @with_tasks
    @rule(data=st.data(), waits=st.sampled_from(["", "nearly", "enough"]), fails=RARELY, used=RARELY)
    def resend(self, data: st.DataObject, waits: str, fails: bool, used: bool) -> None:
        task = self.pick(data)
        method = data.draw(st.sampled_from([*task.methods, *task.methods, "EMAIL", "SMS"]))
        self.wait_for_cooldown(task, method, waits)
        before = len(self.handed)
        self.resend_by(task, method, {method} if fails else ())
        if used and len(self.handed) > before:
            self.verify(task, method, self.handed[-1].otp)

    @precondition(lambda self: len(self.world.keys) > 1)
    @rule(sure=RARELY)
    def take_the_oldest_key_away(self, sure: bool) -> None:
        if sure:
            self.world.keys.pop()
            self.redeploy()

    @invariant()
    def every_success_is_told_and_acted_on_once(self) -> None:
        assert self.ran == self.fired == Counter(self.succeeded)


@runs(10, 60, 500)
def test_tasks_in_any_order_are_as_the_model_says(server: str, examples: int) -> None:
    run_machine(Inline, server, examples)
