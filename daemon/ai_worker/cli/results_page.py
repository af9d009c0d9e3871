"""Results as one HTML page that needs nothing else: no script, no font, no picture from elsewhere, and a policy that forbids
them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ai_worker.cli import context
from ai_worker.cli.result_files import shown
from ai_worker.models import ItemStatus
from ai_worker.store.reports import ItemResult, TaskReport
from ai_worker.text import html_diff

_FOLDER = Path(__file__).parent


def write_page(stream: IO[str], task: TaskReport, items: Iterator[ItemResult]) -> int:
    """Writes the page, one item in memory at a time. Every text in it is escaped: by the template, or by `html_diff`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": context.number, "money": context.money, "duration": context.duration, "time": context.iso}
    style = (_FOLDER / "results.css").read_text(encoding="utf-8")
    page = environment.get_template("results.html.j2").generate(
        task=task,
        counts=[(status.name.lower().replace("_", " "), task.items[status]) for status in ItemStatus if task.items[status]],
        rows=map(_row, items),
        style=Markup(style),  # noqa: S704 -- our own file
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
    for piece in page:
        stream.write(piece)
    return 0


def _row(item: ItemResult) -> Mapping[str, Any]:
    row: dict[str, Any] = {"item": item, "status": item.status.name, "changed": False, "files": shown(item.files)}
    if item.text_corrected is None:
        return {**row, "before": item.text_original, "after": None}
    before, after = html_diff(item.text_original, item.text_corrected)
    changed = item.text_original != item.text_corrected
    return {**row, "changed": changed, "before": Markup(before), "after": Markup(after)}  # noqa: S704 -- html_diff escapes
