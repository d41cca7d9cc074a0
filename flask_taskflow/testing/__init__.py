"""For tests of apps that use the extension: outbox, time travel, throw-away server, a watch on the log."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from flask import Flask, current_app
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from .._checks import check_seconds
from .._delivery.threads import runtimes
from .._extension import TaskFlow
from .._redis.embedded import find_binary
from .._service import Service, current_service
from .._store.steps import Steps, text_of
from .._tasks import Task
from ..errors import OutcomeUnknown
from ..strategies import Channel, Channels, Message, OutboxStrategy

_START_WITHIN = 60.0
_TRAVEL_MAX = 100 * 365 * 86400.0


class Outbox(list[Message]):
    """The messages that were sent, oldest first."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        super().__init__(messages)
        self._errors: list[Exception] = []
        self._apps: list[Flask] = []

    def append(self, message: Message) -> None:
        """Keep a message, or raise what :meth:`fail` was given; if the outcome is unknown, do both."""
        error = self._errors.pop(0) if self._errors else None
        if error is None or isinstance(error, OutcomeUnknown):
            super().append(message)
        if error is not None:
            raise error

    def fail(self, *errors: Exception) -> None:
        """Let the next sends fail, each with one of these errors.

        :param errors: as strategies raise them: ``Retry``, ``Reject``, ``OutcomeUnknown``, whose code is
            kept all the same, or any other.
        """
        self._errors += errors

    def last_code(self, address: str) -> str:
        """Return the last code that was sent to an address.

        :raises LookupError: if none was; the message tells which addresses had one.
        """
        return _last_code(address, [(message.addresses, message.otp) for message in self])

    def why_nothing_ran(self) -> str:
        """Tell which callbacks and sends wait for threads that do not run; empty if there are none.

        It looks at the apps that sent something here. Give it to an assertion on what a callback did.
        """
        return " ".join(filter(None, map(_why_nothing_ran, self._apps)))

    def _receive(self, channel: Channel, task: Task[Any], otp: str) -> None:
        app = cast(Any, current_app)._get_current_object()
        if app not in self._apps:
            self._apps.append(app)
        OutboxStrategy(channel.address_field, messages=self).send(task, otp)


def _why_nothing_ran(app: Flask) -> str:
    with app.app_context(), suppress(RedisError):
        service = current_service()
        if service.config.eager or service.runtime.started:
            return ""
        if waiting := list(_waiting(service)):
            return (
                f"{', '.join(waiting)}: the app {app.name!r} is TESTING without TASKFLOW_EAGER, so no thread "
                "runs them. Set TASKFLOW_EAGER = True before init_app(), or call taskflow.run_due()."
            )
    return ""


def _waiting(service: Service) -> Iterable[str]:
    """Yield what is due: how many deliveries of each callback, and how many codes by each method."""
    for queue in service.operations.queues():
        for stats in service.operations.stats(queue).callbacks:
            if stats.ready:
                what = f"the callback {stats.callback}" if stats.callback[0] != "@" else stats.callback[1:]
                yield f"{stats.ready} of {what} in the queue {queue} wait"


