"""``flask taskflow``: the commands."""

from __future__ import annotations

import json
import os
import signal
import threading
from types import FrameType

import click
from flask import current_app
from flask.cli import AppGroup

from ._extension import TaskFlow
from ._openapi import openapi_document
from .errors import ConfigError

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


@taskflow_cli.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the routes that the app serves."""
    _extension()
    try:
        click.echo(json.dumps(openapi_document(current_app), indent=2))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _extension() -> TaskFlow:
    extension = current_app.extensions.get("taskflow")
    if not isinstance(extension, TaskFlow):
        raise click.ClickException("this app has no TaskFlow: call taskflow.init_app(app)")
    return extension
