"""TLS, client certificates and passwords against Debian's redis-server; the wheel's server has no TLS."""

from __future__ import annotations

import shutil
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import AuthenticationError, Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from flask_taskflow import callback_succeeded, task_verified
from flask_taskflow.testing import redis_server
from tests.support.fleet import wait_until
from tests.support.stage import Stage
from tests.support.topologies import SLOTS, free_ports, wait_for, walk_through

PASSWORD = "p@ss/w:rd?#%&+ ü"
QUOTED = quote(PASSWORD, safe="")

BINARY = shutil.which("redis-server")
OPENSSL = shutil.which("openssl")


def has_tls(binary: str | None) -> bool:
    if binary is None:
        return False
    # A server without TLS does not know the option; one with it finds that it listens nowhere.
    command = [binary, "--port", "0", "--tls-port", "0", "--save", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return "not listen anywhere" in done.stdout


pytestmark = [
    pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed"),
    pytest.mark.skipif(not has_tls(BINARY), reason="no redis-server with TLS is installed"),
]

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments: object) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, `ca` and `stranger`; `server`, `client` and `node` are signed by the first."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "stranger"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
        # RFC 5280, 4.2.1.3: from Python 3.13 on, who signs must say that it may.
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", *NEW_KEY, *files, "-days", "2", "-subj", f"/CN={name}", *usage)
    identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    # Nodes of a cluster tell the addresses of each other.
    for name, called in {
        "server": "DNS:localhost",
        "client": "DNS:localhost",
        "node": "IP:127.0.0.1",
    }.items():
        (folder / "names").write_text(f"subjectAltName={called}\n{identifiers}")
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr"]
        openssl("req", *NEW_KEY, *files, "-subj", f"/CN={name}")
        signer = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2"]
        request = ["-in", folder / f"{name}.csr", "-out", folder / f"{name}.crt"]
        openssl("x509", "-req", *request, *signer, "-extfile", folder / "names")
    return folder


def shown_by(name: str, certificates: Path) -> dict[str, Path]:
    """Return the settings of a server by which it shows a certificate."""
    files = {"cert": f"{name}.crt", "key": f"{name}.key", "ca-cert": "ca.crt"}
    return {f"tls-{kind}-file": certificates / file for kind, file in files.items()}


