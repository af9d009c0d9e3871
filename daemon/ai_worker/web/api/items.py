"""Items: their results, also of those that are not there yet; reviews; pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from ai_worker.errors import NotFound
from ai_worker.store.answers import ENDED, Finished
from ai_worker.store.reviews import Review, Span
from ai_worker.web.access import Guarded, Reader, Reviewer
from ai_worker.web.api.bodies import LARGEST_ID, VERDICTS, ReviewIn
from ai_worker.web.api.shapes import FileOut, ItemOut, ReviewedOut
from ai_worker.web.once import Answer, Exactly
from ai_worker.web.services import Served, Services

router = APIRouter(route_class=Guarded, prefix="/task-item", tags=["items"])

ItemId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="The item.")]
LONGEST_WAIT: Final = 60.0  # seconds; proxies give up somewhat later
_INLINE: Final = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})


@router.get("/{id_task_item}", responses={202: {"model": ItemOut, "description": "No result yet: ask again."}})
async def item(
    id_task_item: ItemId,
    request: Request,
    response: Response,
    _: Reader,
    services: Served,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the result.")] = 0.0,
) -> ItemOut:
    """An item with its result. 200 when it has ended, in whatever way; else, after the time to wait, 202 with how it stands."""
    found = await _now(services, id_task_item)
    if found.status not in ENDED and wait > 0:
        found = await _ended(services, request, id_task_item, wait) or await _now(services, id_task_item)
    if found.status not in ENDED:
        response.status_code = HTTPStatus.ACCEPTED
        response.headers["Retry-After"] = "1"
    return item_out(found)


async def _now(services: Services, id_task_item: int) -> Finished:
    found = await services.ask(lambda: list(services.answers.items([id_task_item])))
    if not found:
        raise NotFound(f"no item {id_task_item}")
    return found[0]


async def _ended(services: Services, request: Request, id_task_item: int, seconds: float) -> Finished | None:
    """The item at its end; None when the time is over, the server stops, or nobody listens any more.

    However many wait, the database is asked about all of them at once.
    """
    (future,) = services.waiting.begin([id_task_item])
    gone, stopping = asyncio.create_task(_gone(request)), asyncio.create_task(_stopping(services))
    wanted: list[asyncio.Future[Any]] = [future, gone, stopping]
    try:
        await asyncio.wait(wanted, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return future.result() if future.done() else None
    finally:
        for each in wanted:
            each.cancel()


async def _stopping(services: Services) -> None:
    await services.stopping.wait()


async def _gone(request: Request) -> None:
    """Until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.post("/{id_task_item}/review", response_model=ReviewedOut)
async def review(id_task_item: ItemId, body: ReviewIn, who: Reviewer, services: Served, once: Exactly) -> Response:
    """Accept, reject or edit a result, or take a review back, in the name of the token. The latest one counts; all are kept."""

    async def work() -> Answer:
        said = Review(VERDICTS[body.verdict], who.name, body.text, body.note)
        await _now(services, id_task_item)
        await services.ask(services.reviews.review, [Span(id_task_item, id_task_item)], said)
        done = {"id_task_item": id_task_item, "review": said.verdict.name, "by": said.by}
        return Answer(ReviewedOut.model_validate(done))

    return await once(work)


@router.get(
    "/{id_task_item}/file/{position}",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "The bytes."}},
)
async def file(
    id_task_item: ItemId, position: Annotated[int, Path(ge=1, le=65_535)], _: Reader, services: Served
) -> StreamingResponse:
    """A picture that a model has made, as it made it."""
    known = await services.ask(services.files.of_item, id_task_item)
    wanted = next((each for each in known if each.position == position), None)
    if wanted is None:
        raise NotFound(f"item {id_task_item} has no file {position}")
    pieces = services.files.content(wanted)
    first = await services.ask(next, pieces, b"")  # what is lost is told before the answer begins

    async def stream() -> AsyncIterator[bytes]:
        yield first
        while piece := await services.ask(next, pieces, b""):
            yield piece

    shown = "inline" if wanted.mime_type in _INLINE else "attachment"
    headers = {"Content-Disposition": f'{shown}; filename="{wanted.name}"', "Content-Length": str(wanted.size)}
    return StreamingResponse(stream(), media_type=wanted.mime_type, headers=headers)


def item_out(item: Finished) -> ItemOut:
    """An item as it goes out."""
    return ItemOut(
        id_task_item=item.id_task_item,
        id_task=item.id_task,
        status=item.status.name,  # type: ignore[arg-type]  # a member's name is one of these
        external_key=item.key,
        context=dict(item.context),
        context_key=item.context_key,
        text_original=item.text_original,
        text_corrected=item.text,
        change_summary=item.summary,
        result=dict(item.data),
        tokens_input=item.tokens_input,
        tokens_output=item.tokens_output,
        cost=item.cost,  # type: ignore[arg-type]  # written as a text
        error_kind=item.error_kind,
        error_message=item.error_message,
        finished_at=item.finished_at,
        review=item.review.name,  # type: ignore[arg-type]  # as for the status
        text_reviewed=item.text_reviewed,
        reviewed_by=item.reviewed_by,
        reviewed_at=item.reviewed_at,
        files=[
            FileOut(
                position=each.position,
                mime_type=each.mime_type,
                size=each.size,
                sha256=each.sha256.hex(),
                width=each.width,
                height=each.height,
                url=f"/task-item/{each.id_task_item}/file/{each.position}",
            )
            for each in item.files
        ],
    )
