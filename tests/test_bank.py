"""The example bank as its customers meet it: a web server, workers that die, and a mail server."""

from __future__ import annotations

import http.cookiejar
import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_support import WITHIN, wait_until
from redis import Redis
from topologies import free_ports
from werkzeug.security import generate_password_hash

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "bank"
README = (EXAMPLE / "README.md").read_text("utf-8")
# What README tells to type into three terminals.
MAIL_SERVER, WEB_SERVER, WORKER = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)
PREFIX = "bank"
PASSWORD = "correct horse"
PASSWORD_HASH = generate_password_hash(PASSWORD)


class Browser:
    """A person's browser: it keeps cookies, and fills in the forms of the page that it shows."""

    def __init__(self, address: str) -> None:
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies)
        self.address = address
        self.page = self.url = ""
        self.status = 0

    def get(self, path: str) -> Browser:
        return self._open(path, None)

    def post(self, path: str, **fields: str) -> Browser:
        hidden = re.findall(r'<input[^>]* name="(csrf_token|key)"[^>]* value="([^"]+)"', self.page)
        return self._open(path, urllib.parse.urlencode({**dict(hidden), **fields}).encode())

    def _open(self, path: str, body: bytes | None) -> Browser:
        try:
            answer = self._opener.open(urllib.parse.urljoin(self.address, path), body, WITHIN)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.page, self.status = answer.read().decode(), answer.status
            self.url = urllib.parse.urlsplit(answer.url).path
        return self

    @property
    def state(self) -> str:
        found = re.search(r'data-state="(\w+)"', self.page)
        assert found, self.page
        return found[1]

    def log_in(self, name: str) -> Browser:
        self.get("/login").post("/login", name=name, password=PASSWORD)
        assert self.url == "/", self.page
        return self

    def ask(self, receiver: str, amount: str) -> str:
        """Ask for a transfer; return the path of its page."""
        self.get("/").post("/", receiver=receiver, amount=amount)
        assert self.url.startswith("/transfers/"), self.page
        return self.url

    def confirm(self, transfer: str, code: str) -> str:
        """Type a code; return the state that the page shows then."""
        return self.get(transfer).post(f"{transfer}/verify", code=code).state

    def wait_for(self, transfer: str, state: str) -> None:
        wait_until(lambda: self.get(transfer).state == state)


class Bank:
    """A web server with a database and a mail server; workers are started by the tests."""

    def __init__(self, directory: Path, server: str, mail: str) -> None:
        self.directory = directory
        self.redis: Any = Redis.from_url(server)
        self.environment = {
            **bare_environment(),
            "FLASK_RUN_PORT": "0",
            "FLASK_SQLALCHEMY_ENGINES__default": f"sqlite:///{directory / 'bank.sqlite'}",
            "FLASK_TASKFLOW_REDIS_URL": server,
            "FLASK_TASKFLOW_KEY_PREFIX": PREFIX,
            "FLASK_TASKFLOW_SMTP_URL": smtp_url(mail),
            "FLASK_TASKFLOW_SEND_BACKOFF": "0.01",
        }
        self.address = ""
        self.mail: Process | None = None

    @contextmanager
    def running(self, commands: str, *, until: str, **environment: str) -> Iterator[Process]:
        # Without a shell around it, signals reach the last one.
        first, _, last = commands.strip().rpartition("\n")
        bash = ["bash", "-ec", f"{first}\nexec env {last}"]
        with running(bash, self.directory, self.environment | environment, until) as process:
            yield process

    @contextmanager
    def worker(self, **environment: str) -> Iterator[Process]:
        """Run a worker, which sends codes and moves money; let it end in order."""
        with self.running(WORKER, until="Serving transfers", **environment) as process:
            yield process
            process.end()

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.directory / "bank.sqlite", isolation_level=None)) as connection:
            yield connection

    def customer(self, balance: int = 1000_00) -> str:
        """Open an account; return its owner's name."""
        name = f"customer-{secrets.token_hex(4)}"
        with self.database() as database:
            database.execute(
                "INSERT INTO customer (name, email, password_hash, balance) VALUES (?, ?, ?, ?)",
                [name, f"{name}@example.com", PASSWORD_HASH, balance],
            )
        return name

    def balances(self, *names: str) -> list[int]:
        with self.database() as database:
            known = dict(database.execute("SELECT name, balance FROM customer"))
        return [known[name] for name in names]

    def bookings(self, transfer: str) -> list[bool]:
        query = "SELECT paid FROM booking WHERE transfer_id = ?"
        with self.database() as database:
            return [bool(paid) for (paid,) in database.execute(query, [transfer.rpartition("/")[2]])]

    def browser(self, name: str) -> Browser:
        return Browser(self.address).log_in(name)

    def messages(self, name: str) -> list[str]:
        assert self.mail is not None
        return messages(self.mail.log, name)

    def codes(self, name: str, count: int = 1) -> list[str]:
        """Wait until a customer has so many messages; return their codes."""
        wait_until(lambda: len(self.messages(name)) == count)
        return [code_in(message) for message in self.messages(name)]

    def code(self, name: str) -> str:
        return self.codes(name)[0]

    def deliveries(self, *places: str) -> int:
        """Count the callback's deliveries in some places: ready, delay, lease, dead."""
        names = [f"*:h:pay:{place}" for place in places]
        return sum(self.redis.zcard(key) for name in names for key in self.redis.keys(f"{PREFIX}:{name}"))

    @contextmanager
    def callback_in_the_middle(self, browser: Browser, transfer: str, code: str) -> Iterator[None]:
        """Confirm a transfer; its callback waits for the database until the end of the block."""
        with self.database() as database:
            database.execute("BEGIN IMMEDIATE")
            assert browser.confirm(transfer, code) == "SUCCESS"
            wait_until(lambda: self.deliveries("lease"))
            yield
            database.execute("ROLLBACK")


