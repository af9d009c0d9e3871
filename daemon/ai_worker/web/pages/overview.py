"""The overview: whether work flows, what it costs, who does it, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker.models import TaskStatus
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

_SHOWN_TASKS = 8
_PARTS = ("under-way", "workers", "models")


@router.get("/")
async def overview(request: Request, services: Served) -> HTMLResponse:
    """The page."""
    return render(request, "overview.html.j2", live="overview", **await _facts(services))


async def _facts(services: Services) -> dict[str, Any]:
    reports = services.reports
    tasks = await services.ask(reports.tasks, 100)
    return {
        "tasks": [task for task in tasks if task.status is TaskStatus.IN_PROGRESS][:_SHOWN_TASKS],
        "workers": await services.ask(reports.workers),
        "models": await services.ask(reports.models),
        "stopped": {each.name: each for each in await services.ask(reports.stopped_models)},
    }


async def _fragments(services: Services, may: May, _: str) -> Mapping[str, str]:
    facts = await _facts(services)
    return {part: fragment(f"overview/_{part}.html.j2", may, **facts) for part in _PARTS}


TOPIC = Topic("overview", _fragments)
