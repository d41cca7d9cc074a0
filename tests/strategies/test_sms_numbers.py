"""Telephone numbers that SMS takes: of countries that are served, and whose owners do not earn by it."""

from __future__ import annotations

from typing import Any

import phonenumbers
import pytest

from flask_taskflow import ConfigError, InvalidTask, Method, OutboxStrategy, SMSStrategy, TaskFlow
from flask_taskflow.testing import outbox
from tests.conftest import MakeApp

COSTLY = (phonenumbers.PhoneNumberType.PREMIUM_RATE, phonenumbers.PhoneNumberType.SHARED_COST)


@pytest.fixture(autouse=True)
def texting(taskflow: TaskFlow) -> None:
    taskflow.register_strategy(Method.SMS)(SMSStrategy)


def kept(taskflow: TaskFlow, number: str) -> str | None:
    with outbox(taskflow):
        task = taskflow.add_task("q", allowed_methods=["SMS"], recipient={"phone_number": number})
    return task.recipient.phone_number


@pytest.mark.parametrize("kind", COSTLY, ids=["premium rate", "shared cost"])
def test_number_whose_owner_earns_is_refused_in_every_country(make_app: MakeApp, kind: int) -> None:
    strategy = SMSStrategy()
    examples = [
        phonenumbers.example_number_for_type(region, kind) for region in phonenumbers.SUPPORTED_REGIONS
    ]
    numbers = [phonenumbers.format_number(found, 0) for found in examples if found is not None]

    with make_app().app_context():
        for number in numbers:
            if phonenumbers.number_type(phonenumbers.parse(number)) == kind:
                with pytest.raises(InvalidTask, match="premium-rate number"):
                    strategy.normalise(number)

    assert len(numbers) > 20


@pytest.mark.parametrize("number", ["+979 123 456 789", "+1 (900) 555-1234", "+84 1900 1234"])
def test_premium_number_makes_no_task(make_app: MakeApp, taskflow: TaskFlow, number: str) -> None:
    with make_app(eager=True).app_context(), pytest.raises(InvalidTask, match="premium-rate") as caught:
        kept(taskflow, number)

    assert number not in str(caught.value)


@pytest.mark.parametrize(
    ("countries", "number", "taken"),
    [
        (["US"], "+1 415 555 2671", True),
        (["US"], "+1 416 555 2671", False),
        (["CA"], "+1 416 555 2671", True),
        (["US", "VN"], "+84 901 234 567", True),
        (["GB"], "+44 7400 123456", True),
        (["GB"], "+44 7781 123456", False),
        (["GG"], "+44 7781 123456", True),
        (["RU"], "+7 701 234 5678", False),
        (["KZ"], "+7 701 234 5678", True),
        (["US"], "+800 1234 5678", False),
        (None, "+800 1234 5678", True),
    ],
)
def test_countries_that_are_served_are_told_by_number(
    make_app: MakeApp, taskflow: TaskFlow, countries: list[str] | None, number: str, taken: bool
) -> None:
    with make_app(eager=True, phone_countries=countries).app_context():
        if taken:
            assert kept(taskflow, number) == number.replace(" ", "")
        else:
            with pytest.raises(InvalidTask, match="a country that TASKFLOW_PHONE_COUNTRIES lacks"):
                kept(taskflow, number)


@pytest.mark.parametrize("value", ["VN", [], ["Vietnam"], ["vn"], [84], {"VN": 1}, 7])
def test_countries_that_are_no_list_are_refused(make_app: MakeApp, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_PHONE_COUNTRIES = .*use None for all, or a list"):
        make_app(phone_countries=value)


@pytest.mark.parametrize("settings", [{"phone_region": "UK"}, {"phone_countries": ["VN", "UK"]}])
def test_rehearsal_tells_of_a_country_that_is_none(make_app: MakeApp, settings: dict[str, Any]) -> None:
    app = make_app(sms_url="json://localhost/?:to={to}", **settings)

    with app.app_context(), pytest.raises(ConfigError, match="UK has no telephone numbers"):
        SMSStrategy().rehearse()


@pytest.mark.parametrize("number", ["tel:+84901234567", "(12", "{to}", "+84901234567&to=1", "1,2,3"])
def test_strategy_that_reads_no_numbers_gets_only_plain_ones(
    make_app: MakeApp, taskflow: TaskFlow, number: str
) -> None:
    box = OutboxStrategy()
    taskflow.register_strategy(Method.SMS)(box)

    with (
        make_app(eager=True).app_context(),
        pytest.raises(InvalidTask, match="phone_number is not usable as an address"),
    ):
        taskflow.add_task("q", allowed_methods=["SMS"], recipient={"phone_number": number})

    assert box.messages == []
