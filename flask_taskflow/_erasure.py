"""Erase what is kept of tasks, as a person may ask for."""

from __future__ import annotations

from contextlib import suppress

from . import _journal
from ._service import Service
from ._store.records import names_of
from ._tasks import Status
from .errors import InvalidTask, TaskFlowError, TaskNotFound


def erase(service: Service, task_id: str | None, owner: str | None) -> list[str]:
    """Erase one task, or all of an owner; return the ids of the deliveries that stay: they are to run."""
    if (task_id is None) == (owner is None):
        raise InvalidTask("say either which task is erased, or whose: erase(task_id) or erase(owner=...)")
    if task_id is not None:
        return _erase(service, task_id)
    left: list[str] = []
    for task in service.tasks_of(owner or "", None):
        # It may be gone meanwhile.
        with suppress(TaskNotFound):
            left += _erase(service, task.id)
    return left


def _erase(service: Service, task_id: str) -> list[str]:
    owners: list[str] = []
    addresses: list[str] = []
    # One that was tampered with, or of which only dead letters are left, is erased all the same.
    with suppress(TaskFlowError):
        task = service.get_task(task_id)
        owners = service.keyring.owners(task.owner) if task.owner else []
        addresses = names_of(task.recipient.addresses(), service.keyring)
        if task.status is Status.PENDING:
            service.cancel_task(task_id)
    left = service.operations.erase(task_id, owners, addresses)
    if left is None:
        raise TaskNotFound("there is no such task, and no dead letter of one")
    _journal.task_erased(task_id, left)
    return left
