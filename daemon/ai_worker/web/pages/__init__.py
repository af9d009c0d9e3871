"""The pages of the dashboard: rendered here, live by server-sent events."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from ai_worker.web.pages import door, item, live, models, overview, results, schedules, submit, task, tasks, workers
from ai_worker.web.pages.assets import Assets
from ai_worker.web.pages.live import Live, Topic
from ai_worker.web.services import Services

_ROUTERS: Final = (
    door.router,
    live.router,
    overview.router,
    tasks.router,
    results.router,
    task.router,
    item.router,
    submit.router,
    models.router,
    workers.router,
    schedules.router,
)
_TOPICS: Final[tuple[Topic, ...]] = (overview.TOPIC, tasks.TOPIC, task.TOPIC, models.TOPIC, workers.TOPIC, schedules.TOPIC)


def add_pages(app: FastAPI) -> None:
    """Gives the application its pages, their files, and errors that people can read."""
    app.mount("/static", Assets(), name="static")
    for router in _ROUTERS:
        app.include_router(router)
    app.state.error_page = door.error_page


def live_of(services: Services) -> Live:
    """What keeps the pages of this process up to date."""
    return Live(services, _TOPICS)
