"""What people read: every template in every language, overriding, and whole catalogues."""

from __future__ import annotations

import gettext
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from flask import Flask, request
from flask_babel import Babel

import flask_taskflow
from flask_taskflow import InvalidTask, TaskFlow
from flask_taskflow.strategies._texts import (
    LANGUAGES,
    current_locale,
    minutes,
    render,
    render_code,
    translations,
)
from tests.conftest import MakeApp
from tests.support.tasks import add

ROOT = Path(flask_taskflow.__file__).parent / "strategies"
TEMPLATES = ROOT / "templates/taskflow"
NAMES = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.*"))
CATALOGUES = sorted(ROOT.glob("translations/*/LC_MESSAGES/flask_taskflow.po"))
SUMMARY = "Pay 50 to <Bob> & Đặng"
ENGLISH, VIETNAMESE = "Your confirmation code", "Mã xác nhận của bạn"


def subject(taskflow: TaskFlow, **options: Any) -> str:
    return render("email/subject.txt", add(taskflow, **options), "123456")


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("summary", [None, SUMMARY])
@pytest.mark.parametrize("locale", [*LANGUAGES, "vi_VN", "xx"])
@pytest.mark.parametrize("name", NAMES)
def test_template_renders_in_each_language(
    taskflow: TaskFlow, name: str, locale: str, summary: str | None
) -> None:
    task = add(taskflow, summary=summary)

    text = render(name, task, "123456", locale=locale)

    shown = "Pay 50 to &lt;Bob&gt; &amp; Đặng" if name.endswith(".html") else SUMMARY
    assert (shown in text) == (summary is not None)
    assert "%(" not in text
    assert ("123456" in text) == ("subject" not in name)
    # The code of an e-mail stands alone on a line.
    assert text.splitlines().count("123456") == (name in ("email/code.txt", "email/code.html"))
    english = render(name, task, "123456", locale="en")
    assert (text == english) == ("vi" not in locale)


def test_names_of_templates_are_these() -> None:
    assert NAMES == ["email/code.html", "email/code.txt", "email/subject.txt", "sms/code.txt"]


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("ttl", "expected", "english", "vietnamese"),
    [
        (30, 1, "at most 1 minute.", "tối đa 1 phút."),
        (61, 2, "at most 2 minutes.", "tối đa 2 phút."),
        (86400, 10, "at most 10 minutes.", "tối đa 10 phút."),
    ],
)
def test_life_of_a_code_is_told_in_whole_minutes(
    taskflow: TaskFlow, ttl: float, expected: int, english: str, vietnamese: str
) -> None:
    task = add(taskflow, ttl=ttl)

    assert minutes(task, "1") == expected
    assert english in render("email/code.txt", task, "1", locale="en")
    assert vietnamese in render("email/code.txt", task, "1", locale="vi")


@pytest.mark.parametrize(
    ("locales", "text"),
    [(["vi", "vi_VN", "vi-VN", "VI"], VIETNAMESE), (["en", "en_GB", "fr", "vim", "../vi", ""], ENGLISH)],
    ids=["of a country", "unknown"],
)
def test_locale_has_its_language_or_english(locales: list[str], text: str) -> None:
    assert {translations(locale).gettext(ENGLISH) for locale in locales} == {text}


def best_match() -> str | None:
    return request.accept_languages.best_match(["en", "vi"])


def test_flask_babel_tells_the_locale_of_a_request_and_its_task_keeps_it(
    make_app: MakeApp, taskflow: TaskFlow
) -> None:
    app = make_app(eager=True, locale="en")
    Babel(app, locale_selector=best_match)

    with app.test_request_context(headers={"Accept-Language": "en"}):
        assert subject(taskflow) == ENGLISH
    with app.test_request_context(headers={"Accept-Language": "vi"}):
        assert subject(taskflow) == VIETNAMESE
        task = add(taskflow)
    with app.app_context():
        found = taskflow.get_task(task.id)
        assert (found, found.locale) == (task, "vi")
        assert render("email/subject.txt", found, "123456") == VIETNAMESE


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("locale", ["", "v", "vi\r\nBcc", "../vi", 7, b"vi"])
def test_task_with_an_unusable_locale_is_refused(taskflow: TaskFlow, locale: Any) -> None:
    with pytest.raises(InvalidTask, match="locale: use the name of a language"):
        add(taskflow, locale=locale)


