"""The corpus: how people write texts, addresses, numbers and codes, and what comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_taskflow import InvalidTask, SMSStrategy
from flask_taskflow._checks import check_recipient, check_spelling, is_text, read_addresses
from flask_taskflow._new_task import _check_summary
from flask_taskflow._otp import read_code
from flask_taskflow.errors import InvalidCode
from flask_taskflow.strategies._gsm import fold
from tests.conftest import MakeApp

FOLDER = Path(__file__).parent / "corpus"


def rows(name: str) -> list[Any]:
    lines = (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line and not line.startswith("#")]


def differing(name: str, read: Callable[..., object]) -> list[Any]:
    """Read what a file has; return the rows of which something else came, with that."""
    came = [(row, read(*row[:-1])) for row in rows(name)]
    return [(row, kept) for row, kept in came if kept != row[-1]]


def test_corpus_is_large_and_has_nothing_twice() -> None:
    found = [(path.stem, *row[: len(row) - 1 or 1]) for path in FOLDER.glob("*") for row in rows(path.stem)]

    assert len(found) > 500
    assert len(set(found)) == len(found)


@pytest.mark.slow
def test_numbers_are_kept_as_the_corpus_says(make_app: MakeApp) -> None:
    texting = SMSStrategy()
    apps = {region: make_app(phone_region=region) for region, *_ in rows("numbers")}

    def kept(region: str | None, given: str) -> str | None:
        with apps[region].app_context():
            try:
                text = read_addresses({"phone_number": given})["phone_number"]
                return texting.normalise(check_spelling("phone_number", text))
            except InvalidTask:
                return None

    assert differing("numbers", kept) == []


def test_emails_are_kept_as_the_corpus_says() -> None:
    def kept(given: str) -> str | None:
        try:
            return check_recipient({"email": given}).email or ""
        except InvalidTask:
            return None

    assert differing("emails", kept) == []


def test_texts_are_kept_and_what_is_none_is_refused() -> None:
    for (text,) in rows("texts"):
        assert _check_summary(text) == text
        assert is_text(text)
    for (text,) in rows("no_texts"):
        with pytest.raises(InvalidTask, match="summary must be one printable line"):
            _check_summary(text)


def test_texts_of_an_sms_are_folded_as_the_corpus_says() -> None:
    assert differing("sms", fold) == []


def test_codes_are_read_as_the_corpus_says() -> None:
    def kept(given: str) -> str | None:
        try:
            return str.__str__(read_code(given, re.compile("[0-9]{6}")))
        except InvalidCode:
            return None

    assert differing("codes", kept) == []
