"""Programs that run beside a test, as in a terminal, and what they print."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support import fleet

WITHIN = 60.0
wait_until = partial(fleet.wait_until, within=WITHIN)


class Process:
    """A process that runs, and what it printed."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end, and what it started; return its exit status."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, number)
        return self.popen.wait(WITHIN)


def bare_environment() -> dict[str, str]:
    """Return this process's environment with its programs, and without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": programs, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


@contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], until: str, *, logs: Path
) -> Iterator[Process]:
    """Run a command in a folder, from when it shows a text until the end of the block.

    :param logs: the folder for what it prints.
    """
    log = logs / f"log-{secrets.token_hex(4)}"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = Process(popen, log)
    try:
        wait_until(lambda: re.search(until, process.log) or popen.poll() is not None)
        assert popen.poll() is None, process.log
        yield process
    finally:
        process.kill()
