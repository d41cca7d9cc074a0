"""What could lose or hold up callbacks: each finding with its cure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import RedisError

from .._service import Service
from .._store.operations import QueueStats
from ..errors import ConfigError, KeyMissing, TaskFlowError
from .exposure import exposures

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
    :param clause: of which standard it is a breach, as ``ASVS 16.2.5`` (OWASP, 5.0) or ``NIST 3.2.2``
        (SP 800-63B-4); empty if of none.
    """

    level: str
    subject: str
    text: str
    cure: str = ""
    clause: str = ""


def examine(service: Service, *, strict: bool = False) -> list[Finding]:
    """Look at the server, the listeners, the strategies and the callbacks of an app.

    :param service: the app's.
    :param strict: whether each breach of a standard is bad, and debug and testing excuse none.
    """
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
        *_strategies(service),
        *(finding for finding in examine_settings(service) if finding.level == "bad"),
        *_secrets(service),
        *_exposures(service, strict),
        *_callbacks(service),
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
        cure = "set appendonly yes: a restart loses tasks, and counts of wrong codes"
        yield Finding("bad", "persistence", "no append-only file", cure, "NIST 3.2.2")
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        yield Finding("ok", "eviction", policy)
    else:
        cure = "set maxmemory-policy noeviction: tasks and counts of wrong codes may be evicted"
        yield Finding("bad", "eviction", policy, cure, "NIST 3.2.2")
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
    probe = service.keys.probe
    try:
        client.set(probe, "1", px=1000)
        client.eval("return redis.call('GET', KEYS[1])", 1, probe)
        client.publish(service.keys.presence("doctor"), "")
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


def _strategies(service: Service) -> Iterator[Finding]:
    known = set(service.channels)
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


def _exposures(service: Service, strict: bool) -> Iterator[Finding]:
    for each in exposures(service, strict=strict):
        level = "bad" if each.bad or strict else "note"
        yield Finding(level, "security", each.what, each.cure, each.clause)


def _secrets(service: Service) -> Iterator[Finding]:
    own, told = service.keyring.fingerprints, service.operations.fingerprints()
    fleet = {own} | {keys for keys, seen in told.items() if _is_fresh(service, seen)}
    bad = False
    for newest in sorted({keys[0] for keys in fleet}):
        for keys in sorted(keys for keys in fleet if newest not in keys):
            who = "this process" if keys == own else _with_keys(keys, told[keys])
            bad = True
            yield Finding(
                "bad",
                "secret keys",
                f"{who} lacks the SECRET_KEY whose fingerprint is {newest}, which others use",
                "add it to SECRET_KEY_FALLBACKS there; until then that process leaves their tasks to others",
            )
    held = {key for keys in fleet for key in keys}
    for fingerprint, count in sorted(_sealed_by_others(service).items()):
        if fingerprint not in held:
            bad = True
            text = f"{count} pending tasks need the SECRET_KEY whose fingerprint is {fingerprint}"
            cure = "no process has it: put it back into SECRET_KEY_FALLBACKS, or let them expire"
            yield Finding("bad", "secret keys", text, cure)
    if not bad:
        names = service.keyring.names
        shown = [f"{key} ({name})" for key, name in zip(own, names, strict=True)] if names else own
        yield Finding("ok", "secret keys", " ".join(shown))


def _with_keys(keys: Sequence[str], seen: datetime) -> str:
    """Name a process that says which keys it has, and no more; it may have ended since."""
    return f"a process heard of at {seen:%H:%M:%S}Z, with the keys {' '.join(keys)}"


def _sealed_by_others(service: Service) -> Counter[str]:
    missing: Counter[str] = Counter()
    for queue in service.operations.queues():
        for task_id in service.operations.pending(queue, _SAMPLE):
            try:
                service.get_task(task_id)
            except KeyMissing as error:
                missing[error.fingerprint] += 1
            except TaskFlowError:
                continue
    return missing


def examine_settings(service: Service) -> list[Finding]:
    """Let each strategy of an app look at its settings; no server is asked.

    :param service: the app's.
    """
    findings = []
    for method, channel in sorted(service.channels.items()):
        try:
            channel.strategy.check_settings()
        except ConfigError as error:
            findings.append(Finding("bad", method, str(error), "docs/config.md explains each setting"))
        else:
            findings.append(Finding("ok", method, type(channel.strategy).__name__))
    return findings


def _callbacks(service: Service) -> Iterator[Finding]:
    for owner in service.operations.stuck():
        cure = "restart it, and give what its callbacks call a time limit"
        yield Finding("bad", "process", f"{owner}: all its places are taken by attempts that hang", cure)
    for queue in service.operations.queues():
        stats = service.operations.stats(queue)
        if waiting := service.operations.unclaimed(queue):
            yield _unclaimed(queue, waiting, service.operations.close_to(queue))
        if stats.paused:
            yield Finding("note", queue, "paused", f"flask taskflow resume {queue}")
        for name, seen in service.operations.handlers(queue).items():
            if not _is_fresh(service, seen):
                yield _unserved(stats, name, seen)
        for item in stats.callbacks:
            if item.dead:
                cure = f"flask taskflow dead {queue}"
                yield Finding("bad", queue, f"{item.callback}: {item.dead} dead letters", cure)
    if not service.callbacks:
        yield Finding("note", "callbacks", "this app has none", "register one if something must run")


def _is_fresh(service: Service, seen: datetime) -> bool:
    seconds, _ = service.client.time()
    return datetime.fromtimestamp(float(seconds), UTC) - seen <= _UNSEEN


def _unclaimed(queue: str, waiting: int, close: list[str]) -> Finding:
    text = f"{waiting} verified tasks wait: no callback was ever registered for this queue"
    meant = f", or mend the queue's name: did you mean {' or '.join(close)}?" if close else ""
    cure = f"start a process that has a callback for it, within TASKFLOW_RETENTION{meant}"
    return Finding("bad", queue, text, cure)


def _unserved(stats: QueueStats, name: str, seen: datetime) -> Finding:
    waiting = sum(item.ready + item.delayed for item in stats.callbacks if item.callback == name)
    text = f"{name}: no process has it since {seen:%Y-%m-%d %H:%M:%S}Z, {waiting} deliveries wait"
    cure = f"start a process that has it, or flask taskflow forget {stats.queue} {name}"
    return Finding("bad" if waiting else "note", stats.queue, text, cure)
