"""What browsers are told with every answer, and which requests of theirs are refused."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_worker.web.problems import problem

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # not `no-referrer`: browsers then send `Origin: null` with our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE: Final = {"GET", "HEAD", "OPTIONS"}


class BrowserRules:
    """Middleware for all routes: sends headers that no route has set by itself, and refuses what another site's page asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        if is_forged(request):
            answer = problem(request, HTTPStatus.FORBIDDEN, "this request was sent by another site's page", {})
            await answer(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


def is_forged(request: Request) -> bool:
    """Whether a request that changes something comes from a page that is not ours, with a cookie that it did not bring itself.

    As Go 1.25 does it: browsers say where a request comes from (Sec-Fetch-Site; where there is no TLS and no loopback, Origin);
    what says neither is no browser, and has no cookie but its own. A bearer token is brought by hand, from wherever.
    """
    if request.method in _SAFE:
        return False
    scheme, _ = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer":
        return False
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")
