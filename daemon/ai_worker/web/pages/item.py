"""One item: what went in, what came out and what that changes, what it took; and what a person says of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from ai_worker.errors import UsageError
from ai_worker.models import ReviewStatus
from ai_worker.output.files import shown
from ai_worker.output.marked import Marked, marked
from ai_worker.store.browsed import SHOWN_CHARACTERS, FullItem
from ai_worker.store.reviews import LONGEST_NOTE, Review, Span
from ai_worker.store.tokens import Scope
from ai_worker.text import harmless
from ai_worker.web.access import Guarded, Reviewer, Runner, needs
from ai_worker.web.pages.asking import ITEM_KINDS, go, said
from ai_worker.web.pages.rendering import render
from ai_worker.web.services import Served

router = APIRouter(route_class=Guarded, include_in_schema=False, dependencies=[needs(Scope.READ)])

_OUTCOMES: Final = {"processed": "good", "failed": "bad", "retry": "warn", "postponed": "idle", "lost": "bad"}
_VERDICTS: Final = {
    "accept": ReviewStatus.ACCEPTED,
    "edit": ReviewStatus.ACCEPTED,
    "reject": ReviewStatus.REJECTED,
    "reset": ReviewStatus.UNREVIEWED,
}


@router.get("/ui/items/{id_task_item}")
async def item(request: Request, services: Served, id_task_item: int, did: str = "", of: int | None = None) -> HTMLResponse:
    """The page. `did` and `of` say what was said of which item just before: that can be taken back from here."""
    found = await services.ask(services.browsing.item, id_task_item)
    texts = await services.ask(_texts, found)
    steps = await services.ask(services.results.steps, [id_task_item]) if found.steps_total > 1 else {}
    return render(
        request,
        "item.html.j2",
        item=found,
        texts=texts,
        reviewed=None if found.text_reviewed is None else harmless(_lines(found.text_reviewed)),
        draft=_lines(found.text_reviewed if found.text_reviewed is not None else found.text_corrected or ""),
        result=_pretty(found.result),
        context=found.context,
        files=shown(found.files),
        steps=steps.get(id_task_item, []),
        kinds=ITEM_KINDS,
        outcomes=_OUTCOMES,
        said=said(did, None, of),
        undo=of if did in _VERDICTS and did != "reset" else id_task_item if found.review is not ReviewStatus.UNREVIEWED else None,
        longest_note=LONGEST_NOTE,
        shown_characters=SHOWN_CHARACTERS,
    )


def _texts(found: FullItem) -> Marked:
    """Both texts with the changes marked. Control characters are shown as pictures, line ends as such."""
    result = None if found.text_corrected is None else harmless(_lines(found.text_corrected))
    return marked(harmless(_lines(found.text_original)), result, corrects=found.task_type == "correction")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _pretty(result: Any) -> str | None:
    return None if not result else harmless(json.dumps(result, ensure_ascii=False, indent=2))


@router.get("/ui/items/{id_task_item}/previous")
async def previous(services: Served, id_task_item: int) -> Response:
    """The item before this one that waits for review, else the item itself."""
    found = await services.ask(services.browsing.item, id_task_item)
    before = await services.ask(services.browsing.previous_to_review, found.id_task, id_task_item)
    return go(f"/ui/items/{before or id_task_item}")


@router.post("/ui/items/{id_task_item}/review")
async def review(
    services: Served,
    who: Reviewer,
    id_task_item: int,
    verdict: Annotated[str, Form()],
    text: Annotated[str | None, Form()] = None,
    note: Annotated[str, Form()] = "",
) -> Response:
    """Says something of an item, in the name of the token; then comes the next one that waits."""
    if verdict not in _VERDICTS:
        raise UsageError(f"{verdict!r} is no verdict: accept, edit, reject or reset")
    id_task = await services.ask(services.browsing.task_of, id_task_item)
    own = await _text_of(services, id_task_item, text) if verdict == "edit" else None
    given = Review(_VERDICTS[verdict], who.name, own, note.strip() or None)
    await services.ask(services.reviews.review, [Span(id_task_item, id_task_item)], given, id_task=id_task)
    if verdict == "reset":
        return go(f"/ui/items/{id_task_item}", "reset")
    return go(f"/ui/tasks/{id_task}/review", after=id_task_item, did=verdict)


async def _text_of(services: Served, id_task_item: int, text: str | None) -> str | None:
    """The text of the form, with the line ends of the text that was edited: browsers send their own.

    None where it is what the model said anyway.
    """
    found = await services.ask(services.browsing.item, id_task_item)
    if text is None:
        raise UsageError("there is no text")
    if not found.is_whole:
        raise UsageError(
            f"the text is longer than {SHOWN_CHARACTERS:,} characters and cannot be edited here; "
            f"`ai-worker review {found.id_task} {id_task_item} accept --text-file FILE` takes one"
        )
    standing = found.text_corrected or ""
    own = text.replace("\r\n", "\n")
    if "\r\n" in standing or (not standing and "\r\n" in found.text_original):
        own = own.replace("\n", "\r\n")
    return None if own == standing else own


@router.post("/ui/items/{id_task_item}/retry")
async def retry(services: Served, _: Runner, id_task_item: int) -> Response:
    """Brings a failed item back."""
    id_task = await services.ask(services.browsing.task_of, id_task_item)
    await services.ask(services.tasks.retry, id_task, id_task_item)
    return go(f"/ui/items/{id_task_item}", "retry")
