"""A view that waits for its code: the request is kept sealed, and runs once it was confirmed."""

from __future__ import annotations

import base64
import io
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast
from urllib.parse import urlencode

from flask import Flask, Response, current_app, request, session, url_for
from flask.typing import ResponseReturnValue
from redis import RedisError
from werkzeug.datastructures import FileStorage, ImmutableMultiDict
from werkzeug.exceptions import MethodNotAllowed, RequestEntityTooLarge, Unauthorized, UnsupportedMediaType

from .._log import Logger
from .._new_task import NewTask
from .._service import current_service
from .._store.answers import AnswerStore, Kept
from .._tasks import GATED, Recipient, Status, Task
from ..errors import (
    ConfigError,
    InvalidTask,
    KeyReused,
    NotHolder,
    OTPRejected,
    SendFailed,
    SendLimitReached,
)
from .page import (
    UNAVAILABLE,
    arguments_of,
    endpoints,
    nothing_here,
    page_of_trouble,
    to_page,
    wants_page,
)
from .problems import answer_of_view, is_answered_by_app, problem
from .schemas import hold, holder_of

logger = Logger(__name__)

#: The header by which a client names the task that its code confirmed.
HEADER = "Taskflow-Task"
#: In the environment of a request that is replayed; no client can set it.
_CONFIRMED = "taskflow.confirmed"
#: Marks a view that has a gate; what wraps it as decorators do has the mark as well.
_GUARDED = "_taskflow_gate"
#: How what a replayed request has not begins: it is about the request that replays it.
_OF_THIS = ("REQUEST_URI", "RAW_URI", "HTTP_TRANSFER_ENCODING", "HTTP_TASKFLOW_TASK", "werkzeug.", "flask.")
#: How often the same request may be confirmed anew while its earlier tasks are kept.
_AGAIN_MAX = 100
#: Seconds that a repeated request waits for the run of the first one.
_PATIENCE = 20.0

