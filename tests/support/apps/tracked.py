"""An app under an error tracker that shows the locals of frames, its default.

It prints events and codes, by how the send ended.
"""

from __future__ import annotations

import json
import os
from typing import Any

import sentry_sdk
from flask import Flask
from gevent import Timeout
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from flask_taskflow import BaseStrategy, Task, TaskFlow

ENDS = {end.__name__: end for end in (ValueError, SystemExit, KeyboardInterrupt, Timeout)}
events: list[str] = []
codes: list[str] = []
ends = iter(ENDS.values())


class Kept(Transport):
    """Keeps what would be sent to the tracker."""

    def capture_envelope(self, envelope: Envelope) -> None:
        events.append(envelope.serialize().decode())


class Own(BaseStrategy):
    """An app's own strategy, whose frames hold the code in clear when something passes through it."""

    address = None

    def send(self, task: Task[Any], otp: str) -> None:
        codes.append("".join(otp))
        text = f"Your code is {otp}"
        try:
            raise OSError(text)
        except OSError:
            raise next(ends)(7)  # noqa: B904  # its context holds the code, too


def main() -> None:
    sentry_sdk.init("https://key@localhost/1", transport=Kept)
    taskflow = TaskFlow()
    taskflow.register_strategy("OWN")(Own())
    app = Flask(__name__)
    # 16 digits are in no time stamp and no id by chance.
    app.config.update(SECRET_KEY="k" * 32, TASKFLOW_REDIS_URL=os.environ["REDIS_URL"], TASKFLOW_OTP_LENGTH=16)
    app.config.update(TASKFLOW_AUTOSTART=False)
    taskflow.init_app(app)

    @app.post("/")
    def add() -> str:
        return taskflow.add_task("q", allowed_methods=["OWN"], recipient={}).id

    found = {}
    for end in ENDS:
        try:
            app.test_client().post("/")
        except BaseException as error:
            sentry_sdk.capture_exception(error)
        found[end] = {"events": "".join(events), "code": codes.pop()}
        events.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
