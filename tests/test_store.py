"""What goes over the wire and what stands in Redis, whatever happens."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from conftest import MakeApp, watch
from flask import Flask
from redis import Redis, RedisError
from task_support import EMAIL, add, other

from flask_taskflow import BaseStrategy, OutboxStrategy, Status, Task, TaskFlow
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

Call = Callable[[], Any]


def dump(redis: Redis) -> dict[bytes, Any]:
    """Everything there is, with its end."""
    keys = cast(list[bytes], redis.keys("*"))
    return {key: (redis.dump(key), redis.execute_command("PEXPIRETIME", key)) for key in keys}


@pytest.fixture
def warm(make_app: MakeApp, taskflow: TaskFlow, box: Outbox) -> Iterator[Flask]:
    """An app that has run every step once, with a callback."""
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    app = make_app(recipient_max_sends=1000, max_sends=100, resend_cooldown=0)
    with app.app_context():
        task = add(taskflow)
        taskflow.resend_otp(task.id, "EMAIL")
        taskflow.update_recipient(task.id, {"email": "warm@example.com"})
        taskflow.get_task(task.id)
        taskflow.verify(task.id, "EMAIL", box[-1].otp)
        taskflow.cancel_task(add(taskflow).id)
        yield app


@pytest.mark.parametrize(
    "step", ["add", "get", "wrong", "verify", "resend", "update", "cancel", "unknown", "over", "malformed"]
)
def test_step_when_warm_is_one_evalsha(
    warm: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, step: str
) -> None:
    task = add(taskflow)
    code = box[-1].otp

    def refused(expected: type[Exception], call: Call) -> None:
        with pytest.raises(expected):
            call()

    calls: dict[str, Call] = {
        "add": lambda: add(taskflow),
        "get": lambda: taskflow.get_task(task.id),
        "wrong": lambda: refused(WrongCode, lambda: taskflow.verify(task.id, "EMAIL", other(code))),
        "verify": lambda: taskflow.verify(task.id, "EMAIL", code),
        "resend": lambda: taskflow.resend_otp(task.id, "EMAIL"),
        "update": lambda: taskflow.update_recipient(task.id, {"email": "new@example.com"}),
        "cancel": lambda: taskflow.cancel_task(task.id),
        "unknown": lambda: refused(TaskNotFound, lambda: taskflow.verify("a" * 34, "EMAIL", code)),
        "over": lambda: refused(MethodNotAllowed, lambda: taskflow.verify(task.id, "SMART_OTP", code)),
        "malformed": lambda: refused(TaskNotFound, lambda: taskflow.verify("x", "EMAIL", code)),
    }

    sent, _ = watch(redis, calls[step])

    assert [command.split()[0] for command in sent] == ([] if step == "malformed" else ["EVALSHA"])


def test_verify_learns_of_callbacks_that_others_registered_with_one_more_trip(
    warm: Flask, make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    fresh = TaskFlow()
    app = make_app(fresh, recipient_max_sends=1000)
    trips: list[int] = []

    for _ in range(2):
        task = add(taskflow)
        call = partial(fresh.verify, task.id, "EMAIL", box[-1].otp)
        with app.app_context():
            fresh.get_task(task.id)
            sent, _ = watch(redis, call)
        trips.append(len(sent))

    assert trips == [2, 1]
    assert taskflow.run_due() == 3


def test_scripts_when_flushed_are_loaded_again(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    task = add(taskflow)
    steps: list[Call] = [
        lambda: taskflow.get_task(task.id),
        lambda: travel(30),
        lambda: taskflow.resend_otp(task.id, "EMAIL"),
        lambda: taskflow.update_recipient(task.id, {"email": "new@example.com"}),
        lambda: taskflow.verify(task.id, "EMAIL", box.last_code("new@example.com")),
    ]

    for step in steps:
        redis.script_flush()
        step()

    assert runs == [task.id]


class Fickle(BaseStrategy):
    """Makes its own codes and cannot send every second one."""

    address = None
    code_pattern = "[0-9]+"

    def __init__(self) -> None:
        self.count = 0

    def generate(self, task: Task[Any]) -> str:
        self.count += 1
        return str(self.count)

    def send(self, task: Task[Any], otp: str) -> None:
        if self.count % 2:
            raise OSError("no route")


def whole_life(taskflow: TaskFlow, box: Outbox) -> None:
    """Take every step there is, the ones after failures included."""
    taskflow.register_strategy("FICKLE")(Fickle())
    with pytest.raises(SendFailed) as failed:
        add(taskflow, allowed_methods=["FICKLE"])
    assert failed.value.task is not None
    taskflow.resend_otp(failed.value.task.id, "FICKLE")
    taskflow.verify(failed.value.task.id, "FICKLE", "2")
    task = add(taskflow, send_via=["EMAIL", "SMS"])
    for _ in range(4):
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", other(box[-2].otp))
    taskflow.update_recipient(task.id, {"email": "new@example.com"})
    taskflow.get_task(task.id)
    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", other(box[-1].otp))
    taskflow.cancel_task(add(taskflow).id)
    taskflow.verify(add(taskflow).id, "EMAIL", box[-1].otp)
    with pytest.raises(TaskNotFound):
        taskflow.verify(task.id[:-4] + "aaaa", "EMAIL", "123456")


def test_steps_touch_declared_keys_of_one_slot_only(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S52."""
    taskflow.on_task_verified("q", name="act")(lambda task: None)

    sent, scripted = watch(redis, lambda: whole_life(taskflow, box))

    declared: set[str] = set()
    for command in sent:
        words = command.split(" ")
        keys = words[3 : 3 + int(words[2])] if words[0] in ("EVALSHA", "EVAL") else words[1:2]
        if words[0] in ("EVALSHA", "EVAL"):
            assert len({re.findall(r"\{([^}]+)\}", key)[0] for key in keys}) == 1
            declared.update(keys)
        elif words[0] == "HSET":
            assert keys == ["taskflow:queues"]
    used = {command.split(" ")[1] for command in scripted if command.split(" ")[0] not in ("TIME", "PUBLISH")}
    assert used
    assert used <= declared
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


