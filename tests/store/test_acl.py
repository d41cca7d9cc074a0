"""The extension under the least ACL rule, which stands in docs/redis.md: it suffices, all of it is needed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from typing import Any

import pytest
from flask import Flask
from redis import Redis, RedisError
from redis.exceptions import NoPermissionError

from flask_taskflow import (
    BaseStrategy,
    Reject,
    Retry,
    Task,
    TaskFlow,
    callback_dead,
    callback_failed,
    callback_succeeded,
    task_verified,
)
from flask_taskflow._store.keys import Keys
from flask_taskflow._store.operations import Operations
from flask_taskflow._store.steps import Steps
from flask_taskflow.errors import SendFailed, TaskLocked, TaskNotFound, WrongCode
from flask_taskflow.testing import redis_server
from tests.support.docs import block
from tests.support.tasks import refused

RULE = block("redis.md", "acl").strip()
_, USER, *TOKENS = RULE.split()
(PASSWORD,) = (token[1:] for token in TOKENS if token.startswith(">"))
COMMANDS = sorted(token[1:] for token in TOKENS if token.startswith("+"))
PATTERNS = [token for token in TOKENS if token[0] in "~&"]
FOR_BRIDGE = block("redis.md", "acl of the bridge").strip()
FOR_OPERATORS = block("redis.md", "acl of an operator").split()
DEADLINE = 60.0

RECIPIENT = {"email": "ann@example.com", "phone_number": "+12025550110"}


class Refused(Exception):
    """The server refused something."""


class Post(BaseStrategy):
    """Keep the last code of a task; raise if it is down."""

    def __init__(self, codes: dict[str, str], down: bool = False) -> None:
        self.codes, self.down = codes, down

    def send(self, task: Task[Any], otp: str) -> None:
        if self.down:
            raise OSError
        self.codes[task.id] = otp


class Device(BaseStrategy):
    """Accept one code."""

    address = "email"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        return otp


class Own(Post):
    """Make codes of its own, which are put in the place of the first nonce."""

    def generate(self, task: Task[Any]) -> str:
        return "246810"


@dataclass
class Server:
    """A server that has the rule as its ACL file."""

    url: str
    admin: Redis

    def as_user(self, database: int = 0) -> str:
        return self.url.replace("unix://", f"unix://{USER}:{PASSWORD}@") + f"?db={database}"

    def allow(self, *tokens: str) -> None:
        """Give the user just these, on a server that is empty and knows no script."""
        self.admin.acl_setuser(USER, reset=True)
        self.admin.execute_command("ACL SETUSER", USER, *tokens)
        self.admin.flushall()
        self.admin.script_flush()
        self.admin.acl_log_reset()

    def refused(self) -> set[str]:
        """Return what was refused to the user, but for redis-py's introduction of itself."""
        entries: list[dict[str, Any]] = self.admin.acl_log()
        return {str(entry["object"]) for entry in entries} - {"client|setinfo", "client"}

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until something happened.

        :raises Refused: if the server refuses something meanwhile.
        """
        deadline = time.monotonic() + DEADLINE
        pause = threading.Event()
        while not done():
            if self.refused():
                raise Refused
            assert time.monotonic() < deadline
            pause.wait(0.01)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binary = os.environ.get("TASKFLOW_TEST_SERVER")
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    path.write_text(f"{RULE}\nuser default on nopass ~* &* +@all\n")
    with redis_server("--aclfile", str(path), binary=shutil.which(binary) if binary else None) as url:
        admin = Redis.from_url(url, decode_responses=True)
        yield Server(url, admin)
        admin.close()


@dataclass
class Fleet:
    """An app on the server, with the threads that a test starts."""

    app: Flask
    taskflow: TaskFlow
    codes: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    proceed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        with self.app.app_context():
            self.taskflow.start()

    def stop(self) -> None:
        with self.app.app_context():
            self.taskflow.stop(timeout=2)

    def verify(self, data: Any) -> None:
        with self.app.app_context():
            task = add(self, data)
            self.taskflow.verify(task.id, "EMAIL", self.codes[task.id])


@contextmanager
def running(url: str, **changes: Any) -> Iterator[Fleet]:
    app = Flask("app")
    app.config.update(
        TESTING=True,
        SECRET_KEY="a secret key of the test suite, long enough",
        TASKFLOW_REDIS_URL=url,
        TASKFLOW_RESEND_COOLDOWN=0,
        TASKFLOW_RECIPIENT_MAX_SENDS=100,
        TASKFLOW_OTP_MAX_ATTEMPTS=2,
        TASKFLOW_POLL=0.2,
        **changes,
    )
    fleet = Fleet(app, TaskFlow(app))
    fleet.taskflow.register_strategy("EMAIL")(Post(fleet.codes))
    fleet.taskflow.register_strategy("SMS")(Own(fleet.codes))
    fleet.taskflow.register_strategy("DEVICE")(Device())

    @fleet.taskflow.on_task_verified("q", name="work", backoff_time=0.05)
    def work(task: Task[Any]) -> None:
        match task.data:
            case "retry" if "failed" not in fleet.told:
                raise Retry
            case "reject":
                raise Reject
            case "block":
                fleet.told.append("blocked")
                fleet.proceed.wait(DEADLINE)

    def tell(word: str, *, whose: bool) -> Callable[..., None]:
        return lambda app, task, **_: fleet.told.append(f"{word} {task.data}" if whose else word)

    heard = {
        task_verified: tell("verified", whose=True),
        callback_succeeded: tell("succeeded", whose=True),
        callback_failed: tell("failed", whose=False),
        callback_dead: tell("dead", whose=False),
    }
    with app.app_context(), ExitStack() as stack:
        for signal, receiver in heard.items():
            stack.enter_context(signal.connected_to(receiver, app))
        try:
            yield fleet
        finally:
            fleet.proceed.set()
            fleet.stop()


def add(fleet: Fleet, data: Any = None, **changes: Any) -> Task[Any]:
    given = {"allowed_methods": ["EMAIL", "SMS"], "recipient": RECIPIENT, **changes}
    return fleet.taskflow.add_task("q", data, **given)


def use_the_service(server: Server, fleet: Fleet) -> None:
    """Take every step of a task's life, in this thread."""
    taskflow, codes = fleet.taskflow, fleet.codes
    task = add(fleet, send_via=["EMAIL", "SMS"])
    taskflow.resend_otp(task.id, "SMS")
    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.update_recipient(task.id, {"email": "bob@example.com"})
    refused(WrongCode, taskflow.verify, task.id, "SMS", "000000")
    assert taskflow.verify(task.id, "EMAIL", codes[task.id]) == taskflow.get_task(task.id)

    # The codes of a device: the second is used already.
    for _ in range(2):
        task = add(fleet, allowed_methods=["DEVICE"])
        with suppress(WrongCode):
            taskflow.verify(task.id, "DEVICE", "123456")

    cancelled, locked = add(fleet), add(fleet)
    # So much happened that its course has to be cut.
    server.admin.rpush(*Keys("taskflow", 0).course(cancelled.id), *["more"] * 100)
    taskflow.cancel_task(cancelled.id)
    with suppress(TaskNotFound):
        taskflow.get_course(cancelled.id)
    refused(WrongCode, taskflow.verify, locked.id, "SMS", "000000")
    refused(TaskLocked, taskflow.verify, locked.id, "SMS", "000000")
    refused(TaskNotFound, taskflow.verify, f"{locked.id[:8]}{'a' * 26}", "SMS", "000000")

    taskflow.register_strategy("EMAIL")(Post(codes, down=True))
    refused(SendFailed, add, fleet)
    taskflow.register_strategy("EMAIL")(Post(codes))


