"""Where an attempt went wrong, in the app's own words."""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask

from flask_taskflow import BaseStrategy
from flask_taskflow._delivery.attempts import own_place

HERE = Path(__file__)


def raised_by(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    # What the test itself adds is the app's own code, too.
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    return error


def line_of(text: str) -> int:
    """Return the line of this file on which a text stands for the first time."""
    return next(number for number, line in enumerate(HERE.read_text().splitlines(), 1) if text in line)


def parse() -> None:
    json.loads("{")  # the app's own line


def make_directory() -> None:
    Path("/proc/nowhere").mkdir(parents=True)  # another one


@pytest.mark.parametrize(
    ("call", "text"), [(parse, "# the app's own line"), (make_directory, "# another one")]
)
def test_place_of_what_a_library_raised_is_the_line_that_called_it(
    call: Callable[[], None], text: str
) -> None:
    assert str(own_place(raised_by(call))) == f"{HERE}:{line_of(text)}"


def test_place_of_what_only_libraries_did_is_none() -> None:
    error = raised_by(lambda: json.loads("{"))
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next

    assert own_place(error) is None
    assert own_place(ValueError()) is None


def test_place_of_what_this_package_raised_is_the_line_that_called_it() -> None:
    def check() -> None:
        BaseStrategy().generate(None)  # type: ignore[arg-type]  # any task does

    assert str(own_place(raised_by(check))) == f"{HERE}:{line_of('BaseStrategy().generate(None)')}"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An app that is installed as a package, and a library beside it that raises."""
    folder = tmp_path / "site-packages"
    for name in ("shop", "lender"):
        (folder / name).mkdir(parents=True)
    (folder / "lender" / "__init__.py").write_text("def lend():\n    raise ValueError\n")
    (folder / "shop" / "__init__.py").write_text("import lender\n\ndef pay():\n    lender.lend()\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("shop", "lender"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import shop  # type: ignore[import-not-found]  # written just now

    linecache.clearcache()
    return shop  # type: ignore[no-any-return]


@pytest.mark.parametrize(("root", "place"), [("shop", "shop/__init__.py:4"), (None, "lender/__init__.py:2")])
def test_place_in_an_app_that_is_installed_is_known_by_its_root(
    installed: ModuleType, root: str | None, place: str
) -> None:
    folder = Path(str(installed.__file__)).parents[1]
    app = Flask("app", root_path=str(folder / (root or "elsewhere")))

    def pay() -> None:
        installed.pay()

    error = raised_by(pay)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    with app.app_context():
        assert str(own_place(error)) == f"{folder / place}"
