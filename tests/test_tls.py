"""TLS, client certificates and passwords against Debian's redis-server; the wheel's server has no TLS."""

from __future__ import annotations

import shutil
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from redis import AuthenticationError, Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from flask_taskflow import Method, OutboxStrategy, Task, TaskFlow, task_verified
from flask_taskflow.testing import outbox, redis_server

PASSWORD = "p@ss/w:rd?#%&+ ü"
QUOTED = quote(PASSWORD, safe="")
DEADLINE = 10.0

BINARY = shutil.which("redis-server")
OPENSSL = shutil.which("openssl")


def has_tls(binary: str | None) -> bool:
    if binary is None:
        return False
    # A server without TLS does not know the option; one with it finds that it listens nowhere.
    command = [binary, "--port", "0", "--tls-port", "0", "--save", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    return "not listen anywhere" in done.stdout


pytestmark = [
    pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed"),
    pytest.mark.skipif(not has_tls(BINARY), reason="no redis-server with TLS is installed"),
]


def openssl(*arguments: object) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True)


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
OF_SERVER = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, `ca` and `stranger`; `server` and `client` are signed by the first."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "stranger"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
        openssl("req", "-x509", *NEW_KEY, *files, "-days", "2", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr"]
        openssl("req", *NEW_KEY, *files, "-subj", f"/CN={name}")
        signer = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2"]
        request = ["-in", folder / f"{name}.csr", "-out", folder / f"{name}.crt"]
        openssl("x509", "-req", *request, *signer, "-extfile", folder / "names")
    return folder


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@contextmanager
def tls_server(certificates: Path, *, clients: str) -> Iterator[str]:
    """Yield host and port; ``clients`` says whether clients need a certificate, as Redis puts it."""
    with redis_server(binary=BINARY, port=True) as url:
        host, port = url.removeprefix("redis://").split("/")[0].split(":")
        admin = Redis(host=host, port=int(port), single_connection_client=True)
        admin.execute_command("ACL SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        files = [(f"tls-{kind}-file", str(certificates / name)) for kind, name in OF_SERVER.items()]
        settings = [*files, ("tls-auth-clients", clients), ("requirepass", PASSWORD), ("port", "0")]
        admin.execute_command("CONFIG SET", *(part for pair in settings for part in pair))
        # The port that was free for plain connections serves TLS from here on.
        admin.config_set("tls-port", port)
        yield f"localhost:{port}"
        admin.close()


@pytest.fixture(scope="module")
def open_server(certificates: Path) -> Iterator[str]:
    with tls_server(certificates, clients="no") as address:
        yield address


@pytest.fixture(scope="module")
def strict_server(certificates: Path) -> Iterator[str]:
    with tls_server(certificates, clients="yes") as address:
        yield address


@contextmanager
def app_on(url: str) -> Iterator[TaskFlow]:
    taskflow = TaskFlow()
    taskflow.register_strategy(Method.EMAIL)(OutboxStrategy())
    app = Flask("app")
    app.config.update(
        TESTING=True,
        SECRET_KEY="a secret key of the test suite, long enough",
        TASKFLOW_REDIS_URL=url,
        TASKFLOW_RECIPIENT_MAX_SENDS=100,
    )
    taskflow.init_app(app)
    with app.app_context():
        try:
            yield taskflow
        finally:
            taskflow.stop(timeout=2)


def add(taskflow: TaskFlow) -> Task[Any]:
    return taskflow.add_task("q", allowed_methods=["EMAIL"], recipient={"email": "ann@example.com"})


def problem_with(url: str) -> RedisError:
    """Return what a call raises; no password is in it or in what led to it."""
    with app_on(url) as taskflow, pytest.raises(RedisError) as caught:
        add(taskflow)
    said = f"{''.join(traceback.format_exception(caught.value))} {caught.value!r} {taskflow!r}"
    assert PASSWORD not in said
    assert QUOTED not in said
    return caught.value


def test_everything_works_over_tls(open_server: str, certificates: Path) -> None:
    url = f"rediss://:{QUOTED}@{open_server}/0?ssl_ca_certs={certificates}/ca.crt"
    verified, ran = threading.Event(), threading.Event()

    def on_verified(app: Flask, task: Task[Any]) -> None:
        verified.set()

    with app_on(url) as taskflow, outbox(taskflow) as box, task_verified.connected_to(on_verified):
        taskflow.on_task_verified("q", name="act")(lambda task: ran.set())
        taskflow.start()
        task = add(taskflow)
        taskflow.verify(task.id, "EMAIL", box[-1].otp)

        assert verified.wait(DEADLINE)
        assert ran.wait(DEADLINE)


@pytest.mark.parametrize(
    "form",
    [
        "rediss://app:{password}@{server}/0?ssl_ca_certs={folder}/ca.crt",
        "rediss://:{password}@{server}?ssl_ca_certs={folder}/ca.crt",
        "rediss://app:{password}@{server}/0?ssl_cert_reqs=none&ssl_check_hostname=false",
    ],
)
def test_url_over_tls_without_client_certificates(open_server: str, certificates: Path, form: str) -> None:
    url = form.format(password=QUOTED, server=open_server, folder=certificates)

    with app_on(url) as taskflow:
        assert taskflow.get_task(add(taskflow).id)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("rediss://app:{password}@localhost:{port}/0", "certificate verify failed"),
        (
            "rediss://app:{password}@localhost:{port}/0?ssl_ca_certs={folder}/stranger.crt",
            "certificate verify failed",
        ),
        ("rediss://app:{password}@127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.crt", "IP address mismatch"),
        ("rediss://app:{password}@localhost:{port}/0?ssl_ca_certs=/nowhere/ca.crt", "No such file"),
        ("redis://app:{password}@localhost:{port}/0", "Connection"),
    ],
    ids=["system authorities", "another authority", "another name", "no file", "no tls"],
)
def test_server_that_cannot_be_trusted_is_refused(
    open_server: str, certificates: Path, form: str, told: str
) -> None:
    port = open_server.partition(":")[2]

    error = problem_with(form.format(password=QUOTED, port=port, folder=certificates))

    assert told in str(error)


