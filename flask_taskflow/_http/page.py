"""The page for a code, for whoever comes by browser. It works without JavaScript.

``GET`` shows it and changes nothing. ``POST`` comes from its own forms; it leads on by 303, or shows the same
page with what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    make_response,
    redirect,
    request,
    send_from_directory,
    url_for,
)
from flask.sansio.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader
from redis import RedisError
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BuildError

from .._checks import METHOD
from .._config.config import current_config
from .._otp import OTP
from .._service import current_service
from .._tasks import Status, Task
from ..errors import (
    CodeRepeated,
    ConfigError,
    InvalidCode,
    InvalidTask,
    KeyMissing,
    NotHolder,
    OTPRejected,
    ResendTooSoon,
    SendFailed,
    SendLimitReached,
    StrategyFailed,
    TaskTampered,
)
from .openapi import TaskFlowBlueprint
from .origin import is_own
from .page_view import Page
from .problems import keep_headers
from .schemas import hold, hold_on, holder_of

#: Its forms bring less than 1 kB; OWASP ASVS 5.0, 1.5 asks for a limit.
_FORM_MAX = 16 * 1024
_STATIC = Path(__file__).parent / "static"
#: Routes that a client is told of.
_LINKED = ("page", "verify", "resend", "status", "reject", "cancel")
_ASSETS = ("page.css", "page.js")
_OURS = FileSystemLoader(Path(__file__).parent / "templates")
#: The app's templates come first; by the longer path one of them can extend ours of the same name.
_LOADER = ChoiceLoader([_OURS, PrefixLoader({"flask_taskflow": _OURS})])
#: Errors that are over soon.
UNAVAILABLE = (RedisError, StrategyFailed, TaskTampered, KeyMissing)
_STATUS = {"over": 404, "unavailable": 503, "refused": 403, "send_limit": 429, "invalid_task": 422}


def add_page(blueprint: Blueprint, decorators: Iterable[Callable[..., Any]]) -> None:
    """Let a blueprint serve the page.

    :param decorators: wrapped around its views, the first one innermost.
    """
    views: dict[str, Callable[..., Any]] = {"GET": show, "POST": act}
    for verb, view in views.items():
        for decorator in decorators:
            view = decorator(view)
        blueprint.add_url_rule("/tasks/<task_id>", "page" if verb == "GET" else "act", view, methods=[verb])
    blueprint.add_url_rule("/page/<filename>", view_func=asset)
    blueprint.jinja_loader = _LOADER
    blueprint.record(_tell_templates)


def _tell_templates(state: BlueprintSetupState) -> None:
    """Let an app's own pages have the form, by ``taskflow/form.html``."""
    name = f"{state.name_prefix}.{state.name}".lstrip(".")

    def taskflow_page(task: Task[Any], method: str = "") -> Page:
        place = arguments_of(f"{name}.page", task)
        return Page(blueprint=name, arguments=place, task=task, asked=method)

    state.app.jinja_env.globals.setdefault("taskflow_page", taskflow_page)


def show(task_id: str, **prefix: object) -> ResponseReturnValue:
    """Show the page, or what ``status`` says to who does not want HTML."""
    status = current_app.view_functions.get(f"{request.blueprint}.status")
    if status and not wants_page():
        answer: ResponseReturnValue = current_app.ensure_sync(status)(task_id=task_id, **prefix)
        return answer
    asked, note, run = (request.args.get(name, "") for name in ("method", "sent", "run"))
    return _answer(replace(_page(task_id, asked), note=note if note in ("same", "new") else "", run=run))


def act(task_id: str, **prefix: object) -> ResponseReturnValue:
    """Do what a form of the page asks for."""
    if not is_own():
        return _answer(Page(**_place(), trouble="refused"))
    if not _is_shown(task_id):
        # As soon as for an id that never was: nothing is asked of Redis.
        return nothing_here()
    request.max_content_length = _FORM_MAX
    otp, method = _take_code(), request.form.get("method", "")
    action = _ACTIONS.get(request.form.get("action", "verify"), _verify)
    try:
        return action(task_id, method if METHOD.fullmatch(method) else "NONE", otp)
    except InvalidCode:
        page = _page(task_id, method)
        return _answer(page, page.problem_of(otp), 422)
    except OTPRejected:
        # Which one of its causes it was may be seen in what is left of the task, and nowhere else.
        return _answer(_page(task_id, method), "send_limit" if action is _resend else "refused", 400)
    except (ResendTooSoon, SendLimitReached) as error:
        return _answer(_page(task_id, method), error.code, error.http_status, error.retry_after)
    except SendFailed as error:
        return _answer(_page(task_id, method), error.code, error.http_status, 1)
    except InvalidTask as error:
        return _answer(_page(task_id, method), error.code, error.http_status)
    except UNAVAILABLE:
        return _answer(_page(task_id, method), "unavailable", 503, 5)


