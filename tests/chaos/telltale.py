"""A provider that repeats in its answers whatever it was asked with: the key, all headers, the text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

KINDS: Final = ("400", "401", "404", "429", "500", "200", "302", "garbage", "cut", "text", "html")


@dataclass
class TellTale:
    """`base(kind)` is the URL of one that answers in this way, one of KINDS; `asked` are the requests, as text."""

    port: int
    asked: list[str] = field(default_factory=list)

    def base(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.port}/{kind}"


@contextmanager
def telltale() -> Iterator[TellTale]:
    """Such a provider on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode("utf-8", "replace")
            told.asked.append(f"{self.command} {self.path}\n{self.headers}\n{body}")
            kind = self.path.split("/")[1]
            said = f"You sent {self.headers.items()!r}, key {self._key()!r}, and {self._key()}, and {body[:300]}"
            self._answer(kind, said)

        do_GET = do_POST

        def _key(self) -> str:
            given: str = self.headers.get("x-goog-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
            return given

        def _answer(self, kind: str, said: str) -> None:
            if kind == "cut":
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + said.encode())
            elif kind == "garbage":
                self.close_connection = True
                self.wfile.write(f"{said}\r\n\r\n".encode())
            elif kind == "302":
                self._send(302, "", location=f"/302/elsewhere?key={self._key()}")
            elif kind == "200":
                self._send(200, json.dumps({"error": None, "echo": said, "choices": said, "candidates": said}))
            elif kind == "text":
                self._send(500, said, "text/plain")
            elif kind == "html":
                self._send(502, f"<html><body><h1>Bad gateway</h1>{said}</body></html>", "text/html")
            else:
                error = {"message": said, "type": said, "code": f"bad {self._key()}", "status": self._key(), "param": said}
                self._send(int(kind), json.dumps({"error": error}))

        def _send(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: standard error is the test's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = TellTale(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
