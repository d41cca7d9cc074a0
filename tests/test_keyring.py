"""Codes, digests and seals, without a server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest

from flask_taskflow import KeyMissing
from flask_taskflow._keyring import Keyring, new_nonce

NEW, OLD = Keyring([b"n" * 32]), Keyring([b"o" * 32])
ROTATED = Keyring([b"n" * 32, b"o" * 32])


def chi_square(parts: Iterable[str], cells: int) -> float:
    counts = Counter(parts)
    expected = counts.total() / cells
    return sum((count - expected) ** 2 for count in counts.values()) / expected + expected * (
        cells - len(counts)
    )


def test_codes_are_uniform_and_keep_leading_zeros() -> None:
    codes = [str(NEW.code("task", "EMAIL", str(number), length=6)) for number in range(100_000)]

    # 9 degrees of freedom, and 999: p > 0.001.
    assert max(chi_square((code[place] for code in codes), 10) for place in range(6)) < 27.88
    assert chi_square((code[:3] for code in codes), 1000) < 1142.8
    assert {len(code) for code in codes} == {6}
    assert sum(code.startswith("00") for code in codes) > 800
    assert len(set(codes)) > 94_000


@pytest.mark.parametrize("length", [1, 6, 8, 16])
def test_code_has_the_length_asked_for(length: int) -> None:
    assert re.fullmatch(f"[0-9]{{{length}}}", NEW.code("task", "EMAIL", new_nonce(), length=length))


def test_code_depends_on_each_of_its_parts() -> None:
    code = NEW.code("task", "EMAIL", "nonce", length=16)

    others = {
        NEW.code("tash", "EMAIL", "nonce", length=16),
        NEW.code("task", "SMS", "nonce", length=16),
        NEW.code("task", "EMAIL", "noncf", length=16),
        # Parts are delimited, not joined.
        NEW.code("taskE", "MAIL", "nonce", length=16),
        OLD.code("task", "EMAIL", "nonce", length=16),
    }

    assert len(others | {code}) == 6
    assert code == NEW.code("task", "EMAIL", "nonce", length=16)


def test_digest_differs_by_task_method_and_key_and_is_no_plain_hash() -> None:
    found = {
        NEW.digest("task", "EMAIL", "123456"),
        NEW.digest("tash", "EMAIL", "123456"),
        NEW.digest("task", "SMS", "123456"),
        NEW.digest("task", "EMAIL", "123457"),
        OLD.digest("task", "EMAIL", "123456"),
    }

    assert len(found) == 5
    assert all(re.fullmatch(r"[a-z2-7]{5}\.[\w-]{22}", digest) for digest in found)


def test_keys_of_different_purposes_differ() -> None:
    macs = [NEW.seal("a", "b", "c"), NEW.digest("a", "b", "c")]
    macs += [*NEW.recipients("a", "b"), *NEW.uses("a", "b", "c")]

    assert len({mac[-22:] for mac in macs}) == 4


def test_rotated_key_still_recovers_and_holds_and_a_removed_one_does_not() -> None:
    code = OLD.code("task", "EMAIL", "nonce", length=6)
    digest, seal = OLD.digest("task", "EMAIL", code), OLD.seal("task", "text")

    assert ROTATED.recover("task", "EMAIL", "nonce", digest, length=6) == code
    assert digest == ROTATED.digests("task", "EMAIL", code)[1]
    assert digest != ROTATED.digest("task", "EMAIL", code)
    assert ROTATED.holds(seal, "task", "text")
    assert ROTATED.seal("task", "text") != seal
    assert NEW.recover("task", "EMAIL", "nonce", digest, length=6) is None
    with pytest.raises(KeyMissing, match=OLD.fingerprints[0]) as caught:
        NEW.holds(seal, "task", "text")
    assert caught.value.fingerprint == OLD.fingerprints[0]


def test_seal_over_another_text_does_not_hold_under_its_key() -> None:
    assert not ROTATED.holds(NEW.seal("task", "text"), "task", "texT")
    assert not ROTATED.holds(OLD.seal("task", "text"), "task", "texT")


def test_fingerprint_names_a_key_wherever_it_stands() -> None:
    assert ROTATED.fingerprints == (*NEW.fingerprints, *OLD.fingerprints)
    assert len(set(ROTATED.fingerprints)) == 2


@pytest.mark.parametrize("seal", ["", "0" * 64, "ä", "abcde.", "abcde." + "ä" * 22, "abcd1." + "a" * 22])
def test_seal_that_is_junk_does_not_hold(seal: str) -> None:
    assert not NEW.holds(seal, "task", "text")


def test_address_is_counted_whatever_its_case_and_spaces() -> None:
    names = ROTATED.recipients("email", "ann@example.com")
    phone = NEW.recipients("phone_number", "+1202555")

    assert ROTATED.recipients("email", " Ann@Example.com ") == names
    assert set(ROTATED.recipients("email", "bob@example.com")).isdisjoint(names)
    assert OLD.recipients("email", "ann@example.com") == names[1:]
    assert NEW.recipients("phone_number", "+1 (202) 555") == phone


@pytest.mark.promise("S75")
@pytest.mark.parametrize("other", ["PHONE-1", "phone1", " phone-1", "phone-1.", "ｐhone-1"])
def test_device_is_counted_by_its_very_id(other: str) -> None:
    """The app made it up: what looks alike may be another's."""
    assert NEW.recipients("device_id", "phone-1") != NEW.recipients("device_id", other)


def test_keyring_does_not_show_its_keys() -> None:
    assert repr(ROTATED) == "Keyring(2 keys)"


def test_nonces_are_128_bits_and_differ() -> None:
    nonces = {new_nonce() for _ in range(1000)}

    assert len(nonces) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", nonce) for nonce in nonces)
