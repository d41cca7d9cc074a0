"""Everything that this package says to Redis about tasks: keys, steps and their replies."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from redis import Redis

from . import errors
from ._audit import record
from ._config import Config
from ._keys import Keys, Queues, Scripts, tag_of
from ._otp import Keyring
from ._schemas import load_fixed
from ._task import Recipient, Status, Task
from .strategies import Channel

logger = logging.getLogger(__name__)

#: Seconds for which a use of a foreign code is remembered: far longer than any of them is valid.
_USE_KEPT = 86400.0

Fields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Code:
    """What Redis keeps of a code. The code itself is never here.

    :param method: the method it is sent by.
    :param nonce: what it is derived from.
    :param digest: its HMAC, empty while a strategy's own code is not generated yet.
    """

    method: str
    nonce: str
    digest: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A task that is about to be stored.

    :param id: its id.
    :param queue: its queue.
    :param fixed: what never changes, as :func:`~flask_taskflow._schemas.dump_fixed` made it.
    :param recipient: whom codes go to.
    :param channels: its allowed methods, in order.
    :param priority: repeated outside ``fixed`` for the step that stores deliveries.
    :param ttl: seconds to live.
    """

    id: str
    queue: str
    fixed: str
    recipient: Recipient
    channels: Sequence[Channel]
    priority: int
    ttl: float


@dataclass(frozen=True, slots=True)
class Issued:
    """A task after a step that issued codes.

    :param task: the task.
    :param codes: the codes to send, in order.
    :param resend_after: seconds until the last of them can be sent again.
    """

    task: Task[Any]
    codes: Sequence[Code]
    resend_after: float = 0.0


