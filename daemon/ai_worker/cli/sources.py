"""`import` and `export`: rows of a table become a task, and accepted results go back to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ai_worker import formats
from ai_worker.cli import context, progress
from ai_worker.cli.review import named
from ai_worker.cli.task_options import TaskOptions, note, task_options, warn_of_stopped
from ai_worker.config import Settings, variable
from ai_worker.database_url import DatabaseUrl, parse_database_url
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, EXIT_ITEMS_FAILED, ConfigurationError, UsageError
from ai_worker.models import Task, TaskStatus
from ai_worker.store.exports import LARGEST_BATCH, Exported, Exports, Origin
from ai_worker.store.imports import Imports
from ai_worker.store.prompts import Prompts
from ai_worker.store.source_table import Columns, ExportOutcome, SourceTable
from ai_worker.store.tasks import no_task
from ai_worker.task_types import is_new_version
from ai_worker.text import harmless

NAMED_PROBLEMS = 20  # that are told one by one; the others are counted
LONGEST_CLAUSE = 65_535  # bytes of task_source.where_clause

_OPTION = "--url"
_PROBLEMS = {
    ExportOutcome.CONFLICT: "the row was changed meanwhile, and left alone",
    ExportOutcome.MISSING: "the row is gone",
    ExportOutcome.FAILED: "the row was refused",
    ExportOutcome.EXPIRED: "the result was not kept until now",
}


@click.command()
@click.option("--table", required=True, metavar="[DB.]TABLE", help="The table; `DB`.`TABLE` for names with dots.")
@click.option("--key-column", metavar="COLUMN", help="Its key, kept as external_key.  [default: the primary key]")
@click.option("--column", required=True, help="The column with the text.")
@click.option("--where", metavar="SQL", help="Which rows, as your own SQL: \"status = 'draft'\".  [default: all]")
@click.option(
    _OPTION, metavar="URL", help="The server and database of the table.  [default: AI_WORKER_SOURCE_URL, else AI Worker's own]"
)
@click.option("--context-columns", metavar="A,B,…", help="Columns that go along as the item's context.")
@click.option("--context-key-column", metavar="COLUMN", help="The column that says whom or what a row is about.")
@task_options
@click.option("--json", "as_json", is_flag=True, help='Print {"id_task": …, "items": …, "skipped": …}.')
def import_(
    options: TaskOptions,
    table: str,
    key_column: str | None,
    column: str,
    where: str | None,
    url: str | None,
    context_columns: str | None,
    context_key_column: str | None,
    as_json: bool,
) -> int:
    """Make a task from the rows of a table on any MySQL or MariaDB server; `ai-worker export` writes accepted results back.

    \b
    ai-worker import --table shop.articles --column body --where "status = 'draft'" --key drafts-may
    ai-worker import --table shop.articles --column body --key-column slug --context-columns title,tags

    The rows are read in the order of their key, in short statements without locks; rows without text are skipped and counted.
    The task is PAUSED ("being imported") until all rows are in. With --key, an import that was cut short is simply run again,
    and goes on where it stood; one that had finished adds nothing.

    The key must be unique by itself and not NULL: a whole number, CHAR, VARCHAR, or BINARY, which is kept in hexadecimal.
    --where is run as it is, with the rights of the source's user, who needs SELECT alone; `export` needs UPDATE of the column.
    A password is best given in AI_WORKER_SOURCE_URL or the file that AI_WORKER_SOURCE_URL_FILE names: others see a command line.
    It is never stored.
    """
    if where is not None and len(where.encode("utf-8", "replace")) > LONGEST_CLAUSE:
        raise UsageError(f"--where is longer than {LONGEST_CLAUSE:,} bytes")
    names = tuple(name.strip() for name in (context_columns or "").split(",") if name.strip())
    settings = context.settings()
    place = _chosen(settings, url)
    with context.database(settings) as db, _source(db, place, writable=False) as other:
        task, model = options.plan(db, context.library(settings, db))
        source = SourceTable.look_up(other, Columns(table, key_column, column, names, context_key_column))
        with progress.row_counter() as show:
            done = Imports(db).run(task, source, where or None, None if place is None else place.without_password(), show)
        warn_of_stopped(model)
    if done.was_finished:
        note(f"task {done.id_task} was made from --key {options.key} before; nothing was added")
    if done.skipped:
        note(f"{formats.number(done.skipped)} {'row' if done.skipped == 1 else 'rows'} without text skipped")
    if as_json:
        context.emit_json({"id_task": done.id_task, "items": done.items, "skipped": done.skipped})
    elif done.id_task is None:
        click.echo(f"no rows to import from {source}; no task was made")
    else:
        click.echo(f"task {done.id_task}: {'1 item' if done.items == 1 else f'{formats.number(done.items)} items'}")
    return EXIT_DONE


@click.command()
@click.argument("id_task", metavar="ID", type=int)
@click.option(_OPTION, metavar="URL", help="The server and database to write to.  [default: where the task came from]")
@click.option(
    "--column", help="The column that was imported, named to have other results than new versions of its texts put there."
)
@click.option("--batch", type=click.IntRange(1, LARGEST_BATCH), default=200, show_default=True, help="Rows in one transaction.")
@click.option("--dry-run", is_flag=True, help="Write nothing; tell what would be written, and what not.")
@click.option("--by", metavar="NAME", help="Who exports, for the audit.  [default: the user of this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print the counts and all rows that were not written.")
def export(id_task: int, url: str | None, column: str | None, batch: int, dry_run: bool, by: str | None, as_json: bool) -> int:
    """Write accepted results back to the table that the task was imported from, by UPDATE of the text's column.

    Each row is guarded by its text: one that was changed since the import, or since the last export, is a conflict and left
    alone. Run it as often as you like, also after it was killed: each result is written once. What became of each item stands
    in task_item_export.

    \b
    written    the row has the accepted text now
    unchanged  the result is what the row holds
    conflict   somebody has changed the row meanwhile; it is left alone
    missing    the row is gone
    failed     the source refused it: too long, a CHECK, a trigger; the others go on
    expired    the result's time to live was over before it was exported

    Results of corrections and translations, and of prompts of these kinds, are new versions of the texts. Of any other type, a
    category or a summary would be written over the text that it is about: that is refused, unless --column names the column.

    Exit code 3: there are conflicts, missing, failed or expired rows. The first of them are named, all of them with --json.

    The source's user needs SELECT on the table and UPDATE on the column; triggers and ON UPDATE columns act as on any UPDATE.
    """
    exported_by = named(by)
    settings = context.settings()
    counts: Counter[ExportOutcome] = Counter()
    before = 0
    problems: list[Exported] = []
    with context.database(settings) as db:
        exports = Exports(db)
        origin = exports.origin(id_task)
        _refuse_other_results(settings, db, id_task, origin.columns, column)
        with _source(db, _place(settings, url, origin, id_task), writable=not dry_run) as other:
            source = SourceTable.look_up(other, origin.columns)
            for each in exports.run(id_task, source, exported_by, size=batch, dry_run=dry_run):
                counts[each.outcome] += each.is_news
                before += not each.is_news
                if each.outcome in _PROBLEMS and (as_json or len(problems) < NAMED_PROBLEMS):
                    problems.append(each)
    if as_json:
        listed = [
            {
                "id_task_item": each.id_task_item,
                "external_key": each.external_key,
                "outcome": each.outcome,
                "message": each.message,
            }
            for each in problems
        ]
        numbers = {outcome.value: counts[outcome] for outcome in ExportOutcome}
        context.emit_json({"id_task": id_task, "dry_run": dry_run, **numbers, "before": before, "problems": listed})
    else:
        _tell(id_task, counts, before, problems, dry_run)
    return EXIT_ITEMS_FAILED if any(counts[outcome] for outcome in _PROBLEMS) else EXIT_DONE


def _refuse_other_results(settings: Settings, db: Database, id_task: int, columns: Columns, named_column: str | None) -> None:
    """Raises UsageError where a text would be lost to what was found out about it, and nobody has said that it may be."""
    if named_column is not None:
        if named_column != columns.text:
            raise UsageError(
                f"--column {named_column!r}: the texts of task {id_task} came from the column {columns.text!r}, and export writes"
                f" to no other; `ai-worker results {id_task} --format csv` gives what you can write there yourself"
            )
        return
    task = Prompts(db).task(id_task)
    if task is None:
        raise no_task(id_task)
    stored = Task(id_task, 0, task.task_type, task.description, task.parameters, 1, 0, TaskStatus.NEW, id_prompt=task.id_prompt)
    try:
        is_version = is_new_version(context.library(settings, db, publish=False).kind(stored))
    except (UsageError, ConfigurationError):  # a type of other hosts
        is_version = False
    if not is_version:
        raise UsageError(
            f"the results of task {id_task} are no new versions of its texts (type {task.task_type}), and would be written over"
            f" them; `ai-worker export {id_task} --column {columns.text}` does that all the same, and"
            f" `ai-worker results {id_task} --format csv` gives them for a column of their own"
        )


def _tell(id_task: int, counts: Counter[ExportOutcome], before: int, problems: list[Exported], dry_run: bool) -> None:
    for each in problems:
        why = f": {harmless(each.message)}" if each.message else ""
        key = "without a key" if each.external_key is None else f"key {harmless(each.external_key)}"
        click.echo(f"{each.outcome.value:<9} item {each.id_task_item}, {key}: {_PROBLEMS[each.outcome]}{why}")
    if more := sum(counts[outcome] for outcome in _PROBLEMS) - len(problems):
        click.echo(f"… and {formats.number(more)} more: --json names them all")
    parts = [f"{formats.number(counts[outcome])} {outcome.value}" for outcome in ExportOutcome if counts[outcome]]
    if before:
        parts.append(f"{formats.number(before)} done before")
    text = ", ".join(parts) or "nothing is accepted; `ai-worker review` accepts"
    click.echo(f"task {id_task}: {text}{'; nothing was written, this was a dry run' if dry_run else ''}")


def _chosen(settings: Settings, option: str | None) -> DatabaseUrl | None:
    """The source that was named, None for AI Worker's own server."""
    if option is not None:
        return _parsed(option, _OPTION)
    if settings.source_url is not None:
        return _parsed(settings.source_url.get_secret_value(), variable("source_url"))
    return None


