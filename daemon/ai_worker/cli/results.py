"""`results`: what came out, as CSV, JSONL or an HTML page; streamed, so that a million rows need no memory."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import click

from ai_worker.cli import context
from ai_worker.cli.result_files import Writer
from ai_worker.errors import EXIT_DONE, EXIT_ITEMS_FAILED, AiWorkerError, UsageError
from ai_worker.models import ItemStatus
from ai_worker.output.tables import Csv, json_lines
from ai_worker.store.edits import edits_of
from ai_worker.store.files import Files
from ai_worker.store.reports import Reports
from ai_worker.store.results import Results

NAMED_PROBLEMS = 20  # files that were not written

_ONLY = {"processed": ItemStatus.PROCESSED, "error": ItemStatus.ERROR, "all": None}
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".html": "html", ".htm": "html"}
_ENDINGS = f"{', '.join(list(_SUFFIXES)[:-1])} or {list(_SUFFIXES)[-1]}"


@click.command()
@click.argument("id_task", metavar="ID", type=int)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["csv", "jsonl", "html"]),
    help="[default: as FILE's name tells; csv without one]",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Write a file, which appears when it is complete.  [default: standard output]"
)
@click.option("--only", type=click.Choice(list(_ONLY)), default="all", show_default=True, help="Which items.")
@click.option("--files", "folder", metavar="DIR", help="Write pictures into this folder too, each checked by its SHA-256.")
@click.option("--raw", is_flag=True, help="CSV: write cells that look like formulas as they are.")
@click.option("--steps", "with_steps", is_flag=True, help="JSONL: with the finished steps of each item.")
@click.option("--bom", is_flag=True, help="CSV: begin with a byte order mark, by which Excel knows that it is UTF-8.")
def results(
    id_task: int,
    format_name: Literal["csv", "jsonl", "html"] | None,
    output: str | None,
    only: str,
    folder: str | None,
    raw: bool,
    with_steps: bool,
    bom: bool,
) -> int:
    """Results of a task as CSV, JSONL or an HTML page that shows the changes side by side.

    In CSV, a text that begins with = + - @, tab or carriage return gets an apostrophe before it, since a spreadsheet would run it
    as a formula; how many did is told on standard error. --raw leaves them alone. JSONL never changes a text.

    Of pictures, CSV and JSONL tell what they are, HTML shows small ones; --files writes them out, as ITEM-POSITION.png. One that
    is damaged or gone is named, the others are written, and the exit code is 3.
    """
    guarded = 0  # stays so when the reader of a pipe leaves early
    chosen = format_name or _format_of(output)
    if with_steps and chosen != "jsonl":
        raise UsageError("--steps goes with --format jsonl: the other formats have one row for each item")
    settings = context.settings()
    with context.database(settings) as db:
        task = Reports(db).task(id_task)
        results = Results(db)
        items = results.of_task(id_task, _ONLY[only], thumbnails=chosen == "html")
        writer = None if folder is None else Writer(Files(db, settings.files_folder), folder)
        items = items if writer is None else writer.of(items)
        with _target(output) as stream:
            if chosen == "csv":
                table = Csv(items, raw=raw, bom=bom)
                stream.writelines(table)
                guarded = table.guarded
            elif chosen == "jsonl":
                stream.writelines(json_lines(items, results if with_steps else None))
            else:
                from ai_worker.output.page import write_page

                write_page(stream, task, items, edits_of(db, id_task))
    if writer:
        click.echo(f"note: {writer.count} file{'' if writer.count == 1 else 's'} written to {folder}", err=True)
        for problem in writer.lost[:NAMED_PROBLEMS]:
            click.echo(f"not written: {problem}", err=True)
        if more := len(writer.lost[NAMED_PROBLEMS:]):
            click.echo(f"not written: {more} more", err=True)
    if guarded:
        cells = "1 cell" if guarded == 1 else f"{guarded} cells"
        click.echo(
            f"note: {cells} got an apostrophe, lest a spreadsheet take them for formulas; --raw leaves them alone", err=True
        )
    return EXIT_ITEMS_FAILED if writer and writer.lost else EXIT_DONE


def _format_of(output: str | None) -> str:
    if output is None or output == "-":
        return "csv"
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        if path.exists() and not path.is_file():  # a device or a pipe, whose name tells nothing; of a folder `_target` complains
            return "csv"
        raise UsageError(f"the format is not to be told from {output!r}: name a file in {_ENDINGS}, or give --format")
    return _SUFFIXES[suffix]


@contextlib.contextmanager
def _target(output: str | None) -> Iterator[IO[str]]:
    """Where results go, as UTF-8. A file is written beside its place and moved there at the end: half of one is never seen."""
    if output is None or output == "-":
        with _stdout() as stream:
            yield stream
        return
    path = Path(output)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            if path.is_dir():
                raise UsageError(f"{output} is a directory; name a file")
            with path.open("w", encoding="utf-8", newline="") as stream:  # a device or a pipe: there is no half of it
                yield stream
            return
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("x", encoding="utf-8", newline="") as stream:
                yield stream
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except BrokenPipeError:
        return
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None
    except OSError as error:
        raise AiWorkerError(f"{output} could not be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _stdout() -> Iterator[IO[str]]:
    """Standard output as UTF-8, whatever the locale is. Its reader may leave early, as `head` does: that is no error."""
    stream = io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="")
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        # What is still in the buffers would be flushed at exit, and complained about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        stream.detach()
