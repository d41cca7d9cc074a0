"""The pages of the docs: their blocks, and a reader who does what a page says.

A fenced block of a page is one of these:

- a file to save, after ``<!-- file: name -->``;
- something for a test, after ``<!-- test: name -->``: the test calls ``block("page.md", "name")``;
- a step for the reader: ``console`` (commands with what they show), ``sh`` (commands), ``python`` (a whole
  script) or ``text`` (what some terminal shows by now).
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.topologies import free_ports

ROOT = Path(__file__).parents[2]
RECIPES = sorted(f"cookbook/{path.name}" for path in (ROOT / "docs" / "cookbook").glob("*.md"))
PAGES = [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), *RECIPES, "README.md"]
STEPS = {"console", "sh", "python", "text"}
WITHIN = 60.0

_BLOCK = re.compile(r"(?:^<!-- (file|test): (.+?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.M | re.S)
# What differs from run to run: codes, ids of tasks, and what the page leaves out.
_SAMPLE = re.compile(r"(?P<value>\b(?:\d{6}|[a-z2-7]{34})\b)|^(?P<lines>…)\n|…", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``mark`` is ``file``, ``test`` or nothing."""

    page: str
    mark: str
    name: str
    language: str
    text: str

    @property
    def is_for_the_reader(self) -> bool:
        """Whether it is a step of its page."""
        return not self.mark and self.language in STEPS

    @property
    def is_of_sphinx(self) -> bool:
        """Whether it is a directive, which the build of the docs runs."""
        return self.language.startswith("{")


def read(page: str) -> str:
    return (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(page, *found) for found in _BLOCK.findall(read(page))]


def block(page: str, name: str) -> str:
    """Return the text of the block with a name."""
    found = [one.text for one in blocks(page) if one.name == name]
    assert len(found) == 1, f"{page} has {len(found)} blocks named {name}"
    return found[0]


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its head."""
    text = f"\n{read(page)}".partition(f"\n{heading}\n")[2]
    table = re.search(r"^\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    assert table, f"{page} has no table under {heading!r}"
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


@cache
def claims() -> set[tuple[str, str]]:
    """Return the pages and names of blocks that the suite's tests call for."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call):
                words = [word.value for word in call.args if isinstance(word, ast.Constant)]
                page, *names = [word for word in words if isinstance(word, str)] or [""]
                found |= {(page, name) for name in names if page in PAGES}
    return found


def pattern(shown: str, known: dict[str, str] | None = None) -> tuple[str, list[str]]:
    """Return a pattern for what a page shows, and the samples in it that its groups stand for.

    :param known: what samples of before turned out to be.
    """
    parts: list[str] = []
    samples: list[str] = []
    end = 0
    for found in _SAMPLE.finditer(shown):
        parts.append(re.escape(shown[end : found.start()]))
        end = found.end()
        value = found["value"]
        if found["lines"]:
            parts.append(r"(?:.*\n)*?")
        elif not value:
            parts.append(r".*?")
        elif value in (known or {}):
            parts.append(re.escape((known or {})[value]))
        elif value in samples:
            parts.append(rf"(?:\{samples.index(value) + 1})")
        else:
            samples.append(value)
            parts.append(r"(\d{6})" if value.isdecimal() else "([a-z2-7]{34})")
    return "".join(parts) + re.escape(shown[end:]), samples


def shows(output: str, shown: str) -> bool:
    """Tell whether an output is what a page shows, but for codes, ids and what the page leaves out."""
    return re.search(pattern(shown)[0], output) is not None


