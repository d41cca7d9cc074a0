"""What tasks, codes, sends and deliveries must be after each step: one model for all state machines.

Time moves in steps of ten seconds, and whatever begins in one ends between two of them, so that the seconds
which a test itself takes never decide.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from flask_taskflow import Status
from flask_taskflow._store.deliveries import NOBODY
from flask_taskflow.errors import (
    CodeExpired,
    CodeRepeated,
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

STEP = 10
CODE_TTL = 605
COOLDOWN, COOLDOWN_MAX = 25, 45
RETENTION, DEAD_RETENTION = 905, 95
WINDOW = 605
#: A backoff is longer by a tenth at most; none ends when a task may.
BACKOFF, BACKOFF_MAX, RETRY, LEASE = 12, 32, 35, 15
FALLBACK = 65
#: Nearer to its end a task is sent no code.
READ_IN = 20
TTLS = [2408, 2408, 708, 78]
LASTS_A_MINUTE = REPEATED = 60
MAX_ATTEMPTS, MAX_UPDATES = 5, 2
#: Of a delivery, and of a send, which is given up later by whoever finds it.
ATTEMPTS, MAX_LOST, LOST_MORE = 3, 1, 3
FIELDS = {"EMAIL": "email", "SMS": "phone_number"}
PLACES = ("ready", "delay", "lease", "dead")

#: An address under the key that was the newest when a task got it: each key counts its own.
Mac = tuple[int, str]
#: The error that a step must end with, and the methods that it must send by.
Verdict = tuple[type[TaskFlowError] | None, list[str]]


@dataclass(eq=False)
class Delivery:
    """A delivery to a callback, or a send, whose name is ``@`` and its method.

    ``until`` is when its delay or lease ends, or when it died.
    """

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

    def put(self, place: str, until: float = 0.0) -> None:
        self.place, self.until = place, until

    def lose(self, now: float, most: int) -> bool:
        """Lose its process; whether it is dead now."""
        self.lost += 1
        if self.lost > most:
            self.put("dead", now)
        elif self.lost == 1:
            self.put("ready")
        else:
            self.put("delay", now + LEASE)
        return self.place == "dead"

    def begin_anew(self) -> None:
        self.failures = self.lost = 0
        self.rejected = False
        self.put("ready")


class Deliveries(dict[tuple[str, str], Delivery]):
    """What is stored in a queue, by task and name."""

    stored = 0

    def store(self, task_id: str, name: str, priority: int) -> None:
        self.stored += 1
        self[task_id, name] = Delivery(task_id, name, self.stored, priority)

    def at(self, place: str, *names: str) -> list[Delivery]:
        """Return those at a place, of some names or of all."""
        return [each for each in self.values() if each.place == place and (not names or each.name in names)]

    def claim(
        self, now: float, names: list[str], most: int, *, lost: int, owner: str = NOBODY, reap: bool = True
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Return what a claim gets, and what has died of one loss too many."""
        for each in self.at("delay", *names):
            if each.until <= now:
                each.put("ready")
        over = [each for each in self.at("lease", *names) if reap and each.until <= now]
        # What was just given a pause is not due at once.
        dead = [each for each in sorted(over, key=lambda each: each.until) if each.lose(now, lost)]
        ready = sorted(self.at("ready", *names), key=lambda each: (-each.priority, each.number))
        for each in ready[:most]:
            each.token, each.owner = each.token + 1, owner
            each.put("lease", now + LEASE)
        return ready[:most], dead


@dataclass(eq=False)
class Code:
    """A code: ``otp`` is ``None`` until a try showed it, ``out`` counts the sends that did not fail."""

    ends: float
    otp: str | None = None
    out: int = 1


