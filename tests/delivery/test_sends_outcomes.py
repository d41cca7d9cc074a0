"""What comes of a send that is refused for good, refused for now, or whose outcome nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from flask import current_app

from flask_taskflow import (
    Reject,
    ResendTooSoon,
    Retry,
    SendFailed,
    SendLimitReached,
    Status,
    Task,
    TaskExpired,
    TaskNotPending,
    WrongCode,
    otp_sent,
)
from flask_taskflow._delivery.attempts import ReportOnce
from flask_taskflow.errors import ConfigError, OutcomeUnknown
from flask_taskflow.signals import task_failed
from flask_taskflow.testing import travel
from tests.support import inside
from tests.support.sending import BOTH, EMAIL, PHONE, Mood, Post


def audit(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the audit log told."""
    return [record.message for record in caplog.records if record.name == "flask_taskflow.audit"]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return level and text of the other lines."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("flask_taskflow") and record.name != "flask_taskflow.audit"
    ]


def hang(post: Post, method: str = "EMAIL") -> None:
    """Claim a send, and write the attempt off as the engine does when its time is over."""
    engine = inside.engine(method)
    (item,) = engine._store.claim("q", [f"@{method}"], 1).deliveries
    engine._runner.fail(
        engine._runner.begin(item), TimeoutError("timed out after 14 s"), ReportOnce(engine._store)
    )


@pytest.fixture
def inline(post: Post) -> Post:
    """An app that sends in the call."""
    post.app(send="inline")
    return post


# The outcome is not known.


