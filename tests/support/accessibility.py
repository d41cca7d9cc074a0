"""What axe-core finds wrong with the page that a browser shows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selenium import webdriver

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def findings(browser: webdriver.Chrome) -> list[str]:
    """Return what is wrong, the rule and where. What axe cannot tell counts, too, but for colours."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    script = Path(spec.origin).with_name("axe.min.js").read_text("utf-8")
    # By the protocol of its tools, not as a script of the page: that the page's own policy would refuse.
    browser.execute_script(script)
    run = "axe.run(document, {runOnly: arguments[0]}).then(arguments[1], (e) => arguments[1]({error: e}))"
    told: dict[str, Any] = browser.execute_async_script(run, RULES)
    assert "error" not in told, told
    assert len(told["passes"]) > 10
    found = told["violations"] + [item for item in told["incomplete"] if item["id"] != "color-contrast"]
    return [f"{item['id']}: {node['target']}" for item in found for node in item["nodes"]]
