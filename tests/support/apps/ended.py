"""Both threads of the listener are ended from outside; then it tells that a signal is heard all the same.

It runs in a process of its own that nothing traces: while a thread waits that is to be ended so, whatever
is traced stands still in Python 3.11, as it does for `coverage`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

from flask import Flask

from flask_taskflow import OutboxStrategy, TaskFlow, task_verified
from flask_taskflow.testing import outbox


def main() -> None:
    app, taskflow = Flask("app"), TaskFlow()
    app.config.update(
        SECRET_KEY="a secret key of the test suite, long enough", TASKFLOW_REDIS_URL=os.environ["REDIS_URL"]
    )
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    taskflow.init_app(app)
    heard = threading.Event()

    @task_verified.connect_via(app)
    def hear(sender: Flask, **details: Any) -> None:
        heard.set()

    with app.app_context(), outbox(taskflow) as box:
        taskflow.start()
        ends = ctypes.py_object(SystemExit)
        for thread in threading.enumerate():
            if thread.name in ("taskflow-signals", "taskflow-listener"):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ends)
        # What comes while it connects anew is heard by nobody.
        while not heard.is_set():
            address = f"{len(box)}@example.com"
            task = taskflow.add_task("transfers", allowed_methods=["EMAIL"], recipient={"email": address})
            taskflow.verify(task.id, "EMAIL", box[-1].otp)
            heard.wait(0.5)
        print("heard", flush=True)


main()
