"""Which code a send carries, to whom it goes, and where it never stands."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from flask_taskflow import Reject, SendFailed, Task
from flask_taskflow.testing import travel
from tests.conftest import SECRET_KEY
from tests.support import inside
from tests.support.sending import EMAIL, Elaborate, Post, Words


def test_code_while_a_send_waits_or_failed_is_in_no_key_and_no_log(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaky(Exception):
        pass

    def leak(task: Task[Any], otp: str) -> None:
        raise Leaky(f"550 I do not want {otp}")

    def refuse(task: Task[Any], otp: str) -> None:
        raise Reject(f"550 I do not want {otp[:3]} {otp[3:]}")

    post.email.moods = [leak, leak, refuse]
    caplog.set_level("DEBUG")
    post.add_for()
    dumps = [inside.dump(post.redis)]
    for _ in range(3):
        post.run()
        dumps.append(inside.dump(post.redis))
        travel(5)

    assert len(post.email.codes) == 3
    assert len(set(post.email.codes)) == 1
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "Leaky" in told
    for text in (*dumps, told):
        assert post.email.codes[0] not in text
        assert post.sent[0].otp not in text


def test_send_again_in_the_last_minute_of_a_task_carries_the_same_code(post: Post) -> None:
    # It may have been delivered all the same.
    post.email.moods = [OSError] * 2
    post.add_for(ttl=45)
    post.run()
    post.run(1.2)

    assert len(post.email.codes) == 2
    assert len(set(post.email.codes)) == 1


def test_send_under_a_new_secret_key_carries_a_new_code(post: Post) -> None:
    task = post.add_for("EMAIL")
    key = "another secret key, long enough as well"
    rotated = post.make_app(send="background", SECRET_KEY=key, SECRET_KEY_FALLBACKS=[SECRET_KEY])
    post.email.moods = [OSError]
    with rotated.app_context():
        post.run()
        post.run(2)

        assert post.confirms(task)


def test_send_of_own_codes_can_be_tried_again(post: Post) -> None:
    words = post.taskflow.register_strategy("EMAIL")(Words(post.sent))
    words.moods = [OSError]
    task = post.add_for()
    post.run()
    post.run(2)

    assert post.sent[0].otp == "bcdefghz"
    assert post.confirms(task)


def test_send_of_own_codes_works_when_memory_is_full(post: Post) -> None:
    words = post.taskflow.register_strategy("EMAIL")(Words(post.sent))
    words.moods = [Reject("no")]
    post.add_for()
    post.redis.config_set("maxmemory", 1)
    try:
        post.run()
    finally:
        post.redis.config_set("maxmemory", 0)

    assert words.attempts == 1
    assert len(post.sent) == 1


def test_send_when_the_recipient_changed_goes_to_the_new_address_alone(post: Post) -> None:
    post.email.moods = [OSError]
    task = post.add_for("EMAIL", recipient={"email": EMAIL})
    post.run()

    post.taskflow.update_recipient(task.id, {"email": "new@example.com"})
    post.run()
    post.run(5)

    assert [message.addresses for message in post.sent] == [("new@example.com",)]


def test_code_that_a_process_sent_inline_meanwhile_is_left_to_it(post: Post) -> None:
    post.email.moods = [OSError]
    task = post.add_for("EMAIL", recipient={"email": EMAIL})
    post.run()
    with post.make_app(send="inline").app_context():
        post.taskflow.update_recipient(task.id, {"email": "new@example.com"})
    post.run(2)

    assert [message.addresses for message in post.sent] == [("new@example.com",)]
    assert post.confirms(task)


def test_give_up_of_a_send_whose_code_a_process_replaced_inline_leaves_that_in_force(post: Post) -> None:
    task = post.add_for("EMAIL")
    token = post.claim()
    with post.make_app(send="inline", resend_policy="rotate", resend_cooldown=0).app_context():
        travel(31)
        post.resend(task)

    given_up = post.give_up(task, token, "EMAIL")

    assert given_up is not None
    assert given_up.failed is None
    assert post.confirms(task)


def test_code_that_was_delivered_late_is_in_force_whatever_the_next_attempt_does(
    post: Post,
) -> None:
    post.app(resend_cooldown=0)

    def deliver_and_be_asked_again(task: Task[Any], otp: str) -> None:
        post.email.deliver(task, otp)
        post.resend(task)
        post.email.moods = [Reject("no more")]

    post.email.moods = [deliver_and_be_asked_again]
    task = post.add_for("EMAIL")

    post.run()

    assert (post.email.attempts, len(post.sent)) == (2, 1)
    assert post.confirms(task)


def test_success_that_comes_after_the_send_was_given_up_puts_its_code_in_force(post: Post) -> None:
    given_up: list[object] = []

    def deliver_too_late(task: Task[Any], otp: str) -> None:
        post.email.deliver(task, otp)
        line = post.redis.hget(inside.key_of("q", "@EMAIL", "meta"), task.id)
        assert line is not None
        given_up.append(post.give_up(task, int(line.split()[5]), "EMAIL", "SMS"))

    post.email.moods = [deliver_too_late]
    task = post.add_for()

    post.run()

    assert given_up != [None]
    assert len(post.sent) == 2
    assert post.confirms(task, message=0)


def test_error_that_cannot_be_asked_when_to_try_again_shows_no_code(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(task: Task[Any], otp: str) -> None:
        raise Elaborate(f"the provider did not take: your code is {otp}")

    post.email.moods = [refuse]
    with post.make_app(send="inline").app_context(), pytest.raises(SendFailed) as caught:
        post.add_for("EMAIL")

    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert post.email.codes[0] not in shown
    assert "Elaborate raised by Moody" in shown
