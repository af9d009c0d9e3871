"""The web on a real port, as browsers meet it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import httpx2
import uvicorn
from fastapi import FastAPI

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.tokens import Scope, Tokens
from ai_worker.web.access import COOKIE
from ai_worker.web.app import create_app
from ai_worker.web.options import WebOptions
from ai_worker.web.pages.live import Live
from ai_worker.web.serving import WebServer

_names = count(1)


@dataclass
class Dashboard:
    """A running web server. `url` has no slash at its end."""

    url: str
    database: Database
    app: FastAPI
    clients: list[httpx2.Client] = field(default_factory=list)

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
        client = httpx2.Client(base_url=self.url, cookies=cookies, timeout=20)
        self.clients.append(client)
        return client


class _Server(WebServer):
    """Tells when it listens."""

    is_up: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextmanager
def serving(database_url: str, options: WebOptions | None = None) -> Iterator[Dashboard]:
    """Serves a migrated database until the block ends."""
    database = Database(parse_database_url(database_url))
    app = create_app(database, options)
    server = _Server(app, uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="on"))
    server.is_up = threading.Event()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.is_up.wait(20), "the web server does not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    dashboard = Dashboard(f"http://127.0.0.1:{port}", database, app)
    try:
        yield dashboard
    finally:
        server.should_exit = True
        for client in dashboard.clients:
            client.close()
        thread.join(20)
        database.close()
        assert not thread.is_alive(), "the web server does not end"