class TaskStore:
    """The lifecycle's steps, each one atomic and one round trip.

    :param client: answers bytes and does not retry.
    :param keys: the names of keys.
    :param config: the limits.
    :param keyring: makes and checks seals.
    :param queues: where a task's queue is listed.
    """

    def __init__(self, client: Redis, keys: Keys, config: Config, keyring: Keyring, queues: Queues) -> None:
        self._client = client
        self._scripts = Scripts(client)
        self._keys = keys
        self._config = config
        self._keyring = keyring
        self._queues = queues
        self._handlers: dict[str, frozenset[str]] = {}

    def add(self, draft: Draft, codes: Sequence[Code]) -> Issued:
        """Store a task and count its first messages.

        :raises SendLimitReached: if a limit forbids them; nothing is stored then.
        """
        stored = self._stored(draft)
        fields = {channel.method: channel.address_field for channel in draft.channels}
        messages: list[str] = []
        for code in codes:
            mac = stored.get(f"mac.{fields[code.method]}", "")
            messages += [code.method, mac, code.nonce, code.digest]
        tag = tag_of(draft.id)
        if self._config.sends_in_background:
            # Whoever sends must hear of the queue, even if this process ends in a moment.
            self._queues.add(draft.queue)
        word, *rest = self._scripts.run(
            "add_task",
            [
                *self._keys.task(draft.id),
                *self._keys.of(tag, "pending", *RECIPIENTS),
                *self._sends(tag, [code.method for code in codes]),
            ],
            draft.id,
            in_ms(draft.ttl),
            draft.priority,
            self._keys.bell,
            *limits_of(self._config),
            *listed([item for pair in stored.items() for item in pair]),
            *listed(messages),
        )
        if word != "ok":
            _refuse(word, rest)
        self._queues.add(draft.queue)
        created, expires = int(rest[0]), int(rest[1])
        stored |= {"created": str(created), "expires": str(expires)}
        return Issued(read_task(draft.id, stored, created, self._keyring), codes)

    def verify(self, task_id: str, method: str, digests: Sequence[str], own: Collection[str]) -> Task[Any]:
        """Consume a code, and store a delivery for each callback of the queue.

        :param digests: the typed code's digest under each secret key.
        :param own: the callbacks that this process has for the task's queue.
        :raises OTPRejected: if the code was not accepted.
        """
        return self._end(
            "verify",
            task_id,
            method,
            own,
            self._config.otp_max_attempts,
            in_ms(self._config.recipient_failure_window),
            *listed(digests),
        )

    def reserve(self, task_id: str, method: str) -> tuple[Task[Any], datetime, int]:
        """Count an attempt before its code is checked; return task, server's time, attempts left.

        :raises OTPRejected: if the task takes no code by this method.
        """
        word, *rest = self._scripts.run(
            "reserve",
            self._verification_keys(task_id),
            task_id,
            method,
            in_ms(self._config.retention),
            self._config.otp_max_attempts,
            in_ms(self._config.recipient_failure_window),
        )
        if word != "ok":
            _refuse(word, rest)
        return read_reply(task_id, rest, self._keyring), _time(rest[0]), int(rest[2])

    def claim_use(self, task_id: str, method: str, address: str, use: str) -> bool:
        """Take one use of a code that the server did not make; false if another task took it before.

        A task may take it again: Redis may have failed before the task could be ended by it.
        """
        key = f"{self._keys.prefix}:used:{self._keyring.seal('used', method, address, use)}"
        if self._client.set(key, task_id, nx=True, px=in_ms(_USE_KEPT)):
            return True
        return bool(self._client.get(key) == task_id.encode())

    def consume(self, task_id: str, method: str, own: Collection[str]) -> Task[Any]:
        """End a task whose reserved attempt was right.

        :raises OTPRejected: if it was ended meanwhile.
        """
        return self._end("consume", task_id, method, own)

    def lock(self, task_id: str) -> NoReturn:
        """Lock a task whose last reserved attempt was wrong.

        :raises TaskLocked: always.
        """
        keys = self._keys.task(task_id) + self._keys.of(tag_of(task_id), "pending")
        config = self._config
        self._scripts.run("lock", keys, task_id, in_ms(config.retention), config.otp_max_attempts)
        _refuse("locked", ())

    def _verification_keys(self, task_id: str) -> list[str]:
        names = ("pending", *RECIPIENTS, "handlers", "seq", "decoy")
        return self._keys.task(task_id) + self._keys.of(tag_of(task_id), *names)

    def _end(self, step: str, task_id: str, method: str, own: Collection[str], *rest: str | int) -> Task[Any]:
        tag = tag_of(task_id)
        while True:
            names = sorted(self._handlers.get(tag, frozenset()).union(own))
            keys = [key for name in names for key in self._keys.handler(tag, name, *_ENQUEUED)]
            word, *reply = self._scripts.run(
                step,
                self._verification_keys(task_id) + keys,
                task_id,
                method,
                self._keys.bell,
                in_ms(self._config.retention),
                _epoch(names),
                *listed(names),
                *listed(sorted(own)),
                *rest,
            )
            if word != "resubscribe":
                break
            self._handlers[tag] = frozenset(name.decode() for name in reply[0])
        if word != "ok":
            _refuse(word, reply)
        return read_reply(task_id, reply, self._keyring)

    def resend(self, task_id: str, code: Code, *, keep: bool) -> Issued:
        """Count one more message and return the code it carries.

        :param code: the new one, taken unless the one in force is kept.
        :param keep: whether the one in force may be sent again.
        :raises OTPRejected: if the task takes no code by this method.
        :raises ResendTooSoon: during the cooldown.
        :raises SendLimitReached: if the task or the recipient had enough.
        """
        tag = tag_of(task_id)
        word, *rest = self._scripts.run(
            "resend_otp",
            self._keys.task(task_id) + self._keys.of(tag, *RECIPIENTS) + self._sends(tag, [code.method]),
            task_id,
            code.method,
            self._keys.bell,
            int(keep),
            code.nonce,
            code.digest,
            *limits_of(self._config),
        )
        if word != "ok":
            _refuse(word, rest)
        return self._issued(task_id, rest, [code.method])

    def update_recipient(
        self, task_id: str, addresses: Mapping[str, str], codes: Sequence[Code]
    ) -> tuple[Issued, dict[str, str]]:
        """Change addresses; return the codes to send, and the old addresses of changed fields.

        :param codes: a new code for each method that this process can send by.
        :raises OTPRejected: if the task is not pending.
        :raises SendLimitReached: if the task or a recipient had enough; nothing is changed then.
        """
        given = [
            item
            for field, address in addresses.items()
            for item in (field, address, *self._sealed(task_id, field, address))
        ]
        tag = tag_of(task_id)
        sends = self._sends(tag, [code.method for code in codes])
        word, *rest = self._scripts.run(
            "update_recipient",
            self._keys.task(task_id) + self._keys.of(tag, *RECIPIENTS) + sends,
            task_id,
            self._keys.bell,
            self._config.max_recipient_updates,
            *limits_of(self._config),
            *listed(given),
            *brought(codes),
        )
        if word != "ok":
            _refuse(word, rest)
        return self._issued(task_id, rest, [name.decode() for name in rest[3]]), pairs_of(rest[2])

    def cancel(self, task_id: str) -> Task[Any]:
        """End a pending task.

        :raises OTPRejected: if it is not pending.
        """
        word, *rest = self._scripts.run(
            "cancel_task",
            self._keys.task(task_id) + self._keys.of(tag_of(task_id), "pending"),
            task_id,
            in_ms(self._config.retention),
        )
        if word != "ok":
            _refuse(word, rest)
        return read_reply(task_id, rest, self._keyring)

    def get(self, task_id: str) -> tuple[Task[Any], datetime]:
        """Return a task and the server's time.

        :raises TaskNotFound: if there is none.
        """
        word, *rest = self._scripts.run("get_task", self._keys.task(task_id))
        if word != "ok":
            _refuse(word, rest)
        return read_reply(task_id, rest, self._keyring), _time(rest[0])

    def _stored(self, draft: Draft) -> dict[str, str]:
        stored = {
            "v": "1",
            "fixed": draft.fixed,
            "seal": self._keyring.seal(draft.id, draft.fixed),
            "status": Status.PENDING.value,
            "methods": ",".join(channel.method for channel in draft.channels),
            "priority": str(draft.priority),
            "attempts": "0",
            "updates": "0",
        }
        for field, address in draft.recipient.addresses().items():
            seal, mac = self._sealed(draft.id, field, address)
            stored |= {f"address.{field}": address, f"seal.{field}": seal, f"mac.{field}": mac}
        return stored | {f"{channel.method}.field": channel.address_field or "" for channel in draft.channels}

    def _sealed(self, task_id: str, field: str, address: str) -> tuple[str, str]:
        return self._keyring.seal(task_id, field, address), self._keyring.recipient(address)

    def _sends(self, tag: str, methods: Sequence[str]) -> list[str]:
        """Return the keys for sends by some methods, none if codes are sent inline."""
        if not self._config.sends_in_background:
            return []
        return self._keys.sends(tag, methods)

    def _issued(self, task_id: str, reply: Sequence[Any], methods: Iterable[str]) -> Issued:
        fields = pairs_of(reply[1])
        codes = [Code(name, fields[f"{name}.nonce"], fields[f"{name}.digest"]) for name in methods]
        waits = [int(fields[f"{code.method}.next"]) - int(reply[0]) for code in codes]
        return Issued(read_reply(task_id, reply, self._keyring), codes, max(waits, default=0) / 1000)


