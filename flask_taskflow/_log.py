"""The package's loggers: no text of a stranger acts on who reads them, and nothing that logs is in our way.

Filters, handlers and formatters are an app's. They may raise, wait, or end a thread.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

from ._inert import inert
from ._interrupts import is_for_caller

Work = Callable[[], object]

_here = threading.local()


class _Harmless(logging.Filter):
    """Write a traceback before a formatter does: what an error says may be what a user typed (CWE-117).

    Handlers that keep the error itself, such as a tracker's, find it where it was.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if record.exc_info and not record.exc_text:
            kind, error, trace = record.exc_info
            if kind is not None and error is not None:
                parts = traceback.TracebackException(kind, error, trace).format()
                record.exc_text = "".join(map(_harmless, parts)).rstrip("\n")
        return True


_FRAME = re.compile(r'[ |]*File "')
_harmless_filter = _Harmless()
#: Tells of errors, unless ``logging.raiseExceptions`` is false.
_report = logging.Handler()


def _harmless(part: str) -> str:
    """Return a part of a traceback, of which only a frame has lines of its own."""
    text = part.strip("\n")
    before, _, after = part.partition(text) if text else (part, "", "")
    lines = text.split("\n") if _FRAME.match(text) else [text]
    return before + "\n".join(map(inert, lines)) + after


def tell_by(hand: Callable[[Work], None]) -> None:
    """Let what this thread logs be told by another one: an app's filters may raise, wait, or want a context.

    :param hand: takes what the other thread is to call.
    """
    _here.hand = hand


class Logger(_Adapter):
    """A logger by its name, which obeys :func:`tell_by`.

    An error that comes up while it logs goes to the standard error, as Python does with those of handlers.
    """

    def __init__(self, name: str) -> None:
        logger = logging.getLogger(name)
        logger.addFilter(_harmless_filter)
        super().__init__(logger, {})

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        """Log, or let another thread log."""
        if not self.isEnabledFor(level):
            return
        if options.get("exc_info") is True:
            options["exc_info"] = sys.exc_info()
        hand = getattr(_here, "hand", None)
        if hand is None:
            self._tell(level, msg, *args, stacklevel=3, **options)
        else:
            hand(partial(self._tell, level, msg, *args, **options))

    def _tell(self, level: int, msg: object, *args: object, **options: Any) -> None:
        try:
            self.logger.log(level, msg, *args, **options)
        except BaseException as error:
            if is_for_caller(error):
                raise
            _report.handleError(logging.makeLogRecord({"name": self.logger.name, "msg": msg, "args": args}))
