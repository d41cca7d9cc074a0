"""A task, a code and a delivery as they are stored; seals are made and checked in this one place."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from .. import errors
from .._checks import SCHEDULES, shown
from .._course import CallbackOutcome, Outcome
from .._journal import record
from .._keyring import Keyring
from .._log import Logger
from .._tasks import ADDRESS_FIELDS, Recipient, Status, Task
from .keys import Consumer
from .limits import Limits

logger = Logger(__name__)

#: A summary is one line.
SUMMARY_MAX = 200
#: Python reads JSON recursively: what one process could just write, a deeper stack could not read.
_DEPTH_MAX = 100

Fields = Mapping[str, str]

Sealed = tuple[str, Sequence[str]]

#: Milliseconds: the clocks of two processes may differ by an hour either way.
_TOLERANCE = 2 * 3_600_000

#: How the fields begin that say what became of a callback.
_AFTER = "after."
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Code(NamedTuple):
    """What Redis keeps of a code. The code itself is never here.

    :param method: the method it is sent by.
    :param nonce: what it is derived from.
    :param digest: its HMAC, empty while a strategy's own code is not generated yet.
    :param issued: proves that a process with the key issued it, see :mod:`.proofs`; empty with the digest.
    :param lasts: seconds that it is good for; ``None`` for one that is new.
    """

    method: str
    nonce: str
    digest: str
    issued: str
    lasts: float | None = None


class Draft(NamedTuple):
    """A task that is about to be stored.

    :param id: its id.
    :param queue: its queue.
    :param fixed: what never changes, as :func:`dump_fixed` made it.
    :param recipient: whom codes go to.
    :param methods: its allowed methods, in order, each with the address field that it sends to, if any.
    :param devices: those of them whose codes a device makes.
    :param priority: repeated outside ``fixed`` for the step that stores deliveries.
    :param ttl: seconds to live.
    :param named: the names under which it is found by its key, one a secret key.
    :param holder: the secret of its holder, or ``None`` if whoever knows the id may try codes.
    :param owner: whose task it is, if the app says so.
    :param asked: what it is added with, if its app names it by a key.
    :param replaces: whether it ends the owner's other pending tasks of its queue.
    :param run_at: when its callbacks run; repeated outside ``fixed`` as the priority is.
    :param send_at: when its codes go out, repeated likewise.
    :param remind: how many seconds before its end the app is reminded, the first one first.
    :param gated: whether it keeps a request, so that it waits for no callback.
    """

    id: str
    queue: str
    fixed: str
    recipient: Recipient
    methods: Mapping[str, str | None]
    devices: frozenset[str]
    priority: int
    ttl: float
    named: Sequence[str]
    holder: str | None = None
    owner: str | None = None
    asked: str | None = None
    replaces: bool = False
    run_at: datetime | None = None
    send_at: datetime | None = None
    remind: tuple[float, ...] = ()
    gated: bool = False


class Issued(NamedTuple):
    """A task after a step that issued codes.

    :param task: the task.
    :param codes: the codes to send, in order.
    :param resend_after: seconds until the last of them can be sent again.
    :param known: whether the task was there before, so that nothing was done.
    :param replaced: the tasks that it ended.
    """

    task: Task[Any]
    codes: Sequence[Code]
    resend_after: float = 0.0
    known: bool = False
    replaced: Sequence[Task[Any]] = ()


class Ended(NamedTuple):
    """A task that a right code ended.

    :param task: the task.
    :param deliveries: how many were stored.
    :param again: whether the same code had ended it before, so that nothing was done now.
    """

    task: Task[Any]
    deliveries: int
    again: bool = False


class Reserved(NamedTuple):
    """A task whose attempt was counted before its code is checked.

    :param task: the task.
    :param now: the server's time.
    :param left: attempts left.
    """

    task: Task[Any]
    now: datetime
    left: int


class Due(NamedTuple):
    """What a send in the background is to carry.

    :param task: the task as it stands.
    :param code: the code in force, without a digest if a new one must take its place.
    :param left: seconds until the task ends.
    :param needless: why no code is wanted by this method any more, ``None`` if one is.
    """

    task: Task[Any]
    code: Code
    left: float
    needless: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this process leased.

    :param queue: its queue.
    :param callback: whose share it is: the callback's, or that of the sends by a method.
    :param task_id: its id, which is the task's.
    :param token: what reports carry; ``0`` for one that was just given up.
    :param failures: attempts that failed so far.
    :param lost: attempts whose process vanished so far.
    :param spared: 1 if its process vanished once before it was started, as far as Redis knows.
    :param task: the task, or ``None`` if its stored strings were changed from outside, and for what has none.
    :param tick: the tick of a schedule, or ``None`` if it was changed from outside, and for what is none.
    :param missing: the fingerprint of the secret key that this process lacks, so that it cannot be read here.
    :param since: when it was leased, by this process's clock.
    """

    queue: str
    callback: Consumer
    task_id: str
    token: int
    failures: int
    lost: int
    task: Task[Any] | None
    missing: str | None = None
    spared: int = 0
    tick: datetime | None = None
    since: float = dataclasses.field(default_factory=time.monotonic, compare=False)

    def __str__(self) -> str:
        """Return how the log calls it."""
        if self.queue == SCHEDULES:
            return f"Schedule {self.callback} at {self.task_id}"
        if self.callback.method:
            return f"The send by {self.callback.method} of task {self.task_id}"
        what = "The reminder" if self.callback.early else f"Callback {self.callback}"
        return f"{what} on task {self.task_id}"