class Process:
    """A process that runs, and what it printed."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def end(self) -> None:
        self.popen.terminate()
        self.popen.wait(WITHIN)


def bare_environment() -> dict[str, str]:
    """Return this process's environment with its programs, and without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": programs, "PYTHONUNBUFFERED": "1"}


@contextmanager
def running(
    command: list[str], directory: Path, environment: dict[str, str], until: str
) -> Iterator[Process]:
    """Run a command in the example's folder, from when it shows a text until the end of the block."""
    log = directory / f"log-{secrets.token_hex(4)}"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            cwd=EXAMPLE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = Process(popen, log)
    try:
        wait_until(lambda: re.search(until, process.log) or popen.poll() is not None)
        assert popen.poll() is None, process.log
        yield process
    finally:
        process.kill()


def messages(log: str, name: str) -> list[str]:
    """Return the messages to a customer that a mail server printed."""
    printed = re.findall(r"^-+ MESSAGE FOLLOWS -+$(.*?)^-+ END MESSAGE", log, re.M | re.S)
    return [message for message in printed if f"\nTo: {name}@example.com\n".lower() in message.lower()]


def code_in(message: str) -> str:
    return str(re.findall(r"^(\d{6})$", message, re.M)[0])


def smtp_url(address: str) -> str:
    return f"smtp://{address}?starttls=no"


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Bank]:
    mail = f"localhost:{free_ports(1)[0]}"
    bank = Bank(tmp_path_factory.mktemp("bank"), server, mail)
    with (
        # It tells nothing about itself before the first message, but for this option.
        bank.running(MAIL_SERVER.replace("localhost:1025", f"{mail} -d"), until="is listening") as bank.mail,
        bank.running(WEB_SERVER, until="Running on http") as web,
    ):
        bank.address = re.findall(r"Running on (http://\S+)", web.log)[0]
        yield bank
    assert "Traceback" not in web.log
    bank.redis.close()


@pytest.fixture(scope="module")
def shared(bank: Bank) -> Browser:
    """A browser for what changes nothing; Ann is logged in."""
    return bank.browser("Ann")


def test_transfer_when_confirmed_moves_the_money_once(bank: Bank) -> None:
    ann, minh = bank.customer(1000_00), bank.customer(0)
    browser = bank.browser(ann)

    with bank.worker():
        transfer = browser.ask(minh, "250.00")
        assert browser.state == "PENDING"
        code = bank.code(ann)
        assert browser.confirm(transfer, code) in ("SUCCESS", "PAID")
        browser.wait_for(transfer, "PAID")
        assert browser.confirm(transfer, code) == "PAID"

    assert f"Pay 250.00 EUR to {minh}" in bank.messages(ann)[0]
    assert f"Pay 250.00 EUR to {minh}" in browser.page
    assert bank.bookings(transfer) == [True]
    assert bank.balances(ann, minh) == [750_00, 250_00]
    assert "750.00 EUR" in browser.get("/").page


def test_transfer_confirmed_without_a_worker_waits_for_one(bank: Bank) -> None:
    ann, minh = bank.customer(1000_00), bank.customer(0)
    browser = bank.browser(ann)
    with bank.worker():
        transfer = browser.ask(minh, "10")
        code = bank.code(ann)

    state = browser.confirm(transfer, code)
    before = bank.balances(ann, minh), bank.deliveries("ready")
    with bank.worker():
        browser.wait_for(transfer, "PAID")

    assert state == "SUCCESS"
    assert before == ([1000_00, 0], 1)
    assert bank.balances(ann, minh) == [990_00, 10_00]


