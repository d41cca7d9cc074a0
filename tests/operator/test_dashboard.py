"""The dashboard without a browser: who is let in, what is shown and changed; `_browser` has the looks."""

from __future__ import annotations

import html
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from redis import Redis
from werkzeug.datastructures import MultiDict

from benchmarks.chaos import Server
from flask_taskflow import ConfigError, Reject, Retry, Task
from flask_taskflow._operator.dashboard.access import LEVELS
from flask_taskflow._operator.dashboard.actions import Target
from flask_taskflow._operator.dashboard.blueprint import ROUTES
from flask_taskflow._operator.dashboard.figures import PERIODS, buckets_of, graphs_of, quantile, seconds_text
from flask_taskflow._operator.dashboard.rendering import error_key, error_parts, shown
from flask_taskflow._store.operations import SERIES, Moment
from tests.conftest import watch
from tests.support import inside
from tests.support.hostile import hostile_strings
from tests.support.stage import Stage
from tests.support.tasks import refused

OWN = {"Sec-Fetch-Site": "same-origin"}
ADDRESS = "somebody@example.com"


class Board:
    """A dashboard, who looks at it, and what it shows of.

    :param rule: where it is mounted.
    """

    def __init__(self, stage: Stage, rule: str = "/ops") -> None:
        self.stage, self.answer = stage, ("ann", "operate")
        self.stage.taskflow.on_task_verified("orders", name="pack")(self.pack)
        self.ticks: list[datetime] = []
        self.stage.taskflow.on_schedule("0 9 * * MON", name="payouts")(self.ticks.append)
        self.app = stage.app(recipient_max_sends=1000)
        dashboard = stage.taskflow.create_dashboard(access=lambda request: self.answer)
        self.app.register_blueprint(dashboard, url_prefix=rule)
        self.client = self.app.test_client()
        self.dead = [self.order(f"no stock for {ADDRESS}") for _ in range(2)] + [self.order("no price")]
        stage.run()
        self.pending = self.order(None, verified=False)

    def pack(self, task: Task[Any]) -> None:
        if task.data == "again":
            raise Retry(after=1000)
        raise Reject(task.data)

    def order(self, data: str | None, *, verified: bool = True) -> Task[Any]:
        task = self.stage.add(
            "orders", data, recipient={"email": ADDRESS}, owner="user:17", summary="An order"
        )
        return self.stage.verify(task) if verified else task

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.get(f"/ops{path}")
        text = answer.text
        answer.close()
        assert answer.status_code == status, text
        return text

    def act(self, action: str, status: int = 303, **form: Any) -> str:
        answer = self.client.post(f"/ops/actions/{action}", data=form, headers=OWN)
        assert answer.status_code == status, answer.text
        return answer.location or answer.text

    @property
    def paths(self) -> list[str]:
        queue = "/queues/orders"
        tasks = [f"/tasks/{task.id}" for task in (self.dead[0], self.pending)]
        periods = [f"{path}?period={period}" for path in ("/", queue) for period in PERIODS]
        of_queue = [f"{queue}/callbacks/pack", f"{queue}/methods/EMAIL", "/dead?queue=orders&error=stock"]
        return [
            "/?queues=ord*",
            "/dead",
            "/tasks",
            "/schedules",
            "/processes",
            "/health",
            *periods,
            *of_queue,
            *tasks,
        ]


@pytest.fixture
def board(stage: Stage) -> Board:
    return Board(stage)


def test_dashboard_without_access_is_refused_with_what_to_write(stage: Stage) -> None:
    told = str(refused(ConfigError, stage.taskflow.create_dashboard))

    assert "With Flask-Login:\ndef access(request):\n" in told


@pytest.mark.parametrize(
    "query",
    ["endpoint=x", "_external=1&_scheme=javascript", "_method=FOO", "_anchor=a", "values=1", "self=1"],
)
def test_names_in_a_query_are_no_more_than_names(board: Board, query: str) -> None:
    links = re.findall('href="([^"]*)">Refresh', board.get(f"/?{query}&done=pause&count=1"))

    assert links == [f"/ops/?{html.escape(query)}"]
    assert f'href="/ops/?{html.escape(query)}&amp;period=day"' in board.get(f"/?{query}")


@pytest.mark.parametrize("answer", [None, True, "admin", ("ann",), ("ann", "root"), (7, "read"), ["read"]])
def test_answer_of_access_that_is_none_lets_nobody_in(board: Board, answer: Any) -> None:
    board.answer = answer

    with pytest.raises(ConfigError, match=r"access\(request\) must answer one of 'none', 'read', 'operate'"):
        board.client.get("/ops/")


