"""What there is of a person, whom an operator knows by an address or as an owner: tasks, and limits."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from . import _journal
from ._checks import check_label
from ._new_task import read_change
from ._service import Service
from ._store.records import names_of
from ._tasks import ADDRESS_FIELDS, Task
from .errors import InvalidTask


class _Person(NamedTuple):
    """Whom a text may mean.

    :param owner: whoever is so called, if anybody can be.
    :param addresses: the names under which such an address is counted and listed.
    """

    owner: str | None
    addresses: list[str]


def find(service: Service, person: str) -> list[Task[Any]]:
    """Return the tasks that an address or an owner has, the newest first."""
    owner, addresses = _read(service, person)
    return service.listings.newest_first(service.operations.queues(), owner, addresses)


def unblock(service: Service, person: str) -> int:
    """Lift the limits of an address or an owner; return how many it had."""
    owner, addresses = _read(service, person)
    owners = [] if owner is None else service.keyring.owners(owner)
    queues = service.operations.unblock([*owners, *addresses])
    _journal.recipient_unblocked(person, queues)
    return len(queues)


def _read(service: Service, person: str) -> _Person:
    owner: str | None = None
    addresses: list[str] = []
    with suppress(InvalidTask):
        owner = check_label(person, "owner")
    for name in ADDRESS_FIELDS:
        users = [{one.method: one} for one in service.channels.copy().values() if one.address_field == name]
        # A task has an address as its own methods write it: what one refuses may be that of another.
        for channels in (service.channels, *users):
            with suppress(InvalidTask):
                addresses += names_of(read_change(channels, {name: person}), service.keyring)
    addresses = list(dict.fromkeys(addresses))
    if owner is None and not addresses:
        raise InvalidTask("this is usable as no address and no owner")
    return _Person(owner, addresses)
