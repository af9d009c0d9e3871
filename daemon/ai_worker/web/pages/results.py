"""Results as files: streamed, so that a million items need no memory here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from ai_worker.models import ItemStatus
from ai_worker.output.page import pieces
from ai_worker.output.tables import Csv, json_lines
from ai_worker.store.edits import edits_of
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.asking import named
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

_PIECE: Final = 128 * 1024  # characters that are sent at once
_TYPES: Final = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson", "html": "text/html; charset=utf-8"}


@router.get("/ui/tasks/{id_task}/results.{format_name}")
async def results(services: Served, id_task: int, format_name: Literal["csv", "jsonl", "html"], only: str = "") -> Response:
    """The results of a task as a file; those in the status `only`, or all."""
    text = await services.ask(_text, services, id_task, format_name, named(ItemStatus, only))
    headers = {"Content-Disposition": f'attachment; filename="task-{id_task}.{format_name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_sent(services, text), media_type=_TYPES[format_name], headers=headers)


def _text(services: Services, id_task: int, format_name: str, only: ItemStatus | None) -> Iterator[str]:
    """The file's text in pieces. Raises NotFound when there is no such task."""
    task = services.browsing.task(id_task).task
    items = services.results.of_task(id_task, only, thumbnails=format_name == "html")
    if format_name == "csv":
        return iter(Csv(items, bom=True))  # a person opens it, and Excel takes what has no mark for another encoding
    if format_name == "jsonl":
        return json_lines(items)
    return pieces(task, items, edits_of(services.db, id_task))


async def _sent(services: Services, text: Iterator[str]) -> AsyncIterator[str]:
    while piece := await services.ask(_next, text):
        yield piece


def _next(text: Iterator[str]) -> str:
    """The next pieces as one, empty at the end; a page of rows at a time is asked for, in one of the few threads."""
    found: list[str] = []
    size = 0
    for piece in text:
        found.append(piece)
        size += len(piece)
        if size >= _PIECE:
            break
    return "".join(found)