class OutboxFile:
    """The codes in a file of ``TASKFLOW_OUTBOX_FILE``, for tests of an app that runs in another process.

    :param path: the file; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def last_code(self, address: str, within: float = 10.0) -> str:
        """Return the last code that was sent to an address; wait for the first one.

        :param within: how many seconds to wait for it.
        :raises LookupError: if none was sent by then; the message tells which addresses had one.
        """
        deadline = time.monotonic() + within
        while True:
            text = self.path.read_text("utf-8") if self.path.exists() else ""
            messages = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            try:
                return _last_code(address, [(message["addresses"], message["otp"]) for message in messages])
            except LookupError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)


def _last_code(address: str, sent: Sequence[tuple[Sequence[str], str]]) -> str:
    for addresses, otp in reversed(sent):
        if address in addresses:
            return otp
    known = sorted({name for addresses, _ in sent for name in addresses})
    raise LookupError(f"no code was sent to {address}; codes were sent to {known}")


@contextmanager
def outbox(taskflow: TaskFlow | None = None) -> Iterator[Outbox]:
    """Keep what every strategy of an extension would send, instead of sending it.

    Of several, one inside the other, the innermost that is meant keeps it.

    :param taskflow: the extension, with the strategies that it has by now; ``None`` means each one of this
        process, and what they register inside, too.
    """
    box = Outbox()
    known = None if taskflow is None else dict(taskflow._channels)

    def take(channel: Channel, task: Task[Any], otp: str) -> bool:
        mine = known is None or known.get(channel.method) is channel
        if mine:
            box._receive(channel, task, otp)
        return mine

    Channels.stand_ins.append(take)
    try:
        yield box
    finally:
        Channels.stand_ins.remove(take)


def travel(seconds: float | timedelta) -> None:
    """Let time pass for the current app's tasks, codes, cooldowns, windows and retries, on the server.

    It rewrites every key under the app's prefix; never use it on a server that matters.

    :param seconds: how far, forwards.
    :raises InvalidTask: if that is no time, or backwards.
    """
    service = current_service()
    service.keyring.ahead += _age(service.steps, service.keys.pattern, seconds)
    service.runtime.wake()


def travel_on(url: str, seconds: float | timedelta) -> None:
    """Let time pass as :func:`travel` does, for all that a server has, whichever app's it is.

    :param url: of a server that only this process uses, as :func:`redis_server` gives it.
    :param seconds: how far, forwards.
    :raises InvalidTask: if that is no time, or backwards.
    """
    with Redis.from_url(url) as client:
        shift = _age(Steps(client), "*:{*", seconds)
    for runtime in runtimes():
        with runtime.engines.app.app_context():
            service = current_service()
        if service.config.redis_url == url:
            service.keyring.ahead += shift
            runtime.wake()


def _age(steps: Steps, pattern: str, seconds: float | timedelta) -> int:
    """Make the keys of a pattern look older, all at once; return by how many milliseconds."""
    shift = int(1000 * check_seconds(seconds, "seconds", maximum=_TRAVEL_MAX, minimum=0))
    keys = list(steps.client.scan_iter(match=pattern, count=1000))
    if not isinstance(steps.client, Redis):
        # A cluster has no step for all.
        for key in keys:
            steps.run("testing/travel", [key.decode()], shift)
        return shift
    # Threads that run meanwhile would see some of them older than others.
    with steps.client.pipeline() as together:
        for key in keys:
            together.eval(text_of("testing/travel"), 1, key, shift)
        together.execute()
    return shift


#: What each record has; the rest is ``extra``.
_OF_EACH = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime"))


class _Watch(logging.Handler):
    """Keep what is logged, its ``extra`` included, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        where = f"{record.name}, {record.levelname}, {record.filename}:{record.lineno}"
        try:
            # A copy: what formatting leaves in a record is for the app's formatters to make.
            text = self.format(copy(record))
        except Exception:
            # The app's handlers complain, and show this.
            text = f"{record.msg} {record.args!r}"
        extra = {name: value for name, value in vars(record).items() if name not in _OF_EACH}
        with suppress(TypeError, ValueError):
            # As handlers write it that know it. A code hides from nothing but repr.
            text += f" {json.dumps(extra, default=str, ensure_ascii=False)}" if extra else ""
        self.seen.append((where, text))


@contextmanager
def no_code_in_logs(box: Outbox) -> Iterator[None]:
    """Watch the loggers of this process for codes that come to an outbox meanwhile.

    It sees what they log at any level, whatever theirs is, and whether or not they propagate. Other handlers
    get what they would get without it. What a filter drops, and what a disabled logger says, is not logged.

    :raises AssertionError: at the end, if there was one, in a message, in a traceback or in ``extra``.
    """
    watch = _Watch()
    is_enabled, call_handlers = logging.Logger.isEnabledFor, logging.Logger.callHandlers

    def watch_and_call(logger: logging.Logger, record: logging.LogRecord) -> None:
        watch.handle(record)
        if is_enabled(logger, record.levelno):
            call_handlers(logger, record)

    with patch.multiple(logging.Logger, isEnabledFor=lambda *_: True, callHandlers=watch_and_call):
        yield
    codes = "|".join({re.escape(message.otp) for message in box if message.otp})
    code = re.compile(rf"(?<![0-9])({codes})(?![0-9])" if codes else "(?!)")
    found = [f"{where}: {code.sub('******', text)}" for where, text in watch.seen if code.search(text)]
    if found:
        raise AssertionError("the log shows codes:\n" + "\n".join(found))


@contextmanager
def redis_server(*options: str, binary: str | None = None, port: bool = False) -> Iterator[str]:
    """Run a throw-away server and yield the URL for ``TASKFLOW_REDIS_URL``.

    :param options: more of the server's command line, as ``"--maxmemory", "5mb"``.
    :param binary: a Redis or Valkey server, default that of the extra ``[embedded]``, or else of ``PATH``.
    :param port: listen on a free TCP port instead of a Unix socket.
    :raises RuntimeError: if it does not come up; the message holds its log.
    :raises OSError: if there is no such binary.
    """
    directory = Path(tempfile.mkdtemp(prefix="taskflow-"))
    number = _free_port() if port else 0
    path = directory / "redis.sock"
    command = [binary or str(find_binary()), "--port", str(number), "--bind", "127.0.0.1"]
    command += ["--unixsocket", str(path), "--dir", str(directory), "--save", ""]
    command += options
    log = directory / "log"
    try:
        # A server that does not like its options says so on the standard error, before any log file.
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_until_up(process, path, log)
            yield f"redis://127.0.0.1:{number}/0" if port else f"unix://{path}"
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_WITHIN
    # By default the client itself goes on trying for seconds, though the server may be gone for good.
    client = Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0))
    try:
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(RedisError):
                client.ping()
                return
            time.sleep(0.01)
    finally:
        client.close()
    text = log.read_text("utf-8", "replace")
    raise RuntimeError(f"{process.args!r} did not come up:\n{text[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
