"""What the page for a code shows. Its texts are in the templates; here is what they are about."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flask import current_app, render_template, url_for
from jinja2 import Environment

from .._course import Outcome
from .._service import current_service
from .._tasks import Status, Task, is_gated, mask
from ..strategies._texts import current_locale, lang_of, speaking, translators

#: Languages that are written from right to left (CLDR, characterOrder).
_RIGHT_TO_LEFT = frozenset(("ar", "ckb", "dv", "fa", "he", "ks", "ps", "sd", "ug", "ur", "yi"))
#: What a code pattern says that wants nothing but so many digits.
_DIGITS = re.compile(r"(?:\[0-9\]|\\d)\{(\d{1,2})\}", re.ASCII)
#: Seconds left at which one who waits, and listens to the page, is told so.
_PHASES = (30, 60, 300, 600)
_OF_CODES = frozenset(("empty", "short", "long", "letters", "signs", "unlike", "refused"))
_OF_ADDRESSES = frozenset(("invalid_task", "no_address"))
_OUTCOMES = {
    Outcome.DONE: "done",
    Outcome.WAITING: "waiting",
    Outcome.RUNNING: "waiting",
    Outcome.RETRYING: "waiting",
    Outcome.DISCARDED: "unfinished",
    Outcome.DEAD: "unfinished",
}
_ENDED = {
    Status.LOCKED: "locked",
    Status.CANCELLED: "withdrawn",
    Status.REJECTED: "withdrawn",
    Status.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a code.

    :param method: the method.
    :param address: where it is sent, masked, or nothing.
    :param device: whether a device makes it, so that nothing is sent.
    :param url: the page for its code.
    :param wait: seconds until it can be sent.
    """

    method: str
    address: str
    device: bool
    url: str
    wait: int


