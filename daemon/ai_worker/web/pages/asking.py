"""What the work pages have in common: reading what an address or a form asks for, long verbs, and what is said afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import IntEnum
from http import HTTPStatus
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlencode

from fastapi.responses import RedirectResponse, Response

from ai_worker import formats
from ai_worker.errors import AiWorkerError, UsageError
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.web.services import Services

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=IntEnum)

PATIENCE_SECONDS: Final = 2.0  # so long a page waits for a verb on many items; then it goes on behind the page
LONGEST_KEY: Final = 200  # of what a live page may say of itself

TASK_KINDS: Final[Mapping[TaskStatus, str]] = {
    TaskStatus.NEW: "idle",
    TaskStatus.IN_PROGRESS: "busy",
    TaskStatus.COMPLETED: "good",
    TaskStatus.ERROR: "bad",
    TaskStatus.PAUSED: "warn",
    TaskStatus.CANCELLED: "idle",
}
ITEM_KINDS: Final[Mapping[ItemStatus, str]] = {
    ItemStatus.PENDING: "idle",
    ItemStatus.PROCESSED: "good",
    ItemStatus.IN_PROGRESS: "busy",
    ItemStatus.ERROR: "bad",
    ItemStatus.DEFERRED: "warn",
    ItemStatus.CANCELLED: "idle",
}
# What a page says when it was come to by a form; `%s` is how many items, or which. Only these: an address must not put words
# into our mouth.
_SAID: Final = {
    "pause": "Paused: no more items are begun; what is in flight is finished and stored.",
    "resume": "The task goes on.",
    "cancel": "Cancelled, with %s. What is in flight is still stored.",
    "retry": "%s brought back, with their attempts counted anew.",
    "priority": "The priority is changed.",
    "accept": "%s accepted.",
    "reject": "%s rejected.",
    "reset": "The review is taken back.",
    "edit": "Your text is saved, and the item accepted.",
    "reviewed": "Nothing more waits for review here.",
    "working": "This takes a while and goes on by itself; this page shows how far it is.",
    "start": "Started. Workers take the items now.",
    "unattended": "Started: the items wait for a worker.",
    "discard": "Discarded: nothing of it will be processed.",
}

_running: Final[set[asyncio.Future[Any]]] = set()


async def within_patience(services: Services, verb: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
    """What a verb on many items returns, or None where it takes longer: then it goes on in its thread to its end.

    Cut short by the end of the process it has done what it has done, and can be called again: each of its batches is a
    transaction of its own.
    """
    future = asyncio.ensure_future(services.ask_long(verb, *arguments, **named))
    done, _ = await asyncio.wait({future}, timeout=PATIENCE_SECONDS)
    if done:
        return future.result()
    _running.add(future)
    future.add_done_callback(_end)
    return None


def _end(future: asyncio.Future[Any]) -> None:
    _running.discard(future)
    if not future.cancelled() and (error := future.exception()) is not None and not isinstance(error, AiWorkerError):
        raise error  # a mistake of ours: told by the event loop's handler; the others have been logged where they came from


async def somebody_works(services: Services) -> bool:
    """Whether there is a worker that takes items."""
    return any(each.state in {"alive", "late"} for each in await services.ask(services.reports.workers))


def go(address: str, did: str | None = None, items: int | None = None, **more: object) -> Response:
    """Sends the browser to a page of ours after a form, which then says what was done."""
    query = {"did": did, "items": items, **more}
    given = {name: value for name, value in query.items() if value is not None}
    joint = "&" if "?" in address else "?"
    return RedirectResponse(f"{address}{joint}{urlencode(given)}" if given else address, HTTPStatus.SEE_OTHER)


def said(did: str, items: int | None, of: int | None = None) -> str | None:
    """What a page says that was come to so: of so many items, or of the one with the id `of`."""
    text = _SAID.get(did)
    if text is None or of is None:
        return text.replace("%s", count_of(1 if items is None else items)) if text else None
    return text.replace("%s", f"Item {of}") if "%s" in text else f"Item {of}: {text[0].lower()}{text[1:]}"


def count_of(items: int) -> str:
    """`1 item`, `1,500 items`."""
    return "1 item" if items == 1 else f"{formats.number(items)} items"


def named(kind: type[E], text: str) -> E | None:
    """A status by its name, as an address has it; None for none. Raises UsageError for one that there is not."""
    if not text:
        return None
    try:
        return kind[text.upper()]
    except KeyError:
        raise UsageError(f"{text!r} is no status here; these are: {', '.join(each.name.lower() for each in kind)}") from None


def number(text: str) -> int:
    """An id out of a live page's key. Raises UsageError for what is none."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UsageError(f"{text[:20]!r} is no number")
    return int(text)


def query_of(**given: object) -> str:
    """What an address says after its question mark: without what is not given."""
    return urlencode({name: value for name, value in given.items() if value not in (None, "")})


def live_key(topic: str, key: str) -> str | None:
    """What a page says to be kept up to date; None where there is too much to say."""
    return f"{topic}?{key}" if len(key) <= LONGEST_KEY else None
