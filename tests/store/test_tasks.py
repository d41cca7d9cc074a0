"""What goes over the wire and what stands in Redis, whatever happens."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from flask import Flask
from redis import Redis, RedisError

from flask_taskflow import OutboxStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import (
    ConfigError,
    MethodNotAllowed,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    TaskExpired,
    TaskLocked,
    TaskNotFound,
    TaskNotPending,
    WrongCode,
)
from flask_taskflow.testing import Outbox, redis_server, travel
from tests.conftest import MakeApp, watch
from tests.support import inside
from tests.support.tasks import (
    BOTH,
    EMAIL,
    NEW_EMAIL,
    Tap,
    add,
    guess_wrong,
    keys_like,
    lock,
    other,
    refused,
    with_settings,
)

NEW = {"email": NEW_EMAIL}
UNKNOWN = "a" * 34


def dump(redis: Redis) -> dict[bytes, Any]:
    """Everything there is but the counters, with its end."""
    keys = [
        key for key in cast(list[bytes], redis.keys("*")) if not key.endswith((b":counters", b":history"))
    ]
    return {key: (redis.dump(key), redis.execute_command("PEXPIRETIME", key)) for key in keys}


@pytest.fixture
def warm(app: Flask, taskflow: TaskFlow, box: Outbox) -> Flask:
    """The app, which has run every step once, with a callback."""
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    task = add(taskflow)
    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.update_recipient(task.id, {"email": "warm@example.com"})
    taskflow.get_task(task.id)
    taskflow.verify(task.id, "EMAIL", box[-1].otp)
    taskflow.cancel_task(add(taskflow).id)
    return app


warm_settings = with_settings(recipient_max_sends=1000, max_sends=100, resend_cooldown=0, eager=False)


@pytest.mark.parametrize(
    "step", ["add", "get", "wrong", "verify", "resend", "update", "cancel", "unknown", "over", "malformed"]
)
@warm_settings
@pytest.mark.usefixtures("warm")
def test_step_when_warm_is_one_round_trip(taskflow: TaskFlow, box: Outbox, redis: Redis, step: str) -> None:
    task = add(taskflow)
    code = box[-1].otp
    verify = taskflow.verify
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: add(taskflow),
        "get": lambda: taskflow.get_task(task.id),
        "wrong": lambda: refused(WrongCode, verify, task.id, "EMAIL", other(code)),
        "verify": lambda: verify(task.id, "EMAIL", code),
        "resend": lambda: taskflow.resend_otp(task.id, "EMAIL"),
        "update": lambda: taskflow.update_recipient(task.id, NEW),
        "cancel": lambda: taskflow.cancel_task(task.id),
        "unknown": lambda: refused(TaskNotFound, verify, UNKNOWN, "EMAIL", code),
        "over": lambda: refused(MethodNotAllowed, verify, task.id, "SMART_OTP", code),
        "malformed": lambda: refused(TaskNotFound, verify, "x", "EMAIL", code),
    }

    sent, _ = watch(redis, calls[step])

    # An address is checked by the strategies of the task's methods, which a change must ask for first.
    trips = {"malformed": 0, "update": 2}.get(step, 1)
    assert [command.split()[0] for command in sent] == ["EVALSHA"] * trips


@warm_settings
@pytest.mark.usefixtures("warm")
def test_verify_learns_of_callbacks_that_others_registered_with_one_more_trip(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    fresh = TaskFlow()
    app = make_app(fresh, recipient_max_sends=1000)
    trips: list[int] = []

    for _ in range(2):
        task = add(taskflow)
        with app.app_context():
            fresh.get_task(task.id)
            sent, _ = watch(redis, partial(fresh.verify, task.id, "EMAIL", box[-1].otp))
        trips.append(len(sent))

    assert trips == [2, 1]
    assert taskflow.run_due() == 3


@pytest.mark.promise("F21")
@pytest.mark.usefixtures("app")
def test_scripts_when_flushed_are_loaded_again(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    task = add(taskflow)
    steps: list[Callable[[], Any]] = [
        lambda: taskflow.get_task(task.id),
        lambda: travel(30),
        lambda: taskflow.resend_otp(task.id, "EMAIL"),
        lambda: taskflow.update_recipient(task.id, NEW),
        lambda: taskflow.verify(task.id, "EMAIL", box.last_code(NEW_EMAIL)),
    ]

    for step in steps:
        redis.script_flush()
        step()

    assert runs == [task.id]


class Fickle(Tap):
    """Makes its own codes and cannot send every second one."""

    address = None
    code_pattern = "[0-9]+"

    def generate(self, task: Task[Any]) -> str:
        return str(len(self.codes) + 1)

    def send(self, task: Task[Any], otp: str) -> None:
        self.error = None if len(self.codes) % 2 else OSError("no route")
        super().send(task, otp)


def whole_life(taskflow: TaskFlow, box: Outbox) -> None:
    """Take every step there is, the ones after failures included."""
    taskflow.register_strategy("FICKLE")(Fickle())
    failed = refused(SendFailed, lambda: add(taskflow, allowed_methods=["FICKLE"])).task
    assert failed is not None
    taskflow.resend_otp(failed.id, "FICKLE")
    taskflow.verify(failed.id, "FICKLE", "2")
    task = add(taskflow, send_via=BOTH)
    guess_wrong(taskflow, task, box[-2].otp, 4)
    taskflow.update_recipient(task.id, NEW)
    taskflow.get_task(task.id)
    refused(TaskLocked, taskflow.verify, task.id, "EMAIL", other(box[-1].otp))
    taskflow.cancel_task(add(taskflow).id)
    taskflow.verify(add(taskflow).id, "EMAIL", box[-1].otp)
    refused(TaskNotFound, taskflow.verify, unknown(task), "EMAIL", "123456")


def unknown(task: Task[Any]) -> str:
    return task.id[:-4] + "aaaa"


@pytest.mark.promise("S52")
@pytest.mark.usefixtures("app")
def test_steps_touch_declared_keys_of_one_slot_only(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    taskflow.on_task_verified("q", name="act")(lambda task: None)

    sent, scripted = watch(redis, lambda: whole_life(taskflow, box))

    declared: set[str] = set()
    for command in sent:
        words = command.split(" ")
        keys = words[3 : 3 + int(words[2])] if words[0] in ("EVALSHA", "EVAL") else words[1:2]
        if keys == ["taskflow:fingerprints"]:
            continue
        if words[0] in ("EVALSHA", "EVAL"):
            # Wrong codes count over all queues, but in a cluster: see tests/redis/test_cluster.py.
            assert len({re.findall(r"\{([^}]+)\}", key)[0] for key in keys} - {"taskflow.all"}) == 1
            declared.update(keys)
        elif words[0] == "HSET":
            assert keys == ["taskflow:queues"]
    used = {command.split(" ")[1] for command in scripted if command.split(" ")[0] not in ("TIME", "PUBLISH")}
    assert used
    # Whose course it is only the step may know.
    courses = {key for key in used if re.sub(":course:.*", ":counters", key) in declared}
    assert used <= declared | courses | {"taskflow:fingerprints"}
    assert all(key.startswith("taskflow:{taskflow.") for key in declared)


def test_apps_of_two_prefixes_know_nothing_of_each_other(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    with make_app().app_context():
        task = add(taskflow)
    with make_app(key_prefix="second").app_context():
        with pytest.raises(TaskNotFound):
            taskflow.get_task(task.id)
        add(taskflow)

    prefixes = {cast(bytes, key).split(b":")[0] for key in redis.keys("*")}
    assert prefixes == {b"taskflow", b"second"}


@pytest.mark.usefixtures("app", "box")
def test_priority_as_an_integer_of_ones_own_is_stored(taskflow: TaskFlow) -> None:
    class Urgent(int):
        def __str__(self) -> str:
            return "urgent"

    task = add(taskflow, priority=Urgent(7))

    assert taskflow.get_task(task.id).priority == 7


class Before:
    """What is done to a task, or with it: by the name of the refusal's cause."""

    def __init__(self, taskflow: TaskFlow, task: Task[Any], code: str) -> None:
        self.taskflow, self.task, self.code = taskflow, task, code

    def nothing(self) -> None:
        """Leave it as it is."""

    def cancel(self) -> None:
        self.taskflow.cancel_task(self.task.id)

    def expire(self) -> None:
        travel(3001)

    def lock(self) -> None:
        lock(self.taskflow, self.task, self.code)

    def send_all(self) -> None:
        for _ in range(2):
            travel(60)
            self.resend()
        travel(700)

    def fill_addresses(self) -> None:
        for _ in range(2):
            add(self.taskflow)
        for _ in range(3):
            add(self.taskflow, recipient=NEW)
        travel(60)

    def forget_strategy(self) -> None:
        del self.taskflow._channels["EMAIL"]

    def add(self, **given: Any) -> None:
        add(self.taskflow, **given)

    def verify(self) -> None:
        self.taskflow.verify(self.task.id, "EMAIL", self.code)

    def resend(self, method: str = "EMAIL") -> None:
        self.taskflow.resend_otp(self.task.id, method)

    def resend_unknown(self) -> None:
        self.taskflow.resend_otp(unknown(self.task), "EMAIL")

    def update(self, email: str = NEW_EMAIL) -> None:
        self.taskflow.update_recipient(self.task.id, {"email": email})

    def update_unknown(self) -> None:
        self.taskflow.update_recipient(unknown(self.task), NEW)


