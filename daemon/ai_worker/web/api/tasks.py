"""Tasks: submit, look at, retry, pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Path, Query, Response

from ai_worker.client.values import Item, to_rows
from ai_worker.errors import NotFound, UsageError
from ai_worker.models import Lane
from ai_worker.output.reports import as_dict
from ai_worker.planning import Wish
from ai_worker.store.browsed import TaskSearch
from ai_worker.store.new_tasks import NewItem
from ai_worker.store.tasks import Change, Submitted
from ai_worker.web.access import Guarded, Reader, Runner
from ai_worker.web.api.bodies import LARGEST_ID, NewTaskIn, ResumeIn, RetryIn
from ai_worker.web.api.items import item_out
from ai_worker.web.api.shapes import (
    ITEM_STATUSES,
    TASK_STATUSES,
    ChangedOut,
    ItemsOut,
    ItemStatusName,
    SubmittedOut,
    TaskOut,
    TasksOut,
    TaskStatusName,
)
from ai_worker.web.once import Answer, Exactly
from ai_worker.web.services import Served, Services

router = APIRouter(route_class=Guarded, tags=["tasks"])

TaskId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="The task.")]
_MOST: Final = 200  # of a page
_ASCII: Final = "^[ -~]*$"  # as the columns that these are looked for in


@router.post("/task", status_code=HTTPStatus.CREATED, response_model=SubmittedOut)
async def submit(body: NewTaskIn, _: Runner, services: Served, once: Exactly) -> Response:
    """Make a task with all its items, or none. Its results come when a worker has done them: `GET /task-item/{id}?wait=30`."""

    async def work() -> Answer:
        submitted, note = await services.ask(_submit, services, body, body.key or once.submit_key())
        made = SubmittedOut(id_task=submitted.id_task, items=submitted.items, is_new=submitted.is_new, note=note)
        return Answer(made, HTTPStatus.CREATED, {"Location": f"/task/{submitted.id_task}"})

    return await once(work)


def _submit(services: Services, body: NewTaskIn, key: str | None) -> tuple[Submitted, str | None]:
    wish = Wish(
        type_name=body.type,
        model_name=body.model,
        description=body.description,
        parameters=body.parameters,
        queue=body.queue,
        priority=body.priority,
        scheduled_at=body.scheduled_at,
        after={each.id_task: each.needs for each in body.after},
        group=body.group,
        result_seconds=body.result_seconds,
        personal_data=body.personal_data,
        max_attempts=body.max_attempts,
        fallbacks=tuple(body.fallbacks),
        budget=None if body.budget is None else Decimal(body.budget),
        lane=Lane(body.lane),
        pack=body.pack,
        cache_seconds=body.cache_seconds,
        key=key,
    )
    try:
        task, model = wish.task(services.library(), services.models, services.groups)
    except NotFound as error:  # a part of the request; what the request itself is for, is there
        raise UsageError(str(error)) from None
    packet = services.tasks.packet()
    items = [
        Item(each) if isinstance(each, str) else Item(each.text, each.key, each.context, each.context_key) for each in body.items
    ]

    def rows() -> Iterator[NewItem]:
        return to_rows(items, None, packet)

    note = None
    if model.stopped_at is not None:
        note = f"model {model.name} is stopped ({model.stopped_kind}: {model.stopped_reason}); the items wait for it"
    return services.tasks.submit(task, rows), note


@router.get("/task")
async def tasks(
    response: Response,
    _: Reader,
    services: Served,
    before: Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="Tasks below this id: the next page.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 25,
    status: TaskStatusName | None = None,
    type: Annotated[str | None, Query(max_length=50, pattern=_ASCII)] = None,
    model: Annotated[str | None, Query(max_length=100)] = None,
    queue: Annotated[str | None, Query(max_length=50, pattern=_ASCII)] = None,
) -> TasksOut:
    """Tasks, the newest first. A page that looks far for few may be short, or empty: go on as long as there is a next one."""
    search = TaskSearch(None, TASK_STATUSES[status] if status else None, type, model, queue)
    page = await services.ask(services.browsing.tasks, search, limit, before or LARGEST_ID)
    found = [
        TaskOut.model_validate({**as_dict(each.task), "counts_at_least": sorted(known.name.lower() for known in each.at_least)})
        for each in page.tasks
    ]
    filters = {"status": status, "type": type, "model": model, "queue": queue}
    following = _following("/task", {"before": page.before, "limit": limit, **filters}) if page.before else None
    _link(response, following)
    return TasksOut(tasks=found, next=following)


@router.get("/task/{id_task}")
async def task(id_task: TaskId, _: Reader, services: Served) -> TaskOut:
    """A task with its items counted, its cost, its errors by kind, and when it will be done."""
    return TaskOut.model_validate(as_dict(await services.ask(services.reports.task, id_task)))


@router.get("/task/{id_task}/items")
async def items(
    id_task: TaskId,
    response: Response,
    _: Reader,
    services: Served,
    after: Annotated[int, Query(ge=0, le=LARGEST_ID, description="Items behind this one: the next page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 50,
    status: ItemStatusName | None = None,
) -> ItemsOut:
    """A task's items with their results, by their ids; those in one status, or all."""
    only = ITEM_STATUSES[status] if status else None
    page = await services.ask(services.answers.page, id_task, only, after=after, size=limit)
    if not page:
        await services.ask(services.tasks.state, id_task)  # NotFound where there is no such task
    more = {"after": page[-1].id_task_item, "limit": limit, "status": status} if len(page) == limit else None
    following = None if more is None else _following(f"/task/{id_task}/items", more)
    _link(response, following)
    return ItemsOut(items=[item_out(each) for each in page], next=following)


