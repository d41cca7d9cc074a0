"""The pages for those who build the package name rooms, sessions and words that are there."""

from __future__ import annotations

import ast
import re

import pytest

from docs.draw import DOCS, Step, draw
from tests.support.docs import ROOT, block, read, rows

PACKAGE = ROOT / "flask_taskflow"
#: Where a path on these pages may begin.
PLACES = (ROOT, PACKAGE, PACKAGE / "_store" / "lua")
NOXFILE = (ROOT / "noxfile.py").read_text("utf-8")
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/glossary.md")
WALKS = {
    "verify": block("architecture.md", "walk verify"),
    "callback": block("architecture.md", "walk callback"),
    "send": block("architecture.md", "walk send"),
}
PICTURES = {
    "architecture.md": WALKS,
    "what.md": {"flow": block("what.md", "walk flow")},
    "why.md": {"task": block("why.md", "walk task"), "delivery": block("why.md", "walk delivery")},
}
_PATH = re.compile(r"(?:[\w.-]+/)*(?:[\w.-]+/|\.[a-z]+/\w+|[\w.-]+\.(?:py|lua|md|cfg|toml|svg))")


def paths(text: str) -> set[str]:
    """Return the files and folders that a text names between backticks."""
    return {span for span in re.findall(r"`([^`\n]+)`", text) if _PATH.fullmatch(span)}


def is_there(path: str) -> bool:
    return any((place / path).exists() for place in PLACES)


def prose(page: str) -> str:
    """Return a page without its blocks: examples name files that are to be made."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)


def modules() -> set[str]:
    """Return what stands directly in the package and holds code."""
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/*.py")
    }
    return found - {"__init__"}


@pytest.mark.parametrize("page", PAGES)
def test_page_names_only_what_is_there(page: str) -> None:
    named = paths(prose(page))

    assert sorted(path for path in named if not is_there(path)) == []


def test_paths_are_told_from_other_words() -> None:
    text = "`_store/tasks.py` `strategies/` `.ci/run` `setup.cfg` `nox -s tests` `otp` `POST` `a.b` `x/y z`"

    assert paths(text) == {"_store/tasks.py", "strategies/", ".ci/run", "setup.cfg"}
    assert not is_there("_store/tusks.py")


def test_pages_name_many_rooms() -> None:
    assert len(paths(prose("CONTRIBUTING.md"))) > 20
    assert len(paths(prose("docs/architecture.md"))) > 20


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", prose(page))

    assert [link for link in links if not (ROOT / page).parent.joinpath(link).is_file()] == []


def test_plan_has_every_room_and_no_other() -> None:
    named = {path for row in rows("architecture.md", "## The plan") for path in paths(f"`{row[0]}`")}
    in_plan = {path.strip("/").removesuffix(".py") for path in named}
    on_floors = block("architecture.md", "floors").split()

    assert in_plan - {"__init__"} == modules()
    assert sorted(on_floors) == sorted({*modules(), "__init__"})


def test_floors_of_the_page_are_those_that_are_held() -> None:
    house = (ROOT / "tests" / "test_house.py").read_text("utf-8")
    held = re.search(r"^FLOORS = (\(.*?^\))", house, re.M | re.S)

    assert held
    top, *floors = block("architecture.md", "floors").splitlines()
    assert top == "__init__"
    assert [tuple(floor.split()) for floor in floors] == list(ast.literal_eval(held[1]))


@pytest.mark.parametrize("name", WALKS)
def test_walk_goes_through_rooms_that_are_there(name: str) -> None:
    words = set(re.findall(r"[\w/]+\.(?:py|lua)\b", WALKS[name]))

    assert len(words) > 5
    assert sorted(word for word in words if not is_there(word)) == []


@pytest.mark.parametrize(("page", "told"), PICTURES.items())
def test_pictures_are_what_their_page_tells(page: str, told: dict[str, str]) -> None:
    for name, walk in told.items():
        assert (DOCS / "pictures" / f"{name}.svg").read_text("utf-8") == draw(walk)
        assert f"(pictures/{name}.svg)" in read(page)


def test_picture_has_an_arrow_for_each_border_and_a_dot_for_each_thing_done_inside() -> None:
    drawing = draw("app > _store/tasks.py: add <1>\n_store/tasks.py > _store/keys.py: name\nRedis: stores\n")

    assert drawing.count("<polygon") == 1
    assert drawing.count("<circle") == 2
    assert [drawing.count(f">{name}</text>") for name in ("app", "_store", "Redis")] == [1, 1, 1]
    assert ">tasks.py: add &lt;1&gt;</text>" in drawing


@pytest.mark.parametrize("line", ["", "app", "app > store", "app >: x", "app > a > b: x"])
def test_line_that_is_no_step_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a step"):
        Step.read(line)


def sessions() -> list[str]:
    """Return the sessions that CONTRIBUTING.md has in its table."""
    return re.findall(r"^\| `(\w+)` \|", prose("CONTRIBUTING.md").partition("\n## Sessions\n")[2], re.M)


def test_sessions_of_the_page_are_those_of_nox() -> None:
    # Read, not imported: the suite runs without nox, too.
    functions = [node for node in ast.parse(NOXFILE).body if isinstance(node, ast.FunctionDef)]
    by_default = re.search(r"^nox\.options\.sessions = (.*)$", NOXFILE, re.M)

    assert by_default
    assert sessions() == [node.name for node in functions if is_session(node)]
    assert ast.literal_eval(by_default[1]) == sessions()[:5]


def is_session(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("nox.session") for decorator in node.decorator_list)


def test_gate_runs_every_session() -> None:
    gate = (ROOT / ".ci" / "run").read_text("utf-8")
    (named,) = re.findall(r"nox\" .*\\\n +-s (.*)$", gate, re.M)

    # The Pythons that were found take the place of `tests`.
    assert set(named.replace('"${suites[@]}"', "tests").split()) == set(sessions())


def test_words_of_the_glossary_are_used() -> None:
    headings = re.findall(r"^## .*$", read("glossary.md"), re.M)
    words = [
        word for heading in headings for row in rows("glossary.md", heading) for word in row[0].split(", ")
    ]
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".lua")]
    pages = [path for path in DOCS.glob("*.md") if path.name != "glossary.md"]
    text = " ".join(path.read_text("utf-8").lower() for path in (*sources, *pages)).replace("_", " ")

    assert len(words) > 50
    assert len(words) == len(set(words))
    assert [word for word in words if word.lower() not in text] == []
