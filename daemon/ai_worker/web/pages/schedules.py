"""Schedules: what comes again, when next, and what keeps it from coming."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker.cron import Cron
from ai_worker.errors import UsageError
from ai_worker.store.health import Health
from ai_worker.store.schedules import Schedule
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

_SHOWN_TIMES: Final = 3  # after the next one


@router.get("/ui/schedules")
async def schedules(request: Request, services: Served) -> HTMLResponse:
    """The page."""
    return render(request, "schedules.html.j2", live="schedules", **await _facts(services))


async def _fragments(services: Services, may: May, _: str) -> Mapping[str, str]:
    return {"schedules": fragment("_schedules.html.j2", may, **await _facts(services))}


async def _facts(services: Services) -> dict[str, Any]:
    now = await services.ask(Health(services.db).now)
    found = await services.ask(services.schedules.all)
    return {"now": now, "schedules": [(each, later_times(each)) for each in found]}


def later_times(schedule: Schedule) -> list[datetime]:
    """When it comes after its next time; nothing where its expression cannot be read here, which its message says too."""
    if schedule.next_at is None:
        return []
    try:
        return list(islice(Cron(schedule.cron, schedule.time_zone).times(schedule.next_at), _SHOWN_TIMES))
    except UsageError:
        return []


TOPIC = Topic("schedules", _fragments, seconds=5.0)
