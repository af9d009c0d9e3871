"""POST /task/run: the same as `ai-worker run`, for a web application."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Response

from ai_worker.errors import AiWorkerError, ItemRejected, NotFound, UsageError
from ai_worker.estimate import Estimate
from ai_worker.log import excerpt
from ai_worker.models import Filters
from ai_worker.store.run_requests import RunRequest
from ai_worker.web.access import Guarded, Reader, Runner
from ai_worker.web.api.bodies import LARGEST_ID, RunIn
from ai_worker.web.api.shapes import PreviewOut, PromptOut, RunOut
from ai_worker.web.once import Answer, Exactly
from ai_worker.web.services import Served, Services

router = APIRouter(route_class=Guarded, prefix="/task/run", tags=["runs"])

PROMPTS: Final = 10  # shown
PROMPT_CHARACTERS: Final = 20_000
ITEMS: Final = 10_000  # looked at
_NOTE: Final = "it goes on without this server; what it leaves, the next run or a daemon does"


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    response_model=RunOut,
    responses={200: {"model": PreviewOut, "description": "A dry run: what would be sent. Nothing is sent or written."}},
)
async def run(body: RunIn, who: Runner, services: Served, once: Exactly) -> Response:
    """Process what waits, or one task, or one item: by an `ai-worker run` of its own on this host, which goes on when this server
    ends. Its state is at `Location`. `dry_run` shows prompts, tokens and cost instead."""

    async def work() -> Answer:
        task = await services.ask(_checked, services, body)
        if body.dry_run:
            return Answer(await services.ask(_preview, services, Filters(task, body.task_item), body.max_item))
        made = await services.ask(services.runs.start, who, task, body.task_item, body.max_item)
        return Answer(_out(made, note=_NOTE), HTTPStatus.ACCEPTED, {"Location": f"/task/run/{made.id_run_request}"})

    return await once(work)


@router.get("/{id_run_request}")
async def state(id_run_request: Annotated[int, Path(ge=1, le=LARGEST_ID)], _: Reader, services: Served) -> RunOut:
    """How a run stands, whichever server was asked for it."""
    return _out(await services.ask(services.run_requests.get, id_run_request))


def _out(run: RunRequest, note: str | None = None) -> RunOut:
    return RunOut.model_validate({**{name: getattr(run, name) for name in RunRequest.__slots__}, "note": note})


def _checked(services: Services, body: RunIn) -> int | None:
    """The task, that of the item where only this is named. Raises what `ai-worker run` would refuse."""
    if body.task is not None and not services.queue.has_task(body.task):
        raise NotFound(f"no task {body.task}")
    if body.task_item is None:
        return body.task
    found = services.queue.task_of(body.task_item)
    if found is None:
        raise NotFound(f"no item {body.task_item}")
    if body.task not in {None, found[0]}:
        raise UsageError(f"item {body.task_item} belongs to task {found[0]}, not to task {body.task}")
    return found[0]


def _preview(services: Services, filters: Filters, max_item: int | None) -> PreviewOut:
    library = services.library()
    model_of = cache(services.models.get)
    total = Estimate(library.kind)
    prompts: list[PromptOut] = []
    most = min(max_item or ITEMS, ITEMS)
    waiting = (
        item for task in services.queue.preview_tasks(filters) for item in services.queue.preview(task, filters.id_task_item)
    )
    for item in islice(waiting, most):
        model = model_of(item.task.id_ai_model)
        shown: dict[str, Any] = {"id_task": item.task.id_task, "id_task_item": item.id_task_item, "model": model.name}
        try:
            prompt, usage, cost = total.add(item, model)
            if len(prompts) < PROMPTS:
                shown |= {"system": excerpt(prompt.system, PROMPT_CHARACTERS), "user": excerpt(prompt.user, PROMPT_CHARACTERS)}
                shown |= {"tokens_input": usage.tokens_input, "tokens_output": usage.tokens_output, "cost": cost}
        except (ItemRejected, UsageError) as error:
            shown["error"] = _told(error)
        if len(prompts) < PROMPTS:
            prompts.append(PromptOut(**shown))
    is_cut = next(waiting, None) is not None
    total.finish()
    return PreviewOut(
        items=total.items,
        calls=total.calls,
        twins=total.twins,
        tokens_input=total.usage.tokens_input,
        tokens_output=total.usage.tokens_output,
        cost=total.known_cost,  # type: ignore[arg-type]  # written as a text
        stopped_models=sorted(total.stopped),
        prompts=prompts,
        is_cut=is_cut,
    )


def _told(error: AiWorkerError) -> str:
    return excerpt(str(error), 1000)
