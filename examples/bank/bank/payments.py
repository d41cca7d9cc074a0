"""The codes, and the callback that moves the money. The worker runs it."""

from __future__ import annotations

from flask import current_app
from sqlalchemy import select

from flask_taskflow import EmailStrategy, Method, Task, TaskFlow, current_delivery

from .models import Booking, Customer, db

taskflow = TaskFlow()
taskflow.register_strategy(Method.EMAIL)(EmailStrategy)


@taskflow.on_task_verified(
    "transfers", name="pay", max_attempts=10, backoff_strategy="exponential", backoff_time=2
)
def pay(task: Task[dict[str, int]]) -> None:
    # The task says what was confirmed, under its seal; the database could have been changed since.
    order = task.data
    if db.session.get(Booking, current_delivery.id):
        current_app.logger.warning("Transfer %s was booked by an earlier attempt", task.id)
        return
    booking = Booking(delivery_id=current_delivery.id, transfer_id=task.id, paid=False)
    db.session.add(booking)
    # Before anything is read: a second attempt at the same time waits here, and then fails.
    db.session.flush()
    both = select(Customer).where(Customer.id.in_([order["sender_id"], order["receiver_id"]]))
    # In one order for all, so that two transfers between the same two customers wait, and lock nothing up.
    customers = {each.id: each for each in db.session.scalars(both.order_by(Customer.id).with_for_update())}
    sender, receiver = customers[order["sender_id"]], customers[order["receiver_id"]]
    if sender.balance >= order["amount"]:
        sender.balance -= order["amount"]
        receiver.balance += order["amount"]
        booking.paid = True
    db.session.commit()
