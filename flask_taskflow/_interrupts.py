"""What a person at a terminal asks for, told from what an app's code raises."""

from __future__ import annotations

import threading


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error is Ctrl+C: Python raises that in the main thread only.

    In another thread it is what somebody's code did, and must not end a thread of ours.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
