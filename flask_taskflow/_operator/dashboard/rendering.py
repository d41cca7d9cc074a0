"""How pages become HTML: whatever they show of a stranger's text is inert, and no address in it is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flask import Response, current_app, g, make_response, request, url_for
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..._inert import inert
from ..._service import current_service
from ..._store.keys import read_delivery_id
from ..._store.records import time_of
from ..._tasks import mask
from .figures import PERIODS, seconds_text

#: What looks like an e-mail address or a telephone number.
_WORD = r"[^\s@<>\"'(),;:*|]"
_ADDRESS = re.compile(rf"{_WORD}+@{_WORD}*[^\s@<>\"'(),;:*|.]|\+[0-9][0-9 ().-]{{5,}}[0-9]")
#: How ``_delivery/callbacks.py`` writes an error, and where it was raised.
_ERROR = re.compile(r"(?P<text>.*) \(at (?P<place>[^()]*)\)", re.S)
_KEY_MAX = 100
#: The header by which an open page says when what it shows was read, in seconds since 1970.
SEEN = "Taskflow-Seen"


def now() -> datetime:
    """Return the server's time, the same for the whole request."""
    if "taskflow_now" not in g:
        g.taskflow_now = time_of(current_service().operations.now())
    told: datetime = g.taskflow_now
    return told


def shown(value: object) -> object:
    """Return what a page shows of a value: Jinja calls this for each, but for what is HTML already."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    # Most texts are names: they need no second look.
    if value.isascii() and value.isprintable() and "@" not in value and "+" not in value:
        return value
    return inert(_ADDRESS.sub(lambda found: mask(found[0]), value))


def verbatim(text: str) -> Markup:
    """Return a text for the value of an attribute: what somebody typed stays what it is."""
    return Markup("{}").format(text)


def error_parts(error: str) -> tuple[str, str]:
    """Return the text of a dead letter's error, and the app's own line, empty if unknown."""
    found = _ERROR.fullmatch(error)
    return (found["text"], found["place"]) if found else (error, "")


def error_key(error: str) -> str:
    """Return what an error is found by: the longest part of its text without addresses and controls."""
    parts = re.split(r"[\x00-\x1f\x7f\ufffd]", _ADDRESS.sub("\n", error_parts(error)[0]))
    return max(parts, key=len).strip()[:_KEY_MAX]


def number(value: int) -> str:
    """Return a number with its thousands apart."""
    return f"{value:,}"


def percent(share: float | None) -> str:
    """Return a share in percent, ``-`` for none."""
    return "-" if share is None else f"{share:.0%}"


def when(time: datetime | None) -> Markup:
    """Return a time, and how long ago it is or how long until then."""
    if time is None:
        return Markup("-")
    apart = (now() - time).total_seconds()
    text = f"{seconds_text(apart)} ago" if apart > 0 else f"in {seconds_text(-apart)}"
    text = "now" if abs(apart) < 1 else text
    return Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{}</time>').format(
        time.isoformat(timespec="seconds"), time, text
    )


def _link(endpoint: str, **values: Any) -> Markup:
    """Return a URL as it is: the name of a queue in it is no address that is to be masked."""
    return verbatim(url_for(endpoint, **values))


def self_url(**changes: str) -> Markup:
    """Return the URL of this page without what is told of an action, and with some changes of its query."""
    query = {name: value for name, value in request.args.items() if name not in ("done", "count")}
    # Not by url_for: it has parameters of its own, and the names in the query are anybody's.
    place = url_for(request.endpoint or "", **(request.view_args or {}))
    return verbatim("?".join(filter(None, (place, urlencode(query | changes)))))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# Quicker than functions, and there is one in most cells.
_ENVIRONMENT.filters.update(
    seconds=seconds_text, percent=percent, when=when, n=number, verbatim=verbatim, delivery=read_delivery_id
)
_ENVIRONMENT.globals.update(
    url_for=_link,
    self_url=self_url,
    now=now,
    error_parts=error_parts,
    error_key=error_key,
    periods=PERIODS,
)


def render(template: str, status: int = 200, **context: Any) -> Response:
    """Return a page, or for one that is open only what it reads again.

    :param context: what its template needs besides who looks and what is always there.
    """
    again = SEEN in request.headers
    # Where an app protects its forms by Flask-WTF, ours bring what it wants to see.
    token = current_app.jinja_env.globals.get("csrf_token")
    always: Mapping[str, Any] = {
        "layout": "again.html" if again else "layout.html",
        "visitor": g.get("visitor"),
        "here": (request.endpoint or "").rpartition(".")[2],
        "csrf_token": token() if callable(token) and not again else "",
    }
    return make_response(_ENVIRONMENT.get_template(template).render(**always, **context), status)