@pytest.mark.parametrize("level", LEVELS)
def test_levels_hold_on_every_route(board: Board, level: str) -> None:
    board.answer = ("ann", level)
    names = {"queue": "orders", "name": "pack", "task_id": board.pending.id, "action": "pause"}
    walked = set()
    for rule in board.app.url_map.iter_rules():
        blueprint, _, endpoint = rule.endpoint.partition(".")
        if blueprint != "taskflow_dashboard":
            continue
        walked.add(endpoint)
        path = re.sub(r"<(\w+)>", lambda found: names.get(found[1], "dashboard.css"), rule.rule)
        for method in rule.methods or ():
            form = {"queue": "orders"}
            answer = board.client.open(path, method=method, headers=OWN, data=form, buffered=True)
            denied = LEVELS.index(level) < LEVELS.index(ROUTES[endpoint].level)
            assert (answer.status_code == 403) is denied, (method, path)
            assert answer.status_code < 500
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert not denied or "orders" not in answer.text

    assert walked == set(ROUTES)
    (queue,) = board.stage.taskflow.operations.stats("orders")
    assert queue.paused is (level == "operate")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWN, 303),
        ({"Origin": "http://localhost"}, 303),
        ({**OWN, "Origin": "https://evil.example"}, 303),
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
    ],
)
def test_form_of_another_site_does_nothing(board: Board, headers: dict[str, str], status: int) -> None:
    for path, form in (("actions/pause", {"queue": "orders"}), ("tasks", {"asked": board.pending.id})):
        assert board.client.post(f"/ops/{path}", data=form, headers=headers).status_code == status

    (queue,) = board.stage.taskflow.operations.stats("orders")
    assert queue.paused is (status == 303)


def test_no_page_changes_anything_looks_through_keys_or_shows_what_it_must_not(
    board: Board, redis: Redis
) -> None:
    before = sorted(inside.dump(redis).splitlines())
    texts: list[str] = []

    sent, scripted = watch(redis, lambda: texts.extend(map(board.get, board.paths)))

    assert not {line.split()[0].upper() for line in sent + scripted} & {"SCAN", "KEYS"}
    # The doctor tries whether it may write.
    redis.delete(inside.service().keys.probe)
    assert sorted(inside.dump(redis).splitlines()) == before
    codes = [message.otp for message in board.stage.box]
    for text in texts:
        assert ADDRESS not in text
        assert "somebody" not in text
        assert not [code for code in codes if re.search(rf"\b{code}\b", text)]
    assert any("so****@example.com" in text for text in texts)


def test_every_link_of_every_page_leads_somewhere(board: Board) -> None:
    """Those of schedules among them, whose queue looks like an address."""
    links, seen = set(board.paths), set[str]()

    while links:
        path = links.pop()
        seen.add(path)
        text = board.get(path)
        found = {html.unescape(link) for link in re.findall(r'href="([^"]+)"', text)}
        links |= {link.removeprefix("/ops") for link in found if link.startswith("/")} - seen

    assert "/queues/@schedules" in seen
    assert "/queues/@schedules/callbacks/payouts" in seen


def test_overview_and_queue_tell_what_happened(board: Board) -> None:
    for path in ("/", "/queues/orders"):
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", board.get(path)))
        assert "Added 4 Verified 3 Sent 4 Rejected 0" in text
        assert "75%" in text
    assert "There is no such thing" in board.get("/queues/nonsense", 404)
    for path in ("/queues/orders/callbacks/x", "/queues/orders/methods/X", "/tasks/x", "/dead?queue=x"):
        board.get(path, 404)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("", {"orders", "@schedules"}),
        ("ord*", {"orders"}),
        ("x, @*", {"@schedules"}),
        ("ord", set()),
        ("[", set()),
    ],
)
def test_overview_shows_the_queues_of_patterns(board: Board, asked: str, there: set[str]) -> None:
    text = board.get(f"/?{urlencode({'queues': asked, 'period': 'hour'})}")

    assert set(re.findall(r'data-label="Queue"><a [^>]*>(.*?)</a>', text)) == there
    assert (f'name="queues" value="{asked}"' in text) == bool(asked)
    assert ("Pause all queues" in text) == (not asked)
    assert ("No queue fits." in text) == (not there)


