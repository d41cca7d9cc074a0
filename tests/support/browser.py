"""A real browser, without a window."""

from __future__ import annotations

import base64
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

from tests.support.accessibility import findings

FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1100,900
"""

#: Seconds in which a page shows what it should, also on a busy machine.
PATIENCE = 60.0


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """Run Debian's chromium; skip the test where there is none."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


class Tab:
    """A tab of a browser that keeps what a page's policy refused.

    :param driver: from :func:`watching`.
    :param origin: of the app that is served.
    :param pictures: the folder for pictures of what was checked.
    """

    def __init__(self, driver: webdriver.Chrome, origin: str, pictures: Path) -> None:
        self.driver, self.origin, self.pictures = driver, origin, pictures
        self._numbers = count(1)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def emulate(self, **features: str) -> None:
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})

    def narrow(self, width: int = 320, height: int = 800) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def allow_scripts(self, allowed: bool) -> None:
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not allowed})

    def wait_until_left(self, element: WebElement) -> None:
        """Wait until another page is there than that of an element."""
        WebDriverWait(self.driver, PATIENCE, 0.1, [WebDriverException]).until(staleness_of(element))

    def settle(self) -> None:
        """Wait until all of a page is there, its style too: on a busy machine the driver goes on before."""
        is_there = "document.readyState === 'complete' && document.styleSheets.length > 0"
        WebDriverWait(self.driver, PATIENCE).until(lambda _: self.run(is_there))

    def check(self, heading: str) -> None:
        """Check what is shown: it has a heading, breaks no rule, fits its window, and met no refusal."""
        wait_for(self.driver, "h1", heading)
        self.settle()
        self.picture(str(next(self._numbers)))
        assert findings(self.driver) == []
        assert self.run("document.documentElement.scrollWidth <= innerWidth")  # 1.4.10
        assert self.run("window.refused ?? []") == []

    def picture(self, name: str, height: int | None = None) -> None:
        """Keep the page as a PNG, the whole of it or so many pixels from its top."""
        # A bar would take its place from the page, and is not in the picture.
        self.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {**size, "width": self.run("innerWidth"), "height": height or size["height"], "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        told = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        self.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": False})
        self.pictures.mkdir(parents=True, exist_ok=True)
        (self.pictures / f"{name}.png").write_bytes(base64.b64decode(told["data"]))

    def reset(self) -> None:
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.emulate()
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.allow_scripts(True)


@contextmanager
def watching(profile: Path) -> Iterator[webdriver.Chrome]:
    """Run a browser whose pages keep, as ``window.refused``, what their policy refused."""
    with chromium(profile) as driver:
        report = "addEventListener('securitypolicyviolation', (e) => (window.refused ??= []).push(e))"
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": report})
        yield driver


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an app in a thread; yield its origin."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for(browser: webdriver.Chrome, selector: str, text: str = "") -> Any:
    """Wait until an element with a text is displayed; return it."""

    def look(_: object) -> Any:
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        return next((item for item in found if item.is_displayed() and text in item.text), None)

    # What was found may be of the page before; the driver has more than one word for that.
    waiting = WebDriverWait(browser, PATIENCE, 0.1, [WebDriverException])
    return waiting.until(look, f"{selector} with {text!r}")


def submit(browser: webdriver.Chrome, field: str, text: str, button: str) -> None:
    """Type a text into a field, by its id, and press a button, by a selector."""
    found = wait_for(browser, f"#{field}")
    found.clear()
    found.send_keys(text)
    browser.find_element(By.CSS_SELECTOR, button).click()
