"""``flask taskflow``: the commands."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext
from redis import RedisError

from .._checks import SCHEDULES
from .._http.health import look
from .._inert import inert
from .._people import unblock as lift
from .._service import Service, current_service
from .._store.keys import read_delivery_id
from .._store.operations import QueueStats
from .._tasks import mask
from ..errors import TargetNotFound, TaskFlowError, TaskNotFound
from .doctor import Finding, examine, examine_settings
from .operations import EVERY, Operations
from .tables import jsonable, print_json, print_rows, print_table, say, text_of, text_of_cell
from .worker import run_worker

taskflow_cli = click.Group("taskflow", help="Run and inspect one-time code tasks.")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_count = click.option("--count", default=20, show_default=True, type=click.IntRange(1, 1000))


def _command(function: Callable[..., None]) -> click.Command:
    """Make a command whose errors are a sentence instead of a traceback, those of loading the app, too."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with_appcontext(function)(*args, **options)
        except TargetNotFound as error:
            raise click.ClickException(inert(str(error))) from None
        except (RedisError, TaskFlowError) as error:
            raise click.ClickException(inert(f"{type(error).__name__}: {error}")) from None
        except click.UsageError:
            raise
        except click.ClickException as error:
            raise click.ClickException(inert(error.message)) from None

    return taskflow_cli.command()(run)


@_command
@click.option("--queues", help="Serve only these queues, separated by commas; * stands for anything.")
@click.option("--threads", type=click.IntRange(1, 1000), help="Run so many callbacks at once.")
@click.option("--health-file", type=click.Path(path_type=Path), help="Touch this file while all is well.")
def worker(queues: str | None, threads: int | None, health_file: Path | None) -> None:
    """Run callbacks, and send in the background, until a signal ends it; a second one does at once."""
    names = None if queues is None else tuple(name for each in queues.split(",") if (name := each.strip()))
    if names == ():
        raise click.BadParameter("name at least one queue", param_hint="--queues")
    run_worker(_service(), names, threads, health_file)


@_command
@_as_json
def health(as_json: bool) -> None:
    """Tell whether Redis answers and nothing waits for long; exit with 1 if not."""
    found = look(_service())
    print_rows(as_json, [asdict(found)], ("ok", "redis", "oldest"))
    if not found.ok:
        raise click.exceptions.Exit(1)


@_command
def metrics() -> None:
    """Print the metrics as Prometheus reads them."""
    from .._http.metrics import exposition

    click.echo(exposition(_service()).decode(), nl=False)


@_command
@_as_json
@click.option("--strict", is_flag=True, help="Fail on each breach of OWASP ASVS or NIST SP 800-63B.")
def doctor(as_json: bool, strict: bool) -> None:
    """Look for what could lose or hold up callbacks; exit with 1 on a finding."""
    _print_findings(as_json, examine(_service(), strict=strict), clauses=strict)


@_command
@_as_json
def check(as_json: bool) -> None:
    """Look for settings that a strategy cannot send with; exit with 1 on a finding. Needs no server."""
    _print_findings(as_json, examine_settings(_service()))


def _print_findings(as_json: bool, findings: Iterable[Finding], *, clauses: bool = False) -> None:
    findings = list(findings)
    head = ("", "what", "finding", "cure", "clause")[: 5 if clauses else 4]
    rows = [astuple(finding)[: len(head)] for finding in findings]
    print_table(as_json, [asdict(finding) for finding in findings], head, rows)
    if any(finding.level == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


@_command
@_as_json
@click.option("--watch", type=click.FloatRange(0.1), help="Print again every so many seconds.")
def stats(as_json: bool, watch: float | None) -> None:
    """Count tasks and deliveries, by queue and callback."""
    operations = _operations()
    again = threading.Event()
    while True:
        found = operations.stats()
        rows = [row for queue in found for row in _stats_rows(queue)]
        head = ("queue", "pending", "callback", "ready", "delayed", "running", "dead", "oldest")
        print_table(as_json, [asdict(queue) for queue in found], head, rows)
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
                    "expires_at": text_of(task.expires_at),
                }
            )
    print_rows(as_json, found, ("id", "methods", "recipient", "expires_at"))


