"""Codes, digests, seals, typed codes and masks, without a server."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import InvalidCode
from flask_taskflow._otp import OTP, Keyring, mask, mask_all, new_nonce, read_code

DIGITS = re.compile("[0-9]{6}")
NEW, OLD = b"n" * 32, b"o" * 32


@pytest.fixture(scope="module")
def codes() -> list[str]:
    keyring = Keyring([NEW])
    return [str(keyring.code("task", "EMAIL", str(number), length=6)) for number in range(100_000)]


def chi_square(counts: Counter[str], cells: int) -> float:
    expected = sum(counts.values()) / cells
    return sum((count - expected) ** 2 for count in counts.values()) / expected + expected * (
        cells - len(counts)
    )


@pytest.mark.parametrize("place", range(6))
def test_digits_of_each_place_are_uniform(codes: list[str], place: int) -> None:
    counts = Counter(code[place] for code in codes)

    # 9 degrees of freedom: p > 0.001.
    assert chi_square(counts, 10) < 27.88


def test_first_three_digits_are_uniform_together(codes: list[str]) -> None:
    counts = Counter(code[:3] for code in codes)

    # 999 degrees of freedom: p > 0.001.
    assert chi_square(counts, 1000) < 1142.8


def test_codes_keep_leading_zeros(codes: list[str]) -> None:
    assert {len(code) for code in codes} == {6}
    assert sum(code.startswith("00") for code in codes) > 800
    assert len(set(codes)) > 94_000


@pytest.mark.parametrize("length", [1, 6, 8, 16])
def test_code_has_the_length_asked_for(length: int) -> None:
    code = Keyring([NEW]).code("task", "EMAIL", new_nonce(), length=length)

    assert re.fullmatch(f"[0-9]{{{length}}}", code)


def test_code_depends_on_each_of_its_parts() -> None:
    keyring = Keyring([NEW])

    found = {
        keyring.code("task", "EMAIL", "nonce", length=16),
        keyring.code("tash", "EMAIL", "nonce", length=16),
        keyring.code("task", "SMS", "nonce", length=16),
        keyring.code("task", "EMAIL", "noncf", length=16),
        # Parts are delimited, not joined.
        keyring.code("taskE", "MAIL", "nonce", length=16),
        Keyring([OLD]).code("task", "EMAIL", "nonce", length=16),
    }

    assert len(found) == 6
    assert keyring.code("task", "EMAIL", "nonce", length=16) in found


def test_digest_differs_by_task_method_and_key_and_is_no_plain_hash() -> None:
    keyring = Keyring([NEW])

    found = {
        keyring.digest("task", "EMAIL", "123456"),
        keyring.digest("tash", "EMAIL", "123456"),
        keyring.digest("task", "SMS", "123456"),
        keyring.digest("task", "EMAIL", "123457"),
        Keyring([OLD]).digest("task", "EMAIL", "123456"),
    }

    assert len(found) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in found)


def test_keys_of_different_purposes_differ() -> None:
    keyring = Keyring([NEW])

    macs = [keyring.seal("a", "b", "c"), keyring.digest("a", "b", "c"), keyring.recipient("a")]

    assert len({mac[:32] for mac in macs}) == 3


def test_rotated_key_still_recovers_and_holds() -> None:
    before = Keyring([OLD])
    code = before.code("task", "EMAIL", "nonce", length=6)
    digest, seal = before.digest("task", "EMAIL", code), before.seal("task", "text")

    after = Keyring([NEW, OLD])

    assert after.recover("task", "EMAIL", "nonce", digest, length=6) == code
    assert digest == after.digests("task", "EMAIL", code)[1]
    assert digest != after.digest("task", "EMAIL", code)
    assert after.holds(seal, "task", "text")
    assert after.seal("task", "text") != seal


def test_removed_key_neither_recovers_nor_holds() -> None:
    before, after = Keyring([OLD]), Keyring([NEW])
    code = before.code("task", "EMAIL", "nonce", length=6)

    assert after.recover("task", "EMAIL", "nonce", before.digest("task", "EMAIL", code), length=6) is None
    assert not after.holds(before.seal("task", "text"), "task", "text")


@pytest.mark.parametrize("seal", ["", "0" * 64, "ä"])
def test_seal_that_is_junk_does_not_hold(seal: str) -> None:
    assert not Keyring([NEW]).holds(seal, "task", "text")


def test_address_is_counted_whatever_its_case_and_spaces() -> None:
    keyring = Keyring([NEW])

    assert keyring.recipient(" Ann@Example.com ") == keyring.recipient("ann@example.com")
    assert keyring.recipient("bob@example.com") != keyring.recipient("ann@example.com")


def test_keyring_does_not_show_its_keys() -> None:
    assert repr(Keyring([NEW, OLD])) == "Keyring(2 keys)"


def test_nonces_are_128_bits_and_differ() -> None:
    nonces = {new_nonce() for _ in range(1000)}

    assert len(nonces) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", nonce) for nonce in nonces)


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


@pytest.mark.parametrize(
    "typed",
    [
        "123456",
        " 123 456 ",
        "123-456",
        "1 2 3 4 5 6",
        "123\u2013456",
        "123\u00a0456",
        "123\u200b456\ufeff",
        "\t123456\r\n",
        "１２３４５６",
        "١٢٣٤٥٦",
        "१२३ ४५६",
    ],
)
def test_code_is_read_as_it_was_meant(typed: str) -> None:
    code = read_code(typed, DIGITS)

    assert code == "123456"
    assert isinstance(code, OTP)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ",
        "12345",
        "1234567",
        "12345a",
        "1２345x",
        "123\x00456",
        "123456\x00",
        "123.456",
        "+123456",
        "-",
        "½23456",
        "²23456",
        "Ⅻ3456",
        "1" * 10_000,
        " " * 10_000 + "123456",
        "\ud800",
        123456,
        123456.0,
        None,
        True,
        b"123456",
        ["123456"],
        {"otp": "123456"},
        object(),
    ],
    ids=lambda typed: type(typed).__name__,
)
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


def test_pattern_decides_what_stays() -> None:
    assert read_code(" ABC-DEF ", re.compile("[A-Z]{3}-[A-Z]{3}")) == "ABC-DEF"
    assert read_code("ABC DEF", re.compile("[A-Z]{6}")) == "ABCDEF"
    assert read_code("A-１", re.compile(r"[A-Z]\d")) == "A1"


def test_digits_are_made_plain_before_a_pattern_of_any_digits() -> None:
    assert read_code("１２３４", re.compile(r"\d{4}")) == "1234"


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("foobar@example.com", "fo****@example.com"),
        ("anna@example.com", "an****@example.com"),
        ("ann@example.com", "a****@example.com"),
        ("al@example.com", "a****@example.com"),
        ("a@example.com", "****@example.com"),
        ("@example.com", "****@example.com"),
        ("a@b@example.com", "a****@example.com"),
        ("+12025550110", "+12****10"),
        ("1234567", "****"),
        ("", "****"),
        ("device-0815", "dev****15"),
    ],
)
def test_mask_shows_little(address: str, masked: str) -> None:
    """S55."""
    assert mask(address) == masked
    assert mask_all({"field": address}) == {"field": masked if address else ""}


@given(st.emails())
def test_mask_never_shows_a_whole_name(address: str) -> None:
    name = address.rpartition("@")[0]

    shown = mask(address).partition("****")[0]

    assert name.startswith(shown)
    assert len(shown) < len(name)
    assert len(shown) <= 2
