"""What do expired tasks leave behind, and what do they cost while they are there?

The server's time per verification is taken from ``INFO commandstats`` (``usec_per_call`` of ``evalsha``,
while nothing else runs a script), in turn on a server that never held them and on one that does. Half of the
verifications carry a wrong code, half the right one. Each number is the best of some rounds: what else the
machine does can only add to it.

It is taken twice: while all of them are there and nothing forgets them, and after ``flask taskflow worker``,
a process with a callback thread, has run until nothing was left of them: no hash, no member of ``pending``,
no recipient. Each is held to its bound; the first one is wider, as the same steps meet colder memory in a
server that holds gigabytes.

The expired tasks are copies: one is added by ``add_task``; a script on the server copies its hash to new ids,
and gives each copy its member of ``pending`` and its recipient, with the times of tasks whose life ended so
long ago that ``TASKFLOW_RETENTION``, for which a hash is kept to answer "expired", ends in ``--left``
seconds. So ids, sizes, scores and times to live are those of real tasks, but the copies' seals do not match,
which nothing here reads. All of them must leave the indexes within a minute of the start of a process with a
callback thread, and the server within a minute of the end of their retention.

    python -m benchmarks.expired
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from flask import Flask, current_app
from redis import Redis

from benchmarks.app import add, app_on, environment
from flask_taskflow import Method, TaskFlow, WrongCode
from flask_taskflow.testing import Outbox, outbox, redis_server

_WITHIN = 60.0
_ROUND = 200
_BATCH = 1000
_INDEXES = ("pending", "recipients:expiry")
_COPY = """
local source, pending, recipients, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first, count, ends = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local forgotten = tonumber(ARGV[4])
for i = first, first + count - 1 do
  local id = string.format('%s%026d', string.sub(source, -34, -27), i)
  local key = string.sub(source, 1, -35) .. id
  local recipient = string.format('%064x', i)
  redis.call('COPY', source, key)
  redis.call('HSET', key, 'expires', string.format('%.0f', ends))
  redis.call('PEXPIREAT', key, string.format('%.0f', forgotten))
  redis.call('ZADD', pending, string.format('%.0f', ends), id)
  redis.call('HSET', recipients, recipient, string.format('1 %.0f 0', ends))
  redis.call('ZADD', expiry, string.format('%.0f', ends), recipient)