@_command
@click.argument("person", metavar="ADDRESS_OR_OWNER")
@_count
@_as_json
def find(person: str, count: int, as_json: bool) -> None:
    """Find the tasks of an address or an owner in all queues, the newest first."""
    found = _operations().find(person)
    rows = [
        {
            "id": task.id,
            "queue": task.queue,
            "status": task.status,
            "outcome": task.outcome,
            "recipient": ",".join(task.recipient.masked().values()),
            "created_at": text_of(task.created_at),
        }
        for task in found[:count]
    ]
    if not rows and not as_json:
        say("No task that is kept has this address or owner.")
        return
    print_rows(as_json, rows, ("id", "queue", "status", "outcome", "recipient", "created_at"))


@_command
@click.argument("task_id")
@_as_json
def show(task_id: str, as_json: bool) -> None:
    """Show a task, masked and without its data, and where its deliveries stand; or a run of a schedule."""
    service = _service()
    item, name = read_delivery_id(task_id)
    if ":" in item:
        _show_run(service, name, item, as_json)
        return
    # The id of a delivery, as `dead` lists it, begins with that of its task.
    task_id = item
    queue = service.operations.queue_of(task_id)
    if queue is None:
        raise click.ClickException(f"no queue of this app has a task {task_id}")
    names = service.operations.names(queue)
    placed = [service.operations.find(queue, name, task_id) for name in names]
    rows = [jsonable(asdict(item)) for item in placed if item is not None]
    became: list[dict[str, Any]] = []
    about: dict[str, Any] = {"id": task_id, "queue": queue}
    try:
        task = service.get_task(task_id)
    except TaskNotFound:
        if not rows:
            raise click.ClickException(f"there is no task {task_id}, or it was forgotten") from None
        about["status"] = "forgotten"
    except TaskFlowError as error:
        about["status"] = f"not readable: {error}"
    else:
        about |= {
            "status": task.status,
            "outcome": task.outcome,
            "summary": task.summary,
            "methods": ",".join(task.allowed_methods),
            "recipient": ",".join(task.recipient.masked().values()),
            "priority": task.priority,
            "created_at": text_of(task.created_at),
            "expires_at": text_of(task.expires_at),
            "verified_at": text_of(task.verified_at),
            "verification_method": task.verification_method,
        }
        became = [{"callback": name, **jsonable(asdict(told))} for name, told in task.outcomes.items()]
    if as_json:
        print_json({**about, "outcomes": became, "deliveries": rows})
        return
    for name, value in about.items():
        say(f"{name:20} {text_of_cell(value)}")
    say()
    print_rows(False, became, ("callback", "state", "attempts", "since", "next_at"))
    say()
    print_rows(False, rows, ("id", "state", "at", "failures", "lost", "owner", "error"))


def _show_run(service: Service, schedule: str, tick: str, as_json: bool) -> None:
    found = service.operations.find(SCHEDULES, schedule, tick)
    if found is None:
        raise click.ClickException(
            f"schedule {schedule} has no run for {tick} that waits, runs or is dead: it is done, or never was"
        )
    rows = [jsonable(asdict(found))]
    print_rows(as_json, rows, ("id", "state", "at", "failures", "lost", "owner", "error"))


@_command
@click.argument("task_id")
@_as_json
def history(task_id: str, as_json: bool) -> None:
    """Tell what happened to a task, its codes and its deliveries, the oldest first."""
    try:
        # The id of a delivery, as `dead` lists it, begins with that of its task.
        entries = _operations().history(read_delivery_id(task_id)[0])
    except TaskNotFound:
        raise click.ClickException(f"there is no task {task_id}, or it was forgotten") from None
    told = [
        {name: value for name, value in jsonable(asdict(entry)).items() if value is not None}
        for entry in entries
    ]
    rows = []
    for row in told:
        more = [str(value) for name, value in row.items() if name not in ("at", "event")]
        rows.append((row.get("at", "-"), row["event"], " ".join(more)))
    print_table(as_json, told, ("at", "event", "more"), rows)


