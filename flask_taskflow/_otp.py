"""A code as a person types it, and as it travels."""

from __future__ import annotations

import inspect
import re
import traceback
from types import TracebackType
from typing import NoReturn
from unicodedata import category, decimal

from .errors import InvalidCode

TYPED_MAX = 64
# What looks like a hyphen and is none to Unicode: a minus, a bullet, and what a hyphen's key gives in kana.
_HYPHENS = "\u2212\u2043\u30fc\uff70"


class OTP(str):
    """A code on its way to a strategy: a ``str`` that hides from ``repr`` and cannot be pickled."""

    #: Seconds that it is good for from now, by the server's clock; ``None``: for its whole life.
    lasts: float | None = None

    def lasting(self, seconds: float | None) -> OTP:
        """Return the same code, good for so many seconds."""
        otp = OTP(self)
        otp.lasts = seconds
        return otp

    def __repr__(self) -> str:
        return "OTP('******')"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a one-time code must not be pickled or copied")


def empty_frames(error: BaseException) -> None:
    """Forget the local values of the calls that an error ended, since they may hold a code in clear.

    :param error: what was raised; errors during whose handling that was are emptied, too.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            _empty_namespaces(one.__traceback__)
            waiting += [one.__context__, one.__cause__]


def _empty_namespaces(trace: TracebackType | None) -> None:
    """Forget what frames keep in a dictionary: Jinja puts such ones in the place of a template's."""
    while trace is not None:
        frame = trace.tb_frame
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED and frame.f_locals is not frame.f_globals:
            frame.f_locals.clear()
        trace = trace.tb_next


def read_code(typed: object, pattern: re.Pattern[str]) -> OTP:
    """Return the code that a person meant: in ASCII digits, and without spaces and hyphens.

    :param typed: what came in, of any type.
    :param pattern: what a code of the method looks like; spaces and hyphens that it has a place for stay.
    :raises InvalidCode: if it cannot be a code.
    """
    code = _meant(typed, pattern) if isinstance(typed, str) and len(typed) <= TYPED_MAX else None
    # With a character too many it may hold the right code, which a traceback must not show.
    del typed
    if code is None:
        raise InvalidCode("this cannot be a code: type the code as it was sent")
    return code


def _meant(typed: str, pattern: re.Pattern[str]) -> OTP | None:
    digits = "".join(str(decimal(c, c)) for c in typed.strip())
    for text in (digits, _without_gaps(digits)):
        if text.isprintable() and pattern.fullmatch(text):
            return OTP(text)
    return None


def _without_gaps(text: str) -> str:
    return "".join(c for c in text if not (c.isspace() or c in _HYPHENS or category(c) in ("Pd", "Cf")))
