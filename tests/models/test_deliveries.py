"""The engine's steps, in any order.

After each step every delivery stands on the server where the model has it (I1, I6), with its counts and its
token (I2, I7). The rules hold the others: I3 and I9 reports, I4 and I5 claims, I8 enqueueing again, I10
extending, I12 a full memory, I13 the drain in the end. I11, no undeclared key, is ``test_acl.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from redis import RedisError

from flask_taskflow import CodeRepeated, Method, OutboxStrategy, Task, TaskNotPending
from flask_taskflow._service import current_service
from flask_taskflow._store.deliveries import NOBODY, End, Suspect
from flask_taskflow._store.records import Claimed
from flask_taskflow.testing import outbox
from tests.conftest import SECRET_KEY
from tests.models.machine import ANY, Machine, run_machine, runs
from tests.models.model import ATTEMPTS, DEAD_RETENTION, LEASE, PLACES, REPEATED, RETRY, Deliveries, Delivery
from tests.support import inside

MAX_LOST = 2
NAMES = ["a", "b"]
VANISHED = "vanished:1:0"

SETS_OF_NAMES = st.sampled_from([["a"], ["b"], ["a", "b"]])
REPORTS = st.sampled_from(["ack", "fail", "fail", "reject", "release"])

with_lines = precondition(lambda machine: machine.lines)
with_claims = precondition(lambda machine: machine.claims)


class Deliver(Machine):
    """What processes that run callbacks do, and what befalls them."""

    def __init__(self) -> None:
        super().__init__()
        self.taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
        for name in NAMES:
            self.taskflow.on_task_verified("q", name=name, max_attempts=ATTEMPTS)(lambda task: None)
        self.deploy(
            [SECRET_KEY], lease=LEASE, max_lost=MAX_LOST, dead_retention=DEAD_RETENTION, task_ttl=86400
        )
        self.service = current_service()
        self.store = inside.store()
        self.lines = Deliveries()
        self.tasks: list[tuple[str, str, float]] = []
        self.claims: list[Claimed] = []
        self.seen: list[Suspect] = []
        self.unmoved: set[tuple[str, ...]] = set()
        self.over = 0

    def line(self, item: Claimed) -> Delivery | None:
        return self.lines.get((item.task_id, item.callback))

    def drop(self, line: Delivery) -> None:
        del self.lines[line.task_id, line.name]
        self.over += 1

    def add(self, address: str, priority: int = 0) -> Task[Any]:
        return self.taskflow.add_task(
            "q", allowed_methods=["EMAIL"], recipient={"email": address}, priority=priority
        )

    @precondition(lambda self: len(self.tasks) < 12)
    @rule(priority=st.sampled_from([0, 0, 1, -1, 2**31, -(2**31)]))
    def verify(self, priority: int) -> None:
        with outbox(self.taskflow) as box:
            task = self.add(f"{len(self.tasks)}@example.com", priority)
            self.taskflow.verify(task.id, "EMAIL", box[-1].otp)
        self.tasks.append((task.id, box[-1].otp, self.now))
        for name in NAMES:
            self.lines.store(task.id, name, priority)

    @precondition(lambda self: self.tasks)
    @rule(which=ANY)
    def verify_again(self, which: int) -> None:
        task_id, otp, verified_at = self.tasks[which % len(self.tasks)]
        since = self.now - verified_at
        if since != REPEATED:
            with pytest.raises(CodeRepeated if since < REPEATED else TaskNotPending):
                self.taskflow.verify(task_id, "EMAIL", otp)

    @rule(
        names=SETS_OF_NAMES,
        most=st.integers(1, 4),
        owner=st.sampled_from([NOBODY, VANISHED]),
        reap=st.sampled_from([True, True, False]),
    )
    def claim(self, names: list[str], most: int, owner: str, reap: bool) -> None:
        chosen, dead = self.lines.claim(self.now, names, most, lost=MAX_LOST, owner=owner, reap=reap)

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
        leased = self.lines.at("lease", *names)
        waits = [line.until for line in [*self.lines.at("delay", *names), *leased]]
        expected = max(min(waits, default=math.inf) - self.now, 0)
        assert (claim.wait is None) == (not waits)
        assert claim.wait is None or abs(claim.wait - expected) < LEASE / 3
        assert claim.held == len(leased)
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
                self._note(step, line)

    def _tell(self, step: str, item: Claimed) -> bool:
        if step == "ack":
            return self.store.ack(item)
        if step == "release":
            return self.store.release(item)
        if step == "reject" or item.failures + 1 >= ATTEMPTS:
            return self.store.end(End(item, "bury", error="failed"))
        return self.store.end(End(item, "fail", RETRY, "failed"))

    def _note(self, step: str, line: Delivery) -> None:
        """Do in the model what an accepted report does."""
        if step == "ack":
            self.drop(line)
        elif step == "release":
            line.put("ready")
        else:
            line.failures += 1
            line.rejected = step == "reject"
            if line.rejected or line.failures >= ATTEMPTS:
                line.put("dead", self.now)
            else:
                line.put("delay", self.now + RETRY)

    @with_lines
    @rule()
    def live_on(self) -> None:
        """Keep what is claimed beyond the end of its first lease; nothing of it can be judged."""
        self.claim(NAMES, 4, NOBODY, True)
        self.wait(1)
        if self.claims:
            self.extend(list(range(len(self.claims))))
        self.wait(1)
        self.claim(NAMES, 4, NOBODY, True)
        for which in range(len(self.lines)):
            self.judge_what_lives(which, "discard")

    @with_lines
    @rule()
    def despair(self) -> None:
        """Lose all that can be claimed until it is dead, then let the first dead letter run again."""
        for _ in range(3):
            self.claim(NAMES, 4, VANISHED, True)
            self.wait(2)
            self.claim(NAMES, 1, VANISHED, False)
            self.claim(NAMES, 4, VANISHED, True)
            self.look()
            self.look()
        if self.lines.at("dead"):
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
        """Look for deliveries of the dead: one that did not move since it was seen is taken."""
        expected: set[tuple[str, ...]] = set()
        taken = 0
        for line in self.lines.at("lease"):
            if line.owner == NOBODY:
                continue
            index = str(NAMES.index(line.name))
            known = (index, line.task_id, str(line.token)) in self.unmoved
            if known and line.lost < MAX_LOST:
                line.lose(self.now, MAX_LOST)
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
        self.let_time_pass(steps)
        # A deadline that moved is not the one that was seen.
        self.unmoved = set()

    @with_lines
    @rule(times=st.integers(1, 4))
    def vanish(self, times: int) -> None:
        """Claim all there is and never report, some times over."""
        for _ in range(times):
            self.claim(NAMES, 4, VANISHED, True)
            self.wait(2)

    @with_lines
    @rule()
    def look_at_what_moved(self) -> None:
        """Claim, and look twice; the deadlines move between."""
        self.claim(NAMES, 4, VANISHED, True)
        self.look()
        self.wait(1)
        self.look()

    @precondition(lambda self: self.lines.at("dead"))
    @rule(which=ANY, step=st.sampled_from(["replay", "discard"]))
    def judge(self, which: int, step: str) -> None:
        dead = sorted(self.lines.at("dead"), key=lambda line: -line.lost)
        line = dead[which % len(dead)] if which % 2 else dead[0]
        do: Callable[..., int] = getattr(self.service.operations, step)

        answers = [do("q", line.name, line.task_id) for _ in range(2)]

        assert answers == [1, 0]
        if step == "discard":
            self.drop(line)
        else:
            line.begin_anew()

    @with_lines
    @rule(which=ANY, step=st.sampled_from(["replay", "discard"]))
    def judge_what_lives(self, which: int, step: str) -> None:
        line = list(self.lines.values())[which % len(self.lines)]
        if line.place != "dead":
            do: Callable[..., int] = getattr(self.service.operations, step)
            assert do("q", line.name, line.task_id) == 0

    @rule()
    def trim(self) -> None:
        for line in self.lines.at("dead"):
            if line.until + DEAD_RETENTION <= self.now:
                self.drop(line)

        assert self.store.trim("q", NAMES) is False

    @rule()
    def add_when_memory_is_full(self) -> None:
        keys = sorted(self.redis.keys())
        self.redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisError):
                self.add("full@example.com")
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
        assert self.lines.stored == self.over + len(found)

    @invariant()
    def dead_letters_have_their_cause(self) -> None:
        for line in self.lines.values():
            hopeless = line.rejected or line.failures >= ATTEMPTS or line.lost > MAX_LOST
            assert (line.place == "dead") == hopeless

    def teardown(self) -> None:
        try:
            for _ in range(4 * len(self.tasks) + 4):
                self.claim(NAMES, 4, NOBODY, True)
                for item in list(self.claims):
                    line = self.line(item)
                    if line is not None and self.store.ack(item):
                        self.drop(line)
                self.server_holds_what_the_model_has()
                self.wait(1)
            assert not any(self.lines.at(place) for place in ("ready", "delay", "lease"))
        finally:
            super().teardown()


@runs(12, 90, 500)
def test_deliveries_in_any_order_are_as_the_model_says(server: str, examples: int) -> None:
    run_machine(Deliver, server, examples)
