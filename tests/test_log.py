"""What an app's filters, handlers and formatters raise changes nothing that the package does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flask_taskflow import Reject, Status, task_ended, task_expiring, task_failed
from flask_taskflow._log import Logger
from tests.support.sending import Post


class Ends(BaseException):
    """As ``gevent.Timeout``: no Exception."""


class Away(logging.Filter):
    """A filter that wants what is not there, as ``flask.g`` in a thread."""

    error: type[BaseException] = AttributeError

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error("request_id")


class NotWritten(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the disk is full")


@pytest.fixture(params=["filter", "filter of a handler", "handler"])
def broken(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let nothing be logged without an error."""
    package, handler = logging.getLogger("flask_taskflow"), logging.Handler()
    filtered = [logging.getLogger(f"flask_taskflow.{name}") for name in ("audit", "_delivery.sends")]
    level, away = package.level, Away()
    if request.param == "handler":
        handler = NotWritten()
    elif request.param == "filter":
        for each in filtered:
            each.addFilter(away)
    else:
        handler.addFilter(away)
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    yield
    package.setLevel(level)
    package.removeHandler(handler)
    for each in filtered:
        each.removeFilter(away)


@pytest.mark.usefixtures("broken")
def test_code_is_sent_once_whatever_its_record_raises(post: Post, capsys: pytest.CaptureFixture[str]) -> None:
    task = post.add_for("EMAIL")

    assert [post.run(), post.run(after=60)] == [1, 0]
    assert post.email.attempts == 1
    assert post.waiting() == []
    assert post.confirms(task)
    assert "code_sent" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
def test_end_of_a_task_is_told_whatever_its_record_raises(post: Post) -> None:
    failed, ended = post.hear(task_failed), post.hear(task_ended)
    post.email.moods.append(Reject("no such mailbox"))
    task = post.add_for("EMAIL")

    post.run()

    assert post.status(task) is Status.FAILED
    assert [ear.tasks() for ear in (failed, ended)] == [[task.id], [task.id]]


@pytest.mark.usefixtures("broken")
def test_reminders_come_once_each_whatever_their_record_raises(post: Post) -> None:
    ear = post.hear(task_expiring)
    post.add_for("EMAIL", ttl=3600, remind=[1800, 600])
    for seconds in (0, 1900, 60, 1140, 60):
        post.run(after=seconds)

    assert [round(heard["left"] / 600) for heard in ear.rest()] == [3, 1]


def _log_in(name: str, error: type[BaseException]) -> list[BaseException]:
    """Log in a thread of a name, by a filter that raises; return what came out."""
    logger, raised, away = Logger("flask_taskflow.tests"), list[BaseException](), Away()
    away.error = error

    def log() -> None:
        try:
            logger.warning("told")
        except BaseException as caught:
            raised.append(caught)

    logger.logger.addFilter(away)
    thread = threading.Thread(target=log, name=name)
    thread.start()
    thread.join()
    logger.logger.removeFilter(away)
    return raised


@pytest.mark.parametrize(
    ("name", "error", "ends"),
    [
        ("request-1", KeyError, False),
        ("request-1", Ends, True),
        ("request-1", SystemExit, True),
        ("taskflow-callbacks", KeyError, False),
        ("taskflow-callbacks", Ends, False),
        ("taskflow-callbacks", SystemExit, False),
    ],
)
def test_only_what_ends_more_than_a_call_leaves_a_logger(
    name: str, error: type[BaseException], ends: bool
) -> None:
    assert [type(caught) for caught in _log_in(name, error)] == [error] * ends


def test_record_tells_who_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger, here = Logger("flask_taskflow.tests"), "test_record_tells_who_logged"
    options: dict[str, Any] = {"extra": {"event": "log"}}

    logger.warning("warning")
    logger.log(logging.WARNING, "log", **options)

    assert [record.funcName for record in caplog.records] == [here, here]
    assert vars(caplog.records[1])["event"] == "log"
