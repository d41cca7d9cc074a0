"""Two customers to try the bank with: not for production."""

from __future__ import annotations

import click
from flask import Blueprint
from sqlalchemy import select
from werkzeug.security import generate_password_hash

from .models import Base, Customer, db

commands = Blueprint("demo", __name__, cli_group=None)
PASSWORD = "correct horse"


@commands.cli.command("init-db")
def init_db() -> None:
    """Make the tables, and two customers, unless they are there."""
    Base.metadata.create_all(db.engine)
    if db.session.scalar(select(Customer)) is None:
        for name in ("Ann", "Minh"):
            email, secret = f"{name.lower()}@example.com", generate_password_hash(PASSWORD)
            db.session.add(Customer(name=name, email=email, password_hash=secret, balance=1000_00))
        db.session.commit()
    click.echo(f"Log in as Ann or as Minh; the password of both is: {PASSWORD}")
