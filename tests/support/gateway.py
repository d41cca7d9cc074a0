"""A real gateway over HTTP, which keeps what it was sent and answers as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], object]


def answer(code: int, body: bytes = b"") -> Answer:
    def talk(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return talk


@dataclass
class Gateway:
    """Paths, content types and bodies that came; how it answers, and whether that is over."""

    answer: Answer
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def gateway(code: int = 200) -> Iterator[Gateway]:
    made = Gateway(answer(code))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            made.requests.append((self.path, self.headers["Content-Type"] or "", self.rfile.read(length)))
            with suppress(OSError):
                made.answer(self)

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_port
        thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.over.set()
            server.shutdown()
            thread.join(10)
