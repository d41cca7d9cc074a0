"""What the state machines share: an app on a real server, its clock, and the steps that people take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.ctx import AppContext
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from flask_taskflow import BaseStrategy, Reject, Retry, Status, Task, TaskFlow
from flask_taskflow.errors import KeyMissing, OTPRejected, SendFailed, TaskFlowError, TaskNotFound
from flask_taskflow.signals import otp_sent
from flask_taskflow.testing import travel
from tests.models import model
from tests.models.model import FIELDS, MAX_ATTEMPTS, MAX_UPDATES, RETRY, STEP, TaskModel, Verdict, World
from tests.support import inside

LENGTH = 12
ADDRESSES = {
    "email": ["ann@example.com", "bob@example.com", "cid@example.com"],
    "phone_number": ["+12025550110", "+12025550111", "+12025550112"],
}
METHODS = st.sampled_from(["EMAIL", "SMS"])
RARELY = st.sampled_from([False, False, False, True])
ANY = st.integers(0, 10**6)
#: Up to so many examples are the same in each run.
SAME = 100


def runs(usual: int, slow: int, chaos: int) -> pytest.MarkDecorator:
    """Give a test its numbers of examples; those of chaos are others each time, with more steps.

    The others are the same, until the text of the machine's class changes.
    """
    long = [pytest.mark.chaos, pytest.mark.timeout(1800)]
    params = [usual, pytest.param(slow, marks=pytest.mark.slow), pytest.param(chaos, marks=long)]
    return pytest.mark.parametrize("examples", params)


def run_machine(machine: type[Machine], url: str, examples: int) -> None:
    """Run a state machine on a server."""
    same = examples <= SAME
    chosen = settings(
        max_examples=examples,
        stateful_step_count=40 if same else 60,
        derandomize=same,
        print_blob=not same,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.url = url
    run_state_machine_as_test(machine, settings=chosen)


class Machine(RuleBasedStateMachine):
    """An app on a server of its own, whose clock goes by the model's."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.redis: Any = Redis.from_url(self.url)
        self.redis.flushall()
        self.taskflow = TaskFlow()
        self.world = World()
        self.context: AppContext | None = None
        self._moved_at = time.monotonic()

    def deploy(self, keys: list[str], **given: Any) -> None:
        """Go on in a new process, as it were: another app on the same server."""
        self.close()
        app = Flask("app")
        app.config.update(TESTING=True, SECRET_KEY=keys[0], SECRET_KEY_FALLBACKS=keys[1:])
        app.config.update({f"TASKFLOW_{name.upper()}": value for name, value in given.items()})
        app.config["TASKFLOW_REDIS_URL"] = self.url
        self.taskflow.init_app(app)
        self.context = app.app_context()
        self.context.push()

    def close(self) -> None:
        if self.context is not None:
            inside.close()
            self.context.pop()
            self.context = None

    def teardown(self) -> None:
        self.close()
        self.redis.close()

    @property
    def now(self) -> float:
        """The model's time."""
        return self.world.now

    def let_time_pass(self, steps: int) -> None:
        """Move the server's clock to the model's, less what the test itself took since the last time."""
        if steps <= 0:
            return
        now = time.monotonic()
        took = now - self._moved_at
        # The machine was too slow for its own clock: this example shows nothing.
        assume(took < STEP / 2)
        travel(steps * STEP - took)
        self._moved_at = now
        self.world.now += steps * STEP

    def wait_until(self, end: float, *, early: bool = False) -> None:
        """Go to just after the end of something, or just before."""
        self.let_time_pass(math.ceil((end - self.now) / STEP) - early)

    def outcome(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except TaskFlowError as error:
            return error


@dataclass(frozen=True)
class Handed:
    """What a provider was given."""

    task_id: str
    method: str
    address: str
    otp: str
    took: bool


class Provider(BaseStrategy):
    """Do as told, and keep what is handed in."""

    def __init__(self, method: str, handed: list[Handed], moods: dict[str, str]) -> None:
        self.method, self.handed, self.moods = method, handed, moods

    def send(self, task: Task[Any], otp: str) -> None:
        mood = self.moods[self.method]
        address = task.recipient.addresses()[FIELDS[self.method]]
        self.handed.append(Handed(task.id, self.method, address, str(otp), mood == "ok"))
        if mood != "ok":
            raise {"fail": OSError(), "reject": Reject(), "retry": Retry(after=RETRY)}[mood]


class Maker(Provider):
    """Make codes of its own."""

    code_pattern = f"[0-9]{{{LENGTH}}}"
    made = 0

    def generate(self, task: Task[Any]) -> str:
        self.made += 1
        return f"{self.made:0{LENGTH}}"


with_tasks = precondition(lambda machine: machine.world.tasks)


class TaskMachine(Machine):
    """What an app asks for, in any order; its codes are sent in the call or in the background."""

    background = False
    #: Tasks there are at most, and those of them that are pending.
    most, most_pending = 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[Handed] = []
        self.moods: dict[str, str] = {}
        self.seen_at: dict[str, float] = {}
        self.succeeded: list[str] = []
        self.counters: dict[str, tuple[int, ...]] = {}
        self.told_sent: Counter[str] = Counter()
        otp_sent.connect(self.on_sent)

    def on_sent(self, app: Flask, task: Task[Any], method: str) -> None:
        self.told_sent[task.id] += 1

    def teardown(self) -> None:
        otp_sent.disconnect(self.on_sent)
        super().teardown()

    def start(self, policy: str, makers: Iterable[str] = (), max_sends: int = 5) -> None:
        world = self.world
        world.policy, world.max_sends, world.background = policy, max_sends, self.background
        world.makers = set(makers)
        for method in FIELDS:
            kind = Maker if method in world.makers else Provider
            self.taskflow.register_strategy(method)(kind(method, self.handed, self.moods))
        self.redeploy()

    def redeploy(self) -> None:
        """Go on with the keys of now."""
        self.deploy(
            [f"secret key number {number} of the machine" for number in self.world.keys],
            send="background" if self.background else "inline",
            eager=not self.background,
            send_backoff=model.BACKOFF,
            send_backoff_max=model.BACKOFF_MAX,
            send_fallback=model.FALLBACK,
            lease=model.LEASE,
            max_lost=model.MAX_LOST,
            otp_length=LENGTH,
            otp_ttl=model.CODE_TTL,
            allow_weak_codes=True,
            otp_max_attempts=MAX_ATTEMPTS,
            resend_policy=self.world.policy,
            resend_cooldown=model.COOLDOWN,
            resend_cooldown_max=model.COOLDOWN_MAX,
            max_sends=self.world.max_sends,
            max_recipient_updates=MAX_UPDATES,
            retention=model.RETENTION,
            recipient_max_sends=self.world.recipient_sends,
            recipient_window=model.WINDOW,
            recipient_max_failures=100_000,
        )

    @initialize(policy=st.sampled_from(["same", "same", "rotate"]))
    def begin(self, policy: str) -> None:
        self.start(policy)

    @precondition(lambda self: self.world.key < 3)
    @rule()
    def rotate_key(self) -> None:
        self.world.key += 1
        self.world.keys.insert(0, self.world.key)
        self.redeploy()

    @precondition(lambda self: len(self.world.tasks) < self.most)
    @precondition(lambda self: len(self.world.pending()) < self.most_pending)
    @rule(
        who=st.integers(0, 2),
        methods=st.sampled_from([["EMAIL"], ["SMS"], ["EMAIL", "SMS"], ["EMAIL", "SMS"], ["SMS", "EMAIL"]]),
        by_all=st.booleans(),
        ttl=st.sampled_from(model.TTLS),
        poor=RARELY,
        priority=st.sampled_from([0, 0, 1, -1]),
        down=st.sets(METHODS, max_size=1),
    )
    def add(
        self, who: int, methods: list[str], by_all: bool, ttl: int, poor: bool, priority: int, down: set[str]
    ) -> None:
        # One phone for all, so that falling back to it meets the recipient's limit.
        recipient = {"email": ADDRESSES["email"][who], "phone_number": ADDRESSES["phone_number"][0]}
        if poor and methods[0] == "EMAIL":
            del recipient["phone_number"]
            by_all = False
        given: dict[str, Any] = {"ttl": ttl, "priority": priority, "send_via": methods if by_all else None}
        macs, expires = self.world.macs(recipient), self.now + ttl
        ends = expires, expires + model.RETENTION
        task = TaskModel("", methods, recipient, macs, self.world.key, priority, ttl, *ends)

        def call() -> Any:
            added = self.outcome(
                lambda: self.taskflow.add_task("q", allowed_methods=methods, recipient=recipient, **given)
            )
            known = added.task if isinstance(added, SendFailed) else added
            if isinstance(known, Task):
                task.id = known.id
                self.world.tasks[task.id] = task
            return added

        self.take(task, call, lambda: self.world.add(task, methods if by_all else methods[:1]), down)

    @with_tasks
    @rule(
        data=st.data(),
        changes=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(known) for name, known in ADDRESSES.items()}
        ).filter(bool),
        down=st.sets(METHODS, max_size=1),
    )
    def update_recipient(self, data: st.DataObject, changes: dict[str, str], down: set[str]) -> None:
        task = self.pick(data)
        call = partial(self.taskflow.update_recipient, task.id, changes)
        self.take(task, call, lambda: self.world.update(task, changes), down)

    @with_tasks
    @rule(data=st.data(), sure=st.booleans())
    def verify_right(self, data: st.DataObject, sure: bool) -> None:
        task = self.pick(data)
        known = {method: code.otp for method, code in task.codes.items() if code.otp and code.out}
        if known and sure:
            method = data.draw(st.sampled_from(sorted(known)))
            self.verify(task, method, known[method])

    @with_tasks
    @rule(data=st.data(), which=ANY, own=st.booleans(), swapped=RARELY)
    def verify_with_any_code_ever_made(
        self, data: st.DataObject, which: int, own: bool, swapped: bool
    ) -> None:
        task = self.pick(data)
        codes = [item for item in self.handed if (item.task_id == task.id) is own]
        if codes:
            chosen = codes[which % len(codes)]
            other = "SMS" if chosen.method == "EMAIL" else "EMAIL"
            self.verify(task, other if swapped else chosen.method, chosen.otp)

    @with_tasks
    @rule(data=st.data(), method=st.sampled_from(["EMAIL", "SMS", "SMART_OTP"]))
    def verify_wrong(self, data: st.DataObject, method: str) -> None:
        self.verify(self.pick(data), method, "9" * LENGTH)

    @with_tasks
    @rule(data=st.data(), sure=st.sampled_from([False] * 7 + [True]))
    def cancel(self, data: st.DataObject, sure: bool) -> None:
        if sure:
            task = self.pick(data)
            call = partial(self.taskflow.cancel_task, task.id)
            self.take(task, call, lambda: self.world.cancel(task))

    @with_tasks
    @rule(data=st.data(), early=st.booleans(), far=st.booleans())
    def wait(self, data: st.DataObject, early: bool, far: bool) -> None:
        """Go to just before or just after the end of something."""
        task = self.pick(data)
        ends = task.ends() if far else [*self.waiting(), *task.free_at.values()]
        if later := sorted({end for end in ends if end > self.now}):
            self.wait_until(data.draw(st.sampled_from(later)), early=early)

    def waiting(self) -> list[float]:
        """Return the ends of what sends wait for."""
        return [send.until for send in self.world.sends.values() if send.place in ("delay", "lease")]

    def pick(self, data: st.DataObject) -> TaskModel:
        """Choose a task, most often one that is pending."""
        return self.world.tasks[data.draw(st.sampled_from([*self.world.pending() * 5, *self.world.tasks]))]

    def wait_for_cooldown(self, task: TaskModel, method: str, waits: str) -> None:
        if waits:
            self.wait_until(task.free_at.get(method, 0), early=waits == "nearly")

    def resend_by(self, task: TaskModel, method: str, down: Iterable[str] = ()) -> None:
        call = partial(self.taskflow.resend_otp, task.id, method)
        self.take(task, call, lambda: self.world.resend(task, method), down)

    def verify(self, task: TaskModel, method: str, otp: str | None) -> None:
        since = task.since_ended_by(method, otp or "", self.now)
        if since == model.REPEATED:
            return  # a moment decides, and the machine's clock is not as fine

        def call() -> Any:
            done = self.taskflow.verify(task.id, method, otp or "")
            self.check_success(task, method, otp or "")
            assert done.verification_method == method
            return done

        outcome = self.take(task, call, lambda: self.world.verify(task, method, otp or ""))
        if self.world.dropped(task):
            assert isinstance(outcome, KeyMissing | OTPRejected)

    def take(
        self,
        task: TaskModel,
        call: Callable[[], Any],
        in_model: Callable[[], Verdict],
        down: Iterable[str] = (),
    ) -> Any:
        """Take a step on the server and in the model, and compare how it ends and what is sent at once."""
        self.moods.update({method: "fail" if method in down else "ok" for method in FIELDS})
        start = len(self.handed)
        outcome = self.outcome(call)
        given = self.handed[start:]
        if self.world.dropped(task):
            assert not given
            assert not isinstance(outcome, Task)
            return outcome
        expected, sending = in_model()
        assert [item.method for item in given] == ([] if self.background else sending)
        for item in given:
            assert (item.task_id, item.address) == (task.id, task.recipient[FIELDS[item.method]])
            self.see(task, item.method, item)
            if not item.took:
                self.world.disarm(task, item.method)
        failed = tuple(item.method for item in given if not item.took)
        expected = SendFailed if failed else expected
        assert type(outcome) is (expected or Task), f"{outcome!r} instead of {expected}"
        assert getattr(outcome, "methods", failed) == failed
        return outcome

    def see(self, task: TaskModel, method: str, item: Handed | None) -> None:
        """Learn the code that a try carried, or see that it is the one known."""
        assert item is not None, f"nothing was sent of {task.id} by {method}"
        code = task.codes.get(method)
        if item.otp not in self.seen_at:
            self.seen_at[item.otp] = self.now
            if code is not None:
                assert code.otp is None, "another try carried another code"
                code.otp = item.otp
        elif code is not None:
            assert code.otp == item.otp, "an old code was sent"

    def check_success(self, task: TaskModel, method: str, otp: str) -> None:
        """Check what must hold for every success, whatever the model says of the code in force."""
        assert task.id not in self.succeeded, "two successes"
        assert task.status is Status.PENDING, f"a success after {task.status}"
        assert self.now < task.expires, "a success after the end"
        assert method in task.methods, "a success by a method that is not allowed"
        assert self.now - self.seen_at[otp] <= model.CODE_TTL, "a success with a code that is too old"
        handed = [item for item in self.handed if (item.task_id, item.method) == (task.id, method)]
        # In the background, a try that counts as failed, or is not over yet, may have delivered it.
        tries = [item for item in handed if item.otp == otp and (item.took or self.background)]
        assert tries, "a success with a code that was never sent"
        addresses = {item.address for item in tries}
        assert addresses == {task.recipient[FIELDS[method]]}, "a success with the code of an old address"
        self.succeeded.append(task.id)

    @invariant()
    def tasks_are_as_the_model_says(self) -> None:
        for task in self.world.tasks.values():
            outcome = self.outcome(partial(self.taskflow.get_task, task.id))
            if self.world.dropped(task):
                assert isinstance(outcome, KeyMissing | TaskNotFound)
            elif self.now >= task.gone_at:
                assert isinstance(outcome, TaskNotFound)
            else:
                expired = task.status is Status.PENDING and self.now >= task.expires
                assert outcome.status is (Status.EXPIRED if expired else task.status)
                assert outcome.recipient.addresses() == task.recipient
                assert (outcome.expires_at - outcome.created_at).total_seconds() == task.ttl
            self.check_stored(task)

    def check_stored(self, task: TaskModel) -> None:
        """Check counters and codes as they are stored."""
        head = f"taskflow:{{taskflow.{task.id[:8]}}}:"
        stored = self.redis.hgetall(f"{head}task:{task.id}")
        if not stored:
            return
        counters = tuple(int(stored[name]) for name in (b"attempts", b"sends", b"updates"))
        before = self.counters.get(task.id, (0, 0, 0))
        limits = MAX_ATTEMPTS, self.world.max_sends, MAX_UPDATES
        assert all(new >= old for new, old in zip(counters, before, strict=True)), "a counter fell"
        assert all(count <= most for count, most in zip(counters, limits, strict=True))
        self.counters[task.id] = counters
        if self.world.dropped(task):
            return
        assert counters == (task.attempts, task.sends, task.updates)
        armed = {name[:-4].decode(): int(out) for name, out in stored.items() if name.endswith(b".out")}
        assert armed == {method: code.out for method, code in task.codes.items()}
        if task.over(self.now):
            return
        cooling = {name[:-5].decode() for name in stored if name.endswith(b".next")}
        assert cooling == {method for method, at in task.free_at.items() if at}
        for name, macs in task.macs.items():
            for mac, stored_name in zip(macs, stored[b"mac." + name.encode()].split(b","), strict=True):
                counted = self.redis.hget(f"{head}recipients", stored_name)
                if self.world.count(mac):
                    assert int(counted.split()[0]) == self.world.count(mac)
        assert any(armed.values()) or not self.background or task.is_late(self.now), (
            "a pending task without a code on its way"
        )

    @invariant()
    def messages_are_told_of_once_and_within_the_limits(self) -> None:
        assert self.told_sent == Counter(item.task_id for item in self.handed if item.took)
        if not self.background:
            asked = Counter(item.task_id for item in self.handed)
            assert all(count <= self.world.max_sends for count in asked.values())