def dump_data(data: object, *, maximum: int) -> str:
    """Return an app's data as compact, strict JSON.

    :param data: any JSON value: no NaN, no keys but strings.
    :param maximum: how many bytes it may take.
    :raises InvalidTask: if it is no such value or too large.
    """
    try:
        _check_nested(data)
        text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise errors.InvalidTask(f"data must be a JSON value: {error!s:.200}") from None
    if size > maximum:
        raise errors.InvalidTask(
            f"data takes {size} bytes, more than TASKFLOW_MAX_DATA_SIZE = {maximum}: store it "
            "elsewhere and add its key to the task"
        )
    return text


def _check_nested(value: object, depth: int = 0) -> None:
    if depth == _DEPTH_MAX and isinstance(value, dict | list | tuple):
        raise ValueError(f"it is nested deeper than {_DEPTH_MAX} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {shown(key)} is not a string")
            _check_nested(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_nested(item, depth + 1)


def dump_fixed(
    *,
    queue: str,
    data: str,
    summary: str | None,
    allowed_methods: tuple[str, ...],
    priority: int,
    timeout: float,
    **more: str | Sequence[float] | None,
) -> str:
    """Return the part of a task that never changes, as it is stored and sealed.

    :param data: JSON already, see :func:`dump_data`; it goes in as it is.
    :param more: other fields of a task, left out where there is nothing.
    """
    rest: dict[str, Any] = {
        "queue": queue,
        "summary": summary,
        "allowed_methods": allowed_methods,
        "priority": priority,
        "timeout": timeout,
    }
    rest |= {name: value for name, value in more.items() if value is not None}
    head = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"data":{data}}}'


def load_fixed(text: str) -> dict[str, Any]:
    """Return the fields that :func:`dump_fixed` stored."""
    fixed: dict[str, Any] = json.loads(text)
    fixed["allowed_methods"] = tuple(fixed["allowed_methods"])
    for name in ("run_at", "send_at"):
        if name in fixed:
            fixed[name] = datetime.fromisoformat(fixed[name])
    fixed["remind"] = tuple(fixed.get("remind", ()))
    return fixed


