"""How do job queues do beside this package, on one machine and in one run?

Each has one worker with four places that runs jobs which do nothing, as it comes without settings: Huey,
Dramatiq and Celery in threads, RQ in a process for each job. Jobs a second are those of a backlog. The time
is from before the call that stores a job until it begins, one after the other. Here that call is ``verify``
with the right code, which stores the callback as well; theirs stores the job alone.

    pip install huey dramatiq celery packaging rq
    python -m benchmarks.peers
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from redis import Redis

from benchmarks import speed
from flask_taskflow.testing import redis_server

_THREADS = 4


def _note(number: int) -> None:
    """The job: write down when it began, and do nothing else."""
    with open(os.environ["PEERS_FILE"], "a", encoding="ascii") as file:
        file.write(f"{number} {time.time()}\n")


def _huey() -> tuple[Callable[[int], object], Callable[[], object]]:
    from huey import RedisHuey

    queue = RedisHuey("peers", url=os.environ["PEERS_URL"])
    job = queue.task()(_note)
    return job, lambda: queue.create_consumer(workers=_THREADS, worker_type="thread").run()


def _dramatiq() -> tuple[Callable[[int], object], Callable[[], object]]:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=os.environ["PEERS_URL"])
    dramatiq.set_broker(broker)
    job = dramatiq.actor(_note)

    def work() -> None:
        dramatiq.Worker(broker, worker_threads=_THREADS).start()
        time.sleep(10**6)

    return job.send, work


def _celery() -> tuple[Callable[[int], object], Callable[[], object]]:
    from celery import Celery

    app = Celery("peers", broker=os.environ["PEERS_URL"].replace("unix://", "redis+socket://"))
    job = app.task(name="note")(_note)
    arguments = ["worker", "--pool", "threads", "--concurrency", str(_THREADS), "--loglevel", "ERROR"]
    return job.delay, lambda: app.worker_main(arguments)


def _rq() -> tuple[Callable[[int], object], Callable[[], object]]:
    from rq import Queue, Worker

    # By a name that its worker can import.
    from benchmarks.peers import _note as job

    redis = Redis.from_url(os.environ["PEERS_URL"])
    queue = Queue(connection=redis)
    return lambda number: queue.enqueue(job, number), Worker([queue], connection=redis).work


PEERS = {"Huey": _huey, "Dramatiq": _dramatiq, "Celery": _celery, "RQ": _rq}
#: How many of the jobs, if not all: each is a process.
_JOBS = {"RQ": 0.1}


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000, help="how many jobs each number is made of (2000)")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        PEERS[arguments.here]()[1]()
        return 0
    heads = ("with", "jobs a second", "begins after, p50, ms", "p99, ms")
    speed.table("Job queues", heads, compared(arguments.jobs))
    return 0


def compared(jobs: int) -> Iterator[tuple[object, ...]]:
    """Measure this package and each of the others."""
    for name, each in {"Flask-TaskFlow": None, **PEERS}.items():
        number = int(jobs * _JOBS.get(name, 1))
        rate, middle, late = speed.job_figures(number) if each is None else measure(name, each, number)
        known = name if each is None else f"{name} {version(name.lower())}"
        yield known, f"{rate:,.0f}", f"{middle:.2f}", f"{late:.2f}"


def measure(
    name: str, each: Callable[[], tuple[Callable[[int], object], object]], number: int
) -> tuple[float, float, float]:
    """Return how many jobs a second a worker runs, and the median and the p99 of their latency, ms."""
    with redis_server() as url, tempfile.TemporaryDirectory() as folder:
        Path(folder, "job").touch()
        os.environ.update(PEERS_URL=url, PEERS_FILE=os.path.join(folder, "job"))
        job, _ = each()
        for one in range(number):
            job(one)
        with _working(name):
            log = speed.Log(folder)
            rate = speed.per_second(log.told("job", number))
            begun: dict[str, float] = {}
            for one in range(number, number + 200):
                begun[str(one)] = time.time()
                job(one)
                log.told("job", one + 1, every=0.005)
            middle, late = speed.quantiles(begun, log.told("job", number + 200))
    return rate, middle, late


@contextmanager
def _working(name: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.peers", "--here", name]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
