"""Text that people write in any language passes; what deceives or breaks lines does not."""

from __future__ import annotations

import sys
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from babel.dates import format_datetime
from babel.localedata import locale_identifiers
from babel.numbers import format_currency, format_decimal, format_percent
from flask import Flask

from flask_taskflow import InvalidTask, Method, OutboxStrategy, Task, TaskFlow
from flask_taskflow._checks import is_text
from flask_taskflow._config.providers import read_sender
from tests.conftest import MakeApp

WHEN = datetime(2026, 11, 26, 15, 3, tzinfo=UTC)


def add(taskflow: TaskFlow, **options: Any) -> Task[Any]:
    given: dict[str, Any] = {"allowed_methods": ["EMAIL"], "recipient": {"email": "ann@example.com"}}
    return taskflow.add_task("q", **{**given, **options})


@pytest.mark.slow
def test_amounts_and_dates_of_every_language_are_text() -> None:
    refused = {}
    for name in locale_identifiers():
        texts = [format_currency(-1234567.5, code, locale=name) for code in ("EUR", "VND", "INR", "ILS")]
        texts += [format_currency(1234567, "USD", locale=name, format_type="accounting")]
        texts += [format_decimal(-1234567.89, locale=name), format_percent(0.175, locale=name)]
        texts += [format_datetime(WHEN, form, locale=name) for form in ("short", "medium", "long", "full")]
        if bad := [ascii(text) for text in texts if not is_text(text)]:
            refused[name] = bad

    assert refused == {}
    assert len(locale_identifiers()) > 500


@pytest.mark.parametrize(
    "summary",
    [
        "Pay 1.234.567,00\u00a0€ to Jörg",
        "Payer 1\u202f234\u202f567,00\u00a0€",
        "Pay\u2009500\u3000円",
        "\u200fשלם 50\u00a0₪ לדנה",
        "\u200eادفع ١٬٢٣٤ ر.س.\u061c",
        "پرداخت به علی\u200cرضا",
        "क्\u200dषमा को ₹50 भेजें",
        "ส่งเงินให้น้ำ",
        "Zoe\u0308 and e\u0301 in two code points",
        "Pay 5 to the 👩\u200d👧\u200d👦 of ❤\ufe0f",
        "From 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "A sign that is private: \uf8ff",
    ],
)
def test_summary_of_any_language_is_kept_as_it_is(app: Flask, taskflow: TaskFlow, summary: str) -> None:
    task = add(taskflow, summary=summary)

    assert taskflow.get_task(task.id).summary == summary


@pytest.mark.parametrize(
    "character",
    ["\n", "\r", "\t", "\x00", "\x1b", "\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ud800", "\udfff"]
    + [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x2070))]
    + ["\ufff9", "\ufdd0", "\ufffe", "\U0010ffff"],
    ids=ascii,
)
def test_character_that_breaks_or_deceives_is_refused(app: Flask, taskflow: TaskFlow, character: str) -> None:
    with pytest.raises(InvalidTask, match="summary must be one printable line"):
        add(taskflow, summary=f"Pay 5{character}to Bob")
    with pytest.raises(InvalidTask, match="email is not usable"):
        add(taskflow, recipient={"email": f"ann{character}@example.com"})


def test_only_these_kinds_of_characters_are_refused() -> None:
    refused: dict[str, int] = {}
    for code in range(sys.maxunicode + 1):
        if not is_text(chr(code)):
            kind = unicodedata.category(chr(code))
            refused[kind] = refused.get(kind, 0) + 1

    # All controls, surrogates and separators of lines; of the format characters those of direction, the
    # deprecated and the annotations; of the unassigned ones the 66 noncharacters.
    assert refused == {"Cc": 65, "Cs": 2048, "Zl": 1, "Zp": 1, "Cf": 18, "Cn": 66}


@pytest.mark.parametrize("name", ["Banque\u00a0Nationale", "بانک\u200cملی", "Zoë"])
def test_sender_may_be_called_as_people_write_it(name: str) -> None:
    assert read_sender(f"{name} <codes@example.com>").display_name == name