def test_client_certificate_is_shown(strict_server: str, certificates: Path) -> None:
    url = f"rediss://app:{QUOTED}@{strict_server}/0?ssl_ca_certs={certificates}/ca.crt"

    with app_on(f"{url}&{certificate_of('client', certificates)}") as taskflow:
        assert taskflow.get_task(add(taskflow).id)


@pytest.mark.parametrize("shown", ["", "stranger"])
def test_client_without_the_right_certificate_is_refused(
    strict_server: str, certificates: Path, shown: str
) -> None:
    url = f"rediss://app:{QUOTED}@{strict_server}/0?ssl_ca_certs={certificates}/ca.crt"

    error = problem_with(f"{url}&{certificate_of(shown, certificates)}" if shown else url)

    assert isinstance(error, RedisConnectionError)


def certificate_of(name: str, folder: Path) -> str:
    return f"ssl_certfile={folder}/{name}.crt&ssl_keyfile={folder}/{name}.key"


@pytest.mark.parametrize("user", ["", "app", "nobody"])
def test_wrong_password_is_told_without_it(open_server: str, certificates: Path, user: str) -> None:
    secret = f"{QUOTED}-wrong"
    url = f"rediss://{user}:{secret}@{open_server}/0?ssl_ca_certs={certificates}/ca.crt"

    error = problem_with(url)

    assert isinstance(error, AuthenticationError)
    assert "invalid username-password pair" in str(error)


def test_listener_that_is_refused_says_so_without_the_password(
    open_server: str, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"rediss://app:{QUOTED}-wrong@{open_server}/0?ssl_ca_certs={certificates}/ca.crt"

    with app_on(url) as taskflow:
        taskflow.start()

    assert "The listener lost Redis: AuthenticationError: " in caplog.text
    assert PASSWORD not in caplog.text
    assert QUOTED not in caplog.text
