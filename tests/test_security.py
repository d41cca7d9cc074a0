"""What an attacker meets: rows of ``docs/security.md`` that no other file shows with the row's numbers."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import hmac
import io
import logging
import pickle
import smtplib
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from email.message import EmailMessage
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest
from aiosmtpd.smtp import SMTP
from blinker import NamedSignal
from conftest import SECRET_KEY, MakeApp
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from redis import Redis, RedisError
from task_support import EMAIL, PHONE, add, at_once, in_context, other

import flask_taskflow
from flask_taskflow import (
    BaseStrategy,
    Delivery,
    OutboxStrategy,
    Status,
    Task,
    TaskFlow,
    current_delivery,
    signals,
)
from flask_taskflow._otp import OTP, Keyring
from flask_taskflow.errors import (
    InvalidTask,
    MethodNotAllowed,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    TaskLocked,
    TaskNotPending,
    TaskTampered,
    WrongCode,
)
from flask_taskflow.testing import Outbox, redis_server, travel

PACKAGE = Path(flask_taskflow.__file__).parent


def task_key(redis: Redis, task: Task[Any]) -> str:
    (key,) = cast(list[bytes], redis.keys(f"*task:{task.id}"))
    return key.decode()


def everything(redis: Redis) -> list[bytes]:
    """Every string in Redis: names, fields, members, values."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": lambda key: [redis.get(key)],
        b"hash": lambda key: [part for pair in redis.hgetall(key).items() for part in pair],
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"set": lambda key: list(redis.smembers(key)),
        b"list": lambda key: redis.lrange(key, 0, -1),
    }
    keys = cast(list[bytes], redis.keys("*"))
    return [*keys, *(part for key in keys for part in read[cast(bytes, redis.type(key))](key))]


def disguises(code: str) -> dict[str, bytes]:
    """A code in the forms that people store codes in, and take for safe."""
    raw = code.encode()
    forms = {"code": raw, "reversed": raw[::-1], "base64": base64.b64encode(raw).rstrip(b"=")}
    forms |= {"base32": base64.b32encode(raw).rstrip(b"="), "hex": raw.hex().encode()}
    forms |= {"number": str(int(code)).encode(), "hex number": f"{int(code):x}".encode()}
    for order in ("big", "little"):
        forms[f"{order} endian"] = int(code).to_bytes(8, order)
    for name in ("md5", "sha1", "sha256", "sha512", "blake2b"):
        digest = hashlib.new(name, raw).digest()
        forms |= {name: digest, f"{name} hex": digest.hex().encode()}
        forms[f"{name} base64"] = base64.b64encode(digest).rstrip(b"=")
    return forms


class Tap(BaseStrategy):
    """Keeps what it was given, as the person does whom it was sent to; fails on demand."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.failing = False

    def send(self, task: Task[Any], otp: str) -> None:
        self.codes.append("".join(otp))
        if self.failing:
            raise OSError(f"550 cannot deliver {otp}")


def test_attempts_when_200_threads_guess_are_exactly_five(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S2, S60: the stored count, the address's too; no thread wants for a connection."""
    task = add(taskflow)
    typed = [other(box[0].otp, number) for number in range(1, 201)]

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", otp) for otp in typed])

    assert Counter(type(result) for result in results) == {WrongCode: 4, TaskLocked: 196}
    assert redis.hget(task_key(redis, task), "attempts") == b"5"
    (counted,) = cast(list[bytes], redis.keys("*:recipients"))
    assert [value.split()[2] for value in redis.hvals(counted.decode())] == [b"5"]
    with pytest.raises(TaskLocked):
        taskflow.verify(task.id, "EMAIL", box[0].otp)