@contextmanager
def tls_server(certificates: Path, *options: str, name: str = "server", clients: str = "no") -> Iterator[str]:
    """Yield the port; ``clients`` says whether clients need a certificate, as Redis puts it."""
    port = str(free_ports(1)[0])
    settings = {**shown_by(name, certificates), "tls-port": port, "tls-auth-clients": clients}
    shown = [part for option, value in settings.items() for part in (f"--{option}", str(value))]
    with redis_server(*shown, *options, binary=BINARY) as url, Redis.from_url(url) as admin:
        admin.execute_command("ACL SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        admin.config_set("requirepass", PASSWORD)
        yield port


@pytest.fixture(scope="module")
def open_port(certificates: Path) -> Iterator[str]:
    with tls_server(certificates) as port:
        yield port


@pytest.fixture(scope="module")
def strict_port(certificates: Path) -> Iterator[str]:
    with tls_server(certificates, clients="yes") as port:
        yield port


@pytest.fixture
def cluster_port(certificates: Path) -> Iterator[str]:
    """A cluster of one node."""
    options = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_ports(1)[0]))
    with (
        tls_server(certificates, *options, name="node") as port,
        client_of("127.0.0.1", port, certificates, PASSWORD) as client,
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_for(lambda: client.cluster("INFO")["cluster_state"] == "ok", "the cluster is whole")
        yield port


@pytest.fixture
def sentinel_port(certificates: Path, open_port: str, tmp_path: Path) -> Iterator[str]:
    """A sentinel of the open server, which tells its name instead of an address."""
    port = str(free_ports(1)[0])
    lines = [
        *(f"{option} {path}" for option, path in shown_by("server", certificates).items()),
        *("port 0", f"tls-port {port}", "tls-replication yes", "tls-auth-clients no", "bind 127.0.0.1"),
        *("sentinel resolve-hostnames yes", "sentinel announce-hostnames yes"),
        f"sentinel monitor mymaster localhost {open_port} 1",
        *("sentinel auth-user mymaster app", f'sentinel auth-pass mymaster "{PASSWORD}"'),
    ]
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text("\n".join(lines))
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [str(BINARY), str(configuration), "--sentinel"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    try:
        with client_of("localhost", port, certificates) as client:
            wait_for(client.ping, f"the sentinel starts: {log.read_text()}")
            yield port
    finally:
        process.kill()
        process.wait()


def client_of(host: str, port: str, certificates: Path, password: str | None = None) -> Redis:
    authority = str(certificates / "ca.crt")
    return Redis(host=host, port=int(port), password=password, ssl=True, ssl_ca_certs=authority)


def problem_with(stage: Stage, url: str) -> RedisError:
    """Return what a call raises; no password is in it or in what led to it."""
    with stage.make_app(redis_url=url).app_context(), pytest.raises(RedisError) as caught:
        stage.add()
    said = f"{''.join(traceback.format_exception(caught.value))} {caught.value!r} {stage.taskflow!r}"
    assert PASSWORD not in said
    assert QUOTED not in said
    return caught.value


def test_everything_works_over_tls(stage: Stage, open_port: str, certificates: Path) -> None:
    stage.work()
    heard, ran = stage.hear(task_verified), stage.hear(callback_succeeded)
    stage.start(redis_url=f"rediss://:{QUOTED}@localhost:{open_port}/0?ssl_ca_certs={certificates}/ca.crt")

    task = stage.verified()

    assert heard.tasks() == ran.tasks() == [task.id]


# What an app talks to outlives it.
@pytest.mark.slow
def test_cluster_is_reached_over_tls(cluster_port: str, stage: Stage, certificates: Path) -> None:
    files = f"ssl_ca_certs={certificates}/ca.crt"
    stage.app(redis_url=f"rediss+cluster://app:{QUOTED}@127.0.0.1:{cluster_port}?{files}")

    assert walk_through(stage)[-1] == "pay 3"


def test_primary_and_sentinels_are_reached_over_tls(
    sentinel_port: str, stage: Stage, certificates: Path
) -> None:
    files = f"ssl_ca_certs={certificates}/ca.crt"
    stage.app(redis_url=f"rediss+sentinel://app:{QUOTED}@localhost:{sentinel_port}/mymaster/0?{files}")

    assert walk_through(stage)[-1] == "pay 3"


@pytest.mark.slow
def test_sentinels_that_cannot_be_trusted_are_refused(
    sentinel_port: str, stage: Stage, certificates: Path
) -> None:
    files = f"ssl_ca_certs={certificates}/stranger.crt"
    url = f"rediss+sentinel://app:{QUOTED}@localhost:{sentinel_port}/mymaster/0?{files}"

    assert isinstance(problem_with(stage, url), RedisError)


@pytest.mark.parametrize(
    "form",
    [
        "app:{password}@localhost:{port}/0?ssl_ca_certs={folder}/ca.crt",
        ":{password}@localhost:{port}?ssl_ca_certs={folder}/ca.crt",
        "app:{password}@localhost:{port}/0?ssl_cert_reqs=none&ssl_check_hostname=false",
    ],
)
def test_url_over_tls_without_client_certificates(
    stage: Stage, open_port: str, certificates: Path, form: str
) -> None:
    stage.app(redis_url=f"rediss://{form.format(password=QUOTED, port=open_port, folder=certificates)}")

    assert stage.taskflow.get_task(stage.add().id)


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
    stage: Stage, open_port: str, certificates: Path, form: str, told: str
) -> None:
    error = problem_with(stage, form.format(password=QUOTED, port=open_port, folder=certificates))

    assert told in str(error)


@pytest.mark.parametrize("shown", ["client", "", "stranger"])
def test_client_must_show_the_right_certificate_if_the_server_asks(
    stage: Stage, strict_port: str, certificates: Path, shown: str
) -> None:
    url = f"rediss://app:{QUOTED}@localhost:{strict_port}/0?ssl_ca_certs={certificates}/ca.crt"
    if shown:
        url += f"&ssl_certfile={certificates}/{shown}.crt&ssl_keyfile={certificates}/{shown}.key"

    if shown == "client":
        stage.app(redis_url=url)
        assert stage.taskflow.get_task(stage.add().id)
    else:
        assert isinstance(problem_with(stage, url), RedisConnectionError)


@pytest.mark.parametrize("user", ["", "app", "nobody"])
def test_wrong_password_is_told_without_it(
    stage: Stage, open_port: str, certificates: Path, user: str
) -> None:
    url = f"rediss://{user}:{QUOTED}-wrong@localhost:{open_port}/0?ssl_ca_certs={certificates}/ca.crt"

    error = problem_with(stage, url)

    assert isinstance(error, AuthenticationError)
    assert "invalid username-password pair" in str(error)


def test_listener_that_is_refused_says_so_without_the_password(
    stage: Stage, open_port: str, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"rediss://app:{QUOTED}-wrong@localhost:{open_port}/0?ssl_ca_certs={certificates}/ca.crt"

    stage.start(redis_url=url)

    wait_until(lambda: "The listener lost Redis: AuthenticationError: " in caplog.text)
    assert PASSWORD not in caplog.text
    assert QUOTED not in caplog.text
