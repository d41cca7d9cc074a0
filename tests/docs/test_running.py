"""What the pages tell those who run an app: each recipe, done on real servers by real processes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import Server
from benchmarks.sizing import measure
from flask_taskflow import Status, TaskFlow, current_delivery
from flask_taskflow.errors import TaskLocked, TaskNotFound, WrongCode
from flask_taskflow.testing import outbox
from tests.docs.conftest import ORDER, Bank, Load
from tests.support.docs import block
from tests.support.processes import Process
from tests.support.stage import Stage
from tests.support.tasks import guess_wrong, refused

#: A queue and a method under their old names and under their new ones.
CHANGED = [("orders", "POST"), ("parcels", "LETTER")]
COMMANDED = Path(__file__).parents[1] / "support" / "apps" / "commanded.py"


# deploy.md


def keys(page: str, *names: str) -> list[dict[str, str]]:
    """Return the environments that a page shows."""
    # As a shell reads them.
    return [dict(line.split("=", 1) for line in shlex.split(block(page, name))) for name in names]


@pytest.fixture
def processes(server: str) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(environment: dict[str, str]) -> Process:
            settings = {"FLASK_TASKFLOW_REDIS_URL": server, "FLASK_TASKFLOW_AUTOSTART": "false"}
            process = Process(COMMANDED, **settings, **environment)
            stack.callback(process.clear)
            return process

        yield start


def do(process: Process, command: str) -> list[str]:
    process.say(command)
    return process.line().split()


@pytest.mark.slow
@pytest.mark.usefixtures("redis")
def test_change_of_the_secret_key_loses_no_code_and_no_callback(processes: Any) -> None:
    steps = keys("deploy.md", "keys at first", "keys after 1", "keys after 2", "keys after 3")
    old = processes(steps[0])

    for environment in steps[1:]:
        new = processes(environment)
        for one, two in ((old, new), (new, old)):
            _, task_id, otp = do(one, "add")
            assert do(two, f"verify {task_id} {otp}") == ["verified", task_id]
            assert do(one, "run") == ["ran", task_id]
            assert one.line() == "done 1"
        old = new


@pytest.mark.usefixtures("redis")
def test_sizing_measures_each_step(server: str) -> None:
    costs = measure(server, 20)

    assert list(costs) == ["add_task", "verify", "run_due"]
    assert costs["add_task"][0] > 0
    assert min(own for _, own, _ in costs.values()) > 0


# upgrading.md


def test_names_that_changed_serve_what_waits_under_the_old_ones(
    load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    load("upgrading.md", "queue", "method")
    with bank.make().app_context():
        old, new = (bank.add(queue, 7, allowed_methods=[name]) for queue, name in CHANGED)
        codes = re.findall(r"To the printer: (\d+)", capsys.readouterr().out)
        for task, (_, name), otp in zip((old, new), CHANGED, codes, strict=True):
            bank.taskflow.verify(task.id, name, otp)

    assert capsys.readouterr().out == "Shipping 7 of orders\nShipping 7 of parcels\n"


def test_release_with_a_prefix_of_its_own_leaves_the_old_ones_deliveries_to_it(stage: Stage) -> None:
    work = stage.work()
    old, new = stage.make_app(autostart=False), stage.make_app(autostart=False, key_prefix="taskflow2")
    with old.app_context():
        waiting, verified = stage.add(), stage.verified()
    with new.app_context():
        refused(TaskNotFound, stage.taskflow.get_task, waiting.id)
        assert stage.taskflow.run_due() == 0
    with old.app_context():
        assert stage.taskflow.run_due() == 1

    assert work.tasks == [verified]


# personal-data.md


def test_person_is_erased_but_for_what_is_to_run(
    load: Load, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    with bank.app(TASKFLOW_EAGER=False) as (_, box):
        task = bank.add("transfers", ORDER, owner="user:17")
        bank.taskflow.verify(task.id, "EMAIL", box[-1].otp)
        load("personal-data.md", "erase")

        assert capsys.readouterr().out == f"Erase again when these are done: {task.id}:transfers\n"
        bank.taskflow.run_due()
        assert bank.taskflow.erase(owner="user:17") == []


# redis.md


def run(commands: str, folder: Path, backup: Path) -> None:
    """Run what the page says, on a server of the test."""
    said = {"redis-cli": f"redis-cli -s {folder / 'redis.sock'}", "/var/lib/redis": str(folder)}
    for word, meant in {**said, "/var/backups/taskflow.rdb": str(backup)}.items():
        commands = commands.replace(word, meant)
    subprocess.run(["sh", "-e", "-c", commands], check=True, capture_output=True, timeout=30)


def wait_until_rewritten(client: Any) -> None:
    deadline = time.monotonic() + 20
    while any(client.info("persistence")[f"aof_rewrite_{word}"] for word in ("in_progress", "scheduled")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@pytest.mark.slow
def test_restore_repeats_what_the_page_says(taskflow: TaskFlow, mortal: Server, tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("needs redis-cli")
    folder, backup = Path(mortal.url.removeprefix("unix://")).parent, tmp_path / "backup.rdb"
    ran: list[str] = []
    taskflow.on_task_verified("q")(lambda task: ran.append(current_delivery.id.partition(":")[0]))
    with ExitStack() as stack:
        client = stack.enter_context(mortal.client())
        box = stack.enter_context(outbox(taskflow))
        stage = Stage(taskflow, mortal.url, client, stack, box)
        stage.app(eager=True)
        done = stage.verified()
        verified, cancelled, locked, stored = (stage.add() for _ in range(4))
        codes = {message.task.id: message.otp for message in box}
        taskflow.operations.pause("q")
        taskflow.verify(stored.id, "EMAIL", codes[stored.id])
        run(block("redis.md", "back up"), folder, backup)

        taskflow.operations.resume("q")
        taskflow.verify(verified.id, "EMAIL", codes[verified.id])
        taskflow.cancel_task(cancelled.id)
        guess_wrong(taskflow, locked, codes[locked.id], 4)
        refused(TaskLocked, taskflow.verify, locked.id, "EMAIL", "000000")
        added = stage.add()
        assert sorted(ran) == sorted([done.id, stored.id, verified.id])

        ran.clear()
        mortal.kill()
        run(block("redis.md", "restore"), folder, backup)
        mortal.start("--appendonly", "no")
        run(block("redis.md", "restored"), folder, backup)
        wait_until_rewritten(client)
        mortal.kill()
        mortal.start()

        refused(TaskNotFound, taskflow.get_task, added.id)
        for task in (verified, cancelled, locked):
            assert taskflow.get_task(task.id).status is Status.PENDING
        refused(WrongCode, taskflow.verify, locked.id, "EMAIL", codes[locked.id])
        for task in (verified, cancelled):
            assert taskflow.verify(task.id, "EMAIL", codes[task.id]).status is Status.SUCCESS
        taskflow.operations.resume("q")
        taskflow.run_due()
        assert sorted(ran) == sorted(task.id for task in (verified, cancelled, stored))
        assert taskflow.get_task(done.id).status is Status.SUCCESS
