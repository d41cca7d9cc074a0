"""What an SMS says, in one message, and that a code goes out whatever a payee is called."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from itertools import groupby
from typing import Any

import jinja2
import pytest
from babel.localedata import locale_identifiers
from babel.numbers import format_currency
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from flask_taskflow import Method, SMSStrategy, TaskFlow
from flask_taskflow.strategies._gsm import BASIC, EXTENSION, cut, fitted, fold, too_long
from tests.conftest import MakeApp
from tests.support.gateway import gateway
from tests.support.strategies import Watched

JSON = "json://127.0.0.1:{port}/sms?:to={{to}}&:message=text&:version=&:title=&:attachments=&:type="


class WatchedSMS(Watched, SMSStrategy):
    pass


@pytest.fixture
def codes(taskflow: TaskFlow) -> list[str]:
    strategy = WatchedSMS()
    taskflow.register_strategy(Method.SMS)(strategy)
    return strategy.codes


@pytest.fixture
def text_of(make_app: MakeApp, taskflow: TaskFlow) -> Callable[..., str]:
    """Send a code, and return what arrives."""

    def send(
        template: str | None = None, data: object = None, summary: str | None = None, **settings: Any
    ) -> str:
        with gateway() as taken:
            app: Flask = make_app(sms_url=JSON.format(port=taken.port), eager=True, **settings)
            if template is not None:
                app.jinja_loader = jinja2.DictLoader({"taskflow/sms/code.txt": template})
            with app.app_context():
                whom = {"phone_number": "+84901234567"}
                taskflow.add_task("q", data, allowed_methods=["SMS"], recipient=whom, summary=summary)
        ((_, _, body),) = taken.requests
        text: str = json.loads(body)["text"]
        assert too_long(text) is None
        return text

    return send


LINE = "Code {} (max. 10 min). Tell nobody."


@pytest.mark.parametrize(
    ("summary", "shown"),
    [
        ("Pay 5 to Zoë", "Pay 5 to Zoë"),
        ("Chuyển 1.200.000 ₫ cho Nguyễn Văn A", "Chuyen 1.200.000 VND cho Nguyen Van A"),
        ("Pay 50 to “Bob” Smith-O’Brien, reference 4711", 'Pay 50 to "Bob" Smith-O\'Brien, reference 4711'),
        ("Pay 1\u202f234,00\u00a0€ — now… to Łódź, “5”", 'Pay 1 234,00 € - now... to Lodz, "5"'),
    ],
)
def test_summary_is_written_in_what_every_phone_has(
    text_of: Callable[..., str],
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    summary: str,
    shown: str,
) -> None:
    text = text_of(summary=summary)

    assert text == f"{LINE.format(codes[0])}\n{shown}"
    assert "The SMS for task" not in caplog.text


def test_summary_of_another_script_that_fits_is_left_as_it_is(
    text_of: Callable[..., str], codes: list[str]
) -> None:
    assert text_of(summary="Заплатить Ивану 50 ₽").endswith("\nЗаплатить Ивану 50 ₽")


@pytest.mark.parametrize(
    ("summary", "end"),
    [
        ("Pay 1 to " + "x" * 150, "\nPay 1 to " + "x" * 108 + "..."),
        ("Заплатить Ивану Ивановичу Петрову за квартиру номер 17", "\nЗаплатить Ивану Ивановичу П..."),
        ("付款给" + "王" * 60, "\n付款给" + "王" * 24 + "..."),
    ],
)
def test_summary_that_is_too_long_is_shortened_and_the_log_says_so(
    text_of: Callable[..., str],
    codes: list[str],
    caplog: pytest.LogCaptureFixture,
    summary: str,
    end: str,
) -> None:
    text = text_of(summary=summary)

    assert text == f"{LINE.format(codes[0])}{end}"
    assert " has a shortened summary: it took " in caplog.text
    assert codes[0] not in caplog.text
    assert summary[:7] not in caplog.text


def test_summary_of_which_too_little_would_be_left_is_left_out(
    text_of: Callable[..., str], codes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = text_of(summary="Заплатить Ивану Ивановичу Петрову", webotp_host="bank.example.com")

    assert text == f"{LINE.format(codes[0])}\n\n@bank.example.com #{codes[0]}"
    assert " leaves its summary out: it took 100 of 70 units of UCS-2" in caplog.text


@pytest.mark.parametrize("template", ["{{ otp }} for {{ summary }}", "{{ otp }}: {{ task.summary|upper }}"])
def test_template_of_an_app_is_rendered_with_less_of_the_summary(
    text_of: Callable[..., str], codes: list[str], template: str
) -> None:
    assert text_of(template, summary="Pay " + "b" * 190).lower().endswith("bbb...")
    assert text_of(template + " " + "y" * 145, summary="Pay 1,000 to Bob").startswith(codes[1])


def test_template_that_never_fits_gives_way_to_the_package_s_own(
    text_of: Callable[..., str], codes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = text_of("{{ otp }} for {{ task.data }}", data="Иван " * 40, summary="Pay 5")

    assert text == LINE.format(codes[0])
    assert "taskflow/sms/code.txt of the app is too long" in caplog.text
    assert "Иван" not in caplog.text


def test_no_number_is_cut() -> None:
    text = "Pay 1,000,000 to 4711 0815 of Zoe\u0308 Bank"

    kept = {cut(text, size) for size in range(len(text))} - {""}

    assert all(part.removesuffix("...") in text for part in kept)
    assert len(kept) > 5
    assert all("Pay 1,000,000 t" in part for part in kept)
    assert not [part for part in kept if part[-4].isdigit() or part[-4] in " ,"]


def test_no_power_is_cut() -> None:
    text = "Pay Zoe Bank 10¹²³ or 1½ and 2㎡"

    kept = {cut(text, size) for size in range(len(text))} - {""}

    words = ["B", "Ba", "Ban", "Bank"]
    words += [f"Bank 10¹²³ {end}" for end in ("o", "or", "or 1½ a", "or 1½ an", "or 1½ and")]
    assert kept == {f"Pay Zoe {word}..." for word in words}


def test_amounts_of_languages_in_latin_letters_need_no_more_than_gsm7() -> None:
    foreign = {}
    for name in locale_identifiers():
        if name.split("_")[0] in (
            "de",
            "fr",
            "es",
            "vi",
            "pl",
            "cs",
            "tr",
            "pt",
            "sv",
            "hu",
            "ro",
            "hr",
            "id",
        ):
            for code in ("EUR", "VND", "INR", "PLN", "TRY", "UAH"):
                text = fold(format_currency(1234567.5, code, locale=name))
                if rest := [c for c in text if c not in BASIC | EXTENSION]:
                    foreign[name, code] = rest

    assert foreign == {}


@pytest.mark.slow
@given(st.text(max_size=100), st.sampled_from(["123456", "ẠBĆ-ĐĒ"]))
def test_code_stays_as_it_is_whatever_is_around_it(around: str, code: str) -> None:
    text = f"{around} {code} {around}"

    assert code in fold(text, keep=code)
    fit = fitted(text, code)
    assert fit is None or (code in fit and too_long(fit) is None)


@given(st.text(max_size=300))
def test_folding_adds_nothing_that_gsm7_lacks(text: str) -> None:
    folded = fold(text)

    assert {c for c in folded if c not in BASIC | EXTENSION} <= set(unicodedata.normalize("NFC", text))
    assert fold(folded) == folded


def numbers(text: str) -> list[str]:
    """Return the digits of a text as a reader takes them together: those of one height and no frame."""

    def kind(place: int) -> object:
        form = unicodedata.decomposition(text[place]).partition(" ")[0]
        if unicodedata.category(text[place]) == "Nd":
            return "digit"
        return form if form in ("<super>", "<sub>") else place

    seen = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    text = "".join(c for c in seen if c not in "\ufe0e\ufe0f")
    runs = ["".join(text[place] for place in run) for _, run in groupby(range(len(text)), kind)]
    return [digits for run in runs for digits in plain_numbers(unicodedata.normalize("NFKD", run))]


def plain_numbers(text: str) -> list[str]:
    return [str(int(found)) for found in re.findall(r"\d+", text)]


NUMERIC = [c for c in map(chr, range(sys.maxunicode + 1)) if plain_numbers(unicodedata.normalize("NFKD", c))]
BESIDE = "12·.,/⁄()−⁻m€₫😀\ufe0f\u20e3\u200b"


@given(st.text(st.sampled_from(NUMERIC) | st.sampled_from(BESIDE) | st.characters()))
@example("Pay 1½ or 10⁶")
def test_folding_leaves_all_numbers_what_they_are(text: str) -> None:
    assert plain_numbers(fold(text)) == numbers(text)
