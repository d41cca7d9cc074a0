"""The example bank as README starts it: a web server, workers that die, and mail servers."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from werkzeug.security import generate_password_hash

from flask_taskflow.testing import OutboxFile
from tests.examples.banking import PASSWORD, Browser, by_http
from tests.support.mail import Handler, mail_server
from tests.support.programs import WITHIN, Process, bare_environment, running, wait_until
from tests.support.topologies import free_ports

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank"
# What README tells to type into three terminals.
MAIL_SERVER, WEB_SERVER, WORKER = re.findall(
    r"^```sh\n(.*?)^```$", (EXAMPLE / "README.md").read_text("utf-8"), re.M | re.S
)
TABLES = MAIL_SERVER.strip().rpartition("\n")[0]
PREFIX = "bank"
PASSWORD_HASH = generate_password_hash(PASSWORD)


class Bank:
    """A web server with a database; workers are started by the tests, and write codes into a file."""

    def __init__(self, directory: Path, server: str) -> None:
        self.directory = directory
        self.redis: Any = Redis.from_url(server)
        self.outbox = OutboxFile(directory / "codes")
        self.environment = {
            **bare_environment(),
            "FLASK_DEBUG": "1",
            "FLASK_RUN_PORT": "0",
            # A callback waits until the test lets go of the database.
            "FLASK_SQLALCHEMY_ENGINES__default": f"sqlite:///{directory / 'bank.sqlite'}?timeout={WITHIN}",
            "FLASK_TASKFLOW_REDIS_URL": server,
            "FLASK_TASKFLOW_KEY_PREFIX": PREFIX,
            "FLASK_TASKFLOW_OUTBOX_FILE": str(self.outbox.path),
            "FLASK_TASKFLOW_SEND_BACKOFF": "0.01",
        }
        self.address = ""

    @contextmanager
    def running(self, commands: str, *, until: str, **environment: str) -> Iterator[Process]:
        # Without a shell around it, signals reach the last one.
        first, _, last = commands.strip().rpartition("\n")
        bash = ["bash", "-ec", f"{first}\nexec env {last}"]
        with running(bash, EXAMPLE, self.environment | environment, until, logs=self.directory) as process:
            yield process

    @contextmanager
    def worker(self, **environment: str) -> Iterator[Process]:
        """Run a worker, which sends codes and moves money; let it end in order."""
        with self.running(WORKER, until="Serving transfers", **environment) as process:
            yield process
            process.end()

    @contextmanager
    def mailing_worker(self, port: int) -> Iterator[Process]:
        """Run a worker that sends its codes to a mail server."""
        url = f"smtp://localhost:{port}?starttls=no"
        with self.worker(FLASK_TASKFLOW_SMTP_URL=url, FLASK_TASKFLOW_OUTBOX_FILE="null") as process:
            yield process

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.directory / "bank.sqlite", isolation_level=None)) as connection:
            yield connection

    def customers(self, *names: str) -> Browser:
        """Open accounts; return the browser of the first one."""
        rows = [(name, f"{name}@example.com", PASSWORD_HASH, 1000_00) for name in names]
        with self.database() as database:
            query = "INSERT INTO customer (name, email, password_hash, balance) VALUES (?, ?, ?, ?)"
            database.executemany(query, rows)
        return Browser(by_http(self.address)).log_in(names[0])

    def balances(self, *names: str) -> list[int]:
        with self.database() as database:
            known = dict(database.execute("SELECT name, balance FROM customer"))
        return [known[name] for name in names]

    def bookings(self, transfer: str) -> list[bool]:
        query = "SELECT paid FROM booking JOIN transfer ON transfer_id = transfer.id WHERE form_key = ?"
        with self.database() as database:
            return [bool(paid) for (paid,) in database.execute(query, [transfer.rpartition("/")[2]])]

    def code(self, name: str) -> str:
        return self.outbox.last_code(f"{name}@example.com", within=WITHIN)

    def deliveries(self, *places: str) -> int:
        """Count the callback's deliveries in some places (ready, delay, lease, dead) at one moment."""
        count = """
            local sum = 0
            for _, pattern in ipairs(ARGV) do
              for _, key in ipairs(redis.call('KEYS', pattern)) do sum = sum + redis.call('ZCARD', key) end
            end
            return sum
        """
        return int(self.redis.eval(count, 0, *(f"{PREFIX}:*:h:pay:{place}" for place in places)))

    @contextmanager
    def callback_in_the_middle(self, browser: Browser, transfer: str, code: str) -> Iterator[None]:
        """Confirm a transfer; its callback waits for the database until the end of the block."""
        with self.database() as database:
            database.execute("BEGIN IMMEDIATE")
            browser.get(transfer).type(code)
            wait_until(lambda: self.deliveries("lease"))
            yield
            database.execute("ROLLBACK")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Bank]:
    bank = Bank(tmp_path_factory.mktemp("bank"), server)
    with (
        bank.running(TABLES, until="Log in as Ann"),
        bank.running(WEB_SERVER, until="Running on http") as web,
    ):
        bank.address = re.findall(r"Running on (http://\S+)", web.log)[0]
        yield bank
    assert "Traceback" not in web.log
    bank.redis.close()


