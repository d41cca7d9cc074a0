"""One real server a session, emptied before each test; apps that use it; no thread left behind."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blinker import NamedSignal
from flask import Flask
from hypothesis import HealthCheck, settings
from redis import Redis

from benchmarks.chaos import Server, own_server
from flask_taskflow import Method, OutboxStrategy, TaskFlow
from flask_taskflow._delivery.threads import runtimes
from flask_taskflow.testing import Outbox, outbox, redis_server
from tests.support.fleet import Fleet, Proxy
from tests.support.processes import Process
from tests.support.sending import Post
from tests.support.stage import SECRET_KEY, Ear, Stage

if TYPE_CHECKING:
    from selenium import webdriver

pytest_plugins = ["tests.promises.plugin"]
__all__ = ["SECRET_KEY", "MakeApp"]

MakeApp = Callable[..., Flask]
Hear = Callable[[NamedSignal], Ear]
Spawn = Callable[[str], Process]
MakeFleet = Callable[..., Fleet]

# How long an example takes says how busy the machine is. Examples are the same in each run: what an unlucky
# draw would fail is found by `--hypothesis-profile=exploring`, not by whoever runs the suite next.
settings.register_profile(
    "steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, max_examples=50
)
settings.register_profile("exploring", settings.get_profile("steady"), derandomize=False, max_examples=1000)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    binary = os.environ.get("TASKFLOW_TEST_SERVER")
    with redis_server(binary=shutil.which(binary) if binary else None) as url:
        yield url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    """A client of the test's own, on the server that is empty now."""
    client = Redis.from_url(server)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder for pictures of what a browser shows; ``TASKFLOW_TEST_PICTURES`` names one to look into."""
    name = re.sub(r"\W", "-", request.node.name)
    return Path(os.environ.get("TASKFLOW_TEST_PICTURES", tmp_path)) / name


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser for the tests of a module."""
    # Few modules need what it takes long to import.
    from tests.support.browser import watching

    with watching(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def taskflow() -> TaskFlow:
    extension = TaskFlow()
    for method in (Method.EMAIL, Method.SMS):
        extension.register_strategy(method)(OutboxStrategy())
    return extension


@pytest.fixture
def stage(taskflow: TaskFlow, server: str, redis: Redis) -> Iterator[Stage]:
    """Apps of the extension whose strategies fill an outbox."""
    with ExitStack() as stack:
        yield Stage(taskflow, server, redis, stack, stack.enter_context(outbox(taskflow)))


@pytest.fixture
def bare_stage(taskflow: TaskFlow, server: str, redis: Redis) -> Iterator[Stage]:
    """A stage whose strategies send for themselves."""
    with ExitStack() as stack:
        yield Stage(taskflow, server, redis, stack)


@pytest.fixture
def make_app(bare_stage: Stage) -> MakeApp:
    """Make an app; keyword arguments are ``TASKFLOW_`` settings, in capitals Flask's own."""
    return bare_stage.make_app


def watch(redis: Redis, call: Callable[[], object]) -> tuple[list[str], list[str]]:
    """Run a call under MONITOR; return the commands that came in, and those that scripts ran."""
    sent: list[str] = []
    scripted: list[str] = []
    with redis.monitor() as monitor:
        redis.echo("watch-begins")
        call()
        redis.echo("watch-ends")
        commands = iter(monitor.next_command, None)
        while "watch-begins" not in next(commands)["command"]:
            continue
        for seen in commands:
            if "watch-ends" in seen["command"].split():
                return sent, scripted
            (scripted if seen["client_type"] == "lua" else sent).append(seen["command"])
    raise AssertionError("MONITOR ended")


@pytest.fixture
def app(bare_stage: Stage, request: pytest.FixtureRequest) -> Flask:
    """An app with ``TASKFLOW_EAGER``, its context pushed; ``with_settings`` gives it more settings."""
    return bare_stage.app(**{"eager": True, **getattr(request, "param", {})})


@pytest.fixture
def hear(bare_stage: Stage) -> Hear:
    """Connect an ear to a signal until the test ends."""
    return bare_stage.hear


@pytest.fixture
def box(taskflow: TaskFlow) -> Iterator[Outbox]:
    with outbox(taskflow) as messages:
        yield messages


@pytest.fixture
def post(taskflow: TaskFlow, server: str, redis: Redis) -> Iterator[Post]:
    """An app that stores its sends, its context pushed; ``run`` sends them, in the test's own time."""
    with ExitStack() as stack:
        post = Post(taskflow, server, redis, stack)
        post.app()
        yield post


@pytest.fixture
def spawn(server: str) -> Iterator[Spawn]:
    """Start a process of ``apps/hearing.py``, in one of its modes."""
    with ExitStack() as stack:

        def start(mode: str) -> Process:
            script = Path(__file__).parent / "support" / "apps" / "hearing.py"
            process = Process(script, mode, REDIS_URL=server)
            stack.callback(process.clear)
            return process

        yield start


@pytest.fixture
def make_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFleet]:
    """Make a fleet on a server, by its URL; keyword arguments are settings of this process's app."""
    monkeypatch.setenv("SURVIVOR", str(tmp_path))
    with ExitStack() as stack:

        def make(url: str, **settings: object) -> Fleet:
            fleet = Fleet(url, tmp_path, **settings)
            stack.callback(fleet.close)
            return fleet

        yield make


@pytest.fixture
def fleet(make_fleet: MakeFleet, redis: Redis, server: str) -> Fleet:
    """A fleet on the session's server."""
    return make_fleet(server)


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that the test may kill or stop; it keeps what it acknowledged, however slow its disk is."""
    with own_server("--appendfsync", "always") as server:
        yield server


@pytest.fixture
def proxy(redis: Redis, server: str) -> Iterator[Proxy]:
    """A proxy before the session's server."""
    proxy = Proxy(server.removeprefix("unix://"))
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("taskflow-")]
    deadline = time.monotonic() + 5
    for thread in left:
        thread.join(max(deadline - time.monotonic(), 0))
    alive = [thread.name for thread in left if thread.is_alive()]
    if alive:
        # The fault stays with this test: the others would wait for the same threads.
        for runtime in runtimes():
            runtime.stop(0)
    assert alive == []
