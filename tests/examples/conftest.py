"""The apps of the examples, in this process."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask

from examples.bank.bank import create_app
from examples.bank.bank.models import db
from flask_taskflow.testing import Outbox

SIGN_UP = Path(__file__).parents[2] / "examples" / "signup" / "app.py"


def make_app(database: Path, redis_url: str) -> Flask:
    return create_app(
        TESTING=True,
        SECRET_KEY="the key of the bank's tests, long enough",
        SQLALCHEMY_ENGINES={"default": f"sqlite:///{database}"},
        TASKFLOW_EAGER=True,
        TASKFLOW_REDIS_URL=redis_url,
    )


@pytest.fixture(scope="module")
def new_database(taskflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two customers; their passwords take a while to be hashed."""
    path = tmp_path_factory.mktemp("bank") / "new.sqlite"
    app = make_app(path, taskflow_server)
    assert app.test_cli_runner().invoke(args=["init-db"], catch_exceptions=False).exit_code == 0
    with app.app_context():
        db.engine.dispose()
    return path


@pytest.fixture
def bank(taskflow_redis: str, taskflow_outbox: Outbox, new_database: Path, tmp_path: Path) -> Iterator[Flask]:
    database = tmp_path / "bank.sqlite"
    shutil.copy(new_database, database)
    app = make_app(database, taskflow_redis)
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def signup(taskflow_redis: str, taskflow_outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Flask:
    spec = importlib.util.spec_from_file_location("signup_example", SIGN_UP)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "signup_example", module)
    spec.loader.exec_module(module)
    app = module.create_app(TESTING=True, TASKFLOW_EAGER=True, TASKFLOW_REDIS_URL=taskflow_redis)
    return cast(Flask, app)
