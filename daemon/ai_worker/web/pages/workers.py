"""Workers: which processes there are, on which hosts, and how they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])


@router.get("/ui/workers")
async def workers(request: Request, services: Served) -> HTMLResponse:
    """The page."""
    return render(request, "workers.html.j2", live="workers", **await _facts(services))


async def _fragments(services: Services, may: May, _: str) -> Mapping[str, str]:
    return {"fleet": fragment("_fleet.html.j2", may, **await _facts(services))}


async def _facts(services: Services) -> dict[str, Any]:
    found = await services.ask(services.reports.workers, with_ended=True)
    states = Counter(each.state for each in found)
    running = [each for each in found if each.state != "ended"]
    return {
        "running": running,
        "ended": [each for each in reversed(found) if each.state == "ended"],
        "states": states,
        "hosts": len({each.host for each in running}),
        "in_flight": sum(each.in_flight for each in running),
        "concurrency": sum(each.concurrency for each in running),
    }


TOPIC = Topic("workers", _fragments)