def to_page(task: Task[Any], *, beyond: float = 0.0, **query: Any) -> Response:
    """Return what leads a browser to a task's page; see ``TaskFlow.to_page``.

    :param beyond: seconds that its cookie lives longer than the task.
    :param query: of the page's URL.
    :raises ConfigError: if the app serves no page, or the task has no holder.
    """
    page = endpoints().get("page")
    if page is None:
        raise ConfigError(
            "this app serves no page to which this request can lead: register "
            "create_blueprint(routes=[..., 'page']) under no variables but those of this request"
        )
    response = make_response(redirect(url_for(page, **arguments_of(page, task), **query), 303))
    held = current_service().keyring.is_holder(task.id, holder_of(task.id))
    if task.holder is not None or (current_config().page_holder and not held):
        hold(response, task, beyond=beyond)
    return response


def endpoints() -> dict[str, str]:
    """Return the routes on tasks that this request can lead to, each with its endpoint."""
    found: dict[str, str] = {}
    for endpoint in current_app.view_functions:
        blueprint, _, name = endpoint.rpartition(".")
        ours = isinstance(current_app.blueprints.get(blueprint), TaskFlowBlueprint)
        if ours and name in _LINKED and name not in found:
            # One may be under a prefix with a variable that is not known here.
            with suppress(BuildError):
                url_for(endpoint, **_prefix_of(endpoint), task_id="-")
                found[name] = endpoint
    return found


def arguments_of(endpoint: str, task: Task[Any]) -> dict[str, Any]:
    """Return what ``url_for`` wants for a route on a task."""
    return _prefix_of(endpoint) | {"task_id": task.id}


def _prefix_of(endpoint: str) -> dict[str, Any]:
    """Return what of this request's variables a route has, too.

    The blueprint may be under a prefix with variables: they stay the same.
    """
    expects, here = current_app.url_map.is_endpoint_expecting, (request and request.view_args) or {}
    return {name: here[name] for name in here if expects(endpoint, name)}


def wants_page() -> bool:
    """Tell whether a browser asks, which shows a page."""
    return request.accept_mimetypes.best_match(("application/json", "text/html")) == "text/html"


def nothing_here() -> Response:
    """Return the page of an unknown task."""
    return _answer(Page(**_place()))


def page_of_error(error: Exception) -> Response:
    """Return the page that answers an error of a guard, or of what stands before a task's page."""
    response = _answer(Page(**_place(), trouble="unavailable" if isinstance(error, UNAVAILABLE) else ""))
    if isinstance(error, HTTPException):
        response.status_code = error.code or response.status_code
        keep_headers(response, error)
    return response


def page_of_trouble(trouble: str, retry_after: float = 0) -> Response | None:
    """Return a page without a task, for a view of the app's; ``None`` if the app serves no page.

    :param trouble: as :class:`Page` has it.
    """
    endpoint = endpoints().get("page")
    if endpoint is None:
        return None
    page = Page(blueprint=endpoint.rpartition(".")[0], arguments=_prefix_of(endpoint), trouble=trouble)
    response = _answer(page, retry_after=retry_after)
    response.headers["Cache-Control"] = "no-store"
    return response


def asset(filename: str, **prefix: object) -> ResponseReturnValue:
    """Send a style or a script: the app's own ``static/taskflow/<name>``, if it has one, else ours."""
    if filename not in _ASSETS:
        abort(404)
    own = Path(current_app.static_folder or "", "taskflow")
    there = current_app.has_static_folder and (own / filename).is_file()
    response = send_from_directory(own if there else _STATIC, filename, conditional=True)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _verify(task_id: str, method: str, otp: OTP) -> ResponseReturnValue:
    task: Task[Any] | None
    try:
        task = current_service().verify(task_id, method, otp, holder_of(task_id))
    except CodeRepeated as error:
        # The form was submitted twice, or the answer was lost.
        task = error.task
    page = Page(**_place(), task=task)
    if page.is_gated:
        # Where the view leads to may be of another origin: the policy's word on forms ends at a page.
        return redirect(page.url_for(run="now"), 303)
    return redirect(page.next_url or page.url, 303)


