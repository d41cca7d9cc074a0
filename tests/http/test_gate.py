"""A view that waits for its code: once, with the request as it was confirmed, for who asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask, g, request, session
from flask.testing import FlaskClient
from flask_wtf import CSRFProtect
from flask_wtf.csrf import generate_csrf
from redis import Redis
from werkzeug.exceptions import Gone
from werkzeug.test import TestResponse

from flask_taskflow import ConfigError, InvalidTask, Retry, SendLimitReached
from flask_taskflow.testing import redis_server, travel
from tests.support.stage import Stage
from tests.support.tasks import EMAIL

HTML = {"Accept": "text/html"}
OWN = {**HTML, "Sec-Fetch-Site": "same-origin"}
FORM = {"amount": "50", "to": "Bob & Söhne"}


class Shop:
    """An app with a view that waits for its code, and a browser or a client of it."""

    def __init__(
        self,
        stage: Stage,
        fresh: float | None = None,
        prefix: str = "",
        before: Callable[[Flask], None] = lambda app: None,
        **settings: Any,
    ) -> None:
        self.stage, self.runs, self.answer = stage, list[tuple[Any, ...]](), self.done
        self.app: Flask = stage.app(**{"recipient_max_sends": 10_000, "resend_cooldown": 0, **settings})
        before(self.app)
        self.app.register_blueprint(
            stage.taskflow.create_blueprint(routes=["page", "verify", "status"]),
            url_prefix=f"{prefix}/taskflow",
        )
        self.gate = stage.taskflow.requires_confirmation(
            "transfers",
            recipient=lambda: {"email": EMAIL},
            summary=lambda: f"Transfer to {(request.get_json(silent=True) or request.form).get('to')}",
            owner=lambda: session.get("user"),  # type: ignore[arg-type, return-value] # as an app may do
            fresh=fresh,
        )
        rule = f"{prefix}/transfers/<int:n>"
        self.app.add_url_rule(rule, view_func=self.gate(self.transfer), methods=["POST", "PUT"])
        self.client = self.browser()

    def transfer(self, n: int, **prefix: str) -> Any:
        given = request.get_json(silent=True) or request.form.to_dict()
        self.runs.append((request.method, n, request.args.get("q"), given))
        session["runs"] = len(self.runs)
        return self.answer()

    def done(self) -> Any:
        return {"run": len(self.runs)}, 201

    def browser(self, user: str = "ann") -> FlaskClient:
        client = self.app.test_client()
        with client.session_transaction() as known:
            known["user"] = user
        return client

    def ask(self, client: FlaskClient | None = None, **options: Any) -> TestResponse:
        given = {"path": "/transfers/1?q=x", "data": FORM, "headers": HTML, **options}
        return (client or self.client).post(given.pop("path"), **given)

    def type(self, url: str) -> str:
        """Type the code at a page; return where the browser goes on by itself."""
        code = {"otp": self.stage.box[-1].otp, "method": "EMAIL"}
        return goes_on(self.client, self.client.post(url, data=code, headers=OWN))

    def confirmed(self, **options: Any) -> str:
        """Ask as a client does, type the code, return the task's id."""
        asked = self.ask(**{"headers": {}, **options})
        assert asked.status_code == 202
        code = {"otp": self.stage.box[-1].otp, "method": "EMAIL"}
        assert self.client.post(asked.get_json(force=True)["links"]["verify"], json=code).status_code == 200
        return str(asked.get_json(force=True)["task"])


def goes_on(client: FlaskClient, typed: TestResponse) -> str:
    """Return where a browser goes on by itself after the right code."""
    page = client.get(typed.location, headers=HTML)
    assert (typed.status_code, page.status_code) == (303, 200)
    return page.headers["Refresh"].removeprefix("0; url=")


@pytest.fixture
def shop(stage: Stage) -> Shop:
    return Shop(stage)