def dump_task(draft: Draft, keyring: Keyring) -> dict[str, str]:
    """Return the strings that a new task is stored as; times, counts and codes come from the step."""
    addresses = draft.recipient.addresses()
    starts = max(keyring.now_ms(), _ms(draft.send_at) if draft.send_at else 0)
    ends = str(starts + int(draft.ttl * 1000))
    stored = {
        "v": "1",
        "fixed": draft.fixed,
        "ends": ends,
        "seal": keyring.seal(*_fixed_parts(draft.id, draft.fixed, ends, held=draft.holder is not None)),
        "seal.recipient": seal_recipient(draft.id, addresses, keyring),
        "status": Status.PENDING.value,
        "methods": ",".join(draft.methods),
        "priority": str(draft.priority),
        "attempts": "0",
        "updates": "0",
    }
    for field, address in addresses.items():
        stored |= {f"address.{field}": address, f"mac.{field}": limit_names(field, address, keyring)}
    if draft.holder is not None:
        stored["holder"] = "1"
    if draft.gated:
        stored["gated"] = "1"
    if draft.owner is not None:
        stored["mac.owner"] = ",".join(keyring.owners(draft.owner))
    for name, at in (("run_at", draft.run_at), ("send_at", draft.send_at)):
        if at is not None:
            stored[name] = str(_ms(at) - keyring.ahead)
    if draft.asked is not None:
        stored |= {"asked": keyring.asked(draft.id, draft.asked)[0], "named": ",".join(draft.named)}
    stored |= {f"{method}.field": field or "" for method, field in draft.methods.items()}
    return stored | {f"{method}.checks": "1" for method in draft.devices}


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def seal_recipient(task_id: str, addresses: Mapping[str, str], keyring: Keyring) -> str:
    """Return the seal over all addresses of a task, and over which it has none of."""
    return keyring.seal(*_recipient_parts(task_id, addresses))


def _fixed_parts(task_id: str, fixed: str, ends: str, *, held: bool) -> tuple[str, ...]:
    return (task_id, fixed, ends, "holder") if held else (task_id, fixed, ends)


def _recipient_parts(task_id: str, addresses: Mapping[str, str]) -> tuple[str, ...]:
    return task_id, *(addresses.get(field, "") for field in ADDRESS_FIELDS)


def limit_names(field: str, address: str, keyring: Keyring) -> str:
    """Return the names under which an address's limits are counted, as they are stored."""
    return ",".join(keyring.recipients(field, address))


def names_of(addresses: Mapping[str, str], keyring: Keyring) -> list[str]:
    """Return the names under which the tasks of some addresses are listed, each field's in turn."""
    return [name for field, address in addresses.items() for name in keyring.recipients(field, address)]


def flat(codes: Iterable[Code]) -> list[str]:
    """Return new codes as ``take_codes`` in ``lua/shared/sending.lua`` takes them."""
    return [item for code in codes for item in (code.method, code.nonce, code.digest, code.issued)]


def pairs_of(items: Sequence[bytes]) -> dict[str, str]:
    """Return a hash as a step answered it."""
    texts = [item.decode(errors="replace") for item in items]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def time_of(milliseconds: str | bytes | float) -> datetime:
    """Return a time as it is stored.

    :raises ValueError: if it is no number.
    :raises OverflowError: if no calendar has it.
    """
    return _EPOCH + timedelta(milliseconds=int(milliseconds))


def read_reply(
    task_id: str, reply: Sequence[Any], keyring: Keyring, limits: Limits | None = None
) -> Task[Any]:
    """Return the task that a step answered: the server's time in ms, and the stored strings.

    :raises TaskTampered: if a seal does not hold.
    :raises KeyMissing: if a seal is of a key that this process lacks.
    """
    return read_task(task_id, pairs_of(reply[1]), int(reply[0]), keyring, limits)


def read_sound(
    rows: Iterable[tuple[str, Sequence[bytes]]], now: int, keyring: Keyring, limits: Limits
) -> list[Task[Any]]:
    """Return those of some tasks that are there and bear this app's seal.

    :param rows: ids, each with the stored strings.
    :param now: the server's time in ms.
    :param limits: of which the tasks tell what they leave to them.
    :raises KeyMissing: if a seal is of a key that this process lacks.
    """
    found = []
    for task_id, items in rows:
        if items:
            with suppress(errors.TaskTampered):
                found.append(read_task(task_id, pairs_of(items), now, keyring, limits))
    return found


def read_task(
    task_id: str, fields: Fields, now: int, keyring: Keyring, limits: Limits | None = None
) -> Task[Any]:
    """Return a task from its stored strings; the one place where their seals are checked.

    :param now: the server's time in ms, which decides whether a pending task is expired.
    :param limits: if given, the task tells what they leave to it.
    :raises TaskTampered: if a seal does not hold.
    :raises KeyMissing: if a seal is of a key that this process lacks, and the others hold.
    """
    prefix = "address."
    addresses = {name[len(prefix) :]: fields[name] for name in fields if name.startswith(prefix)}
    try:
        if keyring.hold_all(_seals(task_id, fields, addresses)):
            return show_task(task_id, fields, now, Recipient(**addresses), limits)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        logger.warning("Task %s holds values that cannot be read.", task_id)
    record("task_tampered", task_id, level=logging.WARNING)
    raise errors.TaskTampered(f"task {task_id} was changed in Redis from outside: it is not used")


