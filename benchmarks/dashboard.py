"""Is the dashboard quick with much to show? 100 queues, a million pending tasks, 100,000 dead letters.

Each queue has a month of history. The overview is asked for again and again, and the server is asked how
many scripts that took. Then 20 open pages are read again, as their script does every five seconds, and the
processor time of the app and of Redis is counted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from flask_taskflow import OutboxStrategy, TaskFlow
from flask_taskflow._service import current_service
from flask_taskflow._store.steps import text_of
from flask_taskflow.testing import redis_server

_PERIODS = ("hour", "day", "month")
_EVERY = 5.0
#: So many are stored by one script.
_PORTION = 5000
#: Notes a month, as the counting steps do: hours at first, then the minutes of the last day.
_LIVED = """
local minute, added = math.floor(tonumber(ARGV[1]) / 60000), tonumber(ARGV[2])
for ago = 31 * 1440, 0, -1 do
  if ago % 60 == 0 or ago < 26 * 60 then
    tally_all((minute - ago) * 60000, {
      'tasks added', added, 'tasks verified', added - 1, 'codes EMAIL posted', added,
      'verify EMAIL 10', added - 1, 'verify EMAIL sum', 7000, 'run work done', added, 'took work 0.1', added,
    })
  end
end
return { 'ok' }
"""
#: Fills a sorted set with pending tasks, or with dead letters and what belongs to them.
_FILL = """
for i = tonumber(ARGV[1]), tonumber(ARGV[1]) + tonumber(ARGV[2]) - 1 do
  local id = string.format('%034d', i)
  if #KEYS == 1 then
    redis.call('ZADD', KEYS[1], ARGV[3], id)
  else
    local number = string.format('%016x', i)
    redis.call('ZADD', KEYS[1], ARGV[3], number .. ':' .. id)
    redis.call('HSET', KEYS[2], id, '1 ' .. number .. ' 0 1 0 1 1 -')
    redis.call('HSET', KEYS[3], id, 'TimeoutError: no answer (at shop.py:12)')
  end
end
"""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboard", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--queues", type=int, default=100)
    parser.add_argument("--pending", type=int, default=1_000_000)
    parser.add_argument("--dead", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--within", type=float, default=0.1, help="seconds for the overview")
    parser.add_argument("--share", type=float, default=0.02, help="of a core, for 20 open pages")
    arguments = parser.parse_args()
    with redis_server() as url, Redis.from_url(url) as redis:
        client = fill(url, redis, arguments)
        good = True
        for period in _PERIODS:
            took, scripts = measure(redis, client, f"/?period={period}", arguments.rounds)
            good = good and took <= arguments.within and scripts <= arguments.queues
            print(
                f"overview, {period:<8} {took * 1000:8.1f} ms, {scripts} scripts (at most {arguments.queues})"
            )
        for path in ("/dead", "/queues/q0"):
            took, scripts = measure(redis, client, path, 3)
            print(f"{path:<18} {took * 1000:8.1f} ms, {scripts} scripts")
        share = watched(redis, client)
        good = good and share <= arguments.share
        print(f"20 open pages      {share:8.1%} of a core (at most {arguments.share:.0%})")
    print("as required" if good else "NOT AS REQUIRED")
    return 0 if good else 1


def fill(url: str, redis: Redis, arguments: argparse.Namespace) -> FlaskClient:
    """Store what is to be shown; return a client of an app with the dashboard."""
    taskflow = TaskFlow()
    taskflow.register_strategy("EMAIL")(OutboxStrategy())
    names = [f"q{number}" for number in range(arguments.queues)]
    for name in names:
        taskflow.on_task_verified(name, name="work")(lambda task: None)
    app = Flask("benchmark")
    app.config.update(TESTING=True, SECRET_KEY="a secret key of a benchmark", TASKFLOW_REDIS_URL=url)
    taskflow.init_app(app)
    app.register_blueprint(taskflow.create_dashboard(access=lambda request: "operate"))
    copy = redis.register_script(_FILL)
    lived = redis.register_script(f"{text_of('shared/counters')}\n{_LIVED}")
    with app.app_context():
        service = current_service()
        now = service.operations.now()
        for name in names:
            taskflow.add_task(name, allowed_methods=["EMAIL"], recipient={"email": f"{name}@example.com"})
            pending, counters, history = service.keys.of_queue(name, "pending", "counters", "history")
            redis.hset(service.keys.of_queue(name, "handlers")[0], "work", now)
            dead = service.keys.handler(service.keys.tag(name), "work", "dead", "meta", "error")
            for keys, count, score in (
                ([pending], arguments.pending, now + 10**9),
                (dead, arguments.dead, now),
            ):
                for first in range(0, count // arguments.queues, _PORTION):
                    copy(keys, [first, min(_PORTION, count // arguments.queues - first), score])
            redis.delete(counters, history)
            lived([counters, history], [now, 9])
    return app.test_client()


def measure(redis: Redis, client: FlaskClient, path: str, rounds: int) -> tuple[float, int]:
    """Return how many seconds a page takes, the median, and how many scripts."""
    client.get(path)
    redis.config_resetstat()
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        answer = client.get(path)
        took.append(time.perf_counter() - begun)
        assert answer.status_code == 200
    stats: Any = redis.info("commandstats")
    return statistics.median(took), stats["cmdstat_evalsha"]["calls"] // rounds


def watched(redis: Redis, client: FlaskClient, pages: int = 20, rounds: int = 3) -> float:
    """Return the share of a core that open pages take, which read themselves again every five seconds."""
    seen = [read(client.get("/").text) for _ in range(pages)]
    before = used(redis)
    begun = time.monotonic()
    for number in range(rounds):
        for page in range(pages):
            time.sleep(max(begun + _EVERY * (number + page / pages) - time.monotonic(), 0))
            seen[page] = read(client.get("/", headers={"Taskflow-Seen": seen[page]}).text)
    return (used(redis) - before) / (rounds * _EVERY)


def read(page: str) -> str:
    """Return when what a page shows was read, as the page says it."""
    (told,) = re.findall(r'data-read="(.*?)"', page)
    return str(told)


def used(redis: Redis) -> float:
    """Return the processor time of this process and of the server, in seconds."""
    cpu: Any = redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"]) + time.process_time()


if __name__ == "__main__":
    sys.exit(main())
