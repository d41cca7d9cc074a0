"""Logging in and out."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, login_user, logout_user
from flask_wtf import FlaskForm
from sqlalchemy import select
from werkzeug.security import check_password_hash, generate_password_hash
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired

from .models import Customer, db

pages = Blueprint("accounts", __name__)
login_manager = LoginManager()
login_manager.login_view = "accounts.login"
# Checked for a name that nobody has, so that the time of an answer tells nothing.
NOBODYS_HASH = generate_password_hash("nobody's password")


class LoginForm(FlaskForm):
    name = StringField("Name", [InputRequired()], render_kw={"autocomplete": "username"})
    password = PasswordField("Password", [InputRequired()], render_kw={"autocomplete": "current-password"})


def load_customer(customer_id: str) -> Customer | None:
    return db.session.get(Customer, int(customer_id))


login_manager.user_loader(load_customer)


@pages.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    form = LoginForm()
    if form.validate_on_submit():
        customer = db.session.scalar(select(Customer).where(Customer.name == form.name.data))
        known = check_password_hash(customer.password_hash if customer else NOBODYS_HASH, form.password.data)
        if customer and known:
            login_user(customer)
            return redirect(url_for("transfers.home"), 303)
        flash("This name and this password do not belong together.")
    return render_template("login.html", form=form)


@pages.post("/logout")
def logout() -> ResponseReturnValue:
    logout_user()
    return redirect(url_for("accounts.login"), 303)
