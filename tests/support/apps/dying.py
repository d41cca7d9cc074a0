"""An app whose processes die while a code is checked: after the attempt was counted, before anything else."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any

from flask import Flask

from flask_taskflow import BaseStrategy, Task, TaskFlow


class Dying(BaseStrategy):
    """Ends the process."""

    address = "device_id"
    code_pattern = "[0-9]{6}"

    def check(self, task: Task[Any], otp: str, now: datetime) -> str | None:
        os._exit(9)


taskflow = TaskFlow()
taskflow.register_strategy("DEVICE")(Dying())
app = Flask(__name__)
app.config.update(SECRET_KEY=sys.argv[2], TASKFLOW_AUTOSTART=False)
app.config.update(TASKFLOW_REDIS_URL=os.environ["REDIS_URL"])
taskflow.init_app(app)
for number in range(5):
    if os.fork() == 0:
        with app.app_context():
            taskflow.verify(sys.argv[1], "DEVICE", f"12345{number}")
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
