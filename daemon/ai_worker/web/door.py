"""The door: whoever brings a right token is let in; who brings wrong ones, again and again, is turned away.

A right token is let in from any address at any time: many people may come from one address, and none of them may shut the others
out. So a token is always looked up. What an address with too many wrong ones in ten minutes gets, beside 429, is the back of the
queue: its tokens are looked up one at a time, whatever it sends at once, and nothing is written for it any more. What cannot be a
token at all is not looked up.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, ParamSpec, Protocol, TypeVar

from fastapi import Request

from ai_worker.store.tokens import PREFIX, Principal, Tokens
from ai_worker.store.web_failures import WINDOW_SECONDS, WebFailures
from ai_worker.web.problems import TooMany, Unauthorised

FAILURES: Final = 10  # wrong tokens in ten minutes that are answered by 401; further ones by 429
_ADDRESSES: Final = 10_000  # that are remembered at once
_TOKEN: Final = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")

P = ParamSpec("P")
T = TypeVar("T")


class Ask(Protocol):
    """Runs a verb of the database in a thread; see `Services.ask`."""

    async def __call__(self, verb: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T: ...


class Door:
    """One per process. How often an address has failed is counted in the database, for all of them."""

    def __init__(self, tokens: Tokens, failures: WebFailures, ask: Ask) -> None:
        self._tokens = tokens
        self._failures = failures
        self._ask = ask
        self._closed_until: dict[str, float] = {}  # by address; a memory only, which spares the database
        self._back = asyncio.Semaphore(1)

    async def admit(self, token: str, request: Request) -> Principal:
        """Whose token this is. Raises Unauthorised for nobody's, and TooMany where its address has brought too many of these."""
        address = address_of(request)
        if not self._is_closed(address):
            if (found := await self._look(token)) is not None:
                return found
            if await self._ask(self._failures.count, address) <= FAILURES:
                raise Unauthorised("this token is not valid, or no longer; `ai-worker token list` names those that are")
            self._close(address)
        else:
            async with self._back:
                if (found := await self._look(token)) is not None:
                    return found
        seconds = round(_window_left()) + 1
        raise TooMany(f"too many wrong tokens came from {address}; a right one is let in", {"Retry-After": str(seconds)})

    async def _look(self, token: str) -> Principal | None:
        if not _TOKEN.fullmatch(token):
            return None
        return await self._ask(self._tokens.principal, token)

    def _is_closed(self, address: str) -> bool:
        return self._closed_until.get(address, 0.0) > time.monotonic()

    def _close(self, address: str) -> None:
        if len(self._closed_until) >= _ADDRESSES:
            self._closed_until.clear()  # the database knows them
        self._closed_until[address] = time.monotonic() + _window_left()


def address_of(request: Request) -> str:
    """Where a request comes from: of IPv6 the network, of which one host has as many addresses as it likes. Behind a proxy that
    AI_WORKER_WEB_PROXIES names, the address that the proxy saw."""
    host = request.client.host if request.client else "local"
    try:
        address = ip_address(host)
    except ValueError:
        return host[:45] if host.isascii() else "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)


def _window_left() -> float:
    """Seconds until the present window ends; by this machine's clock, which is good enough to tell when to come back."""
    return WINDOW_SECONDS - time.time() % WINDOW_SECONDS