@dataclass(eq=False)
class TaskModel:
    """A task as it must be."""

    id: str
    methods: list[str]
    recipient: dict[str, str]
    #: An address is counted under each key of the process that stored it.
    macs: dict[str, tuple[Mac, ...]]
    sealed_by: int
    priority: int
    ttl: float
    expires: float
    gone_at: float
    status: Status = Status.PENDING
    attempts: int = 0
    updates: int = 0
    sends: int = 0
    codes: dict[str, Code] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    free_at: dict[str, float] = field(default_factory=dict)
    #: By method: given up; refused for now since; its last send was beside another; may have been delivered.
    given_up: set[str] = field(default_factory=set)
    refused: dict[str, float] = field(default_factory=dict)
    fell: set[str] = field(default_factory=set)
    spare: set[str] = field(default_factory=set)
    unsure: dict[str, Code] = field(default_factory=dict)
    fails: int = 0
    ended_by: tuple[str, str] | None = None
    ended_at: float = 0.0

    def end(self, status: Status, now: float) -> None:
        self.status, self.gone_at = status, now + RETENTION
        self.codes.clear()
        if status is Status.FAILED:
            self.fails += 1
            self.gone_at = max(now, self.expires) + RETENTION
            for known in (self.free_at, self.refused, self.fell, self.spare, self.unsure):
                known.clear()

    def is_late(self, now: float) -> bool:
        return self.expires - now < min(READ_IN, self.ttl / 2)

    def closed(self, now: float) -> type[TaskFlowError] | None:
        """Why it is sent no code any more."""
        return self.closed_for_good(now) or (TaskExpired if self.is_late(now) else None)

    def closed_for_good(self, now: float) -> type[TaskFlowError] | None:
        """Why it can end no more: one that failed may live again."""
        return None if self.status is Status.FAILED and now < self.expires else self.over(now)

    def since_ended_by(self, method: str, otp: str, now: float) -> float:
        """Return how long ago this code ended the task by this method, or infinity."""
        return now - self.ended_at if self.ended_by == (method, otp) else math.inf

    def over(self, now: float) -> type[TaskFlowError] | None:
        if now >= self.gone_at:
            return TaskNotFound
        if self.status is Status.LOCKED:
            return TaskLocked
        if self.status is not Status.PENDING:
            return TaskNotPending
        return TaskExpired if now >= self.expires else None

    def ends(self) -> list[float]:
        """Return when something of it ends, but its sends."""
        codes = [end for code in self.codes.values() for end in (code.ends - LASTS_A_MINUTE, code.ends)]
        return [*codes, *self.free_at.values(), self.expires - READ_IN, self.expires, self.gone_at]