def scripts(redis: Redis, call: Callable[[], object]) -> int:
    redis.config_resetstat()
    call()
    stats: Any = redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_overview_takes_one_script_a_queue_and_none_for_more_open_pages(board: Board, redis: Redis) -> None:
    """``benchmarks/dashboard.py`` says how long it takes."""
    for number in range(10):
        board.stage.add(f"q{number}")
    queues = len(board.stage.taskflow.operations.queues())
    (seen,) = re.findall(r'data-read="(.*?)"', board.get("/"))
    texts: list[str] = []

    def read_again(seen: str) -> None:
        texts.append(board.client.get("/ops/", headers={"Taskflow-Seen": seen}).text)

    assert scripts(redis, lambda: board.get("/")) == queues == 12
    assert scripts(redis, lambda: read_again(seen)) == queues
    assert scripts(redis, lambda: read_again(seen)) == 0
    assert texts[0] == texts[1]
    assert "<html" not in texts[0]
    (newer,) = re.findall(r'data-read="(.*?)"', texts[0])
    board.answer = ("bob", "read")
    assert scripts(redis, lambda: read_again(seen)) == queues
    assert "/ops/actions/" in texts[0]
    assert "/ops/actions/" not in texts[2]
    board.answer = ("ann", "operate")
    assert scripts(redis, lambda: read_again(newer)) == queues


def test_task_tells_its_course_and_what_became_of_it(board: Board) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", board.get(f"/tasks/{board.dead[0].id}")))

    assert "In all Dead pack Dead" in text
    assert re.search(
        "Added .* Posted EMAIL .* Verified EMAIL .* Claimed pack .* Dead pack Reject tests", text
    )


def test_task_is_found_by_its_id_a_deliverys_its_owner_or_an_address(board: Board) -> None:
    for asked in (board.pending.id, f" {board.dead[0].id}:pack "):
        answer = board.client.post("/ops/tasks", data={"asked": asked}, headers=OWN)
        assert answer.location == f"/ops/tasks/{asked.strip().partition(':')[0]}"
    assert "Nothing was found" in board.client.post("/ops/tasks", data={"asked": "x"}, headers=OWN).text
    for asked in ("user:17", f" {ADDRESS.upper()} "):
        found = board.client.post("/ops/tasks", data={"asked": asked}, headers=OWN).text
        assert [f"/ops/tasks/{task.id}" in found for task in (*board.dead, board.pending)] == [True] * 4
        assert "somebody" not in found.lower()


def test_processes_are_seen_until_they_are_forgotten(board: Board, redis: Redis) -> None:
    assert "start a worker" in board.get("/processes")
    board.stage.taskflow.start()
    deadline = time.monotonic() + 15
    while not (found := inside.service().operations.processes()) and time.monotonic() < deadline:
        pass
    text = board.get("/processes")
    assert ("1 process listens" in text, ">Present<" in text, ">orders</a>" in text) == (True, True, True)
    assert [(one.part, one.queues, one.present) for one in found] == [
        ("callbacks", ("@schedules", "orders"), True)
    ]
    redis.hset("taskflow:stuck", found[0].owner, 1)
    assert ">Stuck<" in board.get("/processes")
    redis.delete("taskflow:stuck")

    board.stage.taskflow.stop(0)
    ((name, told),) = cast(dict[bytes, bytes], redis.hgetall("taskflow:processes")).items()
    heard, *rest = told.split(b" ")
    redis.hset("taskflow:processes", name, b" ".join([b"%d" % (int(heard) - 60_000), *rest]))
    assert ">Gone<" in board.get("/processes")
    redis.hset("taskflow:processes", b"other callbacks", b" ".join([b"%d" % (int(heard) - 700_000), *rest]))
    redis.hset("taskflow:processes", "junk", "1 2 junk")
    inside.store().processes.tell_parts("third", {"callbacks": ["orders"]})
    assert {one.owner for one in inside.service().operations.processes()} == {found[0].owner, "third"}


