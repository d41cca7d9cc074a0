"""What could lose or hold up callbacks: each finding with its cure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flask import Flask
from redis import RedisError

from ._operations import QueueStats
from .errors import TaskFlowError

if TYPE_CHECKING:
    from ._extension import TaskFlow
    from ._service import Service

#: A callback that no process has claimed to have for this long is served by nobody; processes say so
#: every 30 s.
_UNSEEN = timedelta(seconds=90)
_CLOCK_MAX = 2.0
_SAMPLE = 100
_SILENCE = ("note", "no process listens")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    :param level: ``ok``, ``note`` or ``bad``.
    :param subject: what was looked at.
    :param text: what was found.
    :param cure: what to do about it, empty if nothing.
    """

    level: str
    subject: str
    text: str
    cure: str = ""


def examine(app: Flask, extension: TaskFlow) -> list[Finding]:
    """Look at the server, the listeners, the strategies and the callbacks of an app.

    :raises ConfigError: if no client can be made.
    """
    service = extension._service()
    client: Any = service.client
    try:
        client.ping()
    except RedisError as error:
        cure = "check TASKFLOW_REDIS_URL, and that the server runs and lets this host in"
        return [Finding("bad", "connection", f"{type(error).__name__}: {error}", cure)]
    return [
        *_server(client),
        *_permissions(client, service),
        *_listeners(client, service),
        *_strategies(extension, service),
        *_callbacks(service, extension),
    ]


def _server(client: Any) -> Iterator[Finding]:
    try:
        info = client.info()
    except RedisError as error:
        yield Finding("note", "server", f"INFO is not allowed: {error}", "allow +info for this check")
        return
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info["redis_version"])
    old = tuple(int(part) for part in info["redis_version"].split(".")[:2]) < (6, 2)
    yield Finding("bad" if old else "ok", "server", f"{name} {version}", "use 6.2 or newer" if old else "")
    if info.get("aof_enabled"):
        yield Finding("ok", "persistence", "append-only file")
    else:
        yield Finding(
            "bad", "persistence", "no append-only file", "set appendonly yes: a restart loses tasks"
        )
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        yield Finding("ok", "eviction", policy)
    else:
        yield Finding("bad", "eviction", policy, "set maxmemory-policy noeviction: tasks may be evicted")
    used, limit = info.get("used_memory", 0), info.get("maxmemory", 0)
    full = bool(limit) and used > 0.9 * limit
    text = f"{used >> 20} MiB used of {f'{limit >> 20} MiB' if limit else 'no limit'}"
    yield Finding("bad" if full else "ok", "memory", text, "raise maxmemory" if full else "")
    seconds, microseconds = client.time()
    skew = abs(time.time() - seconds - microseconds / 1e6)
    level = "note" if skew > _CLOCK_MAX else "ok"
    cure = "tasks go by the server's clock; mend yours for logs" if level == "note" else ""
    yield Finding(level, "clock", f"{skew:.1f} s from the server's", cure)


def _permissions(client: Any, service: Service) -> Iterator[Finding]:
    probe = f"{service.keys.prefix}:doctor"
    try:
        client.set(probe, "1", px=1000)
        client.eval("return redis.call('GET', KEYS[1])", 1, probe)
        client.publish(f"{service.keys.presence}doctor", "")
    except RedisError as error:
        yield Finding("bad", "permissions", str(error), "give the user the rule of docs/redis.md")
    else:
        yield Finding("ok", "permissions", "keys, scripts and channels")


def _listeners(client: Any, service: Service) -> Iterator[Finding]:
    try:
        ((_, count),) = client.pubsub_numsub(service.keys.bell)
    except RedisError as error:
        yield Finding("note", "listeners", f"not counted: {error}", "allow +pubsub|numsub for this check")
        return
    if count:
        yield Finding("ok", "listeners", f"{count} processes listen")
    else:
        operations = service.operations
        stats = [operations.stats(queue) for queue in operations.queues()]
        waiting = sum(item.ready for queue in stats if not queue.paused for item in queue.callbacks)
        level, text = ("bad", f"no process listens, {waiting} callbacks wait") if waiting else _SILENCE
        cure = "start a worker or serve a request: nobody hears signals now"
        yield Finding(level, "listeners", text, cure)


def _strategies(extension: TaskFlow, service: Service) -> Iterator[Finding]:
    known = set(extension._channels)
    needed: set[str] = set()
    for queue in service.operations.queues():
        for task_id in service.operations.pending(queue, _SAMPLE):
            with suppress(TaskFlowError):
                needed.update(service.get_task(task_id).allowed_methods)
    for method in sorted(needed - known):
        cure = f"register one with @taskflow.register_strategy({method!r:s})"
        yield Finding("bad", "strategies", f"pending tasks need {method}, which has none", cure)
    if known:
        yield Finding("ok", "strategies", ", ".join(sorted(known)))
    else:
        cure = "register one with @taskflow.register_strategy(method)"
        yield Finding("bad", "strategies", "none", cure)


def _callbacks(service: Service, extension: TaskFlow) -> Iterator[Finding]:
    seconds, _ = service.client.time()
    now = datetime.fromtimestamp(float(seconds), UTC)
    for queue in service.operations.queues():
        stats = service.operations.stats(queue)
        if stats.paused:
            yield Finding("note", queue, "paused", f"flask taskflow resume {queue}")
        for name, seen in service.operations.handlers(queue).items():
            if now - seen > _UNSEEN:
                yield _unserved(stats, name, seen)
        for item in stats.callbacks:
            if item.dead:
                cure = f"flask taskflow dead {queue}"
                yield Finding("bad", queue, f"{item.callback}: {item.dead} dead letters", cure)
    if not extension._callbacks:
        yield Finding("note", "callbacks", "this app has none", "register one if something must run")


def _unserved(stats: QueueStats, name: str, seen: datetime) -> Finding:
    waiting = sum(item.ready + item.delayed for item in stats.callbacks if item.callback == name)
    text = f"{name}: no process has it since {seen:%Y-%m-%d %H:%M:%S}Z, {waiting} deliveries wait"
    cure = f"start a process that has it, or flask taskflow forget {stats.queue} {name}"
    return Finding("bad" if waiting else "note", stats.queue, text, cure)
