"""Bound the time of a call into code that blocks as it likes."""

from __future__ import annotations

import threading
from collections.abc import Callable


def within(seconds: float, work: Callable[[], object], *, cut: Callable[[], object] | None = None) -> None:
    """Do some work, and wait for it no longer than a time.

    Timeouts of sockets bound each read: a server that answers a byte at a time is never too late. And
    name resolution has none. So the work has a thread of its own, which is left behind if it is too slow.

    :param seconds: the time.
    :param work: what to do; what it raises is raised here.
    :param cut: called when the time is over, to make the work end soon.
    :raises TimeoutError: if the work was not done in time.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    def end() -> None:
        if cut is not None:
            cut()

    thread = threading.Thread(target=run, name="taskflow-send", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        late = thread.is_alive()
    except BaseException:
        # An exit or a timeout of gevent: nobody waits any more.
        end()
        raise
    if late:
        end()
        raise TimeoutError(f"not done within {seconds:.10g} seconds")
    if raised:
        raise raised.pop()
