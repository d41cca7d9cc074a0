"""What tests reach behind the public names: steps taken one by one, keys, what stands in Redis."""

from __future__ import annotations

from typing import Any

from redis import Redis

from flask_taskflow import Task
from flask_taskflow._delivery.engine import Engine
from flask_taskflow._service import current_service
from flask_taskflow._store.deliveries import DeliveryStore
from flask_taskflow._store.steps import digest_of

#: The current app's use cases.
service = current_service


def engine(method: str | None = None) -> Engine:
    """Return an engine that is not started, for callbacks or for the sends by a method."""
    runtime = current_service().runtime
    return runtime.new_engine() if method is None else runtime.new_sender(method)


def store(method: str | None = None) -> DeliveryStore:
    """Return an engine's steps, to be taken one by one."""
    return engine(method)._store


def sha_of(step: str) -> bytes:
    """Return what a step that ran, as ``deliveries/ack``, bears on the wire."""
    return digest_of(step).encode()


def key_of(queue: str, name: str, kind: str) -> str:
    """Return a key of a callback, or of a method's sends, whose name is ``@`` and the method."""
    keys = current_service().keys
    return keys.handler(keys.tag(queue), name, kind)[0]


def close() -> None:
    """Close the current app's connections: a collector that meets open sockets warns of them."""
    for client in (current_service().client, current_service().steps_of_threads.client):
        client.close()
        if isinstance(client, Redis):
            client.connection_pool.disconnect()


def dump(redis: Redis) -> str:
    """Return all that Redis holds."""
    read: dict[Any, Any] = {
        b"hash": redis.hgetall,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"string": redis.get,
        b"list": lambda key: redis.lrange(key, 0, -1),
    }
    return "\n".join(f"{key!r} {read[redis.type(key)](key)!r}" for key in redis.scan_iter())


def fill(redis: Any, task: Task[Any], kind: str, count: int, *, due: int = 0) -> None:
    """Copy the delivery of ``work``; the copies have priorities 0 to 9, ever again, and stand in ``kind``."""
    (meta,) = redis.scan_iter(match="*:h:work:meta")
    key = meta.decode().removesuffix("meta")
    line = redis.hget(meta, task.id).decode().split()
    body = redis.hget(f"{key}body", task.id)
    for start in range(0, count, 2000):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start + 2, min(start + 2000, count) + 2):
            identity = task.id[:8] + f"{number:026d}".translate(str.maketrans("0123456789", "abcdefghij"))
            priority = number % 10
            line[1:3] = f"{number:016x}", str(priority)
            pipeline.hset(f"{key}meta", identity, " ".join(line))
            pipeline.hset(f"{key}body", identity, body)
            pipeline.zadd(f"{key}{kind}", {f"{number:016x}:{identity}": due or -priority})
        pipeline.execute()