View = Callable[..., ResponseReturnValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What ``TaskFlow.requires_confirmation`` was told; it explains each field."""

    queue: str
    recipient: Callable[[], Recipient | Mapping[str, str | None]]
    summary: Callable[[], str | None] | None
    owner: Callable[[], str] | None
    allowed_methods: tuple[str, ...] | None
    fresh: float | None

    def __post_init__(self) -> None:
        for name in ("recipient", "summary", "owner"):
            given: object = getattr(self, name)
            if not (callable(given) or (given is None and name != "recipient")):
                kind = type(given).__name__
                raise InvalidTask(f"{name} must be a function without arguments, not of type {kind}")

    def guard(self, view: View) -> View:
        """Return a view that asks for a code before it runs the given one.

        :raises ConfigError: if that has a gate already.
        """
        if hasattr(view, _GUARDED):
            raise ConfigError("this view has a gate already: one request is confirmed by one code")

        @wraps(view)
        def guarded(*arguments: Any, **names: Any) -> ResponseReturnValue:
            def run() -> ResponseReturnValue:
                answer: ResponseReturnValue = current_app.ensure_sync(view)(*arguments, **names)
                return answer

            asked = Asked.read(self._owner())
            try:
                admitted = self._admit(asked)
            except (SendLimitReached, InvalidTask, *UNAVAILABLE) as error:
                if is_answered_by_app(error):
                    raise
                return self._cannot_ask(error)
            if admitted is None:
                return run()
            return _run(admitted, run) if isinstance(admitted, Task) else admitted

        setattr(guarded, _GUARDED, self.queue)
        return guarded

    def _admit(self, asked: Asked) -> Task[Any] | Response | None:
        """Return the task for which the view runs now, or ``None`` if it needs none; else what to answer."""
        task_id = request.environ.get(_CONFIRMED) or request.headers.get(HEADER)
        if task_id is not None:
            try:
                return self._confirmed(_held(str(task_id)), asked)
            except (OTPRejected, InvalidTask):
                return _refused()
        if self.fresh is not None and self._is_fresh(asked.owner):
            return None
        if request.method == "HEAD":
            # It asks for no more than the head of an answer: nobody is sent a code for that.
            served = request.url_rule.methods if request.url_rule else None
            raise MethodNotAllowed(sorted({*(served or ())} - {"HEAD"}))
        return self._ask(self._add(asked))

    def _owner(self) -> str:
        if self.owner is not None:
            owner: object = self.owner()
            if owner is None or owner == "":
                raise Unauthorized
            if not isinstance(owner, str):
                kind = type(owner).__name__
                raise ConfigError(f"owner= of the gate of {self.queue} must return a str, not {kind}")
            return owner
        if "_user_id" in session:
            # Flask-Login keeps it there.
            return f"user:{session['_user_id']}"
        return f"session:{session.setdefault('taskflow.owner', secrets.token_urlsafe(16))}"

    def _add(self, asked: Asked) -> Task[Any]:
        """Add the task of a request; the same request again, while that waits, finds the same task."""
        recipient, service = self.recipient(), current_service()
        methods = self.allowed_methods
        if methods is None:
            given = recipient if isinstance(recipient, Recipient) else Recipient(**recipient)
            methods = tuple(name for name, channel in service.channels.items() if channel.reaches(given))
        new = NewTask(
            queue=self.queue,
            data={GATED: asked.kept},
            allowed_methods=methods,
            recipient=recipient,
            summary=None if self.summary is None else self.summary(),
            holder=True,
            owner=asked.owner,
        )
        mac, over = asked.mac(), list[Task[Any]]()
        for number in range(_AGAIN_MAX):
            try:
                task = service.add_task(new._replace(key=f"{number} {mac}")).task
            except KeyReused:
                continue
            except SendFailed as error:
                # The page lets one ask again.
                task = cast(Task[Any], error.task)
            if task.status is Status.PENDING:
                return task
            over.append(task)
        wait = service.config.retention
        if over:
            first, now = service.look(over[0].id, over[0].holder)
            wait += (first.expires_at - now).total_seconds()
        raise SendLimitReached("this request was confirmed too often of late", retry_after=wait)

    def _confirmed(self, task: Task[Any], asked: Asked) -> Task[Any] | Response:
        """Return a task if the view is to run for it now; else what to answer."""
        if task.queue != self.queue or task.owner != asked.owner or task.data != {GATED: asked.kept}:
            return _refused()
        if task.status is Status.PENDING:
            return self._ask(task)
        return _begin(task) if task.status is Status.SUCCESS else _refused()

    def _ask(self, task: Task[Any]) -> Response:
        """Return what asks for the code: the page for a browser, a problem with links for a client."""
        # By its cookie a browser shows that it was the one.
        beyond = self.fresh or 0.0
        if wants_page():
            return to_page(task, beyond=beyond)
        links = {
            name: url_for(endpoint, **arguments_of(endpoint, task)) for name, endpoint in endpoints().items()
        }
        response = problem("confirmation_required", task=task.id, links=links)
        if task.holder is not None:
            hold(response, task, beyond=beyond)
        return response

    def _cannot_ask(self, error: Exception) -> Response:
        if isinstance(error, InvalidTask):
            logger.warning("A request before the gate of %s makes no task: %s", self.queue, error)
        trouble = error.code if isinstance(error, SendLimitReached | InvalidTask) else "unavailable"
        wait = error.retry_after if isinstance(error, SendLimitReached) else 0.0
        return (page_of_trouble(trouble, wait) if wants_page() else None) or answer_of_view(error)

    def _is_fresh(self, owner: str) -> bool:
        """Tell whether this browser typed a code for the owner and the queue a short time ago."""
        service = current_service()
        for task in service.tasks_of(owner, self.queue):
            if task.verified_at is not None and task.status is Status.SUCCESS:
                mine = service.keyring.is_holder(task.id, holder_of(task.id))
                age = service.look(task.id, holder_of(task.id))[1] - task.verified_at if mine else None
                if age is not None and age.total_seconds() < (self.fresh or 0):
                    return True
        return False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is to be confirmed.

    :param owner: who asks.
    :param kept: what is kept of it, a JSON value.
    """

    owner: str
    kept: Mapping[str, str]

    @classmethod
    def read(cls, owner: str) -> Asked:
        """Return the current request.

        :raises UnsupportedMediaType: if it has files, or a body that others have read and did not keep.
        :raises RequestEntityTooLarge: if it has too much to be kept.
        """
        kind, raw = _body(current_service().config.max_data_size)
        return cls(
            owner,
            {
                "endpoint": request.endpoint or "",
                "method": request.method,
                "host": request.host,
                "root": request.script_root,
                "path": request.path,
                "query": request.query_string.decode("latin-1"),
                "type": kind,
                "body": base64.b64encode(raw).decode(),
            },
        )

    def mac(self) -> str:
        """Return what names it among its owner's requests."""
        return current_service().keyring.seal("gate", self.owner, *self.kept.values())


def _body(maximum: int) -> tuple[str, bytes]:
    """Return the type and the bytes of the current request's body: all that a view can read of it.

    :param maximum: how many bytes can be kept.
    """
    too_large = f"A request that waits for its code can have {maximum} bytes at most."
    brought = request.content_length or int("Transfer-Encoding" in request.headers)
    if brought > maximum:
        raise RequestEntityTooLarge(too_large)
    # There is one as soon as somebody reads it, such as a protection against CSRF.
    was_read, has_form = "stream" in vars(request), "form" in vars(request)
    # One more than the limit: Werkzeug cuts a body without a length at its maximum and says nothing.
    request.max_content_length = min(request.max_content_length or maximum + 1, maximum + 1)
    kind = request.mimetype
    is_multipart = kind == "multipart/form-data"
    # The boundary is another each time: of such a form a view can read the fields, and its bytes no more.
    raw = request.get_data(parse_form_data=is_multipart)
    if len(raw) > maximum:
        raise RequestEntityTooLarge(too_large)
    if was_read and len(raw) < brought and not has_form:
        raise UnsupportedMediaType("This request cannot wait for its code: its body was read before.")
    if is_multipart or not raw:
        _drop_empty_files()
        if raw:
            # Somebody has kept them.
            kind = request.content_type or kind
        elif is_multipart or request.form:
            kind = "application/x-www-form-urlencoded"
            raw = urlencode(list(request.form.items(multi=True))).encode()
    if len(raw) * 4 // 3 > maximum - 2000:
        raise RequestEntityTooLarge(too_large)
    return kind, raw


def _drop_empty_files() -> None:
    """Let no view see fields for files in which none was chosen: they are not kept.

    :raises UnsupportedMediaType: if one was chosen, or something stands there all the same.
    """
    files = [file for _, file in request.files.items(multi=True)]
    if any(file.filename or file.stream.read(1) for file in files):
        raise UnsupportedMediaType("A request that waits for its code can have no files.")
    for file in files:
        file.close()
    vars(request)["files"] = ImmutableMultiDict[str, FileStorage]()


def replay(task_id: str, **prefix: object) -> ResponseReturnValue:
    """Run the request that a task kept, in the session of its browser; the page leads here after the code."""
    if request.method == "HEAD":
        raise MethodNotAllowed(valid_methods=["GET", "OPTIONS"])
    try:
        task = _held(task_id)
    except (OTPRejected, InvalidTask):
        return nothing_here()
    kept = task.data.get(GATED) if isinstance(task.data, dict) else None
    if task.status is not Status.SUCCESS or not kept:
        return nothing_here()
    if (kept.get("host"), kept.get("root")) != (request.host, request.script_root):
        # Another tenant may be there, and another view.
        return nothing_here()
    return _replayed(task_id, kept)


def _replayed(task_id: str, kept: Mapping[str, str]) -> Response:
    """Return a response that is the app's answer to a kept request, with nothing of this one's."""
    app, body = _app(), base64.b64decode(kept["body"])
    here = f"{request.scheme}://{request.host}"

    class Replayed(app.response_class):  # type: ignore[name-defined, misc]
        def __call__(self, environ: Any, start_response: Any) -> Any:
            about = {name: environ[name] for name in environ if not name.startswith(_OF_THIS)}
            about |= {
                "REQUEST_METHOD": kept["method"],
                "PATH_INFO": kept["path"].encode().decode("latin-1"),
                "QUERY_STRING": kept["query"],
                "CONTENT_TYPE": kept["type"],
                "CONTENT_LENGTH": str(len(body)),
                "wsgi.input": io.BytesIO(body),
                # It comes from this site, as its cookie and the code say. Not every browser says so after a
                # "Refresh", and protections against CSRF ask.
                "HTTP_ORIGIN": here,
                "HTTP_REFERER": f"{here}/",
                _CONFIRMED: task_id,
            }
            # What wraps the app was passed on the way here.
            return Flask.wsgi_app(app, about, start_response)

    return cast(Response, Replayed())


def _app() -> Flask:
    return cast(Flask, cast(Any, current_app)._get_current_object())


def _held(task_id: str) -> Task[Any]:
    """Return a task that this browser or client holds.

    :raises OTPRejected: if there is none.
    """
    service, holder = current_service(), holder_of(task_id)
    if not service.keyring.is_holder(task_id, holder):
        raise NotHolder("who asks does not hold the task")
    return service.look(task_id, holder)[0]


def _begin(task: Task[Any]) -> Task[Any] | Response:
    """Return a task if its run is ours to do; else what it answered, or that it was begun before."""
    answers, deadline = _answers(), time.monotonic() + _PATIENCE
    while (found := answers.begin(task.id)) is not None:
        if isinstance(found, Kept):
            return current_app.response_class(found.body, found.status, list(found.headers))
        if found >= 60 or time.monotonic() > deadline:
            return to_page(task, run="done") if wants_page() else problem("done_before")
        time.sleep(0.05)
    return task


def _run(task: Task[Any], run: Callable[[], ResponseReturnValue]) -> Response:
    """Run a view for its task, and keep what it answers; or, if that is nothing, that it is over."""
    answer = None
    try:
        response = _answered(run)
        response.make_sequence()
        response.headers.setdefault("Cache-Control", "no-store")
        body = response.get_data()
        if len(body) <= current_service().config.max_data_size:
            headers = [
                (name, value) for name, value in response.headers if name not in ("Set-Cookie", "Date")
            ]
            answer = Kept(response.status_code, tuple(headers), body)
        return response
    finally:
        try:
            _answers().keep(task.id, answer)
        except RedisError:
            # The view has run: who asked must learn what it answered.
            logger.warning("What the view of task %s answered could not be kept for who asks again.", task.id)


def _answered(run: Callable[[], ResponseReturnValue]) -> Response:
    """Return what a view answers, or what the app's handlers answer to its error."""
    try:
        return current_app.make_response(run())
    except Exception as error:
        # Without a handler it is raised again.
        return current_app.make_response(current_app.handle_user_exception(error))


def _answers() -> AnswerStore:
    service = current_service()
    return AnswerStore(service.steps, service.keys, service.keyring)


def _refused() -> Response:
    return (page_of_trouble("") if wants_page() else None) or problem("not_confirmed")
