"""The pages of the dashboard: rendered here, live by server-sent events."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from fastapi import FastAPI

from ai_worker.errors import AiWorkerError
from ai_worker.web.pages import door, item, live, models, overview, results, schedules, submit, task, tasks, workers
from ai_worker.web.pages.assets import Assets
from ai_worker.web.pages.live import Live, Topic
from ai_worker.web.pages.rendering import STATIC, environment, static
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


def warm(services: Services) -> None:
    """In a thread, when the web has started: makes what the first visitors would wait for otherwise, two seconds' work in all.

    Templates are compiled, the overview's numbers and the prompts read. Without the database the rest waits for whoever asks
    first; told to stop, it ends early.
    """
    made = environment()
    for name in made.list_templates():
        if services.stopping.is_set():
            return
        made.get_template(name)
    for file in STATIC.iterdir():
        static(file.name)
    with suppress(AiWorkerError):
        overview.read(services, "day")  # connects, and has the charts' day at hand
        library = services.library()
        for name in library.names():
            if services.stopping.is_set():
                return
            with suppress(AiWorkerError):  # a prompt with a mistake is told to whoever wants it
                library.named(name)
