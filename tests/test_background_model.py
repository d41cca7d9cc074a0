"""Sends in the background as a state machine: any order of steps on a real server, against a model in Python.

After each step every send stands on the server where the model has it, every task has the status and the
counters that the model says, and a pending task has a code in force. Providers take codes, fail, refuse, or
vanish with their process before or after they took a code; such a process may come back and report late.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
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
from test_lifecycle_model import (
    ADDRESSES,
    CODE_TTL,
    COOLDOWN,
    COOLDOWN_MAX,
    FIELDS,
    FORGOTTEN_AFTER,
    LASTS_A_MINUTE,
    LENGTH,
    MAX_ATTEMPTS,
    MAX_UPDATES,
    RARELY,
    RETENTION,
    STEP,
)

from flask_taskflow import BaseStrategy, Reject, Retry, Status, Task, TaskFlow
from flask_taskflow._background import SendRunner
from flask_taskflow._deliveries import Claimed
from flask_taskflow._engine import Engine
from flask_taskflow._sending import Failure
from flask_taskflow._store import Code as Stored
from flask_taskflow.errors import (
    CodeExpired,
    MethodNotAllowed,
    ResendTooSoon,
    SendLimitReached,
    TaskExpired,
    TaskFlowError,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    WrongCode,
)
from flask_taskflow.signals import otp_sent, task_failed
from flask_taskflow.testing import travel

# As in test_lifecycle_model: whatever begins in a step of ten seconds ends between two of them. A backoff is
# longer by a tenth at most.
BACKOFF, RETRY, LEASE = 11, 33, 15
ATTEMPTS, MAX_LOST, LOST_MORE = 3, 1, 3
WINDOW = 605
TASKS = 8
PLACES = ("ready", "delay", "lease", "dead")

METHODS = st.sampled_from(["EMAIL", "SMS"])
OUTCOMES = st.sampled_from(["ok", "fail", "fail", "fail", "reject", "retry"])
ANY = st.integers(0, 10**6)


@dataclass(eq=False)
class Code:
    """A code as the model knows it: ``None`` until an attempt showed it."""

    ends: float
    otp: str | None = None
    out: int = 1


@dataclass(eq=False)
class Send:
    """A send as it must be stored; ``until`` is when its delay or lease ends."""

    number: int
    priority: int
    place: str = "ready"
    until: float = 0.0
    failures: int = 0
    lost: int = 0
    token: int = 0


@dataclass(eq=False)
class Model:
    """A task as it must be."""

    id: str
    methods: list[str]
    recipient: dict[str, str]
    macs: dict[str, tuple[int, str]]
    priority: int
    expires: float
    gone_at: float
    status: Status = Status.PENDING
    attempts: int = 0
    updates: int = 0
    sends: int = 0
    codes: dict[str, Code] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    free_at: dict[str, float] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)

    def end(self, status: Status, now: float) -> None:
        self.status, self.gone_at = status, now + RETENTION
        self.codes.clear()

    def over(self, now: float) -> type[TaskFlowError] | None:
        if now >= self.gone_at:
            return TaskNotFound
        if self.status is Status.LOCKED:
            return TaskLocked
        if self.status is not Status.PENDING:
            return TaskNotPending
        return TaskExpired if now >= self.expires else None

    def from_(self, method: str) -> list[str]:
        """Return the methods in the order of falling back from one."""
        at = self.methods.index(method)
        return [*self.methods[at:], *self.methods[:at]]


@dataclass(frozen=True)
class Handed:
    """What a provider was given."""

    task_id: str
    method: str
    address: str
    otp: str
    took: bool


@dataclass(eq=False)
class Absent:
    """A process that claimed a send and told nothing yet."""

    item: Claimed
    model: Model
    send: Send
    token: int
    sent: Stored | None = None
    code: Code | None = None
    may_fail: bool = True


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


class World:
    """What the steps do, in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.makes = False
        self.max_sends = self.recipient_sends = 0
        self.models: dict[str, Model] = {}
        self.sends: dict[tuple[str, str], Send] = {}
        self.stored = 0
        self.counts: dict[tuple[int, str], tuple[int, float]] = {}

    def may_send(self, macs: list[tuple[int, str]]) -> bool:
        counted = Counter(macs)
        return all(self.count(mac) + counted[mac] <= self.recipient_sends for mac in macs)

    def count(self, mac: tuple[int, str]) -> int:
        sends, end = self.counts.get(mac, (0, 0.0))
        return sends if self.now < end else 0

    def issue(self, model: Model, method: str, code: Code) -> None:
        """Count one more message and store its send."""
        model.codes[method] = code
        model.sends += 1
        model.free_at[method] = self.now + min(COOLDOWN_MAX, COOLDOWN * 2 ** model.asked[method])
        model.asked[method] += 1
        model.given_up.discard(method)
        mac = model.macs[FIELDS[method]]
        count = self.count(mac)
        self.counts[mac] = count + 1, self.counts[mac][1] if count else self.now + WINDOW
        send = self.sends.get((model.id, method))
        if send is None:
            self.stored += 1
            self.sends[model.id, method] = Send(self.stored, model.priority)
        else:
            send.place, send.failures, send.lost, send.token = "ready", 0, 0, send.token + 1

    def new_code(self, model: Model) -> Code:
        return Code(min(self.now + CODE_TTL, model.expires))

    def claim(self, method: str) -> tuple[Model, Send] | None:
        """Do in the model what a claim of one send does."""
        mine = {key: send for key, send in self.sends.items() if key[1] == method}
        for send in mine.values():
            if send.place == "delay" and send.until <= self.now:
                send.place = "ready"
        for (task_id, _), send in sorted(mine.items(), key=lambda pair: pair[1].until):
            if send.place == "lease" and send.until <= self.now:
                send.lost += 1
                if send.lost > MAX_LOST + LOST_MORE:
                    self.give_up(self.models[task_id], method)
                else:
                    send.place = "ready" if send.lost == 1 else "delay"
                    send.until = self.now + LEASE
        ready = [key for key, send in mine.items() if send.place == "ready" and key in self.sends]
        if not ready:
            return None
        key = min(ready, key=lambda key: (-mine[key].priority, mine[key].number))
        send = mine[key]
        send.place, send.until, send.token = "lease", self.now + LEASE, send.token + 1
        return self.models[key[0]], send

    def attempt(self, model: Model, method: str, send: Send, mood: str) -> list[Handed]:
        """Do in the model what an attempt does; return what the provider must be given, without codes."""
        code = model.codes.get(method)
        if model.over(self.now) or code is None or code.out < 1:
            del self.sends[model.id, method]
            return []
        if send.lost > MAX_LOST:
            self.give_up(model, method)
            return []
        self.renew(model, method)
        if mood == "ok":
            del self.sends[model.id, method]
        else:
            self.fail(model, method, send, mood)
        return [Handed(model.id, method, model.recipient[FIELDS[method]], "", mood == "ok")]

    def renew(self, model: Model, method: str) -> Code:
        """Return the code that an attempt carries: a new one if that in force is the strategy's or old."""
        code = model.codes[method]
        lasts = code.ends - self.now >= LASTS_A_MINUTE or code.ends >= model.expires
        if (self.makes and method == "SMS") or not lasts:
            code = model.codes[method] = self.new_code(model)
        return code

    def fail(self, model: Model, method: str, send: Send, mood: str) -> None:
        failures = send.failures + 1
        delay = RETRY if mood == "retry" else BACKOFF * 2**send.failures
        if mood == "reject" or failures >= ATTEMPTS or delay > model.expires - self.now:
            self.give_up(model, method)
        else:
            send.failures, send.place, send.until = failures, "delay", self.now + delay

    def give_up(self, model: Model, method: str) -> None:
        del self.sends[model.id, method]
        if model.over(self.now):
            return
        model.free_at[method] = 0
        if method in model.codes:
            model.codes[method].out = max(model.codes[method].out - 1, 0)
        model.given_up.add(method)
        for name, code in model.codes.items():
            if code.out and (self.now < code.ends or (model.id, name) in self.sends):
                return
        for name in model.from_(method):
            mac = model.macs.get(FIELDS[name])
            if name not in model.given_up and mac and model.sends < self.max_sends and self.may_send([mac]):
                self.issue(model, name, self.new_code(model))
                return
        model.end(Status.FAILED, self.now)


