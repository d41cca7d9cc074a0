"""``flask taskflow``: the commands."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import click
from flask import current_app
from flask.cli import AppGroup

from ._extension import TaskFlow

taskflow_cli = AppGroup("taskflow", help="Run and inspect one-time code tasks.")


@taskflow_cli.command()
def worker() -> None:
    """Run callbacks until SIGTERM or SIGINT; a second one ends it at once."""
    taskflow = _extension()
    if not taskflow._callbacks:
        raise click.ClickException(
            "this app has no callback: register one with @taskflow.on_task_verified(queue)"
        )
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    taskflow.start()
    click.echo(f"Serving {', '.join(sorted(taskflow._callbacks))}. Press CTRL+C to quit.")
    asked.wait()
    click.echo("Stopping: waiting for callbacks that run.")
    taskflow.stop()


def _extension() -> TaskFlow:
    extension = current_app.extensions.get("taskflow")
    if not isinstance(extension, TaskFlow):
        raise click.ClickException("this app has no TaskFlow: call taskflow.init_app(app)")
    return extension
