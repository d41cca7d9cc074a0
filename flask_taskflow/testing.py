"""For tests of apps that use the extension: an outbox, time travel, a throw-away server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flask import current_app
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from ._embedded import find_binary
from ._extension import TaskFlow
from ._keys import Scripts
from ._task import Task
from .strategies import Channel, Message, OutboxStrategy

_START_WITHIN = 10.0


class Outbox(list[Message]):
    """The messages that were sent, oldest first."""

    def last_code(self, address: str) -> str:
        """Return the last code that was sent to an address.

        :raises LookupError: if none was; the message tells which addresses had one.
        """
        for message in reversed(self):
            if address in message.addresses:
                return message.otp
        known = sorted({name for message in self for name in message.addresses})
        raise LookupError(f"no code was sent to {address}; codes were sent to {known}")


class _Kept(OutboxStrategy):
    """Stand in for a strategy: the same address, the same kind of codes."""

    def __init__(self, channel: Channel, messages: list[Message]) -> None:
        super().__init__(channel.address_field, messages=messages)
        self.code_pattern = channel.strategy.code_pattern
        self._strategy = channel.strategy

    def normalise(self, address: str) -> str:
        return self._strategy.normalise(address)


class _KeptWithItsCodes(_Kept):
    """Stand in for a strategy that makes its own codes."""

    def generate(self, task: Task[Any]) -> str:
        return self._strategy.generate(task)


class _KeptWithItsCheck(_Kept):
    """Stand in for a strategy that checks codes which are made elsewhere."""

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        return self._strategy.check(task, otp, now)


@contextmanager
def outbox(taskflow: TaskFlow) -> Iterator[Outbox]:
    """Keep what every registered strategy of an extension would send, instead of sending it.

    :param taskflow: the extension; its strategies are back afterwards.
    """
    box = Outbox()
    before = dict(taskflow._channels)
    for method, channel in before.items():
        made = _Kept if channel.derives else _KeptWithItsCodes
        kept = _KeptWithItsCheck if channel.checks else made
        taskflow._channels[method] = Channel(method, kept(channel, box))
    try:
        yield box
    finally:
        taskflow._channels.clear()
        taskflow._channels.update(before)


def travel(seconds: float | timedelta) -> None:
    """Let time pass for the current app's tasks, codes, cooldowns, windows and retries, on the server.

    It rewrites every key under the app's prefix; never use it on a server that matters.

    :param seconds: how far, forwards.
    """
    extension = current_app.extensions["taskflow"]
    service = extension._service()
    client = service.client
    shift = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    scripts = Scripts(client)
    prefix = f"{service.keys.prefix}:{{{service.keys.prefix}."
    for key in list(client.scan_iter(match=f"{_literal(prefix)}*", count=1000)):
        scripts.run("travel", [key.decode()], int(shift * 1000))
    service.runtime.wake()


def _literal(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in text)


@contextmanager
def redis_server(*options: str, binary: str | None = None, port: bool = False) -> Iterator[str]:
    """Run a throw-away server and yield the URL for ``TASKFLOW_REDIS_URL``.

    :param options: more of the server's command line, as ``"--maxmemory", "5mb"``.
    :param binary: a Redis or Valkey server, default the one of the extra ``[embedded]``.
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
