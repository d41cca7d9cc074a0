"""The pages of a customer: ask for a transfer, and see what became of it."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Blueprint, abort, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from flask_wtf import FlaskForm
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from wtforms import Field, HiddenField, SelectField, StringField, ValidationError
from wtforms.validators import InputRequired, Length

from flask_taskflow import KeyReused, Method, Status, TaskNotFound

from .accounts import login_manager, owner
from .amounts import euros, read_euros
from .models import Customer, Transfer, db
from .payments import taskflow

pages = Blueprint("transfers", __name__)


class TransferForm(FlaskForm):
    key = HiddenField(default=lambda: secrets.token_hex(16), validators=[Length(32, 32)])
    receiver = SelectField("To", [InputRequired("Choose who gets the money.")])
    amount = StringField("Amount in EUR", render_kw={"inputmode": "decimal", "autocomplete": "off"})

    def __init__(self) -> None:
        super().__init__()
        others = select(Customer).where(Customer.id != current_user.id).order_by(Customer.name)
        self.customers = {str(each.id): each for each in db.session.scalars(others)}
        names = [(number, each.name) for number, each in self.customers.items()]
        self.receiver.choices = [("", "Choose a customer"), *names]

    def validate_amount(self, field: Field) -> None:
        try:
            self.cents = read_euros(field.data or "")
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if not 0 < self.cents <= current_user.balance:
            raise ValidationError(f"You can send from 0.01 EUR to {euros(current_user.balance)}.")


@pages.before_request
def only_customers() -> Any:
    return None if current_user.is_authenticated else login_manager.unauthorized()


@pages.route("/", methods=["GET", "POST"])
def home() -> ResponseReturnValue:
    form = TransferForm()
    if form.validate_on_submit():
        return ask(form)
    mine = select(Transfer).where(Transfer.sender_id == current_user.id)
    latest = db.session.scalars(mine.order_by(Transfer.asked_at.desc()).limit(20))
    states = [(transfer, state_of(transfer)) for transfer in latest]
    return render_template("home.html", form=form, transfers=states), 422 if form.errors else 200


def ask(form: TransferForm) -> ResponseReturnValue:
    """Lead to the page for the code of the form's one transfer, however often the form was sent."""
    receiver = form.customers[form.receiver.data]
    order = {"sender_id": current_user.id, "receiver_id": receiver.id, "amount": form.cents}
    try:
        task = taskflow.add_task(
            "transfers",
            order,
            allowed_methods=[Method.EMAIL],
            recipient={"email": current_user.email},
            summary=f"Pay {euros(form.cents)} to {receiver.name}",
            owner=owner(),
            key=form.key.data,
            next_url=url_for("transfers.show", form_key=form.key.data),
        )
    except KeyReused:
        flash("You sent this form before, with something else in it. Here is a new one.", "error")
        return redirect(url_for("transfers.home"), 303)
    db.session.merge(Transfer(id=task.id, form_key=form.key.data, **order))
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()  # the same form came twice at the same time: the row is there
    return taskflow.to_page(task)


def state_of(transfer: Transfer) -> str:
    if transfer.booking:
        return "PAID" if transfer.booking.paid else "REFUSED"
    try:
        return taskflow.get_task(transfer.id).status
    except TaskNotFound:
        return Status.EXPIRED


@pages.get("/transfers/<form_key>")
def show(form_key: str) -> ResponseReturnValue:
    # Anybody else's transfer is as unknown as one that never was.
    mine = select(Transfer).where(Transfer.sender_id == current_user.id, Transfer.form_key == form_key)
    transfer = db.session.scalar(mine) or abort(404)
    state = state_of(transfer)
    if state == Status.PENDING:
        return taskflow.to_page(taskflow.get_task(transfer.id))
    return render_template("transfer.html", transfer=transfer, state=state)