def test_worker_killed_before_it_commits_moves_nothing_and_the_next_one_all(bank: Bank) -> None:
    ann, minh = bank.customer(1000_00), bank.customer(0)
    browser = bank.browser(ann)

    with bank.worker() as worker:
        transfer = browser.ask(minh, "10")
        with bank.callback_in_the_middle(browser, transfer, bank.code(ann)):
            worker.kill()
    killed = bank.balances(ann, minh), bank.bookings(transfer), bank.deliveries("lease")
    with bank.worker():
        browser.wait_for(transfer, "PAID")

    assert killed == ([1000_00, 0], [], 1)
    assert bank.balances(ann, minh) == [990_00, 10_00]
    assert bank.bookings(transfer) == [True]


def test_worker_killed_between_commit_and_report_moves_the_money_once(bank: Bank) -> None:
    ann, minh = bank.customer(1000_00), bank.customer(0)
    browser = bank.browser(ann)

    with bank.worker() as worker:
        transfer = browser.ask(minh, "10")
        with bank.callback_in_the_middle(browser, transfer, bank.code(ann)):
            # Redis puts off what would write, as the report would, and forgets it with its client.
            bank.redis.client_pause(60_000, all=False)
        try:
            wait_until(lambda: bank.bookings(transfer))
            worker.kill()
            wait_until(lambda: f":{worker.popen.pid}:" not in str(bank.redis.client_list()))
        finally:
            bank.redis.client_unpause()
    killed = bank.balances(ann, minh), bank.deliveries("lease")
    with bank.worker() as second:
        wait_until(lambda: not bank.deliveries("ready", "delay", "lease", "dead"))

    assert killed == ([990_00, 10_00], 1)
    assert "was booked by an earlier attempt" in second.log
    assert bank.balances(ann, minh) == [990_00, 10_00]
    assert bank.bookings(transfer) == [True]
    assert browser.get(transfer).state == "PAID"


def test_transfers_when_the_money_is_enough_for_one_pay_one_and_refuse_the_other(bank: Bank) -> None:
    ann, minh = bank.customer(100_00), bank.customer(0)
    browser = bank.browser(ann)
    with bank.worker():
        transfers = {browser.ask(minh, "80.00") for _ in range(2)}
        codes = bank.codes(ann, 2)
    for transfer in transfers:
        # Which message is whose does not show: a code that belongs to the other is refused.
        assert "SUCCESS" in [browser.confirm(transfer, code) for code in codes]

    with bank.worker():
        wait_until(lambda: all(bank.bookings(transfer) for transfer in transfers))

    assert sorted(browser.get(transfer).state for transfer in transfers) == ["PAID", "REFUSED"]
    assert bank.balances(ann, minh) == [20_00, 80_00]


def test_transfer_of_another_customer_is_unknown(bank: Bank) -> None:
    ann, minh = bank.customer(), bank.customer()
    with bank.worker():
        transfer = bank.browser(ann).ask(minh, "10")
        code = bank.code(ann)

    for other, status, page in ((bank.browser(minh), 404, transfer), (Browser(bank.address), 200, "/login")):
        for step in ("", "/verify", "/resend"):
            other.get("/")
            answer = other.post(transfer + step, code=code) if step else other.get(transfer)
            assert (answer.status, answer.url) == (status, page + step if status == 404 else page)

    assert bank.browser(ann).get(transfer).state == "PENDING"
    assert len(bank.messages(ann)) == 1
    assert bank.deliveries("ready", "lease") == 0


def test_code_when_wrong_five_times_locks_the_transfer(bank: Bank) -> None:
    ann, minh = bank.customer(), bank.customer()
    browser = bank.browser(ann)
    with bank.worker():
        transfer = browser.ask(minh, "10")
        code = bank.code(ann)

    assert browser.confirm(transfer, "12") == "PENDING"
    assert "Type the 6 digits" in browser.page
    for left in range(4, 0, -1):
        assert browser.confirm(transfer, wrong(code)) == "PENDING"
        assert f"Tries left: {left}." in browser.page
    fifth = browser.confirm(transfer, wrong(code))

    assert (fifth, browser.confirm(transfer, code)) == ("LOCKED", "LOCKED")
    assert 'name="code"' not in browser.page
    assert bank.deliveries("ready", "lease") == 0


