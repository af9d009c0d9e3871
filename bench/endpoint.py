"""A model server on a loopback port that costs next to nothing: reads just enough of a request, waits, sends a canned answer.

Speaks OpenAI's chat completions and responses and Gemini's generateContent; the delay in milliseconds is the first step of the
path (`http://127.0.0.1:PORT/1000/v1`). Every text is "right": the answer gives it back. A text is known by its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

APIS = ("chat", "responses", "gemini")
TEXT = "Zażółć gęślą jaźń: this is a sentense with some mistakes in it, number %d, which a model would put right. 🙂"

_NUMBER = re.compile(rb"mistakes in it, number (\d+),")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: "


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server was asked: so many requests, of so many texts, so many at a time at most, over so many new connections."""

    requests: int
    texts: int
    at_once: int
    connections: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server."""

    port: int

    def base_url(self, api: str, delay: float) -> str:
        """What a client of this API is given, for answers after `delay` seconds."""
        return f"http://127.0.0.1:{self.port}/{round(delay * 1000)}" + ("" if api == "gemini" else "/v1")

    def seen(self) -> Seen:
        """Since the last time that this was asked."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen") as answer:
            return Seen(**json.load(answer))


@contextlib.contextmanager
def running() -> Iterator[Endpoint]:
    """A server in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "bench.endpoint"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 -- for mypy
            yield Endpoint(int(process.stdout.readline()))
        finally:
            process.terminate()


def _body(api: str) -> dict[str, Any]:
    """As the vendors send it, the number of the text left open."""
    said = json.dumps({"corrected_text": TEXT, "change_summary": ""}, ensure_ascii=False)
    if api == "gemini":
        return {
            "candidates": [{"content": {"parts": [{"text": said}], "role": "model"}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 900, "candidatesTokenCount": 40, "totalTokenCount": 940},
            "modelVersion": "bench",
            "responseId": "gemini-%d",
        }
    if api == "responses":
        part = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
        message = {"type": "message", "id": "msg_%d", "status": "completed", "role": "assistant", "content": [part]}
        usage = {"input_tokens": 900, "output_tokens": 40, "total_tokens": 940}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        about = {"id": "resp_%d", "object": "response", "created_at": 1700000000, "status": "completed", "model": "bench"}
        rest = {"error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True}
        tools: dict[str, Any] = {"tools": [], "tool_choice": "auto"}
        return {**about, **rest, **tools, "output": [message], "usage": {**usage, **details}}
    message = {"role": "assistant", "content": said, "refusal": None}
    return {
        "id": "chatcmpl-%d",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 900,
            "completion_tokens": 40,
            "total_tokens": 940,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


_PARTS = {api: json.dumps(_body(api), ensure_ascii=False).encode().split(b"%d") for api in APIS}


class _Server:
    """What all connections share: the counts."""

    def __init__(self) -> None:
        self.texts: Counter[bytes] = Counter()
        self.in_flight = self.at_once = self.connections = 0

    def seen(self) -> bytes:
        seen = Seen(self.texts.total(), len(self.texts), self.at_once, self.connections)
        self.texts.clear()
        self.at_once, self.connections = self.in_flight, 0
        return json.dumps(asdict(seen)).encode()


class _Connection(asyncio.Protocol):
    """One client's connection, kept open; one request at a time."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections += 1

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = _LENGTH.search(received, 0, end)
        if length is None and b"\r\ntransfer-encoding:" in received[:end].lower():
            raise NotImplementedError("a request without a Content-Length")
        if len(received) < end + (int(length[1]) if length else 0):
            return
        request = bytes(received)
        received.clear()
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        server, path = self._server, request[: request.index(b"\r\n")].split(b" ")[1]
        if path == b"/seen":
            self._send(server.seen())
            return
        found = _NUMBER.search(request)
        number = found[1] if found else b"0"  # not of ours: the counts will tell
        api = "gemini" if b":generateContent" in path else path.rpartition(b"/")[2].decode()
        api = "chat" if api == "completions" else api
        server.texts[number] += 1
        server.in_flight += 1
        server.at_once = max(server.at_once, server.in_flight)
        delay = int(path.split(b"/")[1]) / 1000
        self._loop.call_later(delay, self._done, number.join(_PARTS[api]))

    def _done(self, body: bytes) -> None:
        self._server.in_flight -= 1
        self._send(body)

    def _send(self, body: bytes) -> None:
        self._transport.write(b"%b%d\r\n\r\n%b" % (_HEAD, len(body), body))


async def _serve() -> None:
    server = _Server()
    listening = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", 0, backlog=4096)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def main() -> None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