def test_200_threads_of_one_process_all_get_a_connection(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S60: with ten connections for all of them."""
    app = make_app(redis_max_connections=10, redis_timeout=10)
    with app.app_context():
        task = add(taskflow)

    results = at_once(app, [lambda: taskflow.get_task(task.id)] * 200)

    assert results == [task] * 200


def test_code_stands_nowhere_in_redis(make_app: MakeApp, taskflow: TaskFlow, redis: Redis) -> None:
    """S9: after add, resend, a wrong code, a failed send, a change of address and verify."""
    tap = Tap()
    taskflow.register_strategy("EMAIL")(tap)
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    seen: list[bytes] = []
    # 16 digits are in no time stamp and no HMAC by chance.
    with make_app(otp_length=16, recipient_max_sends=100).app_context():
        task = add(taskflow)
        seen += everything(redis)
        travel(30)
        taskflow.resend_otp(task.id, "EMAIL")
        seen += everything(redis)
        with pytest.raises(WrongCode):
            taskflow.verify(task.id, "EMAIL", other(tap.codes[0]))
        seen += everything(redis)
        tap.failing = True
        with pytest.raises(SendFailed):
            taskflow.update_recipient(task.id, {"email": "new@example.com"})
        seen += everything(redis)
        tap.failing = False
        taskflow.resend_otp(task.id, "EMAIL")
        taskflow.verify(task.id, "EMAIL", tap.codes[-1])
        seen += everything(redis)

    assert len(seen) > 100
    assert len(set(tap.codes)) == 2
    text = b"\n".join(seen).lower()
    forms = [(name, form) for code in set(tap.codes) for name, form in disguises(code).items()]
    assert not {name for name, form in forms if form.lower() in text}


def test_dump_alone_yields_no_code(make_app: MakeApp, taskflow: TaskFlow, redis: Redis) -> None:
    """S10: all 10^6 codes against 100 tasks, plain and with the salts that the dump holds of one."""
    tap = Tap()
    taskflow.register_strategy("EMAIL")(tap)
    with make_app().app_context():
        tasks = [add(taskflow, recipient={"email": f"ann{number}@example.com"}) for number in range(100)]
        planted = hashlib.sha256(b"271828").hexdigest().encode()
        stored = {*everything(redis), planted}
        first = redis.hgetall(task_key(redis, tasks[0]))
    nonce = cast(bytes, first[b"EMAIL.nonce"])
    salts = [nonce, tasks[0].id.encode(), nonce + b"EMAIL"]
    digests = {bytes.fromhex(text.decode()) for text in stored if _is_hex(text)}
    assert len(digests) > 300

    found = []
    for number in range(10**6):
        code = b"%06d" % number
        if hashlib.sha256(code).digest() in digests or hashlib.md5(code).digest() in digests:  # noqa: S324
            found.append(code)
        if hmac.digest(nonce, code, "sha256") in digests:
            found.append(code)
    for code in (sent.encode() for sent in tap.codes):
        attempts = [salt + code for salt in salts] + [code + salt for salt in salts]
        attempts += [b":".join((salt, code)) for salt in salts] + [b":".join((code, salt)) for salt in salts]
        found += [code for text in attempts if hashlib.sha256(text).digest() in digests]

    assert found == [b"271828"], "only the digest that this test put there"


def _is_hex(text: bytes) -> bool:
    return len(text) % 2 == 0 and len(text) >= 32 and not text.strip(b"0123456789abcdef")


def test_same_code_has_another_digest_in_each_task(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S11: a strategy that sends one code to everybody shows it."""

    class Same(Tap):
        address = None
        code_pattern = "[0-9]{6}"

        def generate(self, task: Task[Any]) -> str:
            return "123456"

    for method in ("FIRST", "SECOND"):
        taskflow.register_strategy(method)(Same())
    tasks = [
        add(taskflow, allowed_methods=("FIRST", "SECOND"), send_via=("FIRST", "SECOND")) for _ in range(2)
    ]

    digests = [
        redis.hget(task_key(redis, task), f"{method}.digest")
        for task in tasks
        for method in ("FIRST", "SECOND")
    ]

    assert None not in digests
    assert len(set(digests)) == 4
    assert taskflow.verify(tasks[0].id, "FIRST", "123456").status is Status.SUCCESS


def _calls(tree: ast.AST) -> Iterator[str]:
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


@cache
def _sources() -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.glob("*.py"))}