def test_form_when_sent_twice_at_once_makes_one_transfer(bank: Bank) -> None:
    ann, minh = bank.customer(), bank.customer()
    browsers = [bank.browser(ann).get("/") for _ in range(2)]
    key = re.findall(r'name="key"[^>]* value="(\w+)"', browsers[0].page)[0]
    together = threading.Barrier(2)

    def send(browser: Browser) -> str:
        together.wait(WITHIN)
        return browser.post("/", receiver=minh, amount="10", key=key).url

    with ThreadPoolExecutor() as pool:
        shown = set(pool.map(send, browsers))
    tasks = bank.redis.keys(f"{PREFIX}:*:task:*")
    shown.add(browsers[0].get("/").post("/", receiver=minh, amount="10", key=key).url)

    assert len(shown) == 1
    assert set(bank.redis.keys(f"{PREFIX}:*:task:*")) == set(tasks)
    assert len(set(re.findall(r"/transfers/\w+", browsers[0].get("/").page))) == 1
    assert browsers[0].confirm(shown.pop(), "000000") == "PENDING"


@pytest.mark.parametrize(
    "amount", ["", "0", "0.00", "-1", "1e2", "NaN", "0.001", "1,000", "1000.01", "\u0663", "10 "]
)
def test_amount_that_cannot_be_sent_is_refused(shared: Browser, amount: str) -> None:
    answer = shared.get("/").post("/", receiver="Minh", amount=amount)

    assert (answer.status, answer.url) == (422, "/")
    assert "Write it as 250" in answer.page or "You can send from 0.01 EUR to 1000.00 EUR." in answer.page


@pytest.mark.parametrize("receiver", ["", "nobody", "Ann"])
def test_receiver_who_is_no_other_customer_is_refused(shared: Browser, receiver: str) -> None:
    answer = shared.get("/").post("/", receiver=receiver, amount="1")

    assert (answer.status, answer.url) == (422, "/")


def test_form_without_its_token_is_refused(shared: Browser) -> None:
    answer = shared.get("/").post("/", receiver="Minh", amount="1", csrf_token="")

    assert answer.status == 400


def test_code_that_no_mail_server_takes_ends_the_transfer(bank: Bank) -> None:
    ann, minh = bank.customer(), bank.customer()
    browser = bank.browser(ann)

    with bank.worker(FLASK_TASKFLOW_SMTP_URL=smtp_url(f"localhost:{free_ports(1)[0]}")):
        transfer = browser.ask(minh, "10")
        browser.wait_for(transfer, "FAILED")

    assert "the code could not be sent" in browser.page


def test_resend_is_told_when_it_may_be_repeated(bank: Bank) -> None:
    ann, minh = bank.customer(), bank.customer()
    browser = bank.browser(ann)
    with bank.worker():
        transfer = browser.ask(minh, "10")
        bank.code(ann)

    browser.post(f"{transfer}/resend")

    assert re.search(r"Not yet\. Try again in (30|2\d) seconds\.", browser.page)


def test_database_refuses_a_balance_below_zero(bank: Bank) -> None:
    ann = bank.customer(10_00)

    with bank.database() as database, pytest.raises(sqlite3.IntegrityError, match="balance_not_negative"):
        database.execute("UPDATE customer SET balance = balance - 1001 WHERE name = ?", [ann])


def test_run_starts_the_whole_bank_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    web, mail = free_ports(2)
    environment = {
        **bare_environment(),
        "FLASK_RUN_PORT": str(web),
        "MAIL_PORT": str(mail),
        "FLASK_SQLALCHEMY_ENGINES__default": f"sqlite:///{tmp_path / 'bank.sqlite'}",
        "FLASK_TASKFLOW_REDIS_URL": f"embedded://{tmp_path / 'data'}",
    }
    starts = "Running on http(?s:.*)Serving|Serving(?s:.*)Running on http"

    with running(["python", "run.py"], tmp_path, environment, until=starts) as run:
        browser = Browser(f"http://127.0.0.1:{web}").log_in("Ann")
        transfer = browser.ask("Minh", "250.00")
        wait_until(lambda: messages(run.log, "ann"))
        browser.confirm(transfer, code_in(messages(run.log, "ann")[0]))
        browser.wait_for(transfer, "PAID")
        run.popen.send_signal(signal.SIGINT)
        ended = run.popen.wait(WITHIN)

    assert ended == 0
    assert "Traceback" not in run.log
    assert not (tmp_path / "data" / "valkey.sock").exists()
    with pytest.raises(urllib.error.URLError):
        browser.get("/")
