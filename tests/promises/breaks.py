"""Break each promise of ``breaks.txt`` in a copy of this tree, and see that a test of its row fails.

Run it as ``python -m tests.promises.breaks``, with rows if only some are to be tried. It prints a table, and
exits with 1 if a break survives or cannot be tried: where the package no longer has the text that is to be
replaced, the break must follow it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from tests.promises.plugin import ROWS

ROOT = Path(__file__).parents[2]
AT_ONCE = 2
WITHIN = 300.0
#: Seconds since 1970.
STAMPS = count(1)
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")


@dataclass
class Break:
    """A break.

    :param row: the promise.
    :param file: a file of the package.
    :param tests: the module of the tests that must fail.
    :param changes: texts and what takes their places.
    """

    row: str
    file: str
    tests: str
    changes: list[tuple[str, str]] = field(default_factory=list)

    def apply(self, text: str) -> str:
        """Return the file's text, broken.

        :raises LookupError: if a text that is to be replaced does not stand there once.
        """
        for old, new in self.changes:
            if text.count(old) != 1:
                raise LookupError(f"{self.file} has {text.count(old)} times: {old}")
            text = text.replace(old, new)
        return text


def read(text: str) -> Iterator[Break]:
    """Read breaks: a line of row, file and tests, then lines that begin with ``-`` and ``+``."""
    for block in text.split("\n\n")[1:]:
        head, *lines = block.strip("\n").split("\n")
        row, file, tests = head.split()
        made = Break(row, file, tests)
        for line in lines:
            sign, rest = line[0], line[2:]
            if sign == "-":
                made.changes.append((rest, ""))
            else:
                old, new = made.changes.pop()
                made.changes.append((old, f"{new}\n{rest}" if new else rest))
        yield made


BREAKS = list(read(Path(__file__).with_name("breaks.txt").read_text("utf-8")))


def attempt(broken: Break, copies: SimpleQueue[Path]) -> str:
    """Run the row's tests on a broken copy; return how that ended."""
    copy = copies.get()
    file = copy / "flask_taskflow" / broken.file
    whole = file.read_text("utf-8")
    try:
        write(file, broken.apply(whole))
        return run(broken, copy)
    except LookupError as error:
        return f"NOT FOUND: {error.args[0]}"
    finally:
        write(file, whole)
        copies.put(copy)


def write(file: Path, text: str) -> None:
    """Write a file, with a time that no other break has: Python shall not take what it compiled of that."""
    file.write_text(text, "utf-8")
    stamp = next(STAMPS)
    os.utime(file, (stamp, stamp))


def run(broken: Break, copy: Path) -> str:
    """Run the tests of a row; return ``dies``, or what else happened."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-m", "not chaos", "--promise", broken.row, f"tests/{broken.tests}"]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        result = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=WITHIN
        )
    except subprocess.TimeoutExpired:
        return f"NO VERDICT within {WITHIN:.0f} s"
    lines = result.stdout.splitlines() or [result.stderr]
    match result.returncode:
        case 0:
            return "SURVIVES"
        case 1:
            failed = [line.split(" ", 1)[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
            return f"dies  {failed[0].partition(' - ')[0] if failed else lines[-1]}"
        case _:
            return f"NO VERDICT: {lines[-1]}"


def main(rows: list[str]) -> int:
    """Try the breaks of some rows, or of all; print a table."""
    missing = set(ROWS) - {each.row for each in BREAKS}
    chosen = [each for each in BREAKS if not rows or each.row in rows]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            copies.put(shutil.copytree(ROOT, Path(folder) / str(number), ignore=LEFT_OUT))
        results = pool.map(lambda each: attempt(each, copies), chosen)
        died = 0
        for each, result in zip(chosen, results, strict=True):
            died += result.startswith("dies")
            print(f"{each.row:4} {each.file:38} {result}", flush=True)
    print(f"{died} of {len(chosen)} die." + "".join(f" {row} has no break." for row in sorted(missing)))
    return int(died < len(chosen) or bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
