"""The pages of a customer: ask for a transfer, type its code, see what became of it."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from flask_wtf import FlaskForm
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from wtforms import Field, HiddenField, StringField, ValidationError
from wtforms.validators import InputRequired, Length, Regexp

from flask_taskflow import (
    CodeExpired,
    InvalidCode,
    Method,
    OTPRejected,
    ResendTooSoon,
    SendLimitReached,
    Status,
    TaskNotFound,
    WrongCode,
)

from .accounts import login_manager
from .models import Customer, Transfer, db, euros
from .payments import taskflow

pages = Blueprint("transfers", __name__)


class TransferForm(FlaskForm):
    key = HiddenField(default=lambda: secrets.token_hex(16), validators=[Length(32, 32)])
    receiver = StringField("To", [InputRequired()])
    amount = StringField(
        "Amount in EUR", [Regexp(r"[0-9]{1,7}(\.[0-9]{2})?\Z", message="Write it as 250 or 250.00.")]
    )

    def validate_receiver(self, field: Field) -> None:
        others = select(Customer).where(Customer.id != current_user.id)
        customer = db.session.scalar(others.where(Customer.name == field.data))
        if customer is None:
            raise ValidationError("We have no other customer of this name.")
        self.customer = customer

    def validate_amount(self, field: Field) -> None:
        if not field.errors:
            self.cents = int(Decimal(field.data) * 100)
            if not 0 < self.cents <= current_user.balance:
                raise ValidationError(f"You can send from 0.01 EUR to {euros(current_user.balance)}.")


@pages.before_request
def only_customers() -> Any:
    return None if current_user.is_authenticated else login_manager.unauthorized()


@pages.route("/", methods=["GET", "POST"])
def home() -> ResponseReturnValue:
    form, status = TransferForm(), 200
    if form.validate_on_submit():
        try:
            return redirect(url_for("transfers.show", transfer_id=ask(form)), 303)
        except SendLimitReached as error:
            flash(f"You asked for many codes. Try again in {error.retry_after:.0f} seconds.")
            status = 429
    mine = select(Transfer).where(Transfer.sender_id == current_user.id)
    latest = db.session.scalars(mine.order_by(Transfer.asked_at.desc()).limit(20)).all()
    return render_template("home.html", form=form, transfers=latest), 422 if form.errors else status


def ask(form: TransferForm) -> str:
    """Return the id of the form's one transfer, however often the form was sent."""
    same = select(Transfer.id).where(
        Transfer.sender_id == current_user.id, Transfer.form_key == form.key.data
    )
    if known := db.session.scalar(same):
        return known
    order = {"sender_id": current_user.id, "receiver_id": form.customer.id, "amount": form.cents}
    task = taskflow.add_task(
        "transfers",
        order,
        allowed_methods=[Method.EMAIL],
        recipient={"email": current_user.email},
        summary=f"Pay {euros(form.cents)} to {form.customer.name}",
    )
    db.session.add(Transfer(id=task.id, form_key=form.key.data, **order))
    try:
        db.session.commit()
    except IntegrityError:
        # The same form came twice at the same time, and the other one was first.
        db.session.rollback()
        taskflow.cancel_task(task.id)
        return db.session.scalars(same).one()
    return task.id


def own_transfer(transfer_id: str) -> Transfer:
    """Return a transfer of this customer; anybody else's is as unknown as one that never was."""
    mine = select(Transfer).where(Transfer.sender_id == current_user.id)
    return db.session.scalar(mine.where(Transfer.id == transfer_id)) or abort(404)


def state_of(transfer: Transfer) -> str:
    if transfer.booking:
        return "PAID" if transfer.booking.paid else "REFUSED"
    try:
        return taskflow.get_task(transfer.id).status
    except TaskNotFound:
        return Status.EXPIRED


@pages.get("/transfers/<transfer_id>")
def show(transfer_id: str) -> str:
    transfer = own_transfer(transfer_id)
    return render_template("transfer.html", transfer=transfer, state=state_of(transfer))


@pages.post("/transfers/<transfer_id>/verify")
def verify(transfer_id: str) -> ResponseReturnValue:
    transfer = own_transfer(transfer_id)
    try:
        taskflow.verify(transfer.id, Method.EMAIL, request.form.get("code", ""))
    except InvalidCode:
        flash("Type the 6 digits of the code.")
    except WrongCode as error:
        flash(f"This is not the code. Tries left: {error.attempts_left}.")
    except CodeExpired:
        flash("This code is too old. Have it sent again.")
    except OTPRejected:
        pass  # it is over already, and the page says how
    return redirect(url_for("transfers.show", transfer_id=transfer.id), 303)


@pages.post("/transfers/<transfer_id>/resend")
def resend(transfer_id: str) -> ResponseReturnValue:
    transfer = own_transfer(transfer_id)
    try:
        taskflow.resend_otp(transfer.id, Method.EMAIL)
        flash("The code is on its way.")
    except (ResendTooSoon, SendLimitReached) as error:
        flash(f"Not yet. Try again in {error.retry_after:.0f} seconds.")
    except OTPRejected:
        pass
    return redirect(url_for("transfers.show", transfer_id=transfer.id), 303)