def test_browser_is_led_to_the_page_and_back_to_what_it_asked_for(shop: Shop) -> None:
    page = shop.ask().location
    assert shop.runs == []
    assert "Transfer to Bob &amp; Söhne" in shop.client.get(page, headers=HTML).text
    back = shop.type(page)
    answers = [shop.client.get(back, headers=HTML) for _ in range(2)]

    assert [answer.get_json() for answer in answers] == [{"run": 1}, {"run": 1}]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert shop.runs == [("POST", 1, "x", FORM)]
    with shop.client.session_transaction() as known:
        assert dict(known) == {"user": "ann", "runs": 1}
    travel(61)
    late = shop.client.get(back, headers=HTML)
    assert (late.status_code, late.location, len(shop.runs)) == (303, f"{page}?run=done", 1)
    told = shop.client.get(late.location, headers=HTML)
    assert "It is not done again." in told.text
    assert ("Continue" in told.text, "Refresh" in told.headers) == (False, False)


def test_double_click_is_one_task_until_that_is_over(shop: Shop) -> None:
    pages = [shop.ask().location for _ in range(2)]
    shop.client.get(shop.type(pages[0]))
    pages.append(shop.ask().location)

    assert pages[0] == pages[1] != pages[2]
    assert len(shop.stage.box) == 2


@pytest.mark.parametrize(
    "body", [{"data": FORM}, {"json": FORM}, {"data": FORM, "content_type": "multipart/form-data"}]
)
def test_client_repeats_its_request_with_the_task(shop: Shop, body: dict[str, Any]) -> None:
    body = {"data": None, **body}
    if body["data"] is None:
        del body["data"]
    asked = shop.client.post("/transfers/1?q=x", **body)
    told = asked.get_json(force=True)
    assert (asked.status_code, asked.mimetype) == (202, "application/problem+json")
    assert told["code"] == "confirmation_required"
    assert set(told["links"]) == {"page", "verify", "status"}
    code = {"otp": shop.stage.box[-1].otp, "method": "EMAIL"}
    headers = {"Taskflow-Task": told["task"]}
    early = shop.client.post("/transfers/1?q=x", headers=headers, **body)
    shop.client.post(told["links"]["verify"], json=code)
    answers = [shop.client.post("/transfers/1?q=x", headers=headers, **body) for _ in range(2)]

    assert (early.status_code, early.get_json(force=True)["task"]) == (202, told["task"])
    assert [(answer.status_code, answer.json) for answer in answers] == [(201, {"run": 1})] * 2
    assert shop.runs == [("POST", 1, "x", FORM)]


def test_confirmed_request_waits_for_no_callback(shop: Shop) -> None:
    shop.confirmed()

    assert shop.stage.keys("unclaimed") == []


def test_view_runs_once_for_200_concurrent_retries(shop: Shop) -> None:
    headers = {"Taskflow-Task": shop.confirmed()}
    cookies = shop.client._cookies

    def retry(_: int) -> tuple[int, Any]:
        client = shop.app.test_client()
        client._cookies = dict(cookies or {})
        answer = shop.ask(client, headers=headers)
        return answer.status_code, answer.get_json(force=True)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(retry, range(200)))

    assert answers == [(201, {"run": 1})] * 200
    assert len(shop.runs) == 1


def test_request_with_another_byte_is_refused(shop: Shop) -> None:
    headers = {"Taskflow-Task": shop.confirmed(), "Content-Type": "application/x-www-form-urlencoded"}
    body, chance, statuses = urlencode(FORM).encode(), random.Random(1), set()

    def mutated(text: bytes) -> bytes:
        at = chance.randrange(len(text))
        byte = chance.choice([byte for byte in range(33, 127) if byte not in (text[at], ord("#"))])
        return text[:at] + bytes([byte]) + text[at + 1 :]

    asked = {("PUT", 1, b"q=x", body), ("POST", 2, b"q=x", body), ("POST", 1, b"", body)}
    while len(asked) < 1000:
        part = chance.choice(((mutated(b"q=x"), body), (b"q=x", mutated(body))))
        asked.add(("POST", 1, *part))
    for method, n, query, data in asked:
        path = f"/transfers/{n}?{query.decode()}"
        statuses.add(shop.client.open(path, method=method, data=data, headers=headers).status_code)

    assert (statuses, shop.runs) == ({403}, [])
    assert shop.ask(headers={"Taskflow-Task": headers["Taskflow-Task"]}).status_code == 201


