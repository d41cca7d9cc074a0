"""What people read: every template in every language, overriding, and whole catalogues."""

from __future__ import annotations

import gettext
import io
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from conftest import MakeApp
from flask import Flask, request
from flask_babel import Babel

import flask_taskflow
from flask_taskflow import InvalidTask, Task, TaskFlow
from flask_taskflow._texts import LANGUAGES, current_locale, minutes, render, render_code, translations

ROOT = Path(flask_taskflow.__file__).parent
NAMES = sorted(
    path.relative_to(ROOT / "templates/taskflow").as_posix()
    for path in (ROOT / "templates/taskflow").rglob("*.*")
)
CATALOGUES = sorted(ROOT.glob("translations/*/LC_MESSAGES/flask_taskflow.po"))
SUMMARY = "Pay 50 to <Bob> & Đặng"


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": "ann@example.com"}}
    return taskflow.add_task("q", **{**given, **options})


@pytest.mark.parametrize("summary", [None, SUMMARY])
@pytest.mark.parametrize("locale", [*LANGUAGES, "vi_VN", "xx"])
@pytest.mark.parametrize("name", NAMES)
def test_template_renders_in_each_language(
    app: Flask, taskflow: TaskFlow, name: str, locale: str, summary: str | None
) -> None:
    task = add(taskflow, summary=summary)

    text = render(name, task, "123456", locale=locale)

    shown = "Pay 50 to &lt;Bob&gt; &amp; Đặng" if name.endswith(".html") else SUMMARY
    assert (shown in text) == (summary is not None)
    assert "%(" not in text
    assert ("123456" in text) == ("subject" not in name)
    if "vi" not in locale:
        assert text == render(name, task, "123456", locale="en").replace('lang="en"', f'lang="{locale}"')
    else:
        assert text != render(name, task, "123456", locale="en")


@pytest.mark.parametrize("name", ["email/code.txt", "email/code.html"])
@pytest.mark.parametrize("locale", LANGUAGES)
def test_code_of_an_email_stands_alone_on_a_line(
    app: Flask, taskflow: TaskFlow, name: str, locale: str
) -> None:
    lines = render(name, add(taskflow, summary=SUMMARY), "123456", locale=locale).splitlines()

    assert lines.count("123456") == 1


def test_names_of_templates_are_these() -> None:
    assert NAMES == ["email/code.html", "email/code.txt", "email/subject.txt", "sms/code.txt"]


@pytest.mark.parametrize(
    ("ttl", "expected", "english", "vietnamese"),
    [
        (30, 1, "at most 1 minute.", "tối đa 1 phút."),
        (61, 2, "at most 2 minutes.", "tối đa 2 phút."),
        (86400, 10, "at most 10 minutes.", "tối đa 10 phút."),
    ],
)
def test_life_of_a_code_is_told_in_whole_minutes(
    app: Flask, taskflow: TaskFlow, ttl: float, expected: int, english: str, vietnamese: str
) -> None:
    task = add(taskflow, ttl=timedelta(seconds=ttl))

    assert minutes(task) == expected
    assert english in render("email/code.txt", task, "1", locale="en")
    assert vietnamese in render("email/code.txt", task, "1", locale="vi")


@pytest.mark.parametrize("locale", ["vi", "vi_VN", "vi-VN", "VI"])
def test_locale_of_a_country_has_its_language(locale: str) -> None:
    assert translations(locale).gettext("Your confirmation code") == "Mã xác nhận của bạn"


@pytest.mark.parametrize("locale", ["en", "en_GB", "fr", "vim", "../vi", ""])
def test_unknown_locale_is_english(locale: str) -> None:
    assert translations(locale).gettext("Your confirmation code") == "Your confirmation code"


def test_configured_locale_counts_without_flask_babel(make_app: MakeApp, taskflow: TaskFlow) -> None:
    with make_app(eager=True, locale="vi").app_context():
        text = render("email/subject.txt", add(taskflow), "123456")

    assert text == "Mã xác nhận của bạn"


