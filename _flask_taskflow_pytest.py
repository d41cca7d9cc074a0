"""The fixtures of Flask-TaskFlow for pytest, which loads this module in every project.

So it stands beside the package, and imports it only for tests that ask. A module inside would bring Flask
into each run, and the package itself before its coverage is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask_taskflow.testing import Outbox

_TITLE = "why nothing ran"
_BOX = pytest.StashKey["Outbox"]()


@pytest.fixture(scope="session")
def taskflow_server() -> Iterator[str]:
    """Run a server for this session, or for this worker of pytest-xdist; yield its URL."""
    from flask_taskflow.testing import redis_server

    with redis_server() as url:
        yield url


@pytest.fixture
def taskflow_redis(taskflow_server: str) -> str:
    """Return the URL of a server that is empty, for ``TASKFLOW_REDIS_URL``."""
    from redis import Redis

    with Redis.from_url(taskflow_server) as client:
        client.flushall()
    return taskflow_server


@pytest.fixture
def taskflow_outbox(request: pytest.FixtureRequest) -> Iterator[Outbox]:
    """Keep what every strategy of every app would send, instead of sending it."""
    from flask_taskflow.testing import outbox

    with outbox() as box:
        request.node.stash[_BOX] = box
        yield box


@pytest.fixture
def taskflow_travel(taskflow_redis: str) -> Callable[[float | timedelta], None]:
    """Let time pass for all apps on the server of ``taskflow_redis``; takes seconds or a ``timedelta``."""
    from flask_taskflow.testing import travel_on

    return lambda seconds: travel_on(taskflow_redis, seconds)


@pytest.fixture
def no_code_in_logs(taskflow_outbox: Outbox) -> Iterator[None]:
    """Fail the test if a code of the outbox was logged, by any logger, whatever its level."""
    from flask_taskflow import testing

    with testing.no_code_in_logs(taskflow_outbox):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure which callbacks waited for threads that do not run, if the test has an outbox."""
    report = yield
    box = item.stash.get(_BOX, None)
    # Both this module and the one inside the package may be loaded.
    if box is not None and report.when == "call" and report.failed and _TITLE not in dict(report.sections):
        report.sections += [(_TITLE, reason)] if (reason := box.why_nothing_ran()) else []
    return report
