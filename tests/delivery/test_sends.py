"""Sends as deliveries of the engine: retries, fall-back, what is void, what else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import current_app, g
from redis import ResponseError

from flask_taskflow import (
    BaseStrategy,
    OutboxStrategy,
    Reject,
    Retry,
    Status,
    Task,
    TaskFlow,
    TaskNotPending,
    WrongCode,
    otp_sent,
)
from flask_taskflow._delivery.attempts import Attempt
from flask_taskflow._delivery.sends import SendRunner
from flask_taskflow._store.keys import Consumer
from flask_taskflow._store.records import Claimed
from flask_taskflow.signals import task_failed
from flask_taskflow.testing import travel
from tests.conftest import watch
from tests.support import inside
from tests.support.fleet import wait_until
from tests.support.inside import key_of
from tests.support.sending import EMAIL, PHONE, Elaborate, Mood, Moody, Post

NO = Reject("no such mailbox")


def events(caplog: pytest.LogCaptureFixture, key: str = "event") -> list[object]:
    """Return a field of each record of the audit log."""
    return [value for record in caplog.records if (value := record.__dict__.get(key)) is not None]


def test_send_when_stored_waits_and_is_done_once(post: Post) -> None:
    task = post.add_for()
    before = list(post.sent)

    counts = [post.run(), post.run()]

    assert before == []
    assert counts == [1, 0]
    assert [message.task.id for message in post.sent] == [task.id]
    assert post.waiting() == []
    assert post.confirms(task)


def test_task_tells_whether_a_code_went_out(post: Post) -> None:
    post.email.moods = [Retry("down", after=2), NO]
    task = post.add_for(send_via=["EMAIL"])
    told = [task.codes]
    for _ in range(3):
        told.append(post.taskflow.get_task(task.id).codes)
        post.run(after=3)
    told.append(post.taskflow.get_task(task.id).codes)

    assert told == [{"EMAIL": True}] * 2 + [{"EMAIL": False}, {"SMS": True}, {"SMS": True}]


def test_send_when_eager_is_done_within_the_call(post: Post) -> None:
    post.app(eager=True)

    post.add_for()

    assert len(post.sent) == 1


def test_add_task_in_background_costs_one_round_trip(post: Post) -> None:
    post.add_for()

    sent, _ = watch(post.redis, post.add_for)

    assert [command.split()[0] for command in sent] == ["EVALSHA"]


def test_add_task_inline_stores_no_send(post: Post) -> None:
    with post.make_app(send="inline").app_context():
        post.add_for()

    assert post.waiting() == []


def test_add_task_when_a_key_of_the_sends_is_spoiled_stores_nothing(post: Post) -> None:
    post.redis.set(key_of("q", "@EMAIL", "ready"), "junk")

    with pytest.raises(ResponseError, match="wrong type"):
        post.add_for()

    assert list(post.redis.scan_iter(match="*:task:*")) == []


def test_send_when_two_attempts_fail_delivers_one_message(post: Post) -> None:
    post.email.moods = [ConnectionRefusedError, TimeoutError]
    task = post.add_for()
    post.run()
    post.run(1.2)
    early = post.run()
    post.run(2.3)

    assert early == 0
    assert post.email.attempts == 3
    assert [message.addresses for message in post.sent] == [(EMAIL, PHONE)]
    assert post.confirms(task)


def test_send_when_told_when_to_retry_waits_so_long(post: Post) -> None:
    post.email.moods = [Retry("the provider said 429", after=20)]
    post.add_for()
    post.run()

    assert (post.run(19), post.run(1.1), len(post.sent)) == (0, 1, 1)


class Silent(Retry):
    """Know nothing of when."""

    def __init__(self) -> None:
        return


class Exit(BaseException):
    pass


NO_TIMES: list[Any] = [float("nan"), "soon", None, [], -5, True]


@pytest.mark.parametrize(
    ("mood", "cause"),
    [
        *((Retry(after=after), "Retry") for after in NO_TIMES),
        (Silent(), "Silent"),
        (Elaborate("busy"), "Elaborate"),
        (SystemExit, "SystemExit"),
        (Exit("550 I do not want"), "Exit"),
    ],
)
def test_send_that_raises_what_tells_no_time_is_tried_again_soon(
    post: Post, mood: Mood, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    post.email.moods = [mood]
    post.add_for()
    post.run()
    failed = events(caplog, "cause")
    post.run(1.2)

    assert failed == [cause]
    assert "I do not want" not in caplog.text
    assert post.email.attempts == 2
    assert [message.task.status for message in post.sent] == [Status.PENDING]


@pytest.mark.parametrize(
    "mood",
    [
        pytest.param(Reject("no such mailbox"), id="rejected"),
        # After the end of the task, which is when another method may be in time.
        *(Retry(after=after) for after in (601, float("inf"), 1e300)),
        pytest.param(Retry(after=10**400), id="huge"),
    ],
)
def test_send_that_cannot_be_repeated_falls_back_at_once(post: Post, mood: Mood) -> None:
    told = post.hear(otp_sent)
    post.email.moods = [mood]
    task = post.add_for(ttl=600)

    post.run()
    post.run(590)

    assert (post.email.attempts, len(post.sent)) == (1, 1)
    assert [call["method"] for call in told.rest()] == ["SMS"]
    assert post.status(task) is Status.PENDING
    with pytest.raises(WrongCode):
        post.taskflow.verify(task.id, "EMAIL", post.sent[0].otp)
    assert post.taskflow.verify(task.id, "SMS", post.sent[0].otp).verification_method == "SMS"


@dataclass(frozen=True)
class Story:
    """What providers do at each attempt, what happens, and how it ends.

    :param email: errors, or nothing where it takes the message, as it does in the end.
    :param sms: the same.
    :param task: options of the task.
    :param steps: after how many seconds what is due is run, or a method is asked for another code.
    :param attempts: how often it was tried by e-mail.
    :param sent: how many messages were taken.
    :param ends: the method whose last code confirms the task, or nothing if the task failed.
    """

    email: Sequence[Mood | None] = ()
    sms: Sequence[Mood | None] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[float | tuple[str, float]] = (0,)
    attempts: int = 1
    sent: int = 1
    ends: str = "EMAIL"


STORIES = {
    "a method given up is resent at once": Story([NO], steps=[0, ("EMAIL", 0), 0], attempts=2, sent=2),
    "the fall-back goes round to the methods before": Story(sms=[NO], task={"send_via": ["SMS"]}),
    "the fall-back goes to a method given up and resent since": Story(
        [NO],
        [None, NO],
        task={"ttl": 3600},
        steps=[0, ("EMAIL", 0), 0, ("SMS", 601), 0],
        attempts=3,
        sent=3,
    ),
    "the fall-back has no address": Story([NO], task={"recipient": {"email": EMAIL}}, sent=0, ends=""),
    "the fall-back is over the task's limit": Story([NO], settings={"max_sends": 1}, sent=0, ends=""),
    "another code is in force": Story([NO], task={"send_via": ["EMAIL", "SMS"]}, ends="SMS"),
    "another send waits, though its code is old": Story(
        [NO],
        settings={"max_sends": 2},
        task={"send_via": ["EMAIL", "SMS"], "ttl": 3600},
        steps=[700],
        ends="SMS",
    ),
    "a resend given up leaves the delivered code in force": Story(
        [None, NO], steps=[0, ("EMAIL", 31), 0], attempts=2
    ),
    "a resend while a send waits makes one message of both": Story(
        [OSError, OSError], steps=[0, ("EMAIL", 31), 0, 1.2], attempts=3
    ),
    "a resend in the place of a send disarms its code when given up": Story(
        [OSError, NO],
        task={"allowed_methods": ["EMAIL"]},
        steps=[0, ("EMAIL", 31), 0],
        attempts=2,
        sent=0,
        ends="",
    ),
    "a send that comes late carries a code that lasts": Story(task={"ttl": 3600}, steps=[1000]),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_send_given_up_or_sent_again(post: Post, story: Story) -> None:
    post.app(**story.settings)
    post.email.moods, post.sms.moods = [*story.email], [*story.sms]
    task = post.add_for(**story.task)

    for step in story.steps:
        if isinstance(step, tuple):
            travel(step[1])
            post.resend(task, step[0])
        else:
            post.run(step)

    assert (post.email.attempts, len(post.sent), post.waiting()) == (story.attempts, story.sent, [])
    assert post.status(task) is (Status.PENDING if story.ends else Status.FAILED)
    assert not story.ends or post.confirms(task, story.ends)


def test_send_lost_too_often_falls_back(post: Post) -> None:
    post.app(max_lost=0)
    task = post.add_for()
    post.claim()

    post.run(31)

    assert post.email.attempts == 0
    assert post.confirms(task, "SMS")
    assert post.waiting() == []


def test_task_when_no_method_is_left_fails(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    failed = post.hear(task_failed)
    post.email.moods, post.sms.moods = [NO], [NO]
    task = post.add_for()

    post.run()

    assert [(told["task"].id, told["task"].status) for told in failed.rest()] == [(task.id, Status.FAILED)]
    with pytest.raises(TaskNotPending) as refused:
        post.taskflow.verify(task.id, "EMAIL", "123456")
    assert refused.value.status is Status.FAILED
    ends = [event for event in events(caplog) if event in ("send_given_up", "task_failed")]
    assert ends == ["send_given_up", "send_given_up", "task_failed"]


def test_fall_back_to_a_recipient_that_had_enough_is_no_method_left(post: Post) -> None:
    post.app(recipient_max_sends=1)
    post.add_for("SMS", recipient={"phone_number": PHONE})
    post.email.moods = [NO]
    task = post.add_for()

    post.run()

    assert post.status(task) is Status.FAILED


def test_fall_back_passes_by_a_method_whose_keys_are_spoiled(post: Post) -> None:
    post.email.moods = [NO]
    task = post.add_for()
    post.redis.set(key_of("q", "@SMS", "lease"), "junk")

    inside.engine("EMAIL").run_due()

    assert post.status(task) is Status.FAILED


class Device(BaseStrategy):
    """Accept what a device shows; wake it in vain."""

    def check(self, task: Task[Any], otp: str, now: object) -> str | None:
        return otp if otp == "314159" else None

    def send(self, task: Task[Any], otp: str) -> None:
        raise Reject("it sleeps")


@pytest.mark.parametrize("max_sends", [1, 5])
def test_task_that_a_device_can_confirm_does_not_fail(post: Post, max_sends: int) -> None:
    post.app(max_sends=max_sends)
    post.taskflow.register_strategy("SMART_OTP")(Device())
    post.email.moods = [NO]
    task = post.add_for("EMAIL", "SMART_OTP", recipient={"email": EMAIL, "device_id": "d"})

    post.run()

    assert post.taskflow.verify(task.id, "SMART_OTP", "314159").status is Status.SUCCESS


@pytest.mark.parametrize("end", ["cancel", "verify", "expire"])
def test_send_of_a_task_that_is_over_is_void(post: Post, end: str) -> None:
    post.email.moods = [OSError]
    task = post.add_for(send_via=["EMAIL", "SMS"], ttl=60)
    post.run()
    if end == "cancel":
        post.taskflow.cancel_task(task.id)
    elif end == "verify":
        post.confirms(task, "SMS")

    attempts = post.run(61)

    assert (attempts, post.email.attempts, len(post.sent)) == (1, 1, 1)
    assert post.waiting() == []


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("address.email", "thief@example.com", ["task_tampered"]), ("EMAIL.until", "soon", [])],
)
def test_send_of_a_task_that_was_changed_in_redis_is_dropped(
    post: Post, caplog: pytest.LogCaptureFixture, field: str, value: str, told: list[str]
) -> None:
    post.add_for()
    (key,) = post.redis.scan_iter(match="*:task:*")
    post.redis.hset(key, field, value)

    assert post.run() == 1
    assert post.sent == []
    assert post.waiting() == []
    assert [event for event in events(caplog) if event == "task_tampered"] == told


def test_send_of_a_task_of_another_queue_is_dropped(post: Post) -> None:
    task = post.add_for()
    for kind in ("ready", "meta", "body"):
        post.redis.rename(key_of("q", "@EMAIL", kind), key_of("other", "@EMAIL", kind))
    post.redis.hset("taskflow:queues", inside.service().keys.tag("other"), "other")

    post.run()

    assert post.sent == []
    assert post.waiting() == []
    assert post.status(task) is Status.PENDING


def spoil_the_list_of_queues(post: Post) -> None:
    post.redis.delete("taskflow:queues")
    post.redis.set("taskflow:queues", "junk")


@pytest.mark.parametrize(
    "meanwhile", [spoil_the_list_of_queues, lambda post: inside.service().operations.pause("q")]
)
def test_send_while_its_queue_is_paused_or_not_listed_is_done(
    post: Post, meanwhile: Callable[[Post], object]
) -> None:
    post.add_for()
    meanwhile(post)

    post.run()

    assert len(post.sent) == 1


def test_give_up_while_a_key_is_spoiled_is_done_once_that_is_mended(post: Post) -> None:
    post.email.moods = [NO] * 2
    post.add_for()
    (key,) = post.redis.scan_iter(match="*:recipients")
    post.redis.rename(key, "apart")
    post.redis.set(key, "junk")
    with pytest.raises(ResponseError):
        post.run()
    post.redis.rename("apart", key)

    post.run(31)

    assert (post.email.attempts, len(post.sent)) == (2, 1)


def test_give_up_reported_again_tells_the_same_and_changes_nothing(post: Post) -> None:
    task = post.add_for()
    token = post.claim()
    first = post.give_up(task, token, "EMAIL", "SMS")
    before = inside.dump(post.redis)
    again = post.give_up(task, token, "EMAIL", "SMS")

    assert first is not None
    assert again is not None
    assert first.following == again.following == "SMS"
    assert inside.dump(post.redis) == before
    post.resend(task)
    assert post.claim() != token
    assert post.give_up(task, token, "EMAIL", "SMS") is None
    assert inside.store("EMAIL").claim("q", ["@EMAIL"], 1).held == 1


def test_give_up_of_the_last_method_reported_again_fails_the_task_again(post: Post) -> None:
    task = post.add_for("EMAIL")
    token = post.claim()

    ends = [post.give_up(task, token, "EMAIL") for _ in range(2)]

    assert [end and end.failed and end.failed.status for end in ends] == [Status.FAILED] * 2


def test_send_beside_many_that_hang_is_tried_until_too_many_do(post: Post) -> None:
    post.app(send_threads=2)
    post.add_for("EMAIL")
    token = post.claim()
    runner = (engine := inside.engine("EMAIL"))._runner
    assert isinstance(runner, SendRunner)
    others = [Attempt(Claimed("q", Consumer.sending("EMAIL"), "", token, 0, 0, None), 1) for _ in range(4)]
    runner._inside.update(others)
    travel(31)
    for other in others[:3]:
        other.written_off = True

    engine.run_due()
    first = len(post.sent)
    others[3].written_off = True
    post.add_for("EMAIL")
    engine.run_due()

    assert (first, len(post.sent)) == (1, 1)


# In threads, as in a serving process.


@pytest.fixture
def threads(post: Post) -> Post:
    """An app whose threads the test starts; nothing but a bell tells them of a send."""
    times: dict[str, Any] = {
        "send_timeout": 0.1,
        "redis_timeout": 1,
        "send_backoff": 0.01,
        "send_fallback": 0.05,
    }
    post.app(send_threads=2, poll=60, **times)
    return post


@pytest.mark.slow
def test_send_by_a_provider_that_hangs_falls_back_while_others_go_on(threads: Post) -> None:
    released = threading.Event()
    threads.email.moods = [lambda task, otp: released.wait(60)] * 9
    threads.taskflow.start()
    tasks = [
        threads.add_for(recipient={"email": f"{i}{EMAIL}", "phone_number": f"{PHONE}{i}"}) for i in range(3)
    ]

    wait_until(lambda: len(threads.sent) == 3)
    released.set()

    codes = {message.task.id: message.otp for message in threads.sent}
    for task in tasks:
        assert threads.taskflow.verify(task.id, "SMS", codes[task.id]).status is Status.SUCCESS


def test_stop_while_a_send_runs_waits_for_it(threads: Post) -> None:
    began, released = threading.Event(), threading.Event()

    def hang(task: Task[Any], otp: str) -> None:
        began.set()
        released.wait(60)

    threads.email.moods = [hang]
    threads.taskflow.start()
    threads.add_for()
    assert began.wait(60)
    threading.Timer(0.05, released.set).start()

    threads.taskflow.stop(timeout=10)

    assert threads.waiting() == []


@pytest.mark.parametrize("started", ["before", "after"])
def test_send_for_a_queue_that_only_another_process_knows_is_done_at_once(
    threads: Post, started: str
) -> None:
    other = TaskFlow()
    other.register_strategy("EMAIL")(OutboxStrategy())

    def add_elsewhere() -> None:
        with threads.make_app(other, send="background", autostart=False).app_context():
            other.add_task("elsewhere", allowed_methods=["EMAIL"], recipient={"email": EMAIL})

    steps: list[Callable[[], None]] = [threads.taskflow.start, add_elsewhere]
    for step in steps if started == "before" else reversed(steps):
        step()

    wait_until(lambda: threads.sent)
    assert threads.sent[0].task.queue == "elsewhere"


def test_codes_that_are_left_to_others_cost_no_housekeeping(post: Post) -> None:
    post.start(queues=["mine"])
    other = TaskFlow()
    other.register_strategy("EMAIL")(OutboxStrategy())

    def add(queue: str) -> None:
        with post.make_app(other, send="background", autostart=False).app_context():
            other.add_task(queue, allowed_methods=["EMAIL"], recipient={"email": EMAIL})

    for queue in ("theirs", "mine"):
        add(queue)
    wait_until(lambda: post.sent)
    with post.redis.monitor() as monitor:
        for queue in ("theirs", "theirs", "mine"):
            add(queue)
        wait_until(lambda: len(post.sent) == 2)
        post.redis.get("end")
        commands = [""]
        while not commands[-1].startswith("GET end"):
            commands.append(str(monitor.next_command()["command"]))

    assert [command for command in commands if command.startswith("HGETALL taskflow:queues")] == []
    assert {message.task.queue for message in post.sent} == {"mine"}


def test_send_by_a_strategy_registered_after_the_start_is_done(threads: Post) -> None:
    threads.taskflow.start()
    current_app.testing = False
    threads.taskflow.register_strategy("LETTER")(Moody(threads.sent))

    threads.add_for("LETTER", recipient={})

    wait_until(lambda: threads.sent)


@pytest.mark.parametrize("end", [ValueError, SystemExit])
def test_teardown_function_that_fails_lets_no_code_be_sent_again(
    post: Post, end: type[BaseException]
) -> None:
    def send(task: Task[Any], otp: str) -> None:
        g.sends = True
        post.email.deliver(task, otp)

    def tear_down(error: BaseException | None) -> None:
        if g.pop("sends", None):
            raise end

    post.app().teardown_appcontext(tear_down)
    post.email.moods = [send]
    post.add_for("EMAIL")
    post.run()
    post.run(after=3600)

    assert len(post.sent) == 1


def test_teardown_functions_are_told_that_a_send_failed(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def send(task: Task[Any], otp: str) -> None:
        g.half_done = True
        raise OSError(otp)

    monkeypatch.setattr(post.email, "send", send)
    app = post.app()
    app.teardown_appcontext(lambda error: told.append(repr(error)) if g.pop("half_done", None) else None)
    task = post.add_for("EMAIL")

    post.run()

    (error,) = told
    assert "OSError raised by Moody" in error
    assert post.status(task) is Status.PENDING
