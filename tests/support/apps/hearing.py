"""A process that listens for bells, alone or with a child that it forks, and tells what it hears."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from typing import Any

from flask import Flask

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow, task_verified
from flask_taskflow._service import current_service

taskflow = TaskFlow()
taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
app = Flask("app")
app.config.update(
    SECRET_KEY="a secret key of the test suite, long enough", TASKFLOW_REDIS_URL=os.environ["REDIS_URL"]
)
taskflow.init_app(app)


def tell(*words: object) -> None:
    # In one write: lines of two processes must not mix.
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


@task_verified.connect
def hear(sender: Flask, task: Task[Any], **_: Any) -> None:
    tell("heard", os.getpid(), task.id)


def serve() -> None:
    tell("ready", os.getpid())
    sys.stdin.read()
    taskflow.stop()


def fork(*, by_a_request: bool = False, hooks: bool = True) -> None:
    if not hooks:
        # As a server does that is no Python program. Such a fork wants threads that are at rest.
        threading.Event().wait(0.5)
    child = os.fork() if hooks else ctypes.PyDLL(None).fork()
    if child == 0:
        assert not hooks or threading.enumerate() == [threading.main_thread()]
        if by_a_request:
            app.test_client().get("/nothing")
        else:
            taskflow.start()
    serve()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def fork_idle() -> None:
    child = os.fork()
    tell(current_service().runtime.owner)
    sys.stdin.read()
    if child == 0:
        os._exit(0)
    taskflow.stop()


def work() -> None:
    taskflow.start()
    tell("ready", os.getpid())
    threading.Event().wait()


def multiprocess() -> None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    serve()
    process.kill()
    process.join()


def main(mode: str) -> None:
    with app.app_context():
        taskflow.start()
        match mode:
            case "alone":
                serve()
            case "without a stop":
                tell("ready", os.getpid())
                sys.stdin.read()
            case "fork":
                fork()
            case "fork, request":
                fork(by_a_request=True)
            case "fork, no hooks":
                fork(hooks=False)
            case "fork, idle":
                fork_idle()
            case "multiprocessing":
                multiprocess()


if __name__ == "__main__":
    main(sys.argv[1])