Do = Callable[[Before], None]
FOUR = ["ONE", "TWO", "SMS", "EMAIL"]
REFUSALS: dict[str, tuple[Do, Do, type[Exception]]] = {
    "add at the address's limit": (Before.fill_addresses, Before.add, SendLimitReached),
    "add with too many methods": (
        Before.nothing,
        lambda it: it.add(allowed_methods=FOUR, send_via=FOUR),
        SendLimitReached,
    ),
    "resend too soon": (Before.nothing, Before.resend, ResendTooSoon),
    "resend by a method not allowed": (Before.nothing, lambda it: it.resend("ONE"), MethodNotAllowed),
    "resend by a method without a strategy": (Before.nothing, lambda it: it.resend("NONE"), MethodNotAllowed),
    "resend by a method without an address": (
        Before.nothing,
        lambda it: it.resend("SMART_OTP"),
        MethodNotAllowed,
    ),
    "resend at the task's limit": (Before.send_all, Before.resend, SendLimitReached),
    "resend at the address's limit": (Before.fill_addresses, Before.resend, SendLimitReached),
    "resend when cancelled": (Before.cancel, Before.resend, TaskNotPending),
    "resend when expired": (Before.expire, Before.resend, TaskExpired),
    "resend of an unknown task": (Before.nothing, Before.resend_unknown, TaskNotFound),
    "verify when cancelled": (Before.cancel, Before.verify, TaskNotPending),
    "verify when expired": (Before.expire, Before.verify, TaskExpired),
    "verify when locked": (Before.lock, Before.verify, TaskLocked),
    "update when cancelled": (Before.cancel, Before.update, TaskNotPending),
    "update when expired": (Before.expire, Before.update, TaskExpired),
    "update when locked": (Before.lock, Before.update, TaskLocked),
    "update at its limit": (lambda it: it.update("first@example.com"), Before.update, SendLimitReached),
    "update at the address's limit": (Before.fill_addresses, Before.update, SendLimitReached),
    "update without the strategy": (Before.forget_strategy, Before.update, ConfigError),
    "update of an unknown task": (Before.nothing, Before.update_unknown, TaskNotFound),
    "cancel when cancelled": (Before.cancel, Before.cancel, TaskNotPending),
    "cancel when expired": (Before.expire, Before.cancel, TaskExpired),
    "cancel when locked": (Before.lock, Before.cancel, TaskLocked),
}


