"""`ai-worker quickstart`: the whole way of a row, on a private database, for somebody who has nothing set up yet."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ai_worker import formats, log
from ai_worker.cli import context
from ai_worker.config import Settings
from ai_worker.database_url import parse_database_url
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, EXIT_ITEMS_FAILED

if TYPE_CHECKING:
    from ai_worker.db import Database, Transaction
    from ai_worker.store.results import Results

SHOWN = 50


def _default_folder() -> Path:
    """Where a program keeps its data: https://specifications.freedesktop.org/basedir-spec/latest/"""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local" / "share") / "ai-worker" / "quickstart"


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the private database lives.  [~/.local/share/ai-worker/quickstart]",
)
@click.option("--rows", type=click.IntRange(1, 100_000), help="How many sample rows.  [all of them, once]")
def quickstart(folder: Path | None, rows: int | None) -> int:
    """Watch sample rows being corrected: a private database, no API key, nothing left running.

    Starts a MariaDB or MySQL server in a folder, on a socket of its own, makes the tables, inserts sample rows as an
    application would, processes them with the built-in spelling corrector, and shows the changes. No other database is touched.
    """
    from ai_worker import embedded, migrate
    from ai_worker.db import Database

    embedded.require()
    # A plain SIGTERM would end us on the spot and leave the server running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = (folder or _default_folder()).expanduser().resolve()
    settings = _settings()
    click.echo(f"Starting a private database server in {folder}")
    with embedded.running(folder) as url:
        db = Database(parse_database_url(url))
        try:
            applied = migrate.migrate(db)
            click.echo(f"Made the tables ({', '.join(applied)})" if applied else "The tables are there")
            id_task = _insert(db, rows)
            code = _process(settings, db, id_task)
        finally:
            db.close()
    _tell_how_to_go_on(folder, id_task)
    return code


def _settings() -> Settings:
    """The settings, with a quiet log unless a level was asked for: what happens is shown in words here."""
    settings = context.settings()
    if "log_level" not in settings.model_fields_set:
        log.configure("warning", settings.log_format, settings.log_sample)
    return settings


def _insert(db: Database, rows: int | None) -> int:
    """Runs sql/quickstart.sql, the way an application would; its last statement is the one with the rows."""
    from ai_worker.db import sql_folder
    from ai_worker.migrate import split

    path = sql_folder() / "quickstart.sql"
    *before, insert_items = split(path.read_text(encoding="utf-8"))

    def work(transaction: Transaction) -> tuple[int, int]:
        for statement in before:
            transaction.raw(statement)
        count = 0
        while count < (rows or 1):
            transaction.raw(insert_items)
            count += transaction.raw("SELECT ROW_COUNT() AS items")[0]["items"]
        if rows is not None and rows < count:
            transaction.raw(f"DELETE FROM task_item WHERE id_task = @id_task ORDER BY id_task_item DESC LIMIT {count - rows}")  # noqa: S608 -- a number
            count = rows
        return transaction.raw("SELECT @id_task AS id_task")[0]["id_task"], count

    id_task, count = db.transaction(work)
    click.echo(f"Inserted task {id_task} with {count} rows by plain SQL, as an application would: {path}")
    return id_task


def _process(settings: Settings, db: Database, id_task: int) -> int:
    from ai_worker.cli.work import process
    from ai_worker.models import Filters
    from ai_worker.store.reports import Reports
    from ai_worker.store.results import Results

    click.echo("Processing them with the model 'offline', a spelling corrector that needs no network\n")
    began = time.monotonic()
    process(settings, db, filters=Filters(id_task=id_task))
    seconds = time.monotonic() - began

    _show_changes(Results(db), id_task)
    report = Reports(db).task(id_task)
    click.echo(
        f"Task {id_task} is {report.status.name}: {report.records_processed} rows PROCESSED, {report.records_failed} failed, "
        f"in {formats.duration(seconds)}"
    )
    if report.open:
        click.echo(f"{report.open} rows are still open")
        return EXIT_FAILED
    return EXIT_ITEMS_FAILED if report.records_failed else EXIT_DONE


def _show_changes(results: Results, id_task: int) -> None:
    from itertools import islice

    from ai_worker.text import terminal_diff

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ  # https://no-color.org
    for result in islice(results.of_task(id_task), SHOWN):
        # Compared with itself, a text comes out as it is, but for control characters.
        click.echo(f"  original   {terminal_diff(result.text_original, result.text_original, color)}")
        if result.text_corrected is None:
            click.echo(f"  {result.status.name.lower():<9}  {result.error or ''}\n")
        else:
            click.echo(f"  corrected  {terminal_diff(result.text_original, result.text_corrected, color)}\n")


def _tell_how_to_go_on(folder: Path, id_task: int) -> None:
    command = _own_command()
    click.echo(f"""
Look further (the private server starts and stops with each command):

  export AI_WORKER_DB_URL={shlex.quote(f"embedded://{quote(str(folder))}")}
  {command} status {id_task}
  {command} results {id_task} --format html -o changes.html

With a real model: keep a master key, store the API key (it is encrypted with it), and give it a file of yours:

  (umask 077; {command} keygen > master.key); export AI_WORKER_MASTER_KEY_FILE=$PWD/master.key
  printf %s "$OPENAI_API_KEY" | {command} model add gpt --provider openai --model gpt-5-mini --api-key-stdin
  {command} submit texts.csv --column text --type correction --model gpt
  {command} run

With a database of your own: export AI_WORKER_DB_URL=mysql://user:password@host:3306/ai_worker and {command} migrate.""")


def _own_command() -> str:
    """How to call this program again: by its name where the shell finds it, else by its path."""
    path = Path(sys.argv[0])
    found = shutil.which("ai-worker")
    if path.stem != "ai-worker":
        return f"{shlex.quote(sys.executable)} -m ai_worker"
    if found and Path(found).resolve() == path.resolve():
        return "ai-worker"
    absolute = path.absolute()
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))
