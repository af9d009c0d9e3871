"""One task: how far it is, what went wrong, its items; and what a person does to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ai_worker import formats
from ai_worker.errors import UsageError
from ai_worker.models import ItemStatus, ReviewStatus, TaskStatus
from ai_worker.store.browsed import Counted, ItemSearch
from ai_worker.store.browsing import ERRORS
from ai_worker.store.reports import TaskReport
from ai_worker.store.reviews import Review, Span
from ai_worker.store.tokens import Scope
from ai_worker.web.access import Guarded, Reviewer, Runner, needs
from ai_worker.web.pages.asking import (
    ITEM_KINDS,
    TASK_KINDS,
    go,
    live_key,
    named,
    number,
    query_of,
    said,
    somebody_works,
    within_patience,
)
from ai_worker.web.pages.drafts import UNCONFIRMED
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(route_class=Guarded, include_in_schema=False, dependencies=[needs(Scope.READ)])

_LEAST_PRIORITY, _MOST_PRIORITY = -32767, 32767
_LOOKS: Final = 3  # searches for the next item to be reviewed, in one request
_PARTS: Final = ("status", "actions", "state", "errors", "items")


@router.get("/ui/tasks/{id_task}")
async def task(
    request: Request,
    services: Served,
    id_task: int,
    status: str = "",
    review: str = "",
    kind: str = "",
    order: str = "",
    after: int = 0,
    did: str = "",
    items: int | None = None,
) -> Response:
    """The page."""
    filters = {"status": status, "review": review, "kind": kind[:32], "order": order, "after": str(max(after, 0) or "")}
    facts = await _facts(services, id_task, filters)
    if facts["task"].status_reason == UNCONFIRMED and facts["task"].status is TaskStatus.PAUSED:
        return RedirectResponse(f"/ui/submit/{id_task}", 303)
    words = await services.ask(services.browsing.words, id_task)
    live = live_key("task", query_of(id=id_task, **filters))
    return render(request, "task.html.j2", live=live, words=words, said=said(did, items), commands=_commands(facts), **facts)


async def _facts(services: Services, id_task: int, filters: Mapping[str, str]) -> dict[str, Any]:
    search = ItemSearch(named(ItemStatus, filters["status"]), named(ReviewStatus, filters["review"]), filters["kind"] or None)
    after = int(filters["after"] or 0)
    by_risk = filters["order"] == "risk" and search.review is ReviewStatus.UNREVIEWED
    counted = services.item_counts.complete(await services.ask(services.browsing.task, id_task))
    if by_risk:
        page = await services.ask(services.browsing.riskiest, id_task, after=after)
    else:
        page = await services.ask(services.browsing.items, id_task, search, after=after)
    here = f"/ui/tasks/{id_task}"
    shown = {name: value for name, value in filters.items() if name != "after"}
    return {
        "counted": counted,
        "task": counted.task,
        "hints": await _hints(services, counted.task),
        "kinds": TASK_KINDS,
        "item_kinds": ITEM_KINDS,
        "statuses": [each.name.lower() for each in ItemStatus],
        "reviews": [each.name.lower() for each in ReviewStatus],
        "filters": filters,
        "is_filtered": any(shown.values()),
        "by_risk": by_risk,
        "page": page,
        "here": here,
        "following": None if page.after is None else f"{here}?{query_of(**shown, after=page.after)}#items",
        "first": f"{here}?{query_of(**shown)}#items" if after else None,
        "cut": _cut(counted.task),
        "error_limit": ERRORS,
    }


def _cut(task: TaskReport) -> frozenset[ItemStatus]:
    """Whose reasons were not looked at to the end: there may be more of each, and others."""
    statuses = (ItemStatus.ERROR, ItemStatus.DEFERRED)
    return frozenset(each for each in statuses if sum(group.items for group in task.errors if group.status is each) >= ERRORS)


async def _hints(services: Services, task: TaskReport) -> list[str]:
    """Why nothing moves."""
    hint = None
    if task.status is TaskStatus.CANCELLED or not task.open:
        pass
    elif task.status is TaskStatus.PAUSED:
        again = f" It goes on by itself at {formats.iso(task.resume_at)}." if task.resume_at else ""
        hint = f"Paused: {task.status_reason or 'by a person'}.{again}"
    elif task.model_stopped:
        hint = f"The model {task.model} is stopped ({task.model_stopped}). The items wait for it, or for a fallback."
    elif unmet := [each for each in task.after if not each.is_met]:
        names = ", ".join(f"task {each.id_task} ({each.status.name.lower() if each.status else 'gone'})" for each in unmet)
        hint = f"Waits for {names}."
    elif task.is_ahead:
        hint = f"Starts at {formats.iso(task.scheduled_at)}."
    elif not await somebody_works(services):
        hint = f"No worker is running. To start one: ai-worker run --task {task.id_task}"
    return [hint] if hint else []


def _commands(facts: Mapping[str, Any]) -> list[str]:
    """The same from a terminal."""
    task: TaskReport = facts["task"]
    number = task.id_task
    commands = [
        f"ai-worker watch {number}",
        f"ai-worker results {number} -o task-{number}.csv",
        f"ai-worker review {number}",
    ]
    kinds = [each.kind for each in task.errors if each.status is ItemStatus.ERROR]
    commands += [f"ai-worker retry {number} --kind {shlex.quote(kind)}" for kind in kinds[:3]]
    if task.status is TaskStatus.PAUSED:
        commands.append(f"ai-worker resume {number}")
    elif not task.is_over:
        commands.append(f"ai-worker pause {number}")
    return commands


async def _fragments(services: Services, may: May, key: str) -> Mapping[str, str]:
    given = parse_qs(key)
    filters = {name: given.get(name, [""])[0] for name in ("status", "review", "kind", "order", "after")}
    facts = await _facts(services, number(given.get("id", [""])[0]), {**filters, "after": str(number(filters["after"] or "0"))})
    return {part: fragment(f"task/_{part}.html.j2", may, **facts) for part in _PARTS}


TOPIC: Final = Topic("task", _fragments)


# ----- what a person does


@router.post("/ui/tasks/{id_task}/pause")
async def pause(services: Served, _: Runner, id_task: int) -> Response:
    """Stops claims."""
    await services.ask(services.tasks.pause, id_task)
    return go(f"/ui/tasks/{id_task}", "pause")


@router.post("/ui/tasks/{id_task}/resume")
async def resume(services: Served, _: Runner, id_task: int) -> Response:
    """Goes on with a paused or a cancelled task."""
    change = await within_patience(services, services.tasks.resume, id_task)
    return go(f"/ui/tasks/{id_task}", "resume" if change else "working")


@router.post("/ui/tasks/{id_task}/cancel")
async def cancel(services: Served, _: Runner, id_task: int) -> Response:
    """Ends a task."""
    change = await within_patience(services, services.tasks.cancel, id_task)
    return go(f"/ui/tasks/{id_task}", "cancel", change.items) if change else go(f"/ui/tasks/{id_task}", "working")


@router.post("/ui/tasks/{id_task}/retry")
async def retry(services: Served, _: Runner, id_task: int, kind: Annotated[str, Form()] = "") -> Response:
    """Brings back what failed, all of it or for one kind of reason."""
    items = await within_patience(services, services.tasks.retry, id_task, kind=kind or None)
    return go(f"/ui/tasks/{id_task}", "working" if items is None else "retry", items)


@router.post("/ui/tasks/{id_task}/priority")
async def priority(services: Served, _: Runner, id_task: int, number: Annotated[int, Form()]) -> Response:
    """Gives it another priority."""
    if not _LEAST_PRIORITY <= number <= _MOST_PRIORITY:
        raise UsageError(f"a priority is a number from {_LEAST_PRIORITY} to {_MOST_PRIORITY}")
    await services.ask(services.tasks.set_priority, id_task, number)
    return go(f"/ui/tasks/{id_task}", "priority")


@router.post("/ui/tasks/{id_task}/review")
async def review_many(
    services: Served,
    who: Reviewer,
    id_task: int,
    verdict: Annotated[str, Form()],
    which: Annotated[str, Form()] = "chosen",
    items: Annotated[list[int] | None, Form()] = None,
    back: Annotated[str, Form()] = "",
) -> Response:
    """Gives many items one verdict: those chosen in the list, or `all` that nobody has reviewed yet."""
    verdicts = {"accept": ReviewStatus.ACCEPTED, "reject": ReviewStatus.REJECTED}
    if verdict not in verdicts:
        raise UsageError(f"{verdict!r} is no verdict: accept or reject")
    review = Review(verdicts[verdict], who.name)
    if which == "all":
        count = await within_patience(services, services.reviews.review_rest, id_task, review)
    elif items:
        spans = [Span(each, each) for each in sorted(set(items))]
        count = await within_patience(services, services.reviews.review, spans, review, id_task=id_task)
    else:
        raise UsageError("no item is chosen")
    filters = {
        name: values[0] for name, values in parse_qs(back).items() if name in {"status", "review", "kind", "order", "after"}
    }
    query = query_of(**filters)
    place = f"/ui/tasks/{id_task}" + (f"?{query}" if query else "")
    return go(place, "working" if count is None else verdict, count)


@router.get("/ui/tasks/{id_task}/review")
async def next_to_review(request: Request, services: Served, id_task: int, after: int | None = None, did: str = "") -> Response:
    """The next item that waits for review: behind `after`, else where the review was left off, and then from the start."""
    begin = await services.ask(services.browsing.left_off, id_task) if after is None else after
    place = begin
    for _ in range(_LOOKS):
        found = await services.ask(services.browsing.next_to_review, id_task, place)
        if found.id_task_item is not None:
            return go(f"/ui/items/{found.id_task_item}", did or None, of=begin if did and begin else None)
        if found.goes_on is not None:
            place = found.goes_on
        elif begin == 0 or place == 0:
            break
        else:
            place = begin = 0
    else:
        counted = await services.ask(services.browsing.task, id_task)
        return _look_further(request, counted, place)
    return go(f"/ui/tasks/{id_task}", "reviewed")


def _look_further(request: Request, counted: Counted, place: int) -> HTMLResponse:
    return render(request, "task/look_further.html.j2", task=counted.task, after=place)
