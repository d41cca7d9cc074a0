"""Redis clients of our own, made from a URL or after the example of a given client."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from ._config import Config
from ._embedded import embedded_server
from .errors import ConfigError

#: Settings that belong to the pool they were found in, not to a connection.
_OF_A_POOL = (
    "max_connections",
    "timeout",
    "maint_notifications",
    "orig_",
    "himport_registry",
    "event_dispatcher",
)


class Connector:
    """What it takes to open connections to one server.

    Every connection answers bytes over RESP2 and repeats nothing by itself: redis-py's retries can run a
    step twice when a reply is lost.

    :param config: the URL, the timeout and the size of the pool.
    :param given: a client whose settings are copied instead.
    :param instance_path: where an embedded server keeps its data by default.
    :raises ConfigError: if the client cannot be used.
    """

    def __init__(self, config: Config, given: object, instance_path: str) -> None:
        self._config = config
        settings = _from_url(config, instance_path) if given is None else _from_client(given)
        self._class = settings.pop("connection_class", Connection)
        own = {key: value for key, value in settings.items() if not key.startswith(_OF_A_POOL)}
        self._settings: dict[str, Any] = {
            "socket_timeout": config.redis_timeout,
            "socket_connect_timeout": config.redis_timeout,
            **own,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "decode_responses": False,
            "protocol": 2,
        }
        self.database = int(self._settings.get("db") or 0)

    def client(self) -> Redis:
        """Return a client with a pool that waits, never longer than ``REDIS_TIMEOUT``."""
        pool = BlockingConnectionPool(
            connection_class=self._class,
            max_connections=self._config.redis_max_connections,
            timeout=self._config.redis_timeout,
            **self._settings,
        )
        return Redis(connection_pool=pool)

    def listener_client(self, name: str) -> Redis:
        """Return a client for one subscriber, outside the pool.

        :param name: how ``CLIENT LIST`` calls it.
        """
        pool = ConnectionPool(connection_class=self._class, **{**self._settings, "client_name": name})
        return Redis(connection_pool=pool)


def _from_url(config: Config, instance_path: str) -> dict[str, Any]:
    parts = urlsplit(config.redis_url)
    if parts.scheme == "embedded":
        directory = Path(parts.path) if parts.path.strip("/") else Path(instance_path) / "taskflow"
        path = embedded_server(directory).start()
        return dict(parse_url(f"unix://{path}"))
    return dict(parse_url(config.redis_url))


def _from_client(given: object) -> dict[str, Any]:
    client = given() if callable(given) and not isinstance(given, Redis) else given
    if not isinstance(client, Redis):
        raise ConfigError(
            f"TaskFlow(redis=...) needs a redis.Redis or a function that returns one, "
            f"not {type(client).__name__}"
        )
    pool = client.connection_pool
    settings = dict(pool.connection_kwargs)
    settings["connection_class"] = pool.connection_class
    return settings
