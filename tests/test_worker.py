"""Real processes: workers, apps and servers that are killed, stopped and forked."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from apps import fleet
from docs_support import block
from fleet_support import listeners, port_of

from flask_taskflow import Task
from flask_taskflow.testing import outbox

pytestmark = pytest.mark.slow

APP = str(Path(__file__).parent / "apps" / "fleet.py")
WITHIN = 15.0

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(redis: Any, server: str) -> Iterator[Start]:
    """Start a command on the fleet's app; all are killed after the test."""
    with ExitStack() as stack:

        def run(*command: str, until: str, **settings: object) -> subprocess.Popen[bytes]:
            environment = {
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "FLASK_TASKFLOW_REDIS_URL": server,
                **{f"FLASK_TASKFLOW_{name.upper()}": json.dumps(v) for name, v in settings.items()},
            }
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=Path(APP).parent,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(_end, process)
            read_until(process, until)
            return process

        yield run


def _end(process: subprocess.Popen[bytes]) -> None:
    # A process group: gunicorn's workers, too.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read_until(process: subprocess.Popen[bytes], text: str) -> str:
    """Read a process's output until a text appears in it."""
    assert process.stdout is not None
    seen, deadline = b"", time.monotonic() + WITHIN
    while re.search(text.encode(), seen) is None:
        ready, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert chunk, f"{text!r} did not appear in {seen.decode()!r}"
        seen += chunk
    return seen.decode()


@pytest.fixture
def worker(start: Start) -> Callable[..., subprocess.Popen[bytes]]:
    def run(**settings: object) -> subprocess.Popen[bytes]:
        return start("flask", "--app", APP, "taskflow", "worker", until="Serving fleet", **settings)

    return run


@pytest.fixture
def verify(redis: Any, server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task[Any]]:
    """Add a task for the fleet and verify it, in this process, which runs no callback."""
    monkeypatch.setenv("FLASK_TASKFLOW_REDIS_URL", server)
    app = fleet.create_app()
    app.testing = True

    def add_and_verify(data: str | None = None, **options: Any) -> Task[Any]:
        with app.app_context(), outbox(fleet.taskflow) as box:
            address = f"{os.urandom(8).hex()}@example.com"
            task = fleet.taskflow.add_task(
                "fleet", data, allowed_methods=["EMAIL"], recipient={"email": address}, **options
            )
            return fleet.taskflow.verify(task.id, "EMAIL", box.last_code(address))

    return add_and_verify


def next_event(redis: Any, *names: str, within: float = WITHIN) -> dict[str, Any]:
    """Return the next of these events; others that came before it are dropped."""
    deadline = time.monotonic() + within
    while (left := deadline - time.monotonic()) > 0:
        item = redis.blpop(["events"], timeout=left)
        event: dict[str, Any] = json.loads(item[1]) if item else {}
        if event.get("event") in names:
            return event
    raise AssertionError(f"none of {names} happened within {within} s")


def rest(redis: Any, within: float = 0.7) -> list[dict[str, Any]]:
    """Return all further events, until nothing comes any more."""
    events = []
    while item := redis.blpop(["events"], timeout=within):
        events.append(json.loads(item[1]))
    return events


