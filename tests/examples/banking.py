"""Customers of the example bank, whether its app runs in this process or in another."""

from __future__ import annotations

import http.cookiejar
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from flask import Flask

from tests.support.programs import WITHIN, wait_until

PASSWORD = "correct horse"
#: What a person's browser sends along with a form of the page that it shows.
OWN = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}

Answer = tuple[int, str, str]


def by_client(app: Flask) -> Callable[[str, Any], Answer]:
    """Return what asks an app of this process: by a path, and a form or nothing, for its last answer."""
    client = app.test_client()

    def ask(path: str, form: Any) -> Answer:
        verb = "GET" if form is None else "POST"
        answer = client.open(path, method=verb, data=form, headers=OWN, follow_redirects=True)
        return answer.status_code, answer.request.path, answer.text

    return ask


def by_http(address: str) -> Callable[[str, Any], Answer]:
    """Return what asks a server in the same way."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    opener.addheaders = list(OWN.items())

    def ask(path: str, form: Any) -> Answer:
        body = None if form is None else urllib.parse.urlencode(form).encode()
        try:
            answer = opener.open(urllib.parse.urljoin(address, path), body, WITHIN)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, urllib.parse.urlsplit(answer.url).path, answer.read().decode()

    return ask


class Browser:
    """A person's browser: it keeps cookies, and fills in the forms of the page that it shows."""

    def __init__(self, ask: Callable[[str, Any], Answer]) -> None:
        self._ask = ask
        self.status, self.url, self.page = 0, "", ""

    def get(self, path: str) -> Browser:
        self.status, self.url, self.page = self._ask(path, None)
        return self

    def post(self, path: str, **fields: str) -> Browser:
        hidden = re.findall(r'<input[^>]* name="(csrf_token|key|method)"[^>]* value="([^"]+)"', self.page)
        self.status, self.url, self.page = self._ask(path, {**dict(hidden), **fields})
        return self

    def log_in(self, name: str) -> Browser:
        self.get("/login").post("/login", name=name, password=PASSWORD)
        assert self.url == "/", self.page
        return self

    def fill_in(self, receiver: str, amount: str, **fields: str) -> Browser:
        """Send the form for a transfer, with whom its list has by this name."""
        numbers = {
            name: number for number, name in re.findall(r'<option[^>]* value="(\d+)">([^<]+)', self.page)
        }
        return self.post("/", receiver=numbers.get(receiver, receiver), amount=amount, **fields)

    def order(self, receiver: str, amount: str) -> str:
        """Ask for a transfer; return its path."""
        self.get("/")
        key = re.findall(r'name="key"[^>]* value="(\w+)"', self.page)[0]
        self.fill_in(receiver, amount)
        assert self.url.startswith("/confirm/tasks/"), self.page
        return f"/transfers/{key}"

    def type(self, code: str, **fields: str) -> Browser:
        """Type a code on the page that is shown."""
        return self.post(self.url, otp=code, **fields)

    def state(self, transfer: str) -> str:
        """Return the state that the list of transfers tells."""
        found = re.search(rf'href="{transfer}">.*?data-state="(\w+)"', self.get("/").page, re.S)
        assert found, self.page
        return found[1]

    def wait_for(self, transfer: str, state: str) -> None:
        wait_until(lambda: self.state(transfer) == state)
