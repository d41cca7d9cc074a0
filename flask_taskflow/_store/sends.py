"""The steps on codes that are on their way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from .._keyring import Keyring
from .._log import Logger
from .._tasks import Status, Task
from ..errors import KeyMissing, TaskTampered
from .deliveries import cut_error, words_of
from .keys import Consumer, Keys
from .limits import Limits
from .records import Claimed, Code, Due, Fields, flat, pairs_of, read_reply, read_task
from .steps import Steps

logger = Logger(__name__)

#: Milliseconds that a code should last yet when it is sent; the time for which a resend repeats it.
_WORTH_SENDING = 60_000
#: Milliseconds that a task must live yet for a code to be sent: what is shorter nobody reads and types in
#: time. Half the life of a task that is as short as that. ``lua/shared/sending.lua`` knows both.
_WORTH_READING = 20_000

#: How a send may end without a success, see ``lua/sends/give_up.lua``.
Why = Literal["refused", "unknown", "dropped"]


class GivenUp(NamedTuple):
    """What became of a task whose send was given up.

    :param following: the method that is tried now, or ``None``.
    :param failed: the task, if no method was left.
    """

    following: str | None
    failed: Task[Any] | None


class Delay(NamedTuple):
    """When a send is tried again, and why.

    :param seconds: the wait.
    :param patience: seconds of refusals after which the next method is tried as well; ``None``: never.
    :param error: what happened.
    :param cause: its class.
    :param hung: whether the attempt was written off; that is repeated once only.
    """

    seconds: float
    patience: float | None
    error: str
    cause: str
    hung: bool = False


class Postponed(NamedTuple):
    """What became of a send that was to be repeated.

    :param word: ``ok`` or ``next``; ``stale`` if it was not ours any more; ``again`` if it was written off
        before, and nothing was changed.
    :param following: the method that is tried as well, or ``None``.
    """

    word: str
    following: str | None


class CodeStore:
    """The steps on codes that were issued, each one atomic and one round trip.

    :param steps: runs them.
    :param keys: the names of keys.
    :param keyring: checks seals.
    :param limits: what the steps hold codes to.
    """

    def __init__(self, steps: Steps, keys: Keys, keyring: Keyring, limits: Limits) -> None:
        self._steps = steps
        self._keys = keys
        self._keyring = keyring
        self._limits = limits

    def rotate(self, task_id: str, old: Code, new: Code) -> bool:
        """Put another code in the place of one just issued; false if that one is no longer in force."""
        word, *_ = self._steps.run(
            "sends/rotate",
            self._keys.task(task_id),
            old.method,
            old.nonce,
            new.nonce,
            new.digest,
            new.issued,
            self._limits.otp_ttl,
        )
        return bool(word == "ok")

    def unsent(self, task_id: str, codes: Iterable[tuple[Code, str]]) -> None:
        """Disarm codes whose send failed and that no other send delivered; clear the cooldown.

        :param codes: each with the class of what was raised.
        """
        failed = [item for code, cause in codes for item in (code.method, code.nonce, words_of(cause))]
        self._steps.run("sends/unsent", self._keys.task(task_id), task_id, failed)

    def due(self, task_id: str, method: str) -> Due | None:
        """Return what a send in the background is to carry, ``None`` if it is void.

        A code that is about to end before its task has no digest: a new one must take its place.

        :raises TaskTampered: if the task was changed from outside.
        :raises KeyMissing: if the task or the code is of a secret key that this process lacks.
        """
        word, *rest = self._steps.run("tasks/get", self._keys.task(task_id))
        if word != "ok":
            return None
        now, fields = int(rest[0]), pairs_of(rest[1])
        task = read_task(task_id, fields, now, self._keyring)
        try:
            nonce, digest = fields.get(f"{method}.nonce", ""), fields.get(f"{method}.digest", "")
            # A code that was issued since by a process that sends inline is its to send.
            ours = int(fields.get(f"{method}.out", 0)) > 0 and fields.get(f"{method}.posted") == nonce
            if task.status is not Status.PENDING or not ours:
                return None
            ends, until = int(fields["expires"]), int(fields[f"{method}.until"])
            lasts = until - now >= min(_WORTH_SENDING, self._limits.otp_ttl / 2) or until >= ends
            self._keyring.check_known(digest if lasts else "")
            left = until - now if lasts else min(self._limits.otp_ttl, ends - now)
            issued = fields.get(f"{method}.issued", "")
            code = Code(method, nonce, digest if lasts else "", issued, lasts=left / 1000)
            return Due(task, code, (ends - now) / 1000, _needless(fields, method, now))
        except (KeyError, ValueError, ArithmeticError):
            logger.warning("The code of task %s by %s cannot be read: it is not sent.", task_id, method)
            return None

    def sent(self, task_id: str, queue: str, token: int, code: Code, *, again: bool = False) -> bool:
        """Report that a send in the background delivered a code; false if it was not ours any more.

        :param token: the send's.
        :param again: the reply to an earlier report was lost: if the send is gone, it went with that.
        """
        sends = self._keys.deliveries(queue, [Consumer.sending(code.method)])
        word, *_ = self._steps.run(
            "sends/sent", self._keys.task(task_id) + sends, task_id, token, code.method, code.nonce
        )
        return word == "ok" or (again and word == "gone")

    def postpone(self, item: Claimed, delay: Delay, codes: Sequence[Code]) -> Postponed:
        """Report an attempt that is to be repeated; the next method may be tried beside it.

        :param codes: a new code for each method that this process can send by.
        """
        method = item.callback.method or ""
        word, *rest = self._steps.run(
            "sends/postpone",
            self._falling_keys(item.task_id, codes),
            item.task_id,
            item.token,
            method,
            self._keys.bell,
            *self._limits.sending,
            flat(codes),
            int(delay.seconds * 1000),
            -1 if delay.patience is None else int(delay.patience * 1000),
            cut_error(delay.error),
            words_of(delay.cause),
            int(delay.hung),
        )
        return Postponed(word, rest[0].decode() if word == "next" else None)

    def give_up(
        self,
        task_id: str,
        token: int,
        method: str,
        codes: Sequence[Code],
        devices: Sequence[str],
        why: Why = "refused",
        cause: str = "",
    ) -> GivenUp | None:
        """End a send in the background, and fall back to the next method; ``None`` if it is not ours.

        :param token: the send's; 0 for one that was lost too often.
        :param codes: a new code for each method that this process can send by.
        :param devices: the methods whose codes are right without a message.
        :param why: it was refused for good; its code may have arrived; or no code is wanted by it any more.
        :param cause: the class of what was raised, or why no code is wanted.
        """
        word, *rest = self._steps.run(
            "sends/give_up",
            self._falling_keys(task_id, codes),
            task_id,
            token,
            method,
            why,
            words_of(cause),
            self._keys.bell,
            self._limits.retention,
            *self._limits.sending,
            flat(codes),
            devices,
        )
        if word == "stale":
            return None
        failed = None
        if word == "failed":
            # Who tampered with the task was told of where it was noticed.
            with suppress(TaskTampered, KeyMissing):
                failed = read_reply(task_id, rest, self._keyring)
        return GivenUp(following=rest[0].decode() if word == "next" else None, failed=failed)

    def _falling_keys(self, task_id: str, codes: Sequence[Code]) -> list[str]:
        sends = self._keys.sends(task_id, [code.method for code in codes])
        return self._keys.pending(task_id) + sends


def _needless(fields: Fields, method: str, now: int) -> str | None:
    """Return why no code is wanted by a method any more, though one waits to be sent."""
    starts = max(int(fields["created"]), int(fields.get("send_at", 0)))
    left, life = int(fields["expires"]) - now, int(fields["expires"]) - starts
    if left < min(_WORTH_READING, life / 2):
        return "too_late"
    if f"{method}.spare" in fields:
        others = [name for name in fields["methods"].split(",") if name != method]
        if any(_is_delivered(fields, name, now) for name in others):
            return "delivered_otherwise"
    return None


def _is_delivered(fields: Fields, method: str, now: int) -> bool:
    out = int(fields.get(f"{method}.out", 0))
    waits = fields.get(f"{method}.posted", "") == fields.get(f"{method}.nonce")
    return out - waits > 0 and now < int(fields.get(f"{method}.until", 0))