Effect = Callable[[Board], object]
# Action, its form, what is asked before, and what is different then.
DONE: list[tuple[str, dict[str, Any], str, Effect, object]] = [
    ("pause", {"queue": "orders"}, "", lambda board: stats(board).paused, True),
    ("resume", {"queue": "orders"}, "", lambda board: stats(board).paused, False),
    ("pause_all", {}, "Pause 2 queues", lambda board: stats(board).paused, True),
    ("resume_all", {}, "", lambda board: stats(board).paused, False),
    ("purge", {"queue": "orders"}, "Forget 1 deliveries of orders", lambda board: count(board, "delayed"), 0),
    ("replay", {"delivery": "all"}, "", lambda board: count(board, "ready"), 3),
    ("discard", {"delivery": "all"}, "Forget 3 dead letters", lambda board: count(board, "dead"), 0),
    (
        "replay_all",
        {"queue": "orders"},
        "Let 3 dead letters of orders",
        lambda board: count(board, "ready"),
        3,
    ),
    (
        "discard_all",
        {"queue": "orders", "callback": "pack", "error": "no stock"},
        "Forget 2 dead letters of pack of orders",
        lambda board: count(board, "dead"),
        1,
    ),
    ("pause_schedule", {"callback": "payouts"}, "", lambda board: schedule(board).paused, True),
    ("resume_schedule", {"callback": "payouts"}, "", lambda board: schedule(board).paused, False),
    (
        "run_schedule",
        {"callback": "payouts"},
        "Run payouts now, 1 time besides its ticks?",
        lambda board: (board.stage.run(), len(board.ticks))[1],
        1,
    ),
    (
        "cancel",
        {"task": "pending"},
        "Cancel 1 task",
        lambda board: board.stage.taskflow.get_task(board.pending.id).status,
        "CANCELLED",
    ),
    (
        "erase",
        {"task": "pending"},
        "Erase 1 task, for good?",
        lambda board: len(board.stage.taskflow.tasks_of("user:17")),
        4,
    ),
]


def stats(board: Board) -> Any:
    return board.stage.taskflow.operations.stats("orders")[0]


def schedule(board: Board) -> Any:
    return board.stage.taskflow.operations.schedules()[0]


def count(board: Board, state: str) -> int:
    return sum(getattr(item, state) for item in stats(board).callbacks)


def test_question_names_a_queue_and_its_only_callback_once() -> None:
    targets = [
        Target.read(MultiDict({"queue": "orders", "callback": name})) for name in ("orders", "pack", "")
    ]

    assert [each.of for each in targets] == [" of orders", " of pack of orders", " of orders"]


@pytest.mark.parametrize(("action", "form", "asked", "effect", "after"), DONE, ids=[row[0] for row in DONE])
def test_action_asks_if_it_destroys_is_done_once_and_recorded(
    board: Board,
    caplog: pytest.LogCaptureFixture,
    action: str,
    form: dict[str, Any],
    asked: str,
    effect: Effect,
    after: object,
) -> None:
    board.order("again")
    board.stage.run()
    if action == "resume_schedule":
        board.stage.taskflow.operations.pause_schedule("payouts")
    elif action.startswith("resume"):
        board.stage.taskflow.operations.pause("orders" if action == "resume" else "*")
    letters = [f"{task.id}:pack" for task in board.dead]
    given = {**form, **({"delivery": letters} if "delivery" in form else {})}
    given |= {"task": board.pending.id} if "task" in form else {}
    before = effect(board)
    caplog.set_level(logging.INFO, "flask_taskflow.audit")
    caplog.clear()
    if asked:
        assert asked in board.act(action, 200, **given)
        assert effect(board) == before != after
        assert not [record for record in caplog.records if record.message == "operated"]
        given["sure"] = "yes"

    shown = board.client.get(board.act(action, **given)).text

    assert effect(board) == after
    assert 'class="note" role="status"' in shown
    told = {(r.action, r.by) for r in caplog.records if r.message == "operated"}  # type: ignore[attr-defined]
    assert told == {
        (action.removesuffix("_all") if "pause" in action or "resume" in action else action, "ann")
    }


def test_what_dies_after_the_question_is_left_alone(board: Board) -> None:
    asked = board.act("discard_all", 200, queue="orders")
    (before,) = re.findall(r'name="before" value="(.*?)"', asked)
    board.stage.verify(board.pending)
    board.stage.run()

    board.act("discard_all", queue="orders", before=before, sure="yes")

    assert count(board, "dead") == 1


@pytest.mark.parametrize(
    ("action", "form", "status"),
    [
        ("nonsense", {}, 404),
        ("pause", {"queue": "x"}, 404),
        ("purge", {"queue": "x"}, 404),
        ("cancel", {"task": "a" * 34, "sure": "yes"}, 404),
        ("cancel", {"task": "dead", "sure": "yes"}, 409),
        ("erase", {"task": "a" * 34, "sure": "yes"}, 404),
        ("replay_all", {"queue": "orders", "before": "soon", "sure": "yes"}, 400),
    ],
)
def test_action_on_what_is_not_there_is_told(
    board: Board, action: str, form: dict[str, str], status: int
) -> None:
    given = {name: board.dead[0].id if word == "dead" else word for name, word in form.items()}

    board.act(action, status, **given)


