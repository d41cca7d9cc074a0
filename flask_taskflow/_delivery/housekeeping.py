"""What an engine does now and then: register what it serves, tidy up, follow what expired, tick."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis import ResponseError

from .._checks import SCHEDULES
from .._log import Logger
from .._seldom import Seldom
from .leases import HEARTBEAT
from .turns import Beside, Turns, is_spoiled

logger = Logger(__name__)

#: Seconds between two times that callbacks are registered anew and what is over is forgotten.
_EVERY = 45.0
_COMPLAIN = 60.0


@dataclass(kw_only=True)
class Housekeeping:
    """The chores of one engine. Only its scheduler's thread does them.

    :param engine: whose chores these are.
    :param turns: its turns: they know its steps, its runner, and the engines that it tidies up for, too.
    :param stale: whether it is to be tidied up at once; any thread may say so.
    :param next_at: when there is something to do otherwise, by the monotonic clock.
    """

    engine: Beside
    turns: Turns
    stale: bool = True
    next_at: float = 0.0
    _complain: Seldom = field(default_factory=lambda: Seldom(_COMPLAIN))

    def done_for(self, looked: float) -> None:
        """Take note that another engine tidied up here.

        :param looked: when that was, by the monotonic clock.
        """
        self.next_at = max(self.next_at, looked + _EVERY)

    def keep(self, now: float) -> None:
        """Do what is due."""
        # Set before: it may be asked for again meanwhile, and what is refused is not tried at once again.
        self.stale, self.next_at = False, now + HEARTBEAT
        with self._refusable():
            self.stale = self.tidy() or self.stale
            self.next_at = now + _EVERY

    @contextmanager
    def _refusable(self) -> Iterator[None]:
        """Go on if the server refuses a chore: where memory is full, it is the turns that free it."""
        try:
            yield
        except ResponseError as error:
            if self._complain():
                logger.error("Redis refuses what taskflow-%s does now and then: %s", self.engine.name, error)

    def tidy(self) -> bool:
        """Register what is served and forget what is over, also for the engines beside; tell if more is."""
        served = {queue: list(names) for queue, names in self.engine.served(refresh=True).items()}
        parts = {self.engine.name: list(served)}
        for number, engine in enumerate(self.turns.beside()):
            # The list of queues is the same for all.
            own = engine.served(refresh=number == 0)
            parts[engine.name] = list(own)
            for queue, names in own.items():
                served[queue] = [*served.get(queue, ()), *names]
        self.turns.store.processes.tell_keys()
        self.turns.store.processes.tell_parts(self.turns.presence.owner, parts)
        more = False
        for queue in self._register(served):
            with self.turns.isolated(queue):
                more |= self.turns.store.trim(queue, served[queue])
        self.turns.rota.serve(self.engine.served())
        return more

    def _register(self, served: Mapping[str, Sequence[str]]) -> list[str]:
        """Register what is served; return the queues of which something is over."""
        try:
            return self.turns.runner.register(served)
        except ResponseError as error:
            # One of them may be spoiled: each is registered by itself.
            if not is_spoiled(error):
                raise
        over: list[str] = []
        for queue, names in served.items():
            with self.turns.isolated(queue):
                over += self.turns.runner.register({queue: names})
        return over

    def tick(self, *, anew: bool) -> float:
        """Let the schedules tick that are due; return when one is next, by the monotonic clock.

        :param anew: whether they may stand otherwise than this process knows.
        """
        ticks = self.turns.runner.ticks
        if ticks is None:
            return math.inf
        if anew:
            ticks.look_anew()
        with self._refusable(), self.turns.isolated(SCHEDULES):
            if ticks.tick():
                self.turns.rota.ring(self.turns.store.tag(SCHEDULES))
                return 0.0
        return ticks.next_at