@_command
@click.argument("queue", required=False)
@_count
@_as_json
def dead(queue: str | None, count: int, as_json: bool) -> None:
    """List dead letters, of each callback the newest first."""
    rows = [jsonable(asdict(item)) for item in _operations().dead(queue, count=count)]
    print_rows(as_json, rows, ("id", "queue", "at", "failures", "lost", "error"))


def _filters(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take one dead letter, or those of a queue that fit."""
    for option in (
        click.option("--before", type=click.DateTime(), help="Only what died before, in UTC. With --all."),
        click.option("--error", default="", help="Only those whose error has this text. With --all."),
        click.option("--callback", help="Only those of this callback. With --all."),
        click.option("--all", "every", is_flag=True, help="All of a queue that fit: TARGET is its name."),
        click.argument("target"),
    ):
        function = option(function)
    return function


@_command
@_filters
def replay(target: str, every: bool, **filters: Any) -> None:
    """Let dead letters run again: TARGET is the id of one, as `dead` lists it."""
    chosen = _read(every, filters)
    if every:
        say(f"{_operations().replay_all(target, **chosen)} dead letters of {target} run again.")
    else:
        _operations().replay(target)
        say(f"{target} runs again.")


@_command
@_filters
@_yes
def discard(target: str, every: bool, yes: bool, **filters: Any) -> None:
    """Forget dead letters: TARGET is the id of one, as `dead` lists it."""
    chosen = _read(every, filters)
    _confirm(yes, f"Forget {'all dead letters of ' if every else ''}{target} for good?")
    if every:
        say(f"{_operations().discard_all(target, **chosen)} dead letters of {target} are forgotten.")
    else:
        _operations().discard(target)
        say(f"{target} is forgotten.")


def _read(every: bool, filters: dict[str, Any]) -> dict[str, Any]:
    if not every and any(filters.values()):
        raise click.UsageError("--callback, --error and --before choose among those of a queue: say --all")
    before = filters["before"]
    return {**filters, "before": before and before.replace(tzinfo=UTC)}


def _one_or_all(function: Callable[..., None]) -> Callable[..., None]:
    every = click.option("--all", "every", is_flag=True, help="All queues, those to come, too.")
    return click.argument("queue", required=False)(every(function))


def _which(queue: str | None, every: bool) -> str:
    if (queue is None) is not every:
        raise click.UsageError("name a queue, or say --all")
    return queue or EVERY


def _read_duration(value: str) -> float:
    """Return seconds: a number of them, or of minutes, hours or days by ``m``, ``h`` and ``d``."""
    match = re.fullmatch(r"(\d{1,8})([smhd]?)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration: write 90s, 10m, 2h or 1d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


@_command
@_one_or_all
@click.option("--for", "seconds", type=_read_duration, help="For so long only, as 90s, 10m or 2h.")
def pause(queue: str | None, every: bool, seconds: float | None) -> None:
    """Hold the callbacks of a queue, or of all; tasks are verified all the same."""
    name = _which(queue, every)
    _operations().pause(name, seconds=seconds)
    who, again = (name, name) if queue else ("Every queue", "--all")
    lasts = "" if seconds is None else f" for {timedelta(seconds=seconds)}"
    say(f"{who} is paused{lasts}: its callbacks wait. `flask taskflow resume {again}` lets them run.")


@_command
@_one_or_all
def resume(queue: str | None, every: bool) -> None:
    """Let the callbacks of a paused queue, or of all that `pause --all` holds, run again."""
    name = _which(queue, every)
    held = _operations().resume(name)
    if queue and held:
        say(f"{queue} is still held: `flask taskflow resume --all` lets all run.")
        return
    say(f"{queue or 'Every queue'} runs again, within the poll of its workers.")
    for each in held:
        say(f"{each} was paused by its name: `flask taskflow resume {each}` lets it run.")


@_command
@click.argument("queue")
@click.argument("callback", required=False)
@_yes
def purge(queue: str, callback: str | None, yes: bool) -> None:
    """Forget the deliveries of a queue that wait, or only those of one CALLBACK of it."""
    operations = _operations()
    operations.stats(queue)
    whose = f"callbacks of {queue}" if callback is None else f"deliveries of {callback}"
    _confirm(yes, f"Forget all {whose} that have not run yet, for good?")
    say(f"{operations.purge(queue, callback)} deliveries of {queue} are forgotten.")


@_command
@click.argument("queue")
@click.argument("old")
@click.argument("new")
def move(queue: str, old: str, new: str) -> None:
    """Give what waits and what is dead of callback OLD to callback NEW, as after a rename.

    What NEW has of the same task, or is done with, stays with OLD.
    """
    count = _operations().move(queue, old, new)
    say(f"{count} deliveries of {old} are those of {new} now.")


@_command
@_as_json
def handlers(as_json: bool) -> None:
    """List callbacks, and when a process last said that it has them."""
    operations = _service().operations
    rows = [
        {"queue": queue, "callback": name, "last_seen": text_of(seen)}
        for queue in operations.queues()
        for name, seen in operations.handlers(queue).items()
    ]
    print_rows(as_json, rows, ("queue", "callback", "last_seen"))


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
    if queue == SCHEDULES:
        _service().runtime.engines.schedules.forget(callback)
    say(f"{callback} of {queue} is forgotten.")


@_command
@click.argument("address")
def unblock(address: str) -> None:
    """Lift the limits of an address, a device or an owner, over all queues."""
    count = lift(_service(), address)
    click.echo(f"Limits of {mask(address)} that were lifted: {count}.")


@_command
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the routes that the app serves."""
    from .._http.openapi import openapi_document

    _service()
    print_json(openapi_document(current_app))


@_command
@click.argument("action", required=False, type=click.Choice(["pause", "resume", "run"]))
@click.argument("name", required=False)
@_as_json
def schedules(action: str | None, name: str | None, as_json: bool) -> None:
    """List schedules with their next ticks; or pause, resume or run the one of a NAME."""
    operations = _operations()
    if action is None:
        found = operations.schedules()
        rows = [{**jsonable(asdict(item)), "ticks": list(map(text_of, item.ticks))} for item in found]
        head = ("name", "when", "timezone", "paused", "last", "outcome", "by hand", "next")
        cells = [
            (
                *(row[key] for key in head[:6]),
                row["by_hand"] and f"{row['by_hand']} {row['by_hand_outcome']}",
                ", ".join(map(str, row["ticks"])),
            )
            for row in rows
        ]
        print_table(as_json, rows, head, cells)
        return
    if name is None:
        raise click.UsageError(f"name the schedule to {action}")
    if action == "pause":
        operations.pause_schedule(name)
        say(f"{name} is paused: it does not tick. `flask taskflow schedules resume {name}` lets it.")
    elif action == "resume":
        operations.resume_schedule(name)
        say(f"{name} ticks again, within half a minute.")
    else:
        say(f"{operations.run_schedule(name)} runs, within the poll of the workers.")


def _service() -> Service:
    if "taskflow" not in current_app.extensions:
        raise click.ClickException("this app has no TaskFlow: call taskflow.init_app(app)")
    return current_service()


def _operations() -> Operations:
    return Operations(_service(), by="command")


def _known(queue: str) -> str:
    _operations().stats(queue)
    return queue


def _confirm(yes: bool, question: str) -> None:
    if not yes:
        click.confirm(inert(question), abort=True)