def _seals(task_id: str, fields: Fields, addresses: Mapping[str, str]) -> list[Sealed]:
    ends = fields["ends"]
    sealed: list[Sealed] = [
        (fields["seal"], _fixed_parts(task_id, fields["fixed"], ends, held="holder" in fields)),
        (fields["seal.recipient"], _recipient_parts(task_id, addresses)),
    ]
    if fields["status"] == Status.SUCCESS:
        sealed += _seals_of_proof(fields["proof"], task_id, fields["method"], ends)
    return sealed


def _seals_of_proof(proof: str, task_id: str, method: str, ends: str) -> list[Sealed]:
    """Return the seals that prove that a task's code was typed, with what they were made over.

    Two must meet over one digest. One was made when the code was issued, the other one when it was typed, by
    processes that had the key. Redis compares digests and copies MACs, and nothing depends on what it says is
    right: a wrong code that is planted as the right one was never issued. A code that a device makes is never
    issued; the process that found it right makes its one MAC.

    :param proof: ``<digest> <MAC> <until> <MAC> <at>``, or for a device ``<digest> <MAC> <at>``; times are ms
        by the clock of the process that made the MAC before.
    :param ends: when the task ends, ms by the clock of the process that added it.
    :raises ValueError: if it is no proof, or the code was typed too late.
    """
    digest, *words = proof.split(" ")
    if len(words) == 4:
        issued, until, presented, at = words
        sealed: list[Sealed] = [
            (issued, ("issued", task_id, method, digest, until)),
            (presented, ("presented", task_id, method, digest, at)),
        ]
    else:
        checked, at = words
        until, sealed = ends, [(checked, ("checked", task_id, method, digest, at))]
    if int(at) > min(int(until), int(ends)) + _TOLERANCE:
        raise ValueError("the code was typed after its end")
    return sealed


def is_near(fields: Fields, before: int, keyring: Keyring) -> bool:
    """Tell whether a task's end, as it was sealed, may be so near by now; ``expires`` has no seal.

    :param before: by how many milliseconds at most.
    """
    return int(fields["ends"]) - before <= keyring.now_ms() + _TOLERANCE


def show_task(
    task_id: str, fields: Fields, now: int, recipient: Recipient, limits: Limits | None = None
) -> Task[Any]:
    """Return a task from strings whose seals need no check: this process has just made them, or checked them.

    :param now: the server's time in ms, which decides whether a pending task is expired.
    :param limits: if given, the task tells what they leave to it.
    :raises ValueError: or another of its kind, if a string cannot be read.
    """
    status, expires = Status(fields["status"]), int(fields["expires"])
    if status is Status.PENDING and now >= expires:
        status = Status.EXPIRED
    fixed, verified, method = load_fixed(fields["fixed"]), fields.get("verified"), fields.get("method")
    if method is not None and method not in fixed["allowed_methods"]:
        raise ValueError("it was verified by a method that it does not allow")
    return Task(
        id=task_id,
        recipient=recipient,
        status=status,
        created_at=time_of(fields["created"]),
        expires_at=time_of(expires),
        verified_at=None if verified is None else time_of(verified),
        verification_method=method,
        outcomes=_outcomes(fields),
        **(_left(status, fixed["allowed_methods"], fields, now, limits) if limits else {}),
        **fixed,
    )


def _outcomes(fields: Fields) -> dict[str, CallbackOutcome]:
    """Return what became of a task's callbacks; nothing seals it, and what cannot be read is left out."""
    found = {}
    for name, text in fields.items():
        if name.startswith(_AFTER):
            with suppress(ValueError, OverflowError):
                state, attempts, since, *due = text.split(" ")
                next_at = time_of(due[0]) if due else None
                told = CallbackOutcome(Outcome(state), int(attempts), time_of(since), next_at)
                found[name[len(_AFTER) :]] = told
    return found