end
"""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expired", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--left", type=float, default=55.0, help="seconds until their retention ends")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--there", type=float, default=0.40, help="how much a verification may slow down")
    parser.add_argument("--within", type=float, default=0.10, help="the same, once they are forgotten")
    arguments = parser.parse_args()
    with measured(2 * arguments.rounds) as empty, measured(2 * arguments.rounds) as full:
        redis, source, keys = full.redis, full.source, full.redis.dbsize()
        forgotten = time.time() + arguments.left
        fill(redis, source, arguments.tasks, forgotten)
        there = redis.dbsize() - keys
        before, during = in_turn(empty, full, arguments.rounds)
        still = redis.dbsize() - keys
        begun = time.time()
        with working(full.url):
            clean, gone = wait_until_forgotten(redis, source, keys, deadline=forgotten + 2 * _WITHIN)
        never, after = in_turn(empty, full, arguments.rounds)
    slower, slower_there = after / never - 1, during / before - 1
    print(f"expired tasks              {there:>12,} ({still:,} after the measurement)")
    print(f"usec_per_call, all there   {during:>12.1f} (never there: {before:.1f}, {slower_there:+.1%},")
    print(f"{'':27}{'':>12} at most {arguments.there:+.0%})")
    print(f"usec_per_call, afterwards  {after:>12.1f} (never there: {never:.1f}, {slower:+.1%},")
    print(f"{'':27}{'':>12} at most {arguments.within:+.0%})")
    print(f"out of the indexes after   {clean - begun:>12.1f} s of a process with a callback thread")
    print(f"nothing left after         {gone - forgotten:>12.1f} s, once their retention was over")
    good = there == arguments.tasks and slower <= arguments.within and slower_there <= arguments.there
    good = good and clean - begun <= _WITHIN and gone - forgotten <= _WITHIN
    print("as required" if good else "NOT AS REQUIRED")
    return 0 if good else 1


def in_turn(empty: Measured, full: Measured, rounds: int) -> tuple[float, float]:
    """Measure two servers in turn, so that what else the machine does slows both; return the best rounds."""
    pairs = [(empty.round(), full.round()) for _ in range(rounds)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def fill(redis: Redis, source: str, tasks: int, forgotten: float) -> None:
    """Store copies of a task, and a recipient for each, whose time is over.

    :param source: the id of the task that is copied.
    :param tasks: how many.
    :param forgotten: when their retention ends, a time stamp.
    """
    # As long as the source itself is kept after its end, so that what is measured is what `add_task` stores.
    end = int(redis.hget(_key(source, f"task:{source}"), "expires") or 0)
    kept = time.time() * 1000 + redis.pttl(_key(source, f"task:{source}")) - end
    ends = int(forgotten * 1000 - kept)
    script = redis.register_script(_COPY)
    keys = [_key(source, name) for name in (f"task:{source}", *_INDEXES[:1], "recipients", *_INDEXES[1:])]
    for first in range(0, tasks, _BATCH):
        script(keys, [first, min(_BATCH, tasks - first), ends, int(forgotten * 1000)])


@dataclass
class Measured:
    """A server with tasks that wait for their rounds.

    :param source: the id of a task that is in no round.
    """

    url: str
    redis: Redis
    app: Flask
    taskflow: TaskFlow
    box: Outbox
    tasks: Iterator[str]
    source: str

    def round(self) -> float:
        """Verify tasks, each with a wrong and then with the right code; return the server's µs per call."""
        codes = {message.task.id: message.otp for message in self.box}
        self.redis.config_resetstat()
        with self.app.app_context():
            for task_id in islice(self.tasks, _ROUND):
                wrong = f"{(int(codes[task_id]) + 1) % 10**6:06}"
                with suppress(WrongCode):
                    self.taskflow.verify(task_id, Method.EMAIL, wrong)
                self.taskflow.verify(task_id, Method.EMAIL, codes[task_id])
        return float(self.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])


@contextmanager
def measured(rounds: int) -> Iterator[Measured]:
    """Run a server and add the tasks for some rounds; one more is done at once, to warm up."""
    with redis_server() as url, Redis.from_url(url) as redis:
        with app_on(url) as taskflow, outbox(taskflow) as box:
            ids = [add(taskflow, number) for number in range((rounds + 1) * _ROUND + 1)]
            app = cast(Any, current_app)._get_current_object()
            of = Measured(url, redis, app, taskflow, box, iter(ids[1:]), ids[0])
        of.round()
        yield of


@contextmanager
def working(url: str) -> Iterator[None]:
    """Run the worker, a process with a callback thread."""
    command = [sys.executable, "-m", "flask", "--app", "benchmarks.app:create_app", "taskflow", "worker"]
    process = subprocess.Popen(command, env=environment(url), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def wait_until_forgotten(redis: Redis, source: str, keys: int, *, deadline: float) -> tuple[float, float]:
    """Wait; return when the indexes were clean and when nothing was left, as time stamps.

    :param source: the id of the task that was copied.
    :param keys: how many keys there were before.
    :param deadline: a time stamp; infinity is returned for what has not happened by then.
    """
    clean = gone = math.inf
    while math.inf in (clean, gone) and time.time() < deadline:
        time.sleep(0.05)
        now = time.time()
        if clean == math.inf and not any(redis.zcount(_key(source, i), "-inf", now * 1000) for i in _INDEXES):
            clean = now
        # Beside the copies, a process's own keys and what counts wrong codes come and go.
        if redis.dbsize() < keys + _BATCH and not any(
            redis.scan_iter(match=_key(source, "*:????????000000*"), count=1000)
        ):
            gone = now
    return clean, gone


def _key(task_id: str, name: str) -> str:
    return f"taskflow:{{taskflow.{task_id[:8]}}}:{name}"


if __name__ == "__main__":
    sys.exit(main())
