"""The tasks: found by words and filters, each with how far it is, how fast, until when, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker.models import TaskStatus
from ai_worker.store.browsed import TaskSearch
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.asking import TASK_KINDS, live_key, named, query_of
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

_LAST: Final = 2**63 - 1
_LONGEST_TEXT: Final = 100
_FILTERS: Final = ("text", "status", "type", "model", "queue")


@router.get("/ui/tasks")
async def tasks(
    request: Request,
    services: Served,
    text: str = "",
    status: str = "",
    type: str = "",
    model: str = "",
    queue: str = "",
    before: int = 0,
) -> HTMLResponse:
    """The page."""
    filters = dict(zip(_FILTERS, (text.strip()[:_LONGEST_TEXT], status, type, model, queue), strict=True))
    types, queues = await services.ask(services.browsing.choices)
    choices: dict[str, Any] = {
        "types": sorted({*types, *([type] if type else [])}),
        "queues": sorted({*queues, *([queue] if queue else [])}),
        "models": [each.name for each in await services.ask(services.answers.models)],
        "statuses": [(each.name.lower(), each.name.lower().replace("_", " ")) for each in TaskStatus],
    }
    facts = await _facts(services, filters, before)
    # Only the first page changes by itself: the others are what was there before.
    live = live_key("tasks", query_of(**filters)) if not before else None
    return render(request, "tasks.html.j2", live=live, **choices, **facts)


async def _facts(services: Services, filters: Mapping[str, str], before: int = 0) -> dict[str, Any]:
    search = TaskSearch(
        filters["text"] or None,
        named(TaskStatus, filters["status"]),
        filters["type"] or None,
        filters["model"] or None,
        filters["queue"] or None,
    )
    page = await services.ask(services.browsing.tasks, search, before=before if 0 < before < _LAST else _LAST)
    return {
        "tasks": [services.item_counts.complete(each) for each in page.tasks],
        "kinds": TASK_KINDS,
        "filters": filters,
        "is_filtered": any(filters.values()),
        "older": None if page.before is None else f"/ui/tasks?{query_of(**filters, before=page.before)}",
        "is_cut": page.is_cut,
        "newest": f"/ui/tasks?{query_of(**filters)}" if before else None,
    }


async def _fragments(services: Services, may: May, key: str) -> Mapping[str, str]:
    given = parse_qs(key)
    facts = await _facts(services, {name: given.get(name, [""])[0] for name in _FILTERS})
    return {"tasks": fragment("tasks/_tasks.html.j2", may, **facts)}


TOPIC: Final = Topic("tasks", _fragments)
