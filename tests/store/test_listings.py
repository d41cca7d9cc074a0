"""Tasks that have an owner or a key: found, ended and added once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import InvalidTask, KeyReused, Status, Task, TaskFlow
from flask_taskflow.testing import Outbox, travel
from tests.conftest import Hear, MakeApp, watch
from tests.support.stage import SECRET_KEY
from tests.support.tasks import add, at_once, keys_like, refused, with_settings

pytestmark = pytest.mark.usefixtures("app")
OWNER = "user:17"


def test_owner_and_next_url_are_sealed_and_not_shown(taskflow: TaskFlow, redis: Redis) -> None:
    task = add(taskflow, owner=OWNER, next_url="/done?id=7")

    found = taskflow.get_task(task.id)
    assert (found.owner, found.next_url) == (OWNER, "/done?id=7")
    assert OWNER not in repr(task)
    assert "/done" not in repr(task)
    assert not any(OWNER in key for key in keys_like(redis, "*"))


def test_tasks_of_an_owner_are_found_in_all_queues_whatever_became_of_them(
    taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    first, second = (add(taskflow, queue=queue, owner=OWNER) for queue in ("a", "b"))
    add(taskflow, owner="user:1")
    add(taskflow)
    taskflow.cancel_task(first.id)

    assert {(task.id, task.status) for task in taskflow.tasks_of(OWNER)} == {
        (first.id, "CANCELLED"),
        (second.id, "PENDING"),
    }
    assert [task.id for task in taskflow.tasks_of(OWNER, queue="b")] == [second.id]
    assert taskflow.tasks_of("user:2") == []

    redis.hset(keys_like(redis, f"*task:{second.id}")[0], "fixed", "{}")
    assert [task.id for task in taskflow.tasks_of(OWNER)] == [first.id]
    travel(86400 * 2)
    assert taskflow.tasks_of(OWNER) == []
    assert keys_like(redis, "*owner*") == []


def test_pending_tasks_of_an_owner_are_cancelled(taskflow: TaskFlow, box: Outbox) -> None:
    tasks = [add(taskflow, owner=OWNER, recipient={"email": f"{n}@example.com"}) for n in range(3)]
    other = add(taskflow, owner="user:1")
    taskflow.verify(tasks[1].id, "EMAIL", box[1].otp)

    ended = taskflow.cancel_tasks(OWNER)

    assert [(task.id, task.status) for task in ended] == [
        (tasks[2].id, "CANCELLED"),
        (tasks[0].id, "CANCELLED"),
    ]
    assert taskflow.cancel_tasks(OWNER) == []
    assert taskflow.get_task(other.id).status is Status.PENDING


def test_task_replaces_the_pending_ones_of_its_owner_and_queue(taskflow: TaskFlow, box: Outbox) -> None:
    old = [add(taskflow, owner=OWNER, recipient={"email": f"{n}@example.com"}) for n in range(3)]
    taskflow.verify(old[0].id, "EMAIL", box[0].otp)
    kept = [add(taskflow, **changes) for changes in ({"owner": OWNER, "queue": "b"}, {"owner": "user:1"})]

    new = add(taskflow, owner=OWNER, replace=True, recipient={"email": "new@example.com"})

    assert [taskflow.get_task(task.id).status for task in old] == ["SUCCESS", "CANCELLED", "CANCELLED"]
    assert {taskflow.get_task(task.id).status for task in (*kept, new)} == {"PENDING"}


def test_of_tasks_that_replace_each_other_at_once_one_is_left(
    taskflow: TaskFlow, app: Flask, box: Outbox
) -> None:
    calls = [
        partial(add, taskflow, owner=OWNER, replace=True, recipient={"email": f"{n}@example.com"})
        for n in range(20)
    ]

    at_once(app, calls)

    assert [task.status for task in taskflow.tasks_of(OWNER)].count(Status.PENDING) == 1
    assert len(taskflow.tasks_of(OWNER)) == 20


def test_one_key_is_one_task_and_one_message(taskflow: TaskFlow, app: Flask, box: Outbox, hear: Hear) -> None:
    found = at_once(app, [partial(add, taskflow, owner=OWNER, key="invoice-991") for _ in range(200)])

    assert {task.id for task in found} == {taskflow.tasks_of(OWNER)[0].id}
    assert len(box) == 1
    assert (
        len({add(taskflow, **names).id for names in ({"key": "invoice-991"}, {"owner": OWNER, "key": "k"})})
        == 2
    )
    taskflow.verify(found[0].id, "EMAIL", box[0].otp)
    assert add(taskflow, owner=OWNER, key="invoice-991").status is Status.SUCCESS


@pytest.mark.parametrize(
    "changes",
    [
        {"data": 2},
        {"summary": "other"},
        {"ttl": 61},
        {"recipient": {"email": "other@example.com"}},
        {"send_via": ["SMS"]},
        {"next_url": "/"},
        {"holder": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_key_with_other_arguments_is_refused(
    taskflow: TaskFlow, box: Outbox, changes: dict[str, Any]
) -> None:
    task = add(taskflow, key="k", ttl=60)
    taskflow.update_recipient(task.id, {"email": "new@example.com"})
    assert add(taskflow, key="k", ttl=60).id == task.id

    refused(KeyReused, partial(add, taskflow, **{"key": "k", "ttl": 60, **changes}))

    assert len(box) == 2


def test_key_finds_its_task_while_secret_keys_are_exchanged(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    new = "another secret key of the test suite, newer"
    found: list[Task[Any]] = []
    for settings in (
        {},
        {"SECRET_KEY_FALLBACKS": [new]},
        {"SECRET_KEY": new, "SECRET_KEY_FALLBACKS": [SECRET_KEY]},
    ):
        with make_app(**settings).app_context():
            found += [add(taskflow, key="k", owner=OWNER), *taskflow.tasks_of(OWNER)]

    assert {task.id for task in found} == {found[0].id}
    assert len(found) == 6
    assert len(box) == 1


def test_key_that_another_process_put_elsewhere_names_no_other_task(
    taskflow: TaskFlow, redis: Redis, box: Outbox
) -> None:
    first = add(taskflow, key="k")
    (named,) = keys_like(redis, "*:key:*")
    second = add(taskflow, key="l")
    (other,) = set(keys_like(redis, "*:key:*")) - {named}

    redis.set(other, first.id)
    refused(KeyReused, partial(add, taskflow, key="l"))
    redis.set(other, b"\xff")

    assert add(taskflow, key="l").id not in (first.id, second.id)
    assert add(taskflow, key="k").id == first.id


def test_holder_of_a_task_with_a_key_is_told_again(taskflow: TaskFlow, box: Outbox) -> None:
    first, second = (add(taskflow, key="k", holder=True) for _ in range(2))

    assert first.holder is not None
    assert second.holder == first.holder
    assert taskflow.verify(first.id, "EMAIL", box[0].otp, holder=second.holder).status is Status.SUCCESS


def test_task_without_an_owner_takes_one_step_as_before(
    taskflow: TaskFlow, redis: Redis, box: Outbox
) -> None:
    add(taskflow)
    plain: dict[str, Any] = {}
    owned: dict[str, Any] = {"owner": OWNER, "key": "k", "replace": True}
    trips = [len(watch(redis, partial(add, taskflow, **more))[0]) for more in (plain, owned)]

    assert trips == [1, 1]


@with_settings(next_hosts=["www.example.com", "localhost:5000"])
@pytest.mark.parametrize(
    "url",
    [
        "/",
        "/a/b?next=//x#//y",
        "https://www.example.com/a",
        "http://LOCALHOST:5000/",
        "https://www.example.com",
    ],
)
def test_own_paths_and_listed_hosts_may_come_next(taskflow: TaskFlow, box: Outbox, url: str) -> None:
    assert add(taskflow, next_url=url).next_url == url


@with_settings(next_hosts=["www.example.com"])
@pytest.mark.parametrize(
    "url",
    [
        "//evil.com", "/\\evil.com", "\\\\evil.com", "/\t/evil.com", "/a\n", " /", "", "a", "https:evil.com",
        "https:///evil.com", "https://evil.com", "https://www.example.com@evil.com", "javascript:alert(1)",
        "https://evil.com/www.example.com", "https://www.example.com.evil.com", "ftp://www.example.com/",
        "///evil.com", "https://www.example.com:444/", "/.//evil.com", "https://[", "/ü", "/" * 2001, 7, b"/",
        "//www.example.com/",
    ],
)  # fmt: skip
def test_open_redirect_is_refused(taskflow: TaskFlow, redis: Redis, box: Outbox, url: object) -> None:
    error = refused(InvalidTask, partial(add, taskflow, next_url=url))

    assert "TASKFLOW_NEXT_HOSTS" in str(error)
    assert redis.dbsize() == 0


@pytest.mark.parametrize("value", ["", "x" * 201, "two\nlines", 7, b"x"])
def test_owner_and_key_are_texts(taskflow: TaskFlow, redis: Redis, value: Any) -> None:
    for call in (
        partial(add, taskflow, owner=value),
        partial(add, taskflow, key=value),
        partial(taskflow.tasks_of, value),
        partial(taskflow.cancel_tasks, value),
    ):
        assert "one printable line of 1 to 200" in str(refused(InvalidTask, call))
    assert redis.dbsize() == 0


def test_replace_needs_an_owner(taskflow: TaskFlow) -> None:
    assert "give owner" in str(refused(InvalidTask, partial(add, taskflow, replace=True)))
    assert "True or False" in str(refused(InvalidTask, partial(add, taskflow, owner=OWNER, replace="yes")))
