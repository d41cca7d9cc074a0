"""What ``TASKFLOW_KEYS`` may say: secret keys by name, given or fetched at the first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import ConfigError

#: A key below this many bytes is refused: 128 bits, NIST SP 800-107r1, 5.3.4.
SECRET_KEY_MIN = 16
MAKE_ONE = "make one with python -c 'import secrets; print(secrets.token_hex())'"

Secret = bytes | Callable[[], bytes]


def check_keys(value: object) -> Mapping[str, Any] | None:
    """Check ``TASKFLOW_KEYS`` as far as that is possible without calling anything."""
    if value is None:
        return None
    if isinstance(value, Mapping) and value and all(_is_fine(name, key) for name, key in value.items()):
        return dict(value)
    raise ValueError("use a dict, newest key first: {'2026-11': a str, bytes or a function}")


def _is_fine(name: object, key: object) -> bool:
    usable = callable(key) or (isinstance(key, str | bytes) and bool(key))
    return isinstance(name, str) and bool(name) and name.isprintable() and usable


def read_keys(given: Mapping[str, Any], *, lenient: bool) -> tuple[list[Secret], str | None]:
    """Return the keys of ``TASKFLOW_KEYS``, newest first, and a warning if some are weak.

    :param given: what :func:`check_keys` returned.
    :param lenient: whether a short key is only worth a warning.
    :raises ConfigError: for a short key, unless lenient; a function's is checked once it is called.
    """
    keys: list[Secret] = []
    weak = []
    for name, key in given.items():
        if callable(key):
            keys.append(partial(_fetch, name, key, lenient))
            continue
        raw = _raw(key)
        keys.append(raw)
        if len(raw) < SECRET_KEY_MIN:
            weak.append(name)
    problem = _too_short(weak[0]) if weak else None
    if problem and not lenient:
        raise ConfigError(problem)
    return keys, problem


def _fetch(name: str, function: Callable[[], object], lenient: bool) -> bytes:
    key = function()
    if not isinstance(key, str | bytes) or not key:
        raise ConfigError(f"the function of TASKFLOW_KEYS[{name!r}] must return a str or bytes")
    raw = _raw(key)
    if len(raw) < SECRET_KEY_MIN and not lenient:
        raise ConfigError(_too_short(name))
    return raw


def _raw(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else bytes(key)


def _too_short(name: str) -> str:
    return f"TASKFLOW_KEYS[{name!r}] is shorter than {SECRET_KEY_MIN} bytes: {MAKE_ONE}"
