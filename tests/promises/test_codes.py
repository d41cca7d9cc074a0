"""What codes are worth to many who guess and to who reads Redis; where their chance and time come from."""

from __future__ import annotations

import ast
import hashlib
import hmac
import re
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from redis import Redis

import flask_taskflow
from flask_taskflow import Status, Task, TaskFlow
from flask_taskflow._keyring import Keyring
from flask_taskflow.errors import ResendTooSoon, SendFailed, TaskLocked, WrongCode
from flask_taskflow.testing import Outbox, travel
from tests.conftest import SECRET_KEY, MakeApp
from tests.support.leaks import everything, leaks_in
from tests.support.tasks import (
    NEW_EMAIL,
    Tap,
    add,
    at_once,
    guess_wrong,
    keys_like,
    other,
    refused,
    stored_task,
    with_settings,
)

PACKAGE = Path(flask_taskflow.__file__).parent


@pytest.mark.promise("S2", "S60")
@with_settings(redis_timeout=60)
def test_attempts_when_200_threads_guess_are_exactly_five(
    app: Flask, taskflow: TaskFlow, box: Outbox, redis: Redis
) -> None:
    """The stored count, the address's too; no thread wants for a connection."""
    task = add(taskflow)
    typed = [other(box[0].otp, number) for number in range(1, 201)]

    results = at_once(app, [partial(taskflow.verify, task.id, "EMAIL", otp) for otp in typed])

    assert Counter(type(result) for result in results) == {WrongCode: 4, TaskLocked: 196}
    assert {result.attempts_left for result in results if isinstance(result, WrongCode)} == {1, 2, 3, 4}
    assert stored_task(redis, task)["attempts"] == "5"
    (counted,) = keys_like(redis, "*:budgets")
    counts = cast(dict[bytes, bytes], redis.hgetall(counted)).items()
    assert [value.split()[0] for name, value in counts if not name.startswith(b"decoy")] == [b"5"]
    refused(TaskLocked, taskflow.verify, task.id, "EMAIL", box[0].otp)


@pytest.mark.promise("S60")
@with_settings(redis_max_connections=10, redis_timeout=10)
def test_200_threads_of_one_process_all_get_a_connection(app: Flask, taskflow: TaskFlow, box: Outbox) -> None:
    """With ten connections for all of them."""
    task = add(taskflow)

    results = at_once(app, [lambda: taskflow.get_task(task.id)] * 200)

    assert results == [task] * 200


@pytest.mark.promise("S9")
# 16 digits are in no time stamp and no HMAC by chance.
@with_settings(otp_length=16, recipient_max_sends=100)
@pytest.mark.usefixtures("app")
def test_code_stands_nowhere_in_redis(taskflow: TaskFlow, redis: Redis) -> None:
    """After add, resend, a wrong code, a failed send, a change of address and verify."""
    tap = taskflow.register_strategy("EMAIL")(Tap())
    taskflow.on_task_verified("q", name="act")(lambda task: None)
    task = add(taskflow)
    seen = everything(redis)
    travel(30)
    taskflow.resend_otp(task.id, "EMAIL")
    seen += everything(redis)
    guess_wrong(taskflow, task, tap.codes[0])
    seen += everything(redis)
    tap.error = OSError(f"550 cannot deliver {tap.codes[0]}")
    refused(SendFailed, taskflow.update_recipient, task.id, {"email": NEW_EMAIL})
    seen += everything(redis)
    tap.error = None
    taskflow.resend_otp(task.id, "EMAIL")
    taskflow.verify(task.id, "EMAIL", tap.codes[-1])
    seen += everything(redis)

    assert len(seen) > 100
    assert len(set(tap.codes)) == 2
    assert not [leaks for code in set(tap.codes) for leaks in leaks_in(b"\n".join(seen), code)]


