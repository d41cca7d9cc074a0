"""The page for a code in a real browser, by the criteria of WCAG 2.2 whose numbers the tests bear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from flask import Flask, current_app, redirect, request
from markupsafe import escape
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from flask_taskflow import BaseStrategy, Task
from flask_taskflow._service import current_service
from flask_taskflow.testing import travel
from tests.support.browser import PATIENCE, Tab, served, wait_for
from tests.support.hostile import MARKUP, hostile_strings
from tests.support.stage import Stage
from tests.support.tasks import BOTH, EMAIL, PHONE, other

pytestmark = pytest.mark.slow


class Visit(Tab):
    """Somebody with a browser at the page of a task."""

    def __init__(self, stage: Stage, driver: webdriver.Chrome, origin: str, pictures: Path) -> None:
        super().__init__(driver, origin, pictures)
        self.stage = stage

    def open(self, **options: Any) -> Task[Any]:
        recipient = {"email": EMAIL, "phone_number": PHONE}
        given = {"allowed_methods": BOTH, "recipient": recipient, "summary": "Transfer of 50 € to Bob"}
        task = self.stage.add(**{**given, "holder": True, **options})
        self.driver.get(f"{self.origin}/taskflow/page/page.css")
        self.driver.add_cookie({"name": f"taskflow-{task.id}", "value": str(task.holder)})
        self.driver.get(f"{self.origin}/taskflow/tasks/{task.id}")
        self.settle()
        return task

    @property
    def otp(self) -> str:
        return self.stage.box[-1].otp

    def check_as_it_is(self, heading: str) -> None:
        """Check a page that ran no script: the rules are a script, which is let in afterwards."""
        self.allow_scripts(True)
        self.check(heading)
        self.allow_scripts(False)

    def type(self, text: str) -> None:
        field = wait_for(self.driver, "#taskflow-otp")
        field.send_keys(text)
        self.find(".taskflow-button").click()
        self.wait_until_left(field)


@pytest.fixture
def visit(stage: Stage, driver: webdriver.Chrome, pictures: Path) -> Iterator[Visit]:
    app = stage.app(eager=True, recipient_max_sends=1000, correctable=["email"])
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["page"]), url_prefix="/taskflow")
    with served(app) as origin:
        visit = Visit(stage, driver, origin, pictures)
        yield visit
        visit.reset()


def turn_round(visit: Visit) -> None:
    visit.narrow()
    current_app.jinja_env.globals["gettext"] = lambda text: ARABIC.get(text, text)


ARABIC = {"Type your code": "اكتب الرمز", "Confirmed": "تم التأكيد"}
HEADINGS = {"Vietnamese": ("Nhập mã", "Đã xác nhận"), "right to left": tuple(ARABIC.values())}
LOOKS: dict[str, tuple[Callable[[Visit], None], dict[str, str]]] = {
    "plain": (lambda visit: None, {}),
    "1.4.10 narrow": (Tab.narrow, {}),
    "dark": (lambda visit: visit.emulate(prefers_color_scheme="dark"), {}),
    "forced colours": (lambda visit: visit.emulate(forced_colors="active"), {}),
    "reduced motion": (lambda visit: visit.emulate(prefers_reduced_motion="reduce"), {}),
    "right to left": (turn_round, {"locale": "ar"}),
    "Vietnamese": (Tab.narrow, {"locale": "vi"}),
}


@pytest.mark.parametrize("look", LOOKS)
def test_success_with_the_mouse_however_it_looks(visit: Visit, look: str) -> None:
    dress, options = LOOKS[look]
    dress(visit)
    visit.open(**options)
    before, after = HEADINGS.get(look, ("Type your code", "Confirmed"))

    visit.check(before)
    visit.type(other(visit.otp))
    visit.check(before)
    visit.type(visit.otp)
    visit.check(after)


def test_pictures_of_the_docs(visit: Visit) -> None:
    visit.narrow(600, 300)
    visit.open(summary="Transfer of 50 € to Bob Miller")
    visit.check("Type your code")
    visit.picture("page")
    visit.type("12345")
    visit.check("Type your code")
    visit.picture("page-error", height=570)


def test_success_by_keyboard_alone_with_the_focus_in_sight_2_4_11(visit: Visit) -> None:
    task = visit.open()
    reached = []
    for _ in range(5):
        webdriver.ActionChains(visit.driver).send_keys(Keys.TAB).perform()
        reached.append(visit.run("document.activeElement.id || document.activeElement.textContent.trim()"))
        box = visit.run("document.activeElement.getBoundingClientRect().toJSON()")
        assert 0 <= box["top"] < box["bottom"] <= visit.run("innerHeight") + 1
        assert visit.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[:2] == ["taskflow-otp", "Confirm"]
    assert reached[-1] == "This wasn’t me"

    visit.driver.refresh()
    webdriver.ActionChains(visit.driver).send_keys(Keys.TAB, visit.otp, Keys.ENTER).perform()
    visit.check("Confirmed")
    assert visit.stage.taskflow.get_task(task.id).status == "SUCCESS"


def test_success_without_javascript(visit: Visit) -> None:
    visit.allow_scripts(False)
    visit.open()
    visit.type("12")
    error = wait_for(visit.driver, ".taskflow-problem", "too short")
    assert visit.driver.switch_to.active_element == error
    assert re.search(r"in \d+ seconds?\.", visit.find(".taskflow-wait").text)
    assert visit.driver.title == "Error: Type your code"
    visit.check_as_it_is("Type your code")

    visit.type(visit.otp)
    visit.check_as_it_is("Confirmed")


@pytest.mark.parametrize("typed", ["", "12345", "1234567", "12345o", "12345!"])
def test_error_is_named_focused_and_tied_to_its_field_3_3_1_and_3_3_3(visit: Visit, typed: str) -> None:
    visit.open()
    visit.type(typed)
    error = wait_for(visit.driver, ".taskflow-problem")

    assert visit.driver.title == "Error: Type your code"
    assert visit.driver.switch_to.active_element == error
    field = visit.find("#taskflow-otp")
    described = [visit.find(f"#{name}").text for name in str(field.get_attribute("aria-describedby")).split()]
    assert visit.find(".taskflow-problem p").text in described[1]
    assert field.get_attribute("aria-invalid") == "true"
    visit.check("Type your code")
    visit.find(".taskflow-problem a").click()
    assert visit.driver.switch_to.active_element == field


def test_refused_address_is_named_tied_to_its_field_and_kept_there_3_3_1_and_3_3_7(visit: Visit) -> None:
    visit.open()
    visit.find(".taskflow-correct summary").click()
    visit.find("#taskflow-email").send_keys("bo@@x", Keys.ENTER)
    error = wait_for(visit.driver, ".taskflow-problem", "No code can be sent to this address")
    field = visit.find("#taskflow-email")

    assert visit.driver.title == "Error: Type your code"
    assert visit.driver.switch_to.active_element == error
    assert (field.is_displayed(), field.get_attribute("value")) == (True, "bo@@x")
    assert visit.find(".taskflow-problem p").text in visit.find("#taskflow-email-error").text
    visit.check("Type your code")
    visit.find(".taskflow-problem a").click()
    assert visit.driver.switch_to.active_element == field


def test_field_takes_paste_and_managers_and_sends_nothing_by_itself_3_3_8_and_3_2_2(visit: Visit) -> None:
    task = visit.open()
    field = visit.find("#taskflow-otp")
    names = ("type", "inputmode", "autocomplete", "spellcheck", "maxlength", "name")

    assert [field.get_attribute(name) or None for name in names] == [
        *("text", "numeric", "one-time-code", "false"),
        None,
        None,
    ]
    visit.driver.execute_cdp_cmd("Input.insertText", {"text": "x"})
    field.click()
    visit.driver.execute_cdp_cmd("Input.insertText", {"text": f" {visit.otp[:3]} {visit.otp[3:]} "})
    assert re.sub(r"\s", "", str(field.get_attribute("value"))) == visit.otp
    assert visit.stage.taskflow.get_task(task.id).status == "PENDING"
    visit.find(".taskflow-button").click()
    visit.check("Confirmed")


def test_targets_are_large_2_5_8_and_text_may_grow_and_be_spaced_1_4_4_and_1_4_12(visit: Visit) -> None:
    visit.open()
    small = "[...document.querySelectorAll('button, input:not([type=hidden]), summary, main a')]"
    sizes = visit.run(
        f"{small}.map((e) => e.getBoundingClientRect()).filter((b) => b.width && b.height < 24)"
    )
    assert sizes == []

    visit.narrow()
    spaced = (
        "* {line-height: 1.5 !important; letter-spacing: .12em !important; word-spacing: .16em !important}"
    )
    for style in (spaced, "html {font-size: 200%}"):
        # By the protocol, as a user's style sheet is: the page's own policy refuses styles in it.
        visit.run(
            f"(() => {{ const s = new CSSStyleSheet(); s.replaceSync({style!r});"
            " document.adoptedStyleSheets.push(s) })()"
        )
        assert visit.run("document.documentElement.scrollWidth <= innerWidth")
        clipped = "[...document.querySelectorAll('main *')].filter((e) => e.scrollWidth > e.clientWidth + 1"
        unseen = "!e.matches('.taskflow-unseen, bdi, a, span, summary, input')"
        assert visit.run(f"{clipped} && {unseen}).map((e) => e.className)") == []


def test_wait_is_counted_for_eyes_and_spoken_in_phases_2_2_1_and_4_1_3(visit: Visit) -> None:
    visit.open()
    count = visit.find(".taskflow-count")

    assert re.fullmatch(r"Another code in 0:\d\d", count.text)
    assert count.get_attribute("aria-hidden") == "true"
    spoken = str(visit.find("[data-spoken]").get_attribute("textContent"))
    assert re.fullmatch(r"You can ask for another code in \d+ seconds?\.", spoken)
    clock = "Object.defineProperty(performance, 'now', {value: () => 1e9})"
    visit.run(f"({clock}, 1)")
    again = wait_for(visit.driver, "form[data-waits] button", "again")
    assert visit.find("[data-alert]").get_attribute("textContent") == "You can ask for another code now."
    visit.check("Type your code")
    travel(31)
    again.click()
    wait_for(visit.driver, ".taskflow-note", "its code works as well")
    visit.check("Type your code")


def test_other_method_is_a_button_away_and_asks_nothing_again_3_3_7(visit: Visit) -> None:
    visit.open()
    wait_for(visit.driver, ".taskflow-quiet", "text message").click()
    wait_for(visit.driver, "p", "by text message to")
    visit.check("Type your code")
    visit.type(visit.otp)
    visit.check("Confirmed")


@pytest.mark.parametrize("way", ["locked", "expired", "withdrawn"])
def test_ends_are_told_in_plain_words(visit: Visit, way: str) -> None:
    task = visit.open()
    if way == "withdrawn":
        wait_for(visit.driver, ".taskflow-refuse button").click()
        return visit.check("This request was withdrawn")
    if way == "expired":
        travel(601)
        visit.type(visit.otp)
        return visit.check("There is nothing to confirm here")
    for _ in range(5):
        visit.type(other(visit.otp))
    visit.check("Too many wrong codes")
    assert visit.stage.taskflow.get_task(task.id).status == "LOCKED"
    return None


def test_double_click_confirms_once(visit: Visit) -> None:
    work = visit.stage.work()
    visit.open()
    visit.find("#taskflow-otp").send_keys(visit.otp)
    webdriver.ActionChains(visit.driver).double_click(visit.find(".taskflow-button")).perform()
    visit.check("Confirmed")

    assert len(work.tasks) == 1


def test_outcome_comes_in_by_itself_4_1_3(visit: Visit) -> None:
    operations = current_service().operations
    visit.stage.work()
    operations.pause("q")
    visit.open()
    visit.type(visit.otp)
    wait_for(visit.driver, "#taskflow-outcome", "We are working on it")
    visit.check("Confirmed")

    operations.resume("q")
    visit.stage.run()
    wait_for(visit.driver, "#taskflow-outcome", "all is done")
    visit.check("Confirmed")


@pytest.mark.parametrize("scripts", [True, False])
def test_view_behind_the_gate_leads_to_another_site(
    stage: Stage, driver: webdriver.Chrome, pictures: Path, scripts: bool
) -> None:
    """A policy's ``form-action`` is about all that a form leads to, up to the next page."""
    shop, runs = stage.app(recipient_max_sends=1000), list[str]()
    shop.register_blueprint(stage.taskflow.create_blueprint(routes=["page"]), url_prefix="/taskflow")
    elsewhere = Flask("elsewhere")
    elsewhere.add_url_rule("/pay", view_func=lambda: "<!doctype html><title>Pay</title><h1>Pay here</h1>")
    shop.add_url_rule("/", view_func=lambda: "<form action=/order method=post><button>Order</button></form>")

    with served(elsewhere) as other_site, served(shop) as origin:

        @stage.taskflow.requires_confirmation("q", recipient=lambda: {"email": EMAIL})
        def order() -> Any:
            runs.append(request.method)
            return redirect(f"{other_site}/pay", 303)

        shop.add_url_rule("/order", view_func=order, methods=["POST"])
        visit = Visit(stage, driver, origin, pictures)
        visit.allow_scripts(scripts)
        driver.get(origin)
        visit.find("button").click()
        wait_for(driver, "#taskflow-otp").send_keys(visit.otp)
        button = visit.find(".taskflow-button")
        webdriver.ActionChains(driver).double_click(button).perform()
        wait_for(driver, "h1", "Pay here")
        assert (driver.current_url, runs) == (f"{other_site}/pay", ["POST"])

        # Back to the page as it was, which the browser may have kept.
        driver.back()
        wait_for(driver, "h1", "Type your code")
        driver.refresh()
        page = driver.current_url
        wait_for(driver, "#taskflow-outcome a", "Continue").click()
        wait_for(driver, "h1", "Pay here")
        travel(61)
        driver.get(page)
        wait_for(driver, "#taskflow-outcome a", "Continue").click()
        wait_for(driver, "#taskflow-outcome", "It is not done again.")
        visit.allow_scripts(True)
        visit.check("Confirmed")
        assert runs == ["POST"]
        visit.reset()


