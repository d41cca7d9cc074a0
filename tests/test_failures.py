"""The failure matrix: what must happen when processes, Redis and what stands in it fail.

Each test bears the number of its row. Rows that other modules show as well, or alone: 1 and 15 in
``test_worker.py``; 8, 9 and 16 in ``test_listener.py``; 10, 12, 13, 17 and 20 in ``test_callbacks.py``; 14 in
``test_worker.py`` (gunicorn) and ``test_listener.py`` (forks); 19 in ``test_lifecycle.py``; 21 in
``test_store.py``; 23 is ``no_thread_is_left``, which holds after every test. ``benchmarks/chaos.py`` mixes
the faults for minutes.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp
from fleet_support import WITHIN, Fleet, Proxy, listeners, port_of, stopped, wait_until
from redis import Redis, RedisError

from benchmarks.chaos import Server, own_server
from flask_taskflow import OutboxStrategy, Task, TaskFlow, TaskNotPending, WrongCode, callback_succeeded
from flask_taskflow import _listener as listener_module
from flask_taskflow._config import Config
from flask_taskflow._connect import Connector
from flask_taskflow._listener import Listener
from flask_taskflow.testing import Outbox, outbox

pytestmark = pytest.mark.slow

MakeFleet = Callable[[str], Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFleet]:
    fleets: list[Fleet] = []
    monkeypatch.setenv("SURVIVOR", str(tmp_path))

    def make(url: str) -> Fleet:
        fleets.append(Fleet(url, tmp_path))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet: MakeFleet, redis: Redis, server: str) -> Fleet:
    """A fleet on the session's server."""
    return make_fleet(server)


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that the test may kill."""
    with own_server("--appendfsync", "everysec") as server:
        yield server


def counts(fleet: Fleet, task: Task[Any]) -> tuple[int, int]:
    """Return failures and losses of a delivery."""
    with fleet.app.app_context():
        placed = fleet.app.extensions["taskflow"]._service().operations.find("fleet", "work", task.id)
    assert placed is not None
    return placed.failures, placed.lost


def nothing_is_left(redis: Any) -> bool:
    return not any(list(redis.scan_iter(match=f"*:{kind}")) for kind in ("ready", "delay", "lease", "meta"))


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
    assert second["at"] - killed < 1 + 0.2 + 1
    assert {first["pid"], second["pid"]} == {worker.pid for worker in workers}
    assert failures_and_losses == (0, 1)


def test_row_02_kill_between_claim_and_run(fleet: Fleet) -> None:
    task = fleet.verify()
    (item,) = fleet.store().claim("fleet", ["work"], 1, owner="gone:1:0").deliveries

    fleet.start(
        "flask", "--app", "survivor", "taskflow", "worker",
        until="Serving fleet", environment={"SURVIVOR_ATTEMPTS": "1"}, lease=30, poll=0.2,
    )  # fmt: skip
    (begun,) = fleet.wait("begun", within=5)

    assert (item.task_id, item.token) == (task.id, 1)
    assert begun["attempt"] == 2
    assert fleet.wait("acked")
    assert fleet.events("dead") == []


def test_row_03_kill_between_callback_and_ack(fleet: Fleet) -> None:
    fleet.worker(), fleet.worker()

    fleet.verify("kill")

    first, second = fleet.wait("begun", 2)
    assert fleet.wait("acked")
    assert [event["event"] for event in fleet.events("done")] == ["done"] * 2
    assert first["delivery"] == second["delivery"]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["pid"] != second["pid"]


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
            server.kill()
        fleet.settle(1.2)
        server.start()
        up = time.monotonic()
        wait_until(lambda: len(listeners(fleet.redis)) == 2, within=5)
        fleet.go()
        fresh = fleet.verify()
        acked = fleet.wait("acked", 10, within=up + 5 - time.monotonic())
        took = time.monotonic() - down

    assert {event["task"] for event in acked} == {task.id for task in [*tasks, fresh]}
    assert len(fleet.events("begun")) == 10
    for worker, lines in zip(workers, before, strict=True):
        assert fleet.log(worker).count("\n") - lines <= 2 * took, fleet.log(worker)
        assert "Traceback" not in fleet.log(worker)


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


def test_row_06_redis_back_empty(make_fleet: MakeFleet, mortal: Server) -> None:
    fleet = make_fleet(mortal.url)
    worker = fleet.worker()
    fleet.verify("wait")
    fleet.wait("begun")

    mortal.kill()
    mortal.wipe()
    mortal.start()
    wait_until(lambda: list(fleet.redis.scan_iter(match="*:handlers")), within=5)
    listed = fleet.redis.hvals("taskflow:queues")
    fleet.go()
    wait_until(lambda: "its delivery was lost or taken" in fleet.log(worker))
    fresh = fleet.verify()

    assert [event["task"] for event in fleet.wait("acked")] == [fresh.id]
    assert listed == [b"fleet"]
    assert "Traceback" not in fleet.log(worker)


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
    fleet = make_fleet(mortal.url)
    for _ in range(2):
        fleet.worker(lease=0.6, poll=0.1, callback_threads=2)
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
    fleet.settle(begun + 2.5 * 0.6 - time.monotonic())
    if how == "frozen":
        mortal.signal(signal.SIGCONT)
    else:
        mortal.start()
    if ends == "after":
        fleet.settle(1.2)
        fleet.go()
    acked = fleet.wait("acked", 3)
    fleet.settle(0.4)

    assert failed_after < 1.5
    assert {event["task"] for event in acked} == {task.id for task in tasks}
    assert [event["attempt"] for event in fleet.events("begun")] == [1, 1, 1]


def test_row_07_claim_that_was_given_up_has_no_effect_later(make_fleet: MakeFleet, mortal: Server) -> None:
    fleet = make_fleet(mortal.url)
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


def test_row_08_cut_subscriber_hears_again(fleet: Fleet) -> None:
    worker = fleet.worker(poll=30)
    wait_until(lambda: listeners(fleet.redis) == {worker.pid})

    cut = time.monotonic()
    fleet.redis.client_kill_filter(_type="pubsub")
    task = fleet.verify()
    (acked,) = fleet.wait("acked", within=2)
    wait_until(lambda: listeners(fleet.redis) == {worker.pid}, within=cut + 1 - time.monotonic())

    assert acked["task"] == task.id


def test_row_08_half_open_link_is_noticed(mortal: Server) -> None:
    proxy = Proxy(mortal.url.removeprefix("unix://"))
    resynced: list[bool] = []
    config = Config.read({"TASKFLOW_REDIS_URL": proxy.url, "TASKFLOW_REDIS_TIMEOUT": 0.3})
    listener = Listener(
        Connector(config, None, ""), "bell", "here", "listener", None, lambda task_id: None,  # type: ignore[arg-type]
        lambda task_id, method: None, resynced.append, ping=0.2, pong=0.2,
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
    assert noticed_after < 0.2 + 0.2 + 0.5
    assert resynced == [False, True]
    assert listener_module._PING + listener_module._PONG <= 15


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


def test_row_12_failures_are_repeated_on_schedule(fleet: Fleet) -> None:
    fleet.worker()

    tasks = {data: fleet.verify(data).id for data in ("fail", "exit", "retry", "reject")}
    dead = {event["task"]: event["error"] for event in fleet.wait("dead", 4)}

    begun: dict[str, list[float]] = {task_id: [] for task_id in tasks.values()}
    for event in fleet.events("begun"):
        begun[event["task"]].append(event["at"])
    for data, delay in (("fail", 0.3), ("exit", 0.3), ("retry", 0.6)):
        first, second = begun[tasks[data]]
        assert delay <= second - first <= delay * 1.1 + 0.2 + 0.3
    assert len(begun[tasks["reject"]]) == 1
    assert dead == {
        tasks["fail"]: "as told",
        tasks["exit"]: "3",
        tasks["retry"]: "retry",
        tasks["reject"]: "as told",
    }


def test_row_13_callback_that_blocks_for_ever(fleet: Fleet) -> None:
    worker = fleet.worker(callback_threads=1, drain=0.3)
    stuck = fleet.verify("wait", timeout=0.4)
    fleet.wait("begun")

    other = fleet.verify()
    (acked,) = fleet.wait("acked", within=3)
    worker.terminate()
    status = worker.wait(5)

    assert acked["task"] == other.id
    assert counts(fleet, stuck)[0] >= 1
    assert "timed out after 0.4 s" in fleet.log(worker)
    assert status == 0


def pid_of_server(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/pid", timeout=WITHIN) as response:
        return int(response.read())


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


def test_row_14_waitress_has_one_listener(fleet: Fleet) -> None:
    process = fleet.start(
        "waitress", "--listen", "127.0.0.1:0", "--call", "survivor:create_app", until="Serving on"
    )

    pid = pid_of_server(port_of(process.pid))
    heard = wait_until(lambda: listeners(fleet.redis))
    fleet.verify()

    assert heard == {pid} == {process.pid}
    assert [event["pid"] for event in fleet.wait("acked")] == [pid]


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

    assert master.wait(10) == 0
    assert [event["pid"] for event in fleet.events("acked")] == [begun["pid"]]
    assert nothing_is_left(fleet.redis)


def fill(redis: Any, task: Task[Any], kind: str, count: int, *, due: int = 0) -> None:
    """Copy a delivery; the copies have priorities 0 to 9, ever again, and stand in ``kind``."""
    (meta,) = redis.scan_iter(match="*:h:work:meta")
    key = meta.decode().removesuffix("meta")
    line = redis.hget(meta, task.id).decode().split()
    body = redis.hget(f"{key}body", task.id)
    for start in range(0, count, 2000):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start + 2, start + 2002):
            identity = task.id[:8] + f"{number:026d}".translate(str.maketrans("0123456789", "abcdefghij"))
            priority = number % 10
            line[1:3] = f"{number:016x}", str(priority)
            pipeline.hset(f"{key}meta", identity, " ".join(line))
            pipeline.hset(f"{key}body", identity, body)
            pipeline.zadd(f"{key}{kind}", {f"{number:016x}:{identity}": due or -priority})
        pipeline.execute()


@pytest.mark.parametrize(
    "number", [pytest.param(6_000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.chaos)]
)
@pytest.mark.parametrize("kind", ["ready", "delay", "lease"])
def test_row_18_masses_keep_their_order_and_block_nothing(fleet: Fleet, kind: str, number: int) -> None:
    task = fleet.verify(priority=-1)
    fill(fleet.redis, task, kind, number, due=0 if kind == "ready" else 1)
    fleet.redis.config_set("slowlog-log-slower-than", 10_000)
    fleet.redis.slowlog_reset()
    store = fleet.store()
    found: list[str] = []

    while len(found) < 4 * 16:
        claim = store.claim("fleet", ["work"], 16)
        found += [each.task_id for each in claim.deliveries]
        assert claim.again or claim.deliveries

    (meta,) = fleet.redis.scan_iter(match="*:h:work:meta")
    lines = [line.decode().split() for line in fleet.redis.hmget(meta, found)]
    assert [(int(line[2]), int(line[1], 16)) for line in lines] == [(9, 9 + 10 * i) for i in range(64)]
    assert [entry["duration"] for entry in fleet.redis.slowlog_get()] == []


@pytest.mark.parametrize("kind", ["ready", "delay", "lease", "dead", "meta", "body", "error"])
def test_row_20_key_of_a_wrong_type_stops_one_callback_only(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Any, caplog: Any, kind: str
) -> None:
    ran = threading.Event()
    taskflow.on_task_verified("q", name="bad")(lambda task: None)
    taskflow.on_task_verified("q", name="good")(lambda task: ran.set())
    with make_app(lease=1, poll=0.05).app_context():
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        taskflow.verify(task.id, "EMAIL", box[-1].otp)
        (ready,) = redis.scan_iter(match="*:h:bad:ready")
        key = ready.decode().removesuffix("ready") + kind
        redis.delete(key)
        redis.set(key, "of a wrong type")

        taskflow.start()
        good_ran = ran.wait(5)
        redis.config_resetstat()
        again = threading.Event().wait(0.3)
        scripts = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
        taskflow.stop()

    assert good_ran
    assert not again
    assert caplog.text.count("Callback bad of queue q stands still") == 1
    assert scripts <= 10


@pytest.mark.parametrize("name", ["handlers", "pending", "recipients:expiry"])
def test_row_20_spoiled_queue_stops_no_other(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, redis: Any, caplog: Any, name: str
) -> None:
    ran = threading.Event()
    taskflow.on_task_verified("a", name="bad")(lambda task: None)
    taskflow.on_task_verified("b", name="good")(lambda task: ran.set())
    with make_app(lease=1, poll=0.05).app_context():
        keys = taskflow._service().keys
        (key,) = keys.of(keys.tag("a"), name)
        redis.set(key, "of a wrong type")

        taskflow.start()
        task = taskflow.add_task("b", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        taskflow.verify(task.id, "EMAIL", box[-1].otp)
        good_ran = ran.wait(5)
        taskflow.stop()

    assert good_ran
    assert caplog.text.count("Queue a stands still") == 1
    assert "Callbacks wait for Redis" not in caplog.text


def test_row_20_stray_member_takes_no_delivery_along(fleet: Fleet) -> None:
    task = fleet.verify()
    (ready,) = fleet.redis.scan_iter(match="*:h:work:ready")
    fleet.redis.zadd(ready, {f"{0:016x}:{task.id}": -5, "junk": -5, b"\xff" * 40: -5})

    found = fleet.store().claim("fleet", ["work"], 8).deliveries

    assert [item.task_id for item in found] == [task.id]
    assert fleet.redis.zcard(ready) == 0


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


def test_row_21_engine_works_when_memory_is_full(fleet: Fleet) -> None:
    for _ in range(4):
        fleet.verify()
    store = fleet.store()
    fleet.redis.config_set("maxmemory", 1)
    try:
        one, two, three = store.claim("fleet", ["work"], 3).deliveries
        lost = store.extend("fleet", [one, two, three])
        reports = [store.ack(one), store.fail(two, 0, "failed"), store.bury(three, "dead")]
        (four,) = store.claim("fleet", ["work"], 1).deliveries
        released = store.release(four)
    finally:
        fleet.redis.config_set("maxmemory", 0)

    assert lost == []
    assert reports == [True] * 3
    assert released


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


@pytest.fixture
def proxy(redis: Redis, server: str) -> Iterator[Proxy]:
    proxy = Proxy(server.removeprefix("unix://"))
    yield proxy
    proxy.close()


def sha_of(taskflow: TaskFlow, step: str) -> bytes:
    """Return what a running engine's step bears on the wire."""
    engine = taskflow._service().runtime._engine
    assert engine is not None
    return str(engine._store._scripts._scripts[step].sha).encode()