@pytest.mark.promise("S10")
@pytest.mark.parametrize("tried", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("app")
def test_dump_alone_yields_no_code(taskflow: TaskFlow, redis: Redis, tried: int) -> None:
    """Plain and with the salts that the dump holds of one task, against 100 tasks.

    The usual run tries every tenth of the 10^6 codes, and those that were sent.
    """
    tap = taskflow.register_strategy("EMAIL")(Tap())
    tasks = [add(taskflow, recipient={"email": f"ann{number}@example.com"}) for number in range(100)]
    planted = hashlib.sha256(b"271820").hexdigest().encode()
    stored = {*everything(redis), planted}
    nonce, task_id = stored_task(redis, tasks[0])["EMAIL.nonce"].encode(), tasks[0].id.encode()
    digests = {found for text in stored for found in _macs_in(text)}
    assert len(digests) > 300

    sent = [code.encode() for code in tap.codes]
    found = []
    for code in [*(b"%06d" % number for number in range(0, 10**6, 10**6 // tried)), *sent]:
        plain = hashlib.sha256(code).digest(), hashlib.md5(code).digest()  # noqa: S324
        if not digests.isdisjoint(mac[:16] for mac in (*plain, hmac.digest(nonce, code, "sha256"))):
            found.append(code)
    for code, salt, between in product(sent, [nonce, task_id, nonce + b"EMAIL"], [b"", b":"]):
        salted = salt + between + code, code + between + salt
        found += [text for text in salted if hashlib.sha256(text).digest()[:16] in digests]

    assert found == [b"271820"], "only the digest that this test put there"


def _macs_in(text: bytes) -> list[bytes]:
    """Return the first 128 bits of what may be a hash, in hex, or in base64 after a key's fingerprint."""
    if len(text) % 2 == 0 and len(text) >= 32 and not text.strip(b"0123456789abcdef"):
        return [bytes.fromhex(text.decode())[:16]]
    return [urlsafe_b64decode(mac + b"==") for mac in re.findall(rb"\b[a-z2-7]{5}\.([\w-]{22})", text)]


class Same(Tap):
    """Sends one code to everybody."""

    address = None
    code_pattern = "[0-9]{6}"

    def generate(self, task: Task[Any]) -> str:
        return "123456"


@pytest.mark.promise("S11")
@pytest.mark.usefixtures("app")
def test_same_code_has_another_digest_in_each_task(taskflow: TaskFlow, redis: Redis) -> None:
    methods = ("FIRST", "SECOND")
    for method in methods:
        taskflow.register_strategy(method)(Same())
    tasks = [add(taskflow, allowed_methods=methods, send_via=methods) for _ in range(2)]

    digests = {stored_task(redis, task)[f"{method}.digest"] for task in tasks for method in methods}

    assert len(digests) == 4
    assert taskflow.verify(tasks[0].id, "FIRST", "123456").status is Status.SUCCESS


@cache
def _sources() -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _calls(tree: ast.AST) -> Iterator[str]:
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.promise("S17")
@pytest.mark.usefixtures("app")
def test_codes_are_compared_as_macs_only(taskflow: TaskFlow, box: Outbox, redis: Redis) -> None:
    """Redis gets HMACs to compare, and Python compares in constant time."""
    task = add(taskflow)
    code = str(box[0].otp)

    with redis.monitor() as monitor:
        taskflow.verify(task.id, "EMAIL", code)
        sent = ""
        while not (sent.startswith("EVALSHA") and task.id in sent):
            sent = str(monitor.next_command()["command"])

    assert Keyring([SECRET_KEY.encode()]).digest(task.id, "EMAIL", code) in sent.split()
    assert code not in sent.split()
    tree = _sources()["_keyring.py"]
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    equal = [
        ast.unparse(node) for node in compared if any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
    ]
    assert not [text for text in equal if any(word in text for word in ("digest", "seal", "code", "mac"))]
    assert list(_calls(tree)).count("hmac.compare_digest") == 3


@pytest.mark.promise("S35")
@pytest.mark.parametrize("count", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_million_codes_are_uniform(count: int) -> None:
    """Chi-square at p > 0.001 over the first three and the last three digits; zeros lead.

    The usual run draws a tenth of them. Of 10^6 values, n draws see 10^6 (1 - e^-x), x being n / 10^6, with
    the variance 10^6 (e^-x - (1 + x) e^-2x).
    """
    keyring = Keyring([b"n" * 32])
    codes = [str(keyring.code("task", "EMAIL", str(number), length=6)) for number in range(count)]
    seen, deviation = {10**5: (95_163, 66), 10**6: (632_121, 311)}[count]
    expected = count / 1000

    assert {len(code) for code in codes} == {6}
    for part in (slice(0, 3), slice(3, 6)):
        counts = Counter(code[part] for code in codes)
        assert len(counts) == 1000
        assert sum((drawn - expected) ** 2 / expected for drawn in counts.values()) < 1142.8
    assert abs(len(set(codes)) - seen) < 5 * deviation


@pytest.mark.promise("S35")
def test_chance_comes_from_the_systems_generator_only() -> None:
    """Of `random`, modules name the class of `secrets.SystemRandom` as a type, and call nothing."""
    nodes = [(name, node) for name, tree in _sources().items() for node in ast.walk(tree)]
    used = {ast.unparse(node) for _, node in nodes if isinstance(node, ast.Attribute)}
    called = {call for tree in _sources().values() for call in _calls(tree)}
    imported = {
        (name, node.module)
        for name, node in nodes
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "uuid", "time")
    }

    assert {text for text in used if text.startswith("random.")} <= {"random.Random"}
    assert not {call for call in called if call.startswith("random.")}
    assert not imported


@pytest.mark.promise("S34")
@pytest.mark.parametrize("shift", [-3600, 3600])
@pytest.mark.usefixtures("app")
def test_clock_of_the_app_is_not_asked(
    taskflow: TaskFlow, box: Outbox, redis: Redis, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """A process whose clock is an hour off gives a task its life, code and cooldown as any other."""
    wall, wall_ns = time.time, time.time_ns
    before = redis.time()[0]
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: wall() + shift)
        patch.setattr(time, "time_ns", lambda: wall_ns() + shift * 10**9)
        task = add(taskflow, ttl=700)
        too_soon = refused(ResendTooSoon, taskflow.resend_otp, task.id, "EMAIL")
    stored = stored_task(redis, task)

    assert abs(task.created_at.timestamp() - before) < 30
    assert (task.expires_at - task.created_at).total_seconds() == 700
    assert int(stored["EMAIL.until"]) - int(stored["created"]) == 600_000
    assert 25 < too_soon.retry_after <= 30
    assert taskflow.verify(task.id, "EMAIL", box[0].otp).status is Status.SUCCESS


@pytest.mark.promise("S34", "F19")
def test_no_module_reads_the_wall_clock() -> None:
    """But the doctor, who compares it with Redis's; messages, which bear a date for providers; and MACs.

    What a MAC says of time nobody who writes to Redis can change; it forgives two hours.
    """
    wall = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today")

    calls = [(name, call) for name, tree in _sources().items() for call in _calls(tree)]
    used = {f"{name}: {call}" for name, call in calls if call.endswith(wall)}

    allowed = {"doctor.py: time.time", "_sms.py: datetime.now", "_email.py: datetime.now"}
    assert used <= allowed | {"_keyring.py: time.time_ns"}


@pytest.mark.promise("S13")
def test_new_key_may_be_a_fallback_before_it_is_used(
    make_app: MakeApp, taskflow: TaskFlow, box: Outbox
) -> None:
    """While a fleet changes its key, processes of both kinds accept each other's codes."""
    new = "another secret key, long enough too"
    before = make_app(SECRET_KEY_FALLBACKS=[new])
    after = make_app(SECRET_KEY=new, SECRET_KEY_FALLBACKS=[SECRET_KEY])

    for adding, verifying in ((before, after), (after, before)):
        with adding.app_context():
            task = add(taskflow)
        with verifying.app_context():
            assert taskflow.verify(task.id, "EMAIL", box[-1].otp).status is Status.SUCCESS
