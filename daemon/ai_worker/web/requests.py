"""What is common to all requests: an id, a line in the log, a host that is ours, a body of bearable size, headers that keep
browsers from guessing, and an answer also where a handler fails."""

from __future__ import annotations

import re
import time
import uuid
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_worker import log
from ai_worker.log import DEBUG, ERROR, WARNING, Event, Log
from ai_worker.web.options import WebOptions
from ai_worker.web.problems import problem

REQUEST_ID: Final = "X-Request-ID"
UPLOADS: Final = "/ui/submit"
LOGIN: Final = "/ui/login"
LOGIN_BYTES: Final = 64 << 10
_WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}")

# For answers that say nothing else: a page brings a policy of its own (web/pages).
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Requests:
    """The outermost middleware. `count` is how many requests have come so far."""

    def __init__(self, app: ASGIApp, options: WebOptions) -> None:
        self._app = app
        self._body_bytes, self._upload_bytes = options.body_bytes, options.upload_bytes
        self._hosts = _pattern(options.allowed_hosts)
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.count += 1
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _WELL_FORMED.fullmatch(given) else str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        with log.bound(request_id=request_id):
            await self._answer(_Exchange(scope, receive, send, request_id, self._limit(scope["path"])))

    def _limit(self, path: str) -> int:
        """Bytes that are read. Uploads go to the disk; the login's form is the only body that is read of strangers."""
        return {UPLOADS: self._upload_bytes, LOGIN: LOGIN_BYTES}.get(path, self._body_bytes)

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            if self._hosts.fullmatch(_host(exchange.scope)):
                await self._app(exchange.scope, exchange.receive, exchange.send)
            else:
                await exchange.end(HTTPStatus.BAD_REQUEST, "not a name of this server; AI_WORKER_WEB_ALLOWED_HOSTS adds one")
        except Exception as error:
            # Told here and not by the framework, whose answer would have neither our shape nor our headers.
            exchange.error = error
            if exchange.status is not None:
                raise  # half an answer is out: the connection has to be closed
            await exchange.end(HTTPStatus.INTERNAL_SERVER_ERROR, "see the server's log")
        finally:
            exchange.log()


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str, body_bytes: int) -> None:
        self.scope = scope
        self.status: int | None = None
        self.error: Exception | None = None
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._left = body_bytes
        self._limit = body_bytes
        self._begun = time.perf_counter()

    async def receive(self) -> Message:
        """Raises HTTPException when more comes than is read: FastAPI takes no other error while it reads a body."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has {self._limit:,} bytes at most")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def end(self, status: HTTPStatus, detail: str) -> None:
        """Answers in the place of the application."""
        answer = problem(Request(self.scope), status, detail, {})
        await answer(self.scope, self.receive, self.send)

    def log(self) -> None:
        status = self.status or 0
        path = getattr(self.scope.get("route"), "path", None)
        who = self.scope["state"].get("principal")
        _log(
            Event.REQUEST,
            level=_level(status, path),
            exc_info=self.error,
            method=self.scope["method"],
            path=path or log.excerpt(self.scope["path"], 100),
            status=status,
            ms=round((time.perf_counter() - self._begun) * 1000, 1),
            by=None if who is None else who.name,
        )


_log = Log()


def _level(status: int, path: str | None) -> int | None:
    if status >= 500:
        return WARNING if status == HTTPStatus.SERVICE_UNAVAILABLE else ERROR
    return DEBUG if (path or "").startswith("/health/") else None


def _host(scope: Scope) -> str:
    """The host that the client named, without its port."""
    return re.sub(r":[0-9]*$", "", Headers(scope=scope).get("host", "")).lower()


def _pattern(hosts: tuple[str, ...]) -> re.Pattern[str]:
    any_of = "|".join(re.escape(host.lower()).replace(r"\*", ".*") for host in hosts)
    return re.compile(any_of or "(?!)")
