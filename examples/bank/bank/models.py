"""What the database keeps: customers with their money, what they asked for, and what became of it."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from flask_login import UserMixin
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import CheckConstraint, Engine, ForeignKey, UniqueConstraint, event, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

db = SQLAlchemy()


class Base(DeclarativeBase):
    pass


class Customer(UserMixin, Base):
    __tablename__ = "customer"
    __table_args__ = (CheckConstraint("balance >= 0", name="balance_not_negative"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    password_hash: Mapped[str]
    balance: Mapped[int]  # in cents, as every amount here


class Transfer(Base):
    """What a customer asked for; it is never changed."""

    __tablename__ = "transfer"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("sender_id <> receiver_id", name="two_customers"),
        UniqueConstraint("sender_id", "form_key", name="one_transfer_a_form"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # the task's
    sender_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))
    receiver_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))
    amount: Mapped[int]
    form_key: Mapped[str]
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())
    receiver: Mapped[Customer] = relationship(foreign_keys=[receiver_id])
    booking: Mapped[Booking | None] = relationship()


class Booking(Base):
    """What became of a confirmed transfer; a delivery can write it once."""

    __tablename__ = "booking"

    delivery_id: Mapped[str] = mapped_column(primary_key=True)
    transfer_id: Mapped[str] = mapped_column(ForeignKey("transfer.id"), unique=True)
    paid: Mapped[bool]  # or refused
    booked_at: Mapped[datetime] = mapped_column(server_default=func.now())


@event.listens_for(Engine, "connect")
def enforce_foreign_keys(connection: Any, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA foreign_keys = ON")