PART = 'Content-Disposition: form-data; name="to"\r\n\r\nBob\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", '{"to": "Bob", "n": 1}'),
        ("multipart/form-data; boundary=a", f"n: 1\r\n--a\r\n{PART}--a--\r\n"),
        ("multipart/form-data; boundary=a", f"--a\r\n{PART}--a--\r\nn: 1"),
        ("multipart/form-data; boundary=a", f"--a\r\nN: 1\r\n{PART}--a--\r\n"),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_view_reads_no_bytes_that_were_not_confirmed(shop: Shop, kind: str, body: str, kept: bool) -> None:
    """Whatever a body says to be, and also where the app reads it before it is asked for a code."""
    seen: list[bytes] = []

    def view() -> Any:
        seen.append(request.get_data() + repr(request.form).encode())
        return "ran"

    if kept:
        shop.app.before_request(lambda: request.get_data() and None)
    shop.app.add_url_rule("/pay", view_func=shop.gate(view), methods=["POST"], endpoint="pay")
    asked: dict[str, Any] = {"path": "/pay", "content_type": kind}
    for changed in (body, body.replace("1", "1000000")):
        task_id = shop.confirmed(data=body, **asked)
        shop.ask(data=changed, headers={"Taskflow-Task": task_id}, **asked)

    assert len(set(seen)) == 1


def keep_body() -> None:
    g.body = request.get_data(cache=False)


def read_some() -> None:
    request.stream.read(3)


FORM_TYPES = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", *FORM_TYPES])
@pytest.mark.parametrize("read", [keep_body, read_some])
def test_body_that_others_have_read_and_not_kept_is_refused(
    shop: Shop, read: Callable[[], None], kind: str
) -> None:
    shop.app.before_request(read)
    shop.app.add_url_rule("/see", view_func=shop.gate(lambda: shop.transfer(1)), endpoint="see")
    answer = shop.ask(data=b'{"to": "Bob"}', content_type=kind)

    assert (answer.status_code, len(shop.stage.box)) == (415, 0)
    assert "its body was read before" in answer.text
    assert shop.client.get("/see", headers=HTML).status_code == 303


@pytest.mark.parametrize(("name", "content"), [("", ""), ("", "x"), ("x.txt", "")])
def test_form_waits_if_no_file_was_chosen_for_it(shop: Shop, name: str, content: str) -> None:
    file = PART.replace('"to"', f'"f"; filename="{name}"').replace("Bob", content)
    body = f"--a\r\n{PART}--a\r\n{file}--a--\r\n"
    answer = shop.ask(data=body, content_type="multipart/form-data; boundary=a")

    assert answer.status_code == (415 if name or content else 303)
    if answer.status_code == 303:
        shop.client.get(shop.type(answer.location))
        assert shop.runs == [("POST", 1, "x", {"to": "Bob"})]


def test_code_that_could_not_be_sent_is_asked_for_at_the_page(shop: Shop) -> None:
    shop.stage.box.fail(Retry("down"))
    page = shop.ask().location
    told = shop.client.get(page, headers=HTML).text
    again = shop.client.post(page, data={"action": "resend", "method": "EMAIL"}, headers=OWN)

    assert "We have sent no code by e-mail yet." in told
    assert "Send a code by e-mail to <bdi>" in told
    assert "We sent a code by e-mail" in shop.client.get(again.location, headers=HTML).text
    assert shop.client.get(shop.type(page)).status_code == 201


