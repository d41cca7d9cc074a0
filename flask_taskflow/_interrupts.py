"""What is meant for whoever called the package, told from what an app's code raises."""

from __future__ import annotations

import threading

#: So the names of the package's threads begin.
OURS = "taskflow-"


def is_ours() -> bool:
    """Tell whether this is a thread of the package's."""
    return threading.current_thread().name.startswith(OURS)


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error is Ctrl+C: Python raises that in the main thread only.

    In another thread it is what somebody's code did, and must not end a thread of ours.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def is_for_caller(error: BaseException) -> bool:
    """Tell whether an error ends more than the code that it came up in: a worker stops, a time is over.

    For a thread of ours it is none of that.
    """
    return not isinstance(error, Exception) and not is_ours()
