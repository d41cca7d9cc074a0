"""How attempts ended, until Redis has taken it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._store.deliveries import TURN_MAX, End
from .attempts import Attempt

#: Is told whether Redis accepted an end.
Tell = Callable[[bool], None]


@dataclass(slots=True, eq=False)
class Ended:
    """An attempt that ended.

    :param attempt: the attempt.
    :param end: how.
    :param tell: called with whether that was accepted.
    :param tried: whether a report of it got no answer.
    """

    attempt: Attempt
    end: End
    tell: Tell | None
    tried: bool = False

    def accepts(self, word: str) -> bool:
        """Tell whether a word of Redis says that the end holds: if it is gone, it may have gone with this."""
        return word == "ok" or (word == "gone" and self.tried)


class Outbox:
    """The ends of one engine's attempts. Any thread puts them in, the scheduler takes them out."""

    def __init__(self) -> None:
        self._new: deque[Ended] = deque()
        self._waiting: defaultdict[str, deque[Ended]] = defaultdict(deque)

    def __bool__(self) -> bool:
        return bool(self._new) or any(self._waiting.values())

    def put(self, ended: Ended) -> None:
        """Keep an end until it is reported."""
        self._new.append(ended)

    def withdraw(self, ended: Ended) -> bool:
        """Take back an end; false if a turn has it already."""
        try:
            self._new.remove(ended)
        except ValueError:
            return False
        return True

    def queues(self) -> list[str]:
        """Return the queues of which there is something to report."""
        while self._new:
            ended = self._new.popleft()
            self._waiting[ended.attempt.item.queue].append(ended)
        return [queue for queue, waiting in self._waiting.items() if waiting]

    def first(self, queue: str) -> list[Ended]:
        """Return what is to be reported next of a queue; it stays until :meth:`drop`."""
        self.queues()
        waiting = self._waiting[queue]
        return [waiting[index] for index in range(min(len(waiting), TURN_MAX))]

    def drop(self, queue: str, count: int) -> None:
        """Forget the first ones of a queue: they were reported."""
        for _ in range(count):
            self._waiting[queue].popleft()

    def attempts(self) -> list[Attempt]:
        """Return the attempts whose end is not reported yet."""
        return [
            ended.attempt for ended in [*self._new, *(e for all_ in self._waiting.values() for e in all_)]
        ]


def ends_of(ended: Sequence[Ended]) -> list[End]:
    """Return the ends as they are reported, under the newest tokens."""
    return [each.end._replace(item=each.attempt.item) for each in ended]
