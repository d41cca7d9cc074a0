"""Every setting: its default, what it takes, what it refuses, and what the message says."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskflow import ConfigError, TaskFlow
from flask_taskflow._config import Config, read_secrets

DAY = 86400
KEY = "0123456789abcdef"

DEFAULTS: dict[str, Any] = {
    "REDIS_URL": "redis://localhost:6379/0",
    "KEY_PREFIX": "taskflow",
    "REDIS_TIMEOUT": 2,
    "REDIS_MAX_CONNECTIONS": 50,
    "TASK_TTL": 600,
    "RETENTION": DAY,
    "MAX_DATA_SIZE": 65536,
    "OTP_LENGTH": 6,
    "OTP_TTL": 600,
    "OTP_MAX_ATTEMPTS": 5,
    "ALLOW_WEAK_CODES": False,
    "RESEND_POLICY": "same",
    "RESEND_COOLDOWN": 30,
    "RESEND_COOLDOWN_MAX": 600,
    "MAX_SENDS": 5,
    "MAX_RECIPIENT_UPDATES": 3,
    "RECIPIENT_MAX_SENDS": 5,
    "RECIPIENT_WINDOW": 600,
    "RECIPIENT_MAX_FAILURES": 20,
    "RECIPIENT_FAILURE_WINDOW": DAY,
    "JOB_TIMEOUT": 300,
    "CALLBACK_THREADS": 4,
    "LEASE": 30,
    "POLL": 5,
    "MAX_LOST": 3,
    "BACKOFF_MAX": 3600,
    "DRAIN": 20,
    "DEAD_RETENTION": 30 * DAY,
    "QUEUES": None,
    "SEND": "inline",
    "SEND_TIMEOUT": 10,
    "SEND_ATTEMPTS": 3,
    "SEND_BACKOFF": 1,
    "SEND_THREADS": 4,
    "SMTP_URL": None,
    "EMAIL_SENDER": None,
    "SMS_URL": None,
    "PHONE_REGION": None,
    "WEBOTP_HOST": None,
    "LOCALE": "en",
    "AUTOSTART": True,
    "EAGER": False,
}
NUMBERS = {name for name, value in DEFAULTS.items() if isinstance(value, int) and not isinstance(value, bool)}
INTEGERS = {
    "REDIS_MAX_CONNECTIONS",
    "MAX_DATA_SIZE",
    "OTP_LENGTH",
    "OTP_MAX_ATTEMPTS",
    "MAX_SENDS",
    "MAX_RECIPIENT_UPDATES",
    "RECIPIENT_MAX_SENDS",
    "RECIPIENT_MAX_FAILURES",
    "CALLBACK_THREADS",
    "MAX_LOST",
    "SEND_ATTEMPTS",
    "SEND_THREADS",
}
DURATIONS = NUMBERS - INTEGERS
FLAGS = {name for name, value in DEFAULTS.items() if isinstance(value, bool)}


def read(**settings: Any) -> Config:
    return Config.read({f"TASKFLOW_{name}": value for name, value in settings.items()})


def test_settings_are_those_of_the_table() -> None:
    assert {item.name.upper() for item in fields(Config)} == set(DEFAULTS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_setting_when_absent_has_its_default(name: str) -> None:
    value = getattr(read(), name.lower())

    assert value == DEFAULTS[name]
    assert isinstance(value, bool) == (name in FLAGS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_setting_takes_its_own_default(name: str) -> None:
    assert read(**{name: DEFAULTS[name]}) == read()


@pytest.mark.parametrize(
    "value",
    [True, False, None, "600", "", float("nan"), float("inf"), -1, 10**400, 10**5000, [600], b"600"],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_number_when_it_is_none_or_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"TASKFLOW_{name} = .* cannot be used: use ") as caught:
        read(**{name: value})

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["orders", ["a b"], [1], {"orders": 1}, 3])
def test_queues_that_are_no_list_of_names_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="use None for all, or a list of queues' names"):
        read(QUEUES=value)


def test_queues_are_kept_as_a_tuple() -> None:
    assert read(QUEUES=["orders", "mail"]).queues == ("orders", "mail")


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_integer_takes_no_fraction_and_no_timedelta(name: str) -> None:
    for value in (6.5, 6.0, timedelta(seconds=6)):
        with pytest.raises(ConfigError, match="use an integer from"):
            read(**{name: value})


@pytest.mark.parametrize("name", sorted(DURATIONS))
def test_duration_takes_a_timedelta_and_fractions(name: str) -> None:
    given = DEFAULTS[name] - 0.5 if name != "RESEND_COOLDOWN" else 29.5

    config = read(**{name: given})
    same = read(**{name: timedelta(seconds=given)})

    assert getattr(config, name.lower()) == given
    assert config == same


@pytest.mark.parametrize("name", sorted(DURATIONS))
def test_duration_when_a_timedelta_is_negative_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"TASKFLOW_{name} = .*use "):
        read(**{name: timedelta(seconds=-1)})


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("RETENTION", 60, 59.9),
        ("LEASE", 0.5, 0.49),
        ("TASK_TTL", 1, 0),
        ("OTP_TTL", 1, 0),
        ("OTP_MAX_ATTEMPTS", 1, 0),
        ("RESEND_COOLDOWN", 0, -0.1),
        ("DRAIN", 0, -0.1),
        ("MAX_LOST", 0, -1),
        ("MAX_RECIPIENT_UPDATES", 0, -1),
        ("MAX_SENDS", 1, 0),
        ("POLL", 0.05, 0),
        ("REDIS_TIMEOUT", 0.01, 0),
        ("DEAD_RETENTION", 60, 59),
    ],
)
def test_least_value_is_taken_and_less_is_not(name: str, least: float, below: float) -> None:
    assert getattr(read(**{name: least}), name.lower()) == least
    with pytest.raises(ConfigError, match=f"TASKFLOW_{name} = "):
        read(**{name: below})


def test_task_ttl_is_at_most_30_days() -> None:
    assert read(TASK_TTL=timedelta(days=30)).task_ttl == 30 * DAY
    with pytest.raises(ConfigError, match="TASKFLOW_TASK_TTL"):
        read(TASK_TTL=30 * DAY + 1)


@pytest.mark.parametrize("value", [1, 0, None, "True", "yes", []])
@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flag_takes_only_true_and_false(name: str, value: object) -> None:
    assert getattr(read(**{name: True}), name.lower()) is True
    assert getattr(read(**{name: False}), name.lower()) is False
    with pytest.raises(ConfigError, match=f"TASKFLOW_{name} = .*use True or False"):
        read(**{name: value})


@pytest.mark.parametrize("value", ["Same", "", None, 1, ["same"]])
def test_resend_policy_is_one_of_two_words(value: object) -> None:
    assert read(RESEND_POLICY="rotate").resend_policy == "rotate"
    with pytest.raises(ConfigError, match=r"TASKFLOW_RESEND_POLICY = .*use 'same' or 'rotate'"):
        read(RESEND_POLICY=value)


@pytest.mark.parametrize("value", ["", "a" * 65, "{a}", "a b", "a*", "a\n", "ä", 7, None])
def test_key_prefix_when_malformed_is_refused(value: object) -> None:
    assert read(KEY_PREFIX="shop:task-flow_1.x").key_prefix == "shop:task-flow_1.x"
    with pytest.raises(ConfigError, match=r"TASKFLOW_KEY_PREFIX = .*use 1 to 64 letters"):
        read(KEY_PREFIX=value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("TASKFLOW_OTP_LENGHT", "TASKFLOW_OTP_LENGTH"),
        ("TASKFLOW_REDIS_URI", "TASKFLOW_REDIS_URL"),
        ("TASKFLOW_TASK_TLL", "TASKFLOW_TASK_TTL"),
        ("TASKFLOW_otp_ttl", "TASKFLOW_OTP_TTL"),
        ("TASKFLOW_TIMEOUT", "TASKFLOW_JOB_TIMEOUT"),
        ("TASKFLOW_", None),
        ("TASKFLOW_LANGUAGE", None),
        ("TASKFLOW_WORKERS", None),
        ("TASKFLOW_FRUIT_BASKET_COLOUR", None),
    ],
)
def test_misspelt_key_is_refused_with_a_suggestion(key: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read({key: "redis://:hunter2@localhost"})

    cure = f"did you mean {meant}?" if meant else "docs/config.md lists them all"
    assert str(caught.value) == f"{key} is not a setting of Flask-TaskFlow; {cure}"


def test_keys_of_other_packages_are_ignored() -> None:
    assert Config.read({"TASKFLOWER_X": 1, "REDIS_URL": 2, "SECRET_KEY": KEY}) == read()


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost/",
        "redis://:p%40ss@localhost:6380/3",
        "rediss://user:pass@redis.example.com/1?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "unix://:secret@/run/redis.sock",
        "redis://localhost?timeout=3&max_connections=7&socket_timeout=1",
        "redis://[::1]:6379/0",
        "embedded://",
        "embedded:///var/lib/app",
        "redis+cluster://localhost",
        "redis+cluster://ann:p%40ss@a.example.com:6379,b.example.com,[::1]:7000/0?socket_timeout=1",
        "rediss+cluster://a.example.com:6379?ssl_cert_reqs=none",
        "redis+sentinel://localhost/mymaster",
        "redis+sentinel://:p%40ss@a.example.com:26379,b.example.com/my-master/3?socket_timeout=1",
        "redis+sentinel://localhost/mymaster?sentinel_username=ann&sentinel_password=p%40ss",
    ],
)
def test_url_of_each_kind_is_taken(url: str) -> None:
    assert read(REDIS_URL=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@localhost",
        "localhost:6379/hunter2",
        "redis://:hunter2@localhost:port/0",
        "redis://:hunter2@localhost:99999/0",
        "redis://:hunter2@localhost:0/0",
        "redis://:hunter2@localhost/first",
        "redis://:hunter2@localhost/0?db=first",
        "redis://:hunter2@localhost/0?socket_timeout=hunter2",
        "redis://:hunter2@localhost/0?hunter2=1",
        "redis://:hunter2@localhost/0?protocol=9",
        "redis://:12#hunter2@localhost/0",
        "redis://:hunter/2@localhost/0",
        "redis://[hunter2/0",
        "redis+cluster://:hunter2@",
        "redis+cluster://:hunter2@localhost,",
        "redis+cluster://:hunter2@localhost:0",
        "redis+cluster://:hunter2@localhost:port",
        "redis+cluster://:hunter2@localhost/1",
        "redis+cluster://:hunter2@localhost?db=1",
        "redis+cluster://:hunter2@localhost?hunter2=1",
        "redis+cluster://:hunter/2@localhost",
        "redis+sentinel://:hunter2@localhost",
        "redis+sentinel://:hunter2@localhost/",
        "redis+sentinel://:hunter2@localhost/mymaster/first",
        "redis+sentinel://:hunter2@localhost/mymaster?sentinel_hunter2=1",
        "redis+sentinel://:hunter2@localhost/mymaster?hunter2=1",
        "rediss+sentinel://:hunter2@localhost/mymaster",
        "redis+hunter2://localhost",
        "",
        None,
        b"redis://:hunter2@localhost",
        7,
    ],
)
def test_url_when_bad_is_refused_without_its_password(url: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_REDIS_URL cannot be used: ") as caught:
        read(REDIS_URL=url)

    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_config_does_not_show_the_url() -> None:
    config = read(REDIS_URL="redis://:hunter2@localhost/0", OTP_LENGTH=8)

    assert "otp_length=8" in repr(config)
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"OTP_LENGTH": 5}, "TASKFLOW_OTP_LENGTH = 5 makes codes too easy to guess"),
        ({"OTP_TTL": 601}, "TASKFLOW_OTP_TTL = 601 keeps codes alive too long"),
        ({"OTP_TTL": timedelta(minutes=11)}, "TASKFLOW_OTP_TTL = 660 keeps codes alive too long"),
    ],
)
def test_weak_codes_are_refused_unless_allowed(setting: dict[str, Any], reason: str) -> None:
    """S33, S36."""
    with pytest.raises(ConfigError, match=f"^{reason}.*TASKFLOW_ALLOW_WEAK_CODES = True"):
        read(**setting)

    assert read(**setting, ALLOW_WEAK_CODES=True).allow_weak_codes


def test_cooldown_longer_than_its_maximum_is_refused() -> None:
    with pytest.raises(ConfigError, match="TASKFLOW_RESEND_COOLDOWN is longer than"):
        read(RESEND_COOLDOWN=601)

    assert read(RESEND_COOLDOWN=601, RESEND_COOLDOWN_MAX=700).resend_cooldown == 601


def test_settings_from_the_environment_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SECRET_KEY": KEY,
        "TASKFLOW_REDIS_URL": "redis://:hunter2@localhost/1",
        "TASKFLOW_TASK_TTL": "900",
        "TASKFLOW_POLL": "0.5",
        "TASKFLOW_EAGER": "true",
        "TASKFLOW_OTP_LENGTH": "8",
        "TASKFLOW_RESEND_POLICY": "rotate",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"FLASK_{name}", value)
    app = Flask("app")
    app.config.from_prefixed_env()

    config = Config.read(app.config)

    assert config == read(
        REDIS_URL="redis://:hunter2@localhost/1",
        TASK_TTL=900,
        POLL=0.5,
        EAGER=True,
        OTP_LENGTH=8,
        RESEND_POLICY="rotate",
    )


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
    monkeypatch.setenv("FLASK_SECRET_KEY", KEY)
    monkeypatch.setenv(f"FLASK_TASKFLOW_{name}", text)
    app = Flask("app")
    app.config.from_prefixed_env()

    with pytest.raises(ConfigError, match=reason):
        TaskFlow(app)

    assert "taskflow" not in app.extensions


@pytest.mark.parametrize("key", [None, "", b""])
def test_missing_secret_key_is_refused_also_in_tests(key: object) -> None:
    app = Flask("app")
    app.config.update(SECRET_KEY=key, TESTING=True)

    with pytest.raises(ConfigError, match="SECRET_KEY is not set"):
        TaskFlow(app)


@pytest.mark.parametrize("key", [123456789012345678, ["0123456789abcdef"], True])
def test_secret_key_of_another_type_is_refused(key: object) -> None:
    for mapping in ({"SECRET_KEY": key}, {"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": [key]}):
        with pytest.raises(ConfigError, match="must be a str or bytes"):
            read_secrets(mapping, lenient=True)


@pytest.mark.parametrize("fallbacks", ["0123456789abcdef", b"0123456789abcdef", 7, {KEY: KEY}])
def test_fallbacks_that_are_no_list_are_refused(fallbacks: object) -> None:
    with pytest.raises(ConfigError, match="SECRET_KEY_FALLBACKS must be a list"):
        read_secrets({"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": fallbacks}, lenient=True)


@pytest.mark.parametrize("fallbacks", [None, [], ()])
def test_secret_key_of_16_bytes_is_enough(fallbacks: object) -> None:
    assert read_secrets({"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": fallbacks}, lenient=False) == (
        [KEY.encode()],
        None,
    )


def test_secret_key_is_counted_in_bytes() -> None:
    assert read_secrets({"SECRET_KEY": "ä" * 8}, lenient=False)[1] is None


def test_fallbacks_follow_the_key_in_order() -> None:
    old, older = "f" * 16, b"e" * 16

    keys, _ = read_secrets({"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": (old, older)}, lenient=False)

    assert keys == [KEY.encode(), old.encode(), older]


@pytest.mark.parametrize(
    "keys",
    [
        {"SECRET_KEY": "hunter2"},
        {"SECRET_KEY": KEY[:15]},
        {"SECRET_KEY": KEY, "SECRET_KEY_FALLBACKS": ["hunter2"]},
    ],
)
def test_short_secret_key_is_refused_and_not_shown(keys: dict[str, Any]) -> None:
    app = Flask("app")
    app.config.update(keys)

    with pytest.raises(ConfigError, match="shorter than 16 bytes: make one with") as caught:
        TaskFlow(app)

    assert "hunter2" not in str(caught.value)
    assert "taskflow" not in app.extensions


@pytest.mark.parametrize("mode", ["DEBUG", "TESTING"])
def test_short_secret_key_is_only_a_warning_in_debug_and_testing(mode: str) -> None:
    app = Flask("app")
    app.config.update({"SECRET_KEY": "hunter2", mode: True})

    with pytest.warns(UserWarning, match="shorter than 16 bytes") as caught:
        TaskFlow(app)

    assert "hunter2" not in str(caught[0].message)


def test_config_of_the_app_is_left_as_it_is() -> None:
    app = Flask("app")
    app.config.update(SECRET_KEY=KEY, TASKFLOW_TASK_TTL=timedelta(minutes=1))
    before = dict(app.config)

    TaskFlow(app)

    assert app.config == before
