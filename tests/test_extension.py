"""The extension object: its apps, its decorators, its context, and what it refuses to store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from conftest import SECRET_KEY, MakeApp
from flask import Flask
from redis import Redis

from flask_taskflow import (
    BaseStrategy,
    ConfigError,
    InvalidTask,
    Method,
    OutboxStrategy,
    Recipient,
    Task,
    TaskFlow,
    TaskNotFound,
    TaskTampered,
    WrongCode,
)
from flask_taskflow.testing import Outbox, outbox

EMAIL = {"email": "ann@example.com"}


def add(taskflow: TaskFlow, **changes: Any) -> Task[Any]:
    given: dict[str, Any] = {"queue": "q", "allowed_methods": ["EMAIL"], "recipient": EMAIL, **changes}
    return taskflow.add_task(given.pop("queue"), given.pop("data", None), **given)


def new_taskflow() -> TaskFlow:
    extension = TaskFlow()
    extension.register_strategy(Method.EMAIL)(OutboxStrategy())
    return extension


def test_init_app_twice_says_what_to_do(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app()

    for extension in (taskflow, TaskFlow()):
        with pytest.raises(RuntimeError, match=r"has a TaskFlow already: call init_app\(\) once"):
            extension.init_app(app)

    assert app.extensions["taskflow"] is taskflow


def test_app_may_be_given_at_once(redis: Redis, server: str) -> None:
    app = Flask("app")
    app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=server)

    taskflow = TaskFlow(app)

    assert app.extensions["taskflow"] is taskflow
    with app.app_context(), pytest.raises(TaskNotFound):
        taskflow.get_task("a" * 34)


def test_init_app_changes_no_setting_and_opens_no_connection(redis: Redis, make_app: MakeApp) -> None:
    before = redis.info("stats")["total_connections_received"]

    make_app()

    assert redis.info("stats")["total_connections_received"] == before


@pytest.mark.parametrize(
    "call",
    [
        add,
        lambda taskflow: taskflow.verify("a" * 34, "EMAIL", "123456"),
        lambda taskflow: taskflow.resend_otp("a" * 34, "EMAIL"),
        lambda taskflow: taskflow.update_recipient("a" * 34, EMAIL),
        lambda taskflow: taskflow.get_task("a" * 34),
        lambda taskflow: taskflow.cancel_task("a" * 34),
        lambda taskflow: taskflow.start(),
        lambda taskflow: taskflow.stop(),
        lambda taskflow: taskflow.run_due(),
    ],
    ids=["add", "verify", "resend", "update", "get", "cancel", "start", "stop", "run_due"],
)
def test_call_at_a_wrong_place_says_what_to_do(
    make_app: MakeApp, taskflow: TaskFlow, call: Callable[[TaskFlow], object]
) -> None:
    app = make_app()

    with pytest.raises(RuntimeError, match=r"inside an app context: wrap the call in `with app\.app_context"):
        call(taskflow)
    with (
        app.app_context(),
        pytest.raises(RuntimeError, match=r"does not know the app: call taskflow"),
    ):
        call(TaskFlow())


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
        with pytest.raises(TaskNotFound):
            two.get_task(task.id)
        with pytest.raises(TaskNotFound):
            two.verify(task.id, "EMAIL", codes[0].otp)
        assert two.run_due() == 0
    with first.app_context():
        one.verify(task.id, "EMAIL", codes[0].otp)

    assert ran == ["one"]


def test_one_extension_serves_several_apps_apart(
    make_app: MakeApp, taskflow: TaskFlow, server: str, box: Outbox
) -> None:
    separator = "&" if "?" in server else "?"
    first = make_app(task_ttl=100)
    second = make_app(redis_url=f"{server}{separator}db=1", task_ttl=200)

    with first.app_context():
        task = add(taskflow)
    with second.app_context():
        other = add(taskflow)
        with pytest.raises(TaskNotFound):
            taskflow.get_task(task.id)
    with first.app_context():
        assert taskflow.get_task(task.id) == task
        with pytest.raises(TaskNotFound):
            taskflow.get_task(other.id)

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
        with pytest.raises(TaskTampered):
            taskflow.get_task(task.id)
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", box[0].otp)


def test_decorators_work_before_and_after_init_app(make_app: MakeApp) -> None:
    taskflow = TaskFlow()
    ran: list[str] = []

    @taskflow.register_strategy(Method.EMAIL)
    class Email(OutboxStrategy):
        pass

    @taskflow.on_task_verified("q", name="before")
    def before(task: Task[Any]) -> None:
        ran.append("before")

    app = make_app(taskflow, eager=True)

    @taskflow.register_strategy("PIGEON")
    class Pigeon(OutboxStrategy):
        pass

    @taskflow.on_task_verified("q", name="after")
    def after(task: Task[Any]) -> None:
        ran.append("after")

    with outbox(taskflow) as messages, app.app_context():
        task = add(taskflow, allowed_methods=["EMAIL", "PIGEON"], send_via=["EMAIL", "PIGEON"])
        taskflow.verify(task.id, "PIGEON", messages[1].otp)

    assert sorted(ran) == ["after", "before"]
    assert isinstance(Email, type)
    assert callable(before)


def test_callback_names_are_the_functions_own(taskflow: TaskFlow) -> None:
    class Bank:
        @staticmethod
        def pay(task: Task[Any]) -> None: ...

    taskflow.on_task_verified("q")(Bank.pay)

    with pytest.raises(ConfigError, match=r"q has a callback test_callback_names\w+\.Bank\.pay already"):
        taskflow.on_task_verified("q")(Bank.pay)
    taskflow.on_task_verified("other")(Bank.pay)
    taskflow.on_task_verified("q", name="again")(Bank.pay)


def test_callback_without_a_usable_name_is_refused(taskflow: TaskFlow) -> None:
    with pytest.raises(ConfigError, match=r"a callback's name \(set name=\.\.\.\) must match .*<lambda>"):
        taskflow.on_task_verified("q")(lambda task: None)
    taskflow.on_task_verified("q", name="pay")(lambda task: None)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{x}", "x" * 65, "a\n", "é", 7, b"x"])
def test_callback_with_a_malformed_name_is_refused(taskflow: TaskFlow, name: Any) -> None:
    with pytest.raises(ConfigError, match="a callback's name"):
        taskflow.on_task_verified("q", name=name)(print)
    with pytest.raises(ConfigError, match="a queue must match"):
        taskflow.on_task_verified(name, name="pay")(print)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"queue": ""}, "queue must match"),
        ({"queue": "a b"}, "queue must match"),
        ({"queue": "x" * 65}, "queue must match"),
        ({"queue": None}, "queue must match"),
        ({"data": {1: 2}}, "data must be a JSON value: the key 1 is not a string"),
        ({"data": float("nan")}, "data must be a JSON value"),
        ({"data": {1, 2}}, "data must be a JSON value"),
        ({"data": "x" * 65535}, "data takes 65537 bytes, more than TASKFLOW_MAX_DATA_SIZE = 65536"),
        ({"allowed_methods": []}, "allowed_methods must name at least one method"),
        ({"allowed_methods": "EMAIL"}, "allowed_methods must be a list of methods"),
        ({"allowed_methods": None}, "allowed_methods must be a list of methods"),
        ({"allowed_methods": ["email"]}, "a method must match"),
        ({"allowed_methods": ["EMAIL", "PIGEON"]}, r"register_strategy\('PIGEON'\)"),
        ({"allowed_methods": [Method.SMART_OTP]}, r"register_strategy\('SMART_OTP'\)"),
        ({"allowed_methods": ["SMS"]}, r"no address for any allowed method: give \['phone_number'\]"),
        ({"recipient": {}}, r"no address for any allowed method: give \['email'\]"),
        ({"recipient": None}, "recipient must be a mapping or a Recipient"),
        ({"recipient": {"mail": "ann@example.com"}}, "recipient has no field 'mail'"),
        ({"recipient": {"email": "ann"}}, "email is not usable as an address"),
        ({"recipient": {"email": "a@b.c\r\nX: y"}}, "email is not usable as an address"),
        ({"recipient": {**EMAIL, "phone_number": "none"}}, "phone_number is not usable as an address"),
        ({"recipient": Recipient(email="ann@")}, "email is not usable as an address"),
        ({"summary": ""}, "summary must be one printable line"),
        ({"summary": "two\nlines"}, "summary must be one printable line"),
        ({"summary": "x" * 201}, "summary must be one printable line of at most 200"),
        ({"summary": "\u202eevil"}, "summary must be one printable line"),
        ({"summary": 7}, "summary must be one printable line"),
        ({"priority": 2**31 + 1}, "priority must be an integer"),
        ({"priority": 1.0}, "priority must be an integer"),
        ({"priority": True}, "priority must be an integer"),
        ({"priority": None}, "priority must be an integer"),
        ({"ttl": 0}, "ttl must be 0.001 to 2592000 seconds"),
        ({"ttl": -1}, "ttl must be"),
        ({"ttl": float("nan")}, "ttl must be"),
        ({"ttl": 10**400}, "ttl must be"),
        ({"ttl": timedelta(days=31)}, "ttl must be"),
        ({"ttl": "600"}, "ttl must be"),
        ({"timeout": 0}, "timeout must be 0.001 to 31536000 seconds"),
        ({"timeout": timedelta(seconds=-1)}, "timeout must be"),
        ({"timeout": True}, "timeout must be"),
        ({"send_via": []}, "send_via must name at least one method"),
        ({"send_via": "EMAIL"}, "send_via must be a list of methods"),
        ({"send_via": ["SMS"]}, "send_via: SMS is not one of allowed_methods"),
        (
            {"send_via": ["SMS"], "allowed_methods": ["EMAIL", "SMS"]},
            "send_via: the recipient has no phone_number for SMS",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_unusable_argument_leaves_nothing(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidTask, match=reason):
        add(taskflow, **changes)

    assert redis.dbsize() == 0
    assert box == []


def test_arguments_at_their_limits_are_taken(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    task = add(
        taskflow,
        queue="x" * 64,
        data="x" * 65534,
        summary="s" * 200,
        priority=-(2**31),
        ttl=timedelta(days=30),
        timeout=timedelta(days=365),
        recipient=Recipient(email="ann@example.com"),
    )

    assert taskflow.get_task(task.id) == task
    assert task.expires_at - task.created_at == timedelta(days=30)
    assert task.timeout == 365 * 86400


@pytest.mark.parametrize(
    ("send_via", "methods"),
    [
        (None, ["EMAIL"]),
        (["SMS"], ["SMS"]),
        (["SMS", "EMAIL", "SMS"], ["SMS", "EMAIL"]),
        ((method for method in ["EMAIL"]), ["EMAIL"]),
    ],
    ids=["default", "one", "all", "generator"],
)
def test_send_via_chooses(make_app: MakeApp, send_via: Any, methods: list[str]) -> None:
    taskflow = TaskFlow()
    sent: list[str] = []

    for method in ("EMAIL", "SMS"):

        class Note(BaseStrategy):
            kept = method

            def send(self, task: Task[Any], otp: str) -> None:
                sent.append(self.kept)

        taskflow.register_strategy(method)(Note)

    with make_app(taskflow).app_context():
        add(
            taskflow,
            allowed_methods=["EMAIL", "SMS"],
            recipient={**EMAIL, "phone_number": "+12025550110"},
            send_via=send_via,
        )

    assert sent == methods


@pytest.mark.parametrize(
    "task_id", ["", "a", "A" * 34, "a" * 35, "../x", "\ud800", "a" * 10_000, None, 7, b"a" * 34]
)
def test_malformed_id_is_an_unknown_task(app: Flask, taskflow: TaskFlow, redis: Redis, task_id: Any) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: taskflow.get_task(task_id),
        lambda: taskflow.cancel_task(task_id),
        lambda: taskflow.verify(task_id, "EMAIL", "123456"),
        lambda: taskflow.resend_otp(task_id, "EMAIL"),
        lambda: taskflow.update_recipient(task_id, EMAIL),
    )
    for call in calls:
        with pytest.raises(TaskNotFound, match="there is no such task"):
            call()

    assert redis.dbsize() == 0


def test_public_objects_do_not_show_the_password_of_the_url(redis: Redis, make_app: MakeApp) -> None:
    taskflow = new_taskflow()
    app = make_app(taskflow, redis_url="redis://:hunter2@127.0.0.1:1/0")

    shown = [repr(item) for item in (taskflow, taskflow.blueprint, *taskflow._states.values())]

    assert app.config["TASKFLOW_REDIS_URL"].count("hunter2") == 1
    assert "hunter2" not in "".join(shown)
    assert SECRET_KEY not in "".join(shown)
