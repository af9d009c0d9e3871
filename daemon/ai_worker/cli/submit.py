"""`submit`: a task from a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from ai_worker import prices
from ai_worker.cli import context, progress
from ai_worker.cli.money import Usd
from ai_worker.cli.preview import PREVIEWED_PROMPTS, show
from ai_worker.cli.rows import Layout, RowFile, format_of
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, UsageError
from ai_worker.models import Item, Lane, Model, Task, TaskStatus
from ai_worker.providers import takes_batches
from ai_worker.store.models import Models
from ai_worker.store.reports import Reports
from ai_worker.store.tasks import NewTask, Submitted, Tasks
from ai_worker.task_types import task_type

LONGEST_DESCRIPTION = 65_535  # bytes of task.description
LONGEST_SUBMIT_KEY = 190  # characters of task.submit_key
LONGEST_AGE = 4_294_967_295  # seconds of task.cache_seconds

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


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
@click.option(
    "--fallback", "fallbacks", multiple=True, metavar="MODEL", help="Next when the ones before are stopped or refuse. Repeatable."
)
@click.option("--budget", type=Usd(), help="What it may cost; when that is spent, the task is paused.")
@click.option(
    "--lane",
    type=click.Choice(["online", "flex", "batch"]),
    default="online",
    show_default=True,
    help="flex: the provider's cheaper tier. batch: half price, answers within a day.",
)
@click.option("--pack", type=click.IntRange(1, 100), default=1, show_default=True, help="Up to so many short rows in one call.")
@click.option(
    "--cache-age",
    metavar="AGE",
    default="30d",
    show_default=True,
    help="How old an earlier answer to the same work may be: 12h, 30d, or 0 for none.",
)
@click.option("--estimate", is_flag=True, help="Only tell what it would take and cost; make no task.")
@click.option("--dry-run", is_flag=True, help="The same, and show the first prompts.")
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
    fallbacks: tuple[str, ...],
    budget: Decimal | None,
    lane: str,
    pack: int,
    cache_age: str,
    estimate: bool,
    dry_run: bool,
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

    \b
    What it costs:
    --estimate         tells tokens and cost, and sends nothing
    --budget 5.00      pauses the task before it costs more
    --lane batch       half price, answers within a day
    --pack 10          pays the instruction once for ten short rows
    --cache-age 30d    work done before is not paid again
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
        chain = _chain(db, model_name, fallbacks)
        model = chain[0]
        kind.validate(Task(0, model.id_ai_model, type_name, description, parameters, max_attempts, priority, TaskStatus.NEW))
        task = NewTask(
            model.id_ai_model,
            type_name,
            description,
            parameters,
            priority,
            scheduled_at,
            max_attempts,
            key,
            fallbacks=tuple(each.id_ai_model for each in chain[1:]),
            lane=Lane(lane),
            pack=pack,
            cache_seconds=_age(cache_age),
            budget=budget,
        )
        _check(task, chain)
        if task.lane is Lane.BATCH and task.pack > 1:
            _note("batches do not pack: --pack changes nothing")
        if estimate or dry_run:
            _estimate(db, task, model, file, layout, PREVIEWED_PROMPTS if dry_run else 0, as_json)
            return EXIT_DONE
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


def _chain(db: Database, name: str | None, fallbacks: tuple[str, ...]) -> list[Model]:
    """The models of the task, in order."""
    chain = [_model(db, name)]
    for fallback in fallbacks:
        found = _model(db, fallback)
        if found.id_ai_model in {each.id_ai_model for each in chain}:
            raise UsageError(f"--fallback {fallback!r}: that model stands before it already")
        chain.append(found)
    return chain


def _check(task: NewTask, chain: list[Model]) -> None:
    """Raises UsageError for what could only end badly."""
    for model in chain:
        if task.budget is not None and prices.price(model) is None:
            raise UsageError(
                f"--budget {task.budget}: the price of model {model.name!r} is not known, so nobody can keep to it; "
                f"`ai-worker model set {model.name} --price-input … --price-output …` says it"
            )
        if task.lane is Lane.BATCH and not takes_batches(model.provider):
            raise UsageError(f"--lane batch: the provider {model.provider!r} of model {model.name!r} takes no batches")


def _estimate(db: Database, task: NewTask, model: Model, file: str, layout: Layout, shown: int, as_json: bool) -> None:
    """Reads the whole file, and shows what it would come to."""
    packet = Tasks(db).packet()
    layout = Layout(layout.format, layout.column, layout.key_column, layout.delimiter, layout.encoding, packet)
    stored = Task(
        0,
        model.id_ai_model,
        task.task_type,
        task.description,
        task.parameters,
        task.max_attempts,
        task.priority,
        TaskStatus.NEW,
        is_probe=model.stopped_at is not None,
        lane=task.lane,
        pack=task.pack,
        cache_seconds=task.cache_seconds,
        budget=task.budget,
    )
    with RowFile.open(file, layout) as source:
        rows = enumerate(source.rows(), start=1)
        items = (
            (Item(number, stored, row.text_original, json.loads(row.context) if row.context else {}, 1, 0, b"", ""), model)
            for number, row in rows
        )
        total = show(items, shown, as_json=as_json)
    if task.budget is not None and (total.known_cost or 0) > task.budget:
        _note(f"that is more than the budget of {context.money(task.budget)}: the task would be paused before its end")


def _age(text: str) -> int:
    """A length of time in seconds: `30d`, `12h`, `45m`, `90s`, `0`. A number alone might be meant as days: it is refused."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    is_number = number.isascii() and number.isdigit() and (number != text or not int(number))
    if not is_number or int(number) * _UNITS[unit] > LONGEST_AGE:
        raise UsageError(
            f"--cache-age {text!r} is not a length of time; write it as 30d, 12h, 45m, or 0 for no answers from before"
        )
    return int(number) * _UNITS[unit]


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