@pytest.mark.parametrize("field", ["email", "phone_number", "device_id"])
@pytest.mark.parametrize("empty", ["", " ", "\t\n", "\u00a0"])
def test_empty_text_is_no_address(app: Flask, taskflow: TaskFlow, field: str, empty: str) -> None:
    task = add(
        taskflow, recipient={"email": "ann@example.com"} | ({} if field == "email" else {field: empty})
    )

    assert task.recipient.addresses() == {"email": "ann@example.com"}
    with pytest.raises(InvalidTask, match=r"no address for any allowed method: give \['email'\]"):
        add(taskflow, recipient={field: empty})


class Spelt(OutboxStrategy):
    """Writes addresses in capitals, and has no place for some."""

    def normalise(self, address: str) -> str:
        if "nobody" in address:
            raise InvalidTask(f"recipient: {self.address} is nobody's")
        return address.upper()


@pytest.fixture
def chat(taskflow: TaskFlow) -> Spelt:
    strategy = Spelt("email")
    taskflow.register_strategy("CHAT")(strategy)
    return strategy


@pytest.fixture
def reading(make_app: MakeApp, taskflow: TaskFlow) -> list[str]:
    """An app whose SMS strategy refuses each number that has a 9; and what it was asked about."""
    asked: list[str] = []

    class Picky(OutboxStrategy):
        def normalise(self, address: str) -> str:
            asked.append(address)
            if "9" in address:
                raise InvalidTask("recipient: phone_number has a nine")
            return address

    taskflow.register_strategy(Method.SMS)(Picky())
    return asked


BOTH = {"email": "ann@example.com", "phone_number": "0901 234 567"}


def test_strategy_of_another_method_is_not_asked(
    app: Flask, taskflow: TaskFlow, chat: Spelt, reading: list[str]
) -> None:
    task = add(taskflow, recipient=BOTH)

    assert task.recipient.addresses() == BOTH
    assert reading == []


@pytest.mark.parametrize("number", ["call me", "none\n", "12", "1" * 500])
def test_address_that_nobody_uses_is_left_out_if_it_is_none(
    app: Flask, taskflow: TaskFlow, number: str
) -> None:
    task = add(taskflow, recipient={**BOTH, "phone_number": number})

    assert task.recipient.addresses() == {"email": "ann@example.com"}


def test_method_that_cannot_be_reached_is_left_out_and_told(
    app: Flask, taskflow: TaskFlow, reading: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    task = add(taskflow, allowed_methods=["SMS", "EMAIL"], recipient=BOTH)

    assert task.recipient.addresses() == {"email": "ann@example.com"}
    assert "A task of q is added without SMS: recipient: phone_number has a nine" in caplog.text
    assert "0901" not in caplog.text
    # It may be corrected.
    changed = taskflow.update_recipient(task.id, {"phone_number": "+1 415 555 2671"})
    assert changed.recipient.phone_number == "+1 415 555 2671"


def test_task_that_no_method_can_reach_says_why(app: Flask, taskflow: TaskFlow, reading: list[str]) -> None:
    for options in ({"allowed_methods": ["SMS"]}, {"allowed_methods": ["EMAIL", "SMS"], "send_via": ["SMS"]}):
        with pytest.raises(InvalidTask, match="phone_number has a nine"):
            add(taskflow, recipient=BOTH, **options)


def test_method_that_refuses_an_address_of_another_is_not_of_the_task(
    app: Flask, taskflow: TaskFlow, chat: Spelt
) -> None:
    whom = {"email": "nobody@example.com"}

    task = add(taskflow, allowed_methods=["CHAT", "EMAIL"], recipient=whom)

    assert task.allowed_methods == ("EMAIL",)
    assert task.recipient.addresses() == whom
    assert chat.messages == []


def test_change_asks_only_the_methods_of_the_task(
    app: Flask, taskflow: TaskFlow, chat: Spelt, reading: list[str]
) -> None:
    task = add(taskflow)

    changed = taskflow.update_recipient(task.id, {**BOTH, "email": "nobody@example.com"})

    assert changed.recipient.addresses() == {**BOTH, "email": "nobody@example.com"}
    assert reading == []


def test_change_to_an_address_that_a_method_refuses_changes_nothing(
    app: Flask, taskflow: TaskFlow, reading: list[str]
) -> None:
    task = add(taskflow, allowed_methods=["EMAIL", "SMS"], recipient={"email": "ann@example.com"})

    with pytest.raises(InvalidTask, match="phone_number has a nine"):
        taskflow.update_recipient(task.id, {"email": "bob@example.com", "phone_number": "0901 234 567"})

    assert taskflow.get_task(task.id) == task
