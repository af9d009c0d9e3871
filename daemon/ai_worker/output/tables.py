"""Results as CSV and as lines of JSON; streamed, so that a million of them need no memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from ai_worker import formats
from ai_worker.output.files import told
from ai_worker.store.results import ItemResult, ItemStep, Results

COLUMNS: Final = (
    "id_task_item",
    "external_key",
    "status",
    "text_original",
    "text_corrected",
    "change_summary",
    "error",
    "tokens_input",
    "tokens_output",
    "cost",
    "context",
    "review",
    "text_reviewed",
    "reviewed_by",
    "reviewed_at",
    "files",
)
# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

_LINE_END: Final = "\r\n"
_STEPS_PAGE: Final = 100  # items whose steps are read together


class Csv:
    """The lines of a CSV file, as the items come; to be gone through once.

    A text that looks like a formula gets an apostrophe, unless `raw`; `guarded` counts these. `bom` puts a byte order mark first.
    """

    def __init__(self, items: Iterator[ItemResult], *, raw: bool = False, bom: bool = False) -> None:
        self._items = items
        self._raw = raw
        self._bom = bom
        self.guarded = 0

    def __iter__(self) -> Iterator[str]:
        buffer = io.StringIO()
        # So that a lone carriage return is put in quotes: older Pythons do that to what ends their lines alone.
        writer = csv.writer(buffer, lineterminator=_LINE_END)
        if self._bom:
            yield "\ufeff"
        writer.writerow(COLUMNS)
        for item in self._items:
            yield _taken(buffer)
            writer.writerow(self._row(item))
        yield _taken(buffer)

    def _row(self, item: ItemResult) -> tuple[object, ...]:
        cell = self._cell
        return (
            item.id_task_item,
            cell(item.external_key),
            item.status.name,
            cell(item.text_original),
            cell(item.text_corrected),
            cell(item.change_summary),
            cell(item.error),
            item.tokens_input,
            item.tokens_output,
            formats.plain(item.cost),
            json.dumps(item.context, ensure_ascii=False) if item.context else None,
            item.review.name,
            cell(item.text_reviewed),
            cell(item.reviewed_by),
            formats.iso(item.reviewed_at),
            json.dumps(told(item.files)) if item.files else None,
        )

    def _cell(self, text: str | None) -> str | None:
        if self._raw or not text or not text.startswith(FORMULA):
            return text
        self.guarded += 1
        return f"'{text}"


def json_lines(items: Iterator[ItemResult], steps_of: Results | None = None) -> Iterator[str]:
    """A line of JSON for each item; with its finished steps, where `steps_of` is given to ask for them."""
    while page := list(islice(items, _STEPS_PAGE)):
        steps = {} if steps_of is None else steps_of.steps([item.id_task_item for item in page])
        for item in page:
            values: dict[str, Any] = {name: getattr(item, name) for name in COLUMNS}
            values |= {"status": item.status.name, "cost": formats.plain(item.cost), "context": dict(item.context)}
            values |= {"review": item.review.name, "reviewed_at": formats.iso(item.reviewed_at), "files": told(item.files)}
            if steps_of is not None:
                values["steps"] = [_step(step) for step in steps.get(item.id_task_item, ())]
            yield json.dumps(values, ensure_ascii=False) + "\n"


def _step(step: ItemStep) -> dict[str, Any]:
    times = {"cost": formats.plain(step.cost), "finished_at": formats.iso(step.finished_at)}
    return {**step._asdict(), "result": dict(step.result), **times}


def _taken(buffer: io.StringIO) -> str:
    """The line in it, ended as lines are."""
    text = buffer.getvalue().removesuffix(_LINE_END) + "\n"
    buffer.seek(0)
    buffer.truncate()
    return text
