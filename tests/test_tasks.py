"""Tasks and recipients as values, which show little of an address."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_taskflow import Method, Recipient, Status
from flask_taskflow._tasks import mask, mask_all
from tests.support.cases import a_task


def test_task_is_frozen_and_shows_neither_data_nor_addresses() -> None:
    task = a_task()

    with pytest.raises(dataclasses.FrozenInstanceError):
        task.status = Status.SUCCESS  # type: ignore[misc]  # That it is refused is the test.
    assert "transfers" in repr(task)
    assert "fo****@example.com" in repr(task)
    for hidden in ("hunter", "foobar", "2025550110"):
        assert hidden not in f"{task!r}{task}"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_task_survives_a_pickle(protocol: int) -> None:
    task = a_task(verified_at=datetime.now(UTC), verification_method="EMAIL", status=Status.SUCCESS)

    again = pickle.loads(pickle.dumps(task, protocol))  # noqa: S301  # Our own bytes.

    assert again == task == copy.deepcopy(task)
    assert again.status is Status.SUCCESS


def test_methods_and_statuses_are_strings() -> None:
    words = ["EMAIL", "SMS", "SMART_OTP", "PENDING", "SUCCESS", "LOCKED", "EXPIRED", "CANCELLED", "FAILED"]
    words += ["REJECTED"]

    assert json.dumps([*Method, *Status]) == json.dumps(words)
    assert f"{Method.SMS} {Status.LOCKED}" == "SMS LOCKED"


def test_recipient_gives_what_is_there_and_masks_it() -> None:
    recipient = Recipient(email="foobar@example.com", device_id="device-0815")

    assert recipient.addresses() == {"email": "foobar@example.com", "device_id": "device-0815"}
    assert recipient.masked() == {"email": "fo****@example.com", "device_id": "dev****15"}
    assert repr(recipient) == "Recipient(email='fo****@example.com', device_id='dev****15')"
    assert f"{recipient} {[recipient]}".count("foobar") == 0
    assert repr(Recipient()) == "Recipient()"


@pytest.mark.promise("S55")
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
    assert mask(address) == masked
    assert mask_all({"field": address}) == {"field": masked if address else ""}


@given(st.emails())
def test_mask_never_shows_a_whole_name(address: str) -> None:
    name = address.rpartition("@")[0]

    shown = mask(address).partition("****")[0]

    assert name.startswith(shown)
    assert len(shown) < len(name)
    assert len(shown) <= 2
