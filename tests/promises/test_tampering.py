"""Who writes to Redis, or takes it away, moves no code, address or delivery, and gains no attempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import BaseStrategy, Status, Task, TaskFlow
from flask_taskflow.errors import MethodNotAllowed, TaskTampered
from flask_taskflow.testing import Outbox, redis_server, travel
from tests.conftest import MakeApp
from tests.support import inside
from tests.support.tasks import add, key_of, other, refused, stored_task

pytestmark = pytest.mark.usefixtures("app")


class Pad(BaseStrategy):
    address = "email"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str:
        return "use"


def fail(task: Task[Any]) -> None:
    raise OSError("not now")


@pytest.mark.promise("S31")
def test_delivery_moved_to_another_queue_does_not_run_there(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """A sealed task of a harmless queue is not accepted by the callback of another one."""
    runs: list[str] = []
    taskflow.on_task_verified("transfers", name="pay")(lambda task: runs.append(task.id))
    # The body of a delivery stands in Redis until its callback has succeeded.
    taskflow.on_task_verified("newsletter", name="greet", backoff_time=60)(fail)
    paid = add(taskflow, queue="transfers")
    taskflow.verify(paid.id, "EMAIL", box[0].otp)
    news = add(taskflow, queue="newsletter", data={"amount": 1000})
    taskflow.verify(news.id, "EMAIL", box[1].otp)
    assert runs == [paid.id]
    body: Any = redis.hget(inside.key_of("newsletter", "greet", "body"), news.id)

    redis.hset(inside.key_of("transfers", "pay", "body"), news.id, body)
    redis.hset(inside.key_of("transfers", "pay", "meta"), news.id, f"1 {1:016x} 0 0 0 0 0 -")
    redis.zadd(inside.key_of("transfers", "pay", "ready"), {f"{1:016x}:{news.id}": 0})
    taskflow.run_due()

    assert runs == [paid.id]
    assert redis.zcard(inside.key_of("transfers", "pay", "dead")) == 1


@pytest.mark.promise("S31")
@pytest.mark.parametrize("body", [b"-3:", b"1:a-6:", b"", b"9999999999:a", b"1:a", b"x:a", b":"])
def test_delivery_with_any_body_is_a_dead_letter(
    taskflow: TaskFlow, box: Outbox, redis: Redis, body: bytes
) -> None:
    """Lengths that lead back to where they were read included."""
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act", backoff_time=60)(fail)
    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box[0].otp)
    taskflow._callbacks["q"].clear()
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))

    redis.hset(inside.key_of("q", "act", "body"), task.id, body)
    travel(120)
    taskflow.run_due()

    assert not runs
    assert redis.zcard(inside.key_of("q", "act", "dead")) == 1


@pytest.mark.promise("S31")
def test_status_put_back_by_hand_does_not_bring_the_code_back(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """What ended a task took its digests; only who kept them could put them back."""
    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box[0].otp)

    redis.hset(key_of(redis, task), "status", "PENDING")

    refused(MethodNotAllowed, taskflow.verify, task.id, "EMAIL", box[0].otp)


@pytest.mark.promise("S31")
def test_address_of_another_task_with_its_seal_is_refused(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """A seal is bound to its task."""
    mine, theirs = add(taskflow, recipient={"email": "eve@example.com"}), add(taskflow)
    stolen = stored_task(redis, mine)
    names = ("address.email", "seal.recipient", "mac.email")
    redis.hset(key_of(redis, theirs), mapping={name: stolen[name] for name in names})
    travel(30)

    refused(TaskTampered, taskflow.resend_otp, theirs.id, "EMAIL")

    assert len(box) == 2


def forged(redis: Redis, task: Task[Any], honest: Mapping[str, str], **more: str) -> None:
    """Write that a task was verified, with all that an honestly verified one has more."""
    extra = {name: text for name, text in honest.items() if name not in stored_task(redis, task)}
    changed: Mapping[Any, Any] = extra | {"status": "SUCCESS"} | more
    redis.hset(key_of(redis, task), mapping=changed)


def delivered(redis: Redis, task: Task[Any]) -> None:
    """Store a delivery of what Redis says of a task."""
    fields: Any = redis.hgetall(key_of(redis, task)).items()
    body = b"".join(b"%d:%s%d:%s" % (len(name), name, len(text), text) for name, text in fields)
    redis.hset(inside.key_of("q", "act", "body"), task.id, body)
    redis.hset(inside.key_of("q", "act", "meta"), task.id, f"1 {9:016x} 0 0 0 0 0 -")
    redis.zadd(inside.key_of("q", "act", "ready"), {f"{9:016x}:{task.id}": 0})


def proof_of(redis: Redis, task: Task[Any], honest: Mapping[str, str]) -> str:
    """Return the best that can be cut from what Redis holds: the victim's own halves, with another's."""
    stored, (_, *_, presented, at) = stored_task(redis, task), honest["proof"].split(" ")
    return " ".join((stored["EMAIL.digest"], stored["EMAIL.issued"], presented, at))


@pytest.mark.promise("S61")
@pytest.mark.parametrize("status", ["SUCCESS", "PENDING"])
@pytest.mark.parametrize(
    "more",
    [
        lambda redis, task, honest: {},
        lambda redis, task, honest: {"method": "SMART_OTP"},
        lambda redis, task, honest: {"proof": ""},
        lambda redis, task, honest: {"proof": proof_of(redis, task, honest)},
        lambda redis, task, honest: {"proof": " ".join(proof_of(redis, task, honest).split(" ")[:3])},
        lambda redis, task, honest: {
            name: text for name, text in honest.items() if name in ("proof", "ends", "seal", "fixed")
        },
    ],
    ids=["copied", "method", "no proof", "mixed", "as a device", "all of another"],
)
def test_forged_success_is_no_success_and_runs_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, status: str, more: Any
) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    mine, victim = add(taskflow), add(taskflow)
    taskflow.verify(mine.id, "EMAIL", box[0].otp)
    honest = stored_task(redis, mine)
    assert runs == [mine.id]

    forged(redis, victim, honest, **more(redis, victim, honest) | {"status": status})
    delivered(redis, victim)
    taskflow.run_due()

    if status == "SUCCESS":
        refused(TaskTampered, taskflow.get_task, victim.id)
    assert runs == [mine.id]


@pytest.mark.promise("S61")
def test_wrong_code_that_is_planted_as_the_right_one_ends_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """Its digest is seen when it is typed; but no process issued it."""
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    task, wrong = add(taskflow), other(box[0].otp)
    digest = inside.service().keyring.digest(task.id, "EMAIL", wrong)
    redis.hset(key_of(redis, task), "EMAIL.digest", digest)

    refused(TaskTampered, taskflow.verify, task.id, "EMAIL", wrong)
    taskflow.run_due()

    refused(TaskTampered, taskflow.get_task, task.id)
    assert not runs


@pytest.mark.promise("S61")
@pytest.mark.parametrize("method", ["EMAIL", "PAD"])
def test_code_that_was_typed_to_reject_confirms_nothing(
    taskflow: TaskFlow, box: Outbox, redis: Redis, method: str
) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    taskflow.register_strategy("PAD")(Pad())
    task = add(taskflow, allowed_methods=[method])
    taskflow.reject_task(task.id, method, box[0].otp if box else "123456")
    rejected = stored_task(redis, task)
    assert rejected["proof"]

    redis.hset(
        key_of(redis, task), mapping={"status": "SUCCESS", "method": method, "verified": rejected["rejected"]}
    )
    delivered(redis, task)
    taskflow.run_due()

    refused(TaskTampered, taskflow.get_task, task.id)
    assert not runs


@pytest.mark.promise("S62")
@pytest.mark.parametrize(("ttl", "hours"), [(86_400, 3), (3600, 4)], ids=["code", "task"])
def test_life_that_is_prolonged_in_redis_ends_all_the_same(
    taskflow: TaskFlow, box: Outbox, redis: Redis, ttl: int, hours: int
) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))
    task, late = add(taskflow, ttl=ttl), 9 * 10**12
    redis.hset(key_of(redis, task), mapping={"EMAIL.until": late, "expires": late})
    redis.persist(key_of(redis, task))

    travel(hours * 3600)
    if ttl < hours * 3600:
        # The code is new, the task has ended.
        taskflow.resend_otp(task.id, "EMAIL")
    refused(TaskTampered, taskflow.verify, task.id, "EMAIL", box[-1].otp)
    taskflow.run_due()

    assert not runs


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.mark.slow
@pytest.mark.promise("S48")
@pytest.mark.parametrize(
    ("away", "back"),
    [("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"), ("CLIENT PAUSE 60000 WRITE", "CLIENT UNPAUSE")],
    ids=["read-only", "paused"],
)
def test_attempts_survive_a_server_that_does_not_answer(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, own_server: str, away: str, back: str
) -> None:
    """503 with `Retry-After`, and then the count goes on where it stood."""
    app: Flask = make_app(redis_url=own_server, redis_timeout=1)
    app.register_blueprint(taskflow.blueprint)
    client = app.test_client()
    with app.app_context(), Redis.from_url(own_server) as redis:
        task = add(taskflow)
        wrong = {"method": "EMAIL", "otp": other(box[0].otp)}
        bodies = [wrong, {**wrong, "otp": str(box[0].otp)}]
        path = f"/tasks/{task.id}/verify"
        assert [client.post(path, json=wrong).status_code for _ in range(2)] == [400, 400]

        redis.execute_command(*away.split())
        answers = [client.post(path, json=body) for body in bodies]
        redis.execute_command(*back.split())

        for answer in answers:
            assert answer.status_code == 503
            assert answer.get_json(force=True)["code"] == "unavailable"
            assert int(answer.headers["Retry-After"]) >= 1
        assert stored_task(redis, task)["attempts"] == "2"
        assert taskflow.verify(task.id, "EMAIL", box[0].otp).status is Status.SUCCESS
        redis.flushall()
