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
from ai_worker.changes import Kind, kinds_of, tallied
from ai_worker.cli import changes
from ai_worker.cli.result_files import shown
from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.store.edits import Edits
from ai_worker.store.reports import TaskReport
from ai_worker.store.results import ItemResult
from ai_worker.text import diff, html_diff

_FOLDER = Path(__file__).parent
_UNLIKE = 0.8  # beyond this share of changed words, a result that is no correction is no variant of its text: nothing is marked


def write_page(stream: IO[str], task: TaskReport, items: Iterator[ItemResult], edits: Edits) -> int:
    """Writes the page, one item in memory at a time. Every text in it is escaped: by the template, or by `html_diff`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": formats.number,
        "money": formats.money,
        "duration": formats.duration,
        "time": formats.iso,
        "percent": changes.percent,
    }
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("results.css", "results.js"))
    page = environment.get_template("results.html.j2").generate(
        task=task,
        counts=[(_spelled(status.name), task.items[status]) for status in ItemStatus if task.items[status]],
        edits=edits,
        kinds=[(kind.value, changes.LABELS[kind], edits.kinds[kind]) for kind in Kind if edits.kinds.get(kind)],
        labels={kind.value: label for kind, label in changes.LABELS.items()},
        statuses=[(status.name, _spelled(status.name)) for status in ItemStatus],
        reviews=[(status.name, _spelled(status.name)) for status in ReviewStatus],
        rows=map(partial(_row, bool(edits.items)), items),
        style=Markup(style),  # noqa: S704 -- our own file
        style_hash=_hash(style),
        script=Markup(script),  # noqa: S704 -- our own file
        script_hash=_hash(script),
    )
    for piece in page:
        stream.write(piece)
    return 0


def _row(corrects: bool, item: ItemResult) -> Mapping[str, Any]:
    row: dict[str, Any] = {"item": item, "changed": False, "ratio": None, "kinds": [], "files": shown(item.files)}
    if item.text_corrected is None:
        return {**row, "before": item.text_original, "after": None}
    spans = diff(item.text_original, item.text_corrected)
    kinds = kinds_of(spans)
    found = tallied(item.text_original, kinds)
    row["changed"] = item.text_original != item.text_corrected
    if not corrects and found.ratio > _UNLIKE:
        return {**row, "before": item.text_original, "after": item.text_corrected}
    titles = (", ".join(dict.fromkeys(changes.LABELS[change.kind] for change in each)) or "moved" for each in kinds)
    before, after = map(Markup, html_diff(spans, titles))
    counts = [(kind.value, changes.LABELS[kind], found.kinds[kind]) for kind in Kind if found.kinds.get(kind)]
    return {**row, "ratio": found.ratio, "kinds": counts, "before": before, "after": after}


def _spelled(name: str) -> str:
    return name.lower().replace("_", " ")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