STUB = """
window.OTPCredential = class {};
navigator.credentials.get = ({ signal }) => new Promise((resolve, reject) => {
  window.receive = (code) => resolve({ code });
  signal.addEventListener("abort", () => { sessionStorage.aborted = "yes"; reject(new Error("aborted")); });
});
"""


@pytest.mark.parametrize("way", ["received", "typed"])
def test_code_of_a_text_message_is_filled_in_and_not_sent_3_2_2(visit: Visit, way: str) -> None:
    """WebOTP ends with the form."""
    command = "Page.addScriptToEvaluateOnNewDocument"
    stub = visit.driver.execute_cdp_cmd(command, {"source": STUB})["identifier"]
    try:
        task = visit.open(allowed_methods=["SMS"])
        field = visit.find("#taskflow-otp")
        if way == "received":
            visit.driver.execute_script("receive(arguments[0])", visit.otp)
            WebDriverWait(visit.driver, PATIENCE).until(lambda _: field.get_property("value") == visit.otp)
            assert visit.stage.taskflow.get_task(task.id).status == "PENDING"
        visit.type("" if way == "received" else visit.otp)
        visit.check("Confirmed")
        assert visit.driver.execute_script("return sessionStorage.aborted") == "yes"
    finally:
        visit.driver.execute_script("sessionStorage.clear()")
        visit.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": stub})


