"""What ``add_task`` accepts, checked before anything is stored or sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from ._checks import (
    TTL_MAX,
    check_address,
    check_label,
    check_methods,
    check_name,
    check_next_url,
    check_priority,
    check_seconds,
    check_spelling,
    in_seconds,
    is_text,
    read_addresses,
)
from ._config.config import Config
from ._config.providers import check_locale
from ._keyring import Keyring
from ._log import Logger
from ._store.keys import Keys
from ._store.records import SUMMARY_MAX, Draft, dump_data, dump_fixed
from ._tasks import Recipient, is_gated
from .errors import InvalidTask
from .strategies import Channel
from .strategies._texts import requested_locale

logger = Logger(__name__)

_TIMEOUT_MAX = 365 * 86400.0
#: So many times an app may be reminded of a task.
_REMINDERS_MAX = 10
#: No task waits until then.
_YEAR_MAX = 2100


class NewTask(NamedTuple):
    """A task as its app describes it; :meth:`~flask_taskflow.TaskFlow.add_task` explains each field."""

    queue: str
    allowed_methods: Iterable[str]
    recipient: Recipient | Mapping[str, str | None]
    data: Any = None
    summary: str | None = None
    priority: int = 0
    ttl: float | timedelta | None = None
    timeout: float | timedelta | None = None
    send_via: Iterable[str] | None = None
    locale: str | None = None
    holder: bool = False
    owner: str | None = None
    key: str | None = None
    replace: bool = False
    next_url: str | None = None
    run_at: datetime | None = None
    send_at: datetime | None = None
    remind: Sequence[float | timedelta] = ()

    def checked(
        self, config: Config, keys: Keys, keyring: Keyring, channels: Mapping[str, Channel]
    ) -> tuple[Draft, tuple[str, ...]]:
        """Return the task ready to be stored, and the methods to send by.

        :param config: the lengths of life and the limits that hold where the app says nothing.
        :param keys: makes the task's id.
        :param keyring: makes it of the task's key, if it has one.
        :param channels: the registered strategies, by method.
        :raises InvalidTask: if a field is unusable; the message names it.
        """
        queue = check_name(self.queue, "queue")
        task_id, named = keys.new_id(queue), self._named(queue, keyring)
        used = _registered(channels, check_methods(self.allowed_methods, "allowed_methods"))
        ttl = _seconds(self.ttl, config.task_ttl, "ttl", TTL_MAX)
        remind = self._reminders(ttl)
        recipient, refused = _read_recipient(used, self.recipient)
        # An address that another method uses stays: then the one that refused it is not of this task.
        allowed = tuple(name for name in used if not (name in refused and used[name].reaches(recipient)))
        priority = check_priority(self.priority)
        fixed = dump_fixed(
            queue=queue,
            data=dump_data(self.data, maximum=config.max_data_size),
            summary=_check_summary(self.summary),
            allowed_methods=allowed,
            priority=priority,
            timeout=_seconds(self.timeout, config.job_timeout, "timeout", _TIMEOUT_MAX),
            **self._optional(config, remind),
        )
        methods = self._first_methods(used, recipient, refused)
        self._check_data(used, allowed, refused)
        return Draft(
            id=task_id,
            queue=queue,
            fixed=fixed,
            recipient=recipient,
            methods={method: used[method].address_field for method in allowed},
            devices=frozenset(method for method in allowed if used[method].checks),
            priority=priority,
            ttl=ttl,
            holder=keyring.holder(task_id) if self.holder else None,
            owner=self.owner,
            asked=None if self.key is None else self._asked(recipient, allowed, methods),
            named=named,
            replaces=self.replace,
            run_at=self.run_at,
            send_at=self.send_at,
            remind=remind,
            gated=is_gated(self),
        ), methods

    def _check_data(
        self, used: Mapping[str, Channel], allowed: Iterable[str], refused: Mapping[str, InvalidTask]
    ) -> None:
        """Let the strategies of the allowed methods refuse the data, and warn of the methods that are not."""
        for method in allowed:
            used[method].strategy.check_data(self.data)
        for method, error in refused.items():
            logger.warning("A task of %s is added without %s: %s", self.queue, method, error)

    def _optional(self, config: Config, remind: Sequence[float]) -> dict[str, str | Sequence[float] | None]:
        return {
            "remind": remind or None,
            "locale": requested_locale() if self.locale is None else _check_task_locale(self.locale),
            "owner": self.owner,
            "next_url": None if self.next_url is None else check_next_url(self.next_url, config.next_hosts),
            "run_at": None if self.run_at is None else _check_time(self.run_at, "run_at").isoformat(),
            "send_at": None if self.send_at is None else self._check_send_at(config),
        }

    def _reminders(self, ttl: float) -> tuple[float, ...]:
        """Return how long before the task's end its app is reminded, the first one first."""
        if isinstance(self.remind, str | bytes) or not isinstance(self.remind, Sequence):
            raise InvalidTask("remind must be a list of seconds, such as (600, 60)")
        asked = sorted({check_seconds(each, "remind", maximum=TTL_MAX) for each in self.remind}, reverse=True)
        if len(asked) > _REMINDERS_MAX:
            raise InvalidTask(f"remind must be at most {_REMINDERS_MAX} times")
        kept = tuple(each for each in asked if each < ttl)
        if len(kept) < len(asked):
            logger.warning(
                "A task of %s lives for %g s: it is added without the reminders %s s before that is over.",
                self.queue,
                ttl,
                ", ".join(f"{each:g}" for each in asked[: len(asked) - len(kept)]),
            )
        return kept

    def _check_send_at(self, config: Config) -> str:
        # Whether it is over is seen by the server's clock.
        if not config.sends_in_background:
            raise InvalidTask('send_at needs TASKFLOW_SEND = "background": who sends inline sends at once')
        return _check_time(self.send_at, "send_at").isoformat()

    def _named(self, queue: str, keyring: Keyring) -> list[str]:
        """Return the names under which the task is found by its key, if it has one."""
        owner = "" if self.owner is None else check_label(self.owner, "owner")
        if not isinstance(self.replace, bool):
            raise InvalidTask("replace must be True or False")
        if self.replace and not owner:
            raise InvalidTask("replace ends an owner's other tasks: give owner, too")
        if self.key is None:
            return []
        return keyring.named(queue, owner, check_label(self.key, "key"))

    def _asked(self, recipient: Recipient, allowed: Sequence[str], methods: Sequence[str]) -> str:
        """Return the arguments in one spelling, so that two calls with one key can be compared.

        What the configuration or the request adds does not count: it may change between the two.
        """
        given = {
            "owner": self.owner,
            "key": self.key,
            "data": self.data,
            "allowed_methods": allowed,
            "recipient": recipient.addresses(),
            "summary": self.summary,
            "priority": self.priority,
            "ttl": in_seconds(self.ttl),
            "timeout": in_seconds(self.timeout),
            "send_via": methods,
            "locale": self.locale,
            "next_url": self.next_url,
            "run_at": None if self.run_at is None else self.run_at.isoformat(),
            "send_at": None if self.send_at is None else self.send_at.isoformat(),
            "remind": sorted(f"{in_seconds(each)}" for each in self.remind),
            "holder": self.holder,
        }
        return json.dumps(given, sort_keys=True)

    def _first_methods(
        self, used: Mapping[str, Channel], recipient: Recipient, refused: Mapping[str, InvalidTask]
    ) -> tuple[str, ...]:
        reached = [name for name in used if name not in refused and used[name].reaches(recipient)]
        if not reached:
            for error in refused.values():
                raise error
            needed = sorted({str(channel.address_field) for channel in used.values()})
            raise InvalidTask(f"recipient has no address for any allowed method: give {needed}")
        if self.send_via is None:
            return (reached[0],)
        methods = check_methods(self.send_via, "send_via")
        for method in methods:
            if method not in used:
                raise InvalidTask(f"send_via: {method} is not one of allowed_methods")
            if method in refused:
                raise refused[method]
            if method not in reached:
                raise InvalidTask(f"send_via: the recipient has no {used[method].address_field} for {method}")
        return methods


