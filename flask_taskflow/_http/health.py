"""Whether a process can do its work, for probes."""

from __future__ import annotations

from dataclasses import dataclass

from redis import RedisError

from .._service import Service


@dataclass(frozen=True, slots=True)
class Health:
    """How a process stands; nothing in it is a secret.

    :param ok: whether all is well.
    :param redis: whether Redis answers.
    :param listening: whether this process hears of verified tasks; ``None`` if it never started its threads.
    :param oldest: seconds that the oldest delivery waits that could run now, ``None`` if there is none. What
        a paused queue holds does not count.
    """

    ok: bool
    redis: bool
    listening: bool | None
    oldest: float | None


def look(service: Service) -> Health:
    """Return how this process stands."""
    listening = service.runtime.alive()
    try:
        stats = [service.operations.stats(queue) for queue in service.operations.queues()]
    except RedisError:
        return Health(False, False, listening, None)
    waits = (item.oldest for queue in stats if not queue.paused for item in queue.callbacks)
    oldest = max((wait for wait in waits if wait is not None), default=None)
    late = oldest is not None and oldest >= service.config.health_oldest
    return Health(listening is not False and not late, True, listening, oldest)
