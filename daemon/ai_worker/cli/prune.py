"""`ai-worker prune`: deletes what ended long ago, in small transactions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.order import seconds_of
from ai_worker.errors import UsageError
from ai_worker.store.pruning import NOT_EXPORTED, SHORTEST_AGE, Pruned, Pruning

_INTERVAL = 10.0  # seconds between two lines where there is no terminal
_SHOWN = 10  # ids of tasks that stay, in the text


@click.command()
@click.option("--older-than", required=True, metavar="AGE", help="How long ago it must have ended: 30d, 12h. At least 1h.")
@click.option("--task-type", "--type", "task_types", multiple=True, metavar="T", help="Only tasks of this type. Repeatable.")
@click.option("--with-unexported", is_flag=True, help="Also accepted results that have yet to be written back to their table.")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def prune(older_than: str, task_types: Sequence[str], with_unexported: bool, dry_run: bool, as_json: bool) -> None:
    """Delete tasks that ended long ago with their items, attempts and files; and old rows of workers, charts, logins and runs.

    In small transactions with pauses, so that workers go on; safe to cut short, to repeat, and to run twice at once.

    Open tasks stay, and so do those that another task waits for, those of a group that has not ended, and imported ones whose
    accepted results were not written back. What each day has cost stays for good.
    """
    seconds = seconds_of(older_than, "--older-than", "")
    if seconds < SHORTEST_AGE:
        raise UsageError(f"--older-than {older_than}: workers may still need what ended in the last hour; write it as 30d, 12h")
    found = context.settings()
    with context.database(found) as db:
        tell = _progress()
        try:
            pruned = Pruning(db, found.files_folder, told=tell).run(
                seconds, task_types=task_types, with_unexported=with_unexported, dry_run=dry_run
            )
        finally:
            tell(None)
    if as_json:
        context.emit_json(
            {
                "dry_run": dry_run,
                "deleted": {table: count for table, count in sorted(pruned.rows.items()) if count},
                "kept": {reason.replace(" ", "_"): tasks for reason, tasks in pruned.kept.items()},
                "files": {"removed": pruned.files_removed, "missing": pruned.files_missing, "left": pruned.files_left},
            }
        )
    else:
        _show(pruned, dry_run)


def _show(pruned: Pruned, dry_run: bool) -> None:
    rows = [(table, formats.number(count)) for table, count in sorted(pruned.rows.items()) if count]
    if rows:
        context.emit_table(("table", "would be deleted" if dry_run else "deleted"), rows, right=(1,))
    else:
        click.echo("nothing that old")
    for reason, tasks in sorted(pruned.kept.items()):
        names = ", ".join(map(str, tasks[:_SHOWN])) + (", …" if len(tasks) > _SHOWN else "")
        remedy = "; `ai-worker export` writes them, --with-unexported deletes them" if reason == NOT_EXPORTED else ""
        click.echo(f"kept: {_tasks(len(tasks))} {reason} ({names}){remedy}")
    if pruned.files_removed:
        click.echo(f"files deleted in the folder: {formats.number(pruned.files_removed)}")
    if pruned.files_missing:
        click.echo(f"files that were not in the folder of this host: {formats.number(pruned.files_missing)}")
    if pruned.files_left:
        click.echo(
            f"files left in a folder that this host does not know: {formats.number(pruned.files_left)}; "
            "set AI_WORKER_FILES_FOLDER where prune runs"
        )


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{formats.number(count)} tasks"


def _progress() -> Callable[[Pruned | None], None]:
    """Shows how far it is: a line that is drawn anew on a terminal, else one per interval; None ends it. On standard error."""
    on_terminal = sys.stderr.isatty()
    shown = time.monotonic()

    def tell(pruned: Pruned | None) -> None:
        nonlocal shown
        now = time.monotonic()
        if pruned is None:
            if on_terminal:
                click.echo("\r\x1b[K", nl=False, err=True)
        elif now - shown >= (0.2 if on_terminal else _INTERVAL):
            shown = now
            total = formats.number(sum(pruned.rows.values()))
            text = f"{_tasks(pruned.rows['task'])}, {formats.number(pruned.rows['task_item'])} items, {total} rows in all"
            click.echo(f"\r\x1b[K{text}" if on_terminal else text, nl=not on_terminal, err=True)

    return tell
