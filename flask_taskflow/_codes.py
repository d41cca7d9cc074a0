"""What this package says to Redis about codes that are on their way."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from ._config import Config
from ._keys import Keys, Scripts, tag_of
from ._otp import Keyring
from ._store import RECIPIENTS, Code, brought, in_ms, limits_of, listed, pairs_of, read_reply
from ._task import Status, Task

logger = logging.getLogger(__name__)

#: Milliseconds that a code should last yet when it is sent; the time for which a resend repeats it.
_WORTH_SENDING = 60_000


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

    def due(self, task_id: str, method: str) -> tuple[Task[Any], Code] | None:
        """Return the code that a send in the background is to carry, ``None`` if it is void.

        A code that is about to end has no digest: a new one must take its place.

        :raises TaskTampered: if the task was changed from outside.
        """
        word, *rest = self._scripts.run("get_task", self._keys.task(task_id))
        if word != "ok":
            return None
        task, fields = read_reply(task_id, rest, self._keyring), pairs_of(rest[1])
        try:
            if task.status is not Status.PENDING or int(fields.get(f"{method}.out", 0)) < 1:
                return None
            left = int(fields[f"{method}.until"]) - int(rest[0])
            lasts = left >= min(_WORTH_SENDING, in_ms(self._config.otp_ttl) / 2)
            return task, Code(method, fields[f"{method}.nonce"], fields[f"{method}.digest"] if lasts else "")
        except (KeyError, ValueError):
            logger.warning("The code of task %s by %s cannot be read: it is not sent.", task_id, method)
            return None

    def give_up(self, task_id: str, token: int, method: str, codes: Sequence[Code]) -> GivenUp | None:
        """Give up a send in the background, and fall back to the next method; ``None`` if it is not ours.

        :param token: the send's; 0 for one that was lost too often.
        :param codes: a new code for each method that this process can send by.
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
        )
        if word == "stale":
            return None
        return GivenUp(
            following=rest[0].decode() if word == "next" else None,
            failed=read_reply(task_id, rest, self._keyring) if word == "failed" else None,
        )