@router.post("/task/{id_task}/retry", response_model=ChangedOut)
async def retry(
    id_task: TaskId, _: Runner, services: Served, once: Exactly, body: Annotated[RetryIn | None, Body()] = None
) -> Response:
    """Bring items back that ended in ERROR, with their attempts counted anew: all, or one."""

    async def work() -> Answer:
        count = await services.ask_long(services.tasks.retry, id_task, body.id_task_item if body else None)
        after = await services.ask(services.tasks.state, id_task)
        return Answer(ChangedOut(id_task=id_task, status=after.name, items=count))  # type: ignore[arg-type]  # a member's name

    return await once(work)


@router.post("/task/{id_task}/pause", response_model=ChangedOut)
async def pause(id_task: TaskId, _: Runner, services: Served, once: Exactly) -> Response:
    """Stop claiming items; calls in flight are finished and stored."""
    return await once(lambda: _changed(services.ask(services.tasks.pause, id_task)))


@router.post("/task/{id_task}/resume", response_model=ChangedOut)
async def resume(
    id_task: TaskId, _: Runner, services: Served, once: Exactly, body: Annotated[ResumeIn | None, Body()] = None
) -> Response:
    """Go on with a paused task, or with a cancelled one and its cancelled items."""
    budget = None if body is None or body.budget is None else Decimal(body.budget)
    return await once(lambda: _changed(services.ask_long(services.tasks.resume, id_task, budget)))


@router.post("/task/{id_task}/cancel", response_model=ChangedOut)
async def cancel(id_task: TaskId, _: Runner, services: Served, once: Exactly) -> Response:
    """End a task: what waits is cancelled; results of calls in flight are still stored. `resume` takes it back."""
    return await once(lambda: _changed(services.ask_long(services.tasks.cancel, id_task)))


async def _changed(changing: Awaitable[Change]) -> Answer:
    change = await changing
    return Answer(ChangedOut(id_task=change.id_task, status=change.after.name, items=change.items))  # type: ignore[arg-type]  # as above


def _following(path: str, query: Mapping[str, object]) -> str:
    return f"{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def _link(response: Response, following: str | None) -> None:
    if following is not None:
        response.headers["Link"] = f'<{following}>; rel="next"'