#: What each frame is made of, but for texts, and how much its policy refused; nothing until all are there.
MADE_OF = """
const frames = [...document.querySelectorAll("iframe")].map((e) => e.contentWindow);
const isThere = (w) => w.document.readyState === "complete" && w.location.href !== "about:blank";
const link = (e) => e.getAttribute("href") ?? e.getAttribute("action");
const host = (e) => link(e) === null ? "" : new URL(link(e), origin).host;
return document.readyState === "complete" && frames.every(isThere) && frames.map((w) => [
  [...w.document.querySelectorAll("*")].map((e) => `${e.tagName} ${e.getAttributeNames()} ${host(e)}`).join(),
  (w.refused ?? []).length,
]);
"""
FRAMES = 50
#: What stands in no URL of an app.
NO_URL = re.compile(r"[^!-~]|\\|//")


class Paper(BaseStrategy):
    """Sends to a device's id, whatever that looks like."""

    address = "device_id"
    sent = ""

    def send(self, task: Task[Any], otp: str) -> None:
        Paper.sent = "".join(otp)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", ["asked", "confirmed"])
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.chaos)])
def test_hostile_texts_are_inert(stage: Stage, driver: webdriver.Chrome, state: str, count: int) -> None:
    """In summary, address, method's name, ``next_url`` and query at once, each page in a frame."""
    own: dict[str, Any] = {"SEND_FILE_MAX_AGE_DEFAULT": 600, "frame_ancestors": "'self'"}
    app = stage.app(page_holder=False, recipient_max_sends=10_000, resend_cooldown=0, **own)
    app.register_blueprint(stage.taskflow.create_blueprint(routes=["page"]), url_prefix="/taskflow")
    stage.taskflow.register_strategy("PAPER")(Paper())
    name_the_methods(app, names := {})
    urls: list[str] = []
    texts = ["x", *(text[:200].strip() for text in hostile_strings(count, MARKUP))]
    # Each field has another text than the next one.
    for number, text in enumerate(texts):
        device, path = (texts[number - 1], texts[number - 2]) if number else (text, text)
        task = stage.taskflow.add_task(
            "q",
            allowed_methods=["PAPER"],
            recipient={"device_id": device},
            summary=text,
            next_url="/done?" + NO_URL.sub(lambda found: quote(found[0], safe=""), path),
        )
        names[task.id] = text.replace("%", "%%")  # it is a format, and not of strangers
        if state == "confirmed":
            stage.taskflow.verify(task.id, "PAPER", Paper.sent)
        urls.append(f"/taskflow/tasks/{task.id}?{urlencode({'method': text, 'sent': text})}")

    @app.get("/frames/<int:start>")
    def frames(start: int) -> str:
        shown = urls[start : start + FRAMES]
        return "".join(f'<iframe hidden src="{escape(url)}"></iframe>' for url in shown)

    seen = []
    with served(app) as origin:
        for start in range(0, len(urls), FRAMES):
            driver.get(f"{origin}/frames/{start}")
            seen += WebDriverWait(driver, PATIENCE).until(lambda driver: driver.execute_script(MADE_OF))

    assert len(seen) == len(urls) > count
    assert ("FORM" if state == "asked" else "href") in seen[0][0]
    assert [made for made in seen if made != seen[0]] == []
    assert seen[0][1] == 0


def name_the_methods(app: Flask, names: Mapping[str, str]) -> None:
    """Let a catalogue of the app call the methods of each task as it is told."""

    def gettext(text: str) -> str:
        return names[(request.view_args or {})["task_id"]] or text if text == "PAPER" else text

    app.jinja_env.add_extension("jinja2.ext.i18n")
    install: Any = vars(app.jinja_env)["install_gettext_callables"]
    install(gettext, lambda one, many, n: one if n == 1 else many)