def test_unknown_outcome_inline_leaves_the_code_valid_and_counts(
    inline: Post, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_taskflow.audit")
    told = inline.hear(otp_sent)
    inline.email.moods = [OutcomeUnknown("no answer after the last dot")]

    task = inline.add_for("EMAIL")

    with pytest.raises(ResendTooSoon):
        inline.resend(task)
    assert audit(caplog) == ["task_added", "send_unknown", "resend_refused"]
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert "no answer after the last dot" in text
    assert told.rest() == []
    assert inline.taskflow.verify(task.id, "EMAIL", inline.email.codes[0]).status is Status.SUCCESS


def test_unknown_outcome_in_background_is_not_sent_again_by_itself(post: Post) -> None:
    post.email.moods = [OutcomeUnknown()]
    task = post.add_for()
    post.run()
    runs = [post.run(100) for _ in range(5)]

    assert runs == [0] * 5
    assert post.waiting() == []
    assert (post.email.attempts, post.sent, post.status(task)) == (1, [], Status.PENDING)
    assert post.taskflow.verify(task.id, "EMAIL", post.email.codes[0]).status is Status.SUCCESS


def test_unknown_outcome_in_background_lets_the_user_have_the_same_code_again(post: Post) -> None:
    post.email.moods = [OutcomeUnknown()]
    task = post.add_for()
    post.run()
    travel(31)
    post.resend(task)
    post.run()

    assert len(set(post.email.codes)) == 1
    assert [message.otp for message in post.sent] == post.email.codes[:1]


def test_send_that_hangs_is_repeated_once_and_its_code_stays_valid(post: Post) -> None:
    task = post.add_for("EMAIL")
    hang(post)
    early = inside.store("EMAIL").claim("q", ["@EMAIL"], 1).deliveries
    travel(1.2)
    hang(post)
    runs = [post.run(60) for _ in range(5)]

    assert early == []
    assert runs == [0] * 5
    assert post.waiting() == []
    assert post.status(task) is Status.PENDING
    travel(31)
    post.resend(task)
    post.run()
    assert post.confirms(task)


def test_code_of_a_send_that_hangs_twice_is_valid(post: Post) -> None:
    task = post.add_for()
    due = inside.engine("EMAIL")._runner
    hang(post)
    travel(1.2)
    hang(post)

    post.run()

    assert due is not None
    assert [message.task.id for message in post.sent] == [task.id], "the next method"
    code = derived(task, "EMAIL")
    assert post.taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


def derived(task: Task[Any], method: str) -> str:
    """Return a code in force that nobody was shown, as a hanging provider has it."""
    service = current_app.extensions["taskflow.state"].service
    stored = service.client.hgetall(service.keys.task(task.id)[0])
    nonce, digest = (stored[f"{method}.{name}".encode()].decode() for name in ("nonce", "digest"))
    return str(service.keyring.recover(task.id, method, nonce, digest, length=6))


def test_code_of_a_send_that_hung_before_it_was_refused_for_good_is_valid(post: Post) -> None:
    post.email.moods = [Reject("it has enough of these")]
    task = post.add_for("EMAIL")
    hang(post)

    post.run(1.2)

    assert post.waiting() == []
    assert post.status(task) is Status.PENDING
    code = post.email.codes[0]
    assert post.taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


def test_task_does_not_fail_while_the_outcome_by_one_method_is_not_known(post: Post) -> None:
    post.app(max_lost=0)
    post.sms.moods = [Reject("no such number")]
    task = post.add_for(ttl=3600)
    post.claim()

    post.run(601)

    assert (post.email.attempts, post.sms.attempts) == (0, 1)
    assert post.status(task) is Status.PENDING


def test_send_lost_too_often_leaves_its_code_valid(post: Post) -> None:
    post.app(max_lost=0)
    task = post.add_for("EMAIL")
    code = derived(task, "EMAIL")
    post.claim()
    post.run(31)

    assert (post.waiting(), post.status(task)) == ([], Status.PENDING)
    assert post.taskflow.verify(task.id, "EMAIL", code).status is Status.SUCCESS


# Refused for now.


def test_send_refused_for_now_is_tried_with_growing_waits_while_the_task_lives(post: Post) -> None:
    post.app(send_backoff=1, send_backoff_max=30)
    post.email.moods = [OSError] * 1000
    failed = post.hear(task_failed)
    task = post.add_for("EMAIL")
    at: list[int] = []
    for second in range(0, 620, 2):
        if post.run(2 if second else 0) and post.email.attempts > len(at):
            at.append(second)

    waits = [later - earlier for earlier, later in pairwise(at)]
    assert waits[:4] == sorted(waits[:4])
    assert {30, 32, 34} >= set(waits[6:])
    assert at[-1] > 540
    assert failed.rest() == []
    assert (post.status(task), post.waiting()) == (Status.EXPIRED, [])


def test_method_refused_for_now_for_long_lets_the_next_one_be_tried(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.app(send_fallback=60)
    caplog.set_level("INFO", "flask_taskflow.audit")
    post.email.moods = [OSError] * 100
    task = post.add_for()
    for _ in range(29):
        post.run(2)
    before = post.sms.attempts
    for _ in range(20):
        post.run(2)
    attempts = post.email.attempts
    for _ in range(60):
        post.run(5)

    assert (before, post.sms.attempts, len(post.sent)) == (0, 1, 1)
    assert post.email.attempts == attempts
    assert audit(caplog).count("send_fallback") == 1
    assert audit(caplog)[-1] == "send_dropped"
    assert post.waiting() == []
    with pytest.raises(WrongCode):
        post.taskflow.verify(task.id, "EMAIL", post.email.codes[0])
    assert post.confirms(task, "SMS")


def test_method_refused_for_now_is_all_there_is_without_a_fall_back(post: Post) -> None:
    post.app(send_fallback=0)
    post.email.moods = [OSError] * 10
    task = post.add_for()
    for _ in range(15):
        post.run(33)

    assert post.sms.attempts == 0
    assert post.confirms(task)


def refused_for_a_minute(post: Post, *methods: str) -> Task[Any]:
    """Return a task whose first method was refused for now until the next one was tried as well."""
    post.app(send_backoff_max=5, send_fallback=60)
    post.email.moods = [OSError] * 16
    return post.add_for(*methods)


def wait_a_minute(post: Post) -> None:
    for _ in range(13):
        post.run(5.6)


def test_method_refused_for_now_goes_on_when_the_next_one_refuses_for_good(post: Post) -> None:
    post.sms.moods = [Reject("no such number")]
    task = refused_for_a_minute(post)
    wait_a_minute(post)
    wait_a_minute(post)

    assert post.sms.attempts == 1
    assert post.status(task) is Status.PENDING
    assert post.confirms(task, "EMAIL")


def test_task_whose_methods_refuse_for_good_one_after_the_other_fails(post: Post) -> None:
    post.sms.moods = [Reject("no such number")]
    task = refused_for_a_minute(post)
    post.email.moods.append(Reject("no such mailbox"))
    wait_a_minute(post)
    between = post.status(task)
    wait_a_minute(post)

    assert (between, post.status(task)) == (Status.PENDING, Status.FAILED)


def test_third_method_is_tried_when_two_were_refused_for_now(post: Post) -> None:
    letters = post.taskflow.register_strategy("LETTER")(type(post.email)(post.sent))
    post.sms.moods = [OSError] * 100
    post.email.moods = [OSError] * 100
    task = refused_for_a_minute(post, "EMAIL", "SMS", "LETTER")
    post.email.moods = [OSError] * 100
    wait_a_minute(post)
    first = letters.attempts
    wait_a_minute(post)

    assert (first, letters.attempts) == (0, 1)
    assert post.confirms(task, "LETTER")


def test_first_method_that_comes_back_makes_the_one_beside_it_needless(post: Post) -> None:
    post.sms.moods = [Retry(after=100)]
    refused_for_a_minute(post)
    wait_a_minute(post)
    wait_a_minute(post)
    post.run(100)

    assert [message.task.recipient.email for message in post.sent] == [EMAIL]
    assert (post.sms.attempts, post.waiting()) == (1, [])


def test_next_method_is_not_tried_while_an_earlier_code_is_in_force(post: Post) -> None:
    task = refused_for_a_minute(post)
    post.email.moods = []
    post.run()
    travel(31)
    post.email.moods = [OSError] * 16
    post.resend(task)
    wait_a_minute(post)

    assert post.sms.attempts == 0


@pytest.mark.parametrize(("mood", "final"), [(Reject("no"), True), (Retry("later"), False), (OSError, False)])
def test_send_that_failed_inline_says_whether_for_good_and_can_be_resent_at_once(
    inline: Post, mood: Mood, final: bool
) -> None:
    inline.email.moods = [mood]
    with pytest.raises(SendFailed) as caught:
        inline.add_for("EMAIL")
    task = caught.value.task
    assert task is not None
    with pytest.raises(WrongCode):
        inline.taskflow.verify(task.id, "EMAIL", inline.email.codes[0])

    inline.resend(task)

    assert caught.value.final is final
    assert inline.confirms(task)


# Failed, and back.


def failed(post: Post, *methods: str, **options: Any) -> Task[Any]:
    """Return a task whose methods all refused for good."""
    post.email.moods, post.sms.moods = [Reject("no")], [Reject("no")]
    task = post.add_for(*methods, **options)
    post.run()
    assert post.status(task) is Status.FAILED
    return task


@pytest.mark.parametrize("how", ["resend", "update"])
def test_task_that_failed_is_pending_again_with_its_next_message(post: Post, how: str) -> None:
    task = failed(post)
    in_index = post.redis.zscore(post.keys("pending")[0], task.id) if post.keys("pending") else None

    if how == "resend":
        post.resend(task, "SMS")
    else:
        post.taskflow.update_recipient(task.id, {"phone_number": "+84901234568"})

    assert in_index is None
    assert post.status(task) is Status.PENDING
    assert post.redis.zscore(inside_key(post, "pending"), task.id) == task.expires_at.timestamp() * 1000
    # As long after its end as any other task.
    left = (task.expires_at.timestamp() + 86400) * 1000
    assert post.redis.pexpiretime(inside_key(post, f"task:{task.id}")) == pytest.approx(left, abs=5)
    post.run()
    assert [message.task.status for message in post.sent] == [Status.PENDING]
    assert post.confirms(task, "SMS")


def inside_key(post: Post, name: str) -> str:
    service = current_app.extensions["taskflow.state"].service
    return str(service.keys.of_queue("q", name)[0])


def test_task_that_failed_is_kept_for_its_life_and_fails_again(post: Post) -> None:
    post.app(retention=60)
    told = post.hear(task_failed)
    task = failed(post, "EMAIL", ttl=3600)
    travel(1800)
    post.email.moods = [Reject("no")]
    post.resend(task)
    post.run()

    assert post.sms.attempts == 0
    assert post.status(task) is Status.FAILED
    assert [call["task"].id for call in told.rest()] == [task.id] * 2


def test_task_that_failed_and_is_back_asks_no_method_again_that_refused_for_good(post: Post) -> None:
    task = failed(post)
    post.sms.moods = [Reject("no")]
    post.resend(task, "SMS")
    post.run()

    assert post.email.attempts == 1
    assert post.status(task) is Status.FAILED


def test_task_that_failed_keeps_its_limits(post: Post) -> None:
    post.app(max_sends=3, max_recipient_updates=1)
    task = failed(post)
    for _ in range(4):
        with pytest.raises(TaskNotPending):
            post.taskflow.verify(task.id, "EMAIL", "123456")
    post.email.moods = [Reject("no")]
    post.taskflow.update_recipient(task.id, {"email": "b@example.com"})
    post.run()

    with pytest.raises(SendLimitReached):
        post.resend(task)
    with pytest.raises(SendLimitReached):
        post.taskflow.update_recipient(task.id, {"email": "c@example.com"})
    assert post.status(task) is Status.FAILED


def test_task_that_failed_is_over_when_its_life_is(post: Post) -> None:
    task = failed(post, "EMAIL")
    travel(601)

    with pytest.raises(TaskNotPending) as refused:
        post.resend(task)
    assert refused.value.status is Status.FAILED


def test_task_that_failed_is_not_pending_by_an_address_that_it_had(post: Post) -> None:
    task = failed(post)

    with pytest.raises(TaskNotPending):
        post.taskflow.update_recipient(task.id, BOTH)


def test_task_that_failed_is_sent_to_the_address_that_it_gets(post: Post) -> None:
    task = failed(post, recipient={"email": EMAIL})

    post.taskflow.update_recipient(task.id, {"phone_number": PHONE})
    post.run()

    assert (post.email.attempts, post.sms.attempts) == (1, 1)
    post.sms.moods = []
    travel(31)
    post.resend(task, "SMS")
    post.run()
    assert post.confirms(task, "SMS")


# Too late to be read.


def test_code_that_could_not_be_read_in_time_is_not_sent(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_taskflow.audit")
    post.email.moods = [Retry(after=585)]
    task = post.add_for(ttl=600)
    post.run()

    runs = post.run(586)

    assert (runs, post.email.attempts, post.waiting()) == (1, 1, [])
    assert audit(caplog)[-1] == "send_dropped"
    assert [record.__dict__.get("cause") for record in caplog.records][-1] == "too_late"
    assert post.status(task) is Status.PENDING


@pytest.mark.parametrize("send", ["inline", "background"])
def test_code_is_not_asked_for_when_it_could_not_be_read_in_time(post: Post, send: str) -> None:
    post.app(send=send)
    task = post.add_for(ttl=600)
    post.run()
    travel(579)
    post.resend(task)
    post.run()
    travel(5)
    before = inside.dump(post.redis)

    for call in (
        lambda: post.resend(task, "SMS"),
        lambda: post.taskflow.update_recipient(task.id, {"email": "b@example.com"}),
    ):
        with pytest.raises(TaskExpired, match="read in time"):
            call()

    assert inside.dump(post.redis) == before
    assert len(post.sent) == 2
    assert post.confirms(task)


def test_task_of_a_few_seconds_is_sent_its_code(post: Post) -> None:
    task = post.add_for(ttl=10)
    post.run(4)

    assert post.confirms(task)


# What is told.


@pytest.mark.parametrize(
    ("moods", "expected"),
    [
        ([], [("DEBUG", "Sent the code of task * by EMAIL.")]),
        (
            [Retry("451, greylisted", after=20)],
            [
                (
                    "WARNING",
                    "Attempt 1 to send task * by EMAIL failed: Retry raised by Moody (451, greylisted)",
                )
            ],
        ),
        ([OSError("no route")], [("WARNING", "Attempt 1 to send task * by EMAIL failed: OSError raised by")]),
        (
            [Reject("550, no such mailbox")],
            [("ERROR", "Sending task * by EMAIL is given up: Reject raised by Moody (550, no such mailbox)")],
        ),
        ([OutcomeUnknown()], [("WARNING", "The code of task * by EMAIL may have been sent or not: Outcome")]),
        (
            [ConfigError("set TASKFLOW_X")],
            [("WARNING", "Attempt 1 to send task * by EMAIL failed: ConfigErr")],
        ),
    ],
)
def test_attempt_is_told_of_in_one_line(
    post: Post, moods: list[Mood], expected: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "flask_taskflow")
    post.email.moods = [*moods]
    task = post.add_for("EMAIL")
    caplog.clear()

    post.run()

    told = [(level, text.replace(task.id, "*")) for level, text in lines(caplog)]
    assert [
        (level, text[: len(start)]) for (level, text), (_, start) in zip(told, expected, strict=True)
    ] == (expected)


@pytest.mark.parametrize(("mood", "place"), [(OSError("no"), True), (Reject("no"), True)])
def test_failed_send_inline_is_told_of_in_one_line_with_the_app_s_own(
    inline: Post, mood: Mood, place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    inline.email.moods = [mood]
    with pytest.raises(SendFailed):
        inline.add_for("EMAIL")

    ((level, text),) = lines(caplog)
    assert level == "ERROR"
    assert ("sending.py:" in text) is place


HIDDEN: list[Callable[[Task[Any], str], object]] = [
    lambda task, otp: f"550 spam: {otp}",
    lambda task, otp: f"550 spam: {otp[:3]}-{otp[3:]}",
    lambda task, otp: f"550 {task.recipient.email}",
    lambda task, otp: f"550 {str(task.recipient.email).upper()}",
    lambda task, otp: "550\nforged line",
    lambda task, otp: Unprintable(),
]


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("say", HIDDEN)
@pytest.mark.parametrize("kind", [Reject, Retry, OutcomeUnknown])
def test_text_of_an_error_that_shows_the_code_or_an_address_is_not_told(
    post: Post,
    kind: type[Exception],
    say: Callable[[Task[Any], str], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(task: Task[Any], otp: str) -> None:
        raise kind(say(task, otp))

    post.email.moods = [fail]
    post.add_for("EMAIL")

    post.run()

    assert kind.__name__ in caplog.text
    assert "550" not in caplog.text


# What ends more than a send.


class Stop(BaseException):
    """As ``gevent.Timeout``: whoever set it looks for the same object."""


def frames_of(error: BaseException) -> str:
    """Return the values in all frames that an error carries, as error trackers show them."""
    shown, errors = [], [error]
    while errors:
        each = errors.pop()
        shown.append(f"{each!r} {each} {each.args} {vars(each)}")
        step = each.__traceback__
        while step:
            shown += [f"{name} = {value!r} {value}" for name, value in step.tb_frame.f_locals.items()]
            step = step.tb_next
        errors += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "\n".join(shown)


@pytest.mark.parametrize("error", [SystemExit(1), Stop(5), KeyboardInterrupt()])
def test_code_is_in_no_frame_of_what_ends_more_than_the_send(
    inline: Post, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def end(task: Task[Any], otp: str) -> None:
        text = f"your code is {otp}"
        try:
            raise OSError(text)
        except OSError:
            raise error  # noqa: B904  # its context is what is tested

    inline.email.moods = [end]
    with pytest.raises(type(error)) as caught:
        inline.add_for("EMAIL")

    shown = frames_of(caught.value)
    assert caught.value is error
    assert "recipient = " in shown or "issued = " in shown
    assert inline.email.codes[0] not in shown
    assert "OSError" not in shown
    assert audit(caplog) == ["send_unknown"]


@pytest.mark.parametrize("kind", [SystemExit, Stop])
def test_text_of_what_ends_more_than_the_send_does_not_hold_the_code(
    inline: Post, kind: type[BaseException]
) -> None:
    def end(task: Task[Any], otp: str) -> None:
        error = kind(f"while {otp} was sent")
        error.message = otp  # type: ignore[attr-defined]  # as some libraries do
        raise error

    inline.email.moods = [end]
    with pytest.raises(kind) as caught:
        inline.add_for("EMAIL")

    error = caught.value
    assert inline.email.codes[0] not in f"{error!r} {error} {vars(error)} {getattr(error, 'code', '')}"


def test_code_of_a_send_that_was_ended_from_outside_is_valid(inline: Post) -> None:
    inline.email.moods = [SystemExit(1)]
    with pytest.raises(SystemExit):
        inline.add_for("EMAIL")
    (key,) = inline.redis.scan_iter(match="*:task:*")
    task_id = key.decode().rpartition(":")[2]

    assert inline.taskflow.verify(task_id, "EMAIL", inline.email.codes[0]).status is Status.SUCCESS


def test_interrupt_ends_what_runs_sends_without_a_frame_that_has_the_code(post: Post) -> None:
    def interrupt(task: Task[Any], otp: str) -> None:
        text = f"your code is {otp}"
        raise KeyboardInterrupt(len(text))

    post.email.moods = [interrupt]
    post.add_for("EMAIL")
    with pytest.raises(KeyboardInterrupt) as caught:
        post.run()

    shown = frames_of(caught.value)
    assert "item = " in shown
    assert post.email.codes[0] not in shown
    assert post.waiting() != []