def use_the_threads(server: Server, fleet: Fleet, other: Fleet) -> None:
    """Run callbacks in two processes, as it were: one that is busy and one that looks after it."""
    # The listener pings when its link was silent for ten seconds.
    client = Redis.from_url(server.as_user())
    with client, client.pubsub() as pubsub:
        pubsub.subscribe("taskflow:0:bell")
        pubsub.ping()
        for _ in range(2):
            pubsub.get_message(timeout=DEADLINE)

    fleet.start()
    for data in ("retry", "reject", "block"):
        fleet.verify(data)
    server.wait(lambda: {"succeeded retry", "verified retry", "dead", "blocked"} <= set(fleet.told))
    other.start()
    other.verify("elsewhere")
    server.wait(lambda: "succeeded elsewhere" in fleet.told + other.told)
    server.wait(lambda: "pubsub|numsub" in used(server.admin))
    fleet.proceed.set()
    server.wait(lambda: "succeeded block" in fleet.told)
    for each in (fleet, other):
        each.stop()


def operate(server: Server) -> None:
    """Do all that an operator can."""
    with running(server.as_user(), TASKFLOW_EAGER=True) as fleet:
        fleet.verify("reject")
        task_id = next(iter(fleet.codes))
        client = Redis.from_url(server.as_user())
        operations = Operations(Steps(client), Keys("taskflow", 0))
        with client:
            assert operations.queues() == [operations.queue_of(task_id)] == ["q"]
            operations.pause("q")
            assert operations.stats("q").paused
            operations.resume("q")
            assert operations.pause_all() == operations.resume_all() == ["q"]
            assert operations.pending("q", 9) == []
            (dead,) = operations.dead("q", 9)
            assert operations.find("q", "work", task_id) == dead
            assert operations.replay("q", "work", task_id)
            assert operations.purge("q") == 1
            assert not operations.discard("q", "work", task_id)
            assert operations.forget("q", "work") == 0


