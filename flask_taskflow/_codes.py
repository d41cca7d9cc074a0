"""What this package says to Redis about codes that are on their way."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis

from ._config import Config
from ._keys import KINDS, SENDS, Keys, Scripts, tag_of
from ._otp import Keyring
from ._store import RECIPIENTS, Code, brought, in_ms, limits_of, listed, pairs_of, read_reply
from ._task import Status, Task
from .errors import TaskTampered

logger = logging.getLogger(__name__)

#: Milliseconds that a code should last yet when it is sent; the time for which a resend repeats it.
_WORTH_SENDING = 60_000


@dataclass(frozen=True, slots=True)
class Due:
    """What a send in the background is to carry.

    :param task: the task as it stands.
    :param code: the code in force, without a digest if a new one must take its place.
    :param left: seconds until the task ends.
    """

    task: Task[Any]
    code: Code
    left: float


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What became of a task whose send was given up.

    :param following: the method that is tried now, or ``None``.
    :param failed: the task, if no method was left.
    """

    following: str | None
    failed: Task[Any] | None


class CodeStore:
    """The steps on codes that were issued, each one atomic and one round trip.

    :param client: answers bytes and does not retry.
    :param keys: the names of keys.
    :param config: the limits.
    :param keyring: checks seals.
    """

    def __init__(self, client: Redis, keys: Keys, config: Config, keyring: Keyring) -> None:
        self._scripts = Scripts(client)
        self._keys = keys
        self._config = config
        self._keyring = keyring

    def rotate(self, task_id: str, old: Code, new: Code) -> bool:
        """Put another code in the place of one just issued; false if that one is no longer in force."""
        word, *_ = self._scripts.run(
            "rotate",
            self._keys.task(task_id),
            old.method,
            old.nonce,
            new.nonce,
            new.digest,
            in_ms(self._config.otp_ttl),
        )
        return bool(word == "ok")

    def unsent(self, task_id: str, codes: Iterable[Code]) -> None:
        """Disarm codes whose send failed and that no other send delivered; clear the cooldown."""
        failed = [item for code in codes for item in (code.method, code.nonce)]
        self._scripts.run("unsent", self._keys.task(task_id), *listed(failed))

    def due(self, task_id: str, method: str) -> Due | None:
        """Return what a send in the background is to carry, ``None`` if it is void.

        A code that is about to end before its task has no digest: a new one must take its place.

        :raises TaskTampered: if the task was changed from outside.
        """
        word, *rest = self._scripts.run("get_task", self._keys.task(task_id))
        if word != "ok":
            return None
        task, fields, now = read_reply(task_id, rest, self._keyring), pairs_of(rest[1]), int(rest[0])
        try:
            nonce, digest = fields.get(f"{method}.nonce", ""), fields.get(f"{method}.digest", "")
            # A code that was issued since by a process that sends inline is its to send.
            ours = int(fields.get(f"{method}.out", 0)) > 0 and fields.get(f"{method}.posted") == nonce
            if task.status is not Status.PENDING or not ours:
                return None
            ends, until = int(fields["expires"]), int(fields[f"{method}.until"])
            lasts = until - now >= min(_WORTH_SENDING, in_ms(self._config.otp_ttl) / 2) or until >= ends
            return Due(task, Code(method, nonce, digest if lasts else ""), (ends - now) / 1000)
        except (KeyError, ValueError):
            logger.warning("The code of task %s by %s cannot be read: it is not sent.", task_id, method)
            return None

    def sent(self, task_id: str, queue: str, token: int, code: Code, *, again: bool = False) -> bool:
        """Report that a send in the background delivered a code; false if it was not ours any more.

        :param token: the send's.
        :param again: the reply to an earlier report was lost: if the send is gone, it went with that.
        """
        sends = self._keys.handler(self._keys.tag(queue), SENDS + code.method, *KINDS)
        word, *_ = self._scripts.run(
            "sent", self._keys.task(task_id) + sends, task_id, token, code.method, code.nonce
        )
        return word == "ok" or (again and word == "gone")

    def give_up(
        self, task_id: str, token: int, method: str, codes: Sequence[Code], devices: Sequence[str]
    ) -> GivenUp | None:
        """Give up a send in the background, and fall back to the next method; ``None`` if it is not ours.

        :param token: the send's; 0 for one that was lost too often.
        :param codes: a new code for each method that this process can send by.
        :param devices: the methods whose codes are right without a message.
        """
        tag = tag_of(task_id)
        sends = self._keys.sends(tag, [code.method for code in codes])
        word, *rest = self._scripts.run(
            "give_up",
            self._keys.task(task_id) + self._keys.of(tag, "pending", *RECIPIENTS) + sends,
            task_id,
            token,
            method,
            self._keys.bell,
            in_ms(self._config.retention),
            *limits_of(self._config),
            *brought(codes),
            *listed(devices),
        )
        if word == "stale":
            return None
        failed = None
        if word == "failed":
            # Who tampered with the task was told of where it was noticed.
            with suppress(TaskTampered):
                failed = read_reply(task_id, rest, self._keyring)
        return GivenUp(following=rest[0].decode() if word == "next" else None, failed=failed)
