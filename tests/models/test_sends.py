"""The life of tasks whose codes are sent in the background, in any order of steps.

Providers take codes, fail, refuse, or vanish with their process before or after they took a code; such a
process may come back and report late. A pending task always has a code in force or on its way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from flask import Flask
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from flask_taskflow import Status, Task
from flask_taskflow._delivery.attempts import ReportOnce
from flask_taskflow._delivery.engine import Engine
from flask_taskflow._delivery.sender import Failure
from flask_taskflow._delivery.sends import SendRunner
from flask_taskflow._service import current_service
from flask_taskflow._store.records import Claimed
from flask_taskflow._store.records import Code as Stored
from flask_taskflow.signals import task_failed
from tests.models.machine import ANY, METHODS, RARELY, TaskMachine, run_machine, runs, with_tasks
from tests.models.model import BACKOFF, CODE_TTL, FIELDS, PLACES, RETRY, Code, Delivery, TaskModel
from tests.support import inside

OUTCOMES = st.sampled_from(["ok", "fail", "fail", "fail", "reject", "retry"])

with_sends = precondition(lambda machine: machine.world.sends)
with_absent = precondition(lambda machine: machine.absent)


@dataclass(eq=False)
class Absent:
    """A process that claimed a send and told nothing yet."""

    item: Claimed
    task: TaskModel
    send: Delivery
    token: int
    sent: Stored | None = None
    code: Code | None = None
    may_fail: bool = True

    @property
    def method(self) -> str:
        return self.item.callback[1:]


class Background(TaskMachine):
    """What processes that send do, and what befalls them."""

    background = True
    most, most_pending = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.absent: list[Absent] = []
        self.told: Counter[str] = Counter()
        task_failed.connect(self.on_failed)

    def on_failed(self, app: Flask, task: Task[Any]) -> None:
        assert task.status is Status.FAILED
        self.told[task.id] += 1

    def teardown(self) -> None:
        task_failed.disconnect(self.on_failed)
        super().teardown()

    @initialize(
        policy=st.sampled_from(["same", "same", "rotate"]),
        makes=RARELY,
        max_sends=st.sampled_from([2, 3, 5, 5]),
        recipient_sends=st.sampled_from([2, 4, 100]),
    )
    def begin(self, policy: str, makes: bool, max_sends: int, recipient_sends: int) -> None:
        self.world.recipient_sends = recipient_sends
        self.start(policy, ["SMS"] if makes else [], max_sends)

    def engine(self, method: str) -> tuple[Engine, SendRunner]:
        engine = inside.engine(method)
        assert isinstance(engine._runner, SendRunner)
        return engine, engine._runner

    @with_tasks
    @rule(
        data=st.data(),
        waits=st.sampled_from(["", "", "nearly", "enough", "enough", "enough"]),
        then=st.sampled_from(["", "ok", "fail", "reject"]),
    )
    def resend(self, data: st.DataObject, waits: str, then: str) -> None:
        task = self.pick(data)
        method = data.draw(st.sampled_from([*task.methods * 2, *sorted(task.given_up) * 3, "EMAIL", "SMS"]))
        self.wait_for_cooldown(task, method, waits)
        self.resend_by(task, method)
        if then:
            self.run(then, then, 1 + 2 * (then == "fail"))

    @with_sends
    @rule(email=OUTCOMES, sms=OUTCOMES, times=st.integers(1, 4))
    def let_them_send(self, email: str, sms: str, times: int) -> None:
        self.run(email, sms, times)

    @with_sends
    @rule(email=OUTCOMES, sms=OUTCOMES)
    def run_after_an_outage(self, email: str, sms: str) -> None:
        """Let what waits be sent when its codes are old."""
        self.wait_until(self.now + CODE_TTL)
        self.run(email, sms, 1)

    @with_sends
    @rule(sms=OUTCOMES, last=OUTCOMES)
    def refuse_one_for_long(self, sms: str, last: str) -> None:
        """Let a mail server be away until the other method is tried as well, and longer."""
        self.run("fail", sms, 6)
        self.run(last, sms, 2)

    def run(self, email: str, sms: str, times: int) -> None:
        """Let providers be handed what is due, and then what is due after that."""
        for _ in range(times):
            self.run_what_is_due(email, sms)
            self.wait_for_sends()

    def wait_for_sends(self) -> None:
        self.wait_until(max(self.waiting(), default=0))

    def run_what_is_due(self, email: str, sms: str) -> None:
        self.moods.update(EMAIL=email, SMS=sms)
        expected, attempts, more = [], 0, True
        start = len(self.handed)

        ran = self.taskflow.run_due()

        given = self.handed[start:]
        carried = iter(given)
        while more:
            more = False
            for method in FIELDS:
                while claimed := self.world.claim(method):
                    more, attempts = True, attempts + 1
                    task, send = claimed
                    address = task.recipient.get(FIELDS[method], "")
                    if self.world.attempt(task, method, send, self.moods[method]):
                        expected.append((task.id, method, address))
                        self.see(task, method, next(carried, None))
        assert ran == attempts
        assert [(item.task_id, item.method, item.address) for item in given] == expected

    @with_sends
    @rule(method=METHODS, took=st.booleans(), began=st.booleans(), times=st.sampled_from([1, 1, 1, 2, 5]))
    def vanish(self, method: str, began: bool, took: bool, times: int) -> None:
        """Let processes vanish with a send, before they hand the code to the provider or after."""
        for _ in range(times):
            self.vanish_once(method, began=began, took=took)
            if times > 1:
                self.wait_for_sends()

    def vanish_once(self, method: str, *, began: bool, took: bool) -> Absent | None:
        engine, runner = self.engine(method)
        claimed = self.world.claim(method)

        claim = engine._store.claim("q", [f"@{method}"], 1)

        for item in claim.dead:
            runner.end_lost(item)
        assert [item.task_id for item in claim.deliveries] == ([claimed[0].id] if claimed else [])
        if claimed is None:
            return None
        task, send = claimed
        absent = Absent(claim.deliveries[0], task, send, send.token)
        assert (absent.item.failures, absent.item.lost) == (send.failures, send.lost)
        due = runner._due(absent.item, ReportOnce(inside.store()))
        assert (due is not None) == self.world.due(task, method)
        needless = due is not None and due.needless is not None
        assert needless == (due is not None and self.world.needless(task, method))
        if due is not None and began and not needless:
            self.moods[method] = "ok" if took else "fail"
            absent.code = self.world.renew(task, method)
            sent = runner._try(runner.begin(absent.item), due)
            assert isinstance(sent, Stored if took else Failure)
            absent.sent = sent if isinstance(sent, Stored) else None
            self.see(task, method, self.handed[-1])
        self.absent.append(absent)
        return absent

    @with_sends
    @rule(method=METHODS, how=st.sampled_from(["asked", "claimed", "failed"]), mood=OUTCOMES, last=OUTCOMES)
    def be_overtaken(self, method: str, how: str, mood: str, last: str) -> None:
        """Let a process report success after its send began anew, was another's, or counted as failed."""
        absent = self.vanish_once(method, began=True, took=True)
        if absent is None:
            return
        if how == "asked":
            self.wait_for_cooldown(absent.task, method, "enough")
            self.resend_by(absent.task, method)
        elif how == "claimed":
            self.wait_for_sends()
            self.run_what_is_due(mood, mood)
        else:
            self.report_failure(absent, mood)
        self.report_success(absent)
        self.run(last, last, 1)

    @with_absent
    @rule(which=ANY, among=st.sampled_from([2, 10**6]), times=st.integers(1, 2))
    def come_back_with_success(self, which: int, among: int, times: int) -> None:
        self.report_success(self.absent[-1 - which % min(len(self.absent), among)], times)

    def report_success(self, absent: Absent, times: int = 1) -> None:
        if absent.sent is None:
            return
        item, task, method = absent.item, absent.task, absent.method
        for _ in range(times):
            current_service().runtime.engines.codes.sent(item.task_id, "q", item.token, absent.sent)

            if self.holds(absent):
                del self.world.sends[task.id, item.callback]
            elif absent.code is not None and task.codes.get(method) is absent.code:
                absent.code.out += self.now < task.gone_at
                task.given_up.discard(method)

    @with_absent
    @rule(which=ANY, among=st.sampled_from([2, 10**6]), mood=st.sampled_from(["fail", "reject", "retry"]))
    def come_back_with_failure(self, which: int, among: int, mood: str) -> None:
        self.report_failure(self.absent[-1 - which % min(len(self.absent), among)], mood)

    def report_failure(self, absent: Absent, mood: str) -> None:
        if not absent.may_fail:
            return
        absent.may_fail = False
        _, runner = self.engine(absent.method)
        after = RETRY if mood == "retry" else None
        failure = Failure(None, "OSError", "OSError", final=mood == "reject", after=after)

        runner._fail(absent.item, failure, ReportOnce(inside.store()), left=absent.task.expires - self.now)

        if self.holds(absent) and absent.send.place == "lease":
            self.world.fail(absent.task, absent.method, absent.send, mood)

    def holds(self, absent: Absent) -> bool:
        """Whether nobody claimed its send since, or let it begin anew."""
        send = self.world.sends.get((absent.task.id, absent.item.callback))
        return send is absent.send and send.token == absent.token

    @invariant()
    def sends_stand_where_the_model_has_them(self) -> None:
        if not self.world.tasks:
            return
        tag = next(iter(self.world.tasks))[:8]
        for method in FIELDS:
            head = f"taskflow:{{taskflow.{tag}}}:h:@{method}:"
            with self.redis.pipeline(transaction=False) as pipeline:
                for name in PLACES:
                    pipeline.zrange(f"{head}{name}", 0, -1)
                *stored, meta, body = pipeline.hgetall(f"{head}meta").hkeys(f"{head}body").execute()
            places = [
                (member[17:].decode(), name)
                for name, members in zip(PLACES, stored, strict=True)
                for member in members
            ]
            mine = [send for send in self.world.sends.values() if send.name == f"@{method}"]
            assert sorted(places) == sorted((send.task_id, send.place) for send in mine)
            counts = {task_id.decode(): tuple(map(int, line.split()[3:5])) for task_id, line in meta.items()}
            assert counts == {send.task_id: (send.failures, send.lost) for send in mine}
            assert set(body) == set(meta)

    @invariant()
    def failures_are_told_of_once(self) -> None:
        assert self.told == Counter({task.id: task.fails for task in self.world.tasks.values() if task.fails})

    @invariant()
    def providers_are_asked_within_the_limits(self) -> None:
        lost = Counter(absent.item.task_id for absent in self.absent)
        for task_id, count in Counter(item.task_id for item in self.handed).items():
            task = self.world.tasks[task_id]
            assert count <= task.sends * (task.ttl // BACKOFF + 2) + lost[task_id]


@runs(10, 90, 600)
def test_sends_in_any_order_are_as_the_model_says(server: str, examples: int) -> None:
    run_machine(Background, server, examples)