def test_letters_that_others_took_meanwhile_are_not_counted(board: Board) -> None:
    letters = [f"{task.id}:pack" for task in board.dead]
    board.stage.taskflow.operations.discard(letters[0])

    assert "count=2" in board.act("replay", delivery=letters)


def test_reader_sees_no_button(board: Board) -> None:
    board.answer = ("bob", "read")

    for path in board.paths:
        assert "/ops/actions/" not in board.get(path)


def test_page_while_redis_is_away_is_503(stage: Stage, mortal: Server) -> None:
    app = stage.app(redis_url=mortal.url)
    app.register_blueprint(stage.taskflow.create_dashboard(access=lambda request: "read"))
    mortal.kill()

    answer = app.test_client().get("/")

    assert (answer.status_code, "Redis does not answer" in answer.text) == (503, True)


def test_a_thousand_hostile_strings_are_inert(board: Board, redis: Redis) -> None:
    """As errors, which are the text of anybody."""
    key = inside.key_of("orders", "pack", "error")
    ids, hostile = [task.id for task in board.dead], hostile_strings()
    plain = None
    for start in range(0, 1000, 3):
        errors = [text.encode("utf-8", "replace") for text in hostile[start : start + 3]]
        redis.hset(key, mapping=dict(zip(ids, errors, strict=False)))
        text = board.get("/queues/orders/callbacks/pack")
        tags = re.findall(r"<[a-z/!]+", text)
        plain = plain or tags
        assert tags == plain
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann@example.com", "a****@example.com"),
        ("to <somebody@example.com>, now", "to <so****@example.com>, now"),
        ("call +1 202 555 0110.", "call +1 ****10."),
        ("so****@example.com", "so****@example.com"),
        ("@EMAIL at 2026-11-26T10:00:00+00:00", "@EMAIL at 2026-11-26T10:00:00+00:00"),
        ("a\nb\x1b", "a\\nb\\x1b"),
    ],
)
def test_text_is_shown_without_addresses_and_controls(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_error_is_found_by_what_is_no_address_in_it() -> None:
    assert error_parts("E: no (or yes) (at shop.py:3 in pay)") == ("E: no (or yes)", "shop.py:3 in pay")
    assert error_parts("E: no") == ("E: no", "")
    assert error_key("E: ann@example.com has no money\nat all (at shop.py:3 in pay)") == "has no money"


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({"5": 10}, 0.5, 2.5),
        ({"5": 50, "10": 50}, 0.95, 9.5),
        ({"30": 1, "inf": 99}, 0.5, float("inf")),
    ],
)
def test_share_of_a_histogram_is_estimated(buckets: dict[str, int], share: float, expected: object) -> None:
    counts = {f"verify EMAIL {bound}": number for bound, number in buckets.items()}

    assert quantile("verify", buckets_of(counts, "verify", "EMAIL"), share) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.25, "250 ms"),
        (59, "59 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (864000, "10 d"),
        (float("inf"), "over 1 h"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize("period", PERIODS.values(), ids=PERIODS)
def test_graphs_have_each_moment_and_say_their_numbers(period: Any) -> None:
    now = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    last = period.moments(now)[-1]
    history = [Moment(int(last.timestamp()), [7] * len(SERIES)), Moment(0, [9] * len(SERIES))]

    tasks, *_ = graphs_of(period, history, now)

    assert [len(line.counts) for line in tasks.lines] == [period.span.count] * 4
    assert tasks.lines[0].counts[-2:] == (0, 7)
    assert f"Added: 7 in all, at most 7 at {last:%Y-%m-%d %H:%M} UTC" in tasks.drawing
    assert tasks.top == 7


def test_dashboard_under_a_prefix_with_variables_stays_there(stage: Stage) -> None:
    board = Board(stage, "/<tenant>")

    pages = [board.get(path) for path in [*board.paths, "/"]]
    led = board.act("pause", queue="orders")

    links = {link for page in pages for link in re.findall(r'(?:href|action|src)="(/[^"]*)"', page)}
    assert links
    assert [link for link in {*links, led} if not link.startswith("/ops/")] == []