def look(server: Server) -> None:
    """Open the pages of the dashboard; that of the doctor would ask for more, and say so."""
    with running(server.as_user(), TASKFLOW_EAGER=True) as fleet:
        fleet.verify("reject")
        dashboard = fleet.taskflow.create_dashboard(access=lambda request: "read")
        fleet.app.register_blueprint(dashboard)
        client = fleet.app.test_client()
        task = f"/tasks/{next(iter(fleet.codes))}"
        for path in ("/", "/queues/q", "/queues/q/callbacks/work", "/queues/q/methods/EMAIL", "/dead", task):
            assert client.get(path).status_code == 200


def used(admin: Redis) -> set[str]:
    """Return the commands that the server ran since its statistics were cleared."""
    return {key.removeprefix("cmdstat_") for key in admin.info("commandstats")}


def use_everything(server: Server) -> None:
    server.admin.config_resetstat()
    with running(server.as_user()) as fleet:
        use_the_service(server, fleet)
        if server.refused():
            raise Refused
        with running(server.as_user()) as other:
            use_the_threads(server, fleet, other)
    if server.refused():
        raise Refused


def test_rule_suffices_for_everything(guarded: Server, caplog: pytest.LogCaptureFixture) -> None:
    guarded.allow(*TOKENS)

    use_everything(guarded)

    assert guarded.refused() == set()
    assert not [record for record in caplog.records if "permission" in record.getMessage().lower()]


def test_rule_suffices_for_sends_in_the_background(guarded: Server) -> None:
    guarded.allow(*TOKENS)

    with running(
        guarded.as_user(), TASKFLOW_SEND="background", TASKFLOW_SEND_BACKOFF=0.01, TASKFLOW_SEND_FALLBACK=0.02
    ) as fleet:
        fleet.taskflow.register_strategy("EMAIL")(Post(fleet.codes, down=True))
        fleet.start()
        task = add(fleet)
        guarded.wait(lambda: task.id in fleet.codes)
        verified = fleet.taskflow.verify(task.id, "SMS", fleet.codes[task.id])

    assert verified.verification_method == "SMS"
    assert guarded.refused() == set()


