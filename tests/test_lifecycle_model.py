"""The life of tasks as a state machine: any order of steps on a real server, against a model in Python."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.ctx import AppContext
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from model_support import run_machine
from redis import Redis

from flask_taskflow import BaseStrategy, Status, Task, TaskFlow, task_verified
from flask_taskflow.errors import (
    CodeExpired,
    MethodNotAllowed,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    TaskExpired,
    TaskFlowError,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    TaskTampered,
    WrongCode,
)
from flask_taskflow.testing import travel

# Time moves in tens of seconds and every limit ends between two of them, so that the seconds which the
# test itself takes never decide.
STEP = 10
CODE_TTL = 605
COOLDOWN, COOLDOWN_MAX = 25, 45
RETENTION = 905
FORGOTTEN_AFTER = 60
LASTS_A_MINUTE = 60
MAX_ATTEMPTS, MAX_SENDS, MAX_UPDATES = 5, 5, 2
TASKS = 4
LENGTH = 12
FIELDS = {"EMAIL": "email", "SMS": "phone_number"}
ADDRESSES = {
    "email": ["ann@example.com", "bob@example.com", "cid@example.com"],
    "phone_number": ["+12025550110", "+12025550111", "+12025550112"],
}
METHODS = st.sampled_from(["EMAIL", "SMS"])
RARELY = st.sampled_from([False, False, False, True])


@dataclass
class Code:
    """A code as the model knows it; ``out`` counts its sends that did not fail."""

    otp: str
    ends: float
    out: int


@dataclass
class Model:
    """A task as it must be."""

    id: str
    methods: list[str]
    recipient: dict[str, str]
    sealed_by: str
    ttl: float
    expires: float
    gone_at: float
    status: Status = Status.PENDING
    attempts: int = 0
    updates: int = 0
    sends: int = 0
    codes: dict[str, Code] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    free_at: dict[str, float] = field(default_factory=dict)

    def end(self, status: Status, now: float) -> None:
        self.status, self.gone_at = status, now + RETENTION
        self.codes.clear()

    def ends(self) -> list[float]:
        codes = [end for code in self.codes.values() for end in (code.ends - LASTS_A_MINUTE, code.ends)]
        return [*codes, *self.free_at.values(), self.expires, self.gone_at]

    def over(self, now: float) -> type[TaskFlowError] | None:
        if now >= self.gone_at:
            return TaskNotFound
        if self.status is Status.LOCKED:
            return TaskLocked
        if self.status is not Status.PENDING:
            return TaskNotPending
        return TaskExpired if now >= self.expires else None


@dataclass(frozen=True)
class Handed:
    """What a strategy was given."""

    task_id: str
    method: str
    address: str
    otp: str
    delivered: bool


class Post(BaseStrategy):
    """Keep what is sent; raise for the methods that are down."""

    def __init__(self, method: str, handed: list[Handed], down: set[str]) -> None:
        self.method, self.handed, self.down = method, handed, down

    def send(self, task: Task[Any], otp: str) -> None:
        address = task.recipient.addresses()[FIELDS[self.method]]
        delivered = self.method not in self.down
        self.handed.append(Handed(task.id, self.method, address, str(otp), delivered))
        if not delivered:
            raise OSError("the carrier is down")


with_tasks = precondition(lambda machine: machine.models)


class Lifecycle(RuleBasedStateMachine):
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.redis = Redis.from_url(self.url)
        self.redis.flushall()
        self.now = 0.0
        self.began = time.monotonic()
        self.models: dict[str, Model] = {}
        self.handed: list[Handed] = []
        self.down: set[str] = set()
        self.successes: list[str] = []
        self.ran: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.counters: dict[str, tuple[int, ...]] = {}
        self.keys: list[str] = []
        self.made = 0
        self.context: AppContext | None = None
        self.taskflow = TaskFlow()
        for method in FIELDS:
            self.taskflow.register_strategy(method)(Post(method, self.handed, self.down))
        self.taskflow.on_task_verified("q", name="act")(self.act)
        task_verified.connect(self.on_verified)

    def act(self, task: Task[Any]) -> None:
        self.ran[task.id] += 1

    def on_verified(self, app: Flask, task: Task[Any]) -> None:
        self.fired[task.id] += 1

    def teardown(self) -> None:
        task_verified.disconnect(self.on_verified)
        self.close()
        self.redis.close()
        assert time.monotonic() - self.began < STEP / 2, "the machine was too slow for its own clock"

    def close(self) -> None:
        if self.context is not None:
            self.context.pop()

    def deploy(self) -> None:
        """Go on in a new process, as it were: another app on the same server with the keys of now."""
        self.close()
        app = Flask("app")
        app.config.update(
            TESTING=True,
            SECRET_KEY=self.keys[0],
            SECRET_KEY_FALLBACKS=self.keys[1:],
            TASKFLOW_REDIS_URL=self.url,
            TASKFLOW_EAGER=True,
            TASKFLOW_OTP_LENGTH=LENGTH,
            TASKFLOW_OTP_TTL=CODE_TTL,
            TASKFLOW_ALLOW_WEAK_CODES=True,
            TASKFLOW_OTP_MAX_ATTEMPTS=MAX_ATTEMPTS,
            TASKFLOW_RESEND_POLICY=self.policy,
            TASKFLOW_RESEND_COOLDOWN=COOLDOWN,
            TASKFLOW_RESEND_COOLDOWN_MAX=COOLDOWN_MAX,
            TASKFLOW_MAX_SENDS=MAX_SENDS,
            TASKFLOW_MAX_RECIPIENT_UPDATES=MAX_UPDATES,
            TASKFLOW_RETENTION=RETENTION,
            TASKFLOW_RECIPIENT_MAX_SENDS=100_000,
            TASKFLOW_RECIPIENT_MAX_FAILURES=100_000,
        )
        self.taskflow.init_app(app)
        self.context = app.app_context()
        self.context.push()

    @initialize(policy=st.sampled_from(["same", "same", "rotate"]))
    def begin(self, policy: str) -> None:
        self.policy = policy
        self.rotate_key()

    @precondition(lambda self: len(self.models) < TASKS)
    @rule(
        methods=st.sampled_from([["EMAIL"], ["SMS"], ["EMAIL", "SMS"], ["SMS", "EMAIL"]]),
        by_all=st.booleans(),
        ttl=st.sampled_from([1205, 1205, 305, 75]),
        down=st.sets(METHODS, max_size=1),
    )
    def add(self, methods: list[str], by_all: bool, ttl: int, down: set[str]) -> None:
        recipient = {name: addresses[0] for name, addresses in ADDRESSES.items()}
        sending = methods if by_all else methods[:1]

        self.fail(down)
        start = len(self.handed)
        outcome = self.outcome(
            lambda: self.taskflow.add_task(
                "q",
                allowed_methods=methods,
                recipient=recipient,
                ttl=ttl,
                send_via=methods if by_all else None,
            )
        )

        failed = tuple(method for method in sending if method in self.down)
        self.agree(outcome, SendFailed if failed else None)
        assert getattr(outcome, "methods", ()) == failed
        task = getattr(outcome, "task", outcome)
        expires = self.now + ttl
        model = Model(task.id, methods, recipient, self.keys[0], ttl, expires, expires + FORGOTTEN_AFTER)
        self.models[task.id] = model
        self.issued(model, sending, start, new=sending)

    @with_tasks
    @rule(data=st.data(), sure=st.booleans())
    def verify_right(self, data: st.DataObject, sure: bool) -> None:
        task_id = self.pick(data)
        codes = self.models[task_id].codes
        if codes and sure:
            method = data.draw(st.sampled_from(sorted(codes)))
            self.verify(task_id, method, codes[method].otp)

    @with_tasks
    @rule(data=st.data(), method=st.sampled_from(["EMAIL", "SMS", "SMART_OTP"]))
    def verify_wrong(self, data: st.DataObject, method: str) -> None:
        self.verify(self.pick(data), method, "0" * LENGTH)

    @with_tasks
    @rule(data=st.data(), own=st.booleans(), swapped=RARELY)
    def verify_with_any_code_ever_made(self, data: st.DataObject, own: bool, swapped: bool) -> None:
        task_id = self.pick(data)
        codes = [item for item in self.handed if (item.task_id == task_id) is own]
        if codes:
            chosen = data.draw(st.sampled_from(codes))
            other = "SMS" if chosen.method == "EMAIL" else "EMAIL"
            self.verify(task_id, other if swapped else chosen.method, chosen.otp)

    def verify(self, task_id: str, method: str, otp: str) -> None:
        model = self.models[task_id]
        expected = model.over(self.now)
        code = model.codes.get(method)
        if expected is None:
            right = code is not None and code.out > 0 and self.now < code.ends and otp == code.otp
            expected = None if right else self.wrong(model, method, code)

        outcome = self.outcome(lambda: self.taskflow.verify(task_id, method, otp))

        if isinstance(outcome, Task):
            self.check_success(model, method, otp)
        if self.dropped(model):
            assert isinstance(outcome, TaskTampered | OTPRejected)
            return
        self.agree(outcome, expected)
        if expected is None:
            assert outcome.verification_method == method
            model.end(Status.SUCCESS, self.now)

    def wrong(self, model: Model, method: str, code: Code | None) -> type[TaskFlowError]:
        if self.dropped(model):
            return WrongCode
        model.attempts += 1
        if model.attempts == MAX_ATTEMPTS:
            model.end(Status.LOCKED, self.now)
            return TaskLocked
        if method not in model.methods:
            return MethodNotAllowed
        return CodeExpired if code is not None and code.out > 0 and self.now >= code.ends else WrongCode

    def check_success(self, model: Model, method: str, otp: str) -> None:
        """Check what must hold for every success, whatever the model says of the code in force."""
        assert model.id not in self.successes, "two successes"
        assert model.status is Status.PENDING, f"a success after {model.status}"
        assert self.now < model.expires, "a success after the end"
        assert method in model.methods, "a success by a method that is not allowed"
        delivered = [
            item.address
            for item in self.handed
            if item.delivered and (item.task_id, item.method, item.otp) == (model.id, method, otp)
        ]
        assert delivered, "a success with a code that no send delivered"
        assert model.recipient[FIELDS[method]] in delivered, "a success with the code of an old address"
        self.successes.append(model.id)

    @with_tasks
    @rule(data=st.data(), waits=st.sampled_from(["", "nearly", "enough"]), fails=RARELY, used=RARELY)
    def resend(self, data: st.DataObject, waits: str, fails: bool, used: bool) -> None:
        task_id = self.pick(data)
        model = self.models[task_id]
        method = data.draw(st.sampled_from([*model.methods, *model.methods, "EMAIL", "SMS"]))
        if waits and self.now < model.free_at.get(method, 0):
            steps = math.ceil((model.free_at[method] - self.now) / STEP)
            self.let_time_pass(steps - (waits == "nearly"))
        expected = model.over(self.now)
        if expected is None:
            if method not in model.methods:
                expected = MethodNotAllowed
            elif self.now < model.free_at.get(method, 0):
                expected = ResendTooSoon
            elif model.sends >= MAX_SENDS:
                expected = SendLimitReached
        self.fail({method} if fails else set())
        start = len(self.handed)

        outcome = self.outcome(lambda: self.taskflow.resend_otp(task_id, method))

        if self.dropped(model):
            assert not isinstance(outcome, Task)
            return
        self.agree(outcome, expected or (SendFailed if method in self.down else None))
        if expected is None:
            code = model.codes.get(method)
            keeps = self.policy == "same" and code and code.ends - self.now >= LASTS_A_MINUTE
            self.issued(model, [method], start, new=[] if keeps else [method])
            if used:
                self.verify(task_id, method, model.codes[method].otp)
        else:
            assert len(self.handed) == start, "a refused resend was sent"

    @with_tasks
    @rule(
        data=st.data(),
        changes=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(known) for name, known in ADDRESSES.items()}
        ).filter(bool),
        down=st.sets(METHODS, max_size=1),
    )
    def update_recipient(self, data: st.DataObject, changes: dict[str, str], down: set[str]) -> None:
        task_id = self.pick(data)
        model = self.models[task_id]
        changed = {name: new for name, new in changes.items() if model.recipient[name] != new}
        sending = [name for name in model.methods if FIELDS[name] in changed and name in model.codes]
        sending = (sending or model.methods[:1]) if changed else []
        expected = model.over(self.now)
        too_many = model.updates >= MAX_UPDATES or model.sends + len(sending) > MAX_SENDS
        if expected is None and changed and too_many:
            expected = SendLimitReached
        self.fail(down)
        start = len(self.handed)

        outcome = self.outcome(lambda: self.taskflow.update_recipient(task_id, changes))

        if self.dropped(model):
            assert not isinstance(outcome, Task)
            return
        self.agree(outcome, expected or (SendFailed if self.down.intersection(sending) else None))
        if expected is None and changed:
            model.recipient.update(changed)
            model.updates += 1
            self.issued(model, sending, start, new=sending)
        else:
            assert len(self.handed) == start, "a refused change was sent"

    @with_tasks
    @rule(data=st.data(), sure=RARELY)
    def cancel(self, data: st.DataObject, sure: bool) -> None:
        if not sure:
            return
        task_id = self.pick(data)
        model = self.models[task_id]
        expected = model.over(self.now)

        outcome = self.outcome(lambda: self.taskflow.cancel_task(task_id))

        if self.dropped(model):
            assert not isinstance(outcome, Task)
            return
        self.agree(outcome, expected)
        if expected is None:
            model.end(Status.CANCELLED, self.now)

    @with_tasks
    @rule(data=st.data(), early=st.booleans())
    def wait(self, data: st.DataObject, early: bool) -> None:
        """Go to just before or just after the end of something."""
        model = self.models[self.pick(data)]
        ends = sorted({end for end in model.ends() if end > self.now})
        if ends:
            end = data.draw(st.sampled_from(ends))
            self.let_time_pass(math.ceil((end - self.now) / STEP) - early)

    def let_time_pass(self, tens: int) -> None:
        travel(tens * STEP)
        self.now += tens * STEP

    @precondition(lambda self: len(self.keys) < 3)
    @rule()
    def rotate_key(self) -> None:
        self.made += 1
        self.keys.insert(0, f"secret key number {self.made} of the machine")
        self.deploy()

    @precondition(lambda self: len(self.keys) > 1)
    @rule(sure=RARELY)
    def take_the_oldest_key_away(self, sure: bool) -> None:
        if sure:
            self.keys.pop()
            self.deploy()

    def pick(self, data: st.DataObject) -> str:
        """Choose a task, most often one that is pending."""
        pending = [model.id for model in self.models.values() if not model.over(self.now)]
        return data.draw(st.sampled_from([*pending * 3, *self.models]))

    def fail(self, down: Iterable[str]) -> None:
        self.down.clear()
        self.down.update(down)

    def outcome(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except TaskFlowError as error:
            return error

    def agree(self, outcome: Any, expected: type[TaskFlowError] | None) -> None:
        assert type(outcome) is (expected or Task), f"{outcome!r} instead of {expected}"

    def dropped(self, model: Model) -> bool:
        """Whether the key that sealed the task is gone: nothing may be done with it any more."""
        return model.sealed_by not in self.keys

    def issued(self, model: Model, methods: list[str], start: int, *, new: list[str]) -> None:
        """Do in the model what sending does; compare what the strategies were given."""
        given = {item.method: item for item in self.handed[start:]}
        assert [item.method for item in self.handed[start:]] == methods
        known = {item.otp for item in self.handed[:start]}
        for method in methods:
            item = given[method]
            assert (item.task_id, item.address) == (model.id, model.recipient[FIELDS[method]])
            if method in new:
                assert item.otp not in known, "a new code is an old one"
                model.codes[method] = Code(item.otp, min(self.now + CODE_TTL, model.expires), 0)
            assert item.otp == model.codes[method].otp, "a resend changed the code"
            model.sends += 1
            wait = min(COOLDOWN_MAX, COOLDOWN * 2 ** model.sent[method])
            model.sent[method] += 1
            model.free_at[method] = self.now + wait if item.delivered else 0
            model.codes[method].out += item.delivered
        self.down.clear()

    @invariant()
    def tasks_are_as_the_model_says(self) -> None:
        for model in self.models.values():
            outcome = self.outcome(partial(self.taskflow.get_task, model.id))
            if self.dropped(model):
                assert isinstance(outcome, TaskTampered | TaskNotFound)
            elif self.now >= model.gone_at:
                assert isinstance(outcome, TaskNotFound)
            else:
                expired = model.status is Status.PENDING and self.now >= model.expires
                assert outcome.status is (Status.EXPIRED if expired else model.status)
                assert outcome.recipient.addresses() == model.recipient
                assert (outcome.expires_at - outcome.created_at).total_seconds() == model.ttl

    @invariant()
    def counters_never_fall(self) -> None:
        for model in self.models.values():
            key = f"taskflow:{{taskflow.{model.id[:8]}}}:task:{model.id}"
            stored = self.redis.hmget(key, ["attempts", "sends", "updates"])
            if stored[0] is None:
                continue
            counters = tuple(int(value or -1) for value in stored)
            before = self.counters.get(model.id, (0, 0, 0))
            assert all(new >= old for new, old in zip(counters, before, strict=True))
            assert all(
                count <= most
                for count, most in zip(counters, (MAX_ATTEMPTS, MAX_SENDS, MAX_UPDATES), strict=True)
            )
            self.counters[model.id] = counters
            if not self.dropped(model):
                assert counters == (model.attempts, model.sends, model.updates)

    @invariant()
    def sends_never_exceed_their_limit(self) -> None:
        assert all(count <= MAX_SENDS for count in Counter(item.task_id for item in self.handed).values())

    @invariant()
    def every_success_is_told_and_acted_on_once(self) -> None:
        assert self.ran == self.fired == Counter(self.successes)


@pytest.fixture
def machine(server: str) -> type[Lifecycle]:
    class OnServer(Lifecycle):
        url = server

    return OnServer


def test_lifecycle_in_any_order_is_as_the_model_says(machine: type[Lifecycle]) -> None:
    run_machine(machine, examples=60, steps=40, same=True)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_lifecycle_in_any_order_for_long_is_as_the_model_says(machine: type[Lifecycle]) -> None:
    run_machine(machine, examples=500, steps=50, same=False)
