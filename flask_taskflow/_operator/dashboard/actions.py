"""What the dashboard changes, each by one call of ``taskflow.operations``, and what it asks before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import abort, g, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from ..._service import current_service
from ...errors import TargetNotFound
from ..operations import EVERY, Operations
from .rendering import render

_MANY = 1_000_000
_FORM_MAX = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an action is for, as its form says.

    :param queue: a queue, or nothing.
    :param callback: one of its callbacks, or ``@`` and a method; or a schedule.
    :param error: what the error of a dead letter must have in it.
    :param before: only what died before, in ISO 8601.
    :param deliveries: ids of dead letters.
    :param task: a task's id.
    """

    queue: str
    callback: str
    error: str
    before: str
    deliveries: tuple[str, ...]
    task: str

    @classmethod
    def read(cls, form: MultiDict[str, str]) -> Target:
        """Return what a form says."""
        words = {name: form.get(name, "") for name in ("queue", "callback", "error", "before", "task")}
        return cls(**words, deliveries=tuple(form.getlist("delivery")))

    @property
    def of(self) -> str:
        """What it is of, as people read it."""
        # A queue's only callback has its name.
        names = dict.fromkeys(name for name in (self.callback, self.queue) if name and name != EVERY)
        return f" of {' of '.join(names)}" if names else ""

    @property
    def filters(self) -> dict[str, Any]:
        """What dead letters of the queue must fit."""
        try:
            before = datetime.fromisoformat(self.before).astimezone(UTC) if self.before else None
        except (ValueError, OverflowError):
            abort(400)
        return {"callback": self.callback or None, "error": self.error, "before": before}


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that an operator can do.

    :param done: what is told afterwards, with the count.
    :param do: does it; returns the count.
    :param question: what is asked before, with the count; nothing if nothing is lost by it.
    :param count: how many it would be.
    """

    done: str
    do: Callable[[Operations, Target], int]
    question: str = ""
    count: Callable[[Operations, Target], int] = lambda operations, target: 1


def _each(call: Callable[[str], None], deliveries: tuple[str, ...]) -> int:
    count = 0
    for delivery in deliveries:
        # Others may have been quicker.
        with suppress(TargetNotFound):
            call(delivery)
            count += 1
    return count


def _cancel(operations: Operations, target: Target) -> int:
    operations.cancel(target.task)
    return 1


def _resume(operations: Operations, target: Target) -> int:
    operations.resume(target.queue)
    return 1


def _schedule(call: Callable[[Operations, str], object]) -> Callable[[Operations, Target], int]:
    def do(operations: Operations, target: Target) -> int:
        call(operations, target.callback)
        return 1

    return do


def _dead(operations: Operations, target: Target) -> int:
    """Count the dead letters that fit."""
    if target.error:
        callback = target.callback or None
        return len(operations.dead(target.queue, callback=callback, error=target.error, count=_MANY))
    (stats,) = operations.stats(target.queue)
    return sum(item.dead for item in stats.callbacks if target.callback in ("", item.callback))


def _waiting(operations: Operations, target: Target) -> int:
    (stats,) = operations.stats(target.queue)
    rows = [item for item in stats.callbacks if not item.callback.startswith("@")]
    return sum(item.ready + item.delayed for item in rows if target.callback in ("", item.callback))


ACTIONS = {
    "pause": Action("Paused: callbacks wait, codes are still accepted.", lambda o, t: len(o.pause(t.queue))),
    "pause_all": Action(
        "{count} queues are paused, and those to come.",
        lambda o, t: len(o.pause(EVERY)),
        "Pause {count} queues, and those to come? Codes are still accepted; no callback begins.",
        lambda o, t: len(o.queues()),
    ),
    "resume": Action("Resumed: callbacks run within the poll of their processes.", _resume),
    "resume_all": Action(
        "Resumed, but for queues that were paused by their own names.", lambda o, t: len(o.resume(EVERY))
    ),
    "purge": Action(
        "{count} deliveries are forgotten.",
        lambda o, t: o.purge(t.queue, t.callback or None),
        "Forget {count} deliveries{of} that wait, for good?",
        _waiting,
    ),
    "replay": Action("{count} dead letters run again.", lambda o, t: _each(o.replay, t.deliveries)),
    "discard": Action(
        "{count} dead letters are forgotten.",
        lambda o, t: _each(o.discard, t.deliveries),
        "Forget {count} dead letters, for good?",
        lambda o, t: len(t.deliveries),
    ),
    "replay_all": Action(
        "{count} dead letters run again.",
        lambda o, t: o.replay_all(t.queue, **t.filters),
        "Let {count} dead letters{of} run again?",
        _dead,
    ),
    "discard_all": Action(
        "{count} dead letters are forgotten.",
        lambda o, t: o.discard_all(t.queue, **t.filters),
        "Forget {count} dead letters{of}, for good?",
        _dead,
    ),
    "pause_schedule": Action("Paused: it does not tick.", _schedule(Operations.pause_schedule)),
    "resume_schedule": Action(
        "Resumed: it ticks again within half a minute.", _schedule(Operations.resume_schedule)
    ),
    "run_schedule": Action(
        "It runs within the poll of its processes.",
        _schedule(Operations.run_schedule),
        "Run {name} now, {count} time besides its ticks?",
    ),
    "cancel": Action(
        "The task is cancelled.", _cancel, "Cancel {count} task? Its codes are worth nothing then."
    ),
    "erase": Action(
        "The task is erased. {count} deliveries stay, since they are to run.",
        lambda o, t: len(o.erase(t.task)),
        "Erase {count} task, for good? With it go its data, its addresses, its course and its dead letters.",
    ),
}


def act(action: str) -> ResponseReturnValue:
    """Do what a form asks for, or ask first whether that is meant."""
    chosen = ACTIONS.get(action) or abort(404)
    request.max_content_length = _FORM_MAX
    target = Target.read(request.form)
    operations = Operations(current_service(), by=g.visitor.name)
    if chosen.question and request.form.get("sure") != "yes":
        count = chosen.count(operations, target)
        question = chosen.question.format(count=f"{count:,}", of=target.of, name=target.callback)
        return render("ask.html", action=action, question=question, target=target, back=_back(action, target))
    count = chosen.do(operations, target)
    return redirect(_back(action, target, done=action, count=count), 303)


def note() -> str:
    """Return what is told of the action that led to this page, or nothing."""
    done, count = ACTIONS.get(request.args.get("done", "")), request.args.get("count", type=int)
    return "" if done is None or count is None else done.done.format(count=f"{count:,}")


def _back(action: str, target: Target, **told: Any) -> str:
    """Return the page on which an action is offered."""
    if action.endswith("_schedule"):
        return url_for(".schedules", **told)
    if action == "erase" and told:
        return url_for(".find", **told)
    if target.task:
        return url_for(".task", task_id=target.task, **told)
    if action.startswith(("replay", "discard")):
        filters: dict[str, Any] = {"queue": target.queue, "callback": target.callback, "error": target.error}
        return url_for(".dead", **{name: word for name, word in filters.items() if word} | told)
    if not target.queue:
        return url_for(".overview", **told)
    return url_for(".queue", queue=target.queue, **told)
