"""A Redis Cluster's client: bytes, a blocking pool a node, and nothing repeated that may have run."""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from redis import BlockingConnectionPool, ConnectionPool, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, ClusterNode
from redis.commands import RedisClusterCommands
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, SlotNotCoveredError
from redis.retry import Retry

from .._config.redis_url import Host

_RANDOM: random.Random = secrets.SystemRandom()


class ClusterClient(RedisClusterCommands):
    """Commands for a cluster that is looked up at first use, in a forked child again.

    Redirections are followed: what is redirected was not executed. After an error the nodes are looked
    up anew, and the next command goes where its slot is then.

    :param nodes: some of the cluster's nodes.
    :param patience: seconds to wait while another thread looks the cluster up.
    :param settings: of the pool of each node, and of its connections.
    """

    #: redis-py asks for it, to announce connections that it makes; nobody listens.
    _event_dispatcher: Any = None

    def __init__(self, nodes: Sequence[Host], patience: float, **settings: Any) -> None:
        self._seeds = nodes
        self._patience = patience
        self._settings = settings
        # By process: a forked child must not wait for a lock of its parent's threads, nor close its sockets.
        self._clusters: dict[int, RedisCluster] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._last = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command.

        :raises redis.RedisError: if the node could not be reached or did not answer in time.
        """
        try:
            return self._cluster().execute_command(*args, **options)
        except RedisClusterException as error:
            raise self._lost(error) from error

    def listening_pool(self) -> ConnectionPool:
        """Return a node's pool, any but the last node's: every node hears what any publishes.

        :raises redis.RedisError: if no node could be reached.
        """
        cluster = self._cluster()
        try:
            cluster.nodes_manager.initialize()
        except RedisClusterException as error:
            raise self._lost(error) from error
        nodes = cluster.get_nodes()
        node = _RANDOM.choice([node for node in nodes if node.name != self._last] or nodes)
        self._last = node.name
        cluster.disconnect_connection_pools()
        pool: ConnectionPool = cluster.get_redis_connection(node).connection_pool
        return pool

    def close(self) -> None:
        """Close this process's connections; the next command opens one again."""
        cluster = self._clusters.get(os.getpid())
        if cluster is not None:
            cluster.disconnect_connection_pools()

    def __getattr__(self, name: str) -> Any:
        # Commands of several keys or nodes look at the slots and nodes that the cluster's object knows.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._cluster(), name)

    def _cluster(self) -> RedisCluster:
        process = os.getpid()
        found = self._clusters.get(process)
        if found is not None:
            return found
        lock = self._locks.setdefault(process, threading.Lock())
        if not lock.acquire(timeout=self._patience):
            raise RedisConnectionError("the cluster is still being looked up")
        try:
            if process not in self._clusters:
                self._clusters[process] = self._look_up()
            return self._clusters[process]
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error
        finally:
            lock.release()

    def _look_up(self) -> RedisCluster:
        (host, port), *others = self._seeds
        return _Cluster(
            # Only with a URL redis-py takes a pool of another class.
            url=f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}",
            startup_nodes=[ClusterNode(*node) for node in others],
            retry=Retry(NoBackoff(), 0),
            require_full_coverage=False,
            reinitialize_steps=1,
            connection_pool_class=BlockingConnectionPool,
            **self._settings,
        )

    def _lost(self, error: RedisClusterException) -> RedisConnectionError:
        if not isinstance(error, SlotNotCoveredError):
            # None of the known nodes answers: the next command asks the first ones again.
            self._clusters.pop(os.getpid(), None)
        return RedisConnectionError(str(error))


class _Cluster(RedisCluster):
    """A cluster whose slots may be on their way to a node that has none yet, which redis-py does not know."""

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        node: ClusterNode | None = self.nodes_manager.get_node(host, port, node_name)
        if node is None and node_name is not None:
            host, _, number = node_name.rpartition(":")
            node = ClusterNode(host, int(number), PRIMARY)
            # Until the next look-up, as redis-py does when a slot has arrived.
            self.nodes_manager.nodes_cache[node_name] = node
        return node