class World:
    """The tasks there are and their sends; each step as the app takes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.policy = "same"
        #: The number of the newest key, and those that are known.
        self.key, self.keys = 0, [0]
        #: Methods whose strategy makes its codes.
        self.makers: set[str] = set()
        self.max_sends, self.recipient_sends = 5, 100_000
        self.tasks: dict[str, TaskModel] = {}
        #: None are stored while codes are sent in the call.
        self.background = False
        self.sends = Deliveries()
        self._counts: dict[Mac, tuple[int, float]] = {}

    def pending(self) -> list[str]:
        return [task.id for task in self.tasks.values() if not task.over(self.now)]

    def dropped(self, task: TaskModel) -> bool:
        """Whether the key that sealed it is gone: nothing may be done with it any more."""
        return task.sealed_by not in self.keys

    def largest(self, macs: tuple[Mac, ...]) -> int:
        return max(map(self.count, macs))

    def count(self, mac: Mac) -> int:
        """Return how many messages went to an address in its window."""
        sends, end = self._counts.get(mac, (0, 0.0))
        return sends if self.now < end else 0

    def may_send(self, task: TaskModel, macs: dict[str, tuple[Mac, ...]], methods: list[str]) -> bool:
        counted = Counter(macs[FIELDS[method]] for method in methods)
        fits = all(self.largest(mac) + count <= self.recipient_sends for mac, count in counted.items())
        return fits and task.sends + len(methods) <= self.max_sends

    def macs(self, recipient: dict[str, str]) -> dict[str, tuple[Mac, ...]]:
        return {name: tuple((key, address) for key in self.keys) for name, address in recipient.items()}

    def add(self, task: TaskModel, sending: list[str]) -> Verdict:
        if not self.may_send(task, task.macs, sending):
            return SendLimitReached, []
        for method in sending:
            self._issue(task, method, self._new_code(task))
        return None, sending

    def verify(self, task: TaskModel, method: str, otp: str) -> Verdict:
        if task.since_ended_by(method, otp, self.now) < REPEATED:
            return CodeRepeated, []
        if over := task.over(self.now):
            return over, []
        code = task.codes.get(method)
        known = code is not None and code.out > 0
        expired = code is not None and self.now >= code.ends
        if known and not expired and code is not None and otp == code.otp:
            self._give_back(task.macs[FIELDS[method]], code.out)
            task.end(Status.SUCCESS, self.now)
            task.ended_by, task.ended_at = (method, otp), self.now
            return None, []
        task.attempts += 1
        if task.attempts == MAX_ATTEMPTS:
            task.end(Status.LOCKED, self.now)
            return TaskLocked, []
        if method not in task.methods:
            return MethodNotAllowed, []
        return CodeExpired if known and expired else WrongCode, []

    def resend(self, task: TaskModel, method: str) -> Verdict:
        if refused := task.closed(self.now) or self._refusal(task, method):
            return refused, []
        code = task.codes.get(method)
        lasts = code is not None and code.ends - self.now >= LASTS_A_MINUTE
        if code is not None and lasts and self.policy == "same" and method not in self.makers:
            code.out += (task.id, f"@{method}") not in self.sends
        else:
            code = self._new_code(task)
        self._issue(task, method, code)
        return None, [method]

    def _refusal(self, task: TaskModel, method: str) -> type[TaskFlowError] | None:
        if method not in task.methods or FIELDS[method] not in task.macs:
            return MethodNotAllowed
        if self.now < task.free_at.get(method, 0):
            return ResendTooSoon
        return None if self.may_send(task, task.macs, [method]) else SendLimitReached

    def update(self, task: TaskModel, changes: dict[str, str]) -> Verdict:
        changed = {name: new for name, new in changes.items() if task.recipient.get(name) != new}
        if (over := task.closed(self.now) or (not changed and task.over(self.now))) or not changed:
            return over or None, []
        recipient, macs = task.recipient | changed, task.macs | self.macs(changed)
        fresh = [method for method in task.methods if FIELDS[method] in changed]
        dying = [method for method in fresh if task.asked[method]]
        first = fresh if task.status is Status.FAILED else []
        sending = dying or [*first, *(name for name in task.methods if FIELDS[name] in recipient)][:1]
        if task.updates >= MAX_UPDATES or not self.may_send(task, macs, sending):
            return SendLimitReached, []
        task.recipient, task.macs = recipient, macs
        task.updates += 1
        for method in sending:
            self._issue(task, method, self._new_code(task))
        return None, sending

    def cancel(self, task: TaskModel) -> Verdict:
        over = task.closed_for_good(self.now)
        if over is None:
            task.end(Status.CANCELLED, self.now)
        return over, []

    def _new_code(self, task: TaskModel) -> Code:
        return Code(min(self.now + CODE_TTL, task.expires))

    def _issue(self, task: TaskModel, method: str, code: Code) -> None:
        """Count one more message, and store its send."""
        task.codes[method] = code
        task.sends += 1
        task.free_at[method] = self.now + min(COOLDOWN_MAX, COOLDOWN * 2 ** task.asked[method])
        task.asked[method] += 1
        if task.status is Status.FAILED:
            task.status = Status.PENDING
        for marks in (task.given_up, task.fell, task.spare):
            marks.discard(method)
        task.refused.pop(method, None)
        task.unsure.pop(method, None)
        for mac in task.macs[FIELDS[method]]:
            count = self.count(mac)
            self._counts[mac] = count + 1, self._counts[mac][1] if count else self.now + WINDOW
        if not self.background:
            return
        if send := self.sends.get((task.id, f"@{method}")):
            send.token += 1
            send.begin_anew()
        else:
            self.sends.store(task.id, f"@{method}", task.priority)

    def _give_back(self, macs: tuple[Mac, ...], messages: int) -> None:
        """Take those that carried a right code off the address's window."""
        for mac in macs:
            if count := self.count(mac):
                self._counts[mac] = max(count - messages, 0), self._counts[mac][1]

    def disarm(self, task: TaskModel, method: str) -> None:
        """Take back a message that no try delivered."""
        task.free_at[method] = 0
        if method in task.codes:
            task.codes[method].out = max(task.codes[method].out - 1, 0)

    def claim(self, method: str) -> tuple[TaskModel, Delivery] | None:
        """Claim one send."""
        chosen, dead = self.sends.claim(self.now, [f"@{method}"], 1, lost=MAX_LOST + LOST_MORE)
        for send in dead:
            self.give_up(self.tasks[send.task_id], method, unknown=True)
        return (self.tasks[chosen[0].task_id], chosen[0]) if chosen else None

    def due(self, task: TaskModel, method: str) -> bool:
        """Whether the code of a send that was claimed is to go out still."""
        code = task.codes.get(method)
        return not task.over(self.now) and code is not None and code.out > 0

    def attempt(self, task: TaskModel, method: str, send: Delivery, mood: str) -> bool:
        """Try a send; whether its code reaches the provider."""
        if not self.due(task, method):
            del self.sends[task.id, f"@{method}"]
            return False
        if self.needless(task, method):
            del self.sends[task.id, f"@{method}"]
            self.disarm(task, method)
            return False
        if send.lost > MAX_LOST:
            self.give_up(task, method, unknown=True)
            return False
        self.renew(task, method)
        if mood == "ok":
            del self.sends[task.id, f"@{method}"]
        else:
            self.fail(task, method, send, mood)
        return True

    def renew(self, task: TaskModel, method: str) -> Code:
        """Return the code that a try carries: a new one if that in force is the strategy's or old."""
        code = task.codes[method]
        lasts = code.ends - self.now >= LASTS_A_MINUTE or code.ends >= task.expires
        if method in self.makers or not lasts:
            code = task.codes[method] = self._new_code(task)
        return code

    def fail(self, task: TaskModel, method: str, send: Delivery, mood: str) -> None:
        if mood == "reject":
            self.give_up(task, method)
            return
        delay = RETRY if mood == "retry" else min(BACKOFF_MAX, BACKOFF * 2**send.failures)
        left = task.expires - self.now
        send.failures += 1
        send.put("delay", self.now + max(min(delay, left), 0))
        if task.over(self.now):
            return
        since = task.refused.setdefault(method, self.now)
        if (delay < left and self.now - since < FALLBACK) or method in task.fell:
            return
        others = [name for name in task.methods if name != method]
        near = any(self.is_posted(task, name) and name not in task.refused for name in others)
        if not near and not any(self.is_delivered(task, name) for name in task.methods):
            following = self._try_next(task, method)
            if following:
                task.fell.add(method)
                task.spare |= {method, following}

    def is_posted(self, task: TaskModel, method: str) -> bool:
        return (task.id, f"@{method}") in self.sends

    def is_delivered(self, task: TaskModel, method: str) -> bool:
        """Whether a code in force was not only handed to a send that waits or runs."""
        code = task.codes.get(method)
        return code is not None and self.now < code.ends and code.out - self.is_posted(task, method) > 0

    def needless(self, task: TaskModel, method: str) -> bool:
        """Whether no code is wanted by a method any more, though one waits to be sent."""
        others = [name for name in task.methods if name != method]
        delivered = any(self.is_delivered(task, name) for name in others)
        return task.is_late(self.now) or (method in task.spare and delivered)

    def give_up(self, task: TaskModel, method: str, *, unknown: bool = False) -> None:
        """End a send; fall back to the next method unless a code is in force or on its way."""
        own = self.is_delivered(task, method)
        del self.sends[task.id, f"@{method}"]
        if task.over(self.now):
            return
        if unknown:
            task.unsure[method] = task.codes[method]
            task.free_at[method] = 0
        else:
            self.disarm(task, method)
        task.given_up.add(method)
        for name, code in task.codes.items():
            if name != method and code.out and (self.now < code.ends or self.is_posted(task, name)):
                return
        if not own and not self._try_next(task, method) and not task.unsure:
            task.end(Status.FAILED, self.now)

    def _try_next(self, task: TaskModel, method: str) -> str | None:
        at = task.methods.index(method)
        for name in [*task.methods[at:], *task.methods[:at]]:
            usable = name not in task.given_up and not self.is_posted(task, name)
            if usable and FIELDS[name] in task.macs and self.may_send(task, task.macs, [name]):
                self._issue(task, name, self._new_code(task))
                return name
        return None
