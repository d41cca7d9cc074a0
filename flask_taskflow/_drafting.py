"""Check what ``add_task`` was given and make a storable task of it, before anything is stored or sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._config import Config
from ._keys import Keys
from ._providers import locale as check_locale
from ._schemas import SUMMARY_MAX, dump_data, dump_fixed
from ._store import Draft
from ._task import (
    TTL_MAX,
    Recipient,
    check_methods,
    check_name,
    check_priority,
    check_recipient,
    check_seconds,
)
from ._texts import requested_locale
from .errors import InvalidTask
from .strategies import Channel

_TIMEOUT_MAX = 365 * 86400.0


def draft_task(
    config: Config,
    keys: Keys,
    channels: Mapping[str, Channel],
    queue: object,
    data: object,
    *,
    allowed_methods: object,
    recipient: object,
    summary: object,
    priority: object,
    ttl: object,
    timeout: object,
    send_via: object,
    locale: object,
) -> tuple[Draft, tuple[str, ...]]:
    """Return a task ready to be stored, and the methods to send by.

    The parameters after ``channels`` are those of :meth:`~flask_taskflow.TaskFlow.add_task`.

    :raises InvalidTask: if one of them is unusable; the message names it.
    """
    name = check_name(queue, "queue")
    allowed = check_methods(allowed_methods, "allowed_methods")
    whom = read_recipient(channels, recipient)
    rank = check_priority(priority)
    life = config.task_ttl if ttl is None else check_seconds(ttl, "ttl", maximum=TTL_MAX)
    if timeout is None:
        timeout = config.job_timeout
    fixed = dump_fixed(
        queue=name,
        data=dump_data(data, maximum=config.max_data_size),
        summary=_summary(summary),
        allowed_methods=allowed,
        priority=rank,
        timeout=check_seconds(timeout, "timeout", maximum=_TIMEOUT_MAX),
        locale=requested_locale() if locale is None else _locale(locale),
    )
    methods = _methods(channels, allowed, whom, send_via)
    return Draft(
        id=keys.new_id(name),
        queue=name,
        fixed=fixed,
        recipient=whom,
        channels=[channels[method] for method in allowed],
        priority=rank,
        ttl=life,
    ), methods


def read_recipient(channels: Mapping[str, Channel], value: object) -> Recipient:
    """Return a recipient whose addresses are in the one form that the strategies write them in.

    :raises InvalidTask: if an address is unusable.
    """
    whom = check_recipient(value)
    for channel in list(channels.values()):
        name = channel.address_field
        if name is not None and (address := channel.address(whom)):
            whom = check_recipient({**whom.addresses(), name: channel.strategy.normalise(address)})
    return whom


def _summary(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= SUMMARY_MAX:
        return value
    raise InvalidTask(f"summary must be one printable line of at most {SUMMARY_MAX} characters")


def _locale(value: object) -> str:
    try:
        return check_locale(value)
    except ValueError as error:
        raise InvalidTask(f"locale: {error}") from None


def _methods(
    channels: Mapping[str, Channel], allowed: tuple[str, ...], recipient: Recipient, chosen: Any
) -> tuple[str, ...]:
    for method in allowed:
        if method not in channels:
            raise InvalidTask(
                f"{method} has no strategy: register one with @taskflow.register_strategy({str(method)!r})"
            )
    reached = [method for method in allowed if channels[method].reaches(recipient)]
    if not reached:
        needed = sorted({str(channels[method].address_field) for method in allowed})
        raise InvalidTask(f"recipient has no address for any allowed method: give {needed}")
    if chosen is None:
        return (reached[0],)
    methods = check_methods(chosen, "send_via")
    for method in methods:
        if method not in allowed:
            raise InvalidTask(f"send_via: {method} is not one of allowed_methods")
        if method not in reached:
            raise InvalidTask(f"send_via: the recipient has no {channels[method].address_field} for {method}")
    return methods