def test_code_for_a_view_goes_to_no_other_address(stage: Stage) -> None:
    shop = Shop(stage, correctable=["email"])
    page = shop.ask().location
    offered = 'name="email"' in shop.client.get(page, headers=HTML).text
    form = {"action": "correct", "method": "EMAIL", "email": "eve@example.com"}

    assert (offered, shop.client.post(page, data=form, headers=OWN).status_code) == (False, 422)
    assert [message.addresses for message in stage.box] == [(EMAIL,)]


def test_others_and_other_browsers_are_refused_alike(shop: Shop) -> None:
    task_id = shop.confirmed()
    replay = f"/taskflow/tasks/{task_id}/replay"
    elsewhere, unknown = shop.browser(), "a" * 34
    seen = [elsewhere.get(replay), elsewhere.get(f"/taskflow/tasks/{unknown}/replay")]
    asked = [
        shop.ask(elsewhere, headers={"Taskflow-Task": name}) for name in (task_id, unknown, "x", "é" * 34)
    ]
    with shop.client.session_transaction() as known:
        known["user"] = "bob"
    asked.append(shop.ask(headers={"Taskflow-Task": task_id}))

    assert [(answer.status_code, answer.data) for answer in seen] == [(404, seen[0].data)] * 2
    assert [(answer.status_code, answer.data) for answer in asked] == [(403, asked[0].data)] * 5
    assert shop.client.get(replay).status_code == 403
    assert shop.runs == []


def test_code_serves_for_a_while_if_the_app_says_so(stage: Stage) -> None:
    shop = Shop(stage, fresh=300)
    shop.client.get(shop.type(shop.ask().location))
    again, other = shop.ask(data={"to": "Cid"}), shop.ask(shop.browser(), data={"to": "Dan"})
    travel(301)
    late = shop.ask(data={"to": "Eve"})
    cookies = [cookie for cookie in late.headers.getlist("Set-Cookie") if "taskflow-" in cookie]

    assert [answer.status_code for answer in (again, other, late)] == [201, 303, 303]
    assert [run[3]["to"] for run in shop.runs] == ["Bob & Söhne", "Cid"]
    assert ["Max-Age=960" in cookie for cookie in cookies] == [True]


class Poor(Exception):
    """What an app has a handler for."""


