"""``flask taskflow``: the commands."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import FrameType
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext
from redis import RedisError

from ._doctor import examine
from ._extension import TaskFlow
from ._openapi import openapi_document
from ._operations import Operations, QueueStats
from ._service import Service
from .errors import TaskFlowError

taskflow_cli = click.Group("taskflow", help="Run and inspect one-time code tasks.")

#: Seconds between two looks of a worker at whether a signal came.
_WAKE = 0.5

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_count = click.option("--count", default=20, show_default=True, type=click.IntRange(1, 1000))


def _command(function: Callable[..., None]) -> click.Command:
    """Make a command whose errors are a sentence instead of a traceback, those of loading the app, too."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with_appcontext(function)(*args, **options)
        except (RedisError, TaskFlowError) as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from None

    return taskflow_cli.command()(run)


@_command
@click.option("--queues", help="Serve only these queues, separated by commas.")
@click.option("--threads", type=click.IntRange(1, 1000), help="Run so many callbacks at once.")
def worker(queues: str | None, threads: int | None) -> None:
    """Run callbacks, and send in the background, until SIGTERM or SIGINT; a second one ends it at once."""
    extension, service = _extension(), _service()
    runtime, sends = service.runtime, service.config.sends_in_background
    runtime.narrow(tuple(queues.split(",")) if queues else None, threads)
    served = sorted(runtime.new_engine().queues())
    if not served and not sends:
        raise click.ClickException(
            "this app has no callback for these queues: register one with @taskflow.on_task_verified(queue)"
        )
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    extension.start()
    what = f"{', '.join(served) or 'no callback'}{', and sending codes' if sends else ''}"
    click.echo(f"Serving {what}. Press CTRL+C to quit.")
    # The system may give the signal to another thread; Python runs the handler here, and only when awake.
    while not asked.wait(_WAKE):
        continue
    click.echo("Stopping: waiting for callbacks that run.")
    extension.stop()