RECIPIENTS = ("recipients", "recipients:expiry")
_ENQUEUED = ("ready", "meta", "body")


def read_reply(task_id: str, reply: Sequence[Any], keyring: Keyring) -> Task[Any]:
    """Return the task that a step answered: the server's time in ms, and the stored strings.

    :raises TaskTampered: if a seal does not hold.
    """
    return read_task(task_id, pairs_of(reply[1]), int(reply[0]), keyring)


def read_task(task_id: str, fields: Fields, now: int, keyring: Keyring) -> Task[Any]:
    """Return a task from its stored strings; the one place where seals are checked.

    :param now: the server's time in ms, which decides whether a pending task is expired.
    :raises TaskTampered: if a seal does not hold.
    """
    prefix = "address."
    addresses = {name[len(prefix) :]: fields[name] for name in fields if name.startswith(prefix)}
    sealed = keyring.holds(fields.get("seal", ""), task_id, fields.get("fixed", "")) and all(
        keyring.holds(fields.get(f"seal.{field}", ""), task_id, field, address)
        for field, address in addresses.items()
    )
    try:
        if sealed:
            return _task(task_id, fields, now, Recipient(**addresses))
    except (KeyError, TypeError, ValueError):
        logger.warning("Task %s holds values that cannot be read.", task_id)
    record("task_tampered", task_id, level=logging.WARNING)
    raise errors.TaskTampered(
        f"task {task_id} was changed in Redis from outside, or its SECRET_KEY was taken away: it is not used"
    )


