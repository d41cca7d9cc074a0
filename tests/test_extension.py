"""The extension object: its apps, its decorators, its context."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from flask_taskflow import ConfigError, OutboxStrategy, Task, TaskFlow
from flask_taskflow.errors import InvalidTask, KeyMissing, TaskNotFound
from flask_taskflow.testing import Outbox, outbox
from tests.conftest import SECRET_KEY, MakeApp
from tests.support.tasks import BOTH, EMAIL, add, refused

UNKNOWN = "a" * 34


def new_taskflow() -> TaskFlow:
    extension = TaskFlow()
    for method in BOTH:
        extension.register_strategy(method)(OutboxStrategy())
    return extension


def test_init_app_twice_says_what_to_do(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()

    for extension in (taskflow, TaskFlow()):
        with pytest.raises(RuntimeError, match=r"has a TaskFlow already: call init_app\(\) once"):
            extension.init_app(app)

    assert app.extensions["taskflow"] is taskflow


@pytest.mark.usefixtures("redis")
def test_app_may_be_given_at_once(server: str) -> None:
    app = Flask("app")
    app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=server)

    taskflow = TaskFlow(app)

    assert app.extensions["taskflow"] is taskflow
    with app.app_context(), pytest.raises(TaskNotFound):
        taskflow.get_task(UNKNOWN)


def test_init_app_opens_no_connection(redis: Redis, make_app: MakeApp) -> None:
    before = redis.info("stats")["total_connections_received"]

    make_app()

    assert redis.info("stats")["total_connections_received"] == before


CALLS: dict[str, Callable[[TaskFlow, Any], object]] = {
    "verify": lambda taskflow, task_id: taskflow.verify(task_id, "EMAIL", "123456"),
    "resend": lambda taskflow, task_id: taskflow.resend_otp(task_id, "EMAIL"),
    "update": lambda taskflow, task_id: taskflow.update_recipient(task_id, {"email": EMAIL}),
    "get": lambda taskflow, task_id: taskflow.get_task(task_id),
    "cancel": lambda taskflow, task_id: taskflow.cancel_task(task_id),
}
OTHERS: dict[str, Callable[[TaskFlow, Any], object]] = {
    "add": lambda taskflow, _: add(taskflow),
    "start": lambda taskflow, _: taskflow.start(),
    "stop": lambda taskflow, _: taskflow.stop(),
    "run_due": lambda taskflow, _: taskflow.run_due(),
}


@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
def test_call_at_a_wrong_place_says_what_to_do(make_app: MakeApp, taskflow: TaskFlow, name: str) -> None:
    app, call = make_app(), {**CALLS, **OTHERS}[name]

    with pytest.raises(RuntimeError, match=r"inside an app context: wrap the call in `with app\.app_context"):
        call(taskflow, UNKNOWN)
    with app.app_context(), pytest.raises(RuntimeError, match=r"does not know the app: call taskflow"):
        call(TaskFlow(), UNKNOWN)


def test_two_extensions_on_two_apps_do_not_see_each_other(make_app: MakeApp) -> None:
    one, two = new_taskflow(), new_taskflow()
    ran: list[str] = []
    one.on_task_verified("q", name="work")(lambda task: ran.append("one"))
    two.on_task_verified("q", name="work")(lambda task: ran.append("two"))
    first = make_app(one, key_prefix="first", eager=True)
    second = make_app(two, key_prefix="second", eager=True)

    with outbox(one) as codes, first.app_context():
        task = add(one)
    with second.app_context():
        refused(TaskNotFound, two.get_task, task.id)
        refused(TaskNotFound, two.verify, task.id, "EMAIL", codes[0].otp)
        assert two.run_due() == 0
    with first.app_context():
        one.verify(task.id, "EMAIL", codes[0].otp)

    assert ran == ["one"]


@pytest.mark.usefixtures("box")
def test_one_extension_serves_several_apps_apart(make_app: MakeApp, taskflow: TaskFlow, server: str) -> None:
    other_database = f"{server}{'&' if '?' in server else '?'}db=1"
    first, second = make_app(task_ttl=100), make_app(redis_url=other_database, task_ttl=200)

    with first.app_context():
        task = add(taskflow)
    with second.app_context():
        other = add(taskflow)
        refused(TaskNotFound, taskflow.get_task, task.id)
    with first.app_context():
        assert taskflow.get_task(task.id) == task
        refused(TaskNotFound, taskflow.get_task, other.id)

    assert task.expires_at - task.created_at == timedelta(seconds=100)
    assert other.expires_at - other.created_at == timedelta(seconds=200)


def test_apps_of_one_extension_with_other_secrets_do_not_trust_each_other(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    first = make_app(key_prefix="same")
    second = make_app(key_prefix="same", SECRET_KEY="another secret key, long enough too")

    with first.app_context():
        task = add(taskflow)
    with second.app_context():
        refused(KeyMissing, taskflow.get_task, task.id)
        refused(KeyMissing, taskflow.verify, task.id, "EMAIL", box[0].otp)


def test_decorators_work_before_and_after_init_app_and_give_back_what_they_took(make_app: MakeApp) -> None:
    taskflow, ran = TaskFlow(), list[str]()

    def register(method: str, name: str) -> None:
        def work(task: Task[Any]) -> None:
            ran.append(name)

        assert taskflow.register_strategy(method)(OutboxStrategy) is OutboxStrategy
        assert taskflow.on_task_verified("q", name=name)(work) is work

    register("EMAIL", "before")
    app = make_app(taskflow, eager=True)
    register("PIGEON", "after")
    with outbox(taskflow) as messages, app.app_context():
        task = add(taskflow, allowed_methods=["EMAIL", "PIGEON"], send_via=["EMAIL", "PIGEON"])
        taskflow.verify(task.id, "PIGEON", messages[1].otp)

    assert sorted(ran) == ["after", "before"]


def pay(task: Task[Any]) -> None: ...


def refund(task: Task[Any]) -> None: ...


def test_callback_is_named_as_its_queue_whatever_its_function_is_called(taskflow: TaskFlow) -> None:
    taskflow.on_task_verified("transfers")(lambda task: None)
    taskflow.on_task_verified("refunds")(pay)

    names = {queue: list(callbacks) for queue, callbacks in taskflow._callbacks.items()}

    assert names == {"transfers": ["transfers"], "refunds": ["refunds"]}


@pytest.mark.parametrize("options", [({}, {}), ({}, {"name": "b"}), ({"name": "a"}, {})])
def test_two_callbacks_of_a_queue_need_a_name_each(taskflow: TaskFlow, options: Any) -> None:
    taskflow.on_task_verified("q", **options[0])(pay)

    with pytest.raises(ConfigError, match="q has more than one callback: set name="):
        taskflow.on_task_verified("q", **options[1])(refund)


@pytest.mark.parametrize("options", [{"name": "a"}, {"name": "c", "aliases": ["a"]}, {"name": "old"}])
def test_name_that_another_callback_of_the_queue_has_is_refused(taskflow: TaskFlow, options: Any) -> None:
    taskflow.on_task_verified("q", name="a", aliases=["old"])(pay)

    with pytest.raises(ConfigError, match=r"has a callback (a|old) already: set another name"):
        taskflow.on_task_verified("q", **options)(refund)


def test_same_function_takes_its_own_place(taskflow: TaskFlow) -> None:
    def create(answer: str) -> None:
        @taskflow.on_task_verified("q")
        def one(task: Task[Any]) -> str:
            return answer

        @taskflow.on_task_verified("other", name="two")
        def two(task: Task[Any]) -> str:
            return answer

    create("first")
    create("second")

    functions = [taskflow._callbacks["q"]["q"].function, taskflow._callbacks["other"]["two"].function]
    assert [function(None) for function in functions] == ["second", "second"]


@pytest.mark.parametrize("timeout", ["5", -1, float("nan")])
def test_stop_within_what_is_no_time_is_refused(taskflow: TaskFlow, make_app: MakeApp, timeout: Any) -> None:
    with make_app().app_context(), pytest.raises(InvalidTask, match="timeout must be 0 to"):
        taskflow.stop(timeout)


@pytest.mark.parametrize("aliases", ["pay", ["a b"], [7], None])
def test_malformed_aliases_are_refused(taskflow: TaskFlow, aliases: Any) -> None:
    with pytest.raises(ConfigError, match=r"aliases must be a list|name or alias must match"):
        taskflow.on_task_verified("q", aliases=aliases)(pay)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{x}", "x" * 65, "a\n", "é", 7, b"x"])
def test_callback_with_a_malformed_name_is_refused(taskflow: TaskFlow, name: Any) -> None:
    with pytest.raises(ConfigError, match="a callback's name or alias"):
        taskflow.on_task_verified("q", name=name)(print)
    with pytest.raises(ConfigError, match="a queue must match"):
        taskflow.on_task_verified(name, name="pay")(print)


@pytest.mark.parametrize("task_id", ["a", "a" * 35, "../x", "\ud800", "a" * 10_000, None, 7, b"a" * 34])
@pytest.mark.usefixtures("app")
def test_malformed_id_is_an_unknown_task(taskflow: TaskFlow, redis: Redis, task_id: Any) -> None:
    for call in CALLS.values():
        with pytest.raises(TaskNotFound, match="there is no such task"):
            call(taskflow, task_id)

    assert redis.dbsize() == 0


def test_public_objects_do_not_show_the_password_of_the_url(make_app: MakeApp) -> None:
    taskflow = new_taskflow()
    app = make_app(taskflow, redis_url="redis://:hunter2@127.0.0.1:1/0")

    shown = "".join(map(repr, (taskflow, taskflow.blueprint, *app.extensions.values())))

    assert app.config["TASKFLOW_REDIS_URL"].count("hunter2") == 1
    assert "hunter2" not in shown
    assert SECRET_KEY not in shown
