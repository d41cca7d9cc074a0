"""A small bank whose transfers wait for a one-time code. README.md says how to start it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Flask, Response, render_template
from flask.typing import ResponseReturnValue
from flask_wtf import CSRFProtect
from redis import RedisError

from flask_taskflow import SendLimitReached

from . import accounts, demo, transfers
from .amounts import euros
from .models import db
from .payments import taskflow


def create_app(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_ENGINES={"default": "sqlite:///bank.sqlite"},  # in the instance folder
        SESSION_COOKIE_SAMESITE="Lax",
        TASKFLOW_REDIS_URL="embedded://",
        TASKFLOW_SEND="background",
        TASKFLOW_SMTP_URL="smtp://localhost:1025?starttls=no",
        TASKFLOW_EMAIL_SENDER="Example Bank <codes@bank.example>",
        # Who is logged in may type a code in any browser; `owner` below sees to it that nobody else does.
        TASKFLOW_PAGE_HOLDER=False,
        # As long as dead letters: what was confirmed and waits never looks as if its time had run out.
        TASKFLOW_RETENTION=timedelta(days=30),
    )
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY=..., FLASK_SQLALCHEMY_ENGINES__default=postgresql://...
    app.config.update(settings)

    db.init_app(app)
    taskflow.init_app(app)
    accounts.login_manager.init_app(app)
    CSRFProtect(app)
    for blueprint in (accounts.pages, transfers.pages, demo.commands):
        app.register_blueprint(blueprint)
    codes = taskflow.create_blueprint(routes=["page"], owner=accounts.owner)
    app.register_blueprint(codes, url_prefix="/confirm")
    app.add_template_filter(euros)
    app.after_request(keep_private)
    app.register_error_handler(SendLimitReached, too_many_codes)
    app.register_error_handler(RedisError, try_again)
    return app


def keep_private(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def too_many_codes(error: SendLimitReached) -> ResponseReturnValue:
    text = f"You asked for many codes. Try again in {error.retry_after:.0f} seconds."
    return render_template("later.html", text=text), 429


def try_again(error: Exception) -> ResponseReturnValue:
    return render_template("later.html", text="Please try again in a minute."), 503
