"""What Prometheus scrapes: counters that the steps kept, and gauges that are read when it asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from .._service import Service
from .._store.operations import QueueStats
from ..errors import ConfigError

#: The media type of what is told.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("ready", "delayed", "running", "dead")
#: By the first word of a counter's name: the family, its labels after the queue, and what it counts.
_COUNTERS = {
    "tasks": ("taskflow_tasks", ("event",), "What happened to tasks."),
    "codes": ("taskflow_codes_sent", ("method", "outcome"), "Messages with codes."),
    "rejected": ("taskflow_codes_rejected", ("method", "cause"), "Codes that were not accepted."),
    "limits": ("taskflow_limits", ("limit",), "What a limit refused."),
    "run": ("taskflow_deliveries", ("callback", "outcome"), "How attempts of deliveries ended."),
}
_HISTOGRAMS = {
    "verify": ("taskflow_verification_seconds", "method", "From a task to its right code."),
    "wait": ("taskflow_delivery_wait_seconds", "callback", "From a delivery to its first attempt."),
    "took": ("taskflow_delivery_run_seconds", "callback", "How long attempts took."),
}


def exposition(service: Service) -> bytes:
    """Return the metrics of an app in Prometheus' text format.

    :raises ConfigError: if the extra ``[metrics]`` is not installed.
    :raises redis.RedisError: if Redis did not answer.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import generate_latest
    except ImportError:
        raise ConfigError(
            "the metrics need the extra [metrics]: pip install 'flask-taskflow[metrics]'"
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    text: bytes = generate_latest(registry)
    return text


class _Collector:
    """Reads all at once, when a registry asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Any]:
        """Return nothing: what there is is known when it is read."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the families."""
        from prometheus_client import core

        begun = time.perf_counter()
        operations = self._service.operations
        queues = [operations.stats(queue) for queue in operations.queues()]
        yield from _counters(core, queues)
        yield from _histograms(core, queues)
        yield from _gauges(core, queues)
        for name, about, value in (
            ("taskflow_processes", "Processes that listen.", operations.listening()),
            ("taskflow_scrape_seconds", "How long this took to read.", time.perf_counter() - begun),
        ):
            yield core.GaugeMetricFamily(name, about, value=value)
        info = core.GaugeMetricFamily("taskflow_info", "The version.", labels=("version",))
        info.add_metric((version("Flask-TaskFlow"),), 1)
        yield info


def _counters(core: Any, queues: Iterable[QueueStats]) -> Iterator[Any]:
    for kind, (name, labels, about) in _COUNTERS.items():
        family = core.CounterMetricFamily(name, about, labels=("queue", *labels))
        for queue in queues:
            for counter, value in sorted(queue.counts.items()):
                first, *rest = counter.split(" ")
                if first == kind and len(rest) == len(labels):
                    family.add_metric((queue.queue, *rest), value)
        yield family


def _histograms(core: Any, queues: Iterable[QueueStats]) -> Iterator[Any]:
    for kind, (name, label, about) in _HISTOGRAMS.items():
        family = core.HistogramMetricFamily(name, about, labels=("queue", label))
        for queue in queues:
            held: dict[str, dict[str, int]] = {}
            for counter, value in queue.counts.items():
                first, *rest = counter.split(" ")
                if first == kind and len(rest) == 2:
                    held.setdefault(rest[0], {})[rest[1]] = value
            for labelled, buckets in sorted(held.items()):
                total = buckets.pop("sum", 0) / 1000
                family.add_metric((queue.queue, labelled), _cumulated(kind, buckets), total)
        yield family


def _cumulated(kind: str, buckets: dict[str, int]) -> list[tuple[str, int]]:
    count, found = 0, []
    for bound in (*BOUNDS[kind], "inf"):
        count += buckets.get(str(bound), 0)
        found.append(("+Inf" if bound == "inf" else str(bound), count))
    return found


#: The upper bounds of the histograms, in seconds, as ``lua/shared/counters.lua`` has them.
BOUNDS: dict[str, tuple[float, ...]] = {
    "verify": (5, 10, 30, 60, 120, 300, 600, 1800, 3600),
    "wait": (0.01, 0.1, 1, 5, 30, 60, 300, 3600),
    "took": (0.01, 0.1, 1, 5, 30, 60, 300, 3600),
}


def _gauges(core: Any, queues: Iterable[QueueStats]) -> Iterator[Any]:
    gauge = core.GaugeMetricFamily
    pending = gauge("taskflow_tasks_pending", "Tasks that wait for a code.", labels=("queue",))
    paused = gauge("taskflow_queue_paused", "1 while callbacks are held.", labels=("queue",))
    states = gauge("taskflow_deliveries", "Where deliveries stand.", labels=("queue", "callback", "state"))
    oldest = gauge(
        "taskflow_delivery_oldest_ready_seconds",
        "How long the oldest waits that could run.",
        labels=("queue", "callback"),
    )
    for queue in queues:
        pending.add_metric((queue.queue,), queue.pending)
        paused.add_metric((queue.queue,), int(queue.paused))
        for item in queue.callbacks:
            oldest.add_metric((queue.queue, item.callback), item.oldest or 0)
            for state in _STATES:
                states.add_metric((queue.queue, item.callback, state), getattr(item, state))
    yield from (pending, paused, states, oldest)