def test_row_11_claim_whose_reply_came_after_its_lease_runs_nothing(
    make_app: MakeApp, taskflow: TaskFlow, proxy: Proxy
) -> None:
    ran: list[str] = []
    ran_elsewhere: list[str] = []
    acked = threading.Event()
    other = TaskFlow()
    other.register_strategy("EMAIL")(OutboxStrategy())
    taskflow.on_task_verified("q", name="work")(lambda task: ran.append(task.id))
    other.on_task_verified("q", name="work")(lambda task: ran_elsewhere.append(task.id))

    def add_and_verify(address: str) -> str:
        with outbox(other) as box:
            task = other.add_task("q", allowed_methods=["EMAIL"], recipient={"email": address})
            return other.verify(task.id, "EMAIL", box[-1].otp).id

    def on_success(app: Any, **_: Any) -> None:
        acked.set()

    slow_app = make_app(redis_url=proxy.url, redis_timeout=5, lease=0.5, poll=30)
    with make_app(other, lease=0.5).app_context(), callback_succeeded.connected_to(on_success):
        with slow_app.app_context():
            taskflow.start()
        first = add_and_verify("first@example.com")
        acked.wait(WITHIN)
        # The end of an attempt makes the engine claim once more.
        threading.Event().wait(0.2)
        with slow_app.app_context():
            proxy.hold_next_reply_to = sha_of(taskflow, "claim")
        second = add_and_verify("second@example.com")
        held = proxy.held.wait(WITHIN)
        threading.Event().wait(0.6)
        other.run_due()
        proxy.released.set()
        threading.Event().wait(0.2)
        with slow_app.app_context():
            taskflow.stop()

    assert held
    assert ran == [first]
    assert ran_elsewhere == [second]


