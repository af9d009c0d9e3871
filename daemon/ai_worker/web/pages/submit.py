"""A task from an upload or from pasted rows, in two steps: stored and shown with what it will take, then confirmed.

Between the two the rows lie in the database, in a task that is PAUSED: a million of them need not be sent twice, any instance of
the web can serve the second step, and what nobody confirms can be seen and discarded.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import IO, Any, Final, cast

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import FormData, UploadFile

from ai_worker.errors import UsageError
from ai_worker.models import DEFAULT_QUEUE, QUEUE_NAME, Lane, Need, PersonalData, TaskStatus
from ai_worker.planning import LONGEST_DESCRIPTION, Wish, parameter
from ai_worker.rows import Format, Layout, RowFile, format_of
from ai_worker.store.browsed import ItemSearch
from ai_worker.store.new_tasks import CACHE_SECONDS
from ai_worker.store.tasks import Submitted
from ai_worker.text import clean
from ai_worker.web.access import Guarded, Runner
from ai_worker.web.pages.asking import go, somebody_works, within_patience
from ai_worker.web.pages.drafts import UNCONFIRMED
from ai_worker.web.pages.estimating import estimated
from ai_worker.web.pages.rendering import render
from ai_worker.web.services import Served, Services
from ai_worker.web.uploads import form_of, rows_in

router = APIRouter(route_class=Guarded, include_in_schema=False)

_DAY: Final = 86_400
_FORMATS: Final = ("csv", "jsonl", "txt")
_SHOWN_ROWS: Final = 8
_BLANK: Final[Mapping[str, str]] = {
    "type": "correction",
    "model": "",
    "description": "",
    "parameters": "",
    "pasted": "",
    "format": "",
    "column": "",
    "key_column": "",
    "delimiter": "",
    "encoding": "utf-8",
    "budget": "",
    "fallback": "",
    "fallback_2": "",
    "scheduled": "",
    "after": "",
    "group": "",
    "queue": DEFAULT_QUEUE,
    "priority": "0",
    "max_attempts": "3",
    "lane": "online",
    "pack": "1",
    "cache_days": str(CACHE_SECONDS // _DAY),
    "result_days": "",
    "personal_data": PersonalData.OFF.value,
}


@router.get("/ui/submit")
async def form(request: Request, services: Served, _: Runner) -> HTMLResponse:
    """The form."""
    return await _form(request, services, _BLANK, None)


async def _form(
    request: Request, services: Services, given: Mapping[str, str], error: str | None, file: str | None = None
) -> HTMLResponse:
    library = await services.ask(services.library)
    models = [each for each in await services.ask(services.models.all) if each.is_active]
    return render(
        request,
        "submit.html.j2",
        status=HTTPStatus.OK if error is None else HTTPStatus.UNPROCESSABLE_ENTITY,
        given={**_BLANK, **given},
        key=given.get("key") or str(uuid.uuid4()),
        types=library.names(),
        models=models,
        lanes=list(Lane),
        formats=_FORMATS,
        bytes_at_most=services.options.upload_bytes,
        error=error,
        file=file,
    )


@router.post("/ui/submit")
async def submit(request: Request, services: Served, _: Runner) -> Response:
    """Stores the rows as a task that waits to be confirmed, and shows it."""
    async with _fields(request) as fields:
        given = {name: value for name, value in fields.multi_items() if isinstance(value, str)}
        try:
            submitted, skipped = await services.ask(stored, services, fields, given)
        except UsageError as error:
            sent = fields.get("file")
            return await _form(request, services, given, str(error), sent.filename if isinstance(sent, UploadFile) else None)
    return go(f"/ui/submit/{submitted.id_task}", items=submitted.items, skipped=skipped or None)


@asynccontextmanager
async def _fields(request: Request) -> AsyncIterator[FormData]:
    """The fields of a request's form; its temporary file is closed with the block."""
    fields = await form_of(request)
    try:
        yield fields
    finally:
        await fields.close()


def stored(services: Services, fields: FormData, given: Mapping[str, str]) -> tuple[Submitted, int]:
    """In a thread: reads the whole file, checks each row as the command line does, and stores it. And how many had no text."""
    file, name = rows_in(fields)
    layout = _layout(given, name, services.tasks.packet())
    # The same form sent twice makes one task; another file, or other fields, another.
    key = f"web:{given.get('key', '')[:40]}:{_digest(file, given)}"
    task, _ = wish_of(given, key).task(services.library(), services.models, services.groups)
    source = RowFile(file, name, layout)
    submitted = services.tasks.submit(replace(task, held=UNCONFIRMED), source.rows)
    return submitted, source.skipped


def _digest(file: IO[bytes], given: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(given.items())).encode("utf-8", "surrogatepass"))
    file.seek(0)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()[:32]


def _layout(given: Mapping[str, str], name: str, packet: int) -> Layout:
    chosen = given.get("format") or ("txt" if name == "the pasted text" else format_of(name))
    if chosen not in _FORMATS:
        raise UsageError(f"{chosen!r} is no format: csv, jsonl or txt")
    delimiter = given.get("delimiter", "")
    if delimiter in {"tab", "\\t"}:
        delimiter = "\t"
    if len(delimiter) > 1 or delimiter in {'"', "\r", "\n"}:
        raise UsageError(f"the delimiter must be one character or `tab`, not {delimiter!r}")
    encoding = "utf-8" if name == "the pasted text" else given.get("encoding") or "utf-8"
    columns = given.get("column") or None, given.get("key_column") or None
    return Layout(cast(Format, chosen), *columns, delimiter or None, encoding, packet)


