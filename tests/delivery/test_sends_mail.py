"""Codes by e-mail when the mail server is away for a while, or says too late that it took a message."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from flask_taskflow import EmailStrategy, SendFailed, Status, Task
from flask_taskflow.testing import travel
from tests.support.mail import Handler, Taken, mail_server
from tests.support.sending import EMAIL, Post

WAYS = ["inline", "background"]


def use(post: Post, port: int, **settings: Any) -> None:
    """Let codes go out by a mail server."""
    post.taskflow.register_strategy("EMAIL")(EmailStrategy())
    url = f"smtp://localhost:{port}?starttls=no"
    post.app(smtp_url=url, email_sender="codes@bank.example", **settings)


def code_in(taken: Taken) -> str:
    found = re.search(r"^(\d{6})\s*$", taken.body(), re.MULTILINE)
    assert found is not None
    return found[1]


def confirms(post: Post, task: Task[object], taken: Taken) -> bool:
    return post.taskflow.verify(task.id, "EMAIL", code_in(taken)).status is Status.SUCCESS


def add(post: Post, address: str) -> Task[Any]:
    """Add a task, whose code may be refused for now."""
    try:
        return post.add(recipient={"email": address})
    except SendFailed as error:
        refused = error
    assert refused.task is not None
    assert not refused.final
    return refused.task


@pytest.fixture
def away() -> Iterator[socket.socket]:
    """A port that is ours, where nobody listens: connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.mark.slow
@pytest.mark.parametrize("send", WAYS)
def test_mail_server_that_is_away_for_a_minute_loses_no_task(
    post: Post, away: socket.socket, send: str
) -> None:
    use(post, away.getsockname()[1], send=send)
    tasks: list[Task[object]] = []
    for second in range(0, 60, 6):
        tasks.append(add(post, f"{second}{EMAIL}"))
        post.run(6)
    handler = Handler()

    with mail_server(handler, at=away):
        if send == "inline":
            for task in tasks:
                post.resend(task)
        for _ in range(12):
            post.run(5)

    assert {post.status(task) for task in tasks} == {Status.PENDING}
    taken = {message.recipients[0]: message for message in handler.taken}
    assert len(handler.taken) == len(taken) == len(tasks)
    for task in tasks:
        assert confirms(post, task, taken[str(task.recipient.email)])


class Late(Handler):
    """Take each message, and never say so in time."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await super().handle_DATA(server, session, envelope)
        await asyncio.sleep(90)
        return "250 OK"


@pytest.mark.slow
@pytest.mark.parametrize("send", WAYS)
def test_mail_server_that_says_late_that_it_took_a_message_delivers_one(post: Post, send: str) -> None:
    handler = Late()
    with mail_server(handler) as port:
        use(post, port, send=send, send_timeout=1)

        task = post.add("q")
        runs = [post.run(after) for after in (0, 5, 60, 300)]

    assert runs == [send == "background", 0, 0, 0]
    assert post.waiting() == []
    (taken,) = handler.taken
    assert confirms(post, task, taken)


class Held(Handler):
    """Take each message, and say so when told."""

    def __init__(self) -> None:
        super().__init__()
        self.took, self.told = threading.Event(), threading.Event()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await super().handle_DATA(server, session, envelope)
        self.took.set()
        await asyncio.get_running_loop().run_in_executor(None, self.told.wait, 60)
        return "250 OK"


def test_code_that_is_typed_before_the_mail_server_answers_is_accepted(post: Post) -> None:
    """People are quick, and the message was there before its sender knew."""
    handler = Held()
    with mail_server(handler) as port, ThreadPoolExecutor() as pool:
        use(post, port, send="background", send_timeout=60)
        task = post.add("q")
        sending = pool.submit(copy_context().run, post.run)
        try:
            assert handler.took.wait(60)
            assert confirms(post, task, handler.taken[0])
        finally:
            handler.told.set()
        sending.result(60)

    assert (len(handler.taken), post.waiting()) == (1, [])
    assert post.taskflow.get_task(task.id).status is Status.SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize("send", WAYS)
def test_message_that_a_user_asks_for_again_carries_the_code_of_the_late_one(post: Post, send: str) -> None:
    handler = Late()
    with mail_server(handler) as port:
        use(post, port, send=send, send_timeout=1)
        task = post.add("q")
        post.run()
        travel(31)
        post.resend(task)
        post.run()

    first, second = handler.taken
    assert code_in(first) == code_in(second)
    assert confirms(post, task, first)