def test_row_21_reply_to_a_verification_is_lost(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, proxy: Proxy
) -> None:
    runs: list[str] = []
    taskflow.on_task_verified("q", name="work")(lambda task: runs.append(task.id))
    with make_app(redis_url=proxy.url).app_context():
        task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "a@example.com"})
        with pytest.raises(WrongCode):
            # The server has the script from here on.
            taskflow.verify(task.id, "EMAIL", f"{(int(box[-1].otp) + 1) % 10**6:06}")
        proxy.cut_next_reply_to = b":bell"

        with pytest.raises(RedisError):
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
        with pytest.raises(TaskNotPending):
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
        taskflow.run_due()

    assert proxy.cuts == 1
    assert runs == [task.id]


def test_row_21_reply_to_an_ack_is_lost(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox, proxy: Proxy, caplog: Any
) -> None:
    runs: list[str] = []
    succeeded = threading.Event()

    @taskflow.on_task_verified("q", name="work")
    def work(task: Task[Any]) -> None:
        runs.append(task.id)
        if len(runs) == 2:
            proxy.cut_next_reply_to = sha_of(taskflow, "ack")

    def on_success(app: Any, **_: Any) -> None:
        if len(runs) == 2:
            succeeded.set()

    with make_app(redis_url=proxy.url).app_context(), callback_succeeded.connected_to(on_success):
        taskflow.start()
        for number in range(2):
            address = {"email": f"{number}@example.com"}
            task = taskflow.add_task("q", allowed_methods=["EMAIL"], recipient=address)
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
            wait_until(lambda: len(runs) == number + 1)  # noqa: B023
        told = succeeded.wait(5)
        taskflow.stop()

    assert told
    assert proxy.cuts == 1
    assert len(runs) == 2
    assert "may run twice" not in caplog.text


@pytest.mark.chaos
def test_chaos_for_a_short_time_loses_nothing() -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--minutes", "0.33", "--deliveries", "200"]

    result = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=150
    )

    assert result.returncode == 0, result.stdout + result.stderr
