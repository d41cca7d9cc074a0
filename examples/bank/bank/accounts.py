"""Logging in and out, and the address that codes go to."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, current_user, login_required, login_user, logout_user
from flask_wtf import FlaskForm
from sqlalchemy import select
from werkzeug.security import check_password_hash, generate_password_hash
from wtforms import EmailField, PasswordField, StringField
from wtforms.validators import InputRequired, Regexp

from .models import Customer, db
from .payments import taskflow

pages = Blueprint("accounts", __name__)
login_manager = LoginManager()
login_manager.login_view = "accounts.login"
# Checked for a name that nobody has, so that the time of an answer tells nothing.
NOBODYS_HASH = generate_password_hash("nobody's password")


class LoginForm(FlaskForm):
    name = StringField("Name", [InputRequired()], render_kw={"autocomplete": "username"})
    password = PasswordField("Password", [InputRequired()], render_kw={"autocomplete": "current-password"})


class AddressForm(FlaskForm):
    email = EmailField(
        "New e-mail address",
        [Regexp(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z", message="Write it as ann@example.com.")],
        render_kw={"autocomplete": "email"},
    )


def load_customer(customer_id: str) -> Customer | None:
    return db.session.get(Customer, int(customer_id))


login_manager.user_loader(load_customer)


def owner() -> str:
    """Whose tasks who asks may confirm: as the gate names people who are logged in."""
    return f"user:{current_user.get_id()}"


@pages.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    form = LoginForm()
    if form.validate_on_submit():
        customer = db.session.scalar(select(Customer).where(Customer.name == form.name.data))
        known = check_password_hash(customer.password_hash if customer else NOBODYS_HASH, form.password.data)
        if customer and known:
            login_user(customer)
            return redirect(url_for("transfers.home"), 303)
        flash("This name and this password do not belong together.", "error")
    return render_template("login.html", form=form)


@pages.post("/logout")
def logout() -> ResponseReturnValue:
    logout_user()
    return redirect(url_for("accounts.login"), 303)


@pages.route("/address", methods=["GET", "POST"])
@login_required
def address() -> ResponseReturnValue:
    form = AddressForm()
    if form.validate_on_submit():
        return change_address()
    return render_template("address.html", form=form), 422 if form.errors else 200


@taskflow.requires_confirmation(
    "addresses",
    recipient=lambda: {"email": current_user.email},
    summary=lambda: f"Send my codes to {request.form['email']}",
)
def change_address() -> ResponseReturnValue:
    """Change it: this runs once, after a code that went to the old address."""
    current_user.email = request.form["email"]
    db.session.commit()
    flash(f"Your codes go to {current_user.email} now.", "good")
    return redirect(url_for("transfers.home"), 303)
