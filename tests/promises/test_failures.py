"""The failure matrix: what must happen when processes, Redis and what stands in it fail.

Rows that other modules show as well, or alone, bear the same marker there. ``benchmarks/chaos.py`` mixes the
faults for minutes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisError

from benchmarks.chaos import Server, own_server
from flask_taskflow import (
    CodeRepeated,
    OutboxStrategy,
    Status,
    Task,
    TaskFlow,
    WrongCode,
    callback_dead,
    callback_succeeded,
)
from flask_taskflow._config.config import Config
from flask_taskflow._delivery import listener as listener_module
from flask_taskflow._delivery.announcer import Announcer
from flask_taskflow._delivery.listener import Listener
from flask_taskflow._redis.connector import Connector
from flask_taskflow._service import current_service
from flask_taskflow._store.deliveries import NOBODY, End
from flask_taskflow._store.keys import Keys
from tests.conftest import MakeFleet
from tests.support import inside
from tests.support.fleet import WITHIN, Fleet, Proxy, listeners, port_of, stopped, wait_until
from tests.support.stage import Stage
from tests.support.tasks import other, refused

pytestmark = pytest.mark.slow


def counts(fleet: Fleet, task: Task[Any]) -> tuple[int, int]:
    """Return failures and losses of a delivery."""
    with fleet.app.app_context():
        placed = current_service().operations.find("fleet", "work", task.id)
    assert placed is not None
    return placed.failures, placed.lost


def commands(redis: Any) -> int:
    """Count the commands that a server executed so far, those of scripts among them."""
    return sum(command["calls"] for command in redis.info("commandstats").values())


def nothing_is_left(redis: Any) -> bool:
    return not any(list(redis.scan_iter(match=f"*:{kind}")) for kind in ("ready", "delay", "lease", "meta"))


@pytest.mark.promise("F1")
def test_row_01_kill_in_a_callback(fleet: Fleet) -> None:
    workers = [fleet.worker(), fleet.worker()]
    task = fleet.verify("wait")
    (first,) = fleet.wait("begun")

    killed = time.monotonic()
    os.kill(first["pid"], signal.SIGKILL)
    second = fleet.wait("begun", 2)[1]
    failures_and_losses = counts(fleet, task)
    fleet.go()

    assert fleet.wait("acked")
    assert second["at"] - killed < 20
    assert {first["pid"], second["pid"]} == {worker.pid for worker in workers}
    assert failures_and_losses == (0, 1)


@pytest.mark.promise("F2")
def test_row_02_kill_between_claim_and_run(fleet: Fleet) -> None:
    task = fleet.verify()
    (item,) = fleet.store().claim("fleet", ["work"], 1, owner="gone:1:0").deliveries

    fleet.start(
        "flask", "--app", "survivor", "taskflow", "worker",
        until="Serving fleet", environment={"SURVIVOR_ATTEMPTS": "1"}, lease=30, poll=0.2,
    )  # fmt: skip
    (begun,) = fleet.wait("begun")

    assert (item.task_id, item.token) == (task.id, 1)
    assert begun["attempt"] == 2
    assert fleet.wait("acked")
    assert fleet.events("dead") == []


@pytest.mark.promise("F3")
def test_row_03_kill_between_callback_and_ack(fleet: Fleet) -> None:
    fleet.worker(), fleet.worker()

    fleet.verify("kill")

    first, second = fleet.wait("begun", 2)
    assert fleet.wait("acked")
    assert [event["event"] for event in fleet.events("done")] == ["done"] * 2
    assert first["delivery"] == second["delivery"]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["pid"] != second["pid"]


@pytest.mark.promise("F4")
@pytest.mark.parametrize("fsync", ["everysec", pytest.param("always", marks=pytest.mark.chaos)])
def test_row_04_redis_killed_and_started(make_fleet: MakeFleet, fsync: str) -> None:
    with own_server("--appendfsync", fsync) as server:
        fleet = make_fleet(server.url)
        workers = [fleet.worker(), fleet.worker()]
        tasks = [fleet.verify("wait") for _ in range(9)]
        fleet.wait("begun", 8)
        before = [fleet.log(worker).count("\n") for worker in workers]

        down = time.monotonic()
        with stopped(workers[0]):
            # Bells that it reads when their tasks cannot be read any more.
            for _ in range(50):
                fleet.redis.publish("taskflow:0:bell", f"1 {tasks[0].id}")
            # A slow disk holds back what was acknowledged: at most a second's writes, as Redis says.
            wait_until(lambda: not fleet.redis.info("persistence")["aof_buffer_length"])
            server.kill()
        fleet.settle(1.2)
        server.start()
        wait_until(lambda: len(listeners(fleet.redis)) == 2)
        fleet.go()
        fresh = fleet.verify()
        acked = fleet.wait("acked", 10)
        took = time.monotonic() - down

    assert {event["task"] for event in acked} == {task.id for task in [*tasks, fresh]}
    assert len(fleet.events("begun")) == 10
    for worker, lines in zip(workers, before, strict=True):
        # Two lines a second, and those at both ends of the time.
        assert fleet.log(worker).count("\n") - lines <= 2 * (took + 1), fleet.log(worker)
        assert "Traceback" not in fleet.log(worker)


@pytest.mark.promise("F5")
def test_row_05_redis_back_with_older_data(make_fleet: MakeFleet, mortal: Server) -> None:
    fleet = make_fleet(mortal.url)
    fleet.worker()
    old = fleet.verify("wait")
    fleet.wait("begun")
    mortal.save()
    fleet.go()
    fleet.wait("acked")

    mortal.kill()
    mortal.restore()
    mortal.start()
    runs = fleet.wait("begun", 2)
    new = fleet.verify()
    fleet.wait("acked", 3)

    assert [event["task"] for event in runs] == [old.id] * 2
    assert runs[0]["delivery"] == runs[1]["delivery"]
    assert {event["task"] for event in fleet.events("acked")} == {old.id, new.id}
    assert nothing_is_left(fleet.redis)


@pytest.mark.promise("F6")
def test_row_06_redis_back_empty(make_fleet: MakeFleet, mortal: Server) -> None:
    fleet = make_fleet(mortal.url)
    worker = fleet.worker()
    fleet.verify("wait")
    fleet.wait("begun")

    mortal.kill()
    mortal.wipe()
    mortal.start()
    # The callbacks are registered by one command, their queue is listed by the next.
    wait_until(lambda: list(fleet.redis.scan_iter(match="*:handlers")))
    wait_until(lambda: fleet.redis.hvals("taskflow:queues") == [b"fleet"])
    fleet.go()
    wait_until(lambda: "its delivery was lost or taken" in fleet.log(worker))
    fresh = fleet.verify()

    assert [event["task"] for event in fleet.wait("acked")] == [fresh.id]
    assert "Traceback" not in fleet.log(worker)


@pytest.mark.promise("F7")
@pytest.mark.parametrize(
    ("how", "ends"),
    [
        ("frozen", "after"),
        ("refused", "during"),
        pytest.param("frozen", "during", marks=pytest.mark.chaos),
        pytest.param("refused", "after", marks=pytest.mark.chaos),
    ],
)
def test_row_07_redis_unreachable_for_two_and_a_half_leases(
    make_fleet: MakeFleet, mortal: Server, how: str, ends: str
) -> None:
    fleet = make_fleet(mortal.url, redis_timeout=1)
    for _ in range(2):
        fleet.worker(lease=2, poll=0.1, callback_threads=2)
    tasks = [fleet.verify("wait") for _ in range(3)]
    fleet.wait("begun", 3)

    begun = time.monotonic()
    if how == "frozen":
        mortal.signal(signal.SIGSTOP)
    else:
        mortal.kill()
    with pytest.raises(RedisError):
        fleet.verify()
    failed_after = time.monotonic() - begun
    if ends == "during":
        fleet.go()
        fleet.wait("done", 3)
    fleet.settle(begun + 2.5 * 2 - time.monotonic())
    if how == "frozen":
        mortal.signal(signal.SIGCONT)
    else:
        mortal.start()
    if ends == "after":
        fleet.settle(4)
        fleet.go()
    acked = fleet.wait("acked", 3)
    fleet.settle(0.4)

    assert failed_after < 30
    assert {event["task"] for event in acked} == {task.id for task in tasks}
    assert [event["attempt"] for event in fleet.events("begun")] == [1, 1, 1]


@pytest.mark.promise("F7")
def test_row_07_claim_that_was_given_up_has_no_effect_later(make_fleet: MakeFleet, mortal: Server) -> None:
    fleet = make_fleet(mortal.url, redis_timeout=1)
    fleet.verify()
    fleet.verify()
    store = fleet.store()
    (item,) = store.claim("fleet", ["work"], 1).deliveries

    mortal.signal(signal.SIGSTOP)
    with pytest.raises(RedisError):
        store.claim("fleet", ["work"], 1)
    # The server comes to it when the time is over that the process waits for an answer.
    fleet.settle(0.6)
    mortal.signal(signal.SIGCONT)
    claims = [store.claim("fleet", ["work"], 1, reap=False) for _ in range(3)]

    found = [each for claim in claims for each in claim.deliveries]
    assert item.task_id not in {each.task_id for each in found}
    assert [(each.token, each.lost) for each in found] == [(1, 0)]


@pytest.mark.promise("F8")
def test_row_08_cut_subscriber_hears_again(fleet: Fleet) -> None:
    # Who does not hear again would run nothing for half a minute.
    worker = fleet.worker(poll=30)
    wait_until(lambda: listeners(fleet.redis) == {worker.pid})

    fleet.redis.client_kill_filter(_type="pubsub")
    task = fleet.verify()
    (acked,) = fleet.wait("acked")
    wait_until(lambda: listeners(fleet.redis) == {worker.pid})

    assert acked["task"] == task.id


class Resynced:
    """Engines that only tell when they are to make up for what was missed."""

    def __init__(self) -> None:
        self.lost: list[bool] = []

    def wake(self, task_id: str) -> None:
        raise AssertionError

    def post(self, task_id: str, method: str) -> None:
        raise AssertionError

    def resync(self, lost: bool) -> None:
        self.lost.append(lost)


@pytest.mark.promise("F8")
def test_row_08_half_open_link_is_noticed(mortal: Server) -> None:
    proxy = Proxy(mortal.url.removeprefix("unix://"))
    engines = Resynced()
    config = Config.read({"TASKFLOW_REDIS_URL": proxy.url, "TASKFLOW_REDIS_TIMEOUT": 0.3})
    listener = Listener(
        Connector(config, None, ""), Keys("taskflow", 0), "here", engines, Announcer(None, None, None),  # type: ignore[arg-type]
        ping=0.2, pong=0.2,
    )  # fmt: skip
    listener.start()
    heard = listener.wait_subscribed(5)

    proxy.forwards.clear()
    began = time.monotonic()
    wait_until(lambda: not listener.present)
    noticed_after = time.monotonic() - began
    proxy.forwards.set()
    wait_until(lambda: listener.present)
    listener.stop(2)
    proxy.close()

    assert heard
    assert noticed_after < 5 * (0.2 + 0.2)
    assert engines.lost == [False, True]
    assert listener_module._PING + listener_module._PONG <= 15


@pytest.mark.promise("F11")
def test_row_11_process_frozen_past_its_lease(fleet: Fleet) -> None:
    workers = {worker.pid: worker for worker in (fleet.worker(), fleet.worker())}
    fleet.verify({"do": "wait"})
    (first,) = fleet.wait("begun")
    frozen = workers[first["pid"]]

    with stopped(frozen):
        second = fleet.wait("begun", 2)[1]
        fleet.go()
        fleet.wait("acked")
    fleet.wait("done", 2)
    wait_until(lambda: "its delivery was lost or taken" in fleet.log(frozen))

    assert second["pid"] != first["pid"]
    assert second["delivery"] == first["delivery"]
    assert [event["pid"] for event in fleet.events("acked")] == [second["pid"]]


@pytest.mark.promise("F12")
def test_row_12_failures_are_repeated_on_schedule(fleet: Fleet) -> None:
    fleet.worker()

    tasks = {data: fleet.verify(data).id for data in ("fail", "exit", "retry", "reject")}
    dead = {event["task"]: event["error"] for event in fleet.wait("dead", 4)}

    begun: dict[str, list[float]] = {task_id: [] for task_id in tasks.values()}
    for event in fleet.events("begun"):
        begun[event["task"]].append(event["at"])
    for data, delay in (("fail", 0.3), ("exit", 0.3), ("retry", 0.6)):
        first, second = begun[tasks[data]]
        assert delay <= second - first <= delay * 1.1 + 0.2 + 2
    assert len(begun[tasks["reject"]]) == 1
    assert dead == {
        tasks["fail"]: "as told",
        tasks["exit"]: "3",
        tasks["retry"]: "retry",
        tasks["reject"]: "as told",
    }


@pytest.mark.promise("F13")
def test_row_13_callback_that_blocks_for_ever(fleet: Fleet) -> None:
    worker = fleet.worker(callback_threads=1, drain=0.3)
    stuck = fleet.verify("wait", timeout=0.4)
    fleet.wait("begun")

    served = fleet.verify()
    (acked,) = fleet.wait("acked")
    worker.terminate()
    status = worker.wait(60)

    assert acked["task"] == served.id
    assert counts(fleet, stuck)[0] >= 1
    assert "timed out after 0.4 s" in fleet.log(worker)
    assert status == 0


def pid_of_server(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/pid", timeout=WITHIN) as response:
        return int(response.read())


@pytest.mark.promise("F14")
def test_row_14_gevent_has_one_listener_in_each_worker(fleet: Fleet) -> None:
    master = fleet.start(
        "gunicorn", "-w", "2", "-k", "gevent", "-b", "127.0.0.1:0", "survivor:create_app()",
        until="Booting worker(?s:.*)Booting worker",
    )  # fmt: skip
    port = port_of(master.pid)
    pids: set[int] = set()

    wait_until(lambda: pids.add(pid_of_server(port)) or len(pids) == 2)  # type: ignore[func-returns-value]
    heard = wait_until(lambda: len(listeners(fleet.redis)) == 2 and listeners(fleet.redis))
    task = fleet.verify()

    assert heard == pids
    assert {event["pid"] for event in fleet.wait("signal", 2)} == pids
    assert [event["task"] for event in fleet.wait("acked")] == [task.id]
    assert len(fleet.events("begun")) == 1


@pytest.mark.promise("F14")
def test_row_14_reloader_has_one_listener_in_the_child(fleet: Fleet, tmp_path: Path) -> None:
    watched = tmp_path / "watched.py"
    watched.touch()
    parent = fleet.start(
        "flask", "--app", "survivor", "run", "--debug", "--port", "0", "--extra-files", str(watched),
        until=r"Running on http://127.0.0.1:(\d+)(?s:.*)Debugger PIN",
    )  # fmt: skip

    def serving() -> int:
        found = re.findall(r"Running on http://127.0.0.1:(\d+)", fleet.log(parent))
        return pid_of_server(int(found[-1]))

    first = serving()
    before = wait_until(lambda: listeners(fleet.redis))
    watched.write_text("x = 1\n")
    wait_until(lambda: fleet.log(parent).count("Debugger PIN") == 2)
    second = serving()
    wait_until(lambda: listeners(fleet.redis) == {second})
    fleet.verify()

    assert before == {first}
    assert parent.pid not in (first, second)
    assert first != second
    assert [event["pid"] for event in fleet.wait("acked")] == [second]


@pytest.mark.promise("F14")
def test_row_14_waitress_has_one_listener(fleet: Fleet) -> None:
    process = fleet.start(
        "waitress", "--listen", "127.0.0.1:0", "--call", "survivor:create_app", until="Serving on"
    )

    pid = pid_of_server(port_of(process.pid))
    heard = wait_until(lambda: listeners(fleet.redis))
    fleet.verify()

    assert heard == {pid} == {process.pid}
    assert [event["pid"] for event in fleet.wait("acked")] == [pid]


@pytest.mark.promise("F15")
def test_row_15_sigterm_to_gunicorn_lets_the_callback_finish(fleet: Fleet) -> None:
    master = fleet.start(
        "gunicorn", "-w", "1", "-b", "127.0.0.1:0", "survivor:create_app()", until="Booting worker"
    )
    pid_of_server(port_of(master.pid))
    fleet.verify("wait")
    (begun,) = fleet.wait("begun")

    master.terminate()
    wait_until(lambda: "Handling signal: term" in fleet.log(master))
    fleet.go()

    assert master.wait(60) == 0
    assert [event["pid"] for event in fleet.events("acked")] == [begun["pid"]]
    assert nothing_is_left(fleet.redis)


@pytest.mark.promise("F18")
@pytest.mark.parametrize(
    "number", [pytest.param(6_000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.chaos)]
)
@pytest.mark.parametrize("kind", ["ready", "delay", "lease"])
def test_row_18_masses_keep_their_order_and_block_nothing(fleet: Fleet, kind: str, number: int) -> None:
    task = fleet.verify(priority=-1)
    inside.fill(fleet.redis, task, kind, number, due=0 if kind == "ready" else 1)
    (ready,) = fleet.redis.scan_iter(match="*:h:work:ready")
    moves = [fleet.redis.zcard(ready)]
    store = fleet.store()
    found: list[str] = []
    asked = []

    while len(found) < 4 * 16:
        before = commands(fleet.redis)
        claim = store.claim("fleet", ["work"], 16)
        asked.append(commands(fleet.redis) - before)
        found += [each.task_id for each in claim.deliveries]
        moves.append(fleet.redis.zcard(ready))
        assert claim.again or claim.deliveries

    (meta,) = fleet.redis.scan_iter(match="*:h:work:meta")
    lines = [line.decode().split() for line in fleet.redis.hmget(meta, found)]
    assert [(int(line[2]), int(line[1], 16)) for line in lines] == [(9, 9 + 10 * i) for i in range(64)]
    # No claim moves more than some hundreds, or asks more than a few commands for each, however many wait.
    assert max(after - before for before, after in pairwise(moves)) <= 500
    assert max(asked) <= 4 * 500


@pytest.mark.promise("F20")
@pytest.mark.parametrize("kind", ["ready", "delay", "lease", "dead", "meta", "body", "error"])
def test_row_20_key_of_a_wrong_type_stops_one_callback_only(
    stage: Stage, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    ran = threading.Event()
    stage.taskflow.on_task_verified("q", name="bad")(lambda task: None)
    stage.taskflow.on_task_verified("q", name="good")(lambda task: ran.set())
    stage.app(lease=1, poll=0.05)
    stage.verified()
    key = inside.key_of("q", "bad", kind)
    stage.redis.delete(key)
    stage.redis.set(key, "of a wrong type")

    stage.taskflow.start()
    good_ran = ran.wait(WITHIN)
    ran.clear()
    began = time.monotonic()
    stage.redis.config_resetstat()
    again = ran.wait(0.3)
    scripts = stage.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    taken = time.monotonic() - began

    assert good_ran
    assert not again
    wait_until(lambda: "Callback bad of queue q stands still" in caplog.text)
    assert caplog.text.count("Callback bad of queue q stands still") == 1
    assert scripts <= 4 + taken / 0.05


@pytest.mark.promise("F20")
@pytest.mark.parametrize("name", ["handlers", "pending", "recipients:expiry"])
def test_row_20_spoiled_queue_stops_no_other(
    stage: Stage, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    ran = threading.Event()
    stage.taskflow.on_task_verified("a", name="bad")(lambda task: None)
    stage.taskflow.on_task_verified("b", name="good")(lambda task: ran.set())
    stage.app(lease=1, poll=0.05)
    keys = current_service().keys
    stage.redis.set(*keys.of(keys.tag("a"), name), "of a wrong type")

    stage.taskflow.start()
    stage.verified("b")

    assert ran.wait(WITHIN)
    # Another thread may log it a little later.
    wait_until(lambda: "Queue a stands still" in caplog.text)
    assert caplog.text.count("Queue a stands still") == 1
    assert "Callbacks wait for Redis" not in caplog.text


@pytest.mark.promise("F20")
def test_row_20_stray_member_takes_no_delivery_along(fleet: Fleet) -> None:
    task = fleet.verify()
    (ready,) = fleet.redis.scan_iter(match="*:h:work:ready")
    fleet.redis.zadd(ready, {f"{0:016x}:{task.id}": -5, "junk": -5, b"\xff" * 40: -5})

    found = fleet.store().claim("fleet", ["work"], 8).deliveries

    assert [item.task_id for item in found] == [task.id]
    assert fleet.redis.zcard(ready) == 0


@pytest.mark.promise("F20")
@pytest.mark.parametrize("field", ["created", "expires", "verified", "status", "method"])
@pytest.mark.parametrize("value", ["9" * 30, "-1" + "0" * 17, "nan", "", "x"])
def test_row_20_poisoned_body_spoils_its_own_delivery_only(fleet: Fleet, field: str, value: str) -> None:
    bad, good = fleet.verify(), fleet.verify()
    (body,) = fleet.redis.scan_iter(match="*:h:work:body")
    stored = fleet.redis.hget(body, bad.id).decode()
    changed = re.sub(
        rf"{len(field)}:{field}(\d+):[A-Z0-9]+?(?=\d+:|$)",
        f"{len(field)}:{field}{len(value)}:{value}",
        stored,
    )
    fleet.redis.hset(body, bad.id, changed)

    found = fleet.store().claim("fleet", ["work"], 8).deliveries

    assert changed != stored
    assert [item.task_id for item in found] == [bad.id, good.id]
    assert found[1].task is not None


@pytest.mark.promise("F21")
def test_row_21_engine_works_when_memory_is_full(fleet: Fleet) -> None:
    for _ in range(4):
        fleet.verify()
    store = fleet.store()
    fleet.redis.config_set("maxmemory", 1)
    try:
        one, two, three = store.claim("fleet", ["work"], 3).deliveries
        lost = store.extend("fleet", [one, two, three])
        failed = [store.end(End(two, "fail")), store.end(End(three, "bury"))]
        reports = [store.ack(one), *failed]
        (four,) = store.claim("fleet", ["work"], 1).deliveries
        released = store.release(four)
    finally:
        fleet.redis.config_set("maxmemory", 0)

    assert lost == []
    assert reports == [True] * 3
    assert released


@pytest.mark.promise("F21")
@pytest.mark.parametrize("also", ["schedule", "end"])
def test_row_21_new_process_runs_what_waits_when_memory_is_full(stage: Stage, also: str) -> None:
    """Also if it has a schedule, whose tick wants memory, or follows an end, which is said in Redis."""
    if also == "schedule":
        stage.taskflow.on_schedule("@hourly", name="hourly")(lambda tick: None)
    else:
        stage.taskflow.on_task_ended("others", statuses=["LOCKED"])(lambda task: None)
    work = stage.work()
    stage.app()
    stage.verified()
    stage.redis.config_set("maxmemory", 1)
    try:
        stage.taskflow.start()
        begun = work.begun.acquire(timeout=60)
    finally:
        stage.redis.config_set("maxmemory", 0)

    assert begun


@pytest.mark.promise("F21")
def test_row_21_right_code_is_taken_when_memory_is_full(stage: Stage) -> None:
    """Also where its recipient has another code, which its step counts anew."""
    stage.work()
    stage.app()
    stage.verified()
    stage.box.clear()
    one, _ = (
        stage.taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})
        for _ in range(2)
    )
    stage.redis.config_set("maxmemory", 1)
    try:
        verified = stage.taskflow.verify(one.id, "EMAIL", stage.box[0].otp)
    finally:
        stage.redis.config_set("maxmemory", 0)

    assert verified.status == "SUCCESS"


@pytest.mark.promise("F21")
def test_row_21_scripts_flushed_in_a_loop(fleet: Fleet) -> None:
    fleet.worker()
    over = threading.Event()

    def flush() -> None:
        with Redis.from_url(fleet.url) as client:
            while not over.wait(0.002):
                client.script_flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        tasks = [fleet.verify() for _ in range(20)]
        fleet.wait("acked", 20)
    finally:
        over.set()
        thread.join()

    assert sorted(event["task"] for event in fleet.events("begun")) == sorted(task.id for task in tasks)


@pytest.mark.promise("F11")
def test_row_11_claim_whose_reply_came_after_its_lease_runs_nothing(stage: Stage, proxy: Proxy) -> None:
    ran: list[str] = []
    ran_elsewhere: list[str] = []
    elsewhere = TaskFlow()
    elsewhere.register_strategy("EMAIL")(OutboxStrategy())
    elsewhere.on_task_verified("q", name="work")(lambda task: ran_elsewhere.append(task.id))
    stage.taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    succeeded = stage.hear(callback_succeeded)
    stage.start(redis_url=proxy.url, redis_timeout=5, lease=0.5, poll=30)

    first = stage.verified()
    succeeded.next()
    # The end of an attempt makes the engine claim once more.
    threading.Event().wait(0.2)
    proxy.hold_next_reply_to = inside.sha_of("deliveries/turn")
    second = stage.verified()
    held = proxy.held.wait(WITHIN)
    threading.Event().wait(0.6)
    with stage.make_app(elsewhere, lease=0.5).app_context():
        elsewhere.run_due()
    proxy.released.set()
    threading.Event().wait(0.2)

    assert held
    assert ran == [first.id]
    assert ran_elsewhere == [second.id]


@pytest.mark.promise("F21")
def test_row_21_reply_to_a_verification_is_lost(stage: Stage, proxy: Proxy) -> None:
    runs: list[str] = []
    stage.taskflow.on_task_verified("q", name="work")(lambda task: runs.append(task.id))
    stage.app(redis_url=proxy.url)
    task = stage.add()
    with pytest.raises(WrongCode):
        # The server has the script from here on.
        stage.taskflow.verify(task.id, "EMAIL", other(stage.box[-1].otp))
    proxy.cut_next_reply_to = b":bell"

    with pytest.raises(RedisError):
        stage.verify(task)
    again = refused(CodeRepeated, stage.verify, task).task
    stage.run()

    assert again
    assert again.status is Status.SUCCESS, "whoever asks again learns that the code ended the task"
    assert proxy.cuts == 1
    assert runs == [task.id]


@pytest.mark.promise("F21")
def test_row_21_reply_to_an_ack_is_lost(stage: Stage, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []
    succeeded = stage.hear(callback_succeeded)

    @stage.taskflow.on_task_verified("q", name="work")
    def work(task: Task[Any]) -> None:
        runs.append(task.id)
        if len(runs) == 2:
            proxy.cut_next_reply_to = inside.sha_of("deliveries/turn")

    stage.start(redis_url=proxy.url)
    tasks = []
    for _ in range(2):
        tasks.append(stage.verified().id)
        assert succeeded.tasks() == tasks[-1:]

    assert proxy.cuts == 1
    assert runs == tasks
    assert "may run twice" not in caplog.text


@pytest.mark.promise("F21")
def test_row_21_reply_to_a_claim_is_lost(stage: Stage, proxy: Proxy) -> None:
    """What it leased runs at once, uncounted, and what runs beside it runs once."""
    goes_on = threading.Event()
    work = stage.work(lambda task: None, lambda task: goes_on.wait(WITHIN))
    stage.start(redis_url=proxy.url, callback_threads=4)
    wait_until(lambda: current_service().runtime.present_owner != NOBODY)
    stage.verified()
    wait_until(lambda: work.begun.acquire(blocking=False) and not stage.keys("lease"))
    stage.verified()
    assert work.begun.acquire(timeout=WITHIN)

    proxy.cut_next_reply_to = inside.sha_of("deliveries/turn")
    third = stage.verified()
    begun = work.begun.acquire(timeout=WITHIN)
    goes_on.set()
    wait_until(lambda: not stage.keys("lease"))

    assert begun
    assert proxy.cuts == 1
    assert work.attempts == [1, 1, 1]
    assert "lost" not in [entry.event for entry in stage.taskflow.get_course(third.id)]


@pytest.mark.promise("F21")
def test_row_21_reply_to_the_report_of_a_failure_is_lost(stage: Stage, proxy: Proxy) -> None:
    dead = stage.hear(callback_dead)

    @stage.taskflow.on_task_verified("q", name="work", max_attempts=1)
    def work(task: Task[Any]) -> None:
        if task.data == "lost":
            proxy.cut_next_reply_to = inside.sha_of("deliveries/turn")
        raise ValueError("no")

    stage.start(redis_url=proxy.url)
    tasks = []
    for data in ("first", "lost"):
        tasks.append(stage.verified(data=data).id)
        assert dead.tasks() == tasks[-1:]

    assert proxy.cuts == 1
    assert len(stage.taskflow.operations.dead()) == 2


@pytest.mark.chaos
@pytest.mark.parametrize(
    "words",
    [
        ("chaos", "--minutes", "0.33", "--deliveries", "200"),
        ("endings", "--tasks", "100", "--races", "50", "--kills", "4"),
        ("ticks", "--ticks", "500", "--tasks", "100", "--processes", "3"),
    ],
    ids=["chaos", "endings", "ticks"],
)
def test_benchmark_for_a_short_time_loses_nothing(words: tuple[str, ...]) -> None:
    name, *options = words
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]

    result = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )

    assert result.returncode == 0, result.stdout + result.stderr
