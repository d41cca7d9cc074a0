"""Start the whole bank: a mail server that prints, the web app, a worker. Ctrl-C ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MAIL_SERVER = f"localhost:{os.environ.get('MAIL_PORT', '1025')}"
ENVIRONMENT = {
    "FLASK_SECRET_KEY": "for development only: replace it",
    "FLASK_TASKFLOW_SMTP_URL": f"smtp://{MAIL_SERVER}?starttls=no",
    "PYTHONUNBUFFERED": "1",
    **os.environ,
    "FLASK_APP": "bank",
}


def start(*module: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=Path(__file__).parent,
        env=ENVIRONMENT | environment,
        start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone, which tells them
    )


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    processes = []
    try:
        if start("flask", "init-db").wait():
            return 1
        processes.append(start("aiosmtpd", "-n", "-l", MAIL_SERVER))
        processes.append(start("flask", "taskflow", "worker"))
        # Callbacks are the worker's alone. In debug the cookie of the gate comes over plain HTTP, too.
        processes.append(start("flask", "run", "--debug", "--no-reload", FLASK_TASKFLOW_QUEUES="[]"))
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
