"""Processes that talk with a test: they tell lines, and end once their input does."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

WITHIN = 60.0
ROOT = Path(__file__).parents[2]
#: Of a process that coverage does not trace.
UNTRACED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


class Process:
    """A process whose lines can be waited for.

    :param arguments: of Python: a script, or ``-c`` and its text.
    :param program: another one than Python, with what comes before the arguments.
    :param environment: more of that.
    """

    def __init__(
        self, *arguments: object, program: Sequence[str] = (sys.executable, "-u"), **environment: str
    ) -> None:
        # The child leads a group of its own, so that what it forks can be ended with it.
        self._process = subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.wait = self._process.wait
        self._lines: queue.Queue[str] = queue.Queue()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def say(self, line: str) -> None:
        """Write a line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def line(self, within: float = WITHIN) -> str:
        """Wait for the next line."""
        return self._lines.get(timeout=within)

    def lines(self, count: int) -> list[list[str]]:
        """Wait for the next lines; return each in words."""
        return [self.line().split() for _ in range(count)]

    def rest(self) -> list[str]:
        """Return what was told by now."""
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return lines

    def close(self) -> int:
        """Close its input, which ends it and what it forked; return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._collector.join(WITHIN)
        return self._process.wait(WITHIN)

    def kill(self) -> None:
        """End this process at once, and nothing that it started."""
        self._process.kill()
        self._process.wait()

    def clear(self) -> None:
        """End it with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
