"""The web on a real port, as browsers meet it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import httpx2
from fastapi import FastAPI

from ai_worker.db import Database
from ai_worker.store.tokens import Scope, Tokens
from ai_worker.web.access import COOKIE
from ai_worker.web.options import WebOptions
from ai_worker.web.pages.live import Live
from tests.integration import webs

_names = count(1)


@dataclass
class Dashboard:
    """A running web server. `url` has no slash at its end."""

    url: str
    database: Database
    app: FastAPI
    clients: ExitStack

    @property
    def live(self) -> Live:
        """Who watches."""
        live: Live = self.app.state.live
        return live

    @staticmethod
    def until(is_so: Callable[[], bool], seconds: float = 10) -> None:
        """Waits until something is so that happens in the server by itself."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)

    def token(self, *scopes: Scope) -> str:
        """A new token with these scopes; READ if none is named."""
        return Tokens(self.database).add(f"token {next(_names)}", scopes or [Scope.READ])

    def cookie(self, *scopes: Scope) -> str:
        """The secret of a new session with these scopes."""
        tokens = Tokens(self.database)
        principal = tokens.principal(self.token(*scopes))
        assert principal is not None
        return tokens.log_in(principal)

    def browser(self, *scopes: Scope, anonymous: bool = False, session: str | None = None) -> httpx2.Client:
        """A client that is logged in with these scopes (READ if none is named), or has this session, and follows no redirect."""
        cookies = {} if anonymous else {COOKIE: session or self.cookie(*scopes)}
        return self.clients.enter_context(httpx2.Client(base_url=self.url, cookies=cookies, timeout=20))


@contextmanager
def serving(database_url: str, options: WebOptions | None = None) -> Iterator[Dashboard]:
    """Serves a migrated database until the block ends."""
    with webs.serving(database_url, options) as web, ExitStack() as clients:
        yield Dashboard(web.base, web.database, web.server.app, clients)
