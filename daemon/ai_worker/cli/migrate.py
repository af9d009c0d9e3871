"""`ai-worker migrate`: brings the schema up to date, or says whether it is."""

from __future__ import annotations

import click

from ai_worker.cli import context
from ai_worker.errors import EXIT_CONFIGURATION, EXIT_DONE, SchemaMismatch


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the schema fits this version; exit with 78 when it does not.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def migrate(check: bool, as_json: bool) -> int:
    """Create the tables, or bring them up to date; make the database too where there is none.

    A database that is ahead of this version fits, too, as long as what came since only added to it.

    Safe while workers run, and when many hosts start at once: one does the work, the others wait. Needs a user that may change
    the schema; a DBA may as well apply the files of sql/migrations with the mysql client.
    """
    from ai_worker import migrate as schema  # the driver: not for --help

    needed = schema.migrations()[-1].version
    with context.database(check=False) as db:
        applied = [] if check else schema.migrate(db)
        try:
            version: int | None = schema.check(db)
        except SchemaMismatch:
            if not as_json:
                raise
            version = None
    if as_json:
        context.emit_json({"version": version, "needed": needed, "applied": applied})
    elif applied:
        for label in applied:
            click.echo(f"applied {label}")
    elif version is not None and version > needed:
        click.echo(f"schema is newer ({version}) than this version of ai-worker ({needed}), which can work with it")
    else:
        click.echo(f"schema is up to date ({version})")
    return EXIT_CONFIGURATION if version is None else EXIT_DONE