def _place(settings: Settings, option: str | None, origin: Origin, id_task: int) -> DatabaseUrl | None:
    """Where the rows of a task are. Without --url it is where they came from; what is kept of that lacks the password."""
    if option is not None:
        return _parsed(option, _OPTION)
    if origin.url is None:
        return None
    kept = _parsed(origin.url, f"task_source.url of task {id_task}")
    chosen = _chosen(settings, None)
    if chosen is None:
        return kept
    if (chosen.hosts, chosen.unix_socket) != (kept.hosts, kept.unix_socket):
        raise UsageError(
            f"task {id_task} was imported from {kept}, and {chosen.setting} names {chosen}; "
            "give --url to write there all the same"
        )
    return chosen


def _parsed(url: str, setting: str) -> DatabaseUrl:
    parsed = parse_database_url(url, setting=setting)
    if parsed.scheme == "embedded":
        raise ConfigurationError(f"the database URL ({setting}) must begin with mysql:// or mariadb://")
    return parsed


@contextmanager
def _source(own: Database, url: DatabaseUrl | None, *, writable: bool) -> Iterator[Database]:
    """The source's database; a read-only replica will do for reading."""
    db = Database(url or own.url, patience=own.patience, writable=writable)
    try:
        yield db
    finally:
        db.close()
