"""Each block of a page runs or is checked, and what a page shows is what its reader gets."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_taskflow._operator.cli import taskflow_cli
from flask_taskflow.testing import redis_server
from tests.support.docs import PAGES, RECIPES, ROOT, Block, Reader, blocks, claims, read

# Each command of README is run by `.ci/readme`, in a fresh copy of the tree: it installs from a registry.
RUN_ELSEWHERE = {
    ("README.md", "Try it"): "python3 -m venv .venv && .venv/bin/pip install",
    ("README.md", "Test it"): "python3 -m venv .venv && . .venv/bin/activate",
}
WITH_STEPS = [page for page in PAGES if any(one.is_for_the_reader for one in blocks(page))]


@pytest.fixture(scope="module")
def port_of_redis() -> Iterator[str]:
    with redis_server(port=True) as url:
        yield url.removeprefix("redis://127.0.0.1:").partition("/")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(one.is_for_the_reader for one in blocks(page))]
)
def test_page_shows_what_its_reader_gets(page: str, port_of_redis: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    # What ignores SIGINT hands that down; a terminal's processes do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    Reader(tmp_path, {"6379": port_of_redis}).follow(page)


def runs_elsewhere(one: Block) -> bool:
    return any(one.page == page and one.text.startswith(text) for (page, _), text in RUN_ELSEWHERE.items())


def is_used(file: Block) -> bool:
    """Tell whether a file is named by another block of its page, or pytest finds it and is run."""
    others = "".join(one.text for one in blocks(file.page) if one != file)
    stem = Path(file.name).stem
    runs_pytest = "pytest" in others or file.page in RECIPES
    return stem in others or (bool(re.match("conftest|test_", stem)) and runs_pytest)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_checked(page: str) -> None:
    unmarked = [one for one in blocks(page) if not (one.mark or one.is_for_the_reader or one.is_of_sphinx)]
    marked = {(one.page, one.name) for one in blocks(page) if one.mark == "test"}
    unused = [one.name for one in blocks(page) if one.mark == "file" and not is_used(one)]

    assert [one.text for one in unmarked if not runs_elsewhere(one)] == []
    assert marked - claims() == set()
    assert unused == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_seen(page: str) -> None:
    text = read(page)

    assert len(re.findall(r"^[ >]*(?:```|~~~)", text, re.M)) == 2 * len(blocks(page))
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert re.findall(r"\n\n(?: {4}|\t).*", outside) == []
    assert len(re.findall(r"<!-- (?:test|file): ", text)) == len([one for one in blocks(page) if one.mark])


WITHOUT_READERS = {"README.md", "index.md", "changes.md", "contributing.md"}


@pytest.mark.parametrize("page", sorted({*PAGES} - WITHOUT_READERS))
def test_page_says_whom_it_is_for_and_the_index_leads_to_it(page: str) -> None:
    assert re.match(r"# .+\n\n\*For who.+\.\*\n", read(page))
    assert f"]({page})" in read("index.md")


@pytest.mark.parametrize(("page", "heading"), RUN_ELSEWHERE)
def test_block_that_is_run_elsewhere_is_there_and_run(page: str, heading: str) -> None:
    after = read(page).partition(f"\n## {heading}\n")[2]
    first = re.search(r"^```\w+\n(.*)$", after, re.M)
    script = (ROOT / ".ci" / "readme").read_text("utf-8")

    assert first
    assert first[1].startswith(RUN_ELSEWHERE[page, heading])
    assert re.search(rf'readme_command .*"{heading}"', script)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_commands_of_a_page_lead_somewhere(page: str) -> None:
    here = ROOT / page if page == "README.md" else ROOT / "docs" / page

    for target, anchor in re.findall(r"\]\((?=#|[\w/.-]+\.md)([\w/.-]+\.md)?#?([\w-]*)\)", read(page)):
        leads_to = here.parent / target if target else here
        headings = re.findall(r"^#+ (.*)$", leads_to.read_text("utf-8"), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs | {""}
    for line in re.findall(r"`flask (?:--app \w+ )?taskflow ([a-z].*?)`", read(page).replace("\n", " ")):
        name, *words = line.split()
        options = {option for known in taskflow_cli.commands[name].params for option in known.opts}
        assert {word for word in words if word.startswith("--")} <= options
