"""`submit`: a task from a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from ai_worker.cli import context, progress
from ai_worker.cli.rows import Layout, RowFile, format_of
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, UsageError
from ai_worker.models import Model, Task, TaskStatus
from ai_worker.store.models import Models
from ai_worker.store.reports import Reports
from ai_worker.store.tasks import NewTask, Submitted, Tasks
from ai_worker.task_types import task_type

LONGEST_DESCRIPTION = 65_535  # bytes of task.description
LONGEST_SUBMIT_KEY = 190  # characters of task.submit_key


@click.command()
@click.argument("file")
@click.option("--type", "type_name", default="correction", show_default=True, help="What is done to each row.")
@click.option("--model", "model_name", help="The model that does it; may be left out when there is only one.")
@click.option("--column", help="Column with the text.  [default: text_original, text, or the only one]")
@click.option("--key-column", help="Column with your own key, kept as external_key.")
@click.option("--format", "format_name", type=click.Choice(["csv", "jsonl", "txt"]), help="Needed for standard input.")
@click.option("--delimiter", help="Of a CSV; `tab` may be spelled out.  [default: comma, semicolon or tab, as the header has it]")
@click.option("--encoding", default="utf-8", show_default=True, help="For example cp1250.")
@click.option("--description", default="", help="The instruction for the model, in your words.")
@click.option(
    "--param", "params", multiple=True, metavar="KEY=VALUE", help="Parameter of the type; JSON where it can be. Repeatable."
)
@click.option("--priority", type=click.IntRange(-32767, 32767), default=0, show_default=True, help="Higher ones go first.")
@click.option("--at", metavar="TIME", help="Not before this time: 2026-12-24T18:00, local unless it names a zone.")
@click.option(
    "--max-attempts", type=click.IntRange(1, 255), default=3, show_default=True, help="Per row, before it is set aside."
)
@click.option("--key", help="Makes it safe to repeat: the same key never makes a second task.")
@click.option("--wait", is_flag=True, help="Show progress until the task is done by workers that run elsewhere.")
@click.option("--json", "as_json", is_flag=True, help='Print {"id_task": …, "items": …}.')
def submit(
    file: str,
    type_name: str,
    model_name: str | None,
    column: str | None,
    key_column: str | None,
    format_name: Any,
    delimiter: str | None,
    encoding: str,
    description: str,
    params: tuple[str, ...],
    priority: int,
    at: str | None,
    max_attempts: int,
    key: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Make a task from FILE: .csv, .jsonl or .txt, or `-` for standard input.

    \b
    CSV    a header, then rows; the columns beside the text go along as the item's context
    JSONL  a string or an object per line
    TXT    one item per line

    All rows become items, or none does: a file with a row that cannot be used makes no task. Rows whose text is empty are
    skipped, and their number is told. Texts may have up to 16,777,215 bytes.

    With --wait, exit code 3 says that some items ended in ERROR.
    """
    settings = context.settings()
    kind = task_type(type_name)
    layout = Layout(format_name or format_of(file), column, key_column, _delimiter(delimiter), encoding)
    parameters = dict(map(_parameter, params))
    scheduled_at = None if at is None else _moment(at)
    if len(description.encode("utf-8", "replace")) > LONGEST_DESCRIPTION:
        raise UsageError(f"--description is longer than {LONGEST_DESCRIPTION:,} bytes")
    if key is not None and not 0 < len(key) <= LONGEST_SUBMIT_KEY:
        raise UsageError(f"--key must have 1 to {LONGEST_SUBMIT_KEY} characters")
    with context.database(settings) as db:
        model = _model(db, model_name)
        kind.validate(Task(0, model.id_ai_model, type_name, description, parameters, max_attempts, priority, TaskStatus.NEW))
        task = NewTask(model.id_ai_model, type_name, description, parameters, priority, scheduled_at, max_attempts, key)
        submitted = _submit(db, task, file, layout)
        if model.stopped_at is not None:
            _note(f"model {model.name} is stopped ({model.stopped_kind}: {model.stopped_reason}); the items wait for it")
        if as_json:
            context.emit_json({"id_task": submitted.id_task, "items": submitted.items})
        code = EXIT_DONE
        if wait:
            reports = Reports(db)
            if not any(worker.state in {"alive", "late"} for worker in reports.workers()):
                _note(f"no worker is running; start one with `ai-worker run --task {submitted.id_task}`")
            code = progress.follow(reports, submitted.id_task, interval=10, to_stderr=True)
        if not as_json:
            items = "1 item" if submitted.items == 1 else f"{submitted.items} items"
            click.echo(f"task {submitted.id_task}: {items}")
    return code


def _submit(db: Database, task: NewTask, file: str, layout: Layout) -> Submitted:
    tasks = Tasks(db)
    layout = Layout(layout.format, layout.column, layout.key_column, layout.delimiter, layout.encoding, tasks.packet())
    with RowFile.open(file, layout) as source, progress.row_counter() as show:
        submitted = tasks.submit(task, source.rows, show)
        skipped = source.skipped
    if not submitted.is_new:
        _note(f"task {submitted.id_task} was made from --key {task.submit_key} before; nothing was added")
    elif skipped:
        _note(f"{skipped} {'row' if skipped == 1 else 'rows'} without text skipped")
    return submitted


def _model(db: Database, name: str | None) -> Model:
    models = Models(db)
    if name is not None:
        found = models.get(name)
    else:
        known = [each for each in models.all() if each.is_active]
        if not known:
            raise UsageError("there is no model yet; `ai-worker model add` makes one, and the provider `offline` needs no key")
        if len(known) > 1:
            raise UsageError(f"name one of the models with --model: {', '.join(each.name for each in known)}")
        found = known[0]
    if not found.is_active:
        raise UsageError(f"model {found.name!r} is switched off; `ai-worker model set {found.name} --active` switches it on")
    return found


def _parameter(pair: str) -> tuple[str, Any]:
    name, separator, text = pair.partition("=")
    if not separator or not name:
        raise UsageError(f"--param {pair!r} is not KEY=VALUE, for example --param target_language=pl")
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        return name, text


def _moment(text: str) -> datetime:
    """A time of day of the caller's, in UTC without a zone, as the database keeps it."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise UsageError(f"--at {text!r} is not a time; write it as 2026-12-24T18:00 or 2026-12-24T18:00+01:00") from None


def _delimiter(text: str | None) -> str | None:
    if text is None:
        return None
    character = "\t" if text in {"tab", "\\t"} else text
    if len(character) != 1 or character in '"\r\n':
        raise UsageError(f"--delimiter must be one character or `tab`, not {text!r}")
    return character


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)