@pytest.mark.parametrize(
    ("settings", "babel", "own", "expected"),
    [
        ({"locale": "vi"}, None, None, "vi"),
        ({"locale": "en"}, {"locale_selector": lambda: "en"}, "vi_VN", "vi_VN"),
        ({"locale": "vi"}, {"locale_selector": best_match}, None, "vi"),
        ({"locale": "en", "BABEL_DEFAULT_LOCALE": "vi_VN"}, {}, None, "vi_VN"),
    ],
    ids=["without Flask-Babel", "the task's own", "selector that needs a request", "no selector"],
)
def test_locale_outside_a_request_is_the_tasks_own_or_a_default(
    make_app: MakeApp, taskflow: TaskFlow, settings: Any, babel: Any, own: str | None, expected: str
) -> None:
    app = make_app(eager=True, **settings)
    if babel is not None:
        Babel(app, **babel)

    with app.app_context():
        assert current_locale() == (expected if own is None else "en")
        assert subject(taskflow, locale=own) == VIETNAMESE


@pytest.fixture
def themed(app: Flask, tmp_path: Path) -> Path:
    """The app's own template of a message."""
    app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
    folder = tmp_path / "taskflow" / "email"
    folder.mkdir(parents=True)
    return folder / "code.txt"


def test_template_of_the_app_wins_by_its_path(app: Flask, taskflow: TaskFlow, themed: Path) -> None:
    app.jinja_env.filters["loud"] = str.upper
    app.jinja_env.globals["bank"] = "The Bank"
    themed.write_text("{{ bank }}: {{ summary|loud }} {{ otp }} <{{ minutes }}>")
    task = add(taskflow, summary="pay")

    assert render("email/code.txt", task, "123456") == "The Bank: PAY 123456 <10>"
    assert "123456" in render("email/code.html", task, "123456")


def test_own_environment_of_the_app_is_left_as_it_is(app: Flask, taskflow: TaskFlow) -> None:
    app.jinja_env.variable_start_string = "[["
    before = dict(app.jinja_env.globals)

    text = render("email/code.txt", add(taskflow), "123456")

    assert "123456" in text
    assert app.jinja_env.globals == before
    assert app.jinja_env.undefined is jinja2.Undefined


@pytest.mark.parametrize(
    ("template", "error", "reason"),
    [
        ("It is in the post.", LookupError, r"taskflow/email/code\.txt does not show the code"),
        ("{{ otp }} {{ sumary }}", jinja2.UndefinedError, "sumary"),
    ],
)
def test_template_that_cannot_be_right_is_an_error(
    taskflow: TaskFlow, themed: Path, template: str, error: type[Exception], reason: str
) -> None:
    themed.write_text(template)

    with pytest.raises(error, match=reason):
        render_code("email/code.txt", add(taskflow), "123456")


def test_every_language_but_english_has_a_catalogue() -> None:
    assert ["en", *(path.parts[-3] for path in CATALOGUES)] == list(LANGUAGES)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_compiled_catalogue_is_that_of_the_source(path: Path) -> None:
    fresh = io.BytesIO()
    with path.open("rb") as file:
        write_mo(fresh, read_po(file))
    fresh.seek(0)
    with path.with_suffix(".mo").open("rb") as file:
        compiled: list[Any] = [gettext.GNUTranslations(file), gettext.GNUTranslations(fresh)]

    # The head has dates and versions.
    shipped, made = ({key: text for key, text in one._catalog.items() if key} for one in compiled)
    assert shipped == made != {}


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_catalogue_has_each_text_of_the_templates_and_no_other(path: Path) -> None:
    with path.open("rb") as file:
        catalogue = {message.id: message for message in read_po(file) if message.id}
    found = [
        text
        for folder in (ROOT / "templates", ROOT.parent / "_http" / "templates")
        for text in extract_from_dir(folder, [("**.*", "jinja2")], {"**.*": {"silent": "false"}})
    ]

    assert {text[2] for text in found} == set(catalogue)
    for message in catalogue.values():
        assert not message.fuzzy
        ids = message.id if isinstance(message.id, tuple) else (message.id,)
        texts = message.string if isinstance(message.string, tuple) else (message.string,)
        for text in texts:
            assert text
            assert set(re.findall(r"%\(\w+\)s", str(text))) == set(re.findall(r"%\(\w+\)s", str(ids[0])))


def test_package_imports_without_the_extras() -> None:
    program = (
        "import sys\n"
        "for name in ('apprise', 'phonenumbers', 'flask_babel', 'babel'): sys.modules[name] = None\n"
        "from flask_taskflow import ConfigError, SMSStrategy\n"
        "try: SMSStrategy()\n"
        "except ConfigError as error: print(error)\n"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "pip install 'flask-taskflow[sms]'" in run.stdout