with_tasks = precondition(lambda machine: machine.models)


class Asking(World, RuleBasedStateMachine):
    """What an app asks for, in any order."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.redis: Any = Redis.from_url(self.url)
        self.redis.flushall()
        self.began = time.monotonic()
        self.handed: list[Handed] = []
        self.seen_at: dict[str, float] = {}
        self.moods: dict[str, str] = {}
        self.absent: list[Absent] = []
        self.told: Counter[str] = Counter()
        self.told_sent: Counter[str] = Counter()
        self.succeeded: set[str] = set()
        self.keys: list[str] = []
        self.context: AppContext | None = None
        self.taskflow = TaskFlow()
        task_failed.connect(self.on_failed)
        otp_sent.connect(self.on_sent)

    def on_failed(self, app: Flask, task: Task[Any]) -> None:
        assert task.status is Status.FAILED
        self.told[task.id] += 1

    def on_sent(self, app: Flask, task: Task[Any], method: str) -> None:
        self.told_sent[task.id] += 1

    def teardown(self) -> None:
        task_failed.disconnect(self.on_failed)
        otp_sent.disconnect(self.on_sent)
        if self.context is not None:
            self.context.pop()
        self.redis.close()
        assert time.monotonic() - self.began < STEP / 2, "the machine was too slow for its own clock"

    @initialize(
        policy=st.sampled_from(["same", "same", "rotate"]),
        makes=RARELY,
        max_sends=st.sampled_from([2, 3, 5, 5]),
        recipient_sends=st.sampled_from([2, 4, 100]),
    )
    def begin(self, policy: str, makes: bool, max_sends: int, recipient_sends: int) -> None:
        self.policy, self.makes = policy, makes
        self.max_sends, self.recipient_sends = max_sends, recipient_sends
        for method in FIELDS:
            kind = Maker if makes and method == "SMS" else Provider
            self.taskflow.register_strategy(method)(kind(method, self.handed, self.moods))
        self.rotate_key()

    @precondition(lambda self: len(self.keys) < 3)
    @rule()
    def rotate_key(self) -> None:
        """Go on in a new process, as it were, with one more secret key."""
        if self.context is not None:
            self.context.pop()
        self.keys.insert(0, f"secret key number {len(self.keys)} of the machine")
        app = Flask("app")
        app.config.update(
            TESTING=True,
            SECRET_KEY=self.keys[0],
            SECRET_KEY_FALLBACKS=self.keys[1:],
            TASKFLOW_REDIS_URL=self.url,
            TASKFLOW_SEND="background",
            TASKFLOW_SEND_ATTEMPTS=ATTEMPTS,
            TASKFLOW_SEND_BACKOFF=BACKOFF,
            TASKFLOW_LEASE=LEASE,
            TASKFLOW_MAX_LOST=MAX_LOST,
            TASKFLOW_OTP_LENGTH=LENGTH,
            TASKFLOW_OTP_TTL=CODE_TTL,
            TASKFLOW_ALLOW_WEAK_CODES=True,
            TASKFLOW_OTP_MAX_ATTEMPTS=MAX_ATTEMPTS,
            TASKFLOW_RESEND_POLICY=self.policy,
            TASKFLOW_RESEND_COOLDOWN=COOLDOWN,
            TASKFLOW_RESEND_COOLDOWN_MAX=COOLDOWN_MAX,
            TASKFLOW_MAX_SENDS=self.max_sends,
            TASKFLOW_MAX_RECIPIENT_UPDATES=MAX_UPDATES,
            TASKFLOW_RETENTION=RETENTION,
            TASKFLOW_RECIPIENT_MAX_SENDS=self.recipient_sends,
            TASKFLOW_RECIPIENT_WINDOW=WINDOW,
            TASKFLOW_RECIPIENT_MAX_FAILURES=100_000,
        )
        self.taskflow.init_app(app)
        self.context = app.app_context()
        self.context.push()

    def engine(self, method: str) -> tuple[Engine, SendRunner]:
        engine = self.taskflow._service().runtime._new_sender(method)
        assert isinstance(engine._runner, SendRunner)
        return engine, engine._runner

    @precondition(lambda self: len(self.models) < TASKS and len(self.pending()) < 3)
    @rule(
        who=st.integers(0, 2),
        methods=st.sampled_from([["EMAIL"], ["EMAIL", "SMS"], ["EMAIL", "SMS"], ["SMS", "EMAIL"]]),
        by_all=st.booleans(),
        ttl=st.sampled_from([2405, 2405, 705, 75]),
        poor=RARELY,
        priority=st.sampled_from([0, 0, 1, -1]),
    )
    def add(self, who: int, methods: list[str], by_all: bool, ttl: int, poor: bool, priority: int) -> None:
        # One phone for all, so that falling back to it meets the recipient's limit.
        recipient = {"email": ADDRESSES["email"][who], "phone_number": ADDRESSES["phone_number"][0]}
        if poor and methods[0] == "EMAIL":
            del recipient["phone_number"]
            by_all = False
        sending = methods if by_all else methods[:1]
        macs = {name: (len(self.keys), address) for name, address in recipient.items()}
        fits = len(sending) <= self.max_sends and self.may_send([macs[FIELDS[method]] for method in sending])

        outcome = self.outcome(
            lambda: self.taskflow.add_task(
                "q",
                allowed_methods=methods,
                recipient=recipient,
                ttl=ttl,
                send_via=methods if by_all else None,
                priority=priority,
            )
        )

        self.agree(outcome, None if fits else SendLimitReached)
        if fits:
            expires = self.now + ttl
            model = Model(outcome.id, methods, recipient, macs, priority, expires, expires + FORGOTTEN_AFTER)
            self.models[outcome.id] = model
            for method in sending:
                self.issue(model, method, self.new_code(model))

    def ask_again(self, model: Model, method: str) -> None:
        expected = model.over(self.now) or self.refusal(model, method)

        outcome = self.outcome(lambda: self.taskflow.resend_otp(model.id, method))

        self.agree(outcome, expected)
        if expected is None:
            code = model.codes.get(method)
            derived = not (self.makes and method == "SMS")
            keeps = self.policy == "same" and derived and code and code.ends - self.now >= LASTS_A_MINUTE
            if code is not None and keeps:
                code.out += (model.id, method) not in self.sends
            self.issue(model, method, code if code is not None and keeps else self.new_code(model))

    def refusal(self, model: Model, method: str) -> type[TaskFlowError] | None:
        mac = model.macs.get(FIELDS[method])
        if method not in model.methods or mac is None:
            return MethodNotAllowed
        if self.now < model.free_at.get(method, 0):
            return ResendTooSoon
        return None if model.sends < self.max_sends and self.may_send([mac]) else SendLimitReached

    @with_tasks
    @rule(
        data=st.data(),
        changes=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(known) for name, known in ADDRESSES.items()}
        ).filter(bool),
    )
    def update_recipient(self, data: st.DataObject, changes: dict[str, str]) -> None:
        model = self.pick(data)
        changed = {name: new for name, new in changes.items() if model.recipient.get(name) != new}
        recipient = model.recipient | changed
        macs = model.macs | {name: (len(self.keys), new) for name, new in changed.items()}
        sending = [name for name in model.methods if FIELDS[name] in changed and name in model.codes]
        reached = [name for name in model.methods if FIELDS[name] in recipient]
        sending = (sending or reached[:1]) if changed else []
        expected = model.over(self.now)
        too_many = model.updates >= MAX_UPDATES or model.sends + len(sending) > self.max_sends
        too_many = too_many or not self.may_send([macs[FIELDS[name]] for name in sending])
        if expected is None and changed and too_many:
            expected = SendLimitReached

        outcome = self.outcome(lambda: self.taskflow.update_recipient(model.id, changes))

        self.agree(outcome, expected)
        if expected is None and changed:
            model.recipient, model.macs = recipient, macs
            model.updates += 1
            for method in sending:
                self.issue(model, method, self.new_code(model))

    @with_tasks
    @rule(data=st.data(), sure=st.booleans())
    def verify_right(self, data: st.DataObject, sure: bool) -> None:
        model = self.pick(data)
        known = {method: code.otp for method, code in model.codes.items() if code.otp and code.out}
        if known and sure:
            method = data.draw(st.sampled_from(sorted(known)))
            self.verify(model, method, known[method] or "")

    @with_tasks
    @rule(data=st.data(), which=ANY, own=st.booleans())
    def verify_with_any_code_ever_made(self, data: st.DataObject, which: int, own: bool) -> None:
        model = self.pick(data)
        codes = [item for item in self.handed if (item.task_id == model.id) is own]
        if codes:
            chosen = codes[which % len(codes)]
            self.verify(model, chosen.method, chosen.otp)

    @with_tasks
    @rule(data=st.data(), method=METHODS)
    def verify_wrong(self, data: st.DataObject, method: str) -> None:
        self.verify(self.pick(data), method, "9" * LENGTH)

    def verify(self, model: Model, method: str, otp: str) -> None:
        expected = model.over(self.now)
        code = model.codes.get(method)
        if expected is None:
            right = code is not None and code.out > 0 and self.now < code.ends and otp == code.otp
            expected = None if right else self.wrong(model, method, code)

        outcome = self.outcome(lambda: self.taskflow.verify(model.id, method, otp))

        if isinstance(outcome, Task):
            self.check_success(model, method, otp)
        self.agree(outcome, expected)
        if expected is None:
            model.end(Status.SUCCESS, self.now)

    def wrong(self, model: Model, method: str, code: Code | None) -> type[TaskFlowError]:
        model.attempts += 1
        if model.attempts == MAX_ATTEMPTS:
            model.end(Status.LOCKED, self.now)
            return TaskLocked
        if method not in model.methods:
            return MethodNotAllowed
        return CodeExpired if code is not None and code.out > 0 and self.now >= code.ends else WrongCode

    def check_success(self, model: Model, method: str, otp: str) -> None:
        """Check what must hold for every success, whatever the model says of the code in force."""
        assert model.id not in self.succeeded, "two successes"
        assert self.now < model.expires, "a success after the end"
        assert self.now - self.seen_at[otp] <= CODE_TTL, "a success with a code that is too old"
        handed = [item for item in self.handed if (item.task_id, item.method) == (model.id, method)]
        # A try that counts as failed, or is not over yet, may have delivered it.
        assert otp in {item.otp for item in handed}, "a success with a code that was never sent"
        addresses = {item.address for item in handed if item.otp == otp}
        assert addresses == {model.recipient[FIELDS[method]]}, "a success with the code of an old address"
        self.succeeded.add(model.id)

    @with_tasks
    @rule(data=st.data(), sure=st.sampled_from([False] * 7 + [True]))
    def cancel(self, data: st.DataObject, sure: bool) -> None:
        if not sure:
            return
        model = self.pick(data)
        expected = model.over(self.now)

        outcome = self.outcome(lambda: self.taskflow.cancel_task(model.id))

        self.agree(outcome, expected)
        if expected is None:
            model.end(Status.CANCELLED, self.now)

    @with_tasks
    @rule(data=st.data(), early=st.booleans(), far=RARELY)
    def wait(self, data: st.DataObject, early: bool, far: bool) -> None:
        """Go to just before or just after the end of something."""
        model = self.pick(data)
        waiting = [send.until for send in self.sends.values() if send.place in ("delay", "lease")]
        codes = [end for code in model.codes.values() for end in (code.ends - LASTS_A_MINUTE, code.ends)]
        ends = [*codes, model.expires, model.gone_at] if far else [*waiting, *model.free_at.values()]
        later = sorted({end for end in ends if end > self.now})
        if later:
            self.let_time_pass(math.ceil((data.draw(st.sampled_from(later)) - self.now) / STEP) - early)

    def let_time_pass(self, tens: int) -> None:
        travel(tens * STEP)
        self.now += tens * STEP

    def pick(self, data: st.DataObject) -> Model:
        """Choose a task, most often one that is pending."""
        return self.models[data.draw(st.sampled_from([*self.pending() * 5, *self.models]))]

    def pending(self) -> list[str]:
        return [model.id for model in self.models.values() if not model.over(self.now)]

    def outcome(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except TaskFlowError as error:
            return error

    def agree(self, outcome: Any, expected: type[TaskFlowError] | None) -> None:
        assert type(outcome) is (expected or Task), f"{outcome!r} instead of {expected}"


class Sending(Asking):
    """What processes that send do, and what befalls them."""

    @precondition(lambda self: self.sends)
    @rule(email=OUTCOMES, sms=OUTCOMES, times=st.integers(1, 4))
    def let_them_send(self, email: str, sms: str, times: int) -> None:
        self.run(email, sms, times)

    def run(self, email: str, sms: str, times: int) -> None:
        """Let providers be handed what is due, and then what is due after that."""
        for _ in range(times):
            self.run_what_is_due(email, sms)
            self.wait_for_sends()

    @precondition(lambda self: self.sends)
    @rule(email=OUTCOMES, sms=OUTCOMES)
    def run_after_an_outage(self, email: str, sms: str) -> None:
        """Let what waits be sent when its codes are old."""
        self.let_time_pass(math.ceil(CODE_TTL / STEP))
        self.run(email, sms, 1)

    def wait_for_sends(self) -> None:
        waiting = [send.until for send in self.sends.values() if send.place in ("delay", "lease")]
        if waiting and max(waiting) > self.now:
            self.let_time_pass(math.ceil((max(waiting) - self.now) / STEP))

    def run_what_is_due(self, email: str, sms: str) -> None:
        self.moods.update(EMAIL=email, SMS=sms)
        expected, attempts, more = [], 0, True
        start = len(self.handed)

        ran = self.taskflow.run_due()

        given = iter(self.handed[start:])
        while more:
            more = False
            for method in FIELDS:
                while claimed := self.claim(method):
                    more, attempts = True, attempts + 1
                    model, send = claimed
                    for item in self.attempt(model, method, send, self.moods[method]):
                        expected.append(item)
                        self.see(model, method, next(given, None))
        assert ran == attempts
        assert [(item.task_id, item.method, item.address, item.took) for item in self.handed[start:]] == [
            (item.task_id, item.method, item.address, item.took) for item in expected
        ]

    def see(self, model: Model, method: str, item: Handed | None) -> None:
        """Learn the code that an attempt carried, or see that it is the one known."""
        assert item is not None, f"nothing was sent of {model.id} by {method}"
        code = model.codes.get(method)
        if item.otp not in self.seen_at:
            self.seen_at[item.otp] = self.now
            if code is not None:
                assert code.otp is None, "another try carried another code"
                code.otp = item.otp
        elif code is not None:
            assert code.otp == item.otp, "an old code was sent"

    @precondition(lambda self: self.sends)
    @rule(method=METHODS, took=st.booleans(), began=st.booleans(), times=st.sampled_from([1, 1, 1, 2, 5]))
    def vanish(self, method: str, began: bool, took: bool, times: int) -> None:
        """Let processes vanish with a send, before they hand the code to the provider or after."""
        for _ in range(times):
            self.vanish_once(method, began=began, took=took)
            if times > 1:
                self.wait_for_sends()

    def vanish_once(self, method: str, *, began: bool, took: bool) -> None:
        engine, runner = self.engine(method)
        claimed = self.claim(method)

        claim = engine._store.claim("q", [f"@{method}"], 1)

        for item in claim.dead:
            runner.mourn(item)
        assert [item.task_id for item in claim.deliveries] == ([claimed[0].id] if claimed else [])
        if claimed is None:
            return
        model, send = claimed
        absent = Absent(claim.deliveries[0], model, send, send.token)
        assert (absent.item.failures, absent.item.lost) == (send.failures, send.lost)
        due = runner._due(absent.item, _once)
        over = model.over(self.now) or method not in model.codes or model.codes[method].out < 1
        assert (due is None) == bool(over)
        if due is not None and began:
            self.moods[method] = "ok" if took else "fail"
            absent.code = self.renew(model, method)
            sent = runner._try(runner.begin(absent.item), due)
            assert isinstance(sent, Stored if took else Failure)
            absent.sent = sent if isinstance(sent, Stored) else None
            self.see(model, method, self.handed[-1])
        self.absent.append(absent)

    @precondition(lambda self: self.sends)
    @rule(method=METHODS, how=st.sampled_from(["asked", "claimed", "failed"]), mood=OUTCOMES, last=OUTCOMES)
    def be_overtaken(self, method: str, how: str, mood: str, last: str) -> None:
        """Let a process report success after its send began anew, was another's, or counted as failed."""
        before = len(self.absent)
        self.vanish_once(method, began=True, took=True)
        if len(self.absent) == before:
            return
        absent = self.absent[-1]
        if how == "asked":
            wait = max(absent.model.free_at.get(method, 0) - self.now, 0)
            self.let_time_pass(math.ceil(wait / STEP))
            self.ask_again(absent.model, method)
        elif how == "claimed":
            self.wait_for_sends()
            self.run_what_is_due(mood, mood)
        else:
            self.come_back(absent, mood)
        self.succeed(absent)
        self.run(last, last, 1)

    @precondition(lambda self: self.absent)
    @rule(which=ANY, among=st.sampled_from([2, 10**6]), times=st.integers(1, 2))
    def come_back_with_success(self, which: int, among: int, times: int) -> None:
        self.succeed(self.absent[-1 - which % min(len(self.absent), among)], times)

    def succeed(self, absent: Absent, times: int = 1) -> None:
        if absent.sent is None:
            return
        item, model, method = absent.item, absent.model, absent.item.callback[1:]
        for _ in range(times):
            self.taskflow._service().runtime._codes.sent(item.task_id, "q", item.token, absent.sent)

            if self.holds(absent):
                del self.sends[model.id, method]
            elif absent.code is not None and model.codes.get(method) is absent.code:
                absent.code.out += self.now < model.gone_at
                model.given_up.discard(method)

    @precondition(lambda self: self.absent)
    @rule(which=ANY, among=st.sampled_from([2, 10**6]), mood=st.sampled_from(["fail", "reject", "retry"]))
    def come_back_with_failure(self, which: int, among: int, mood: str) -> None:
        self.come_back(self.absent[-1 - which % min(len(self.absent), among)], mood)

    def come_back(self, absent: Absent, mood: str) -> None:
        if not absent.may_fail:
            return
        absent.may_fail = False
        item, model, method = absent.item, absent.model, absent.item.callback[1:]
        _, runner = self.engine(method)
        after = RETRY if mood == "retry" else None
        failure = Failure(None, "OSError", "OSError", final=mood == "reject", after=after)

        runner._fail(item, failure, _once, left=model.expires - self.now)

        if self.holds(absent) and absent.send.place == "lease":
            self.fail(model, method, absent.send, mood)

    def holds(self, absent: Absent) -> bool:
        """Whether nobody claimed its send since, or let it begin anew."""
        send = self.sends.get((absent.model.id, absent.item.callback[1:]))
        return send is absent.send and send.token == absent.token

    @with_tasks
    @rule(
        data=st.data(),
        waits=st.sampled_from(["", "", "nearly", "enough", "enough", "enough"]),
        then=st.sampled_from(["", "ok", "fail", "reject"]),
    )
    def resend(self, data: st.DataObject, waits: str, then: str) -> None:
        model = self.pick(data)
        method = data.draw(st.sampled_from([*model.methods * 2, *sorted(model.given_up) * 3, "EMAIL", "SMS"]))
        if waits and self.now < model.free_at.get(method, 0):
            steps = math.ceil((model.free_at[method] - self.now) / STEP)
            self.let_time_pass(steps - (waits == "nearly"))
        self.ask_again(model, method)
        if then:
            self.run(then, then, 1 + 2 * (then == "fail"))


