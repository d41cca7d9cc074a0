"""A lock that a fork or a patch leaves free."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskflow._lock import Lock


def _fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)


def _patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Lock", threading.RLock)


@pytest.mark.parametrize("happens", [_fork, _patch])
def test_lock_that_is_held_is_free_after(
    happens: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock()
    with lock:
        with monkeypatch.context() as patch:
            happens(patch)
            with lock:
                pass
        assert not lock._made[os.getpid(), threading.Lock].acquire(blocking=False)
    with lock:
        pass
