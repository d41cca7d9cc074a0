"""Random edits to Redis between steps: none is confirmed without its code, and only our errors come of it."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import RedisError

from flask_taskflow import BaseStrategy, Task, TaskFlowError, every
from flask_taskflow._inert import inert
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.stage import Stage
from tests.support.tasks import PHONE, key_of, other

DEVICE_CODE = "271828"
NUMBERS = [b"-1", b"0", b"nan", b"inf", b"1e400", b"9" * 30, b"1 2"]
HOSTILE = b"\x1b[2J\nbad \xff\xe2\x80\xae"
ODD = [*NUMBERS, b"9" * 400, b"-" + b"9" * 14, b"", b" ", HOSTILE, b"PENDING", b"SUCCESS", b"FAILED", b"{}"]
#: Names of fields that count, or nearly so.
COUNTED = [b"codes", b"verify", b"verify EMAIL 5", b"run q done", b"tasks added", b"@minute"]
#: What an edit of is most likely to be worth something.
TELLING = [b"status", b"proof", b"method", b"verified", b"attempts", b"EMAIL.digest", b"EMAIL.until"]
KEPT = 3000
#: What an operator looks at; both are of a task.
COMMANDS = ("doctor --strict", "stats", "tasks q", "dead", "handlers", "metrics", "health", "schedules")
ABOUT = ("show {}", "history {}", "find user:1", "find {}-at@example.com", "replay {}:q")
OF_A_QUEUE = ("queues/q", "queues/q/callbacks/q", "queues/q/methods/EMAIL", "?period=hour")
PAGES = ("", *OF_A_QUEUE, "dead", "tasks", "tasks/{}", "schedules", "processes", "health")


class Device(BaseStrategy):
    """Takes one code."""

    address = "device_id"
    code_pattern = "[0-9]{6}"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        return task.id if otp == DEVICE_CODE else None


class Writer:
    """Writes to Redis what it saw there, elsewhere or before, and what nobody expects.

    :param redis: a client of any type: what redis-py answers is no matter here.
    """

    def __init__(self, redis: Any, chance: random.Random) -> None:
        self.redis = redis
        self.chance = chance
        self.fields: dict[bytes, list[bytes]] = defaultdict(list)
        self.members: list[bytes] = [HOSTILE, b""]
        self.dumps: list[tuple[bytes, bytes]] = []

    def look(self) -> None:
        """Remember what stands there."""
        for key in self.redis.keys("*"):
            kind = self.redis.type(key)
            # It may be over by now.
            if dumped := self.redis.dump(key):
                self.dumps.append((key, dumped))
            if kind == b"hash":
                for name, value in self.redis.hgetall(key).items():
                    self.fields[name].append(value)
                    del self.fields[name][:-20]
            elif kind == b"zset":
                self.members += self.redis.zrange(key, 0, -1)
            elif kind == b"list":
                self.members += self.redis.lrange(key, 0, -1)
        del self.dumps[:-KEPT], self.members[:-KEPT]

    def edit(self) -> None:
        """Change something."""
        keys = sorted(self.redis.keys("*")) or [b"x"]
        tasks = [key for key in keys if b":task:" in key]
        key = self.chance.choice(self.chance.choice([keys, tasks or keys]))
        kind = self.redis.type(key)
        edits = {b"hash": self._hash, b"zset": self._zset, b"list": self._list}
        self.chance.choice([edits.get(kind, self._whole)] * 4 + [self._whole])(key)

    def _hash(self, key: bytes) -> None:
        names = sorted(self.redis.hkeys(key))
        strange = [b"\xff.digest", HOSTILE, self.chance.choice(COUNTED)]
        name = self.chance.choice([*names, *self.chance.choices(sorted(self.fields), k=3), *strange])
        if self.chance.random() < 0.3:
            name = self.chance.choice(TELLING)
        elsewhere = self.chance.choice(list(self.fields.values()))
        values = [*self.fields[name], *elsewhere, self.chance.choice(ODD)]
        if self.chance.random() < 0.2:
            self.redis.hdel(key, name)
        else:
            self.redis.hset(key, name, self.chance.choice(values))

    def _zset(self, key: bytes) -> None:
        member = self.chance.choice(self.members)
        if self.chance.random() < 0.3:
            self.redis.zrem(key, member)
        else:
            self.redis.zadd(key, {member: self.chance.choice([0, -1, 1e18, math.inf, -math.inf, 1e12])})

    def _list(self, key: bytes) -> None:
        self.redis.rpush(key, self.chance.choice([*self.members, *ODD]))

    def _whole(self, key: bytes) -> None:
        where, dumped = self.chance.choice(self.dumps)
        roll = self.chance.random()
        if roll < 0.05:
            self.redis.set("taskflow:paused", self.chance.choice(ODD))
        elif roll < 0.5:
            self.redis.restore(self.chance.choice([where, key]), 0, dumped, replace=True)
        elif roll < 0.7:
            self.redis.delete(key)
        elif roll < 0.8:
            self.redis.set(key, self.chance.choice(ODD))
        else:
            self.redis.pexpire(key, self.chance.choice([1, 10**9]))


class Play:
    """An app that goes on, whatever is written to Redis.

    :param send: how its codes are sent.
    """

    def __init__(self, stage: Stage, seed: int, send: str = "inline") -> None:
        self.chance = random.Random(seed)
        self.stage, self.taskflow, self.box = stage, stage.taskflow, stage.box
        self.taskflow.register_strategy("DEVICE")(Device())
        self.ran: set[str] = set()
        self.typed: set[str] = set()
        self.tasks: list[Task[Any]] = []
        self.statuses: set[int] = set()
        self.taskflow.on_task_verified("q")(lambda task: self.ran.add(task.id))
        self.taskflow.on_task_ended("q", statuses=("EXPIRED", "LOCKED"), name="ended")(lambda task: None)
        self.taskflow.on_schedule(every(1), name="tick")(lambda tick: None)
        self.app = stage.app(
            recipient_max_sends=10**6, resend_cooldown=0, PROPAGATE_EXCEPTIONS=False, send=send
        )
        self.app.register_blueprint(
            self.taskflow.create_blueprint(routes=("verify", "resend", "cancel", "status"))
        )
        dashboard = self.taskflow.create_dashboard(access=lambda request: "operate")
        self.app.register_blueprint(dashboard, url_prefix="/board")
        self.client = self.app.test_client()
        self.writer = Writer(stage.redis, self.chance)

    def go(self, edits: int) -> None:
        for number in range(edits):
            if number % 400 == 0:
                # What is spoiled for good would leave nothing to be tried.
                self.stage.redis.flushall()
                self.tasks.clear()
                with suppress(TaskFlowError):
                    for _ in range(3):
                        self._add()
            self._step()
            if number % 10 == 0:
                self.writer.look()
            self.writer.edit()
            self._check()

    def _step(self) -> None:
        steps = [self._add, self._type, self._type, self._type_over_http, self._more, self._more]
        with suppress(TaskFlowError, RedisError):
            self.chance.choice(steps)()

    def _add(self) -> None:
        method = self.chance.choice(["EMAIL", "SMS", "DEVICE"])
        number = len(self.typed)
        recipient = {"email": f"{number}-at@example.com", "phone_number": PHONE, "device_id": "phone"}
        owner = self.chance.choice([None, "user:1"])
        later = self.chance.random() < 0.2
        self.tasks.append(
            self.taskflow.add_task(
                "q",
                {"n": 1},
                allowed_methods=[method, "EMAIL"],
                recipient=recipient,
                owner=owner,
                holder=self.chance.random() < 0.2,
                key=self.chance.choice([None, None, str(number)]),
                remind=self.chance.choice([(), [30], [300, 30]]),
                replace=owner is not None and self.chance.random() < 0.2,
                run_at=datetime.now(UTC) + timedelta(seconds=self.chance.choice([1, 90])) if later else None,
            )
        )

    def _pick(self) -> tuple[Task[Any], str, str]:
        """Return one of the last tasks, a method and a code, which is right if it is noted as typed."""
        task = self.chance.choice(self.tasks[-8:])
        method = self.chance.choice(task.allowed_methods)
        sent = [m.otp for m in self.box if m.task.id == task.id]
        right = self.chance.random() < 0.2
        code = DEVICE_CODE if method == "DEVICE" else str(self.chance.choice(sent)) if sent else "000000"
        if right:
            self.typed.add(task.id)
        typed = code if right else other(code, self.chance.randint(1, 5))
        # MONITOR shows it.
        digest = inside.service().keyring.digest(task.id, method, typed)
        self.writer.fields[f"{method}.digest".encode()].append(digest.encode())
        return task, method, typed

    def _type(self) -> None:
        if self.tasks:
            task, method, code = self._pick()
            self.taskflow.verify(task.id, method, code, holder=task.holder)

    def _type_over_http(self) -> None:
        if self.tasks:
            task, method, code = self._pick()
            self._ask("post", f"/tasks/{task.id}/verify", json={"method": method, "otp": code})

    def _ask(self, verb: str, path: str, **options: Any) -> None:
        self.statuses.add(getattr(self.client, verb)(path, **options).status_code)

    def _more(self) -> None:
        if not self.tasks:
            return
        task = self.chance.choice(self.tasks[-8:])
        method = self.chance.choice(task.allowed_methods)
        steps: list[Callable[[], object]] = [
            lambda: self.taskflow.run_due(),
            lambda: self.taskflow.resend_otp(task.id, method, holder=task.holder),
            lambda: self.taskflow.update_recipient(task.id, {"email": f"{self.chance.random()}@example.com"}),
            lambda: self._ask("get", f"/tasks/{task.id}"),
            lambda: self._ask("post", f"/tasks/{task.id}/resend", json={"method": method}),
            lambda: self.taskflow.reject_task(task.id, method, "000000", holder=task.holder),
            lambda: self.taskflow.tasks_of("user:1"),
            lambda: self.taskflow.unblock("user:1"),
            lambda: self._command(self.chance.choice(COMMANDS)),
            lambda: self._command(self.chance.choice(ABOUT).format(task.id)),
            lambda: self._look_at(self.chance.choice(PAGES).format(task.id)),
            lambda: self.taskflow.cancel_task(task.id),
            lambda: travel(self.chance.choice([1, 60])),
        ]
        self.chance.choice(steps)()

    def _command(self, name: str) -> None:
        """Let an operator look: a command ends with a sentence, if not well."""
        result = self.app.test_cli_runner().invoke(args=["taskflow", *name.split()])
        error = result.exception
        assert error is None or isinstance(error, SystemExit), f"{name}: {error!r}"
        assert all(inert(line) == line for line in result.output.split("\n")), name

    def _look_at(self, page: str) -> None:
        """Let an operator look at a page of the dashboard."""
        answer = self.client.get(f"/board/{page}")
        assert answer.status_code in (200, 404, 503), page
        # The name of a queue that somebody invented stands in links.
        assert "-at@" not in re.sub("<[^>]*>", "", answer.text), page

    def _check(self) -> None:
        assert self.ran <= self.typed, "a callback ran without the code"
        assert not self.statuses & set(range(500, 503)), self.statuses
        for task in self.tasks[-4:]:
            try:
                status = self.taskflow.get_task(task.id).status
            except (TaskFlowError, RedisError):
                continue
            assert status != "SUCCESS" or task.id in self.typed, "a task reads SUCCESS without its code"


@pytest.mark.promise("S61")
@pytest.mark.parametrize(
    "field", ["created", "expires", "attempts", "EMAIL.next", "EMAIL.until", "EMAIL.out"]
)
@pytest.mark.parametrize("value", NUMBERS)
def test_number_that_is_none_is_our_error(stage: Stage, field: str, value: bytes) -> None:
    play = Play(stage, 0)
    task = stage.add()
    path, method = f"/tasks/{task.id}", {"method": "EMAIL"}

    for verb, url, body in (
        ("get", path, None),
        ("post", f"{path}/verify", {"otp": other(stage.box[0].otp), **method}),
        ("post", f"{path}/resend", method),
    ):
        stage.redis.hset(key_of(stage.redis, task), field, value)
        with suppress(TaskFlowError, RedisError):
            stage.taskflow.get_task(task.id)
        play._ask(verb, url, json=body)

    assert play.statuses <= {200, 202, 400, 429, 503}


@pytest.mark.promise("S69")
def test_names_and_numbers_that_are_none_stop_no_operator_and_move_no_terminal(stage: Stage) -> None:
    play = Play(stage, 0)
    task = stage.verified()
    stage.run()
    names = ("handlers", "counters", "history")
    handlers, counters, history = inside.service().keys.of_queue("q", *names)
    known = ("taskflow:queues", "taskflow:stuck", "taskflow:fingerprints", "taskflow:processes")
    for key in (*known, handlers, counters, history):
        stage.redis.hset(key, HOSTILE, HOSTILE)
        stage.redis.hset(key, b"early", b"-" + b"9" * 14)
    stage.redis.hset("taskflow:processes", "p callbacks", b"9" * 30 + b" 1 v q")
    stage.redis.hset(counters, mapping=dict.fromkeys(COUNTED, HOSTILE))
    stage.redis.hset(counters, b"run work%s done" % HOSTILE.replace(b" ", b""), 1)
    stage.redis.hset(counters, mapping={"verify EMAIL 5": 0, "verify EMAIL 10": -3, "@minute": 1})
    stage.redis.hset(history, "minute", HOSTILE)

    for command in (*COMMANDS, *ABOUT):
        play._command(command.format(task.id))
    for page in PAGES:
        play._look_at(page.format(task.id))


@pytest.mark.promise("S61")
def test_life_of_a_code_that_is_none_ends_no_send(stage: Stage) -> None:
    Play(stage, 0, "background")
    task = stage.add()
    stage.redis.hset(key_of(stage.redis, task), "EMAIL.until", b"9" * 400)

    stage.run()

    assert stage.keys("lease", "ready", "delay", "dead") == []
    stage.redis.set("taskflow:paused", HOSTILE)
    stage.redis.delete("taskflow:queues")
    stage.taskflow.add_task("another", allowed_methods=["EMAIL"], recipient={"email": "another@example.com"})


@pytest.mark.promise("S61")
@pytest.mark.parametrize(
    ("edits", "seed", "send"),
    [
        (300, 1, "inline"),
        (300, 2, "background"),
        pytest.param(10_000, 3, "inline", marks=[pytest.mark.chaos, pytest.mark.timeout(1800)]),
    ],
)
def test_random_edits_confirm_nothing_and_break_nothing(
    stage: Stage, edits: int, seed: int, send: str
) -> None:
    play = Play(stage, seed, send)

    play.go(edits)

    stage.redis.flushall()
    task = stage.add()
    stage.run()
    stage.verify(task)
    stage.run()
    assert task.id in play.ran, "the app lives on"
