"""OCRA: the vectors of RFC 6287, appendix C, and what is no suite or no input of one."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oath import str2ocrasuite

from flask_taskflow import ConfigError
from flask_taskflow.strategies._ocra import read_suite
from tests.support.cases import each

DIGITS = b"1234567890" * 7
KEYS = {"SHA1": DIGITS[:20], "SHA256": DIGITS[:32], "SHA512": DIGITS[:64]}
PIN = hashlib.sha1(b"1234", usedforsecurity=False).digest()
TIME = datetime(2008, 3, 25, 12, 6, 30, tzinfo=UTC).timestamp()

SAME_DIGITS = [str(digit) * 8 for digit in range(10)]
CLIENT_FIRST = [f"CLI2222{number}SRV1111{number}" for number in range(5)]
SERVER_FIRST = [f"SRV1111{number}CLI2222{number}" for number in range(5)]

# Appendix C.1: one-way.
PLAIN = "237653 243178 653583 740991 608993 388898 816933 224598 750600 294470"
COUNTER_PIN = "65347737 86775851 78192410 71565254 10104329 65983500 70069104 91771096 75011558 08522129"
PIN_ONLY = "83238735 01501458 17957585 86776967 86807031"
COUNTER_ONLY = "07016083 63947962 70123924 25341727 33203315 34205738 44343969 51946085 20403879 31409299"
TIMED = "95209754 55907591 22048402 24218844 36209546"
# Appendix C.2: mutual; the server answers first.
SERVER_256 = "28247970 01984843 65387857 03351211 83412541"
CLIENT_256 = "15510767 90175646 33777207 95285278 28934924"
SERVER_512 = "79496648 76831980 12250499 90856481 12761449"
CLIENT_512_PIN = "18806276 70020315 01600026 18951020 32528969"
# Appendix C.3: signatures.
SIGNED = "53095496 04110475 31331128 76028668 46554205"
SIGNED_TIMED = "77537423 31970405 10235557 95213541 65360607"


@pytest.mark.parametrize(
    ("suite", "questions", "inputs", "responses"),
    [
        ("OCRA-1:HOTP-SHA1-6:QN08", SAME_DIGITS, [{}] * 10, PLAIN),
        (
            "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1",
            ["12345678"] * 10,
            [{"counter": number, "pin_hash": PIN} for number in range(10)],
            COUNTER_PIN,
        ),
        ("OCRA-1:HOTP-SHA256-8:QN08-PSHA1", SAME_DIGITS[:5], [{"pin_hash": PIN}] * 5, PIN_ONLY),
        ("OCRA-1:HOTP-SHA512-8:C-QN08", SAME_DIGITS, [{"counter": n} for n in range(10)], COUNTER_ONLY),
        ("OCRA-1:HOTP-SHA512-8:QN08-T1M", SAME_DIGITS[:5], [{"time": TIME}] * 5, TIMED),
        ("OCRA-1:HOTP-SHA256-8:QA08", CLIENT_FIRST, [{}] * 5, SERVER_256),
        ("OCRA-1:HOTP-SHA256-8:QA08", SERVER_FIRST, [{}] * 5, CLIENT_256),
        ("OCRA-1:HOTP-SHA512-8:QA08", CLIENT_FIRST, [{}] * 5, SERVER_512),
        ("OCRA-1:HOTP-SHA512-8:QA08-PSHA1", SERVER_FIRST, [{"pin_hash": PIN}] * 5, CLIENT_512_PIN),
        ("OCRA-1:HOTP-SHA256-8:QA08", [f"SIG1{n}000" for n in range(5)], [{}] * 5, SIGNED),
        (
            "OCRA-1:HOTP-SHA512-8:QA10-T1M",
            [f"SIG1{number}00000" for number in range(5)],
            [{"time": TIME}] * 5,
            SIGNED_TIMED,
        ),
    ],
)
def test_vectors_of_rfc_6287_pass(
    suite: str, questions: list[str], inputs: list[dict[str, Any]], responses: str
) -> None:
    key = KEYS[suite.split("-")[2]]

    found = [
        read_suite(suite).respond(key, question, **given)
        for question, given in zip(questions, inputs, strict=True)
    ]

    assert found == responses.split()


ALPHABETS = {"A": "09AZaz", "N": "0123456789", "H": "0123456789abcdefABCDEF"}


@st.composite
def responses(draw: st.DrawFn) -> tuple[str, bytes, str, dict[str, Any], dict[str, Any]]:
    """A suite, a key, a question, and the other inputs as this package and as ``oath`` take them.

    Left out is what ``oath`` gets wrong: whole HMACs, and hexadecimal questions of an odd length. It
    hashes the PIN itself, since it fails on a hash, and is given the number of the time step.
    """
    sha, form = draw(st.sampled_from(sorted(KEYS))), draw(st.sampled_from(sorted(ALPHABETS)))
    length = draw(st.integers(4, 64))
    question = draw(st.text(ALPHABETS[form], min_size=2, max_size=length))
    if form == "H":
        question = question[: len(question) // 2 * 2]
    suite, ours, theirs = f"Q{form}{length:02}", dict[str, Any](), dict[str, Any]()
    if (counter := draw(st.none() | st.integers(0, 2**64 - 1))) is not None:
        suite = f"C-{suite}"
        ours["counter"] = theirs["C"] = counter
    if pin := draw(st.sampled_from(["", *KEYS])):
        suite += f"-P{pin}"
        ours["pin_hash"], theirs["P"] = hashlib.new(pin, b"1234").digest(), b"1234"
    if session := draw(st.binary(max_size=512)):
        suite += f"-S{len(session):03}"
        ours["session"] = theirs["S"] = session
    if step := draw(st.sampled_from([None, ("30S", 30), ("1M", 60), ("2H", 7200)])):
        suite += f"-T{step[0]}"
        ours["time"] = draw(st.integers(0, 2**40))
        theirs["T_precomputed"] = ours["time"] // step[1]
    digits = draw(st.integers(4, 10))
    return f"OCRA-1:HOTP-{sha}-{digits}:{suite}", draw(st.binary(min_size=1)), question, ours, theirs


@given(responses())
def test_response_is_that_of_another_implementation(
    drawn: tuple[str, bytes, str, dict[str, Any], dict[str, Any]],
) -> None:
    suite, key, question, ours, theirs = drawn

    found = read_suite(suite).respond(key, question, **ours)

    assert found == str2ocrasuite(suite)(key, Q=question, **theirs)


@given(st.text("0123456789ABCDEF", min_size=64, max_size=64), st.integers(6, 10))
def test_response_to_a_challenge_of_signing_is_that_of_another_implementation(
    challenge: str, digits: int
) -> None:
    suite = f"OCRA-1:HOTP-SHA256-{digits}:QH64"

    found = read_suite(suite).respond(KEYS["SHA256"], challenge)

    assert found == str2ocrasuite(suite)(KEYS["SHA256"], Q=challenge)


def test_message_holds_every_input_in_order() -> None:
    suite = "OCRA-1:HOTP-SHA512-0:C-QH07-PSHA256-S010-T20S"
    question = bytes.fromhex("abcdef10") + bytes(124)
    pin_hash = hashlib.sha256(b"1234").digest()
    message = suite.encode() + b"\0" + bytes([0] * 7 + [5]) + question + pin_hash + b"\0\0\0session"
    message += bytes([0] * 7 + [3])

    found = read_suite(suite).respond(
        KEYS["SHA512"], "ABCDEF1", counter=5, pin_hash=pin_hash, session=b"session", time=79.9
    )

    assert found == hmac.digest(KEYS["SHA512"], message, "sha512").hex()


def test_numeric_question_is_signed_as_a_number() -> None:
    suite = "OCRA-1:HOTP-SHA1-0:QN08"
    message = suite.encode() + b"\0" + bytes.fromhex("bc614e") + bytes(125)

    assert read_suite(suite).respond(b"k" * 20, "12345678") == hmac.digest(b"k" * 20, message, "sha1").hex()


@pytest.mark.parametrize(("step", "seconds"), [("T59S", 59), ("T2M", 120), ("T48H", 172800)])
def test_response_changes_with_the_time_step(step: str, seconds: int) -> None:
    suite = read_suite(f"OCRA-1:HOTP-SHA256-10:QN08-{step}")
    first, last, next_ = (
        suite.respond(KEYS["SHA256"], "1", time=time)
        for time in (7 * seconds, 8 * seconds - 0.001, 8 * seconds)
    )

    assert first == last != next_


def test_response_has_as_many_digits_as_the_suite_says() -> None:
    lengths = {
        digits: {
            len(read_suite(f"OCRA-1:HOTP-SHA256-{digits}:QN08").respond(b"k", str(n))) for n in range(200)
        }
        for digits in range(4, 11)
    }

    assert lengths == {digits: {digits} for digits in range(4, 11)}


def test_response_hides_from_repr() -> None:
    response = read_suite("OCRA-1:HOTP-SHA1-6:QN08").respond(KEYS["SHA1"], "00000000")

    assert "237653" not in repr([response])


NO_SUITES = ["", "ocra-1:hotp-sha1-6:qn08", "OCRA-1:HOTP-SHA1-6:QN08\n", "OCRA-1:HOTP-SHA1-6:QN٠٨"]
NO_SUITES += [f"{start}:QN08" for start in ("OCRA-2:HOTP-SHA1-6", "OCRA-1:TOTP-SHA1-6", "OCRA-1:HOTP-MD5-6")]
NO_SUITES += ["OCRA-1:HOTP-SHA1-3:QN08", "OCRA-1:HOTP-SHA1-11:QN08"]
NO_INPUTS = "C QX08 QN08-C QN08-T1M-PSHA1 QN08-PMD5 QN08-S64 QN08-T1D"
OUT_OF_RANGE = {
    "length must be 04 to 64": ["QN03", "QN65"],
    "must take 001 to 512 bytes": ["QN08-S000", "QN08-S513"],
    "must be 1 to 59S": ["QN08-T0S"],
    "must be 1 to 59M": ["QN08-T60M"],
    "must be 1 to 48H": ["QN08-T0H", "QN08-T49H"],
    "is no OCRA suite: write OCRA-1:HOTP-SHA256-8:QN08": NO_INPUTS.split(),
}


@pytest.mark.parametrize(
    ("cause", "suite"),
    [
        *(("is no OCRA suite", suite) for suite in NO_SUITES),
        *((cause, f"OCRA-1:HOTP-SHA1-6:{inputs}") for cause, inputs in each(OUT_OF_RANGE)),
    ],
)
def test_bad_suite_is_refused_with_the_cure(cause: str, suite: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        read_suite(suite)


@pytest.mark.parametrize(
    ("inputs", "question", "given", "cause"),
    [
        ("QN08", "", {}, "must be 1 to 8 characters"),
        ("QN08", "12a", {}, r"match \[0-9\]\+"),
        ("QN08", "١٢", {}, r"match \[0-9\]\+"),
        ("QA08", "sig-1", {}, r"match \[A-Za-z0-9\]\+"),
        ("QH08", "xyz", {}, r"match \[0-9A-Fa-f\]\+"),
        ("QN08", "1" * 17, {}, "must be 1 to 8 characters"),
        ("C-QN08", "1", {}, "needs counter="),
        ("QN08-PSHA1", "1", {}, "needs pin_hash="),
        ("QN08-S064", "1", {}, "needs session="),
        ("QN08-T1M", "1", {}, "needs time="),
        ("QN08", "1", {"counter": 0}, "takes no counter"),
        ("QN08", "1", {"pin_hash": PIN}, "takes no pin_hash"),
        ("QN08", "1", {"session": b""}, "takes no session"),
        ("QN08", "1", {"time": 0}, "takes no time"),
        ("C-QN08", "1", {"counter": -1}, "counter must be 0 to"),
        ("C-QN08", "1", {"counter": 2**64}, "counter must be 0 to"),
        ("QN08-PSHA256", "1", {"pin_hash": PIN}, "the 32 bytes of the PIN's SHA256"),
        ("QN08-S064", "1", {"session": b"x" * 65}, "64 bytes at most"),
        ("QN08-T1M", "1", {"time": -1}, "seconds since 1970"),
        ("QN08-T1M", "1", {"time": float("nan")}, "seconds since 1970"),
    ],
)
def test_bad_input_is_refused_with_the_cure(
    inputs: str, question: str, given: dict[str, Any], cause: str
) -> None:
    suite = read_suite(f"OCRA-1:HOTP-SHA1-6:{inputs}")

    with pytest.raises(ValueError, match=cause):
        suite.respond(b"k" * 20, question, **given)