class Terminal:
    """A shell that runs commands and shows them, as a terminal does.

    :param stays: whether its last command may go on until Ctrl-C.
    """

    def __init__(
        self, commands: list[str], folder: Path, environment: dict[str, str], *, stays: bool
    ) -> None:
        self._log = folder / f".terminal-{time.monotonic_ns()}"
        self._stays = stays
        self.expected = ""
        lines = [f"printf '%s\\n' {shlex.quote('$ ' + command)}\n{command}" for command in commands]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                ["bash", "-e", "-c", "\n".join(lines)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has shown by now."""
        return self._log.read_text("utf-8", "replace")

    def is_done(self) -> bool:
        """Tell whether its commands ended well, or its last one may go on."""
        code = self._process.poll()
        assert code in (None, 0), f"exit status {code}:\n{self.output}"
        return code == 0 or self._stays

    def close(self) -> None:
        """Press Ctrl-C if something still runs; what ended by itself has shown this, no more and no less."""
        try:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGINT)
                self._process.wait(WITHIN)
            elif self.expected:
                assert re.fullmatch(self.expected, self.output), f"not as shown:\n{self.output}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Reader:
    """Somebody who does what a page says, in a folder of their own.

    :param folder: an empty one.
    :param ports: which real port stands for a port of the pages; others are free ones.
    """

    def __init__(self, folder: Path, ports: dict[str, str]) -> None:
        self._folder = folder
        self._ports = dict(ports)
        self._known: dict[str, str] = {}
        self._terminals: list[Terminal] = []
        self._to_close = ExitStack()
        (folder / ".curlrc").write_text("silent\nshow-error\n")

    def follow(self, page: str) -> None:
        """Do every step of a page.

        :raises AssertionError: if a step fails, or something else is shown.
        """
        self._save("bank.py", block("start.md", "bank.py"))
        with self._to_close:
            for step in blocks(page):
                if step.mark == "file":
                    self._save(step.name, step.text)
                elif step.is_for_the_reader:
                    self._do(step.language, self._with_ports(step.text))

    def _save(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._with_ports(text), "utf-8")

    def _with_ports(self, text: str) -> str:
        """Put free ports in the places of those that the page names."""
        for port in re.findall(r"\b(?:localhost|127\.0\.0\.1):(\d{2,5})\b", text):
            self._ports.setdefault(port, str(free_ports(1)[0]))
        return re.sub(r"(?<![\d.])\d{2,5}\b", lambda found: self._ports.get(found[0], found[0]), text)

    def _do(self, language: str, text: str) -> None:
        if language == "text":
            self._wait_until_shown(text, self._terminals)
        elif language == "python":
            self._save(".script.py", text)
            self._type(["python .script.py"], stays=False)
        elif language == "sh":
            terminal = self._type(text.splitlines(), stays=False)
            # An extra that does not exist is no more than a warning to pip.
            assert "WARNING: " not in terminal.output, terminal.output
        else:
            lines = text.splitlines()
            commands = [line[2:] for line in lines if line.startswith("$ ")]
            terminal = self._type(commands, stays=not lines[-1].startswith("$ "))
            terminal.expected = pattern(text, self._known)[0]
            self._wait_until_shown(text, [terminal])

    def _type(self, commands: list[str], *, stays: bool) -> Terminal:
        for sample, real in self._known.items():
            commands = [command.replace(sample, real) for command in commands]
        terminal = Terminal(commands, self._folder, self._environment(), stays=stays)
        self._terminals.append(terminal)
        self._to_close.callback(terminal.close)
        _wait_until(terminal.is_done, lambda: terminal.output)
        return terminal

    def _wait_until_shown(self, text: str, terminals: list[Terminal]) -> None:
        expression, samples = pattern(text, self._known)

        def is_shown() -> bool:
            for terminal in terminals:
                if found := re.search(expression, terminal.output):
                    self._known |= dict(zip(samples, found.groups(), strict=True))
                    return True
                terminal.is_done()
            return False

        _wait_until(is_shown, lambda: f"{text}\nbut:\n" + "\n".join(one.output for one in terminals))

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "HOME": str(self._folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            # What a page installs is there already: pip looks at names, versions and extras only.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PYTEST_ADDOPTS": "-W error -p no:cacheprovider",
            "FLASK_RUN_PORT": self._ports.get("5000", "0"),
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self._ports.get('8000', '0')}",
        }


def _wait_until(condition: Callable[[], bool], tell: Callable[[], str]) -> None:
    deadline, tick = time.monotonic() + WITHIN, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for:\n{tell()}"
        tick.wait(0.02)