def test_priority_as_an_integer_of_ones_own_is_stored(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    class Urgent(int):
        def __str__(self) -> str:
            return "urgent"

    task = add(taskflow, priority=Urgent(7))

    assert taskflow.get_task(task.id).priority == 7


Act = Callable[[TaskFlow, Outbox, Task[Any]], Any]


def nothing(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    """What needs no preparation."""


def cancel(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.cancel_task(task.id)


def expire(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    travel(3001)


def lock(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    for expected in [WrongCode] * 4 + [TaskLocked]:
        with pytest.raises(expected):
            taskflow.verify(task.id, "EMAIL", other(box[0].otp))


def send_all(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    for _ in range(2):
        travel(60)
        taskflow.resend_otp(task.id, "EMAIL")
    travel(700)


def update(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.update_recipient(task.id, {"email": "first@example.com"})


def fill_addresses(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    for _ in range(2):
        add(taskflow)
    for _ in range(3):
        add(taskflow, recipient={"email": "new@example.com"})
    travel(60)


def resend(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.resend_otp(task.id, "EMAIL")


def resend_by(method: str) -> Act:
    return lambda taskflow, box, task: taskflow.resend_otp(task.id, method)


def resend_unknown(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.resend_otp(unknown(task), "EMAIL")


def verify(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.verify(task.id, "EMAIL", box[0].otp)


def readdress(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.update_recipient(task.id, {"email": "new@example.com"})


def readdress_unknown(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    taskflow.update_recipient(unknown(task), {"email": "new@example.com"})


def forget_strategy(taskflow: TaskFlow, box: Outbox, task: Task[Any]) -> None:
    del taskflow._channels["EMAIL"]


def unknown(task: Task[Any]) -> str:
    return task.id[:-4] + "aaaa"


def add_for(**given: Any) -> Act:
    return lambda taskflow, box, task: add(taskflow, **given)


REFUSALS: dict[str, tuple[Act, Act, type[Exception]]] = {
    "add at the address's limit": (fill_addresses, add_for(), SendLimitReached),
    "add with too many methods": (
        nothing,
        add_for(allowed_methods=["ONE", "TWO", "SMS", "EMAIL"], send_via=["ONE", "TWO", "SMS", "EMAIL"]),
        SendLimitReached,
    ),
    "resend too soon": (nothing, resend, ResendTooSoon),
    "resend by a method not allowed": (nothing, resend_by("ONE"), MethodNotAllowed),
    "resend by a method without a strategy": (nothing, resend_by("NONE"), MethodNotAllowed),
    "resend by a method without an address": (nothing, resend_by("SMART_OTP"), MethodNotAllowed),
    "resend at the task's limit": (send_all, resend, SendLimitReached),
    "resend at the address's limit": (fill_addresses, resend, SendLimitReached),
    "resend when cancelled": (cancel, resend, TaskNotPending),
    "resend when expired": (expire, resend, TaskExpired),
    "resend of an unknown task": (nothing, resend_unknown, TaskNotFound),
    "verify when cancelled": (cancel, verify, TaskNotPending),
    "verify when expired": (expire, verify, TaskExpired),
    "verify when locked": (lock, verify, TaskLocked),
    "update when cancelled": (cancel, readdress, TaskNotPending),
    "update when expired": (expire, readdress, TaskExpired),
    "update when locked": (lock, readdress, TaskLocked),
    "update at its limit": (update, readdress, SendLimitReached),
    "update at the address's limit": (fill_addresses, readdress, SendLimitReached),
    "update without the strategy": (forget_strategy, readdress, ConfigError),
    "update of an unknown task": (nothing, readdress_unknown, TaskNotFound),
    "cancel when cancelled": (cancel, cancel, TaskNotPending),
    "cancel when expired": (expire, cancel, TaskExpired),
    "cancel when locked": (lock, cancel, TaskLocked),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_step_when_refused_writes_nothing(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Redis, refusal: str
) -> None:
    prepare, act, expected = REFUSALS[refusal]
    for method in ("ONE", "TWO"):
        taskflow.register_strategy(method)(Fickle())
    taskflow.register_strategy("SMART_OTP")(OutboxStrategy(messages=box))
    app = make_app(max_sends=3, max_recipient_updates=1, recipient_max_sends=3)
    with app.app_context():
        task = add(taskflow, allowed_methods=("EMAIL", "SMS", "SMART_OTP"), ttl=3000)
        prepare(taskflow, box, task)
        before, sent = dump(redis), len(box)

        with pytest.raises(expected):
            act(taskflow, box, task)

        assert dump(redis) == before
        assert len(box) == sent


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    with redis_server("--maxmemory-policy", "noeviction") as url:
        yield url


@pytest.fixture
def full(
    small_server: str, make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> Iterator[Callable[[bool], Redis]]:
    """A function that makes the app's server full, or gives it room again; the app's context is pushed."""
    client = Redis.from_url(small_server)
    client.config_set("maxmemory", 0)
    client.flushall()

    def fill(on: bool = True) -> Redis:
        client.config_set("maxmemory", 1 if on else 0)
        client.script_flush()
        return client

    with make_app(redis_url=small_server, recipient_max_sends=100).app_context():
        yield fill
    client.close()


def test_steps_that_grow_when_memory_is_full_are_refused_whole(
    full: Callable[..., Redis], taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    travel(30)
    client = full()
    before = dump(client)

    for queue in ("q", "new"):
        with pytest.raises(RedisError):
            add(taskflow, queue=queue)
    with pytest.raises(RedisError):
        taskflow.resend_otp(task.id, "EMAIL")

    assert dump(client) == before
    assert len(box) == 1
    full(False)
    taskflow.resend_otp(task.id, "EMAIL")
    assert len(box) == 2


def test_wrong_codes_when_memory_is_full_are_counted_and_lock(
    full: Callable[..., Redis], taskflow: TaskFlow, box: Outbox
) -> None:
    task = add(taskflow)
    full()

    for expected in [WrongCode] * 4 + [TaskLocked]:
        with pytest.raises(expected):
            taskflow.verify(task.id, "EMAIL", other(box[0].otp))

    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", box[0].otp)


def test_right_code_when_memory_is_full_is_accepted_with_its_deliveries(
    full: Callable[..., Redis], taskflow: TaskFlow, box: Outbox
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


def test_end_and_change_of_address_when_memory_is_full_work(
    full: Callable[..., Redis], taskflow: TaskFlow, box: Outbox
) -> None:
    gone, changed = add(taskflow), add(taskflow)
    full()

    taskflow.cancel_task(gone.id)
    taskflow.update_recipient(changed.id, {"email": "new@example.com"})

    assert taskflow.get_task(gone.id).status is Status.CANCELLED
    assert taskflow.verify(changed.id, "EMAIL", box.last_code("new@example.com"))


def test_failed_send_when_memory_is_full_disarms_its_code(
    full: Callable[..., Redis], taskflow: TaskFlow, box: Outbox
) -> None:
    tried: list[str] = []

    class Broken(BaseStrategy):
        def send(self, task: Task[Any], otp: str) -> None:
            tried.append(str(otp))
            raise OSError("no route")

    task = add(taskflow)
    taskflow.register_strategy("EMAIL")(Broken())
    full()

    with pytest.raises(SendFailed):
        taskflow.update_recipient(task.id, {"email": "new@example.com"})

    with pytest.raises(WrongCode):
        taskflow.verify(task.id, "EMAIL", tried[0])


def test_every_call_when_redis_is_away_raises_and_sends_nothing(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, unused_port: int
) -> None:
    app = make_app(redis_url=f"redis://:hunter2@127.0.0.1:{unused_port}/0")
    task_id = "a" * 34
    calls: list[Call] = [
        lambda: add(taskflow),
        lambda: taskflow.verify(task_id, "EMAIL", "123456"),
        lambda: taskflow.resend_otp(task_id, "EMAIL"),
        lambda: taskflow.update_recipient(task_id, {"email": EMAIL}),
        lambda: taskflow.get_task(task_id),
        lambda: taskflow.cancel_task(task_id),
    ]

    with app.app_context():
        for call in calls:
            with pytest.raises(RedisError) as failed:
                call()
            assert "hunter2" not in repr(failed.value)

    assert not box


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else may for as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number: int = taken.getsockname()[1]
        yield number