def test_codes_are_compared_as_macs_only(app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """S17: Redis gets HMACs to compare, and Python compares in constant time."""
    task = add(taskflow)
    code = str(box[0].otp)

    with redis.monitor() as monitor:
        taskflow.verify(task.id, "EMAIL", code)
        sent = ""
        while not (sent.startswith("EVALSHA") and task.id in sent):
            sent = str(monitor.next_command()["command"])

    assert Keyring([SECRET_KEY.encode()]).digest(task.id, "EMAIL", code) in sent.split()
    assert code not in sent.split()
    tree = _sources()["_otp.py"]
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    secret = ("digest", "seal", "code", "mac")
    equal = [
        ast.unparse(node)
        for node in compared
        if any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        and any(word in ast.unparse(node) for word in secret)
    ]
    assert not equal
    assert list(_calls(tree)).count("hmac.compare_digest") == 2


def test_million_codes_are_uniform() -> None:
    """S35: chi-square at p > 0.001 over the first three and the last three digits; zeros lead."""
    keyring = Keyring([b"n" * 32])
    codes = [str(keyring.code("task", "EMAIL", str(number), length=6)) for number in range(10**6)]

    assert {len(code) for code in codes} == {6}
    for part in (slice(0, 3), slice(3, 6)):
        counts = Counter(code[part] for code in codes)
        assert len(counts) == 1000
        assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 1142.8
    # Of 10^6 values, 10^6 draws miss 1/e: 632,121 are seen, with a standard deviation of 311.
    assert abs(len(set(codes)) - 632_121) < 5 * 311


def test_chance_comes_from_the_systems_generator_only() -> None:
    """S35: of `random`, modules name the class of `secrets.SystemRandom` as a type, and call nothing."""
    used = {
        ast.unparse(node)
        for tree in _sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("random.")
    }
    called = {call for tree in _sources().values() for call in _calls(tree) if call.startswith("random.")}
    imported = {
        name
        for name, tree in _sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "uuid", "time")
    }

    assert used <= {"random.Random"}
    assert not called
    assert not imported


@pytest.mark.parametrize("shift", [-3600, 3600])
def test_clock_of_the_app_is_not_asked(
    make_app: MakeApp,
    taskflow: TaskFlow,
    box: Outbox,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    shift: int,
) -> None:
    """S34: a process whose clock is an hour off gives a task its life, code and cooldown as any other."""
    wall, wall_ns = time.time, time.time_ns
    with make_app().app_context():
        before = redis.time()[0]
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: wall() + shift)
            patch.setattr(time, "time_ns", lambda: wall_ns() + shift * 10**9)
            task = add(taskflow, ttl=700)
            with pytest.raises(ResendTooSoon) as refused:
                taskflow.resend_otp(task.id, "EMAIL")
        stored = redis.hgetall(task_key(redis, task))

        assert abs(task.created_at.timestamp() - before) < 30
        assert (task.expires_at - task.created_at).total_seconds() == 700
        assert int(stored[b"EMAIL.until"]) - int(stored[b"created"]) == 600_000
        assert 25 < refused.value.retry_after <= 30
        assert taskflow.verify(task.id, "EMAIL", box[0].otp).status is Status.SUCCESS


def test_no_module_reads_the_wall_clock() -> None:
    """S34: but the doctor, who compares it with Redis's, and messages, which bear a date for providers."""
    wall = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today")

    used = {
        f"{name}: {call}"
        for name, tree in _sources().items()
        for call in _calls(tree)
        if call.endswith(wall) and not call.endswith("monotonic")
    }

    assert used <= {"_doctor.py: time.time", "_sms.py: datetime.now", "_email.py: datetime.now"}


