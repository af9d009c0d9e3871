"""`submit`: a task from a file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click

from ai_worker import formats
from ai_worker.cli import context, progress
from ai_worker.cli.preview import PREVIEWED_PROMPTS, show
from ai_worker.cli.task_options import TaskOptions, note, task_options, warn_of_stopped
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, UsageError
from ai_worker.library import Library
from ai_worker.models import Item, Model
from ai_worker.rows import Layout, RowFile, format_of
from ai_worker.store.new_tasks import NewTask
from ai_worker.store.reports import Reports
from ai_worker.store.tasks import Submitted, Tasks


@click.command()
@click.argument("file")
@task_options
@click.option("--column", help="Column with the text.  [default: text_original, text, or the only one]")
@click.option("--key-column", help="Column with your own key, kept as external_key.")
@click.option(
    "--context-key-column",
    metavar="COLUMN",
    help="Column with whom or what a row is about: earlier results and facts are drawn by it.  [default in JSONL: context_key]",
)
@click.option("--format", "format_name", type=click.Choice(["csv", "jsonl", "txt"]), help="Needed for standard input.")
@click.option("--delimiter", help="Of a CSV; `tab` may be spelled out.  [default: comma, semicolon or tab, as the header has it]")
@click.option("--encoding", default="utf-8", show_default=True, help="For example cp1250.")
@click.option("--estimate", is_flag=True, help="Only tell what it would take and cost; make no task.")
@click.option("--dry-run", is_flag=True, help="The same, and show the first prompts.")
@click.option("--wait", is_flag=True, help="Show progress until the task is done by workers that run elsewhere.")
@click.option("--json", "as_json", is_flag=True, help='Print {"id_task": …, "items": …}.')
def submit(
    options: TaskOptions,
    file: str,
    column: str | None,
    key_column: str | None,
    context_key_column: str | None,
    format_name: Any,
    delimiter: str | None,
    encoding: str,
    estimate: bool,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Make a task from FILE: .csv, .jsonl or .txt, or `-` for standard input.

    \b
    CSV    a header, then rows; the columns beside the text go along as the item's context
    JSONL  a string or an object per line; an object in its field `context` is the item's context
    TXT    one item per line

    All rows become items, or none does: a file with a row that cannot be used makes no task. Rows whose text is empty are
    skipped, and their number is told. Texts may have up to 16,777,215 bytes.

    With --wait, exit code 3 says that some items ended in ERROR.

    \b
    What it costs:
    --estimate         tells tokens and cost, and sends nothing
    --budget 5.00      pauses the task before it costs more
    --lane batch       half price, answers within a day
    --pack 10          pays the instruction once for ten short rows
    --cache-age 30d    work done before is not paid again
    """
    settings = context.settings()
    layout = Layout(
        format_name or format_of(file),
        column,
        key_column,
        _delimiter(delimiter),
        encoding,
        context_key_column=context_key_column,
    )
    with context.database(settings) as db:
        library = context.library(settings, db)
        task, model = options.plan(db, library)
        if estimate or dry_run:
            _estimate(db, library, task, model, file, layout, PREVIEWED_PROMPTS if dry_run else 0, as_json)
            return EXIT_DONE
        submitted = _submit(db, task, file, layout)
        warn_of_stopped(model)
        if as_json:
            context.emit_json({"id_task": submitted.id_task, "items": submitted.items})
        code = EXIT_DONE
        if wait:
            reports = Reports(db)
            if not any(worker.state in {"alive", "late"} for worker in reports.workers()):
                note(f"no worker is running; start one with `ai-worker run --task {submitted.id_task}`")
            code = progress.follow(reports, submitted.id_task, interval=10, to_stderr=True)
        if not as_json:
            items = "1 item" if submitted.items == 1 else f"{submitted.items} items"
            click.echo(f"task {submitted.id_task}: {items}")
    return code


def _submit(db: Database, task: NewTask, file: str, layout: Layout) -> Submitted:
    tasks = Tasks(db)
    layout = replace(layout, packet=tasks.packet())
    with RowFile.open(file, layout) as source, progress.row_counter() as show:
        submitted = tasks.submit(task, source.rows, show)
        skipped = source.skipped
    if not submitted.is_new:
        note(f"task {submitted.id_task} was made from --key {task.submit_key} before; nothing was added")
    elif skipped:
        note(f"{skipped} {'row' if skipped == 1 else 'rows'} without text skipped")
    return submitted


def _estimate(
    db: Database, library: Library, task: NewTask, model: Model, file: str, layout: Layout, shown: int, as_json: bool
) -> None:
    """Reads the whole file, and shows what it would come to."""
    packet = Tasks(db).packet()
    layout = replace(layout, packet=packet)
    stored = replace(task.as_task(), id_ai_model=model.id_ai_model, is_probe=model.stopped_at is not None)
    with RowFile.open(file, layout) as source:
        rows = enumerate(source.rows(), start=1)
        items = (
            (Item(number, stored, row.text_original, json.loads(row.context) if row.context else {}, 1, 0, b"", ""), model)
            for number, row in rows
        )
        total = show(items, shown, library.kind, as_json=as_json)
    if task.budget is not None and (total.known_cost or 0) > task.budget:
        note(f"that is more than the budget of {formats.money(task.budget)}: the task would be paused before its end")


def _delimiter(text: str | None) -> str | None:
    if text is None:
        return None
    character = "\t" if text in {"tab", "\\t"} else text
    if len(character) != 1 or character in '"\r\n':
        raise UsageError(f"--delimiter must be one character or `tab`, not {text!r}")
    return character