def test_flask_babel_tells_the_locale_of_a_request(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app(eager=True, locale="en")
    Babel(app, locale_selector=lambda: request.accept_languages.best_match(["en", "vi"]))

    with app.test_request_context(headers={"Accept-Language": "vi"}):
        vietnamese = render("email/subject.txt", add(taskflow), "123456")
    with app.test_request_context(headers={"Accept-Language": "en"}):
        english = render("email/subject.txt", add(taskflow), "123456")

    assert (vietnamese, english) == ("Mã xác nhận của bạn", "Your confirmation code")


def test_task_added_in_a_request_keeps_its_language(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app(eager=True, locale="en")
    Babel(app, locale_selector=lambda: request.accept_languages.best_match(["en", "vi"]))
    with app.test_request_context(headers={"Accept-Language": "vi"}):
        task = add(taskflow)

    with app.app_context():
        found = taskflow.get_task(task.id)
        text = render("email/subject.txt", found, "123456")

    assert (found, found.locale) == (task, "vi")
    assert text == "Mã xác nhận của bạn"


def test_task_s_own_locale_comes_first(make_app: MakeApp, taskflow: TaskFlow) -> None:
    app = make_app(eager=True, locale="en")
    Babel(app, locale_selector=lambda: "en")

    with app.test_request_context():
        text = render("email/subject.txt", add(taskflow, locale="vi_VN"), "123456")

    assert text == "Mã xác nhận của bạn"


@pytest.mark.parametrize("locale", ["", "v", "vi\r\nBcc", "../vi", 7, b"vi"])
def test_task_with_an_unusable_locale_is_refused(app: Flask, taskflow: TaskFlow, locale: Any) -> None:
    with pytest.raises(InvalidTask, match="locale: use the name of a language"):
        add(taskflow, locale=locale)


def test_selector_that_needs_a_request_leaves_the_configured_locale(make_app: MakeApp) -> None:
    app = make_app(eager=True, locale="vi")
    Babel(app, locale_selector=lambda: request.accept_languages.best_match(["en"]))

    with app.app_context():
        assert current_locale() == "vi"


def test_flask_babel_without_a_selector_tells_its_default(make_app: MakeApp) -> None:
    app = make_app(eager=True, locale="en", BABEL_DEFAULT_LOCALE="vi_VN")
    Babel(app)

    with app.app_context():
        assert current_locale() == "vi_VN"


@pytest.fixture
def themed(app: Flask, tmp_path: Path) -> Path:
    """The folder of an app's own templates, for those of this package."""
    app.jinja_loader = jinja2.FileSystemLoader(tmp_path)
    folder = tmp_path / "taskflow"
    (folder / "email").mkdir(parents=True)
    return folder


def test_template_of_the_app_wins_by_its_path(app: Flask, taskflow: TaskFlow, themed: Path) -> None:
    app.jinja_env.filters["loud"] = str.upper
    app.jinja_env.globals["bank"] = "The Bank"
    (themed / "email/code.txt").write_text("{{ bank }}: {{ summary|loud }} {{ otp }} <{{ minutes }}>")
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


def test_template_without_the_code_is_an_error(app: Flask, taskflow: TaskFlow, themed: Path) -> None:
    (themed / "email/code.txt").write_text("Your code is in the post.")

    with pytest.raises(LookupError, match=r"taskflow/email/code\.txt does not show the code"):
        render_code("email/code.txt", add(taskflow), "123456")


def test_template_with_a_misspelt_name_is_an_error(app: Flask, taskflow: TaskFlow, themed: Path) -> None:
    (themed / "email/code.txt").write_text("{{ otp }} {{ sumary }}")

    with pytest.raises(jinja2.UndefinedError, match="sumary"):
        render("email/code.txt", add(taskflow), "123456")


def test_every_language_but_english_has_a_catalogue() -> None:
    assert ["en", *(path.parts[-3] for path in CATALOGUES)] == list(LANGUAGES)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_compiled_catalogue_is_that_of_the_source(path: Path) -> None:
    with path.open("rb") as file:
        fresh = io.BytesIO()
        write_mo(fresh, read_po(file))
        fresh.seek(0)
    with path.with_suffix(".mo").open("rb") as file:
        shipped: Any = gettext.GNUTranslations(file)
    compiled: Any = gettext.GNUTranslations(fresh)

    # The head has dates and versions.
    texts = [{key: text for key, text in found._catalog.items() if key} for found in (shipped, compiled)]
    assert texts[0] == texts[1] != {}


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_catalogue_has_each_text_of_the_templates_and_no_other(path: Path) -> None:
    with path.open("rb") as file:
        catalogue = read_po(file)
    methods = [("**.*", "jinja2")]
    used = {
        found[2] for found in extract_from_dir(ROOT / "templates", methods, {"**.*": {"silent": "false"}})
    }

    assert used == {message.id for message in catalogue if message.id}
    for message in catalogue:
        if not message.id:
            continue
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
