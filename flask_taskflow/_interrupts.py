"""What is meant for whoever called the package, told from what an app's code raises."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import NoReturn

#: So the names of the package's threads begin.
OURS = "taskflow-"


def is_ours() -> bool:
    """Tell whether this is a thread of the package's."""
    return threading.current_thread().name.startswith(OURS)


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Tell by its class, as ``except`` does, whether an error is of some kinds: its attributes may raise."""
    return issubclass(type(error), kinds)


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error is Ctrl+C: Python raises that in the main thread only.

    In another thread it is what somebody's code did, and must not end a thread of ours.
    """
    return is_a(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def is_for_caller(error: BaseException) -> bool:
    """Tell whether an error ends more than the code that it came up in: a worker stops, a time is over.

    For a thread of ours it is none of that.
    """
    return not is_a(error, Exception) and not is_ours()


def end_child(*, tell: bool = True) -> NoReturn:
    """End a child that an app's code forked, where it comes out of that: it is no second process of ours.

    :param tell: whether the error by which it comes out is shown, as Python shows one.
    """
    error = sys.exc_info()[1]
    status = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None and tell:
            traceback.print_exception(error)
            sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)
