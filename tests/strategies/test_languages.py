"""Templates of an app with Flask-Babel: its filters, tags and catalogue, in the language of the task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import pytest
from babel.dates import format_datetime
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.numbers import format_currency, format_decimal
from flask import Flask, request
from flask_babel import Babel, get_locale, gettext

from flask_taskflow import Task, TaskFlow
from flask_taskflow.strategies._texts import current_locale, render
from flask_taskflow.testing import Outbox
from tests.conftest import MakeApp

WHEN = datetime(2026, 11, 26, 22, 30, tzinfo=UTC)
FILTERS = (
    "{{ otp }} {{ 1234.5|numberformat }} {{ 5|currencyformat('EUR') }} {{ when|datetimeformat('short') }}"
)
FORMS = {
    name: f"1 {format_decimal(1234.5, locale=name)} {format_currency(5, 'EUR', locale=name)} "
    f"{format_datetime(WHEN, 'short', locale=name)}"
    for name in ("de", "vi", "en")
}


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": "ann@example.com"}}
    return taskflow.add_task("q", **{**given, **options})


def asked() -> str | None:
    return request.accept_languages.best_match(["en", "de", "vi"])


def zone() -> str:
    return request.headers["Zone"]


@pytest.fixture
def speaking(make_app: MakeApp, tmp_path: Path) -> Callable[..., Flask]:
    """Make an app with Flask-Babel, a German catalogue, and templates for the plain text and the HTML."""

    def make(template: str, selector: Callable[[], str | None] | None = asked, **options: Any) -> Flask:
        folder = tmp_path / "translations/de/LC_MESSAGES"
        folder.mkdir(parents=True, exist_ok=True)
        catalogue = Catalog("de")
        catalogue.add("Hello", "Hallo")
        catalogue.add("Dear %(name)s", "Liebe %(name)s")
        catalogue.add(("%(num)s coin", "%(num)s coins"), ("%(num)s Münze", "%(num)s Münzen"))
        catalogue.add("Your confirmation code", "Ihr Code")
        with (folder / "messages.mo").open("wb") as file:
            write_mo(file, catalogue)
        app = make_app(eager=True, BABEL_TRANSLATION_DIRECTORIES=str(tmp_path / "translations"))
        Babel(app, locale_selector=selector, **options)
        names = ("taskflow/email/code.txt", "taskflow/email/code.html")
        app.jinja_loader = jinja2.DictLoader(dict.fromkeys(names, template))
        app.jinja_env.globals["when"] = WHEN
        return app

    return make


@pytest.mark.parametrize("locale", FORMS)
def test_filters_work_in_the_language_of_the_task_wherever_it_is_sent(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox, locale: str
) -> None:
    app = speaking(FILTERS)
    with app.test_request_context(headers={"Accept-Language": locale}):
        task = add(taskflow)
        inline = render("email/code.txt", task, "1")

    with app.app_context():
        later = render("email/code.txt", task, "1")
    with app.test_request_context(headers={"Accept-Language": "en"}):
        elsewhere = render("email/code.txt", task, "1")

    assert [inline, later, elsewhere] == [FORMS[locale]] * 3


def test_zone_of_a_request_counts_in_it_and_the_app_s_outside(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox
) -> None:
    app = speaking("{{ otp }} {{ when|datetimeformat('HH:mm') }}", timezone_selector=zone)
    with app.test_request_context(headers={"Accept-Language": "de", "Zone": "Asia/Ho_Chi_Minh"}):
        task = add(taskflow)
        inline = render("email/code.txt", task, "1")
    with app.app_context():
        later = [render("email/code.txt", task, "1") for _ in range(2)]

    assert (inline, later) == ("1 05:30", ["1 22:30"] * 2)


def test_language_of_the_request_is_back_after_a_message(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox
) -> None:
    with speaking(FILTERS).test_request_context(headers={"Accept-Language": "de"}):
        text = render("email/code.txt", add(taskflow, locale="vi"), "1")
        after = (str(get_locale()), gettext("Hello"))

    assert text == FORMS["vi"]
    assert after == ("de", "Hallo")


@pytest.mark.parametrize(
    ("locale", "like"), [("de_XX", "de"), ("de-QQ-1901", "de"), ("xx", "en"), ("xyz_AB", "en")]
)
def test_locale_that_babel_does_not_know_is_written_like_the_nearest(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox, locale: str, like: str
) -> None:
    with speaking(FILTERS).app_context():
        assert render("email/code.txt", add(taskflow, locale=locale), "1") == FORMS[like]


def fail_with(error: Exception) -> Callable[[], str]:
    def select() -> NoReturn:
        raise error

    return select


@pytest.mark.parametrize(
    "error", [AttributeError("no user"), KeyError("lang"), LookupError(), RuntimeError("x")]
)
@pytest.mark.parametrize("in_request", [True, False])
def test_selector_that_raises_stops_nothing_and_is_told_once(
    speaking: Callable[..., Flask],
    taskflow: TaskFlow,
    box: Outbox,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    in_request: bool,
) -> None:
    app = speaking(FILTERS, fail_with(error))
    with app.test_request_context() if in_request else app.app_context():
        texts = [render("email/code.txt", add(taskflow), "1") for _ in range(3)]
        assert current_locale() == "en"

    assert texts == [FORMS["en"]] * 3
    # Outside a request Flask's own error for that is no news.
    told = in_request or not isinstance(error, RuntimeError)
    assert caplog.text.count(f"The locale selector failed: {type(error).__name__}.") == told


@pytest.mark.parametrize(
    ("template", "german", "english"),
    [
        ("{{ otp }} {{ _('Hello') }}", "1 Hallo", "1 Hello"),
        ("{{ otp }} {{ gettext('Dear %(name)s', name='<A>') }}", "1 Liebe <A>", "1 Dear <A>"),
        ("{{ otp }} {{ ngettext('%(num)s coin', '%(num)s coins', 2) }}", "1 2 Münzen", "1 2 coins"),
        ("{{ otp }} {% trans %}Hello{% endtrans %}", "1 Hallo", "1 Hello"),
        ("{{ otp }} {% trans name='<A>' %}Dear {{ name }}{% endtrans %}", "1 Liebe <A>", "1 Dear <A>"),
        (
            "{{ otp }} {% trans num=1 %}{{ num }} coin{% pluralize %}{{ num }} coins{% endtrans %}",
            *("1 1 Münze", "1 1 coin"),
        ),
        ("{{ otp }} {{ _('Bye %(a)s %%', a=1) }}", "1 Bye 1 %", "1 Bye 1 %"),
    ],
)
def test_catalogue_of_the_app_counts_in_its_templates(
    speaking: Callable[..., Flask],
    taskflow: TaskFlow,
    box: Outbox,
    template: str,
    german: str,
    english: str,
) -> None:
    with speaking(template).app_context():
        texts = [render("email/code.txt", add(taskflow, locale=name), "1") for name in ("de", "en", "vi")]
        html = render("email/code.html", add(taskflow, locale="de"), "1")

    assert texts == [german, english, english]
    assert html == german.replace("<A>", "&lt;A&gt;")


def test_markup_of_a_translated_block_is_kept(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox
) -> None:
    template = "{{ otp }} {% trans a='<i>' %}<b>{{ a }}</b>{% endtrans %}"

    with speaking(template).app_context():
        assert render("email/code.html", add(taskflow, locale="de"), "1") == "1 <b>&lt;i&gt;</b>"


def test_catalogue_of_the_package_has_what_the_app_s_lacks(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox
) -> None:
    template = "{{ otp }} {{ _('Your confirmation code') }} {{ _('Give it to nobody, whoever asks.') }}"

    with speaking(template).app_context():
        vietnamese, german = (
            render("email/code.txt", add(taskflow, locale=name), "1") for name in ("vi", "de")
        )
        # A language that the package has not, in its own template.
        subject = render("email/subject.txt", add(taskflow, locale="de"), "1")

    assert vietnamese == "1 Mã xác nhận của bạn Không chia sẻ mã này với bất kỳ ai, dù họ là ai."
    assert german == "1 Ihr Code Give it to nobody, whoever asks."
    assert subject == "Ihr Code"


def test_template_may_include_the_package_s_own(
    speaking: Callable[..., Flask], taskflow: TaskFlow, box: Outbox
) -> None:
    template = "The Bank\n{% include 'flask_taskflow/taskflow/email/code.txt' %}"

    with speaking(template).app_context():
        text = render("email/code.txt", add(taskflow, locale="vi"), "123456")

    assert text.startswith("The Bank\n")
    assert "Để xác nhận, hãy nhập mã này:\n\n123456\n" in text


@pytest.mark.parametrize("newstyle", [True, False])
def test_translations_of_jinja_without_flask_babel_count(
    app: Flask, taskflow: TaskFlow, box: Outbox, newstyle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app.jinja_env.add_extension("jinja2.ext.i18n")
    words = {"Hello %(name)s": "Hej %(name)s", "one": "en", "many": "flera"}
    app.jinja_env.install_gettext_callables(  # type: ignore[attr-defined]  # the extension adds it
        lambda text: words.get(text, text), lambda one, many, num: words[one if num == 1 else many], newstyle
    )
    template = "{{ otp }} {{ _('Hello %(name)s', name='Bo') }} {{ ngettext('one', 'many', 2) }}"
    app.jinja_loader = jinja2.DictLoader({"taskflow/email/code.txt": template})

    assert render("email/code.txt", add(taskflow), "1") == "1 Hej Bo flera"
    assert caplog.text == ""
