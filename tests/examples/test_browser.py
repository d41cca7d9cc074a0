"""The sign-up and the bank in a real browser: the pages that one meets break no rule of axe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from selenium import webdriver
from selenium.webdriver.support.select import Select

from flask_taskflow.testing import Outbox
from tests.examples.banking import PASSWORD
from tests.support.browser import Tab, served, wait_for

EMAIL, PHONE = "ann@example.com", "+12025550110"
LOOKS: dict[str, Callable[[Tab], None]] = {
    "1.4.10 narrow": Tab.narrow,
    "dark": lambda tab: tab.emulate(prefers_color_scheme="dark"),
    "forced colours": lambda tab: tab.emulate(forced_colors="active"),
}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("look", LOOKS)]


class Person(Tab):
    """Somebody who looks at each page."""

    def open(self, path: str, heading: str) -> None:
        self.driver.get(f"{self.origin}{path}")
        self.check(heading)

    def send(self, button: str, **fields: str) -> None:
        """Fill in fields, by their ids, and press a button."""
        for name, text in fields.items():
            field = wait_for(self.driver, f"#{name}")
            field.clear()
            field.send_keys(text)
        pressed = wait_for(self.driver, "main button", button)
        pressed.click()
        self.wait_until_left(pressed)

    def type(self, otp: str) -> None:
        self.send("Confirm", **{"taskflow-otp": otp})


@pytest.fixture
def visit(driver: webdriver.Chrome, pictures: Path, look: str) -> Iterator[Callable[[Flask], Person]]:
    """Return what lets somebody visit an app, in a browser that looks in one way."""
    with ExitStack() as stack:

        def begin(app: Flask) -> Person:
            person = Person(driver, stack.enter_context(served(app)), pictures)
            stack.callback(person.reset)
            LOOKS[look](person)
            return person

        yield begin


def test_pages_of_the_sign_up(
    signup: Flask, visit: Callable[[Flask], Person], taskflow_outbox: Outbox
) -> None:
    ann = visit(signup)
    ann.open("/", "Sign up")
    ann.send("Sign up", email=EMAIL, phone="no number")
    ann.check("Type your code")
    ann.type(taskflow_outbox.last_code(EMAIL))
    wait_for(ann.driver, ".taskflow-problem", "No code can be sent to this address")
    ann.check("Sign up")

    ann.send("Sign up", email=EMAIL, phone=PHONE)
    ann.type(taskflow_outbox.last_code(EMAIL))
    wait_for(ann.driver, "main", "Your telephone number at the Tea House")
    ann.check("Type your code")
    ann.type(taskflow_outbox.last_code(PHONE))
    ann.check("Welcome")


def test_pages_of_the_bank(bank: Flask, visit: Callable[[Flask], Person], taskflow_outbox: Outbox) -> None:
    ann = visit(bank)
    ann.open("/", "Log in")
    ann.send("Log in", name="Ann", password="wrong")
    ann.check("Log in")
    ann.send("Log in", name="Ann", password=PASSWORD)
    ann.check("Your account")

    ann.send("Send money", amount="much")
    ann.check("Your account")
    Select(ann.find("#receiver")).select_by_visible_text("Minh")
    ann.send("Send money", amount="12.50")
    ann.check("Type your code")
    ann.type(taskflow_outbox.last_code(EMAIL))
    wait_for(ann.driver, "main", "12.50")
    ann.check("")

    ann.open("/address", "Where your codes go")
    ann.send("Change it", email="no address")
    ann.check("Where your codes go")
    ann.send("Change it", email="ann@example.org")
    ann.check("Type your code")
    ann.type(taskflow_outbox.last_code(EMAIL))
    wait_for(ann.driver, "main", "ann@example.org")
    ann.check("")
