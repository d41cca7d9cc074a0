"""The sign-up example: an e-mail address, then a telephone number, then an account."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_taskflow.testing import Outbox
from tests.support.tasks import other

EMAIL, PHONE = "ann@example.com", "+12025550110"
FORM = {"email": EMAIL, "phone": PHONE}
OWN = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def client(signup: Flask) -> FlaskClient:
    return signup.test_client()


def type_code(client: FlaskClient, page: str, method: str, otp: str) -> Any:
    return client.post(page, data={"method": method, "otp": otp}, headers=OWN)


def test_two_codes_make_an_account(client: FlaskClient, taskflow_outbox: Outbox) -> None:
    assert client.get("/account").status_code == 302
    page = client.post("/signup", data=FORM, headers=OWN).location
    assert "Tea House" in client.get(page).text
    assert type_code(client, page, "EMAIL", other(taskflow_outbox.last_code(EMAIL))).status_code == 400
    type_code(client, page, "EMAIL", taskflow_outbox.last_code(EMAIL))
    page = client.get(f"{page}/replay", headers=OWN).location
    assert "Your telephone number at the Tea House" in client.get(page).text
    welcome = type_code(client, page, "SMS", taskflow_outbox.last_code(PHONE)).location

    assert "ann@example.com and +12025550110 are yours" in client.get(welcome, follow_redirects=True).text
    assert client.post("/logout").status_code == 303
    assert client.get("/welcome").location == "/account"


def test_account_has_the_number_that_was_confirmed(client: FlaskClient, taskflow_outbox: Outbox) -> None:
    page = client.post("/signup", data=FORM, headers=OWN).location
    type_code(client, page, "EMAIL", taskflow_outbox.last_code(EMAIL))
    page = client.get(f"{page}/replay", headers=OWN).location
    corrected = "+12025550111"
    client.post(page, data={"action": "correct", "phone_number": corrected}, headers=OWN)
    welcome = type_code(client, page, "SMS", taskflow_outbox.last_code(corrected)).location

    assert f"{EMAIL} and {corrected} are yours" in client.get(welcome, follow_redirects=True).text


@pytest.mark.parametrize(("field", "status"), [("email", 422), ("phone", 422)])
def test_address_that_is_none_is_refused_in_words(
    client: FlaskClient, taskflow_outbox: Outbox, field: str, status: int
) -> None:
    answer = client.post("/signup", data={**FORM, field: "no"}, headers=OWN)
    if field == "phone":
        type_code(client, answer.location, "EMAIL", taskflow_outbox.last_code(EMAIL))
        answer = client.get(f"{answer.location}/replay", headers=OWN)

    assert answer.status_code == status
    assert "No code can be sent to this address" in answer.text