def forget_decoys(redis: Redis) -> None:
    """Delete what was written so that a refusal takes as long as a wrong code."""
    redis.delete("", *keys_like(redis, "*:decoy"))
    for counts in keys_like(redis, "*:budgets"):
        for name in cast(list[bytes], redis.hkeys(counts)):
            if name.startswith(b"decoy."):
                redis.hdel(counts, name)
                redis.zrem(f"{counts}:expiry", name)


@pytest.mark.parametrize("refusal", REFUSALS)
@with_settings(max_sends=3, max_recipient_updates=1, recipient_max_sends=3)
@pytest.mark.usefixtures("app")
def test_step_when_refused_writes_nothing_but_its_count(
    taskflow: TaskFlow, box: Outbox, redis: Redis, refusal: str
) -> None:
    prepare, act, expected = REFUSALS[refusal]
    for method in ("ONE", "TWO"):
        taskflow.register_strategy(method)(Fickle())
    taskflow.register_strategy("SMART_OTP")(OutboxStrategy(messages=box))
    task = add(taskflow, allowed_methods=("EMAIL", "SMS", "SMART_OTP"), ttl=3000)
    case = Before(taskflow, task, box[0].otp)
    prepare(case)
    forget_decoys(redis)
    before, sent = dump(redis), len(box)

    refused(expected, act, case)
    forget_decoys(redis)

    assert dump(redis) == before
    assert len(box) == sent


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    with redis_server("--maxmemory-policy", "noeviction") as url:
        yield url