def test_one_verification_is_one_signal_a_process_and_one_callback_in_all(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    pids = {worker().pid, worker().pid, worker().pid}

    task = verify()

    events = rest(redis, within=1)
    assert {event["task"] for event in events} == {task.id}
    assert sorted(event["pid"] for event in events if event["event"] == "signal") == sorted(pids)
    assert [event["attempt"] for event in events if event["event"] == "callback"] == [1]


def test_nobody_listening_runs_once_a_process_comes_up(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    task = verify()

    process = worker()

    event = next_event(redis, "callback")
    assert (event["task"], event["pid"], event["attempt"]) == (task.id, process.pid, 1)
    assert [item for item in rest(redis) if item["event"] == "callback"] == []


def test_kill_in_a_callback_runs_it_in_another_process_within_the_lease(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    workers = [worker(lease=1, poll=0.2) for _ in range(2)]
    task = verify("wait")
    first = next_event(redis, "callback")

    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    second = next_event(redis, "callback")
    took = time.monotonic() - killed
    redis.rpush("go", 1)

    assert next_event(redis, "done")["task"] == task.id
    assert {first["pid"], second["pid"]} == {process.pid for process in workers}
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["delivery"] == second["delivery"]
    assert took < 1 + 0.2 + 1


def test_failed_callback_is_retried_then_dead(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    worker()

    verify("fail")

    assert next_event(redis, "callback")["attempt"] == 1
    assert next_event(redis, "callback")["attempt"] == 2
    assert next_event(redis, "dead")


def test_priority_goes_before_age_when_both_wait(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    low = [verify(priority=0).id for _ in range(3)]
    high = [verify(priority=5).id for _ in range(3)]

    worker(callback_threads=1)

    assert [next_event(redis, "callback")["task"] for _ in range(6)] == high + low


@pytest.fixture
def stopping(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> subprocess.Popen[bytes]:
    """A worker that was told to end while it runs a callback."""
    process = worker()
    verify("wait")
    next_event(redis, "callback")
    process.send_signal(signal.SIGTERM)
    read_until(process, "Stopping")
    return process


def test_sigterm_lets_the_callback_finish_and_acks_it_once(
    stopping: subprocess.Popen[bytes], redis: Any
) -> None:
    redis.rpush("go", 1)

    assert next_event(redis, "done")
    assert stopping.wait(WITHIN) == 0
    assert list(redis.scan_iter(match="*:meta")) == []


def test_second_sigterm_ends_the_worker_at_once(stopping: subprocess.Popen[bytes]) -> None:
    stopping.send_signal(signal.SIGTERM)

    assert stopping.wait(WITHIN) == 128 + signal.SIGTERM


def test_stop_gives_up_after_the_drain_time(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    process = worker(drain=0.2, lease=1)
    verify("wait")
    next_event(redis, "callback")

    process.send_signal(signal.SIGTERM)

    assert process.wait(WITHIN) == 0
    assert len(list(redis.scan_iter(match="*:lease"))) == 1


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WITHIN) as response:
        return str(response.read().decode())


@pytest.mark.parametrize(
    "options",
    [
        ("-k", "sync"),
        ("-k", "gthread", "--threads", "4"),
        ("-k", "sync", "--preload"),
        ("-k", "gthread", "--threads", "4", "--preload"),
    ],
    ids=" ".join,
)
def test_each_gunicorn_worker_that_served_has_its_own_listener(
    start: Start, redis: Any, verify: Callable[..., Task[Any]], options: tuple[str, ...]
) -> None:
    master = start(
        "gunicorn", "-w", "2", "-b", "127.0.0.1:0", *options, "fleet:create_app()",
        until="Booting worker(?s:.*)Booting worker",
    )  # fmt: skip
    port = port_of(master.pid)

    pids: set[int] = set()
    deadline = time.monotonic() + WITHIN
    while len(pids) < 2 and time.monotonic() < deadline:
        pids.add(int(get(port, "/pid")))
    heard = listeners(redis)
    task = verify()

    assert len(pids) == 2
    assert heard == pids
    assert {next_event(redis, "signal")["pid"] for _ in range(2)} == pids
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/taskflow/tasks/{task.id}/verify",
        data=b'{"method": "EMAIL", "otp": "000000"}',
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=WITHIN)
    caught.value.close()
    assert caught.value.code == 400


def test_one_off_command_starts_no_thread(start: Start) -> None:
    process = start("flask", "--app", APP, "add", until=r"threads \[\]")

    assert process.wait(WITHIN) == 0


def test_worker_without_a_callback_says_what_to_do(tmp_path: Path, server: str) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(
        "from flask import Flask\nfrom flask_taskflow import TaskFlow\napp = Flask(__name__)\n"
        f"app.config.update(SECRET_KEY='x' * 16, TASKFLOW_REDIS_URL={server!r})\nTaskFlow(app)\n"
    )

    command = [sys.executable, "-m", "flask", "--app", str(bare), "taskflow", "worker"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)

    assert result.returncode == 1
    assert "this app has no callback for these queues: register one" in result.stderr


def test_kill_with_default_settings_runs_it_elsewhere_within_five_seconds(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    worker(), worker()
    verify("wait")
    first = next_event(redis, "callback")

    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    second = next_event(redis, "callback")
    took = time.monotonic() - killed
    redis.rpush("go", 1)

    assert next_event(redis, "done")
    assert second["pid"] != first["pid"]
    assert took < 5


def test_cut_subscriber_of_a_living_worker_doubles_nothing(
    worker: Callable[..., subprocess.Popen[bytes]], verify: Callable[..., Task[Any]], redis: Any
) -> None:
    worker(), worker()
    verify("wait")
    next_event(redis, "callback")

    for _ in range(5):
        redis.client_kill_filter(_type="pubsub")
        events = rest(redis, within=0.8)
    redis.rpush("go", 1)

    assert [event for event in events if event["event"] == "callback"] == []
    assert next_event(redis, "done")
    assert [item for item in rest(redis) if item["event"] == "callback"] == []


def unit_command() -> str:
    return str(re.findall(r"^ExecStart=\S*/(flask .*)$", block("deploy.md", "unit"), re.MULTILINE)[0])


def container_command() -> str:
    lines = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", block("deploy.md", "container"), re.MULTILINE)
    return " ".join(word for line in lines for word in json.loads(line))


@pytest.mark.parametrize("shown", [unit_command, container_command])
def test_command_of_the_deploy_page_is_a_worker_that_ends_at_sigterm(
    shown: Callable[[], str], start: Start
) -> None:
    words = shown().split()
    assert words[:3] == ["flask", "--app", "bank"]

    process = start("flask", "--app", APP, *words[3:], until="Serving fleet")
    process.send_signal(signal.SIGTERM)

    assert process.wait(WITHIN) == 0
