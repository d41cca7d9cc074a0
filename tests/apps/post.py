"""An app that sends in the background and tells when; its provider answers once it is let go."""

from __future__ import annotations

import hashlib
from typing import Any

from flask import Flask
from survivor import tell, wait_for_go  # type: ignore[import-not-found]  # the processes run in its folder

from flask_taskflow import BaseStrategy, Task, TaskFlow

taskflow = TaskFlow()


@taskflow.register_strategy("EMAIL")
class Post(BaseStrategy):
    """Take a code, slowly."""

    def send(self, task: Task[Any], otp: str) -> None:
        """Tell of the code by its hash."""
        code = hashlib.sha256(otp.encode()).hexdigest()
        tell("begun", task=task.id, code=code)
        wait_for_go()
        tell("sent", task=task.id, code=code)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret key of the test suite, long enough", TASKFLOW_SEND="background")
    app.config.from_prefixed_env()
    taskflow.init_app(app)
    return app