class Full:
    """A server that has no memory left, or has it again."""

    def __init__(self, client: Redis) -> None:
        self.client = client

    def __call__(self, on: bool = True) -> None:
        self.client.config_set("maxmemory", 1 if on else 0)
        self.client.script_flush()


@pytest.fixture
def full(small_server: str, make_app: MakeApp) -> Iterator[Full]:
    """Make the app's server full; the app's context is pushed."""
    with Redis.from_url(small_server) as client:
        full = Full(client)
        full(False)
        client.flushall()
        with make_app(redis_url=small_server, recipient_max_sends=100).app_context():
            yield full


@pytest.mark.promise("F21")
def test_steps_that_grow_when_memory_is_full_are_refused_whole(
    full: Full, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(30)
    full()
    before = dump(full.client)

    for queue in ("q", "new"):
        refused(RedisError, partial(add, taskflow, queue=queue))
    refused(RedisError, taskflow.resend_otp, task.id, "EMAIL")

    assert dump(full.client) == before
    assert len(box) == 1
    full(False)
    taskflow.resend_otp(task.id, "EMAIL")
    assert len(box) == 2


@pytest.mark.promise("F21")
def test_wrong_codes_when_memory_is_full_are_counted_and_lock(
    full: Full, taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    full()

    lock(taskflow, task, box[0].otp)

    refused(TaskLocked, taskflow.verify, task.id, "EMAIL", box[0].otp)


@pytest.mark.promise("F21")
def test_right_code_when_memory_is_full_is_accepted_with_its_deliveries(
    full: Full, taskflow: TaskFlow, box: Outbox
) -> None:
    runs: list[str] = []
    for name in ("first", "second"):
        taskflow.on_task_verified("q", name=name)(lambda task: runs.append(task.id))
    task = add(taskflow)
    full()

    done = taskflow.verify(task.id, "EMAIL", box[0].otp)
    full(False)
    taskflow.run_due()

    assert done.status is Status.SUCCESS
    assert runs == [task.id, task.id]


@pytest.mark.promise("F21")
def test_end_and_change_of_address_when_memory_is_full_work(
    full: Full, taskflow: TaskFlow, box: Outbox
) -> None:
    gone, changed = add(taskflow), add(taskflow)
    full()

    taskflow.cancel_task(gone.id)
    taskflow.update_recipient(changed.id, NEW)

    assert taskflow.get_task(gone.id).status is Status.CANCELLED
    assert taskflow.verify(changed.id, "EMAIL", box.last_code(NEW_EMAIL))


@pytest.mark.promise("F21")
def test_failed_send_when_memory_is_full_disarms_its_code(full: Full, taskflow: TaskFlow) -> None:
    tap = taskflow.register_strategy("EMAIL")(Tap())
    task = add(taskflow)
    tap.error = OSError("no route")
    full()

    refused(SendFailed, taskflow.update_recipient, task.id, NEW)

    refused(WrongCode, taskflow.verify, task.id, "EMAIL", tap.codes[-1])


def test_every_call_when_redis_is_away_raises_and_sends_nothing(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    with socket.socket() as taken:
        # Nobody listens there, and nobody else may.
        taken.bind(("127.0.0.1", 0))
        app = make_app(redis_url=f"redis://:hunter2@127.0.0.1:{taken.getsockname()[1]}/0")
        calls: list[Callable[[], Any]] = [
            lambda: add(taskflow),
            lambda: taskflow.verify(UNKNOWN, "EMAIL", "123456"),
            lambda: taskflow.resend_otp(UNKNOWN, "EMAIL"),
            lambda: taskflow.update_recipient(UNKNOWN, {"email": EMAIL}),
            lambda: taskflow.get_task(UNKNOWN),
            lambda: taskflow.cancel_task(UNKNOWN),
        ]
        with app.app_context():
            for call in calls:
                assert "hunter2" not in repr(refused(RedisError, call))

    assert not box


# What is kept, and how long.


@pytest.mark.parametrize("place", [1, 3, 5], ids=["pending", "recipients", "budgets"])
@pytest.mark.usefixtures("app")
def test_add_task_when_an_index_is_spoiled_stores_sends_and_counts_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, place: int
) -> None:
    keys = inside.service().keys
    redis.set(keys.pending(keys.new_id("q"))[place], "spoiled")

    with pytest.raises(RedisError, match="wrong kind"):
        add(taskflow)

    assert keys_like(redis, "*:task:*") == keys_like(redis, "*:recipients") == []
    assert box == []


@pytest.mark.promise("S53")
@pytest.mark.usefixtures("app", "box")
def test_index_of_pending_tasks_forgets_what_is_over(taskflow: TaskFlow, redis: Redis) -> None:
    over = add(taskflow, ttl=10)
    kept = add(taskflow, ttl=1000)
    taskflow.cancel_task(add(taskflow, ttl=1000).id)
    (key,) = keys_like(redis, "*:pending")
    assert {over.id.encode(), kept.id.encode()} == set(redis.zrange(key, 0, -1))
    travel(20)

    new = add(taskflow, ttl=500)

    assert redis.zrange(key, 0, -1) == [new.id.encode(), kept.id.encode()]
    # An hour longer than its last: what expired is counted when it is taken out.
    assert 970_000 < redis.pttl(key) - 3_600_000 <= 980_000


@pytest.mark.usefixtures("app", "box")
def test_index_of_pending_tasks_is_trimmed_by_a_thousand_a_call(taskflow: TaskFlow, redis: Redis) -> None:
    add(taskflow)
    (key,) = keys_like(redis, "*:pending")
    redis.zadd(key, {f"old{number}": number for number in range(1500)})

    add(taskflow)
    after_one = redis.zcard(key)
    add(taskflow)

    assert (after_one, redis.zcard(key)) == (502, 3)


@pytest.mark.promise("S53")
@pytest.mark.usefixtures("app")
def test_every_key_ends_by_itself(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    pending, wrong, done, gone = (add(taskflow, ttl=3600) for _ in range(4))
    lock(taskflow, wrong, box[1].otp)
    taskflow.verify(done.id, "EMAIL", box[2].otp)
    taskflow.cancel_task(gone.id)
    taskflow.update_recipient(pending.id, {"phone_number": "+12025550199"})
    stays = {"queues", "handlers", "seq"}

    def kinds() -> set[str]:
        """The last parts of the keys' names."""
        return {key.rsplit(":", 1)[1] for key in keys_like(redis, "*")}

    endless = {key.rsplit(":", 1)[1] for key in keys_like(redis, "*") if redis.ttl(key) == -1}
    travel(7200)
    later = kinds()
    # The wrong codes of an address are a debt of three days each; counts are kept for 36.
    travel(20 * 86400)
    assert kinds() - {"history"} == stays | {"fingerprints", "counters"}
    travel(17 * 86400)

    assert endless == stays
    assert pending.id in later, "kept for the retention"
    assert "pending" not in later
    # Which keys a process has is said for a day; it belongs to no queue.
    assert 0 < redis.ttl("taskflow:fingerprints") <= 86400
    assert kinds() == stays | {"fingerprints"}
