"""What a bell says, and what is none."""

from __future__ import annotations

import pytest

from flask_taskflow._store.bells import Bell, read_bell

ID = "a2" * 17


def test_bell_of_a_verification_names_the_task() -> None:
    assert read_bell(f"1 {ID}".encode()) == Bell(ID, None)


def test_bell_of_a_send_names_the_method_too() -> None:
    assert read_bell(f"2 {ID} SMART_OTP".encode()) == Bell(ID, "SMART_OTP")


@pytest.mark.parametrize(
    "message", ["", ID, f"2 {ID}", f"1 {ID} EMAIL", f"3 {ID}", f"1 {ID}\n", f"1 {ID[1:]}", f"2 {ID} email"]
)
def test_message_that_says_something_else_is_no_bell(message: str) -> None:
    assert read_bell(message.encode()) is None
