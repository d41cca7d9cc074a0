"""The package as it was: a tree of another revision, in which a process of its own runs a benchmark."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "flask_taskflow"
REPOSITORY = Path(__file__).resolve().parent.parent


def add_was(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the package as it was."""
    text = "a revision of git, or the folder of another checkout"
    parser.add_argument("--was", metavar="REV", help=f"compare with the package as it was: {text}")


@contextmanager
def tree_of(was: str | None = None) -> Iterator[Path]:
    """Yield a folder that holds the package and nothing else.

    :param was: a folder that holds it, or a revision of git; default this repository as it stands.
    :raises SystemExit: if it is neither.
    """
    with tempfile.TemporaryDirectory(prefix="taskflow-tree-") as directory:
        tree = Path(directory)
        given = REPOSITORY if was is None else Path(was)
        if (given / PACKAGE).is_dir():
            # A copy, so that who edits the sources meanwhile does not change what is measured.
            shutil.copytree(given / PACKAGE, tree / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            _extract(str(was), tree)
        yield tree


def run_in(tree: Path, module: str, *arguments: str) -> str:
    """Run a module of these benchmarks on the package of a tree; return what it printed.

    :param tree: the folder that holds the package.
    :param module: as ``benchmarks.walks``.
    :raises SystemExit: if it fails; its errors are on the terminal.
    """
    # With -P the current folder, which may hold the package as well, is not looked at.
    command = [sys.executable, "-P", "-m", module, *arguments]
    path = os.pathsep.join([str(tree), str(REPOSITORY)])
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {tree}")
    return result.stdout


def _extract(revision: str, tree: Path) -> None:
    command = ["git", "-C", str(REPOSITORY), "archive", "--format=tar", revision, PACKAGE]
    with tempfile.TemporaryFile() as archive:
        if subprocess.run(command, stdout=archive).returncode:
            raise SystemExit(
                f"{revision} is no revision of this repository, and no folder that holds {PACKAGE}"
            )
        archive.seek(0)
        with tarfile.open(fileobj=archive) as files:
            files.extractall(tree, filter="data")
