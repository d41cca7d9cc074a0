"""The pages. None changes anything; all they show is read from Redis when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from flask import abort, redirect, request, send_from_directory, url_for
from flask.typing import ResponseReturnValue

from ..._checks import fits
from ..._service import current_service
from ..._store.keys import TASK_ID, Consumer
from ..._store.operations import Placed, QueueStats
from ...errors import InvalidTask, TargetNotFound, TaskFlowError, TaskNotFound
from ..doctor import examine
from ..operations import Operations
from .actions import note
from .figures import PERIODS, ConsumerRow, Period, Row, graphs_of
from .rendering import now, render

_STATIC = Path(__file__).parent / "static"
_ASSETS = ("dashboard.css", "dashboard.js")
#: How many dead letters, and how many pending tasks, are listed at most.
_LETTERS, _PENDING = 100, 10
#: How many of each callback are listed at least, where there are many.
_FEW = 5


def overview() -> ResponseReturnValue:
    """Show all queues, or those of some patterns: one script of Redis for each."""
    operations, period, asked = current_service().operations, _period(), request.args.get("queues", "")
    patterns = asked.replace(",", " ").split() or ["*"]
    names = [name for name in operations.queues() if fits(name, patterns)]
    rows = [Row(*operations.stats_and_history(name, period.span)) for name in names]
    graphs = graphs_of(period, chain.from_iterable(row.history for row in rows), now())
    total = {state: sum(row.all(state) for row in rows) for state in ("ready", "delayed", "running", "dead")}
    about: dict[str, Any] = {"rows": rows, "period": period, "graphs": graphs, "total": total, "asked": asked}
    return render("overview.html", note=note(), **about)


def queue(queue: str) -> ResponseReturnValue:
    """Show a queue, its callbacks, its methods, and the tasks that end next."""
    operations, period, row = current_service().operations, _period(), _row(queue)
    pending = operations.pending(queue, _PENDING)
    graphs = graphs_of(period, row.history, now())
    consumers = _consumers(row)
    return render(
        "queue.html", row=row, period=period, graphs=graphs, consumers=consumers, pending=pending, note=note()
    )


def consumer(queue: str, name: str, method: bool = False) -> ResponseReturnValue:
    """Show a callback of a queue, or the sends by a method, and its dead letters."""
    row = _row(queue)
    wanted = Consumer.sending(name) if method else Consumer(name)
    found = next((item for item in _consumers(row) if item.name == wanted), None)
    known = next((item for item in row.methods if method and item.name == name), None)
    if found is None and known is None:
        raise TargetNotFound(f"{queue} has no {'method' if method else 'callback'} {name}")
    found = found or ConsumerRow(wanted, None, row.stats.counts)
    letters = _letters([row.stats], wanted, "")
    return render("consumer.html", row=row, item=found, method=known, letters=letters, note=note())


def dead() -> ResponseReturnValue:
    """Show dead letters: of all queues, or those that fit."""
    operations = current_service().operations
    wanted = {name: request.args.get(name, "") for name in ("queue", "callback", "error")}
    all_stats = [operations.stats(name) for name in operations.queues()]
    stats = [one for one in all_stats if wanted["queue"] in ("", one.queue)]
    if not stats and wanted["queue"]:
        raise TargetNotFound(f"there is no queue {wanted['queue']}")
    there = [(one.queue, item) for one in all_stats for item in one.callbacks if item.dead]
    letters = _letters(stats, wanted["callback"], wanted["error"])
    return render("dead.html", wanted=wanted, there=there, letters=letters, most=_LETTERS, note=note())


def task(task_id: str) -> ResponseReturnValue:
    """Show a task, masked and without its data, and where its deliveries stand."""
    service = current_service()
    name = service.operations.queue_of(task_id) if TASK_ID.fullmatch(task_id) else None
    if name is None:
        raise TargetNotFound(f"no queue of this app has a task {task_id}")
    found = [service.operations.find(name, each, task_id) for each in service.operations.names(name)]
    placed = [item for item in found if item is not None]
    known, course, problem = None, [], ""
    with suppress(TaskNotFound):
        course = service.get_course(task_id)
    try:
        known = service.get_task(task_id)
    except TaskNotFound:
        if not (placed or course):
            raise TargetNotFound(f"there is no task {task_id}, or it was forgotten") from None
        problem = "The task itself was forgotten by now."
    except TaskFlowError as error:
        problem = f"The task is not readable here: {error}"
    about: dict[str, Any] = {"task": known, "course": course, "placed": placed, "problem": problem}
    return render("task.html", task_id=task_id, queue=name, note=note(), **about)


def find() -> ResponseReturnValue:
    """Ask for a task, lead to the one that was asked for, or list those of an address or an owner."""
    asked, found = request.form.get("asked", "").strip(), []
    task_id = asked.partition(":")[0]
    if TASK_ID.fullmatch(task_id):
        return redirect(url_for(".task", task_id=task_id), 303)
    with suppress(InvalidTask):
        found = Operations(current_service()).find(asked)[:_LETTERS] if asked else []
    return render("find.html", asked=asked, found=found, most=_LETTERS, note=note())


def health() -> ResponseReturnValue:
    """Show what the doctor finds."""
    findings = sorted(examine(current_service()), key=lambda one: ("bad", "note", "ok").index(one.level))
    return render("health.html", findings=findings, note="")


def schedules() -> ResponseReturnValue:
    """Show the schedules, their next ticks, and how their last runs ended."""
    found = Operations(current_service()).schedules()
    return render("schedules.html", found=found, note=note())


def processes() -> ResponseReturnValue:
    """Show which processes run callbacks and send codes."""
    operations = current_service().operations
    found, stuck = operations.processes(), operations.stuck()
    return render("processes.html", found=found, stuck=stuck, listening=operations.listening(), note="")


def asset(filename: str) -> ResponseReturnValue:
    """Send the style or the script."""
    if filename not in _ASSETS:
        abort(404)
    return send_from_directory(_STATIC, filename, conditional=True)


def _period() -> Period:
    return PERIODS.get(request.args.get("period", ""), PERIODS["day"])


def _row(queue: str) -> Row:
    operations = current_service().operations
    if queue not in operations.queues():
        raise TargetNotFound(f"there is no queue {queue}")
    return Row(*operations.stats_and_history(queue, _period().span))


def _consumers(row: Row) -> list[ConsumerRow]:
    """Return the callbacks of a queue, and its sends by each method that has any."""
    stats, seen = row.stats, current_service().operations.handlers(row.stats.queue)
    return [
        ConsumerRow(item.callback, item, stats.counts, seen.get(item.callback)) for item in stats.callbacks
    ]


def _letters(queues: Iterable[QueueStats], callback: str, error: str) -> list[Placed]:
    """Return dead letters of some queues that fit: of many callbacks the newest few of each."""
    operations = current_service().operations
    there = [
        (one.queue, item.callback)
        for one in queues
        for item in one.callbacks
        if item.dead and callback in ("", item.callback)
    ]
    share = max(_LETTERS // max(len(there), 1), _FEW)
    found = [
        letter for queue, name in there for letter in operations.dead(queue, share, name=name, error=error)
    ]
    return sorted(found, key=attrgetter("at"), reverse=True)[:_LETTERS]
