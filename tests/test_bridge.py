"""The bridge: what is published for the original, what is made of its messages, and the original itself."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_taskflow import Recipient, Status, task_verified
from tests.support.docs import block
from tests.support.processes import Process
from tests.support.stage import Stage

CHANNEL = "task_verified"
#: What the strategy of the original's process makes.
CODE = "123456"
NEST = Path(__file__).parent / "support" / "nest"
UUID = "3f0c2a9e-8d0b-4c57-9a53-0a4c1f8f2c11"
#: As the original publishes it: Redis made a text of the last number.
THEIRS: dict[str, Any] = {
    "id": UUID,
    "queue": "q",
    "data": {"order": 7},
    "recipient": {"email": "ann@example.com", "phoneNumber": "+12025550110", "deviceId": "d-1"},
    "status": "PENDING",
    "priority": 5,
    "timeout": 30000,
    "timestamp": 1700000000123,
    "ttl": "60000",
}


def told(stage: Stage, **changes: Any) -> None:
    stage.redis.publish(CHANNEL, json.dumps({**THEIRS, **changes}))


def test_verification_is_published_as_the_original_does(stage: Stage) -> None:
    stage.app(eager=True, bridge_channel=CHANNEL)
    with stage.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(CHANNEL)
        task = stage.verified(data={"order": "ä"}, priority=5, ttl=60, timeout=30)
        while (message := pubsub.get_message(timeout=10)) is None:
            continue

    assert json.loads(message["data"]) == {
        "id": task.id,
        "queue": "q",
        "data": {"order": "ä"},
        "recipient": {"email": task.recipient.email},
        "status": "PENDING",
        "priority": 5,
        "timeout": 30000,
        "timestamp": task.created_at.timestamp() * 1000,
        "ttl": 60000,
    }


@pytest.mark.promise("S80")
def test_message_of_the_original_fires_the_signal_and_runs_nothing(stage: Stage) -> None:
    stage.start(bridge_channel=CHANNEL)
    ear, work = stage.hear(task_verified), stage.work()

    told(stage)

    heard = ear.next()
    task = heard["task"]
    assert (heard["bridged"], heard["context"], heard["thread"]) == (True, "app", "taskflow-signals")
    assert (task.id, task.queue, task.data, task.status) == (UUID, "q", {"order": 7}, Status.SUCCESS)
    assert task.recipient == Recipient("ann@example.com", "+12025550110", "d-1")
    assert (task.priority, task.timeout, task.allowed_methods) == (5, 30, ())
    assert task.created_at == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert task.expires_at - task.created_at == timedelta(minutes=1)
    ours = stage.verified()
    assert work.begun.acquire(timeout=60)
    assert work.tasks == [ours]
    assert "bridged" not in ear.next()
    assert ear.rest() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": "5", "timeout": "30000", "timestamp": "1700000000123", "ttl": 60000},
        {"ttl": "-1"},
        {"ttl": None, "recipient": None, "data": None, "queue": "QUEUE: NAME"},
        {"verifiedAt": "1", "recipient": {"email": None, "fax": "1"}},
    ],
)
def test_message_that_the_original_may_send_is_heard(stage: Stage, changes: dict[str, Any]) -> None:
    stage.start(bridge_channel=CHANNEL)
    ear = stage.hear(task_verified)

    told(stage, **changes)

    task = ear.next()["task"]
    assert (task.priority, task.timeout) == (5, 30)
    assert task.expires_at > task.created_at


JUNK: dict[str, bytes | dict[str, Any]] = {
    "nothing": b"",
    "not UTF-8": b"\xff",
    "no object": b"[]",
    "NaN": json.dumps({**THEIRS, "data": float("nan")}).encode(),
    "deep": b'{"data": ' + b"[" * 100_000,
    "deep data": json.dumps({**THEIRS, "data": json.loads("[" * 101 + "]" * 101)}).encode(),
    "long": json.dumps({**THEIRS, "data": "a" * 2**20}).encode(),
    "half a pair": {"data": "\ud800"},
    "id": {"id": 7},
    "control in the id": {"id": "a\x1b[2J"},
    "queue": {"queue": "q\nq"},
    "priority": {"priority": True},
    "priority out of range": {"priority": 2**40},
    "timeout": {"timeout": None},
    "endless timeout": {"timeout": "Infinity"},
    "timestamp": {"timestamp": 1e300},
    "ttl": {"ttl": "1e300"},
    "recipient": {"recipient": "ann@example.com"},
    "address": {"recipient": {"email": 7}},
    "line in an address": {"recipient": {"email": "a\nb@example.com"}},
}


@pytest.mark.parametrize("kind", JUNK)
def test_junk_on_the_bridge_is_logged_and_dropped(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stage.start(bridge_channel=CHANNEL)
    ear = stage.hear(task_verified)
    junk = JUNK[kind]

    if isinstance(junk, dict):
        told(stage, **junk)
    else:
        stage.redis.publish(CHANNEL, junk)
    task = stage.verified()

    assert ear.tasks() == [task.id]
    assert ear.rest() == []
    (line,) = [each.getMessage() for each in caplog.records if "Junk" in each.getMessage()]
    assert line.startswith("Junk of ")
    assert f"bytes on channel {CHANNEL} was dropped: " in line


def test_verification_holds_when_it_cannot_be_published(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.redis.acl_setuser("deaf", enabled=True, nopass=True, categories=["+@all"], keys=["*"], channels=[
        "taskflow:*"
    ])  # fmt: skip
    url = stage.server.replace("unix://", "unix://deaf:@")
    stage.app(eager=True, bridge_channel=CHANNEL, redis_url=url)

    task = stage.verified()

    assert task.status is Status.SUCCESS
    assert f"Channel {CHANNEL} was not told of task {task.id}: " in caplog.text
    stage.redis.acl_deluser("deaf")


def test_nothing_is_published_or_heard_without_the_setting(stage: Stage) -> None:
    stage.start()
    ear = stage.hear(task_verified)

    with stage.redis.pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        told(stage)
        task = stage.verified()

        assert ear.tasks() == [task.id]
        types = [pubsub.get_message(timeout=1) for _ in range(3)]
    assert [each and each["data"] for each in types] == [1, json.dumps(THEIRS).encode(), None]


@pytest.fixture
def packages(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where npm keeps the original, from one run of the suite to the next, unless pytest's cache is off."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("nest")) if cache else tmp_path
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.copy(NEST / "package.json", folder)
        try:
            subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot install the original: {error} {error.stderr!r}"[:600])
    return folder / "node_modules"


class Nest:
    """A process of the original, on the server of a stage."""

    def __init__(self, stage: Stage, packages: Path) -> None:
        socket = stage.server.removeprefix("unix://")
        self.process = Process(
            NEST / "service.js", program=("node",), PACKAGES=str(packages), REDIS_SOCKET=socket
        )
        self.told: dict[str, list[list[Any]]] = defaultdict(list)
        self.hear("ready")

    def hear(self, word: str) -> list[Any]:
        """Wait until it told something of a kind, and return that."""
        while not self.told[word]:
            kind, *told = json.loads(self.process.line())
            self.told[kind].append(told)
        return self.told[word].pop(0)

    def call(self, *calls: list[Any]) -> list[Any]:
        """Let it call its service several times at once; return what came of that, errors as texts."""
        self.process.say(json.dumps(calls))
        return self.hear("done")

    def add(self, **options: Any) -> str:
        """Let it add a task that an e-mail confirms."""
        given = {"allowedMethods": ["EMAIL"], "recipient": {"email": "ann@example.com"}, **options}
        (task,) = self.call(["addTask", "orders", {"order": 7}, given])
        return str(task["id"])


@pytest.fixture
def start_nest(stage: Stage, packages: Path) -> Iterator[Callable[[], Nest]]:
    with ExitStack() as stack:

        def start() -> Nest:
            nest = Nest(stage, packages)
            stack.callback(nest.process.clear)
            return nest

        yield start


@pytest.mark.slow
def test_original_and_this_package_hear_each_other(stage: Stage, start_nest: Callable[[], Nest]) -> None:
    stage.start(bridge_channel=CHANNEL)
    ear, work = stage.hear(task_verified), stage.work(queue="orders")
    nest = start_nest()

    ours = stage.verified("orders", {"order": 5})
    (heard,) = nest.hear("heard")
    assert work.begun.acquire(timeout=60)
    assert (heard["id"], heard["data"]) == (ours.id, {"order": 5})
    assert heard["recipient"] == {"email": ours.recipient.email}
    assert ear.tasks() == [ours.id]

    for options in ({"ttl": 60000, "priority": 5}, {}):
        theirs = nest.add(**options)
        nest.call(["verify", theirs, "EMAIL", CODE])
        there = ear.next()
        task = there["task"]
        assert (there["bridged"], task.id, task.data) == (True, theirs, {"order": 7})
        assert (task.recipient, task.priority) == (Recipient("ann@example.com"), options.get("priority", 0))
    assert work.tasks == [ours]
    assert ear.rest() == []


@pytest.mark.slow
def test_original_behaves_as_the_page_says(stage: Stage, start_nest: Callable[[], Nest]) -> None:
    nest, other = start_nest(), start_nest()

    first, endless = nest.add(ttl=60000), nest.add()
    assert stage.redis.get(f"otp:{first}:EMAIL").decode() == CODE
    assert 59000 < stage.redis.ttl(f"otp:{first}:EMAIL") <= 60000
    assert 0 < stage.redis.ttl(f"otp:{endless}:EMAIL") <= 30
    assert stage.redis.ttl(f"task:{endless}") == -1
    wrong = nest.call(*[["verify", first, "EMAIL", "000000"]] * 100)
    assert {isinstance(each, str) and "OTP wrong" in each for each in wrong} == {True}
    right = nest.call(*[["verify", first, "EMAIL", CODE]] * 2)
    assert [each["id"] for each in right] == [first, first]
    heard = [each.hear("heard")[0] for each in (nest, nest, other, other)]
    assert [each["id"] for each in heard] == [first] * 4
    assert {(each["status"], each["ttl"]) for each in heard} == {("PENDING", "60000")}
    assert stage.redis.keys(f"*{first}*") == []

    sent = len(nest.told["sent"])
    (refusal,) = nest.call(["updateRecipient", endless, {"email": "bob@example.com"}])
    assert refusal.startswith("Failed to update recipient")
    assert b"bob@example.com" in stage.redis.hget(f"task:{endless}", "recipient")
    assert stage.redis.exists(f"otp:{endless}:EMAIL") == 0
    assert len(nest.told["sent"]) == sent

    stage.redis.publish(CHANNEL, "no JSON")
    assert nest.process.wait(60) != 0


def texts(page: str, *names: str) -> list[str]:
    return [block(page, name) for name in names]


@pytest.mark.slow
def test_page_has_each_example_of_the_original(packages: Path) -> None:
    original = (packages / "@sotatech" / "nest-taskflow" / "README.md").read_text("utf-8")
    page = texts(
        "nestjs.md",
        "nest install",
        "nest module",
        "nest add",
        "nest verify",
        "nest handle",
        "nest resend",
        "nest update",
        "nest strategy",
        "nest async",
    )

    assert page == re.findall(r"^```\w+\n(.*?)^```$", original, re.M | re.S)