def _left(status: Status, methods: Iterable[str], fields: Fields, now: int, limits: Limits) -> dict[str, Any]:
    """Return how many attempts are left to a task, which codes it has, and when messages may follow."""
    left = None
    if status is Status.PENDING:
        left = max(limits.otp_max_attempts - _number(fields, "attempts"), 0)
    open_ = left is not None or (status is Status.FAILED and now < _number(fields, "expires"))
    spent = _number(fields, "sends") >= limits.max_sends
    waits, codes = dict[str, float](), dict[str, bool]()
    begin = _number(fields, "send_at")
    for method in methods if open_ else ():
        address = fields.get(f"{method}.field")
        reached = address == "" or f"address.{address}" in fields
        if reached and not (spent and f"{method}.checks" not in fields):
            waits[method] = max(_number(fields, f"{method}.next") - now, begin - now, 0) / 1000
        if reached and (out := _number(fields, f"{method}.out")):
            codes[method] = begin <= now and out > _is_refused(method, fields)
    return {"attempts_left": left, "resend_after": waits, "codes": codes}


def _is_refused(method: str, fields: Fields) -> bool:
    """Tell whether the send of a method's code was refused by now, and will be tried again."""
    posted = fields.get(f"{method}.posted")
    return f"{method}.refused" in fields and posted is not None and posted == fields.get(f"{method}.nonce")


def _number(fields: Fields, name: str) -> int:
    # No seal holds a count: somebody may have put anything in its place.
    text = fields.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def read_delivery(queue: str, consumer: Consumer, row: Sequence[Any], keyring: Keyring) -> Claimed:
    """Return a delivery that a step leased.

    :param row: its id, token, failures and losses, whether it was spared one, and the task's strings in one.
    """
    task_id, token, failures, lost, spared, body = row
    identity = task_id.decode(errors="replace")
    task = tick = missing = None
    try:
        if queue == SCHEDULES:
            tick = _sealed_tick(consumer, identity, body, keyring)
        elif not consumer.early:
            # What comes before a verification reads the task as it stands when it runs.
            task = _packed_task(queue, consumer, identity, body, keyring)
    except errors.KeyMissing as error:
        missing = error.fingerprint
    return Claimed(queue, consumer, identity, token, failures, lost, task, missing, spared, tick)


def dump_tick(schedule: str, tick: int, keyring: Keyring) -> tuple[str, str]:
    """Return a tick of a schedule as it is stored: its id and its body, which is a seal.

    :param tick: milliseconds since 1970.
    """
    identity = tick_id(tick)
    return identity, keyring.seal("tick", schedule, identity)


def tick_id(tick: int) -> str:
    """Return the id of a tick: its time, in UTC.

    :param tick: milliseconds since 1970.
    """
    text = time_of(tick).isoformat(timespec="milliseconds" if tick % 1000 else "seconds")
    return text.replace("+00:00", "Z")


def _sealed_tick(schedule: str, identity: str, seal: bytes, keyring: Keyring) -> datetime | None:
    with suppress(ValueError, OverflowError):
        tick = datetime.fromisoformat(identity)
        ours = keyring.hold_all([(seal.decode(), ("tick", schedule, identity))])
        if ours and tick.timestamp() * 1000 < keyring.now_ms() + _TOLERANCE:
            return tick
    record("task_tampered", f"{schedule}:{identity}", level=logging.WARNING)
    return None


def _packed_task(
    queue: str, consumer: Consumer, task_id: str, body: bytes, keyring: Keyring
) -> Task[Any] | None:
    try:
        task = read_task(task_id, _unpack(body), 0, keyring)
    except (errors.TaskTampered, ValueError, ArithmeticError, OSError):
        return None
    early = task.run_at is not None and _ms(task.run_at) > keyring.now_ms() + _TOLERANCE
    verified, ended = task.status is Status.SUCCESS, task.status is not Status.PENDING
    if task.queue == queue and (ended and not verified if consumer.ending else verified and not early):
        return task
    # The seals are right, but nobody typed its code, its time is to come, or the callbacks of this queue did
    # not ask for it.
    record("task_tampered", task_id, level=logging.WARNING)
    return None


def _unpack(body: bytes) -> Mapping[str, str]:
    parts: list[str] = []
    position = 0
    while position < len(body):
        colon = body.index(b":", position)
        size = int(body[position:colon])
        if size < 0:
            # It would lead back to where it was read.
            raise ValueError("a length is negative")
        start, position = colon + 1, colon + 1 + size
        parts.append(body[start:position].decode())
    return dict(zip(parts[::2], parts[1::2], strict=True))
