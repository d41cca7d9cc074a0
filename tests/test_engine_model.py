"""The engine's steps as a state machine: any order of them on a real server, against a model in Python.

After each step every delivery stands on the server where the model has it (I1, I6), with its counts and its
token (I2, I7). The rules hold the others: I3 and I9 reports, I4 and I5 claims, I8 enqueueing again, I10
extending, I12 a full memory, I13 the drain in the end. I11, no undeclared key, is ``test_acl.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import SECRET_KEY
from flask import Flask
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from model_support import run_machine
from redis import Redis, RedisError

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow, TaskNotPending
from flask_taskflow._deliveries import NOBODY, Claimed, Suspect
from flask_taskflow.testing import outbox, travel

# Time moves in steps of 7 s; whatever begins then ends between two of them, so that the seconds which the
# test itself takes never decide.
STEP = 7
LEASE = 10
RETRY = 15
KEPT = 64
MAX_ATTEMPTS, MAX_LOST = 3, 2
NAMES = ("a", "b")
VANISHED = "vanished:1:0"
PLACES = ("ready", "delay", "lease", "dead")

SETS_OF_NAMES = st.sampled_from([["a"], ["b"], ["a", "b"]])
REPORTS = st.sampled_from(["ack", "fail", "fail", "reject", "release"])
ANY = st.integers(0, 10**6)


@dataclass
class Line:
    """A delivery as it must be; ``until`` is when its delay or lease ends, or when it died."""

    task_id: str
    name: str
    number: int
    priority: int
    place: str = "ready"
    until: float = 0.0
    failures: int = 0
    lost: int = 0
    token: int = 0
    owner: str = NOBODY
    rejected: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        return -self.priority, self.number

    def put(self, place: str, until: float = 0.0) -> None:
        self.place, self.until = place, until

    def lose(self, now: float) -> bool:
        """Lose its process; whether it is dead now."""
        self.lost += 1
        if self.lost > MAX_LOST:
            self.put("dead", now)
        elif self.lost == 1:
            self.put("ready")
        else:
            self.put("delay", now + LEASE)
        return self.place == "dead"


with_claims = precondition(lambda machine: machine.claims)


class Machine(RuleBasedStateMachine):
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.redis: Any = Redis.from_url(self.url)
        self.redis.flushall()
        self.taskflow = TaskFlow()
        self.taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
        for name in NAMES:
            self.taskflow.on_task_verified("q", name=name, max_attempts=MAX_ATTEMPTS)(lambda task: None)
        self.app = Flask("app")
        self.app.config.update(
            TESTING=True,
            SECRET_KEY=SECRET_KEY,
            TASKFLOW_REDIS_URL=self.url,
            TASKFLOW_LEASE=LEASE,
            TASKFLOW_MAX_LOST=MAX_LOST,
            TASKFLOW_DEAD_RETENTION=KEPT,
            TASKFLOW_TASK_TTL=86400,
        )
        self.taskflow.init_app(self.app)
        self.context = self.app.app_context()
        self.context.push()
        self.service = self.taskflow._service()
        self.store = self.service.runtime.new_engine()._store
        self.now = 0.0
        self.lines: dict[tuple[str, str], Line] = {}
        self.tasks: list[tuple[str, str]] = []
        self.claims: list[Claimed] = []
        self.seen: list[Suspect] = []
        self.unmoved: set[tuple[str, ...]] = set()
        self.enqueued = self.over = 0

    def line(self, item: Claimed) -> Line | None:
        return self.lines.get((item.task_id, item.callback))

    def of(self, names: list[str], place: str) -> list[Line]:
        return [line for line in self.lines.values() if line.name in names and line.place == place]

    def drop(self, line: Line) -> None:
        del self.lines[line.task_id, line.name]
        self.over += 1

    @precondition(lambda self: len(self.tasks) < 12)
    @rule(priority=st.sampled_from([0, 0, 1, -1, 2**31, -(2**31)]))
    def verify(self, priority: int) -> None:
        number = len(self.tasks)
        with outbox(self.taskflow) as box:
            task = self.taskflow.add_task(
                "q",
                allowed_methods=["EMAIL"],
                recipient={"email": f"{number}@example.com"},
                priority=priority,
            )
            self.taskflow.verify(task.id, "EMAIL", box[-1].otp)
        self.tasks.append((task.id, box[-1].otp))
        for name in NAMES:
            self.enqueued += 1
            self.lines[task.id, name] = Line(task.id, name, self.enqueued, priority)

    @precondition(lambda self: self.tasks)
    @rule(which=ANY)
    def verify_again(self, which: int) -> None:
        task_id, otp = self.tasks[which % len(self.tasks)]
        with pytest.raises(TaskNotPending):
            self.taskflow.verify(task_id, "EMAIL", otp)

    @rule(
        names=SETS_OF_NAMES,
        most=st.integers(1, 4),
        owner=st.sampled_from([NOBODY, VANISHED]),
        reap=st.sampled_from([True, True, False]),
    )
    def claim(self, names: list[str], most: int, owner: str, reap: bool) -> None:
        for line in self.of(names, "delay"):
            if line.until <= self.now:
                line.put("ready")
        over = [line for line in self.of(names, "lease") if reap and line.until <= self.now]
        # What was just given a pause is not due at once.
        dead = [line for line in over if line.lose(self.now)]
        chosen = sorted(self.of(names, "ready"), key=lambda line: line.rank)[:most]
        for line in chosen:
            line.token, line.owner = line.token + 1, owner
            line.put("lease", self.now + LEASE)

        claim = self.store.claim("q", names, most, owner=owner, reap=reap)

        def shown(item: Claimed) -> tuple[Any, ...]:
            return item.task_id, item.callback, item.token, item.failures, item.lost

        assert [shown(item) for item in claim.deliveries] == [
            (line.task_id, line.name, line.token, line.failures, line.lost) for line in chosen
        ]
        assert sorted(shown(item) for item in claim.dead) == sorted(
            (line.task_id, line.name, 0, line.failures, line.lost) for line in dead
        )
        assert all(isinstance(item.task, Task) for item in claim.deliveries)
        waits = [line.until for line in [*self.of(names, "delay"), *self.of(names, "lease")]]
        expected = max(min(waits, default=math.inf) - self.now, 0)
        assert abs((math.inf if claim.wait is None else claim.wait) - expected) < 1 or expected == math.inf
        assert (claim.wait is None) == (not waits)
        assert claim.held == len(self.of(names, "lease"))
        self.claims += claim.deliveries

    @with_claims
    @rule(which=ANY, among=st.sampled_from([6, 6, 10**6]), step=REPORTS, times=st.integers(1, 2))
    def report(self, which: int, among: int, step: str, times: int) -> None:
        # Often one that is the newest still.
        item = self.claims[-1 - which % min(len(self.claims), among)]
        for _ in range(times):
            line = self.line(item)
            newest = line is not None and line.token == item.token
            accepted = newest and (step == "ack" or (line is not None and line.place == "lease"))

            answer = self._tell(step, item)

            assert answer == accepted
            if line is not None and accepted:
                self._model(step, line, item)

    def _tell(self, step: str, item: Claimed) -> bool:
        if step == "ack":
            return self.store.ack(item)
        if step == "release":
            return self.store.release(item)
        if step == "reject" or item.failures + 1 >= MAX_ATTEMPTS:
            return self.store.bury(item, "failed")
        return self.store.fail(item, RETRY, "failed")

    def _model(self, step: str, line: Line, item: Claimed) -> None:
        if step == "ack":
            self.drop(line)
        elif step == "release":
            line.put("ready")
        else:
            line.failures += 1
            line.rejected = step == "reject"
            if line.rejected or line.failures >= MAX_ATTEMPTS:
                line.put("dead", self.now)
            else:
                line.put("delay", self.now + RETRY)

    @precondition(lambda self: self.lines)
    @rule()
    def live_on(self) -> None:
        """Keep what is claimed beyond the end of its first lease; nothing of it can be judged."""
        self.claim(list(NAMES), 4, NOBODY, True)
        self.wait(1)
        if self.claims:
            self.extend(list(range(len(self.claims))))
        self.wait(1)
        self.claim(list(NAMES), 4, NOBODY, True)
        for which in range(len(self.lines)):
            self.judge_what_lives(which, "discard")

    @precondition(lambda self: self.lines)
    @rule()
    def despair(self) -> None:
        """Lose all that can be claimed until it is dead, then let the first dead letter run again."""
        for _ in range(3):
            self.claim(list(NAMES), 4, VANISHED, True)
            self.wait(2)
            self.claim(list(NAMES), 1, VANISHED, False)
            self.claim(list(NAMES), 4, VANISHED, True)
            self.look()
            self.look()
        if self.of(list(NAMES), "dead"):
            self.judge(0, "replay")

    @with_claims
    @rule(which=st.lists(ANY, min_size=1, max_size=5, unique=True))
    def extend(self, which: list[int]) -> None:
        items = list({id(item): item for item in (self.claims[i % len(self.claims)] for i in which)}.values())
        lost = []
        for item in items:
            line = self.line(item)
            if line is not None and line.token == item.token and line.place == "lease":
                line.until = max(line.until, self.now + LEASE)
                self.seen = [each for each in self.seen if each[1] != item.task_id]
                self.unmoved = {each for each in self.unmoved if each[1] != item.task_id}
            else:
                lost.append(item)

        assert self.store.extend("q", items) == lost

    @rule()
    def look(self) -> None:
        expected: set[tuple[str, ...]] = set()
        taken = 0
        for line in self.of(list(NAMES), "lease"):
            if line.owner == NOBODY:
                continue
            index = str(NAMES.index(line.name))
            known = (index, line.task_id, str(line.token)) in self.unmoved
            if known and line.lost < MAX_LOST:
                line.lose(self.now)
                taken += 1
            else:
                expected.add((index, line.task_id, str(line.token)))

        look = self.store.look("q", NAMES, "own:1:0", self.seen)

        assert {each[:3] for each in look.suspects} == expected
        assert look.taken == taken
        self.seen = list(look.suspects)
        self.unmoved = expected

    @rule(steps=st.sampled_from([1, 1, 1, 2, 10]))
    def wait(self, steps: int) -> None:
        travel(STEP * steps)
        self.now += STEP * steps
        # A deadline that moved is not the one that was seen.
        self.unmoved = set()

    @precondition(lambda self: self.lines)
    @rule(times=st.integers(1, 4))
    def vanish(self, times: int) -> None:
        """Claim all there is and never report, some times over."""
        for _ in range(times):
            self.claim(list(NAMES), 4, VANISHED, True)
            self.wait(2)

    @precondition(lambda self: self.lines)
    @rule()
    def look_at_what_moved(self) -> None:
        """Claim, and look twice; the deadlines move between."""
        self.claim(list(NAMES), 4, VANISHED, True)
        self.look()
        self.wait(1)
        self.look()

    @precondition(lambda self: self.of(NAMES, "dead"))
    @rule(which=ANY, step=st.sampled_from(["replay", "discard"]))
    def judge(self, which: int, step: str) -> None:
        dead = sorted(self.of(list(NAMES), "dead"), key=lambda line: -line.lost)
        line = dead[which % len(dead)] if which % 2 else dead[0]
        do: Callable[..., bool] = getattr(self.service.operations, step)

        answers = [do("q", line.name, line.task_id) for _ in range(2)]

        assert answers == [True, False]
        if step == "discard":
            self.drop(line)
        else:
            line.failures = line.lost = 0
            line.rejected = False
            line.put("ready")

    @precondition(lambda self: self.lines)
    @rule(which=ANY, step=st.sampled_from(["replay", "discard"]))
    def judge_what_lives(self, which: int, step: str) -> None:
        line = list(self.lines.values())[which % len(self.lines)]
        if line.place != "dead":
            do: Callable[..., bool] = getattr(self.service.operations, step)
            assert do("q", line.name, line.task_id) is False

    @rule()
    def trim(self) -> None:
        for line in self.of(list(NAMES), "dead"):
            if line.until + KEPT <= self.now:
                self.drop(line)

        assert self.store.trim("q", NAMES) is False

    @rule()
    def add_when_memory_is_full(self) -> None:
        keys = sorted(self.redis.keys())
        self.redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisError):
                self.taskflow.add_task(
                    "q", allowed_methods=["EMAIL"], recipient={"email": "full@example.com"}
                )
        finally:
            self.redis.config_set("maxmemory", 0)
        assert sorted(self.redis.keys()) == keys

    @invariant()
    def server_holds_what_the_model_has(self) -> None:
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        keys = self.service.keys
        for name in NAMES:
            tag = keys.tag("q")
            meta_key, body_key = keys.handler(tag, name, "meta", "body")
            meta = self.redis.hgetall(meta_key)
            assert set(meta) == set(self.redis.hkeys(body_key))
            for place, key in zip(PLACES, keys.handler(tag, name, *PLACES), strict=True):
                for member, score in self.redis.zrange(key, 0, -1, withscores=True):
                    task_id = member[17:]
                    assert (task_id.decode(), name) not in found
                    row = meta.pop(task_id).decode().split()
                    assert row[0] == "1"
                    assert member[:16].decode() == row[1]
                    assert place != "ready" or score == -int(row[2])
                    found[task_id.decode(), name] = (place, int(row[1], 16), *map(int, row[2:6]))
            assert meta == {}
        assert found == {
            key: (line.place, line.number, line.priority, line.failures, line.lost, line.token)
            for key, line in self.lines.items()
        }
        assert self.enqueued == self.over + len(found)

    @invariant()
    def dead_letters_have_their_cause(self) -> None:
        for line in self.lines.values():
            hopeless = line.rejected or line.failures >= MAX_ATTEMPTS or line.lost > MAX_LOST
            assert (line.place == "dead") == hopeless

    def teardown(self) -> None:
        try:
            for _ in range(4 * len(self.tasks) + 4):
                self.claim(["a", "b"], 4, NOBODY, True)
                for item in list(self.claims):
                    if self.line(item) is not None and self.store.ack(item):
                        self.drop(self.lines[item.task_id, item.callback])
                self.server_holds_what_the_model_has()
                self.wait(1)
            assert not any(self.of(list(NAMES), place) for place in ("ready", "delay", "lease"))
        finally:
            self.context.pop()
            self.service.client.close()
            self.service.runtime._client.close()
            self.redis.close()


@pytest.fixture
def machine(server: str) -> type[Machine]:
    class OnServer(Machine):
        url = server

    return OnServer


def test_engine_in_any_order_is_as_the_model_says(machine: type[Machine]) -> None:
    run_machine(machine, examples=30, steps=40, same=True)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_engine_in_any_order_for_long_is_as_the_model_says(machine: type[Machine]) -> None:
    run_machine(machine, examples=500, steps=60, same=False)