def wish_of(given: Mapping[str, str], key: str | None = None) -> Wish:
    """What the form's fields ask for. Raises UsageError for what cannot be read; the rest is checked where tasks are made."""
    description = clean(given.get("description", "")).replace("\r\n", "\n").strip()
    if len(description.encode()) > LONGEST_DESCRIPTION:
        raise UsageError(f"the instruction is longer than {LONGEST_DESCRIPTION:,} bytes")
    queue = given.get("queue") or DEFAULT_QUEUE
    if not QUEUE_NAME.fullmatch(queue):
        raise UsageError(f"{queue!r} cannot be a queue's name: letters, digits, points, dashes and underscores, at most 50")
    lane = given.get("lane") or Lane.ONLINE.value
    if lane not in {Lane.ONLINE, Lane.FLEX, Lane.BATCH}:
        raise UsageError(f"{lane!r} is no lane: online, flex or batch")
    personal_data = given.get("personal_data") or PersonalData.OFF.value
    if personal_data not in set(PersonalData):
        raise UsageError(f"personal data: {personal_data!r} is none of off, mask and block")
    result_days = _number(given, "result_days", "days that results are kept", 0, 3650) if given.get("result_days") else 0
    return Wish(
        given.get("type") or "correction",
        given.get("model") or None,
        description,
        _parameters(given.get("parameters", "")),
        queue=queue,
        priority=_number(given, "priority", "the priority", -32767, 32767),
        result_seconds=result_days * _DAY or None,
        personal_data=PersonalData(personal_data),
        max_attempts=_number(given, "max_attempts", "attempts per item", 1, 255),
        scheduled_at=_moment(given.get("scheduled", "")),
        after=_after(given.get("after", "")),
        group=given.get("group", "").strip() or None,
        fallbacks=tuple(name for name in (given.get("fallback"), given.get("fallback_2")) if name),
        budget=_budget(given.get("budget", "")),
        lane=Lane(lane),
        pack=_number(given, "pack", "items in one call", 1, 100),
        cache_seconds=_number(given, "cache_days", "days that an earlier answer may be old", 0, 3650) * _DAY,
        key=key,
    )


def _parameters(text: str) -> dict[str, Any]:
    """Lines of KEY=VALUE; values are JSON where they can be, as `--param` takes them."""
    return dict(parameter(line.strip()) for line in text.splitlines() if line.strip())


def _number(given: Mapping[str, str], name: str, what: str, least: int, most: int) -> int:
    text = given.get(name) or _BLANK[name]
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UsageError(f"{what}: {text!r} is no whole number from {least:,} to {most:,}")
    return number


def _moment(text: str) -> datetime | None:
    """What a browser's field for a moment says, taken for UTC; a zone of its own counts."""
    if not text.strip():
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is no moment, such as 2030-01-31T04:00") from None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _after(text: str) -> dict[int, Need]:
    """Numbers of tasks that have to succeed first."""
    numbers = text.replace(",", " ").split()
    if wrong := [each for each in numbers if not (each.isdecimal() and len(each) < 19)]:
        raise UsageError(f"{wrong[0]!r} is no task's number; those to wait for are written as `12, 13`")
    return {int(each): Need.SUCCESS for each in numbers}


def _budget(text: str) -> Decimal | None:
    if not text.strip():
        return None
    try:
        budget = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        budget = Decimal(-1)
    if not budget.is_finite() or not 0 < budget < 1_000_000_000:
        raise UsageError(f"the budget {text!r} is no amount of US dollars, such as 5.00")
    return budget


# ----- the second step


@router.get("/ui/submit/{id_task}")
async def preview(request: Request, services: Served, _: Runner, id_task: int, items: int = 0, skipped: int = 0) -> Response:
    """What was stored: its first rows, and what it will take.

    `items` is how many there are, until they have been counted; `skipped`, how many rows of the file had no text.
    """
    counted = services.item_counts.complete(await services.ask(services.browsing.task, id_task))
    task = counted.task
    if task.status is not TaskStatus.PAUSED or task.status_reason != UNCONFIRMED:
        return go(f"/ui/tasks/{id_task}")
    words = await services.ask(services.browsing.words, id_task)
    estimate = await services.ask(estimated, services, id_task, task.total if counted.is_exact else max(task.total, items))
    page = await services.ask(services.browsing.items, id_task, ItemSearch(), _SHOWN_ROWS)
    return render(
        request,
        "submit_preview.html.j2",
        live=None,
        counted=counted,
        task=task,
        words=words,
        estimate=estimate,
        rows=page.items,
        skipped=skipped,
    )


@router.post("/ui/submit/{id_task}/start")
async def start(services: Served, _: Runner, id_task: int) -> Response:
    """Lets workers have it. Twice does no harm."""
    await services.ask(services.tasks.resume, id_task)
    return go(f"/ui/tasks/{id_task}", "start" if await somebody_works(services) else "unattended")


@router.post("/ui/submit/{id_task}/discard")
async def discard(services: Served, _: Runner, id_task: int) -> Response:
    """Cancels what was not confirmed."""
    await within_patience(services, services.tasks.cancel, id_task)
    return go(f"/ui/tasks/{id_task}", "discard")
