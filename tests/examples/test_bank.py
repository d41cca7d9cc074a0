"""The example bank as its customers meet it, by the testing kit; its processes are in ``test_bank_fleet``."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from examples.bank.bank.amounts import euros, read_euros
from examples.bank.bank.models import Customer, Transfer, db
from flask_taskflow import Reject
from flask_taskflow.testing import Outbox
from tests.examples.banking import Browser, by_client
from tests.support.tasks import other

ANN, MINH = "ann@example.com", "minh@example.com"
WITHIN = 60.0


@pytest.fixture
def ann(bank: Flask) -> Browser:
    return Browser(by_client(bank)).log_in("Ann")


def balances(app: Flask) -> list[int]:
    with app.app_context():
        return list(db.session.scalars(select(Customer.balance).order_by(Customer.name)))


def test_transfer_when_confirmed_moves_the_money_once(
    bank: Flask, ann: Browser, taskflow_outbox: Outbox
) -> None:
    transfer = ann.order("Minh", "250,50 €")
    page = ann.url
    assert "Pay 250.50 EUR to Minh" in ann.page
    assert ann.state(transfer) == "PENDING"

    for _ in range(2):
        ann.get(page).type(taskflow_outbox.last_code(ANN))

    assert "Done" in ann.get(transfer).page
    assert ann.state(transfer) == "PAID"
    assert balances(bank) == [749_50, 1250_50]
    assert "749.50 EUR" in ann.page


def test_transfers_when_the_money_is_enough_for_one_pay_one_and_refuse_the_other(
    bank: Flask, ann: Browser, taskflow_outbox: Outbox
) -> None:
    asked = [(ann.order("Minh", "800"), ann.url, taskflow_outbox.last_code(ANN)) for _ in range(2)]
    for _, page, code in asked:
        ann.get(page).type(code)

    assert [ann.state(transfer) for transfer, _, _ in asked] == ["PAID", "REFUSED"]
    assert balances(bank) == [200_00, 1800_00]


@pytest.mark.parametrize(
    ("how", "state"),
    [("withdraw", "CANCELLED"), ("reject", "REJECTED"), ("mistype", "LOCKED"), ("wait", "EXPIRED")],
)
def test_transfer_that_is_not_confirmed_says_so_in_the_list(
    bank: Flask,
    ann: Browser,
    taskflow_outbox: Outbox,
    taskflow_travel: Callable[[float], None],
    how: str,
    state: str,
) -> None:
    transfer = ann.order("Minh", "10")
    code = taskflow_outbox.last_code(ANN)
    if how == "mistype":
        for _ in range(5):
            ann.type(other(code))
    elif how == "wait":
        taskflow_travel(3600)
    else:
        ann.type(code if how == "reject" else "", action="reject")

    ann.get(transfer).type(code)

    assert ann.state(transfer) == state
    assert balances(bank) == [1000_00, 1000_00]


def test_transfer_whose_code_no_mail_server_takes_has_failed(ann: Browser, taskflow_outbox: Outbox) -> None:
    taskflow_outbox.fail(Reject("no such mailbox"))

    transfer = ann.order("Minh", "10")

    assert "the code could not be sent" in ann.get(transfer).page
    assert ann.state(transfer) == "FAILED"


def test_transfer_of_another_customer_is_unknown(bank: Flask, ann: Browser, taskflow_outbox: Outbox) -> None:
    transfer = ann.order("Minh", "10")
    page, code = ann.url, taskflow_outbox.last_code(ANN)
    minh, stranger = Browser(by_client(bank)).log_in("Minh"), Browser(by_client(bank))

    assert [minh.get(place).status for place in (transfer, page)] == [404, 404]
    assert minh.get("/").post(page, otp=code).status == 404
    assert stranger.get(transfer).url == "/login"
    assert stranger.post(page, otp=code).status == 404
    # Ann may type it in another browser of hers.
    elsewhere = Browser(by_client(bank)).log_in("Ann").get(transfer)
    assert elsewhere.type(code).url == transfer
    assert ann.state(transfer) == "PAID"


def test_form_when_sent_twice_at_once_makes_one_transfer(bank: Flask, taskflow_outbox: Outbox) -> None:
    browsers = [Browser(by_client(bank)).log_in("Ann") for _ in range(2)]
    key = re.findall(r'name="key"[^>]* value="(\w+)"', browsers[0].page)[0]
    together = threading.Barrier(2)

    def send(browser: Browser) -> str:
        together.wait(WITHIN)
        return browser.fill_in("Minh", "10", key=key).url

    with ThreadPoolExecutor() as pool:
        shown = set(pool.map(send, browsers))
    shown.add(browsers[0].get("/").fill_in("Minh", "10", key=key).url)
    browsers[0].get("/").fill_in("Minh", "20", key=key)

    assert len(shown) == len(taskflow_outbox) == 1
    assert "You sent this form before" in browsers[0].page
    with bank.app_context():
        (transfer,) = db.session.scalars(select(Transfer))
        assert shown == {f"/confirm/tasks/{transfer.id}"}


def test_address_changes_by_a_code_that_goes_to_the_old_one(
    bank: Flask, ann: Browser, taskflow_outbox: Outbox
) -> None:
    assert ann.get("/address").post("/address", email="ann").status == 422
    assert not taskflow_outbox
    ann.post("/address", email="ann@new.example")
    assert "Send my codes to ann@new.example" in ann.page
    page, code = ann.url, taskflow_outbox.last_code(ANN)
    assert "ann@new.example" not in ann.get("/").page
    assert Browser(by_client(bank)).log_in("Ann").get(page).status == 404, "it is held by one browser"

    ann.get(page).type(code).get(f"{page}/replay")

    assert 'class="message good" role="status">Your codes go to ann@new.example now.' in ann.page
    ann.order("Minh", "10")
    assert taskflow_outbox[-1].addresses == ("ann@new.example",)


@pytest.mark.slow
def test_customer_who_asks_for_many_codes_is_told_to_wait(ann: Browser) -> None:
    for _ in range(5):
        ann.order("Minh", "1")

    ann.get("/").fill_in("Minh", "1")

    assert ann.status == 429
    assert re.search(r"Try again in \d+ seconds", ann.page)


REFUSED_FORMS = [
    ("", "1", "Choose who gets the money."),
    ("nobody", "1", "Not a valid choice"),
    ("1", "1", "Not a valid choice"),  # Ann herself
    ("Minh", "", "Write the amount in digits"),
    ("Minh", "1,000", "1,000 can be read in two ways."),
    ("Minh", "0.00", "You can send from 0.01 EUR to 1000.00 EUR."),
    ("Minh", "1.000,01", "You can send from 0.01 EUR to 1000.00 EUR."),
]


def test_form_that_cannot_be_right_is_refused_in_words(ann: Browser) -> None:
    for receiver, amount, told in REFUSED_FORMS:
        ann.get("/").fill_in(receiver, amount)

        assert (ann.status, ann.url) == (422, "/")
        assert told in ann.page
        assert re.search(r'<(input|select)[^>]* aria-invalid="true"[^>]* autofocus', ann.page)


def test_form_of_another_site_is_refused(ann: Browser) -> None:
    assert ann.get("/").fill_in("Minh", "1", csrf_token="").status == 400


def test_first_field_of_each_form_has_the_focus(ann: Browser) -> None:
    for path, field in (("/", "receiver"), ("/address", "email")):
        assert re.findall(r'autofocus[^>]* id="(\w+)"', ann.get(path).page) == [field]
    assert re.findall(r'autofocus[^>]* id="(\w+)"', ann.get("/").post("/logout").page) == ["name"]


AMOUNTS = {
    250_00: ["250", "250.00", "250,0", " 250 EUR", "€250", "eur 250", "250 €", "250,-"],
    1000_50: ["1000,50", "1,000.50", "1.000,50", "1 000,5", "1\u202f000,50 €", "1'000.50", "1’000.50"],
    1_234_567_00: ["1,234,567", "1.234.567", "1 234 567.00"],
}
NONE = ["", "-1", "1e2", "NaN", "\u0663", "0.001", "10,", "$10", "1,000,50", "1.000.00", "1,00,000", "1,0000"]


@pytest.mark.parametrize(("cents", "texts"), AMOUNTS.items())
def test_amount_as_people_write_it_is_understood(cents: int, texts: list[str]) -> None:
    assert {text: read_euros(text) for text in texts} == dict.fromkeys(texts, cents)


@pytest.mark.parametrize("text", [*NONE, "9" * 30])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="in digits"):
        read_euros(text)


@pytest.mark.parametrize("text", ["1,000", "1.000", "12.345 €", "EUR 999,999"])
def test_amount_that_could_be_two_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(ValueError, match="two ways") as told:
        read_euros(text)

    way_out = re.findall(r"write (\d+) or (\S+)\.$", str(told.value))[0]
    assert euros(read_euros(way_out[0])) == euros(read_euros(way_out[1]))


def test_database_refuses_a_balance_below_zero(bank: Flask) -> None:
    with bank.app_context():
        ann = db.session.scalars(select(Customer)).first()
        assert ann
        ann.balance = -1
        with pytest.raises(IntegrityError, match="balance_not_negative"):
            db.session.commit()