@dataclass(frozen=True, kw_only=True)
class Page:
    """The page for a code; templates have it as ``page``.

    :param blueprint: the name of the blueprint that serves it.
    :param arguments: what the variables of its URL hold.
    :param task: the task, or ``None`` if there is none for whoever asks.
    :param asked: the method that was asked for, or nothing.
    :param problem: what is wrong with the last request, a word of ``texts.html``, or nothing.
    :param note: what was just sent: ``same``, ``new``, or nothing.
    :param may_correct: fields of a recipient that the app lets people correct.
    :param typed: what the form had that was just sent, but the code.
    :param trouble: why there is nothing to show: ``refused``, ``unavailable``, ``send_limit``,
        ``invalid_task``, or nothing.
    :param run: of the request that a task keeps: ``now`` if it runs next, ``done`` if it ran, or nothing.
    """

    blueprint: str
    arguments: Mapping[str, Any]
    task: Task[Any] | None = None
    asked: str = ""
    problem: str = ""
    note: str = ""
    may_correct: tuple[str, ...] = ()
    typed: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""
    run: str = ""

    @cached_property
    def state(self) -> str:
        """What the page is about, a word of ``texts.html``."""
        task = self.task
        if task is None or self.trouble:
            return self.trouble or "over"
        if task.status is Status.PENDING or (task.status is Status.FAILED and task.resend_after):
            return "form"
        if task.status is Status.SUCCESS:
            if self.is_gated and self.run == "done":
                return "begun"
            return _OUTCOMES.get(task.outcome or Outcome.NONE, "confirmed")
        return _ENDED.get(task.status, "over")

    @property
    def at_fault(self) -> bool:
        """Whether the problem is with the code that was typed."""
        return self.problem in _OF_CODES

    @property
    def field_at_fault(self) -> str:
        """The ``id`` of the field that the problem is with, or nothing."""
        names = ["otp"] if self.at_fault else []
        if self.problem in _OF_ADDRESSES:
            names = [name for name in self.correctable if name in self.typed]
        return f"taskflow-{names[0]}" if names else ""

    @property
    def summary(self) -> str:
        """What is confirmed, or nothing."""
        return (self.task and self.task.summary) or ""

    @property
    def is_gated(self) -> bool:
        """Whether the task keeps a request."""
        return self.task is not None and is_gated(self.task)

    @property
    def goes_on(self) -> bool:
        """Whether the browser goes on by itself."""
        return self.run == "now" and self.is_gated and bool(self.next_url)

    @property
    def next_url(self) -> str:
        """Where to go on after the code, or nothing."""
        if self.task is None or self.task.status is not Status.SUCCESS:
            return ""
        if self.is_gated:
            return "" if self.run == "done" else url_for(f"{self.blueprint}.replay", **self.arguments)
        return self.task.next_url or ""

    @cached_property
    def all_ways(self) -> Mapping[str, Way]:
        """Every way to a code for this task that is there, in the app's order."""
        task, channels = self.task, current_service().channels
        found: dict[str, Way] = {}
        for method in task.allowed_methods if task else ():
            channel = channels.get(method)
            if task is not None and channel is not None and channel.reaches(task.recipient):
                address, wait = channel.address(task.recipient), task.resend_after.get(method, 0)
                found[method] = Way(
                    method,
                    mask(address) if address else "",
                    channel.checks,
                    self.url_for(method=method),
                    math.ceil(wait),
                )
        return found

    @property
    def correctable(self) -> list[str]:
        """The fields of the recipient that may be corrected here.

        None is added, and none is changed for a view that waits: its app says who gets the code.
        """
        channels = current_service().channels
        used = {channels[method].address_field for method in self.all_ways}
        return [field for field in self.may_correct if field in used and not self.is_gated]

    @cached_property
    def method(self) -> str:
        """The method whose code is typed: the one that was asked for, else the first that has a code."""
        if self.asked in self.all_ways:
            return self.asked
        has = self.task.codes if self.task else {}
        return max(self.all_ways, key=lambda method: (method in has, has.get(method)), default="")

    @property
    def sent(self) -> str:
        """Whether a code went out by the method: ``yes``, ``soon`` or ``no``."""
        went = self.task and self.task.codes.get(self.method)
        return "no" if went is None else "yes" if went else "soon"

    @property
    def device(self) -> bool:
        """Whether a device makes the code."""
        return self.method in self.all_ways and self.all_ways[self.method].device

    @property
    def address(self) -> str:
        """Where its codes are sent, masked, or nothing."""
        return self.all_ways[self.method].address if self.method in self.all_ways else ""

    @property
    def ways(self) -> list[Way]:
        """What helps those who have no code: to send it again, and the other methods."""
        ways = sorted(self.all_ways.values(), key=lambda way: way.method != self.method)
        may = self.task.resend_after if self.task else {}
        return [way for way in ways if (way.method != self.method if way.device else way.method in may)]

    @cached_property
    def wait(self) -> int:
        """Seconds until the code can be sent again, 0 if it can be now."""
        return 0 if self.device or self.method not in self.all_ways else self.all_ways[self.method].wait

    @property
    def phases(self) -> list[int]:
        """The seconds left at which one who waits is told so."""
        return [seconds for seconds in _PHASES if seconds < self.wait]

    @cached_property
    def digits(self) -> int:
        """How many digits the code has; 0 if it is made of something else."""
        found = _DIGITS.fullmatch(current_service().pattern(self.method).pattern)
        return int(found[1]) if found else 0

    @cached_property
    def locale(self) -> str:
        """The language of the page."""
        return (self.task and self.task.locale) or current_locale()

    def lang_of(self, title: str) -> str:
        """Return the language that the page turned out to be in, as HTML names it."""
        return lang_of(html.unescape(title), self.locale)

    def dir_of(self, lang: str) -> str:
        """Return the direction of a language."""
        return "rtl" if lang.partition("-")[0].lower() in _RIGHT_TO_LEFT else "ltr"

    @cached_property
    def _translators(self) -> Mapping[str, Callable[..., str]]:
        return translators(current_app, self.locale)

    @property
    def gettext(self) -> Callable[..., str]:
        """Translate a text, in a template."""
        return self._translators["gettext"]

    @property
    def ngettext(self) -> Callable[..., str]:
        """Translate a text with a number in it, in a template."""
        return self._translators["ngettext"]

    @property
    def url(self) -> str:
        """Where its forms go, and where it is seen again."""
        return self.url_for()

    def url_for(self, **query: str) -> str:
        """Return the page's URL, with a query."""
        return url_for(f"{self.blueprint}.page", **{**self.arguments, **query})

    def asset(self, name: str) -> str:
        """Return the URL of a style or a script."""
        arguments = {name: value for name, value in self.arguments.items() if name != "task_id"}
        return url_for(f"{self.blueprint}.asset", **arguments, filename=name)

    def render(self) -> str:
        """Return the page as HTML."""
        template = _environment().get_template("taskflow/page.html")
        with speaking(self.locale):
            return render_template(template, page=self, _=self.gettext).lstrip()

    def problem_of(self, typed: str) -> str:
        """Return why a text cannot be a code of the page's method, as a word of ``texts.html``."""
        text = "".join(
            c for c in unicodedata.normalize("NFKC", typed) if unicodedata.category(c) not in _GAPS
        )
        if not text:
            return "empty"
        if not self.digits:
            return "unlike"
        if any(c.isalpha() for c in text):
            return "letters"
        if not all(unicodedata.category(c) == "Nd" for c in text):
            return "signs"
        return "short" if len(text) < self.digits else "long"


def _environment() -> Environment:
    """Return the app's environment, but that it reads templates as ours are written."""
    known = current_app.extensions.get("taskflow.pages")
    if not isinstance(known, Environment):
        known = current_app.jinja_env.overlay(
            block_start_string="{%",
            block_end_string="%}",
            variable_start_string="{{",
            variable_end_string="}}",
            comment_start_string="{#",
            comment_end_string="#}",
            line_statement_prefix=None,
            line_comment_prefix=None,
            autoescape=True,
        )
        current_app.extensions["taskflow.pages"] = known
    return known


_GAPS = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf", "Pd"))
