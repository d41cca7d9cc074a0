"""The step that stores a task: anew, in the place of others, or once for all calls with one key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._keyring import Keyring
from ..errors import KeyReused
from .keys import Keys, tag_of
from .limits import Limits
from .queues import Queues
from .records import (
    Code,
    Draft,
    Issued,
    dump_task,
    flat,
    pairs_of,
    read_reply,
    read_sound,
    show_task,
)
from .steps import Steps, refuse


class NewTaskStore:
    """The step that stores a task, atomic and one round trip, two if it replaces others.

    :param steps: runs it.
    :param keys: the names of keys.
    :param keyring: makes and checks seals.
    :param queues: where a task's queue is listed.
    :param limits: what the step holds tasks to.
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

    def add(self, draft: Draft, codes: Sequence[Code]) -> Issued:
        """Store a task and count its first messages, unless a task of its key is there.

        :raises KeyReused: if that was added with other arguments; nothing is stored then.
        :raises SendLimitReached: if a limit forbids them; nothing is stored then.
        """
        stored = dump_task(draft, self._keyring)
        if self._background or draft.remind:
            # Whoever sends, or is reminded, must hear of the queue, even if this process ends in a moment.
            self._queues.add(draft.queue)
        owner = stored["mac.owner"].split(",") if draft.owner else []
        addresses = [
            name for field in draft.recipient.addresses() for name in stored[f"mac.{field}"].split(",")
        ]
        named = self._keys.named(draft.id, draft.named)
        listings = self._keys.listings(tag_of(draft.id), owner, addresses)
        sends = self._keys.sends(draft.id, [code.method for code in codes]) if self._background else []
        word, reply = "others", list[Any]([()])
        while word == "others":
            replaced = [each.decode() for each in reply[0]]
            tasks = [self._keys.task(each)[0] for each in replaced]
            word, *reply = self._steps.run(
                "tasks/add",
                [*self._keys.pending(draft.id), *named, *tasks, *listings, *sends],
                draft.id,
                int(draft.ttl * 1000),
                stored.get("send_at", 0),
                self._limits.retention,
                draft.priority,
                self._keys.bell,
                *self._limits.sending,
                [item for pair in stored.items() for item in pair],
                _counted_for(draft, codes, stored),
                flat(codes),
                len(named),
                owner,
                len(addresses),
                int(draft.replaces),
                replaced,
                self._keyring.fingerprints,
                int(max(draft.remind, default=0) * 1000),
            )
        if word == "known":
            return self._known(draft, *reply)
        if word != "ok":
            refuse(word, reply)
        self._queues.add(draft.queue)
        return self._added(draft, codes, stored, replaced, reply)

    def _added(
        self,
        draft: Draft,
        codes: Sequence[Code],
        stored: dict[str, str],
        replaced: Sequence[str],
        reply: Sequence[Any],
    ) -> Issued:
        """Return a task that was stored, and those that it ended."""
        created, expires, *others = reply
        messages = sum(code.method not in draft.devices for code in codes)
        stored |= {"created": created.decode(), "expires": expires.decode(), "sends": str(messages)}
        again = max(int(created), int(stored.get("send_at", 0))) + self._limits.resend_cooldown
        for code in codes:
            stored |= {f"{code.method}.next": str(again), f"{code.method}.out": "1"}
        task = show_task(draft.id, stored, int(created), draft.recipient, self._limits)
        ended = read_sound(zip(replaced, others, strict=True), int(created), self._keyring, self._limits)
        return Issued(task, codes, replaced=ended)

    def _known(self, draft: Draft, now: bytes, found: bytes, fields: Sequence[bytes]) -> Issued:
        """Return the task that a key names already."""
        task_id = found.decode(errors="replace")
        task = read_reply(task_id, [now, fields], self._keyring, self._limits)
        asked, ours = pairs_of(fields).get("asked"), self._keyring.asked(task_id, draft.asked or "")
        if asked not in ours:
            message = f"task {task_id} was added by this key with other arguments: use another key"
            raise KeyReused(message, task=task)
        # The secret that its holder has was made by the same key.
        holder = self._keyring.holder(task_id, ours.index(asked)) if draft.holder else None
        return Issued(replace(task, holder=holder), (), known=True)


def _counted_for(draft: Draft, codes: Sequence[Code], stored: Mapping[str, str]) -> list[str]:
    """Return the MACs of the addresses that the messages count for, marked if a device makes the code."""
    marks = ["~" if code.method in draft.devices else "" for code in codes]
    macs = [stored.get(f"mac.{draft.methods[code.method]}", "") for code in codes]
    return [mark + mac for mark, mac in zip(marks, macs, strict=True)]
