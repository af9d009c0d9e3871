"""The web as its users meet it: uvicorn on a port of this machine, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.tokens import Scope, Tokens
from ai_worker.web import server as servers
from ai_worker.web.app import create_app
from ai_worker.web.options import WebOptions
from ai_worker.web.serving import WebServer

TIMEOUT = 20.0


@dataclass(frozen=True)
class Web:
    """One instance. `client(...)` speaks to it, with a new token of these scopes unless `token` says otherwise."""

    base: str
    database: Database
    server: WebServer
    app: FastAPI
    _stack: ExitStack

    def token(self, *scopes: Scope, name: str | None = None) -> str:
        tokens = Tokens(self.database)
        return tokens.add(name or f"test {len(tokens.all())}", scopes or [Scope.ADMIN])

    def client(self, *scopes: Scope, token: str | None = None, **headers: str) -> httpx2.Client:
        """A client with a token, closed at the test's end. `token=""`: with none."""
        given = self.token(*scopes) if token is None else token
        own = {"Authorization": f"Bearer {given}"} if given else {}
        client = httpx2.Client(base_url=self.base, headers={**own, **headers}, timeout=TIMEOUT)
        return self._stack.enter_context(client)


@contextmanager
def serving(database_url: str, options: WebOptions | None = None, *, proxies: tuple[str, ...] = ()) -> Iterator[Web]:
    """An instance of the web on this database, for the length of the block."""
    with ExitStack() as stack:
        database = Database(parse_database_url(database_url), patience=0.5)
        stack.callback(database.close)
        listener = stack.enter_context(servers.listen("127.0.0.1", 0))
        app = create_app(database, options)
        server = servers.made(app, proxies=proxies, drain_seconds=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web under test")
        stack.callback(_stop, server, thread)
        thread.start()
        yield Web(f"http://127.0.0.1:{listener.getsockname()[1]}", database, server, app, stack.enter_context(ExitStack()))


def _stop(server: uvicorn.Server, thread: threading.Thread) -> None:
    server.should_exit = True
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "the web did not stop"


def problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer that must be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["detail"]
    return body
