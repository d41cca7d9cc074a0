"""The fixtures, by a name for ``-p`` and ``pytest_plugins`` where pytest loads no plugin by itself."""

from _flask_taskflow_pytest import (
    no_code_in_logs,
    pytest_runtest_makereport,
    taskflow_outbox,
    taskflow_redis,
    taskflow_server,
    taskflow_travel,
)

__all__ = [
    "no_code_in_logs",
    "pytest_runtest_makereport",
    "taskflow_outbox",
    "taskflow_redis",
    "taskflow_server",
    "taskflow_travel",
]
