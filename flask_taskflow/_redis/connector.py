"""Redis clients of our own, made from a URL or after the example of a given client."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from redis import BlockingConnectionPool, Connection, ConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from .._config.config import Config
from .._config.redis_url import Address, Host, read_address
from ..errors import ConfigError
from .cluster import ClusterClient
from .embedded import embedded_server

#: Settings that belong to the pool or the client they were found in, not to a connection.
_FOREIGN = (
    "max_connections",
    "timeout",
    "maint_notifications",
    "orig_",
    "himport_registry",
    "event_dispatcher",
    "connection_pool",
    "cache",
)
_WITHOUT_RETRIES: Mapping[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "retry_on_timeout": False,
    "retry_on_error": [],
}


class Connector:
    """What it takes to open connections to one server, to a cluster, or to a primary behind sentinels.

    Every connection answers bytes over RESP2 and repeats nothing by itself: redis-py's retries can run a
    step twice when a reply is lost.

    :param config: the URL, the timeout and the size of the pool.
    :param given: a client whose settings are copied instead.
    :param instance_path: where an embedded server keeps its data by default.
    :raises ConfigError: if the client cannot be used.
    """

    def __init__(self, config: Config, given: object, instance_path: str) -> None:
        self._config = config
        address = _from_url(config, instance_path) if given is None else _from_client(given)
        own = {key: value for key, value in address.settings.items() if not key.startswith(_FOREIGN)}
        self._timeouts = {
            "socket_timeout": config.redis_timeout,
            "socket_connect_timeout": config.redis_timeout,
        }
        # A given client that would wait for ever waits as long as ours.
        own = {key: value for key, value in own.items() if value is not None or key not in self._timeouts}
        kept = {"decode_responses": False, "protocol": 2}
        self._class = own.pop("connection_class", Connection)
        self._settings: dict[str, Any] = {**self._timeouts, **own, **_WITHOUT_RETRIES, **kept}
        self._pool = {"max_connections": config.redis_max_connections, "timeout": config.redis_timeout}
        self._address = address
        #: The database number; clusters have only 0.
        self.database = int(self._settings.get("db") or 0)
        #: Whether one node knows all subscribers, so that it can be asked which processes live.
        self.sees_subscribers = not address.nodes
        #: Whether a step may reach keys of one slot only.
        self.is_cluster = bool(address.nodes)
        self._cluster = self._cluster_client() if address.nodes else None

    def client(self) -> Redis:
        """Return a client with a pool that waits, never longer than ``REDIS_TIMEOUT``.

        A cluster's client is no ``Redis``, but has the commands of one.
        """
        if self._address.nodes:
            return cast(Redis, self._cluster_client())
        settings = {"connection_class": self._class, **self._pool, **self._settings}
        if self._address.sentinels:
            make: Callable[..., ConnectionPool] = _BlockingSentinelPool
            pool = make(*self._sentinel(), **settings)
        else:
            pool = BlockingConnectionPool(**settings)
        client = Redis(connection_pool=pool)
        # An app that is collected leaves no open socket behind.
        weakref.finalize(client, pool.disconnect).atexit = False
        return client

    def listener_client(self, name: str) -> Redis:
        """Return a client for one subscriber, outside the pool; in a cluster, for another node each time.

        :param name: how ``CLIENT LIST`` calls it.
        :raises redis.RedisError: if no node of a cluster could be reached.
        """
        settings = {"connection_class": self._class, **self._settings, "client_name": name}
        if self._address.sentinels:
            return Redis(connection_pool=SentinelConnectionPool(*self._sentinel(), **settings))
        if self._cluster is not None:
            settings = {**_copied(self._cluster.listening_pool()), "client_name": name}
        return Redis(connection_pool=ConnectionPool(**settings))

    def _cluster_client(self) -> ClusterClient:
        # What repeats is set for the cluster, not for a connection; and there is one database only.
        foreign = {"db", *_WITHOUT_RETRIES}
        settings = {key: value for key, value in self._settings.items() if key not in foreign}
        return ClusterClient(
            self._address.nodes,
            self._config.redis_timeout,
            address_remap=self._address.remap,
            connection_class=self._class,
            **self._pool,
            **settings,
        )

    def _sentinel(self) -> tuple[str, Sentinel]:
        theirs = {
            key: value for key, value in self._address.of_sentinels.items() if key not in _WITHOUT_RETRIES
        }
        kept = {"retry": _WITHOUT_RETRIES["retry"], "decode_responses": False, "protocol": 2}
        settings = {**self._timeouts, **theirs, **kept}
        kind: type[Sentinel] = _Sentinel
        return self._address.service, kind(self._address.sentinels, sentinel_kwargs=settings)


class _BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """A pool that waits, of connections to a primary that sentinels name."""


class _Sentinel(Sentinel):
    """Sentinels that several threads may ask at once.

    redis-py swaps the members of its list while others walk it, by which one of them can get lost.
    """

    def discover_master(self, service_name: str) -> Host:
        mine = copy.copy(self)
        mine.sentinels = list(self.sentinels)
        found: Host = Sentinel.discover_master(mine, service_name)
        self.sentinels = mine.sentinels
        return found


def _from_url(config: Config, instance_path: str) -> Address:
    address = read_address(config.redis_url)
    if address.directory is not None:
        directory = Path(address.directory or Path(instance_path) / "taskflow")
        return read_address(f"unix://{embedded_server(directory).start()}")
    return address


def _from_client(given: object) -> Address:
    client = given() if callable(given) and not isinstance(given, Redis | RedisCluster) else given
    if isinstance(client, RedisCluster):
        return _from_cluster(client)
    if not isinstance(client, Redis):
        raise ConfigError(
            f"TaskFlow(redis=...) needs a redis.Redis or a function that returns one, or a "
            f"redis.RedisCluster, not {type(client).__name__}"
        )
    pool = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return Address(_copied(pool))
    if not pool.is_master:
        raise ConfigError("TaskFlow(redis=...) needs Sentinel.master_for(...): replicas take no writes")
    sentinel = pool.sentinel_manager
    hosts = [node.connection_pool.connection_kwargs for node in sentinel.sentinels]
    return Address(
        _copied(pool),
        sentinels=tuple((host["host"], int(host["port"])) for host in hosts),
        service=pool.service_name,
        of_sentinels=sentinel.sentinel_kwargs,
    )


def _from_cluster(client: RedisCluster) -> Address:
    nodes = [*client.startup_nodes, *client.get_nodes()]
    settings = _copied(client.get_redis_connection(nodes[-1]).connection_pool)
    # The client's own step after connecting is its own; what its user added to that goes on.
    settings["redis_connect_func"] = client.user_on_connect_func
    return Address(
        settings,
        nodes=tuple(dict.fromkeys((node.host, int(node.port)) for node in nodes)),
        remap=client.nodes_manager.address_remap,
    )


def _copied(pool: ConnectionPool) -> dict[str, Any]:
    found = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith(_FOREIGN)}
    return {**found, "connection_class": pool.connection_class}
