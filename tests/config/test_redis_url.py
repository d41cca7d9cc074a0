"""``TASKFLOW_REDIS_URL``: what it takes, and that no refusal shows a password."""

from __future__ import annotations

import pytest

from flask_taskflow import ConfigError
from flask_taskflow._config.config import Config

TAKEN = """
redis://localhost redis://localhost/ redis://[::1]:6379/0 redis://:p%40ss@localhost:6380/3
redis://localhost?timeout=3&max_connections=7&socket_timeout=1
rediss://user:pass@redis.example.com/1?ssl_cert_reqs=none
unix:///run/redis.sock?db=2 unix://:secret@/run/redis.sock
embedded:// embedded:///var/lib/app
redis+cluster://localhost rediss+cluster://a.example.com:6379?ssl_cert_reqs=none
redis+cluster://ann:p%40ss@a.example.com:6379,b.example.com,[::1]:7000/0?socket_timeout=1
redis+sentinel://localhost/mymaster
redis+sentinel://:p%40ss@a.example.com:26379,b.example.com/my-master/3?socket_timeout=1
redis+sentinel://localhost/mymaster?sentinel_username=ann&sentinel_password=p%40ss
rediss+sentinel://localhost/mymaster?ssl_cert_reqs=none
"""
REFUSED = """
http://:hunter2@localhost localhost:6379/hunter2 redis+hunter2://localhost
redis://:hunter2@localhost:port/0 redis://:hunter2@localhost:99999/0 redis://:hunter2@localhost:0/0
redis://:hunter2@localhost/first redis://:hunter2@localhost/0?db=first
redis://:hunter2@localhost/0?socket_timeout=hunter2 redis://:hunter2@localhost/0?hunter2=1
redis://:hunter2@localhost/0?protocol=9
redis://:12#hunter2@localhost/0 redis://:hunter/2@localhost/0 redis://[hunter2/0
redis+cluster://:hunter2@ redis+cluster://:hunter2@localhost, redis+cluster://:hunter/2@localhost
redis+cluster://:hunter2@localhost:0 redis+cluster://:hunter2@localhost:port
redis+cluster://:hunter2@localhost/1 redis+cluster://:hunter2@localhost?db=1
redis+cluster://:hunter2@localhost?hunter2=1
redis+sentinel://:hunter2@localhost redis+sentinel://:hunter2@localhost/
redis+sentinel://:hunter2@localhost/mymaster/first
redis+sentinel://:hunter2@localhost/mymaster?sentinel_hunter2=1
redis+sentinel://:hunter2@localhost/mymaster?hunter2=1
redis+sentinel://:hunter2@localhost/mymaster?ssl_cert_reqs=none rediss+sentinel://:hunter2@localhost
"""


@pytest.mark.parametrize("url", TAKEN.split())
def test_url_of_each_kind_is_taken(url: str) -> None:
    assert Config.read({"TASKFLOW_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize("url", [*REFUSED.split(), "", None, b"redis://:hunter2@localhost", 7])
def test_url_when_bad_is_refused_without_its_password(url: object) -> None:
    with pytest.raises(ConfigError, match=r"^TASKFLOW_REDIS_URL cannot be used: ") as caught:
        Config.read({"TASKFLOW_REDIS_URL": url})

    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
