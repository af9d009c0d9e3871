"""Results as one HTML page that needs nothing else: no font, no picture from elsewhere, one script and one style of our own,
which its policy names by their hashes and beside which it forbids everything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ai_worker import formats
from ai_worker.changes import Kind
from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.output.files import shown
from ai_worker.output.marked import LABELS, marked, percent
from ai_worker.store.edits import Edits
from ai_worker.store.reports import TaskReport
from ai_worker.store.results import ItemResult

_FOLDER = Path(__file__).parent


def write_page(stream: IO[str], task: TaskReport, items: Iterator[ItemResult], edits: Edits) -> None:
    """Writes the page, one item in memory at a time."""
    for piece in pieces(task, items, edits):
        stream.write(piece)


def pieces(task: TaskReport, items: Iterator[ItemResult], edits: Edits) -> Iterator[str]:
    """The page in pieces, as its items come. Every text in it is escaped: by the template, or by `html_diff`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": formats.number,
        "money": formats.money,
        "duration": formats.duration,
        "time": formats.iso,
        "percent": percent,
    }
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("results.css", "results.js"))
    return environment.get_template("results.html.j2").generate(
        task=task,
        counts=[(_spelled(status.name), task.items[status]) for status in ItemStatus if task.items[status]],
        edits=edits,
        kinds=[(kind.value, LABELS[kind], edits.kinds[kind]) for kind in Kind if edits.kinds.get(kind)],
        labels={kind.value: label for kind, label in LABELS.items()},
        statuses=[(status.name, _spelled(status.name)) for status in ItemStatus],
        reviews=[(status.name, _spelled(status.name)) for status in ReviewStatus],
        rows=map(partial(_row, bool(edits.items)), items),
        style=Markup(style),  # noqa: S704 -- our own file
        style_hash=_hash(style),
        script=Markup(script),  # noqa: S704 -- our own file
        script_hash=_hash(script),
    )


def _row(corrects: bool, item: ItemResult) -> Mapping[str, Any]:
    texts = marked(item.text_original, item.text_corrected, corrects=corrects)
    return {"item": item, "files": shown(item.files), **texts._asdict()}


def _spelled(name: str) -> str:
    return name.lower().replace("_", " ")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
