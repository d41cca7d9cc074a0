"""Whose turn it is: which queue is asked next, from which priority on, and when all are."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from .._checks import PRIORITY_LIMIT
from .._store.deliveries import Claim, Peek

#: An engine that another one looks for polls itself if it hears nothing for so many polls.
_COVERED = 3
#: What is over may have to wait for its owner first, seconds.
_LEAST_WAIT = 0.02


class Rota:
    """What an engine knows of its queues: what is due there, and when.

    The most urgent delivery of all queues goes first, and queues of the same urgency take turns. Only the
    scheduler's thread uses it, but for :meth:`ring`.

    :param tag: marks a queue in the ids of its tasks.
    :param poll: the longest time that a queue is not asked for, seconds.
    """

    def __init__(self, tag: Callable[[str], str], *, poll: float) -> None:
        self._tag, self._poll = tag, poll
        self.served: Mapping[str, Sequence[str]] = {}
        self._by_tag: dict[str, str] = {}
        #: Queues that rang; ``None`` stands for all of them.
        self._rung: deque[str | None] = deque()
        self._calls: deque[str] = deque()
        #: Queues that this process alone was woken for, and has not asked since.
        self.called: set[str] = set()
        #: When something is due as others saw it, by queue, and when they looked.
        self._told: deque[tuple[Mapping[str, float], float]] = deque()
        #: Queues of which it is not known what is due.
        self.unknown: set[str] = set()
        self._heads: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._count = 0
        self.poll_at = 0.0

    def serve(self, served: Mapping[str, Sequence[str]]) -> None:
        """Serve these queues from now on, each for the names under which its deliveries stand."""
        # All are new if a callback of theirs is.
        self.unknown |= {queue for queue, names in served.items() if self.served.get(queue) != names}
        self.served = served
        self._by_tag = {self._tag(queue): queue for queue in served}

    def ring(self, tag: str | None, *, called: bool = False) -> bool:
        """Let a queue be asked soon; false if it is not served.

        :param tag: marks it; without one all are asked.
        :param called: whether this process alone was woken for it.
        """
        queue = None if tag is None else self._by_tag.get(tag)
        if called and queue is not None:
            self._calls.append(queue)
        if tag is None or queue is not None:
            self._rung.append(queue)
            return True
        return False

    def tell(self, due: Mapping[str, float], looked: float) -> None:
        """Take note that another engine has looked into all queues: this one need not for a while.

        :param due: when something is due, by queue; any thread may say so.
        :param looked: when that was.
        """
        self._told.append((due, looked))

    def hear(self, now: float) -> bool:
        """Take note of what rang and what is due by now; return whether all is to be asked: the poll."""
        while self._told:
            told, looked = self._told.popleft()
            for name, at in told.items():
                self._due[name] = min(self._due.get(name, math.inf), at)
            self.poll_at = max(self.poll_at, looked + _COVERED * self._poll)
        while self._calls:
            self.called.add(self._calls.popleft())
        while self._rung:
            queue = self._rung.popleft()
            self.unknown |= set(self.served) if queue is None else {queue}
        polled = now >= self.poll_at
        if polled:
            self.poll_at = now + self._poll
            self.unknown |= set(self.served)
        for queue, due in list(self._due.items()):
            if now >= due:
                del self._due[queue]
                self.unknown.add(queue)
        self.unknown &= self.served.keys()
        return polled

    def next(self) -> str | None:
        """Return the queue whose turn it is, ``None`` if nothing is due anywhere."""
        waiting = self.unknown | self._heads.keys()
        return min(
            waiting, key=lambda queue: (-self._urgency(queue), self._turns.get(queue, 0)), default=None
        )

    def _urgency(self, queue: str) -> float:
        return math.inf if queue in self.unknown else self._heads[queue]

    def floor(self, queue: str) -> int:
        """Return the least priority that a queue may have now: others have something as urgent."""
        return max((head for other, head in self._heads.items() if other != queue), default=-PRIORITY_LIMIT)

    def learn(self, queue: str, told: Claim | Peek, now: float) -> None:
        """Keep what a queue answered."""
        self.unknown.discard(queue)
        self._heads.pop(queue, None)
        self._due.pop(queue, None)
        if isinstance(told, Claim) or told.most_urgent is None:
            self.called.discard(queue)
        if queue not in self.served:
            return
        if told.most_urgent is not None:
            self._heads[queue] = told.most_urgent
        if told.wait is not None:
            self._due[queue] = now + max(told.wait, _LEAST_WAIT)
        if isinstance(told, Claim):
            self._count += 1
            self._turns[queue] = self._count
            if told.again:
                self.unknown.add(queue)

    def set_aside(self, queue: str) -> None:
        """Let a queue wait for the next poll: it cannot be read, or those who have its key go first."""
        self.unknown.discard(queue)
        self._heads.pop(queue, None)

    @property
    def next_at(self) -> float:
        """When something is due at the latest, by the monotonic clock."""
        return min(self.poll_at, *self._due.values()) if self._due else self.poll_at