def fail(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("error", [Gone(), Poor()])
def test_refusal_of_the_view_is_its_answer(shop: Shop, error: Exception) -> None:
    shop.app.register_error_handler(Poor, lambda _: ("Not enough money.", 410))
    shop.answer = lambda: fail(error)
    headers = {"Taskflow-Task": shop.confirmed()}
    answers = [shop.ask(headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [410, 410]
    assert answers[0].data == answers[1].data
    assert len(shop.runs) == 1


@pytest.mark.parametrize(
    ("answer", "status"), [(lambda: fail(ValueError()), 500), (lambda: "x" * 70_000, 200)]
)
def test_nobody_waits_for_an_answer_that_is_not_kept(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any], status: int
) -> None:
    shop.app.config["PROPAGATE_EXCEPTIONS"] = False
    shop.answer, slept = answer, list[float]()
    monkeypatch.setattr("flask_taskflow._http.gate._PATIENCE", 1)
    monkeypatch.setattr("flask_taskflow._http.gate.time.sleep", slept.append)
    headers = {"Taskflow-Task": shop.confirmed()}

    assert [shop.ask(headers=headers).status_code for _ in range(2)] == [status, 409]
    assert (slept, len(shop.runs)) == ([], 1)


def test_answer_of_a_view_is_given_though_it_cannot_be_kept(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server() as url:
        shop = Shop(stage, TASKFLOW_REDIS_URL=url)
        headers = {"Taskflow-Task": shop.confirmed()}

        def pay() -> Any:
            Redis.from_url(url).shutdown(nosave=True)
            return shop.done()

        shop.answer = pay
        answer = shop.ask(headers=headers)

    assert (answer.status_code, answer.json) == (201, {"run": 1})
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    ("ask", "status", "code", "told"),
    [
        ({"data": {"to": "B"}}, 429, "send_limit", "as many codes as you may have"),
        ({"data": {"to": "B\nC"}}, 422, "invalid_task", "cannot be used here"),
        ({"data": {"to": "B" * 300}}, 422, "invalid_task", "cannot be used here"),
    ],
)
def test_what_makes_no_task_is_told_by_a_page_or_a_problem(
    stage: Stage, ask: dict[str, Any], status: int, code: str, told: str
) -> None:
    shop = Shop(stage, recipient_max_sends=1)
    shop.ask()
    page, problem = shop.ask(**ask), shop.ask(**ask, headers={})

    assert (page.status_code, page.mimetype) == (status, "text/html")
    assert told in page.text
    assert (problem.status_code, problem.get_json(force=True)["code"]) == (status, code)
    assert ("Retry-After" in page.headers, "Retry-After" in problem.headers) == (status == 429,) * 2
    assert [answer.headers["Cache-Control"] for answer in (page, problem)] == ["no-store"] * 2


def test_app_answers_what_makes_no_task_by_a_handler_of_its_own(stage: Stage) -> None:
    shop = Shop(stage, recipient_max_sends=1)
    stage.taskflow.register_error_handlers(shop.app)
    shop.app.register_error_handler(Exception, lambda _: ("Something went wrong.", 500))
    shop.app.register_error_handler(SendLimitReached, lambda _: ("Come back tomorrow.", 429))
    ours, own = shop.ask(data={"to": "B\nC"}), [shop.ask(data={"to": to}) for to in "BC"][1]

    assert (ours.status_code, ours.mimetype) == (422, "text/html")
    assert (own.status_code, own.text) == (429, "Come back tomorrow.")


def test_redis_that_is_away_is_told_by_a_page_or_a_problem(stage: Stage) -> None:
    with redis_server() as url:
        shop = Shop(stage, TASKFLOW_REDIS_URL=url)
    answers = [shop.ask(), shop.ask(headers={})]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert [answer.mimetype for answer in answers] == ["text/html", "application/problem+json"]


def test_other_person_of_the_browser_sees_the_page_of_an_unknown_task(shop: Shop) -> None:
    back = shop.type(shop.ask().location)
    with shop.client.session_transaction() as known:
        known["user"] = "bob"
    answer = shop.client.get(back, headers=HTML)

    assert (answer.status_code, answer.mimetype, shop.runs) == (404, "text/html", [])
    assert "There is nothing to confirm here" in answer.text


@pytest.mark.parametrize("nobody", [None, ""])
def test_nobody_is_asked_for_no_code(shop: Shop, nobody: str | None) -> None:
    with shop.client.session_transaction() as known:
        known["user"] = nobody

    assert (shop.ask().status_code, len(shop.stage.box)) == (401, 0)


def test_owner_that_is_no_text_is_the_apps_to_mend(shop: Shop) -> None:
    with shop.client.session_transaction() as known:
        known["user"] = 17

    with pytest.raises(ConfigError, match="must return a str, not int"):
        shop.ask()


@pytest.mark.parametrize(
    "bad",
    [
        {"fresh": "300"},
        {"fresh": -1},
        {"allowed_methods": "EMAIL"},
        {"allowed_methods": []},
        {"queue": "a b"},
        {"recipient": {"email": EMAIL}},
        {"summary": "Transfer"},
        {"owner": "ann"},
    ],
)
def test_bad_argument_is_refused_where_it_stands(stage: Stage, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        stage.taskflow.requires_confirmation(**{"queue": "q", "recipient": dict, **bad})


def test_second_gate_is_refused_where_it_stands(shop: Shop) -> None:
    gated = shop.gate(shop.transfer)

    @wraps(gated)
    def between(n: int) -> Any:
        return gated(n)

    for view in (gated, between):
        with pytest.raises(ConfigError, match="has a gate already"):
            shop.gate(view)


def test_head_sends_no_code_and_runs_nothing(shop: Shop) -> None:
    shop.app.add_url_rule("/balance", view_func=shop.gate(lambda: shop.transfer(1)), endpoint="balance")
    heads = [shop.client.head("/balance", headers=HTML)]
    back = shop.type(shop.client.get("/balance", headers=HTML).location)
    heads.append(shop.client.head(back, headers=HTML))

    assert [head.status_code for head in heads] == [405, 405]
    assert ["HEAD" in head.headers["Allow"] for head in heads] == [False, False]
    assert (len(shop.stage.box), shop.runs) == (1, [])
    assert shop.client.get(back).headers["Cache-Control"] == "no-store"


def test_same_request_again_and_again_is_refused_until_the_first_is_forgotten(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_taskflow._http.gate._AGAIN_MAX", 2)
    for _ in range(2):
        shop.confirmed()
    answer = shop.ask()

    assert (answer.status_code, len(shop.stage.box)) == (429, 2)
    travel(float(answer.headers["Retry-After"]))
    assert shop.ask().status_code == 303


@pytest.mark.parametrize(
    ("body", "status"),
    [({"data": {"f": (BytesIO(b"x"), "x.txt")}}, 415), ({"data": {"to": "x" * 4000}}, 413)],
)
def test_what_cannot_be_kept_is_refused_with_a_sentence(
    stage: Stage, body: dict[str, Any], status: int
) -> None:
    shop = Shop(stage, max_data_size=3000)
    answer = shop.ask(**body)

    assert (answer.status_code, len(shop.stage.box)) == (status, 0)
    assert "A request that waits for its code can have" in answer.text


def test_form_with_a_token_against_csrf_is_replayed_with_it(stage: Stage) -> None:
    shop = Shop(stage)
    CSRFProtect(shop.app)
    shop.app.add_url_rule("/token", view_func=generate_csrf)
    token = shop.client.get("/token").text
    data = {**FORM, "csrf_token": token}
    page = shop.ask(data=data).location
    form = {"otp": stage.box[-1].otp, "method": "EMAIL", "csrf_token": token}

    back = shop.client.post(page, data=form, headers=OWN)
    assert shop.client.get(goes_on(shop.client, back)).json == {"run": 1}
    assert shop.ask().status_code == 400


@pytest.mark.parametrize("referrer", [None, "https://elsewhere.example/", "https://localhost/page"])
def test_form_over_https_is_replayed_whatever_the_browser_says_of_where_it_was(
    stage: Stage, referrer: str | None
) -> None:
    shop, origins = Shop(stage), list[str | None]()
    CSRFProtect(shop.app)
    shop.app.before_request(lambda: origins.append(request.origin))
    shop.app.add_url_rule("/token", view_func=generate_csrf)
    safe: dict[str, Any] = {"base_url": "https://localhost"}
    own = {**OWN, "Referer": "https://localhost/form"}
    with shop.client.session_transaction(**safe) as known:
        known["user"] = "ann"
    token = shop.client.get("/token", **safe).text
    page = shop.ask(data={**FORM, "csrf_token": token}, headers=own, **safe).location
    form = {"otp": stage.box[-1].otp, "method": "EMAIL", "csrf_token": token}
    shop.client.post(page, data=form, headers=own, **safe)
    after = {"Referer": referrer} if referrer else {}
    answer = shop.client.get(f"{page}/replay", headers=after, **safe)

    assert (answer.status_code, answer.get_json()) == (201, {"run": 1})
    assert origins[-2:] == [None, "https://localhost"]


def test_gate_under_a_prefix_with_variables_leads_to_the_page_there(stage: Stage) -> None:
    shop, path = Shop(stage, prefix="/<tenant>"), "/acme/transfers/1"

    page = shop.ask(path=path).location
    confirmed = shop.client.get(shop.type(page), headers=HTML)
    links = shop.ask(path=path, headers={}, json={"to": "Bob"}, data=None).get_json(force=True)["links"]

    assert confirmed.status_code == 201
    assert all(link.startswith("/acme/taskflow/tasks/") for link in [page, *links.values()])


def test_gate_leads_to_no_route_under_a_prefix_that_it_does_not_know(stage: Stage) -> None:
    api = stage.taskflow.create_blueprint(name="api", routes=["page", "verify", "resend"])
    shop = Shop(stage, before=lambda app: app.register_blueprint(api, url_prefix="/<tenant>/api"))
    links = shop.ask(headers={}).get_json(force=True)["links"]

    assert set(links) == {"page", "verify", "status"}
    assert all(link.startswith("/taskflow/tasks/") for link in [shop.ask().location, *links.values()])


@pytest.mark.parametrize("elsewhere", ["https://eu.example", "https://us.example/bank"])
def test_what_was_confirmed_for_one_host_or_mount_runs_at_no_other(shop: Shop, elsewhere: str) -> None:
    # Whoever holds the cookies can bring them anywhere.
    held = [f"{cookie.key}={cookie.value}" for cookie in (shop.client._cookies or {}).values()]

    def go(way: str, path: str, base_url: str, **more: Any) -> TestResponse:
        headers = {"Cookie": "; ".join(held), **more.pop("headers", {})}
        client = shop.app.test_client(use_cookies=False)
        answer = client.open(path, method=way, base_url=base_url, headers=headers, **more)
        held.extend(cookie.partition(";")[0] for cookie in answer.headers.getlist("Set-Cookie"))
        return answer

    here = "https://us.example"
    told = go("POST", "/transfers/1?q=x", here, data=FORM).get_json(force=True)
    code = {"otp": shop.stage.box[-1].otp, "method": "EMAIL"}
    assert go("POST", told["links"]["verify"], here, json=code).status_code == 200
    again = {"data": FORM, "headers": {"Taskflow-Task": told["task"]}}
    answers = [
        go("POST", "/transfers/1?q=x", elsewhere, **again).status_code,
        go("GET", f"{told['links']['page']}/replay", elsewhere).status_code,
    ]

    assert (answers, shop.runs) == ([403, 404], [])
    assert go("GET", f"{told['links']['page']}/replay", here).status_code == 201


def test_replayed_request_has_what_a_server_in_front_said_of_it(stage: Stage) -> None:
    shop, inner = Shop(stage), Flask.wsgi_app

    def told(environ: Any, start_response: Any) -> Any:
        return inner(shop.app, {**environ, "gateway.user": "ann"}, start_response)

    shop.app.wsgi_app = told  # type: ignore[method-assign] # as Flask's docs wrap it
    shop.app.before_request(lambda: seen.append(request.environ.get("gateway.user")))
    seen: list[str | None] = []
    shop.client.get(shop.type(shop.ask().location))

    assert (len(shop.runs), set(seen)) == (1, {"ann"})


def test_form_without_a_field_is_the_same_however_it_is_bounded(shop: Shop) -> None:
    shop.confirmed(data=b"--a--\r\n", content_type="multipart/form-data; boundary=a")
    shop.ask(data=b"--b--\r\n", content_type="multipart/form-data; boundary=b")
    shop.ask(data=b"--c--\r\n", content_type="multipart/form-data; boundary=c")

    assert len(shop.stage.box) == 2


def test_body_without_a_length_is_read_no_further_than_it_can_be_kept(stage: Stage) -> None:
    shop, body = Shop(stage, max_data_size=3000), BytesIO(b"x" * 1_000_000)
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = shop.client.post("/transfers/1", input_stream=body, environ_overrides=chunked)

    assert (answer.status_code, body.tell() < 100_000) == (413, True)
