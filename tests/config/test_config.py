"""Every setting, as the page has it: its default, what it takes, what it refuses, what the message says."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import ConfigError, TaskFlow
from flask_taskflow._config.config import PREFIX, Config, read_secrets
from tests.support.cases import each
from tests.support.docs import block
from tests.support.docs import read as read_page

DAY = 86400
KEY = "0123456789abcdef"
DEFAULTS: dict[str, Any] = {item.name.upper(): item.default for item in fields(Config)}
FLAGS = sorted(name for name, value in DEFAULTS.items() if isinstance(value, bool))
INTEGERS = sorted(name for name, value in DEFAULTS.items() if type(value) is int)
DURATIONS = sorted(name for name, value in DEFAULTS.items() if type(value) is float)


def read(**settings: Any) -> Config:
    return Config.read({PREFIX + name: value for name, value in settings.items()})


def page_by_setting() -> dict[str, str]:
    """Return what the page says of each setting, without the prefix."""
    parts = re.split(rf"^### `{PREFIX}(\w+)`$", read_page("config.md"), flags=re.M)
    return {name: text.partition("\n## ")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def literals(text: str, item: str) -> list[Any]:
    """Return the values between backticks in an item of the page; names of settings are none."""
    found = re.search(rf"^- {item}: (.*(?:\n  .*)*)", text, re.M)
    assert found, f"a block has no {item}"
    values = []
    for source in re.findall(r"`([^`]+)`", found[1]):
        try:
            values.append(ast.literal_eval(source))
        except (SyntaxError, ValueError):
            continue
    return values


def test_page_has_each_setting_with_its_default() -> None:
    assert {name: literals(text, "Default") for name, text in page_by_setting().items()} == {
        name: [value] for name, value in DEFAULTS.items()
    }
    assert len(FLAGS + INTEGERS + DURATIONS) == 34
    assert read() == Config() == read(**DEFAULTS)


@pytest.mark.parametrize(("name", "text"), page_by_setting().items())
def test_setting_takes_and_refuses_what_the_page_says(name: str, text: str) -> None:
    takes, refused = literals(text, "Type"), literals(text, "Refused")
    loose = {"ALLOW_WEAK_CODES": True, "RESEND_COOLDOWN": 0, "RESEND_COOLDOWN_MAX": DAY}

    assert takes
    assert len(refused) == 1
    for value in takes:
        read(**{**loose, name: value})
    with pytest.raises(ConfigError, match=PREFIX + name):
        read(**{name: refused[0]})
    numbers = [value for value in takes if type(value) in (int, float)]
    step = 1 if name in INTEGERS else 0.0005
    for beyond in [min(numbers) - step, max(numbers) + step] if numbers else []:
        with pytest.raises(ConfigError, match=PREFIX + name):
            read(**{**loose, name: beyond})


@pytest.mark.parametrize(
    ("shown", "given"),
    [
        (block("config.md", "misspelt"), {"TASK_TLL": 600}),
        (block("config.md", "bad value"), {"TASK_TTL": "600"}),
    ],
    ids=["misspelt", "bad value"],
)
def test_page_quotes_messages(shown: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**given)

    assert str(caught.value) == shown.strip()


NUMBERLESS = [True, False, None, "600", "", float("nan"), float("inf"), -1, 10**400, 10**5000, [600], b"600"]


@pytest.mark.parametrize("name", INTEGERS + DURATIONS)
def test_number_when_it_is_none_or_out_of_range_is_refused(name: str) -> None:
    for value in NUMBERLESS:
        with pytest.raises(ConfigError, match=rf"TASKFLOW_{name} = .* cannot be used: use ") as caught:
            read(**{name: value})

        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_takes_no_fraction_and_no_timedelta(name: str) -> None:
    for value in (6.5, 6.0, timedelta(seconds=6)):
        with pytest.raises(ConfigError, match="use an integer from"):
            read(**{name: value})


@pytest.mark.parametrize("name", DURATIONS)
def test_duration_takes_a_timedelta_and_fractions(name: str) -> None:
    given = DEFAULTS[name] - 0.5

    config = read(**{name: given})

    assert getattr(config, name.lower()) == given
    assert config == read(**{name: timedelta(seconds=given)})
    with pytest.raises(ConfigError, match=f"TASKFLOW_{name} = .*use "):
        read(**{name: timedelta(seconds=-1)})


TAKEN: dict[str, list[Any]] = {
    "QUEUES": [("orders", "mail", "pay.*", "@schedules")],
    "RESEND_POLICY": ["rotate"],
    "SEND": ["background"],
    "KEY_PREFIX": ["shop:task-flow_1.x"],
    "BRIDGE_CHANNEL": ["task_verified", "taskflow"],
    **{name: [True, False] for name in FLAGS},
}
REFUSED: dict[tuple[str, str], list[Any]] = {
    ("QUEUES", "use None for all, or a list of queues' names"): [
        "orders",
        ["a b"],
        ["@a"],
        [1],
        {"orders": 1},
        3,
    ],
    ("RESEND_POLICY", "use 'same' or 'rotate'"): ["Same", "", None, 1, ["same"]],
    ("KEY_PREFIX", "use 1 to 64 letters"): ["", "a" * 65, "{a}", "a b", "a*", "a\n", "ä", 7, None],
    ("BRIDGE_CHANNEL", "use 'task_verified'"): ["", "a b", "a" * 201, "\n", 7, True],
    ("BRIDGE_CHANNEL", "begins like this app's own channels"): ["taskflow:0:bell"],
    **{(name, "use True or False"): [1, 0, None, "True", "yes", []] for name in FLAGS},
}


@pytest.mark.parametrize(("name", "value"), each(TAKEN))
def test_value_that_is_right_is_kept(name: str, value: object) -> None:
    assert getattr(read(**{name: value}), name.lower()) == value


@pytest.mark.parametrize(("setting", "value"), each(REFUSED))
def test_value_of_another_kind_is_refused(setting: tuple[str, str], value: object) -> None:
    name, cure = setting
    with pytest.raises(ConfigError, match=rf"TASKFLOW_{name} = .*{cure}"):
        read(**{name: value})


def test_queues_are_kept_as_a_tuple() -> None:
    assert read(QUEUES=["orders", "mail"]).queues == ("orders", "mail")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTP_LENGHT", "OTP_LENGTH"),
        ("REDIS_URI", "REDIS_URL"),
        ("TASK_TLL", "TASK_TTL"),
        ("otp_ttl", "OTP_TTL"),
        ("TIMEOUT", "JOB_TIMEOUT"),
        *((name, None) for name in ("", "LANGUAGE", "WORKERS", "FRUIT_BASKET_COLOUR")),
    ],
)
def test_misspelt_key_is_refused_with_a_suggestion(name: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: "redis://:hunter2@localhost"})

    cure = f"did you mean TASKFLOW_{meant}?" if meant else "docs/config.md lists them all"
    assert str(caught.value) == f"TASKFLOW_{name} is not a setting of Flask-TaskFlow; {cure}"


def test_keys_of_other_packages_are_ignored() -> None:
    assert Config.read({"TASKFLOWER_X": 1, "REDIS_URL": 2, "SECRET_KEY": KEY}) == read()


def test_config_does_not_show_the_url() -> None:
    config = read(REDIS_URL="redis://:hunter2@localhost/0", OTP_LENGTH=8)

    assert "otp_length=8" in repr(config)
    assert "hunter2" not in repr(config)


@pytest.mark.promise("S33", "S36")
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"OTP_LENGTH": 5}, "TASKFLOW_OTP_LENGTH = 5 makes codes too easy to guess"),
        ({"OTP_TTL": 601}, "TASKFLOW_OTP_TTL = 601 keeps codes alive too long"),
        ({"OTP_TTL": timedelta(minutes=11)}, "TASKFLOW_OTP_TTL = 660 keeps codes alive too long"),
    ],
)
def test_weak_codes_are_refused_unless_allowed(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^{reason}.*TASKFLOW_ALLOW_WEAK_CODES = True"):
        read(**setting)

    assert read(**setting, ALLOW_WEAK_CODES=True).allow_weak_codes


def test_cooldown_longer_than_its_maximum_is_refused() -> None:
    with pytest.raises(ConfigError, match="TASKFLOW_RESEND_COOLDOWN is longer than"):
        read(RESEND_COOLDOWN=601)

    assert read(RESEND_COOLDOWN=601, RESEND_COOLDOWN_MAX=700).resend_cooldown == 601


def from_environment(monkeypatch: pytest.MonkeyPatch, **texts: str) -> Flask:
    for name, text in {"SECRET_KEY": KEY, **texts}.items():
        monkeypatch.setenv(f"FLASK_{name}", text)
    app = Flask("app")
    app.config.from_prefixed_env()
    return app


def test_settings_from_the_environment_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"REDIS_URL": "redis://:hunter2@localhost/1", "TASK_TTL": "900", "POLL": "0.5"}
    texts |= {"EAGER": "true", "OTP_LENGTH": "8", "RESEND_POLICY": "rotate"}
    app = from_environment(monkeypatch, **{PREFIX + name: text for name, text in texts.items()})

    expected: dict[str, Any] = {**texts, "TASK_TTL": 900, "POLL": 0.5, "EAGER": True, "OTP_LENGTH": 8}
    assert Config.read(app.config) == read(**expected)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("EAGER", "True", "in the environment true or false"),
        ("TASK_TTL", "10 minutes", "use 1 to 2592000 seconds, or a timedelta"),
        ("TASK_TTL", "NaN", "use 1 to 2592000 seconds"),
        ("OTP_LENGTH", "six", "use an integer from 1 to 16"),
        ("OTP_LENGHT", "8", "did you mean TASKFLOW_OTP_LENGTH"),
    ],
)
def test_setting_from_the_environment_when_bad_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    app = from_environment(monkeypatch, **{PREFIX + name: text})

    with pytest.raises(ConfigError, match=reason):
        TaskFlow(app)

    assert "taskflow" not in app.extensions


def app_with(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update(config)
    return app


@pytest.mark.parametrize("key", [None, "", b""])
def test_missing_secret_key_is_refused_also_in_tests(key: object) -> None:
    with pytest.raises(ConfigError, match="SECRET_KEY is not set"):
        TaskFlow(app_with(SECRET_KEY=key, TESTING=True))


@pytest.mark.parametrize(
    ("reason", "keys"),
    each(
        {
            "must be a str or bytes": [
                *({"SECRET_KEY": key} for key in (123456789012345678, [KEY], True)),
                *({"SECRET_KEY_FALLBACKS": [key]} for key in (123456789012345678, [KEY], True)),
            ],
            "SECRET_KEY_FALLBACKS must be a list": [
                {"SECRET_KEY_FALLBACKS": fallbacks} for fallbacks in (KEY, KEY.encode(), 7, {KEY: KEY})
            ],
        }
    ),
)
def test_secret_key_of_another_type_is_refused(reason: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_secrets({"SECRET_KEY": KEY, **keys}, lenient=True)


@pytest.mark.parametrize(
    ("keys", "secrets"),
    [
        ({"SECRET_KEY_FALLBACKS": None}, [KEY.encode()]),
        ({"SECRET_KEY_FALLBACKS": []}, [KEY.encode()]),
        ({"SECRET_KEY_FALLBACKS": ()}, [KEY.encode()]),
        ({"SECRET_KEY": "ä" * 8}, [("ä" * 8).encode()]),
        ({"SECRET_KEY_FALLBACKS": ("f" * 16, b"e" * 16)}, [KEY.encode(), b"f" * 16, b"e" * 16]),
    ],
)
def test_secret_key_of_16_bytes_is_enough_and_fallbacks_follow_in_order(
    keys: dict[str, Any], secrets: list[bytes]
) -> None:
    assert read_secrets({"SECRET_KEY": KEY, **keys}, lenient=False) == (secrets, None)


@pytest.mark.parametrize(
    "keys",
    [
        {"SECRET_KEY": "hunter2"},
        {"SECRET_KEY": KEY[:15]},
        {"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": ["hunter2"]},
    ],
)
def test_short_secret_key_is_refused_and_not_shown(keys: dict[str, Any]) -> None:
    app = app_with(**keys)

    with pytest.raises(ConfigError, match="shorter than 16 bytes: make one with") as caught:
        TaskFlow(app)

    assert "hunter2" not in str(caught.value)
    assert "taskflow" not in app.extensions


@pytest.mark.parametrize("mode", ["DEBUG", "TESTING"])
def test_short_secret_key_is_only_a_warning_in_debug_and_testing(mode: str) -> None:
    with pytest.warns(UserWarning, match="shorter than 16 bytes") as caught:
        TaskFlow(app_with(**{"SECRET_KEY": "hunter2", mode: True}))

    assert "hunter2" not in str(caught[0].message)


def test_config_of_the_app_is_left_as_it_is() -> None:
    app = app_with(SECRET_KEY=KEY, TASKFLOW_TASK_TTL=timedelta(minutes=1))
    before = dict(app.config)

    TaskFlow(app)

    assert app.config == before


@pytest.mark.parametrize(
    "value", [{}, [KEY], KEY, {"": KEY}, {1: KEY}, {"new": ""}, {"new": None}, {"new": 1}, {"a\nb": KEY}]
)
def test_keys_that_are_no_names_with_keys_are_refused_and_not_shown(value: object) -> None:
    with pytest.raises(ConfigError, match="TASKFLOW_KEYS cannot be used: use a dict") as caught:
        read(KEYS=value)

    assert KEY not in str(caught.value)


def test_keys_are_kept_in_order_and_not_shown() -> None:
    given = {"2026-11": KEY, "2025-11": KEY.encode()[::-1]}

    assert list(read(KEYS=given).keys or ()) == ["2026-11", "2025-11"]
    assert KEY not in repr(read(KEYS=given))
    assert read_secrets({"TASKFLOW_KEYS": given}, lenient=False) == ([KEY.encode(), KEY.encode()[::-1]], None)


def test_short_key_is_named_and_not_shown() -> None:
    given = {"TASKFLOW_KEYS": {"2026-11": KEY, "2025-11": "hunter2"}}

    with pytest.raises(ConfigError, match=r"TASKFLOW_KEYS\['2025-11'\] is shorter than 16 bytes") as caught:
        read_secrets(given, lenient=False)

    assert "hunter2" not in str(caught.value)
    keys, problem = read_secrets(given, lenient=True)
    assert (keys[1], problem) == (b"hunter2", str(caught.value))


@pytest.mark.parametrize("value", ["hunter2", b"", None, 1])
def test_function_that_returns_no_key_is_named_when_it_is_called(value: Any) -> None:
    keys, problem = read_secrets({"TASKFLOW_KEYS": {"kms": lambda: value}}, lenient=False)
    (fetch,) = keys

    assert problem is None
    assert not isinstance(fetch, bytes)
    with pytest.raises(ConfigError, match=r"TASKFLOW_KEYS\['kms'\]") as caught:
        fetch()
    assert "hunter2" not in str(caught.value)
