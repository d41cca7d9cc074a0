"""A code as a person types it, and how it hides."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import InvalidCode
from flask_taskflow._otp import OTP, read_code

DIGITS = re.compile("[0-9]{6}")


def test_otp_hides_from_repr_and_containers(caplog: pytest.LogCaptureFixture) -> None:
    otp = OTP("123456")

    logging.getLogger("app").error("%r %s", otp, {"otp": otp})

    assert otp == "123456"
    assert f"{otp}" == "123456"
    assert "123456" not in repr(otp) + repr([otp]) + repr({"otp": otp}) + caplog.text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_otp_refuses_to_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="must not be pickled") as caught:
        pickle.dumps({"otp": OTP("123456")}, protocol)

    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_otp_refuses_to_be_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError, match="must not be pickled or copied"):
        duplicate(OTP("123456"))


MEANT = ["123456", " 123 456 ", "123-456", "1 2 3 4 5 6", "123\u2013456", "123\u00a0456"]
MEANT += ["123\u200b456\ufeff", "\t123456\r\n", "１２３４５６", "١٢٣٤٥٦", "१२३ ४५६"]


@pytest.mark.parametrize("typed", MEANT)
def test_code_is_read_as_it_was_meant(typed: str) -> None:
    code = read_code(typed, DIGITS)

    assert code == "123456"
    assert isinstance(code, OTP)


JUNK: list[Any] = ["", " ", "12345", "1234567", "12345a", "1２345x", "123\x00456", "123456\x00", "123.456"]
JUNK += ["+123456", "-", "½23456", "²23456", "Ⅻ3456", "1" * 10_000, " " * 10_000 + "123456", "\ud800"]
JUNK += [123456, 123456.0, None, True, b"123456", ["123456"], {"otp": "123456"}, object()]


@pytest.mark.parametrize("typed", JUNK, ids=lambda typed: type(typed).__name__)
def test_text_that_cannot_be_a_code_is_refused(typed: object) -> None:
    with pytest.raises(InvalidCode, match="cannot be a code") as caught:
        read_code(typed, DIGITS)

    assert "123" not in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(typed: str) -> None:
    try:
        code = read_code(typed, DIGITS)
    except InvalidCode:
        return

    assert DIGITS.fullmatch(code)


@pytest.mark.parametrize(
    ("typed", "pattern", "code"),
    [
        (" ABC-DEF ", "[A-Z]{3}-[A-Z]{3}", "ABC-DEF"),
        ("ABC DEF", "[A-Z]{6}", "ABCDEF"),
        ("A-１", r"[A-Z]\d", "A1"),
        ("１２３４", r"\d{4}", "1234"),
    ],
)
def test_pattern_decides_what_stays_and_digits_are_made_plain(typed: str, pattern: str, code: str) -> None:
    assert read_code(typed, re.compile(pattern)) == code