@pytest.mark.parametrize("token", [*(f"+{command}" for command in COMMANDS), *PATTERNS])
def test_rule_without_one_token_does_not_suffice(guarded: Server, token: str) -> None:
    guarded.allow(*(each for each in TOKENS if each != token))

    with pytest.raises((Refused, RedisError, SendFailed)):
        use_everything(guarded)

    assert token in PATTERNS or guarded.refused() == {token[1:]}


def test_rule_of_an_operator_suffices(guarded: Server) -> None:
    guarded.allow(*TOKENS, *FOR_OPERATORS)

    operate(guarded)
    look(guarded)

    assert guarded.refused() == set()


@pytest.mark.parametrize("token", FOR_OPERATORS)
def test_rule_of_an_operator_without_one_command_does_not_suffice(guarded: Server, token: str) -> None:
    guarded.allow(*TOKENS, *(each for each in FOR_OPERATORS if each != token))

    with pytest.raises(RedisError):
        operate(guarded)

    assert guarded.refused() == {token[1:]}


def test_rule_names_every_command_of_the_scripts() -> None:
    folder = files("flask_taskflow") / "_store" / "lua"
    scripts = [path for part in folder.iterdir() for path in part.iterdir() if path.name != "travel.lua"]
    call = re.compile(r"redis\.p?call\('(\w+)'(?:, '(\w+)')?")

    called = {match.groups() for path in scripts for match in call.finditer(path.read_text("utf-8"))}

    named = {*COMMANDS, *(token[1:] for token in FOR_OPERATORS)}
    assert {"|".join(filter(None, words)).lower() for words in called} <= named


@pytest.mark.parametrize("more", [[FOR_BRIDGE], []])
def test_bridge_needs_its_channel(guarded: Server, more: list[str]) -> None:
    guarded.allow(*TOKENS, *more)

    with running(guarded.as_user(), TASKFLOW_BRIDGE_CHANNEL="task_verified") as fleet:
        fleet.start()
        fleet.verify("told")
        with suppress(Refused):
            guarded.wait(lambda: "verified told" in fleet.told)

    assert guarded.refused() == ({"task_verified"} if not more else set())


FORBIDDEN = (
    """
HGETALL secret, HSET taskflow2:queues a b, HDEL secret field, PUBLISH news x, SUBSCRIBE news, GET secret,
EVAL return_1 0, KEYS *, SCAN 0, DEL taskflow:queues, CONFIG GET *, MONITOR, FLUSHALL, ACL WHOAMI, CLIENT LIST
""".replace("\n", " ")
    .strip()
    .split(", ")
)


def test_rule_lets_nothing_but_the_prefix_be_touched(guarded: Server) -> None:
    guarded.allow(*TOKENS)
    guarded.admin.hset("secret", "field", "value")
    client = Redis.from_url(guarded.as_user())

    for command in FORBIDDEN:
        refused(NoPermissionError, client.execute_command, *command.split(" "))
    script = client.script_load("return redis.call('HGETALL', KEYS[1])")
    refused(NoPermissionError, client.evalsha, script, 1, "secret")

    client.close()
    assert guarded.admin.hgetall("secret") == {"field": "value"}


def test_rule_refuses_an_app_with_another_prefix(guarded: Server, caplog: pytest.LogCaptureFixture) -> None:
    guarded.allow(*TOKENS)
    caplog.set_level(logging.WARNING)

    with running(guarded.as_user(), TASKFLOW_KEY_PREFIX="shop") as fleet, pytest.raises(NoPermissionError):
        add(fleet)

    (refused,) = guarded.refused()
    assert refused.startswith("shop:{shop.")
    assert PASSWORD not in caplog.text


def test_rule_for_another_database_needs_select(guarded: Server) -> None:
    guarded.allow(*TOKENS)
    with running(guarded.as_user(database=1)) as fleet, pytest.raises(NoPermissionError):
        add(fleet)

    guarded.allow(*TOKENS, "+select")
    with running(guarded.as_user(database=1)) as fleet:
        task = add(fleet)

        assert fleet.taskflow.get_task(task.id) == task
    assert guarded.refused() == set()
