"""The steps on tasks, from the first code to the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from .._keyring import Keyring, Presented
from .._tasks import Status, Task, mask
from .decoys import Decoys
from .keys import Keys, tag_of
from .limits import Limits
from .queues import Queues
from .records import (
    Code,
    Ended,
    Issued,
    Reserved,
    flat,
    limit_names,
    names_of,
    pairs_of,
    read_reply,
    seal_recipient,
    time_of,
)
from .registrations import Registration, Renamed
from .steps import Argument, Steps, refuse

#: Milliseconds for which a use of a foreign code is remembered: far longer than any of them is valid.
_USE_KEPT = 86_400_000
#: How often a step is told of other callbacks than it brought, and runs again with these.
_REREAD_MAX = 100


class _Followers(NamedTuple):
    """What follows the end of a queue's tasks, as the steps that end them take it.

    :param queue: its name.
    :param own: the callbacks that this process has of it.
    :param keys: of the queue and its callbacks.
    :param arguments: of the callbacks.
    """

    queue: str
    own: Mapping[str, Renamed]
    keys: Sequence[str]
    arguments: Sequence[Argument]


class TaskStore:
    """The lifecycle's steps, each one atomic and one round trip.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: makes and checks seals.
    :param queues: where a task's queue is listed.
    :param limits: what the steps hold tasks to.
    :param background: whether codes are stored to be sent, not sent at once.
    """

    def __init__(
        self, steps: Steps, keys: Keys, keyring: Keyring, queues: Queues, limits: Limits, *, background: bool
    ) -> None:
        self._steps = steps
        self._keys = keys
        self._keyring = keyring
        self._queues = queues
        self._limits = limits
        self._background = background
        #: Stand in for the tasks of unknown ids.
        self.decoys = Decoys(keyring, limits)
        # By tag: what Redis knows of, and what comes of that and of the callbacks that are here.
        self._registered: dict[str, Registration] = {}
        self._followers: dict[str, _Followers] = {}

    def verify(
        self, task_id: str, method: str, typed: Presented, *, status: Status = Status.SUCCESS
    ) -> Ended:
        """Consume a code, and store a delivery for each callback of the queue if it ends as ``SUCCESS``.

        :param status: how a right code ends the task.
        :raises OTPRejected: if the code was not accepted.
        """
        return self._end(
            "tasks/verify",
            task_id,
            status,
            method,
            self._limits.otp_max_attempts,
            self._limits.recipient_max_failures,
            typed.digests,
            typed.proofs,
            int(typed.held),
        )

    def reserve(
        self, task_id: str, method: str, typed: Presented, *, status: Status = Status.SUCCESS
    ) -> Reserved | Ended:
        """Count an attempt before its code is checked, unless it is the one that ended the task just now.

        :param status: how a right code is to end the task.
        :raises OTPRejected: if the task takes no code by this method.
        """
        word, *reply = self._steps.run(
            "tasks/reserve",
            self._keys.pending(task_id) + self._keys.of(tag_of(task_id), "decoy"),
            task_id,
            method,
            self._limits.retention,
            self._limits.otp_max_attempts,
            self._limits.recipient_failure_window,
            self._limits.recipient_max_failures,
            typed.digests,
            int(typed.held),
            [item for pair in self.decoys.stored(method).items() for item in pair],
        )
        if word not in ("ok", "again"):
            refuse(word, reply)
        task = self._read(task_id, reply)
        if word == "again":
            return _ended_again(task, status)
        return Reserved(task, time_of(reply[0]), int(reply[2]))

    def claim_use(self, task_id: str, method: str, address: str, use: str) -> bool:
        """Take one use of a code that the server did not make; false if another task took it before.

        A task may take it again: Redis may have failed before the task could be ended by it. A use has a
        name for each secret key and is taken under all: processes that have a key in common see it.
        """
        # All in one order: of two that take it at once, the first one gets all.
        names = sorted(self._keyring.uses(method, address, use))
        return all(self._take(self._keys.used(name), task_id) for name in names)

    def _take(self, key: str, task_id: str) -> bool:
        if self._steps.client.set(key, task_id, nx=True, px=_USE_KEPT):
            return True
        return bool(self._steps.client.get(key) == task_id.encode())

    def consume(
        self, task_id: str, method: str, digests: Sequence[str], *, status: Status = Status.SUCCESS
    ) -> Ended:
        """End a task whose reserved attempt was right, as :meth:`verify` does.

        :param digests: the typed code's digest under each secret key.
        :param status: how it ends.
        :raises OTPRejected: if it was ended meanwhile by another code, or in another way.
        """
        confirms = status is Status.SUCCESS
        proof = self._keyring.checked(task_id, method, digests[0], confirms=confirms)
        return self._end("tasks/consume", task_id, status, method, digests, proof)

    def lock(self, task_id: str) -> NoReturn:
        """Lock a task whose last reserved attempt was wrong.

        :raises TaskLocked: always.
        """
        keys, limits = self._keys.task(task_id, "pending"), self._limits
        self._steps.run("tasks/lock", keys, task_id, limits.retention, limits.otp_max_attempts)
        refuse("locked", ())

    def _end(self, step: str, task_id: str, status: Status, method: str, *rest: Argument) -> Ended:
        key, tag = self._keys.locate(task_id)
        for _ in range(_REREAD_MAX):
            followers = self._followers_of(tag)
            word, *reply = self._steps.run(
                step,
                [key, *followers.keys],
                task_id,
                status.value,
                method,
                self._keys.bell,
                self._limits.retention,
                *followers.arguments,
                self._limits.recipient_failure_window,
                *rest,
            )
            if word != "resubscribe":
                break
            self._registered[tag] = Registration.read(*reply)
            self._followers.pop(tag, None)
        if word not in ("ok", "again"):
            refuse(word, reply)
        task = self._read(task_id, reply)
        return _ended_again(task, status) if word == "again" else Ended(task, int(reply[2]))

    def _followers_of(self, tag: str) -> _Followers:
        """Return what follows the end of a queue's tasks, made anew when its callbacks have changed."""
        known = self._followers.get(tag)
        if known is not None and known.own == self._queues.own.get(known.queue):
            return known
        queue = self._queues.own_by_tag(tag) or ""
        callbacks = dict(self._queues.own.get(queue, {}))
        own = Registration.of(callbacks)
        joined = self._registered.get(tag, Registration()).joined(own)
        names = joined.current()
        arguments = [joined.epoch(), names, sorted(own.names), own.flat_aliases()]
        made = _Followers(queue, callbacks, self._keys.success(tag, names), arguments)
        # Whoever makes ids up makes tags up, too: what is kept for one of those would pile up.
        if queue:
            self._followers[tag] = made
        return made

    def resend(self, task_id: str, code: Code, *, keep: bool, held: bool = False) -> Issued:
        """Count one more message and return the code it carries.

        :param code: the new one, taken unless the one in force is kept.
        :param keep: whether the one in force may be sent again.
        :param held: whether the task's holder asks.
        :raises OTPRejected: if the task takes no code by this method.
        :raises ResendTooSoon: during the cooldown.
        :raises SendLimitReached: if the task or the recipient had enough.
        """
        reply = self._steps.succeed(
            "tasks/resend",
            self._keys.pending(task_id) + self._sends(task_id, [code]),
            task_id,
            self._keys.bell,
            int(keep),
            *self._limits.sending,
            self._keyring.fingerprints,
            int(held),
            flat([code]),
        )
        return self._issued(task_id, reply, [code.method])

    def update_recipient(
        self, task: Task[Any], addresses: Mapping[str, str], codes: Sequence[Code]
    ) -> tuple[Issued, dict[str, str]] | None:
        """Change addresses; return the codes to send, and the old addresses of changed fields.

        :param task: the task as it was read; ``None`` is returned if its addresses have changed since.
        :param codes: a new code for each method that this process can send by.
        :raises OTPRejected: if the task is not pending.
        :raises SendLimitReached: if the task or a recipient had enough; nothing is changed then.
        """
        before = task.recipient.addresses()
        new = {field: address for field, address in addresses.items() if before.get(field) != address}
        left = names_of({field: before[field] for field in new if field in before}, self._keyring)
        entered = names_of(new, self._keyring)
        given = [
            item
            for field, address in addresses.items()
            for item in (field, address, limit_names(field, address, self._keyring), mask(address))
        ]
        word, *reply = self._steps.run(
            "tasks/update_recipient",
            [
                *self._keys.pending(task.id),
                *self._keys.listings(tag_of(task.id), addresses=[*left, *entered]),
                *self._sends(task.id, codes),
            ],
            task.id,
            self._keys.bell,
            self._limits.max_recipient_updates,
            *self._limits.sending,
            self._keyring.fingerprints,
            [item for pair in before.items() for item in pair],
            given,
            seal_recipient(task.id, {**before, **addresses}, self._keyring),
            len(left),
            len(entered),
            flat(codes),
        )
        if word == "changed":
            return None
        if word != "ok":
            refuse(word, reply)
        methods = [name.decode() for name in reply[3]]
        return self._issued(task.id, reply, methods), pairs_of(reply[2])

    def cancel(self, task_id: str) -> Task[Any]:
        """End a task that is pending or may be again, or a verified one whose callbacks wait for its time.

        :raises OTPRejected: if it is neither.
        """
        keys = self._keys.task(task_id, "pending", "handlers", "unclaimed")
        own = self._keyring.fingerprints
        return self._read(
            task_id, self._steps.succeed("tasks/cancel", keys, task_id, self._limits.retention, own)
        )

    def get(self, task_id: str, *, held: bool = True) -> tuple[Task[Any], datetime]:
        """Return a task and the server's time.

        :param held: whether its holder asks, or the app itself.
        :raises TaskNotFound: if there is none.
        :raises NotHolder: if it has a holder, and somebody else asks.
        """
        reply = self._steps.succeed("tasks/get", self._keys.task(task_id))
        if not held and "holder" in pairs_of(reply[1]):
            refuse("not_holder", ())
        return self._read(task_id, reply), time_of(reply[0])

    def _read(self, task_id: str, reply: Sequence[Any]) -> Task[Any]:
        return read_reply(task_id, reply, self._keyring, self._limits)

    def _sends(self, task_id: str, codes: Iterable[Code]) -> list[str]:
        """Return the keys for the sends of codes, none if they are sent inline."""
        return self._keys.sends(task_id, [code.method for code in codes]) if self._background else []

    def _issued(self, task_id: str, reply: Sequence[Any], methods: Iterable[str]) -> Issued:
        now, fields = int(reply[0]), pairs_of(reply[1])
        codes = [
            Code(
                name,
                fields[f"{name}.nonce"],
                fields[f"{name}.digest"],
                fields[f"{name}.issued"],
                lasts=(int(fields[f"{name}.until"]) - now) / 1000,
            )
            for name in methods
        ]
        waits = [int(fields[f"{code.method}.next"]) - now for code in codes]
        return Issued(self._read(task_id, reply), codes, max(waits, default=0) / 1000)


def _ended_again(task: Task[Any], status: Status) -> Ended:
    """Return a task whose code came again.

    :raises TaskNotPending: if it came for another end than that which it has.
    """
    if task.status is not status:
        refuse("finished", [task.status.encode()])
    return Ended(task, 0, again=True)
