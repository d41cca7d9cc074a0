"""The rules that names, methods, numbers, durations and addresses follow."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TypeGuard
from urllib.parse import urlsplit

from ._tasks import ADDRESS_FIELDS, Method, Recipient
from .errors import InvalidTask

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
METHOD = re.compile(r"[A-Z][A-Z0-9_]{0,31}", re.ASCII)
PRIORITY_LIMIT = 2**31
TTL_MAX = 30 * 86400.0
#: A queue's name in which ``*`` may stand for anything, or the queue of schedules.
PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,64}|@schedules", re.ASCII)
LABEL_MAX = 200
#: The queue of schedules' runs. No task is added to a queue of such a name.
SCHEDULES = "@schedules"
_URL = re.compile(r"[!-\[\]-~]{1,2000}", re.ASCII)


def check_name(value: object, what: str) -> str:
    """Return a queue's or callback's name.

    :param value: what the caller gave.
    :param what: how a message calls it.
    :raises InvalidTask: if it does not match ``[A-Za-z0-9_.-]{1,64}``.
    """
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise InvalidTask(f"{what} must match {NAME.pattern}, not {shown(value)}")


def fits(queue: str, patterns: Iterable[str]) -> bool:
    """Tell whether a queue has one of some names, in which ``*`` stands for anything."""
    return any(fnmatchcase(queue, pattern) for pattern in patterns)


def check_method(value: object) -> str:
    """Return a method's name, as :class:`Method` where it is built in.

    :raises InvalidTask: if it does not match ``[A-Z][A-Z0-9_]{0,31}``.
    """
    if isinstance(value, str) and METHOD.fullmatch(value):
        return Method(value) if value in Method.__members__ else str(value)
    raise InvalidTask(f"a method must match {METHOD.pattern}, not {shown(value)}")


def check_methods(values: object, what: str) -> tuple[str, ...]:
    """Return several methods' names, each once, in order.

    :param values: an iterable of names, not empty.
    :param what: how a message calls it.
    :raises InvalidTask: for anything else.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidTask(f"{what} must be a list of methods, not {shown(values)}")
    methods = tuple(dict.fromkeys(check_method(value) for value in values))
    if not methods:
        raise InvalidTask(f"{what} must name at least one method")
    return methods


def check_priority(value: object) -> int:
    """Return a priority as a plain integer.

    :raises InvalidTask: if it is no integer within ±2^31.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= PRIORITY_LIMIT:
        return int(value)
    raise InvalidTask(f"priority must be an integer within ±2^31, not {shown(value)}")


def in_seconds(value: object) -> float | None:
    """Return a duration, a number or a ``timedelta``, in seconds; ``None`` if it is neither."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        # No float holds 10**400: as a duration it is as unusable as infinity.
        return float(value) if abs(value) < 10**18 else math.inf
    return None


def shown(value: object) -> str:
    """Return the start of a value's ``repr``, for messages about it."""
    try:
        return f"{value!r:.100}"
    except ValueError:
        # An integer of over 4,300 digits has no repr.
        return f"a value of type {type(value).__name__}"


def check_seconds(value: object, what: str, *, maximum: float, minimum: float = 0.001) -> float:
    """Return a duration in seconds.

    :param value: a number of seconds or a ``timedelta``.
    :param what: how a message calls it.
    :param maximum: the longest one allowed, in seconds.
    :param minimum: the shortest one, likewise.
    :raises InvalidTask: if it is not between the two.
    """
    seconds = in_seconds(value)
    if seconds is not None and minimum <= seconds <= maximum:
        return seconds
    raise InvalidTask(f"{what} must be {minimum:g} to {maximum:.0f} seconds, not {shown(value)}")


