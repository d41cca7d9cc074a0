"""Pages that stay open read themselves again: however many are open, Redis is asked once for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from flask import g, request

from ..._service import current_service
from .rendering import SEEN, now

#: For so long an answer is kept, seconds; a page reads itself again after that time.
_KEPT = 5.0
_MOST = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    read: float
    text: str
    made: float = field(default_factory=time.monotonic)


class Polls:
    """What open pages were last answered.

    A page says what it has seen, by the server's time, and is answered what was read after that. So none goes
    back, and what somebody did is not hidden by an older answer.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[object, str, str], _Answer] = {}

    def shared(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Let a view answer open pages with what it answered another one just now."""

        @wraps(view)
        def serve(**arguments: Any) -> Any:
            seen = request.headers.get(SEEN, type=float)
            if seen is None:
                return view(**arguments)
            key = (current_service(), request.url, g.visitor.level)
            kept = self._answers.get(key)
            if kept is None or kept.read <= seen or time.monotonic() - kept.made > _KEPT:
                response = view(**arguments)
                if response.status_code != 200:
                    return response
                if len(self._answers) >= _MOST:
                    self._answers.clear()
                kept = self._answers[key] = _Answer(now().timestamp(), response.get_data(as_text=True))
            return kept.text

        return serve
