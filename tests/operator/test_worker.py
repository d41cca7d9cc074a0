"""The command ``worker`` and other processes of a fleet, real ones: started, told to end, killed, forked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.docs import block
from tests.support.fleet import WITHIN, Fleet, listeners, port_of, wait_until

pytestmark = pytest.mark.slow


def test_one_verification_is_one_signal_a_process_and_one_callback_in_all(fleet: Fleet) -> None:
    pids = [fleet.serve().pid for _ in range(3)]

    task = fleet.verify()

    fleet.wait("signal", 3)
    fleet.wait("acked")
    fleet.settle()
    assert {event["task"] for event in fleet.events()} == {task.id}
    assert sorted(event["pid"] for event in fleet.events("signal")) == sorted(pids)
    assert [event["attempt"] for event in fleet.events("begun")] == [1]


def test_nobody_listening_runs_once_a_process_comes_up(fleet: Fleet) -> None:
    task = fleet.verify()

    process = fleet.serve()

    fleet.wait("acked")
    fleet.settle()
    (event,) = fleet.events("begun")
    assert (event["task"], event["pid"], event["attempt"]) == (task.id, process.pid, 1)


@pytest.mark.promise("F1")
def test_kill_with_default_settings_runs_it_elsewhere_long_before_its_lease_ends(fleet: Fleet) -> None:
    workers = [fleet.serve(), fleet.serve()]
    task = fleet.verify("wait")
    (first,) = fleet.wait("begun")

    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    second = fleet.wait("begun", 2)[1]
    fleet.go()

    assert [event["task"] for event in fleet.wait("done")] == [task.id]
    assert {first["pid"], second["pid"]} == {process.pid for process in workers}
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["delivery"] == second["delivery"]
    assert second["at"] - killed < 20


@pytest.mark.promise("F8")
def test_cut_subscriber_of_a_living_worker_doubles_nothing(fleet: Fleet) -> None:
    pids = {fleet.serve().pid, fleet.serve().pid}
    fleet.verify("wait")
    fleet.wait("begun")

    for _ in range(5):
        fleet.redis.client_kill_filter(_type="pubsub")
        fleet.settle(0.8)
        wait_until(lambda: listeners(fleet.redis) == pids)
    fleet.go()

    fleet.wait("acked")
    fleet.settle()
    assert len(fleet.events("begun")) == 1


@pytest.fixture
def running(fleet: Fleet) -> subprocess.Popen[bytes]:
    """A worker that runs a callback."""
    process = fleet.serve()
    fleet.verify("wait")
    fleet.wait("begun")
    return process


@pytest.mark.promise("F15")
def test_sigterm_lets_the_callback_finish_and_acks_it_once(
    fleet: Fleet, running: subprocess.Popen[bytes]
) -> None:
    running.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in fleet.log(running))
    fleet.go()

    assert running.wait(WITHIN) == 0
    assert len(fleet.events("done")) == 1
    assert list(fleet.redis.scan_iter(match="*:meta")) == []


def test_later_sigterm_ends_the_worker_at_once(fleet: Fleet, running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in fleet.log(running))
    # What comes within a second is the same request.
    fleet.settle(1.2)

    running.send_signal(signal.SIGTERM)

    assert running.wait(WITHIN) == 128 + signal.SIGTERM


def test_signals_that_come_together_are_one_request(fleet: Fleet, running: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        running.send_signal(number)
    wait_until(lambda: "Stopping" in fleet.log(running))
    fleet.go()

    assert running.wait(WITHIN) == 0
    assert len(fleet.events("done")) == 1


def test_stop_gives_up_after_the_drain_time(fleet: Fleet) -> None:
    process = fleet.serve(drain=0.2, lease=1)
    fleet.verify("wait")
    fleet.wait("begun")

    process.send_signal(signal.SIGTERM)

    assert process.wait(WITHIN) == 0
    assert len(list(fleet.redis.scan_iter(match="*:lease"))) == 1


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WITHIN) as response:
        return str(response.read().decode())


@pytest.mark.promise("F14")
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("kind", [("sync",), ("gthread", "--threads", "4")], ids=["sync", "gthread"])
@pytest.mark.promise("F14")
def test_each_gunicorn_worker_that_served_has_its_own_listener(
    fleet: Fleet, kind: tuple[str, ...], preload: tuple[str, ...]
) -> None:
    master = fleet.start(
        *("gunicorn", "-w", "2", "-b", "127.0.0.1:0", "-k", *kind, *preload, "survivor:create_app()"),
        until="Booting worker(?s:.*)Booting worker",
    )
    port = port_of(master.pid)
    pids: set[int] = set()

    wait_until(lambda: pids.add(int(get(port, "/pid"))) or len(pids) == 2)  # type: ignore[func-returns-value]
    heard = listeners(fleet.redis)
    task = fleet.verify()

    assert heard == pids
    assert {event["pid"] for event in fleet.wait("signal", 2)} == pids
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/taskflow/tasks/{task.id}/verify",
        data=b'{"method": "EMAIL", "otp": "000000"}',
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=WITHIN)
    caught.value.close()
    assert caught.value.code == 400


@pytest.mark.parametrize("kind", [("sync",), ("gthread", "--threads", "4")], ids=["sync", "gthread"])
def test_gunicorn_worker_that_drains_after_its_last_request_is_replaced_at_once(
    fleet: Fleet, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(block("deploy.md", "gunicorn.conf.py") + block("deploy.md", "replaced"))
    limits = ("-w", "1", "--max-requests", "2", "-k", *kind)
    master = fleet.start(
        *("gunicorn", "-c", str(conf), "-b", "127.0.0.1:0", *limits, "survivor:create_app()"),
        until="Booting worker",
        drain=WITHIN,
    )
    fleet.verify("wait")
    (begun,) = fleet.wait("begun")

    wait_until(lambda: int(get(port_of(master.pid), "/pid")) != begun["pid"])
    ended_before = fleet.events("done")
    fleet.go()
    (acked,) = fleet.wait("acked")
    wait_until(lambda: not Path(f"/proc/{begun['pid']}").exists())
    fleet.settle()
    master.terminate()

    assert ended_before == []
    assert acked["pid"] == begun["pid"]
    assert master.wait(WITHIN) == 0
    assert fleet.log(master).count("Booting worker") == 2


def test_gunicorn_worker_without_callbacks_has_nothing_to_wait_for(fleet: Fleet) -> None:
    command = ("gunicorn", "-w", "1", "--max-requests", "1", "-b", "127.0.0.1:0", "survivor:create_app()")
    master = fleet.start(*command, until="Booting worker", queues=[])
    fleet.worker()
    fleet.verify("wait")
    fleet.wait("begun")

    first = get(port_of(master.pid), "/pid")
    wait_until(lambda: get(port_of(master.pid), "/pid") != first)

    assert fleet.events("done") == []


def test_one_off_command_starts_no_thread(fleet: Fleet) -> None:
    process = fleet.start("flask", "--app", "survivor", "add", until=r"threads \[\]")

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


def test_queues_of_a_worker_may_have_blanks_and_be_used_later(fleet: Fleet) -> None:
    command = ("flask", "--app", "survivor", "taskflow", "worker", "--queues", "later, f*t")
    environment = {"FLASK_TASKFLOW_SEND": '"background"'}

    process = fleet.start(*command, until="Serving fleet", environment=environment)

    assert "Note: there is no queue later; there are: fleet" in fleet.log(process)


def unit_command() -> str:
    return str(re.findall(r"^ExecStart=\S*/(flask .*)$", block("deploy.md", "unit"), re.MULTILINE)[0])


def container_command() -> str:
    lines = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", block("deploy.md", "container"), re.MULTILINE)
    return " ".join(word for line in lines for word in json.loads(line))


@pytest.mark.parametrize("shown", [unit_command, container_command])
def test_command_of_the_deploy_page_is_a_worker_that_ends_at_sigterm(
    shown: Callable[[], str], fleet: Fleet
) -> None:
    words = shown().split()
    assert words[:3] == ["flask", "--app", "bank"]

    process = fleet.start("flask", "--app", "survivor", *words[3:], until="Serving fleet")
    process.send_signal(signal.SIGTERM)

    assert process.wait(WITHIN) == 0