def test_old_code_is_refused_in_every_race_with_a_change_of_address(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S28: 1,000 races; each is won by the code, or by the change and then the code is dead."""
    app = make_app(recipient_max_sends=10**6, recipient_max_failures=10**6)
    won: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as pool, app.app_context():
        for number in range(1000):
            task = add(taskflow, recipient={"email": EMAIL})
            code = box[-1].otp
            calls = [
                partial(taskflow.update_recipient, task.id, {"email": "new@example.com"}),
                partial(taskflow.verify, task.id, "EMAIL", code),
            ]
            # Who starts first is drawn, so that both win now and then.
            order = [0, 1] if number % 2 else [1, 0]
            futures = {index: pool.submit(in_context, app, calls[index]) for index in order}
            changed, accepted = futures[0].result(), futures[1].result()
            if isinstance(accepted, Task):
                assert isinstance(changed, TaskNotPending)
                won["code"] += 1
            else:
                assert isinstance(accepted, WrongCode)
                assert isinstance(changed, Task)
                assert isinstance(in_context(app, calls[1]), WrongCode)
                won["change"] += 1

    assert won.total() == 1000
    assert min(won["code"], won["change"]) > 10


def test_code_resent_while_the_address_changes_is_dead(
    make_app: MakeApp, taskflow: TaskFlow, redis: Redis
) -> None:
    """S28: a resend to the old address that fails or arrives after the change revives nothing."""
    for fails in (False, True):
        tap = Tap()

        class Meanwhile(Tap):
            """Changes the address while its message is on the way."""

            def __init__(self, fails: bool, tap: Tap) -> None:
                super().__init__()
                self.failing, self.tap = fails, tap

            def send(self, task: Task[Any], otp: str) -> None:
                taskflow.register_strategy("EMAIL")(self.tap)
                taskflow.update_recipient(task.id, {"email": "new@example.com"})
                super().send(task, otp)

        taskflow.register_strategy("EMAIL")(tap)
        with make_app(recipient_max_sends=100).app_context():
            task = add(taskflow)
            travel(30)
            slow = Meanwhile(fails, tap)
            taskflow.register_strategy("EMAIL")(slow)
            if fails:
                with pytest.raises(SendFailed):
                    taskflow.resend_otp(task.id, "EMAIL")
            else:
                taskflow.resend_otp(task.id, "EMAIL")

            assert slow.codes == tap.codes[:1]
            with pytest.raises(WrongCode):
                taskflow.verify(task.id, "EMAIL", slow.codes[0])
            assert taskflow.verify(task.id, "EMAIL", tap.codes[1]).status is Status.SUCCESS


def test_change_of_address_does_not_prolong_the_task(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S29: neither its end nor that of its code nor that of its key."""
    task = add(taskflow, ttl=100)
    key = task_key(redis, task)
    ends = redis.execute_command("PEXPIRETIME", key)

    for number in range(3):
        updated = taskflow.update_recipient(task.id, {"email": f"new{number}@example.com"})

        assert updated.expires_at == task.expires_at
        assert redis.hget(key, "EMAIL.until") == redis.hget(key, "expires")
        assert redis.execute_command("PEXPIRETIME", key) == ends


SPELLINGS = {
    "email": [
        "ann@example.com",
        "ANN@EXAMPLE.COM",
        " ann@example.com ",
        "ann@example.com.",
        "ann@ｅxample.com",
    ],
    "phone_number": [
        "+12025550110",
        "+1 202 555 0110",
        "+1 (202) 555-0110",
        "+1202.555.0110",
        "+1/2025550110",
    ],
}


@pytest.mark.parametrize("field", SPELLINGS)
def test_spelling_of_an_address_makes_no_other_one(
    app: Flask, taskflow: TaskFlow, box: Outbox, field: str
) -> None:
    """S7, S25: blanks, case, width and the hyphens of telephone numbers do not evade the limits."""
    for spelling in SPELLINGS[field]:
        add(taskflow, recipient={field: spelling})

    for spelling in SPELLINGS[field]:
        with pytest.raises(SendLimitReached):
            add(taskflow, recipient={field: spelling})


SEVERAL = [
    "ann@example.com,bob",
    "bob,ann@example.com",
    "ann@example.com;bob",
    "<ann@example.com>",
    "Ann<ann@example.com",
    '"ann"@example.com',
    "ann(1)@example.com",
    "ann@example.com(1)",
    "a\\nn@example.com",
    "g:ann@example.com",
]


@pytest.mark.parametrize("address", SEVERAL)
def test_address_that_mail_programs_read_as_several_is_refused(
    app: Flask, taskflow: TaskFlow, box: Outbox, address: str
) -> None:
    """S7, S25: with a comma, each message would go to a counted name and to the one that had enough."""
    with pytest.raises(InvalidTask):
        add(taskflow, recipient={"email": address})


@pytest.mark.parametrize("how", ["read-only", "paused"])
def test_attempts_survive_a_server_that_does_not_answer(
    taskflow: TaskFlow, box: Outbox, own_server: str, how: str
) -> None:
    """S48: 503 with `Retry-After`, and then the count goes on where it stood."""
    app = Flask("app")
    app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=own_server)
    app.config["TASKFLOW_REDIS_TIMEOUT"] = 0.2
    taskflow.init_app(app)
    app.register_blueprint(taskflow.blueprint, url_prefix="/taskflow")
    client = app.test_client()
    with app.app_context(), Redis.from_url(own_server) as redis, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        task = add(taskflow)
        wrong = {"method": "EMAIL", "otp": other(box[0].otp)}
        path = f"/taskflow/tasks/{task.id}/verify"
        assert [client.post(path, json=wrong).status_code for _ in range(2)] == [400, 400]

        if how == "read-only":
            redis.replicaof("127.0.0.1", nobody.getsockname()[1])
        else:
            redis.client_pause(60_000, all=False)
        answers = [client.post(path, json=body) for body in (wrong, {**wrong, "otp": str(box[0].otp)})]
        if how == "read-only":
            redis.replicaof("NO", "ONE")
        else:
            redis.client_unpause()

        assert [answer.status_code for answer in answers] == [503, 503]
        for answer in answers:
            assert answer.get_json(force=True)["code"] == "unavailable"
            assert int(answer.headers["Retry-After"]) >= 1
        assert redis.hget(task_key(redis, task), "attempts") == b"2"
        assert taskflow.verify(task.id, "EMAIL", box[0].otp).status is Status.SUCCESS


