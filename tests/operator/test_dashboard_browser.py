"""The dashboard in a real browser: each page and each action, however it looks and is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.operator.test_dashboard import Board, count, stats
from tests.support import inside
from tests.support.browser import PATIENCE, Tab, served, wait_for
from tests.support.hostile import PIECES
from tests.support.stage import Stage

pytestmark = pytest.mark.slow


class Desk(Tab):
    """An operator at the dashboard."""

    def __init__(self, board: Board, driver: webdriver.Chrome, origin: str, pictures: Path) -> None:
        super().__init__(driver, origin, pictures)
        self.board = board

    def open(self, path: str) -> None:
        self.driver.get(f"{self.origin}/ops{path}")
        self.settle()

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture
def desk(stage: Stage, driver: webdriver.Chrome, pictures: Path) -> Iterator[Desk]:
    board = Board(stage)
    with served(board.app) as origin:
        desk = Desk(board, driver, origin, pictures)
        yield desk
        desk.reset()


LOOKS: dict[str, Callable[[Desk], None]] = {
    "plain": lambda desk: None,
    "1.4.10 narrow": Desk.narrow,
    "dark": lambda desk: desk.emulate(prefers_color_scheme="dark"),
    "forced colours": lambda desk: desk.emulate(forced_colors="active"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_breaks_no_rule_however_it_looks(desk: Desk, look: str) -> None:
    LOOKS[look](desk)
    for path in desk.board.paths:
        desk.open(path)
        desk.check("")
        small = desk.run(
            "[...document.querySelectorAll('button, input:not([type=hidden]), select, summary, a')]"
            ".filter((e) => !e.matches('.skip, p a')).map((e) => e.getBoundingClientRect())"
            ".filter((b) => b.width && (b.width < 24 || b.height < 24))"
        )
        assert small == [], path  # 2.5.8


def test_pictures_of_the_docs(desk: Desk) -> None:
    desk.narrow(900, 300)
    desk.open("/")
    desk.check("")
    desk.picture("dashboard", height=570)


@pytest.mark.parametrize("scripts", [True, False], ids=["JavaScript", "none"])
def test_dead_letters_are_found_and_replayed_and_a_queue_is_paused(desk: Desk, scripts: bool) -> None:
    desk.allow_scripts(scripts)
    desk.open("/")
    wait_for(desk.driver, "nav a", "Dead letters").click()
    wait_for(desk.driver, ".error a", "no stock for so****@example.com").click()
    wait_for(desk.driver, "button", "Replay all that fit").click()
    wait_for(desk.driver, ".question", "Let 2 dead letters of pack of orders run again?")
    if scripts:
        desk.check("Are you sure?")
    wait_for(desk.driver, "button", "Yes").click()
    wait_for(desk.driver, ".note", "2 dead letters run again.")
    assert (count(desk.board, "ready"), count(desk.board, "dead")) == (2, 1)

    link = wait_for(desk.driver, "nav a", "Dead letters")
    link.click()
    desk.wait_until_left(link)
    wait_for(desk.driver, "input[type=checkbox]").click()
    wait_for(desk.driver, "button", "Discard those selected").click()
    wait_for(desk.driver, ".question", "Forget 1 dead letters, for good?")
    wait_for(desk.driver, "button", "Yes").click()
    wait_for(desk.driver, ".note", "1 dead letters are forgotten.")

    wait_for(desk.driver, "nav a", "Overview").click()
    wait_for(desk.driver, "th a", "orders").click()
    wait_for(desk.driver, "button", "Pause this queue").click()
    wait_for(desk.driver, ".note", "Paused")
    wait_for(desk.driver, ".badge", "Paused")
    assert stats(desk.board).paused


def test_task_is_found_and_cancelled_by_keyboard_alone(desk: Desk) -> None:
    desk.open("/tasks")
    desk.press(Keys.TAB)
    assert desk.run("document.activeElement.textContent") == "Skip to the content"
    desk.press(Keys.ENTER, Keys.TAB, desk.board.pending.id, Keys.ENTER)
    wait_for(desk.driver, "h1", desk.board.pending.id)
    button = wait_for(desk.driver, "button", "Cancel the task")
    for _ in range(30):
        desk.press(Keys.TAB)
        assert desk.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # 2.4.7
        if desk.driver.switch_to.active_element == button:
            break
    desk.press(Keys.ENTER)
    wait_for(desk.driver, "button", "Yes").send_keys(Keys.ENTER)
    wait_for(desk.driver, ".badge", "Cancelled")
    desk.check(desk.board.pending.id)


def test_page_is_read_again_while_it_is_seen_and_leaves_focus_and_choice(desk: Desk) -> None:
    desk.open("/")
    desk.find("#numbers-tasks summary").click()
    desk.run("document.querySelector('th a[href$=orders]').focus()")
    desk.board.order(None, verified=False)
    wait_for(desk.driver, ".legend li", "Added 5")
    assert desk.run("document.activeElement.textContent") == "orders"
    assert desk.run("document.querySelector('#numbers-tasks').open")
    assert desk.run("document.querySelectorAll('.wide').length === 4")

    desk.open("/dead")
    box, wait = desk.find("input[type=checkbox]"), WebDriverWait(desk.driver, PATIENCE, 0.2)
    box.click()
    shown = desk.find("#fresh").text
    desk.run("setTimeout(() => { window.waited = true }, 6000)")
    wait.until(lambda _: desk.run("window.waited"))
    assert desk.find("#fresh").text == shown
    box.click()
    wait.until(lambda _: desk.find("#fresh").text != shown)
    wait_for(desk.driver, ".fresh button", "Hold still").click()
    wait_for(desk.driver, ".fresh button", "Go on by itself")


def test_hostile_errors_do_nothing(desk: Desk) -> None:
    ids = [task.id for task in desk.board.dead]
    key = inside.key_of("orders", "pack", "error")
    for start in range(0, len(PIECES), 3):
        texts = [piece.encode("utf-8", "replace") for piece in PIECES[start : start + 3]]
        desk.board.stage.redis.hset(key, mapping=dict(zip(ids, texts, strict=False)))
        desk.open("/dead")
        assert desk.run("document.querySelectorAll('script').length") == 1
        assert desk.run("window.refused ?? []") == []
        assert desk.run("document.querySelectorAll('tbody tr').length") == 3
