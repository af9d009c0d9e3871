"""The web application, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ai_worker import __version__
from ai_worker.web import metrics
from ai_worker.web.api import description, fleet, health, items, runs, tasks
from ai_worker.web.browsers import BrowserRules
from ai_worker.web.options import WebOptions
from ai_worker.web.pages import add_pages, live_of, warm
from ai_worker.web.problems import add_problems
from ai_worker.web.requests import REQUEST_ID, Requests
from ai_worker.web.services import Services

if TYPE_CHECKING:
    from ai_worker.db import Database


def create_app(db: Database, options: WebOptions | None = None) -> FastAPI:
    """The application, on an open database whose schema has been checked. The database is closed by the caller."""
    chosen = options or WebOptions()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = Services(db, chosen)
        app.state.live = live = live_of(services)
        app.state.metrics = metrics.Metrics(db)
        app.state.warming = asyncio.create_task(services.ask(warm, services))  # it is ready meanwhile
        yield
        services.stopping.set()
        live.close()
        await services.aclose()

    app = FastAPI(title="AI Worker", version=__version__, lifespan=lifespan, openapi_url=None)
    if chosen.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(chosen.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", REQUEST_ID],
            expose_headers=["Link", "Location", "Retry-After", "Idempotency-Replayed", REQUEST_ID],
        )
    app.add_middleware(BrowserRules)
    app.add_middleware(Requests, options=chosen)  # the last one added is the outermost
    add_problems(app)
    for module in (health, runs, tasks, items, fleet, description, metrics):  # `/task/run` stands before `/task/{id_task}`
        app.include_router(module.router)
    add_pages(app)
    description.describe(app)
    return app
