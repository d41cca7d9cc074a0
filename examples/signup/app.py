"""A sign-up that confirms an e-mail address, then a telephone number, on pages with the app's own look.

    flask --app examples/signup/app.py run --debug     # the terminal shows the codes

There is nothing to configure: the server is embedded, and accounts live in memory.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user

from flask_taskflow import (
    ConsoleStrategy,
    InvalidTask,
    Method,
    SendLimitReached,
    Task,
    TaskFlow,
    TaskNotFound,
)

taskflow = TaskFlow()
taskflow.register_strategy(Method.EMAIL)(ConsoleStrategy)  # prints codes: for development
taskflow.register_strategy(Method.SMS)(ConsoleStrategy)
login_manager = LoginManager()
login_manager.login_view = "index"


class Account(UserMixin):
    def __init__(self, email: str, phone: str) -> None:
        self.id, self.phone = email, phone


accounts: dict[str, Account] = {}
login_manager.user_loader(accounts.get)


def index(problem: str = "") -> str:
    return render_template("index.html", problem=problem)


# The view waits for the code of the e-mail, and sees the form as it was sent then.
@taskflow.requires_confirmation(
    "signup-email",
    recipient=lambda: {"email": request.form["email"]},
    summary=lambda: "Your e-mail address at the Tea House",
)
def sign_up() -> ResponseReturnValue:
    task = taskflow.add_task(
        "signup",
        {"email": request.form["email"]},
        allowed_methods=[Method.SMS],
        recipient={"phone_number": request.form["phone"]},
        summary="Your telephone number at the Tea House",
        holder=True,
        next_url=url_for("welcome"),
    )
    session["signup"] = task.id
    return taskflow.to_page(task)


# The account must come to be, whatever happens to this process: that is a callback's.
@taskflow.on_task_verified("signup", max_attempts=5)
def create_account(task: Task[Any]) -> None:
    # The number may have been corrected on the page: it is the task's that was confirmed.
    phone = str(task.recipient.phone_number)
    accounts.setdefault(task.data["email"], Account(task.data["email"], phone))


def welcome() -> ResponseReturnValue:
    try:
        task = taskflow.get_task(session.pop("signup", ""))
    except TaskNotFound:
        return redirect(url_for("account"), 303)
    if task.status != "SUCCESS":
        return redirect(url_for("index"), 303)
    create_account(task)  # where it was not done yet: the second time does nothing
    login_user(accounts[task.data["email"]])
    return redirect(url_for("account"), 303)


@login_required
def account() -> str:
    return render_template("account.html", account=current_user)


def log_out() -> ResponseReturnValue:
    logout_user()
    return redirect(url_for("index"), 303)


def refuse_address(error: InvalidTask) -> tuple[str, int]:
    return index("No code can be sent to this address. Look at each character."), 422


def refuse_for_now(error: SendLimitReached) -> tuple[str, int]:
    return index(f"Many codes were sent there. Try again in {error.retry_after:.0f} seconds."), 429


def create_app(**settings: Any) -> Flask:
    app = Flask(__name__)
    # Everybody has this key: it is fit for trying out on your own machine, and for nothing else.
    app.config["SECRET_KEY"] = "the key of the sign-up example, known to all"
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", TASKFLOW_REDIS_URL="embedded://")
    app.config.update(TASKFLOW_CORRECTABLE=["phone_number"])  # the address is what is confirmed here
    app.config.from_prefixed_env()
    app.config.update(settings)
    taskflow.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(taskflow.create_blueprint(routes=["page"]), url_prefix="/confirm")
    app.register_error_handler(InvalidTask, refuse_address)
    app.register_error_handler(SendLimitReached, refuse_for_now)
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/signup", view_func=sign_up, methods=["POST"])
    for rule, view in (("/welcome", welcome), ("/account", account)):
        app.add_url_rule(rule, view_func=view)
    app.add_url_rule("/logout", view_func=log_out, methods=["POST"])
    return app