class Checked(Sending):
    """What must hold after each step."""

    @invariant()
    def tasks_are_as_the_model_says(self) -> None:
        for model in self.models.values():
            outcome = self.outcome(partial(self.taskflow.get_task, model.id))
            if self.now >= model.gone_at:
                assert isinstance(outcome, TaskNotFound)
                continue
            expired = model.status is Status.PENDING and self.now >= model.expires
            assert outcome.status is (Status.EXPIRED if expired else model.status)
            assert outcome.recipient.addresses() == model.recipient
            head = f"taskflow:{{taskflow.{model.id[:8]}}}:"
            stored = self.redis.hgetall(f"{head}task:{model.id}")
            assert [int(stored[name]) for name in (b"attempts", b"sends", b"updates")] == [
                model.attempts,
                model.sends,
                model.updates,
            ]
            assert model.sends <= self.max_sends
            armed = {name[:-4].decode(): int(out) for name, out in stored.items() if name.endswith(b".out")}
            assert armed == {method: code.out for method, code in model.codes.items()}
            if outcome.status is not Status.PENDING:
                continue
            cooling = {name[:-5].decode() for name in stored if name.endswith(b".next")}
            assert cooling == {method for method, at in model.free_at.items() if at}
            for name, mac in model.macs.items():
                counted = self.redis.hget(f"{head}recipients", stored[b"mac." + name.encode()])
                assert not self.count(mac) or int(counted.split()[0]) == self.count(mac)
            assert any(armed.values()), "a pending task without a code in force or on its way"

    @invariant()
    def sends_stand_where_the_model_has_them(self) -> None:
        if not self.models:
            return
        tag = next(iter(self.models))[:8]
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
            mine = {task_id: send for (task_id, by), send in self.sends.items() if by == method}
            assert sorted(places) == sorted((task_id, send.place) for task_id, send in mine.items())
            counts = {task_id.decode(): tuple(map(int, line.split()[3:5])) for task_id, line in meta.items()}
            assert counts == {task_id: (send.failures, send.lost) for task_id, send in mine.items()}
            assert set(body) == set(meta)

    @invariant()
    def failures_and_messages_are_told_of_once(self) -> None:
        failed = {model.id for model in self.models.values() if model.status is Status.FAILED}
        assert self.told == Counter(failed)
        took = Counter(item.task_id for item in self.handed if item.took)
        assert self.told_sent == took

    @invariant()
    def providers_are_asked_within_the_limits(self) -> None:
        asked = Counter(item.task_id for item in self.handed)
        lost = Counter(absent.item.task_id for absent in self.absent)
        for task_id, count in asked.items():
            assert count <= self.models[task_id].sends * ATTEMPTS + lost[task_id]


def _once(report: Callable[[], bool]) -> bool:
    return report()


@pytest.fixture
def machine(server: str) -> type[Checked]:
    class OnServer(Checked):
        url = server

    return OnServer


def test_sends_in_any_order_are_as_the_model_says(machine: type[Checked]) -> None:
    run_machine(machine, examples=90, steps=40, same=True)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_sends_in_any_order_for_long_are_as_the_model_says(machine: type[Checked]) -> None:
    run_machine(machine, examples=600, steps=50, same=False)
