"""What goes into a client, and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from ai_worker.errors import UsageError
from ai_worker.models import QUEUE_NAME
from ai_worker.store.new_tasks import NewItem, fits
from ai_worker.text import clean

LONGEST_TEXT: Final = 16_777_215  # bytes of a MEDIUMTEXT
LONGEST_SECONDS: Final = 4_294_967_295  # of task.result_seconds
LONGEST_KEY: Final = 190  # characters of task_item.external_key and task_item.context_key


class Raise(Enum):
    """The type of RAISE."""

    RAISE = "RAISE"

    def __repr__(self) -> str:
        return self.name


RAISE: Final = Raise.RAISE
"""As a `default`: there is none, raise instead."""


class Item(NamedTuple):
    """A text to be worked on. `key` is the application's own (`external_key`), `context` what the prompt may know beside the
    text, `context_key` its subject: a user, a conversation, a customer."""

    text: str
    key: str | None = None
    context: Mapping[str, Any] | None = None
    context_key: str | None = None


Texts = str | Item | Iterable[str | Item]


class SubmittedTask(NamedTuple):
    """A task that was made: its id, and those of its items in the order in which they were given.

    `is_new` is False where an earlier submission with the same `key` had made it.
    """

    id_task: int
    items: list[int]
    is_new: bool


def to_items(texts: Texts) -> Collection[str | Item]:
    """What can be gone through as often as needed. An iterator is read to its end."""
    if isinstance(texts, str | Item):  # a named tuple is a collection, too
        return [texts]
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):  # of a mapping, the names would be taken for texts
        raise UsageError(f"a text, an Item or several of them are wanted, not {type(texts).__name__}")
    return texts if isinstance(texts, Collection) else list(texts)


def to_rows(items: Iterable[str | Item], context_key: str | None, packet: int) -> Iterator[NewItem]:
    """The rows of items; `packet` is how many bytes the server takes at a time. Raises UsageError, naming the place."""
    for place, given in enumerate(items):
        item: Any = Item(given) if isinstance(given, str) else given  # an application need not be typed
        if not isinstance(item, Item) or not isinstance(item.text, str):
            wrong = item.text if isinstance(item, Item) else item
            raise UsageError(f"item {place} is no text and no Item with one, but {type(wrong).__name__}")
        text = clean(item.text)
        if not text or text.isspace():
            raise UsageError(f"item {place} has no text")
        size = len(text.encode())
        if size > LONGEST_TEXT or not fits(text, size, packet):
            raise UsageError(f"the text of item {place} has {size:,} bytes, more than the database takes")
        for name, key in (("key", item.key), ("context_key", item.context_key or context_key)):
            if key is not None and not (isinstance(key, str) and 0 < len(key) <= LONGEST_KEY):
                raise UsageError(f"the {name} of item {place} must be a text of 1 to {LONGEST_KEY} characters")
        yield NewItem(text, item.key, _context(place, item.context), item.context_key or context_key)


def refuse(queue: str, key: str | None) -> None:
    """Raises UsageError for what the database would take, and nobody could then work with."""
    if not isinstance(queue, str) or not QUEUE_NAME.fullmatch(queue):
        raise UsageError(f"queue {queue!r} is no name of a queue: up to 50 letters, digits, dots, dashes and underscores")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= LONGEST_KEY):
        raise UsageError(f"the key must have 1 to {LONGEST_KEY} characters; {key!r} is given")


def _context(place: int, context: Mapping[str, Any] | None) -> str | None:
    if not context:
        return None
    try:
        return clean(json.dumps(dict(context), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the context of item {place} has no JSON form: {error}") from None
