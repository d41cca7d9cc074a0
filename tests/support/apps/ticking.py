"""A worker whose one schedule ticks each second, and tells of each run in a file."""

from __future__ import annotations

from datetime import datetime

from flask_taskflow import current_delivery, every
from tests.support.apps import survivor
from tests.support.apps.survivor import create_app as create_app


@survivor.taskflow.on_schedule(every(1), name="beat", catch_up="all")
def beat(tick: datetime) -> None:
    survivor.tell("ran", tick=tick.timestamp(), attempt=current_delivery.attempt)