def _task(task_id: str, fields: Fields, now: int, recipient: Recipient) -> Task[Any]:
    status, expires = Status(fields["status"]), int(fields["expires"])
    if status is Status.PENDING and now >= expires:
        status = Status.EXPIRED
    verified = fields.get("verified")
    return Task(
        id=task_id,
        recipient=recipient,
        status=status,
        created_at=_time(fields["created"]),
        expires_at=_time(expires),
        verified_at=None if verified is None else _time(verified),
        verification_method=fields.get("method"),
        **load_fixed(fields["fixed"]),
    )


def limits_of(config: Config) -> list[int]:
    """Return the limits of sending as steps take them."""
    return [
        in_ms(config.otp_ttl),
        config.max_sends,
        config.recipient_max_sends,
        in_ms(config.recipient_window),
        config.recipient_max_failures,
        in_ms(config.resend_cooldown),
        in_ms(config.resend_cooldown_max),
    ]


def _refuse(word: str, rest: Sequence[Any]) -> NoReturn:
    match word:
        case "unknown":
            raise errors.TaskNotFound("there is no such task")
        case "expired":
            raise errors.TaskExpired("the task's time is over: add a new one")
        case "locked":
            raise errors.TaskLocked("too many wrong codes: the task is locked", attempts_left=0)
        case "finished":
            status = _status(rest[0])
            if status is Status.LOCKED:
                raise errors.TaskLocked("too many wrong codes: the task is locked")
            raise errors.TaskNotPending(f"the task is over: {status}", status=status)
        case "wrong":
            raise errors.WrongCode("this is not the code in force", attempts_left=int(rest[0]))
        case "code_expired":
            raise errors.CodeExpired("the code is over: resend one", attempts_left=int(rest[0]))
        case "not_allowed":
            left = int(rest[0]) if rest else None
            raise errors.MethodNotAllowed("the task does not allow this method", attempts_left=left)
        case "no_address":
            raise errors.MethodNotAllowed("the recipient has no address for this method")
        case "too_soon":
            raise errors.ResendTooSoon("a code was sent just now", retry_after=int(rest[0]) / 1000)
        case "send_limit":
            message = "the task or its recipient had all the codes it may have for now"
            raise errors.SendLimitReached(message, retry_after=int(rest[0]) / 1000)
        case "no_strategy":
            raise errors.ConfigError(
                f"this process has no strategy for {rest[0].decode()}: register it as where the task "
                "was added"
            )
    raise AssertionError(f"a step answered {word}")


def _status(stored: bytes) -> Status:
    try:
        return Status(stored.decode())
    except ValueError:
        raise errors.TaskTampered("the task's status was changed in Redis from outside") from None


def brought(codes: Iterable[Code]) -> list[str | int]:
    """Return new codes as steps take them."""
    return listed([item for code in codes for item in (code.method, code.nonce, code.digest)])


def listed(items: Sequence[str]) -> list[str | int]:
    """Return a list as steps take it."""
    return [len(items), *items]


def in_ms(seconds: float) -> int:
    """Return seconds in milliseconds, as steps take them."""
    return max(int(seconds * 1000), 0)


def _time(milliseconds: str | bytes | int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def pairs_of(flat: Sequence[bytes]) -> dict[str, str]:
    """Return a hash as a step answered it."""
    items = [item.decode(errors="replace") for item in flat]
    return dict(zip(items[::2], items[1::2], strict=True))


def _epoch(names: Sequence[str]) -> str:
    joined = ",".join(names).encode()
    return hashlib.sha1(joined, usedforsecurity=False).hexdigest() if names else ""
