"""The worker: a process that runs callbacks and sends codes until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click
from redis import RedisError

from .._checks import fits
from .._service import Service
from .operations import close_to, unknown_queues
from .tables import say

#: Seconds between two looks at whether a signal came.
_WAKE = 0.5
#: Seconds within which several signals are one request to stop.
_SAME = 1.0


def run_worker(
    service: Service, queues: tuple[str, ...] | None, threads: int | None, health_file: Path | None = None
) -> None:
    """Run callbacks, and send until SIGTERM, SIGINT, SIGHUP or SIGQUIT; a second one ends it at once.

    :param service: the app's.
    :param queues: serve only these, ``None`` as configured.
    :param threads: run so many callbacks at once, ``None`` as configured.
    :param health_file: touched while the threads live, and taken away in the end.
    :raises ConfigError: if a strategy cannot send with the app's settings.
    :raises click.ClickException: if there is nothing to serve, or a queue to serve is not there, or no thread
        may run.
    """
    if service.config.eager:
        raise click.ClickException("unset TASKFLOW_EAGER: it is for tests, and under it no thread runs")
    if service.config.outbox_file is None:
        for channel in list(service.channels.values()):
            channel.strategy.check_settings()
    runtime, sends = service.runtime, service.config.sends_in_background
    _check_queues(service, queues)
    runtime.engines.narrow(queues, threads)
    served = sorted(runtime.new_engine().served())
    if not served and not sends:
        raise click.ClickException(
            "this app has no callback for these queues: register one with @taskflow.on_task_verified(queue)"
        )
    if health_file is not None:
        try:
            health_file.touch()
        except OSError as error:
            raise click.ClickException(f"the health file cannot be written: {error}") from None
    asked = _stop_signals()
    service.start()
    what = f"{', '.join(served) or 'no callback'}{', and sending codes' if sends else ''}"
    say(f"Serving {what}. Press CTRL+C to quit.")
    # The system may give the signal to another thread; Python runs the handler here, and only when awake.
    while not asked.wait(_WAKE):
        if health_file is not None and service.runtime.alive():
            health_file.touch()
    say("Stopping: waiting for callbacks that run.")
    service.stop()
    if health_file is not None:
        health_file.unlink(missing_ok=True)


def _check_queues(service: Service, queues: tuple[str, ...] | None) -> None:
    """Say which queues are neither among the callbacks nor, for sends, in Redis: they may be misspelt.

    Those of the command are refused, unless their first task may be still to come. Those of the configuration
    are told, as other processes share it.
    """
    known, sends = set(service.callbacks), service.config.sends_in_background
    if sends:
        # A server that is away is waited for.
        with suppress(RedisError):
            known.update(service.operations.queues())
    names = service.config.queues if queues is None else queues
    unknown = [name for name in names or () if not any(fits(queue, [name]) for queue in known)]
    told = unknown_queues(unknown, known)
    if unknown and queues is not None and (not sends or close_to(unknown, known)):
        raise click.ClickException(told)
    if unknown:
        say(f"Note: {told}")


def _stop_signals() -> threading.Event:
    """Return an event that the first signal to end sets; one that comes later ends the process.

    A terminal and a process manager may both pass on what was one request: what comes within a second of the
    first is the same.
    """
    asked = threading.Event()
    since: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        since.append(time.monotonic())
        if since[-1] - since[0] > _SAME:
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, stop)
    return asked