def _seconds(value: float | timedelta | None, default: float, what: str, maximum: float) -> float:
    return check_seconds(default if value is None else value, what, maximum=maximum)


def read_change(used: Mapping[str, Channel], value: object) -> dict[str, str]:
    """Return the addresses that a task shall have from now on, as its strategies write them.

    None is left out that a method of the task would use: the old one would stay.

    :param used: the strategies of the task's methods.
    :param value: a :class:`~flask_taskflow.Recipient` or a mapping of its fields.
    :raises InvalidTask: if an address is unusable.
    """
    recipient, refused = _read_recipient(used, value)
    for error in refused.values():
        raise error
    return recipient.addresses()


def _registered(channels: Mapping[str, Channel], methods: Iterable[str]) -> dict[str, Channel]:
    for method in methods:
        if method not in channels:
            raise InvalidTask(
                f"{method} has no strategy: register one with @taskflow.register_strategy({str(method)!r})"
            )
    return {method: channels[method] for method in methods}


def _read_recipient(used: Mapping[str, Channel], value: object) -> tuple[Recipient, dict[str, InvalidTask]]:
    """Return a recipient as a task's strategies write it, and which of them cannot use its address.

    An address that no method of the task uses is nobody's concern: it is kept if it can be one.
    """
    addresses = read_addresses(value)
    refused: dict[str, InvalidTask] = {}
    taken = set()
    for method, channel in used.items():
        name = channel.address_field
        if name is None or name not in addresses:
            continue
        try:
            spelt = channel.strategy.normalise(check_spelling(name, addresses[name]))
            addresses[name] = check_address(name, spelt)
            taken.add(name)
        except InvalidTask as error:
            refused[method] = error
    asked = {channel.address_field for channel in used.values()}
    kept = {
        name: text
        for name, text in addresses.items()
        if name in taken or (name not in asked and _is_address(name, text))
    }
    return Recipient(**kept), refused


def _is_address(name: str, text: str) -> bool:
    try:
        check_address(name, text)
    except InvalidTask:
        return False
    return True


def _check_summary(value: object) -> str | None:
    if value is None:
        return None
    if is_text(value) and 0 < len(value) <= SUMMARY_MAX:
        return value
    raise InvalidTask(f"summary must be one printable line of at most {SUMMARY_MAX} characters")


def _check_time(value: object, what: str) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None and value.year < _YEAR_MAX:
        return value.astimezone(UTC)
    raise InvalidTask(f"{what} must be an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)")


def _check_task_locale(value: object) -> str:
    try:
        return check_locale(value)
    except ValueError as error:
        raise InvalidTask(f"locale: {error}") from None