@_command
@_as_json
def doctor(as_json: bool) -> None:
    """Look for what could lose or hold up callbacks; exit with 1 on a finding."""
    findings = examine(current_app, _extension())
    rows = [(finding.level, finding.subject, finding.text, finding.cure) for finding in findings]
    _print(as_json, [asdict(finding) for finding in findings], ("", "what", "finding", "cure"), rows)
    if any(finding.level == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


@_command
@_as_json
@click.option("--watch", type=click.FloatRange(0.1), help="Print again every so many seconds.")
def stats(as_json: bool, watch: float | None) -> None:
    """Count tasks and deliveries, by queue and callback."""
    operations = _service().operations
    again = threading.Event()
    while True:
        found = [operations.stats(queue) for queue in operations.queues()]
        rows = [row for queue in found for row in _stats_rows(queue)]
        head = ("queue", "pending", "callback", "ready", "delayed", "running", "dead", "oldest")
        _print(as_json, [asdict(queue) for queue in found], head, rows)
        if watch is None:
            return
        again.wait(watch)


def _stats_rows(queue: QueueStats) -> Iterable[Sequence[object]]:
    name = f"{queue.queue} (paused)" if queue.paused else queue.queue
    if not queue.callbacks:
        yield name, queue.pending, "-", 0, 0, 0, 0, "-"
    for item in queue.callbacks:
        age = "-" if item.oldest is None else f"{item.oldest:.0f} s"
        yield name, queue.pending, item.callback, item.ready, item.delayed, item.running, item.dead, age


@_command
@click.argument("queue")
@_count
@_as_json
def tasks(queue: str, count: int, as_json: bool) -> None:
    """List pending tasks of a queue, the next to expire first."""
    service = _service()
    found: list[dict[str, str | None]] = []
    for task_id in service.operations.pending(_known(queue), count):
        try:
            task = service.get_task(task_id)
        except TaskFlowError as error:
            found.append({"id": task_id, "methods": error.code, "recipient": "-", "expires_at": "-"})
        else:
            found.append(
                {
                    "id": task.id,
                    "methods": ",".join(task.allowed_methods),
                    "recipient": ",".join(task.recipient.masked().values()),
                    "expires_at": _text(task.expires_at),
                }
            )
    _print_all(as_json, found, ("id", "methods", "recipient", "expires_at"))


@_command
@click.argument("task_id")
@_as_json
def show(task_id: str, as_json: bool) -> None:
    """Show a task, masked and without its data, and where its deliveries stand."""
    service = _service()
    queue = service.operations.queue_of(task_id)
    if queue is None:
        raise click.ClickException(f"no queue of this app has a task {task_id}")
    about: dict[str, Any] = {"id": task_id, "queue": queue}
    try:
        task = service.get_task(task_id)
    except TaskFlowError as error:
        about["status"] = f"not readable: {error}"
    else:
        about |= {
            "status": task.status,
            "summary": task.summary,
            "methods": ",".join(task.allowed_methods),
            "recipient": ",".join(task.recipient.masked().values()),
            "priority": task.priority,
            "created_at": _text(task.created_at),
            "expires_at": _text(task.expires_at),
            "verified_at": _text(task.verified_at),
            "verification_method": task.verification_method,
        }
    names = service.operations.names(queue)
    placed = [service.operations.find(queue, name, task_id) for name in names]
    rows = [_jsonable(asdict(item)) for item in placed if item is not None]
    if as_json:
        click.echo(json.dumps({**about, "deliveries": rows}, indent=2))
        return
    for name, value in about.items():
        click.echo(f"{name:20} {'-' if value is None else value}")
    click.echo()
    _print_all(False, rows, ("id", "state", "at", "failures", "lost", "owner", "error"))


@_command
@click.argument("queue", required=False)
@_count
@_as_json
def dead(queue: str | None, count: int, as_json: bool) -> None:
    """List dead letters, of each callback the newest first."""
    operations = _service().operations
    names = [_known(queue)] if queue else operations.queues()
    rows = [_jsonable(asdict(item)) for name in names for item in operations.dead(name, count)]
    _print_all(as_json, rows, ("id", "queue", "at", "failures", "lost", "error"))


@_command
@click.argument("delivery")
def replay(delivery: str) -> None:
    """Let a dead letter run again: DELIVERY is its id, as `dead` lists it."""
    _on_delivery(Operations.replay, delivery, "runs again")


@_command
@click.argument("delivery")
@_yes
def discard(delivery: str, yes: bool) -> None:
    """Forget a dead letter: DELIVERY is its id, as `dead` lists it."""
    _confirm(yes, f"Forget {delivery} for good?")
    _on_delivery(Operations.discard, delivery, "is forgotten")


def _on_delivery(step: Callable[[Operations, str, str, str], bool], delivery: str, done: str) -> None:
    operations = _service().operations
    task_id, _, name = delivery.partition(":")
    queue = operations.queue_of(task_id)
    if queue is None or not name or not step(operations, queue, name, task_id):
        raise click.ClickException(f"{delivery} is no dead letter: `flask taskflow dead` lists them")
    click.echo(f"{delivery} {done}.")


@_command
@click.argument("queue")
def pause(queue: str) -> None:
    """Hold the callbacks of a queue; tasks are verified all the same."""
    _service().operations.pause(_known(queue))
    click.echo(f"{queue} is paused: its callbacks wait. `flask taskflow resume {queue}` lets them run.")


@_command
@click.argument("queue")
def resume(queue: str) -> None:
    """Let the callbacks of a paused queue run again."""
    _service().operations.resume(_known(queue))
    click.echo(f"{queue} runs again, within the poll of its workers.")


@_command
@click.argument("queue")
@_yes
def purge(queue: str, yes: bool) -> None:
    """Forget every delivery of a queue that waits, ready or delayed."""
    _confirm(yes, f"Forget all callbacks of {_known(queue)} that have not run yet, for good?")
    click.echo(f"{_service().operations.purge(queue)} deliveries of {queue} are forgotten.")


@_command
@_as_json
def handlers(as_json: bool) -> None:
    """List callbacks, and when a process last said that it has them."""
    operations = _service().operations
    rows = [
        {"queue": queue, "callback": name, "last_seen": _text(seen)}
        for queue in operations.queues()
        for name, seen in operations.handlers(queue).items()
    ]
    _print_all(as_json, rows, ("queue", "callback", "last_seen"))


@_command
@click.argument("queue")
@click.argument("callback")
@_yes
def forget(queue: str, callback: str, yes: bool) -> None:
    """Forget a callback that no process has any more, so that it gets no deliveries."""
    _confirm(yes, f"Forget callback {callback} of {_known(queue)}?")
    left = _service().operations.forget(queue, callback)
    if left is None:
        raise click.ClickException(f"{queue} has no callback {callback}")
    if left:
        raise click.ClickException(
            f"{callback} has {left} deliveries: run them, or purge the queue and discard its dead letters"
        )
    click.echo(f"{callback} of {queue} is forgotten.")


@_command
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the routes that the app serves."""
    _extension()
    click.echo(json.dumps(openapi_document(current_app), indent=2))


def _extension() -> TaskFlow:
    extension = current_app.extensions.get("taskflow")
    if not isinstance(extension, TaskFlow):
        raise click.ClickException("this app has no TaskFlow: call taskflow.init_app(app)")
    return extension


def _service() -> Service:
    return _extension()._service()


def _known(queue: str) -> str:
    known = _service().operations.queues()
    if queue not in known:
        raise click.ClickException(f"there is no queue {queue}; there are: {', '.join(known) or 'none'}")
    return queue


def _confirm(yes: bool, question: str) -> None:
    if not yes:
        click.confirm(question, abort=True)


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def _jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _text(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _print_all(as_json: bool, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    _print(as_json, rows, columns, [[row[column] for column in columns] for row in rows])


def _print(as_json: bool, data: object, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    lines = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