def _resend(task_id: str, method: str, otp: OTP) -> ResponseReturnValue:
    issued = current_service().resend(task_id, method, holder_of(task_id))
    # The code of before has lost what its message took by now.
    whole = min(current_config().otp_ttl, (issued.task.expires_at - issued.task.created_at).total_seconds())
    same = any(code.lasts is not None and code.lasts < whole - 1 for code in issued.codes)
    return redirect(Page(**_place()).url_for(method=method, sent="same" if same else "new"), 303)


def _correct(task_id: str, method: str, otp: OTP) -> ResponseReturnValue:
    page = _page(task_id, method)
    fields = {name: request.form[name] for name in page.correctable if request.form.get(name)}
    if not fields:
        return _answer(page, "no_address", 422)
    current_service().update_recipient(task_id, fields)
    return redirect(Page(**_place()).url_for(method=method, sent="new"), 303)


def _reject(task_id: str, method: str, otp: OTP) -> ResponseReturnValue:
    if otp:
        # Who got the code did not ask for it: that is known of nobody else.
        with suppress(CodeRepeated):
            current_service().reject(task_id, method, otp, holder_of(task_id))
    else:
        _look(task_id)
        current_service().cancel_task(task_id)
    return redirect(Page(**_place()).url, 303)


_ACTIONS: dict[str, Callable[[str, str, OTP], ResponseReturnValue]] = {
    "verify": _verify,
    "resend": _resend,
    "correct": _correct,
    "reject": _reject,
}


def _take_code() -> OTP:
    """Return the code of a form, which is not kept with the request: trackers of errors read that."""
    otp = OTP(request.form.get("otp", ""))
    request.form = ImmutableMultiDict(item for item in request.form.items(multi=True) if item[0] != "otp")
    return otp


def _place() -> dict[str, Any]:
    """Return where the page is."""
    return {"blueprint": request.blueprint, "arguments": request.view_args or {}}


def _page(task_id: str, asked: str) -> Page:
    """Return the page as it stands."""
    typed = request.form if request.method == "POST" else {}
    page = Page(**_place(), asked=asked, may_correct=current_config().correctable, typed=typed)
    try:
        task = _look(task_id)
    except OTPRejected:
        return page
    except UNAVAILABLE:
        return replace(page, trouble="unavailable")
    # One that is over looks as one that never was.
    return page if task.status is Status.EXPIRED else replace(page, task=task)


def _look(task_id: str) -> Task[Any]:
    """Return a task, to whoever holds it.

    :raises OTPRejected: if there is none, or none for this browser.
    """
    if not _is_shown(task_id):
        raise NotHolder("this browser does not hold the task")
    return current_service().look(task_id, holder_of(task_id))[0]


def _is_shown(task_id: str) -> bool:
    """Tell whether this browser holds a task, or need not."""
    held = current_service().keyring.is_holder(task_id, holder_of(task_id))
    return held or not current_config().page_holder


def _answer(page: Page, problem: str = "", status: int = 200, retry_after: float = 0) -> Response:
    """Return a page, with what is wrong if its form is still there."""
    if page.state in _STATUS:
        status, problem = _STATUS[page.state], ""
        retry_after = {503: 5, 429: retry_after}.get(status, 0)
    elif page.state != "form":
        problem = ""
    response = make_response(replace(page, problem=problem).render(), status)
    response.headers["Content-Security-Policy"] = _policy(page)
    # By "no-referrer" a browser would send "Origin: null" with its forms (Fetch, 3.2.5).
    response.headers["Referrer-Policy"] = "same-origin"
    if page.task is not None and page.state == "waiting":
        hold_on(response, page.task)
    if page.goes_on:
        # HTML, 7.4.6: as a <meta> does, whatever the app's own template has.
        response.headers["Refresh"] = f"0; url={page.next_url}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.vary.add("Accept")
    if retry_after:
        response.headers["Retry-After"] = str(max(math.ceil(retry_after), 1))
    return response


def _policy(page: Page) -> str:
    # Where a form leads to by 303 counts as well (CSP 3, 6.4.1).
    goes_on = urlsplit((page.task and page.task.next_url) or "")
    forms = f"'self' {goes_on.scheme}://{goes_on.netloc}" if goes_on.netloc else "'self'"
    return (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        f"font-src 'self'; form-action {forms}; base-uri 'none'; "
        f"frame-ancestors {current_config().frame_ancestors}"
    )
