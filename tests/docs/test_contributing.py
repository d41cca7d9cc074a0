"""What CONTRIBUTING.md shows to write passes in a copy of the tree, with the tests that it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.support.docs import ROOT
from tests.support.programs import bare_environment

pytestmark = pytest.mark.slow

PARTS = ("benchmarks", "docs", "flask_taskflow", "tests", "pyproject.toml")
# The page says in words where these go: neither names its file.
UNNAMED = {"### `TASKFLOW_": "docs/config.md", "-- Let ": "flask_taskflow/_store/lua/tasks/prolong.lua"}
EXPORTS = ("flask_taskflow/strategies/__init__.py", "flask_taskflow/__init__.py")
# The page leaves the step's own test to its reader.
TEST_OF_THE_STEP = """
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.stage import Stage


def test_prolonged_task_lives_longer(stage: Stage) -> None:
    stage.app()
    task = stage.add(ttl=600)
    prolonged = inside.service().store.prolong(task.id, 60)
    travel(630)

    assert (prolonged.expires_at - task.expires_at).total_seconds() == 60
    assert stage.taskflow.get_task(task.id).status == "PENDING"
"""
TESTS = [
    "tests/strategies/test_paper.py",
    "tests/config/test_config.py",
    "tests/operator/test_cli.py",
    "tests/test_step.py",
]


def copied(folder: Path) -> Path:
    """Copy what the tests need of the tree."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "_build")
            )
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


def shown() -> list[tuple[str, str, str]]:
    """Return what the page shows to write: file, class or nothing, text."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = []
    for text in re.findall(r"^```(?:python|lua|md)\n(.*?)^```$", page, re.M | re.S):
        for start, path in UNNAMED.items():
            if text.startswith(start):
                blocks.append((path, "", text))
        path = ""
        for head, body in re.findall(r"^# (.*)\n((?:(?!# (?:flask|tests|in )).*\n)*)", text, re.M):
            path = path if head.startswith("in ") else re.split(r"[ ,]", head)[0]
            within = re.search(r"\bin ([A-Z]\w+)", head)
            blocks.append((path, within[1] if within else "", body))
    return blocks


def write(path: Path, within: str, text: str) -> None:
    """Write a file, or add to one: in a class before its methods; at its end, or first if private."""
    old = path.read_text("utf-8") if path.exists() else ""
    place = len(old)
    if within:
        place = found(rf"^class {within}\b.*?(?=^    (?:def|@))", old).end()
        text = text if text.startswith(" ") else indent(text, "    ")
    elif text.startswith("def _"):
        place = found(r"^(?=def )", old).end()
    path.write_text(f"{old[:place]}\n\n{text}\n\n{old[place:]}".lstrip(), "utf-8")


def found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text, re.M | re.S)
    assert match, pattern
    return match


def test_blocks_are_told_apart() -> None:
    places = [(path, within) for path, within, _ in shown()]

    assert len(places) == 9
    assert ("flask_taskflow/_config/config.py", "Config") in places
    assert ("flask_taskflow/_store/tasks.py", "TaskStore") in places


def test_new_files_of_the_page_are_not_there_yet() -> None:
    begun = [path for path, _, text in shown() if text.startswith(('"""', "-- "))]

    assert len(begun) == 3
    assert [path for path in begun if (ROOT / path).exists()] == []


def test_what_the_page_shows_passes_the_tests_that_it_shows(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    for path, within, text in shown():
        write(tree / path, within, text)
    for path in EXPORTS:
        write(tree / path, "", "from flask_taskflow.strategies._paper import PaperStrategy\n")
    write(tree / "tests/test_step.py", "", TEST_OF_THE_STEP)

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        *TESTS,
        "-k",
        "paper or paused_lists or prolonged",
    ]
    done = subprocess.run(
        command, cwd=tree, env=bare_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert re.search(r"^4 passed", done.stdout, re.M), done.stdout