def test_transfer_confirmed_without_a_worker_waits_for_one(bank: Bank) -> None:
    browser = bank.customers("ada", "alan")
    with bank.worker():
        transfer = browser.order("alan", "10")
        code = bank.code("ada")

    assert browser.get(transfer).type(code).url == transfer
    assert "Confirmed, being carried out" in browser.page
    before = browser.state(transfer), bank.balances("ada", "alan"), bank.deliveries("ready")
    with bank.worker():
        browser.wait_for(transfer, "PAID")

    assert before == ("SUCCESS", [1000_00, 1000_00], 1)
    assert bank.balances("ada", "alan") == [990_00, 1010_00]


def test_worker_killed_before_it_commits_moves_nothing_and_the_next_one_all(bank: Bank) -> None:
    browser = bank.customers("bea", "bob")

    with bank.worker() as worker:
        transfer = browser.order("bob", "10")
        with bank.callback_in_the_middle(browser, transfer, bank.code("bea")):
            worker.kill()
    killed = bank.balances("bea", "bob"), bank.bookings(transfer), bank.deliveries("lease")
    with bank.worker():
        browser.wait_for(transfer, "PAID")

    assert killed == ([1000_00, 1000_00], [], 1)
    assert bank.balances("bea", "bob") == [990_00, 1010_00]
    assert bank.bookings(transfer) == [True]


def test_worker_killed_between_commit_and_report_moves_the_money_once(bank: Bank) -> None:
    browser = bank.customers("cai", "cid")

    with bank.worker() as worker:
        transfer = browser.order("cid", "10")
        with bank.callback_in_the_middle(browser, transfer, bank.code("cai")):
            # Redis puts off what would write, as the report would, and forgets it with its client.
            bank.redis.client_pause(60_000, all=False)
        try:
            wait_until(lambda: bank.bookings(transfer))
            worker.kill()
            wait_until(lambda: f":{worker.popen.pid}:" not in str(bank.redis.client_list()))
        finally:
            bank.redis.client_unpause()
    killed = bank.balances("cai", "cid"), bank.deliveries("lease")
    with bank.worker() as second:
        wait_until(lambda: not bank.deliveries("ready", "delay", "lease", "dead"))

    assert killed == ([990_00, 1010_00], 1)
    assert "was booked by an earlier attempt" in second.log
    assert bank.balances("cai", "cid") == [990_00, 1010_00]
    assert bank.bookings(transfer) == [True]
    assert browser.state(transfer) == "PAID"


def test_code_waits_for_a_mail_server_that_is_away(bank: Bank) -> None:
    browser, handler = bank.customers("dan", "dom"), Handler()

    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        with bank.mailing_worker(closed.getsockname()[1]) as worker:
            transfer = browser.order("dom", "10")
            task_id = browser.url.rpartition("/")[2]
            wait_until(lambda: f"Attempt 3 to send task {task_id}" in worker.log)
            state_while_away = browser.state(transfer)
            # It stays until all is done: one that vanishes before its reply is another story.
            with mail_server(handler, at=closed):
                (taken,) = wait_until(lambda: handler.taken_for("dan@example.com"))
                browser.get(transfer).type(code_in(taken.body()))
                browser.wait_for(transfer, "PAID")

    assert state_while_away == "PENDING"


def test_code_that_a_mail_server_refuses_for_good_ends_the_transfer(bank: Bank) -> None:
    browser = bank.customers("eve", "eli")

    with mail_server(Handler(refuse_recipients=True)) as port, bank.mailing_worker(port):
        transfer = browser.order("eli", "10")
        browser.wait_for(transfer, "FAILED")


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

    with running(["python", "run.py"], EXAMPLE, environment, starts, logs=tmp_path) as run:
        browser = Browser(by_http(f"http://127.0.0.1:{web}")).log_in("Ann")
        transfer = browser.order("Minh", "250.00")
        wait_until(lambda: "END MESSAGE" in run.log)
        browser.get(transfer).type(code_in(run.log))
        browser.wait_for(transfer, "PAID")
        run.popen.send_signal(signal.SIGINT)
        ended = run.popen.wait(WITHIN)

    assert ended == 0
    assert "Pay 250.00 EUR to Minh" in run.log
    assert "Traceback" not in run.log
    assert not (tmp_path / "data" / "valkey.sock").exists()
    with pytest.raises(urllib.error.URLError):
        browser.get("/")


def code_in(message: str) -> str:
    return str(re.findall(r"^(\d{6})\r?$", message, re.M)[0])