# What no line of people's text has: controls, halves of surrogate pairs, line separators, and what makes
# text look other than it is: embeddings, overrides and isolates of direction (UAX 9, 2.1 to 2.5), their
# deprecated relatives, annotations, and noncharacters. Marks and joiners belong to words: they pass.
_NO_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u206f\ufff9-\ufffb\ufdd0-\ufdef"
    + "".join(map(chr, (plane + low for plane in range(0, 0x110000, 0x10000) for low in (0xFFFE, 0xFFFF))))
    + "]"
)


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is one line of people's text, in whatever language.

    ``str.isprintable`` is for programmers: it refuses no-break spaces, which most languages have in their
    amounts, and the joiners of Persian, Hindi and emoji.
    """
    return isinstance(value, str) and not _NO_TEXT.search(value)


def check_label(value: object, what: str) -> str:
    """Return a text by which an app names something, such as an owner or a key.

    :param value: what the caller gave.
    :param what: how a message calls it.
    :raises InvalidTask: if it is no printable line of at most ``LABEL_MAX`` characters.
    """
    if is_text(value) and 0 < len(value) <= LABEL_MAX:
        return value
    raise InvalidTask(f"{what} must be one printable line of 1 to {LABEL_MAX} characters")


def check_next_url(value: object, hosts: Collection[str]) -> str:
    """Return a URL that a person may be sent to: a path of this origin, or one of a host on a list.

    Browsers read a backslash as a slash and drop tabs and line feeds, so that more than the first slash
    counts (WHATWG URL, 4.4).

    :param value: what the caller gave.
    :param hosts: names, each with its port if it has one.
    :raises InvalidTask: for anything else, as it would be an open redirect (CWE-601).
    """
    if isinstance(value, str) and _URL.fullmatch(value):
        with suppress(ValueError):
            parts = urlsplit(value)
            if "//" not in parts.path:
                listed = parts.scheme in ("http", "https") and parts.netloc.lower() in hosts
                own = not parts.scheme and not parts.netloc and re.match("/(?!/)", value)
                if listed or own:
                    return value
    raise InvalidTask(
        "next_url must be a path that begins with one /, or a URL of a host in TASKFLOW_NEXT_HOSTS: "
        "no //, no backslash, only printable ASCII"
    )


def check_recipient(value: object) -> Recipient:
    """Return a recipient whose addresses are usable.

    :param value: a :class:`Recipient` or a mapping of its fields.
    :raises InvalidTask: for an unknown field or an address that cannot be one.
    """
    return Recipient(**{name: check_address(name, text) for name, text in read_addresses(value).items()})


def read_addresses(value: object) -> dict[str, str]:
    """Return the addresses that were given, by field, without what nobody sees. An empty text is none.

    :param value: a :class:`Recipient` or a mapping of its fields.
    :raises InvalidTask: for an unknown field, or an address that is no text.
    """
    if isinstance(value, Recipient):
        value = value.addresses()
    if not isinstance(value, Mapping):
        raise InvalidTask(f"recipient must be a mapping or a Recipient, not {type(value).__name__}")
    if unknown := [name for name in value if name not in ADDRESS_FIELDS]:
        raise InvalidTask(f"recipient has no field {shown(unknown[0])}; it has {sorted(ADDRESS_FIELDS)}")
    addresses: dict[str, str] = {}
    for name, item in value.items():
        if item is None:
            continue
        # A longer one cannot be an address: it is not worth the reading.
        if not isinstance(item, str) or len(item) > _LONGEST:
            raise _unusable(name)
        if text := _READERS[name](item):
            addresses[name] = text
    return addresses


def check_address(name: str, text: str) -> str:
    """Return an address that may be one.

    :param name: the recipient's field.
    :param text: as :func:`read_addresses` returned it, or a strategy's ``normalise``.
    :raises InvalidTask: if it cannot be one.
    """
    if is_text(text) and _ADDRESS[name].fullmatch(text):
        return text
    raise _unusable(name)


def check_spelling(name: str, text: str) -> str:
    """Return an address that a strategy may be asked about.

    A telephone number is written in many ways, which the strategy knows: here it is only text.

    :param name: the recipient's field.
    :raises InvalidTask: if it cannot be one, however it is spelt.
    """
    if name != "phone_number":
        return check_address(name, text)
    if is_text(text) and len(text) <= _NUMBER_MAX:
        return text
    raise _unusable(name)


_LONGEST = 1000
#: A number has 15 digits at most (E.164, 6); gaps, ``tel:`` and an extension do not make it longer than this.
_NUMBER_MAX = 100
_ADDRESS = {
    # Commas, brackets and the like would make a list of addresses of it, or a name and an address.
    "email": re.compile(r"[^@\s,;:<>()\"\\]{1,64}@[^@\s,;:<>()\"\\]{1,255}"),
    "phone_number": re.compile(r"(?=(?:[^0-9]*[0-9]){3})\+?[0-9(][0-9 ()./-]{2,30}", re.ASCII),
    "device_id": re.compile(r"\S(.{0,253}\S)?"),
}
# What stands in an address that was copied from a page: soft hyphens, zero-width spaces, marks of direction.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u2060\ufeff]")
# What Japanese and Chinese keyboards type: the full-width forms of ASCII, and dots (RFC 3490, 3.1).
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: ord("."), 0xFF61: ord(".")}


def _read_email(given: str) -> str:
    text = _UNSEEN.sub("", _bare(given)).translate(_FULL_WIDTH).strip()
    if text[:7].lower() == "mailto:":
        text = text[7:].partition("?")[0]
    # The dot that ends a sentence, or stands for the root of all domains: RFC 5321 has neither.
    return text.removesuffix(".")


def _read_number(given: str) -> str:
    text = unicodedata.normalize("NFKC", _bare(given))
    return "".join(_plain(c) for c in text if unicodedata.category(c) != "Cf").strip()


def _plain(character: str) -> str:
    """Return a character of a telephone number as an English keyboard has it."""
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return {"Zs": " ", "Pd": "-"}.get(category, character)


def _bare(text: str) -> str:
    """Return a text without outer blanks and outer characters that nobody sees."""
    start, end = 0, len(text)
    while start < end and _is_unseen(text[start]):
        start += 1
    while end > start and _is_unseen(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) == "Cf"


_READERS: dict[str, Callable[[str], str]] = {
    "email": _read_email,
    "phone_number": _read_number,
    "device_id": str.strip,
}


def _unusable(name: str) -> InvalidTask:
    return InvalidTask(f"recipient: {name} is not usable as an address")
