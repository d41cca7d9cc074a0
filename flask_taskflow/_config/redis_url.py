"""What ``TASKFLOW_REDIS_URL`` says: where the server is, or the servers are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis import Connection, RedisError
from redis.connection import parse_url
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

FORMS = (
    "redis://, rediss:// or unix:// as redis-py reads them, embedded://, "
    "redis+cluster://[user:password@]host:port[,host:port...] (or rediss+cluster://), or "
    "redis+sentinel://[user:password@]host:port[,host:port...]/service[/database] (or rediss+sentinel://)"
)
_DATABASE = re.compile(r"/?[0-9]*")
_SERVICE = re.compile(r"/([A-Za-z0-9_.%-]+)(/[0-9]*)?", re.ASCII)
_OF_SENTINELS = "sentinel_"
_SENTINEL_PORT = 26379

Host = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and how.

    :param settings: of a connection to a data node, as redis-py calls them.
    :param nodes: some nodes of a cluster.
    :param remap: what a cluster's client makes of the addresses that nodes call themselves by.
    :param sentinels: who to ask for the primary.
    :param service: the primary's name among the sentinels.
    :param of_sentinels: settings of a connection to a sentinel.
    :param directory: of an embedded server, empty for the default one; else ``None``.
    """

    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    nodes: tuple[Host, ...] = ()
    remap: Callable[[Host], Host] | None = None
    sentinels: tuple[Host, ...] = ()
    service: str = ""
    of_sentinels: Mapping[str, Any] = field(default_factory=dict, repr=False)
    directory: str | None = None


def read_address(url: object) -> Address:
    """Return what a URL says.

    :raises ValueError: if it cannot be used; the text never holds a part of the URL.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.fragment:
            raise ValueError
        scheme, _, topology = parts.scheme.partition("+")
        by_network = scheme in ("redis", "rediss")
        if topology == "cluster" and by_network and parts.path in ("", "/", "/0"):
            return _cluster(scheme, parts.netloc, parts.query)
        if topology == "sentinel" and by_network and (path := _SERVICE.fullmatch(parts.path)):
            return _sentinel(scheme, parts.netloc, unquote(path[1]), path[2] or "", parts.query)
        numbered = not by_network or _DATABASE.fullmatch(parts.path)
        if not topology and numbered and parts.port != 0:
            if scheme == "embedded":
                return Address(directory=parts.path if parts.path.strip("/") else "")
            if by_network or scheme == "unix":
                return Address(_settings(str(url)))
    except _BadOption:
        raise ValueError("an option after its '?' is unknown or has a bad value") from None
    except ValueError:
        # The text of these errors may quote the URL, and with it a password.
        pass
    raise ValueError(f"quote special characters and use {FORMS}") from None


class _BadOption(Exception):
    pass


def _cluster(scheme: str, netloc: str, query: str) -> Address:
    user, nodes = _hosts(netloc, 6379)
    settings = _settings(f"{scheme}://{user}localhost?{query}")
    if settings.pop("db", 0):
        raise _BadOption
    return Address(settings, nodes=nodes)


def _sentinel(scheme: str, netloc: str, service: str, database: str, query: str) -> Address:
    user, sentinels = _hosts(netloc, _SENTINEL_PORT)
    options = parse_qsl(query, keep_blank_values=True)
    theirs: dict[str, Any] = {
        key[len(_OF_SENTINELS) :]: value for key, value in options if key.startswith(_OF_SENTINELS)
    }
    if not theirs.keys() <= {"username", "password"}:
        raise _BadOption
    ours = urlencode([(key, value) for key, value in options if not key.startswith(_OF_SENTINELS)])
    settings = _settings(f"{scheme}://{user}localhost{database}?{ours}")
    if scheme == "rediss":
        theirs |= {"ssl": True, **{key: value for key, value in settings.items() if key.startswith("ssl_")}}
    managed = SentinelManagedSSLConnection if scheme == "rediss" else SentinelManagedConnection
    settings["connection_class"] = managed
    return Address(settings, sentinels=sentinels, service=service, of_sentinels=theirs)


def _hosts(netloc: str, port: int) -> tuple[str, tuple[Host, ...]]:
    user, at, hosts = netloc.rpartition("@")
    found = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname or parts.port == 0 or parts.netloc != host:
            raise ValueError
        found.append((parts.hostname, parts.port or port))
    return user + at, tuple(found)


def _settings(url: str) -> dict[str, Any]:
    try:
        settings = dict(parse_url(url))
        # This opens no connection; it fails for an unknown option.
        of_connection = {key: settings[key] for key in settings.keys() - {"max_connections", "timeout"}}
        of_connection.pop("connection_class", Connection)(**of_connection)
    except (ValueError, TypeError, RedisError):
        raise _BadOption from None
    return settings