@pytest.fixture
def own_server() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.mark.parametrize(
    ("email", "masked"),
    [("foobar@example.com", "fo****@example.com"), ("x@example.com", "****@example.com")],
)
def test_addresses_are_masked_wherever_they_are_told(
    app: Flask, taskflow: TaskFlow, caplog: pytest.LogCaptureFixture, email: str, masked: str
) -> None:
    """S55: in every log record, the audit log's fields included, and in every `repr`."""
    caplog.set_level(logging.DEBUG)
    tap = Tap()
    taskflow.register_strategy("EMAIL")(tap)
    task = add(taskflow, recipient={"email": "old@example.com", "phone_number": PHONE})
    tap.failing = True
    with pytest.raises(SendFailed) as failed:
        taskflow.update_recipient(task.id, {"email": email})

    told = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    told += [repr(failed.value), repr(failed.value.task)]

    assert any(masked in text for text in told)
    assert any("+12****10" in text for text in told)
    for text in told:
        assert f"'{email}" not in text
        assert f" {email}" not in text
        assert PHONE not in text


def test_delivery_moved_to_another_queue_does_not_run_there(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S31: a sealed task of a harmless queue is not accepted by the callback of another one."""
    runs: list[str] = []
    taskflow.on_task_verified("transfers", name="pay")(lambda task: runs.append(task.id))
    # The body of a delivery stands in Redis until its callback has succeeded.
    taskflow.on_task_verified("newsletter", name="greet", backoff_time=60)(fail)
    paid = add(taskflow, queue="transfers")
    taskflow.verify(paid.id, "EMAIL", box[0].otp)
    news = add(taskflow, queue="newsletter", data={"amount": 1000})
    taskflow.verify(news.id, "EMAIL", box[1].otp)
    assert runs == [paid.id]
    place = queue_key(redis, "transfers")
    (body,) = [raw for raw in (redis.hget(key, news.id) for key in bodies(redis)) if raw]

    redis.hset(f"{place}h:pay:body", news.id, body)
    redis.hset(f"{place}h:pay:meta", news.id, f"1 {1:016x} 0 0 0 0 0 -")
    redis.zadd(f"{place}h:pay:ready", {f"{1:016x}:{news.id}": 0})
    taskflow.run_due()

    assert runs == [paid.id]
    assert redis.zcard(f"{place}h:pay:dead") == 1


@pytest.mark.parametrize("body", [b"-3:", b"1:a-6:", b"", b"9999999999:a", b"1:a", b"x:a", b":"])
def test_delivery_with_any_body_is_a_dead_letter(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis, body: bytes
) -> None:
    """S31: lengths that lead back to where they were read included."""
    runs: list[str] = []
    taskflow.on_task_verified("q", name="act", backoff_time=60)(fail)
    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box[0].otp)
    (place,) = bodies(redis)
    taskflow._callbacks["q"].clear()
    taskflow.on_task_verified("q", name="act")(lambda task: runs.append(task.id))

    redis.hset(place, task.id, body)
    travel(120)
    taskflow.run_due()

    assert not runs
    assert redis.zcard(place.replace(":body", ":dead")) == 1


def fail(task: Task[Any]) -> None:
    raise OSError("not now")


def bodies(redis: Redis) -> list[str]:
    return [key.decode() for key in cast(list[bytes], redis.keys("*:body"))]


def queue_key(redis: Redis, queue: str) -> str:
    """What the keys of a queue begin with."""
    tags = {name: tag for tag, name in cast(dict[bytes, bytes], redis.hgetall("taskflow:queues")).items()}
    return f"taskflow:{{taskflow.{tags[queue.encode()].decode()}}}:"


def test_new_key_may_be_a_fallback_before_it_is_used(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """S13: while a fleet changes its key, processes of both kinds accept each other's codes."""
    new = "another secret key, long enough too"
    before = make_app(SECRET_KEY_FALLBACKS=[new])
    after = make_app(SECRET_KEY=new, SECRET_KEY_FALLBACKS=[SECRET_KEY])

    for adding, verifying in ((before, after), (after, before)):
        with adding.app_context():
            task = add(taskflow)
            code = box[-1].otp
        with verifying.app_context():
            assert taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


def test_status_put_back_by_hand_does_not_bring_the_code_back(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S31: what ended a task took its digests; only who kept them could put them back."""
    task = add(taskflow)
    taskflow.verify(task.id, "EMAIL", box[0].otp)

    redis.hset(task_key(redis, task), "status", "PENDING")

    with pytest.raises(MethodNotAllowed):
        taskflow.verify(task.id, "EMAIL", box[0].otp)


def test_address_of_another_task_with_its_seal_is_refused(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """S31: a seal is bound to its task."""
    mine = add(taskflow, recipient={"email": "eve@example.com"})
    theirs = add(taskflow)
    stolen = redis.hgetall(task_key(redis, mine))
    names = (b"address.email", b"seal.email", b"mac.email")
    redis.hset(task_key(redis, theirs), mapping={name: stolen[name] for name in names})
    travel(30)

    with pytest.raises(TaskTampered):
        taskflow.resend_otp(theirs.id, "EMAIL")

    assert len(box) == 2


class _Refusing:
    """An SMTP server's manners: it takes the whole message, and then does not want it."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "550 not for us"


@contextmanager
def refusing_mail_server() -> Iterator[int]:
    """Run a real SMTP server that refuses every message; yield its port."""
    loop = asyncio.new_event_loop()
    listening = loop.create_server(lambda: SMTP(_Refusing(), loop=loop), "127.0.0.1", 0)
    server = loop.run_until_complete(listening)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


class Mail(BaseStrategy):
    """Sends by SMTP; keeps the codes, and what a traceback inside `send` shows."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.codes: list[str] = []
        self.shown: list[str] = []

    def send(self, task: Task[Any], otp: str) -> None:
        self.codes.append("".join(otp))
        message = EmailMessage()
        message["To"], message["From"] = task.recipient.email, "app@example.com"
        message.set_content(f"Your code is {otp}")
        try:
            with smtplib.SMTP("127.0.0.1", self.port) as smtp:
                smtp.send_message(message)
        except OSError as error:
            self.shown.append(with_locals(error))
            raise


def with_locals(error: BaseException, *, ours_only: bool = False) -> str:
    """A traceback as error reporters make it, with its causes and the locals of each frame."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    if not ours_only:
        return "".join(whole.format())
    return "\n".join(
        f"{frame.name}: {frame.locals}" for frame in whole.stack if frame.filename.startswith(str(PACKAGE))
    )


class _Reporter(logging.Handler):
    """Keeps each record whole, and the locals of our frames at that moment, as error reporters do."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.log: list[str] = []
        self.audit: list[str] = []
        self.frames: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "mail.log":
            # The mail server, in this process for once, tells what it received.
            return
        kept = self.audit if record.name == "flask_taskflow.audit" else self.log
        error = record.exc_info[1] if record.exc_info else None
        kept.append(
            f"{record.name} {record.getMessage()} {vars(record)} {with_locals(error) if error else ''}"
        )
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(str(PACKAGE)):
                self.frames.append(f"{frame.f_code.co_name}: {frame.f_locals!r}")
            frame = frame.f_back


Sinks = dict[str, list[str]]


class _Life:
    """One long life of an app in which every code could leak, and what each sink got of it."""

    def __init__(self, url: str, port: int) -> None:
        self.sinks: Sinks = {}
        self.url = url
        self.mail, self.tap = Mail(port), Tap()
        self.taskflow = TaskFlow()
        self.taskflow.register_strategy("EMAIL")(self.mail)
        self.taskflow.register_strategy("SMS")(self.tap)
        self.taskflow.on_task_verified("q", name="act")(self._act)
        self.app = self._make_app(url)
        self.objects: list[Any] = []

    def _make_app(self, url: str) -> Flask:
        app = Flask("app")
        # 16 digits are in no time stamp and no HMAC by chance.
        app.config.update(TESTING=True, SECRET_KEY=SECRET_KEY, TASKFLOW_REDIS_URL=url)
        app.config.update(TASKFLOW_OTP_LENGTH=16, TASKFLOW_EAGER=True, TASKFLOW_RECIPIENT_MAX_SENDS=100)
        self.taskflow.init_app(app)
        app.register_blueprint(self.taskflow.blueprint, url_prefix="/taskflow")
        return app

    def _act(self, task: Task[Any]) -> None:
        self.objects += [task, Delivery(current_delivery.id, current_delivery.attempt)]
        raise ValueError("the callback fails")

    def live(self) -> None:
        """Go through it, with everything that can be watched watched."""
        reporter, root = _Reporter(), logging.getLogger()
        out, err, level = io.StringIO(), io.StringIO(), root.level
        heard: list[str] = []

        def receive(sender: Flask, **arguments: Any) -> None:
            heard.append(f"{arguments!r} {arguments}")

        public = [item for item in vars(signals).values() if isinstance(item, NamedSignal)]
        with ExitStack() as stack, Redis.from_url(self.url) as redis:
            redis.config_set("slowlog-log-slower-than", 0)
            redis.config_set("slowlog-max-len", 10_000)
            for signal in public:
                stack.enter_context(signal.connected_to(receive))
            warned = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            stack.enter_context(redirect_stdout(out))
            stack.enter_context(redirect_stderr(err))
            root.addHandler(reporter)
            stack.callback(root.removeHandler, reporter)
            root.setLevel(logging.DEBUG)
            stack.callback(root.setLevel, level)
            monitor = stack.enter_context(redis.monitor())
            with self.app.app_context():
                self._steps()
            redis.echo("the end")
            self.sinks["MONITOR"] = _until(monitor, "the end")
            self.sinks["slow log"] = [str(entry) for entry in redis.slowlog_get(10_000)]
            self.sinks["Redis"] = [text.decode(errors="replace") for text in everything(redis)]
            folder = Path(redis.config_get("dir")["dir"])
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.sinks["append-only file"] = [path.read_text("latin-1") for path in files if "aof" in path.name]
        self.sinks["server's log"] = [path.read_text("latin-1") for path in files if path.name == "log"]
        self.sinks |= {"logs at DEBUG": reporter.log, "audit log": reporter.audit}
        self.sinks["our locals at each record"] = reporter.frames
        self.sinks["signals"] = heard
        self.sinks["standard output and error, warnings"] = [
            "watched",
            out.getvalue(),
            err.getvalue(),
            *(str(item.message) for item in warned),
        ]
        self._show_objects()

    def _steps(self) -> None:
        client, taskflow, tap = self.app.test_client(), self.taskflow, self.tap
        answers, errors = [], []

        def post(task: Task[Any], step: str, **body: str) -> None:
            answer = client.post(f"/taskflow/tasks/{task.id}/{step}", json=body)
            answers.append(f"{answer.status} {answer.headers} {answer.text}")

        def refused(call: Callable[[], Any]) -> Any:
            with pytest.raises((flask_taskflow.TaskFlowError, RedisError)) as caught:
                call()
            errors.append(caught.value)
            return caught.value

        task = refused(lambda: add(taskflow)).task
        by_sms = add(taskflow, send_via=["SMS"])
        code, sms = self.mail.codes[0], tap.codes[0]
        post(task, "resend", method="EMAIL")
        post(task, "verify", method="EMAIL", otp=code)
        post(task, "verify", method="EMAIL", otp=f"{code}.")
        post(task, "verify", method="EMAIL", otp=f" {code} ")
        refused(lambda: taskflow.verify(task.id, "EMAIL", code))
        refused(lambda: taskflow.verify(by_sms.id, "SMS", f"{sms}."))
        refused(lambda: taskflow.verify("a" * 34, "SMS", sms))
        refused(lambda: taskflow.update_recipient(task.id, {"email": "new@example.com"}))
        tap.failing = True
        travel(30)
        refused(lambda: taskflow.resend_otp(by_sms.id, "SMS"))
        post(by_sms, "resend", method="SMS")
        tap.failing = False
        taskflow.resend_otp(by_sms.id, "SMS")
        away = self._make_app("unix:///nowhere/redis.sock")
        with away.app_context():
            refused(lambda: taskflow.verify(by_sms.id, "SMS", sms))
        post(by_sms, "verify", method="SMS", otp=sms)
        post(by_sms, "verify", method="SMS", otp=sms)
        self.objects += [by_sms, by_sms.recipient, taskflow.get_task(by_sms.id), taskflow, *errors]
        self.objects.append(taskflow._service().config)
        self.sinks["HTTP answers"] = answers
        self.sinks["errors, their causes and locals"] = [
            f"{error!r} {error.__cause__!r} {error.__context__!r} {with_locals(error, ours_only=True)}"
            for error in errors
        ]
        sent = [error for error in errors if isinstance(error, SendFailed)]
        self.sinks["whole traceback of a failed send"] = [with_locals(error) for error in sent]

    def _show_objects(self) -> None:
        kept = OutboxStrategy()
        kept.send(self.objects[0], self.mail.codes[0])
        self.objects += [kept, kept.messages, OTP(self.mail.codes[0])]
        self.sinks["repr"] = [repr(item) for item in self.objects]
        self.sinks["str"] = [str(item) for item in self.objects if not isinstance(item, str)]
        self.sinks["JSON"] = [_json(item) for item in self.objects if not isinstance(item, str)]
        self.sinks["pickle"] = [_pickle(item) for item in self.objects]


def _until(monitor: Any, end: str) -> list[str]:
    seen: list[str] = []
    while not seen or end not in seen[-1]:
        seen.append(str(monitor.next_command()["command"]))
    return seen


def _json(item: Any) -> str:
    """As `jsonify` writes it."""
    try:
        return DefaultJSONProvider(Flask("app")).dumps(item)
    except TypeError as error:
        return f"cannot be written: {error}"


def _pickle(item: Any) -> str:
    try:
        return pickle.dumps(item, 0).decode("latin-1")
    except (TypeError, AttributeError, pickle.PicklingError, RuntimeError) as error:
        return f"cannot be pickled: {error}"


@pytest.fixture(scope="module")
def life() -> Iterator[_Life]:
    with ExitStack() as stack:
        url = stack.enter_context(redis_server("--appendonly", "yes", "--appendfsync", "always"))
        life = _Life(url, stack.enter_context(refusing_mail_server()))
        life.live()
        yield life


SINKS = [
    "HTTP answers",
    "JSON",
    "MONITOR",
    "Redis",
    "append-only file",
    "audit log",
    "errors, their causes and locals",
    "logs at DEBUG",
    "our locals at each record",
    "pickle",
    "repr",
    "server's log",
    "signals",
    "slow log",
    "standard output and error, warnings",
    "str",
    "whole traceback of a failed send",
]


@pytest.mark.parametrize("sink", SINKS)
def test_code_is_in_no_sink(life: _Life, sink: str) -> None:
    """S14: the code is nowhere but in what `send` receives."""
    text = "\n".join(life.sinks[sink])

    assert text
    for code in {*life.mail.codes, *life.tap.codes}:
        leaks = [name for name, form in disguises(code).items() if form.decode("latin-1") in text]
        assert not leaks, f"{leaks} in {text[text.find(code) - 200 :][:300]!r}"


def test_every_sink_was_watched(life: _Life) -> None:
    """S14: and a traceback inside `send` would have shown the code."""
    assert sorted(life.sinks) == SINKS
    assert len(life.mail.codes) == 3
    assert len(life.mail.shown) == 3
    assert all(code in shown for code, shown in zip(life.mail.codes, life.mail.shown, strict=True))
    assert all("otp = OTP('******')" in shown for shown in life.mail.shown)
    task_id = life.objects[0].id
    silent = {"server's log", "standard output and error, warnings"}
    assert {sink for sink in SINKS if task_id not in "\n".join(life.sinks[sink])} == silent
