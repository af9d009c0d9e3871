"""What the commands share: settings, log, database and keys put together, and the few ways in which they print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from ai_worker import formats, log
from ai_worker.cli.secrecy import keep_memory_private
from ai_worker.config import Settings, load_settings
from ai_worker.database_url import parse_database_url
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.models import Secret

if TYPE_CHECKING:
    from pydantic import SecretStr

    from ai_worker.db import Database
    from ai_worker.keys import Keyring
    from ai_worker.library import Library


def settings() -> Settings:
    """The settings, with the log set up as they say. Every command that does more than print begins with this."""
    keep_memory_private()  # before there is a secret in it that the environment does not hold
    found = load_settings()
    log.configure(found.log_level, found.log_format, found.log_sample)
    return found


@contextmanager
def database(found: Settings | None = None, *, patience: float = 10.0, check: bool = True) -> Iterator[Database]:
    """The database of the settings, closed at the end; a private server (`embedded://`) runs as long as it is needed.

    `patience` is how many seconds to wait for a server that is away. Unless `check` is False, raises SchemaMismatch when the
    schema is not one that this version can work with.
    """
    from ai_worker.db import Database  # the driver and its cryptography: not for commands that need no database

    url = (found or settings()).database_url()
    with ExitStack() as stack:
        if url.scheme == "embedded" and url.path is not None:
            from ai_worker.embedded import running

            url = parse_database_url(stack.enter_context(running(url.path)))
        db = Database(url, patience=patience)
        stack.callback(db.close)
        if check:
            from ai_worker import migrate

            migrate.check(db)
        yield db


def library(found: Settings, db: Database, *, publish: bool = True) -> Library:
    """The task types that this host and the database know. Unless `publish` is False, what this host brings is made known to all,
    where its database user may do so: a worker does it anyway when it starts.
    """
    from ai_worker.library import Library
    from ai_worker.store.prompts import Prompts

    library = Library(Prompts(db), found.prompt_folder, names_file=found.personal_names_file)
    try:
        library.open(publish=publish)
    except DatabaseAway:
        raise
    except DatabaseError:
        library.open(publish=False)
    return library


def keyring(found: Settings, old_keys: Sequence[Secret] = ()) -> Keyring:
    """The keys of the settings; `old_keys` are read too. Raises ConfigurationError when one of them cannot be a key."""
    from ai_worker.keys import Keyring

    old = _secret(found.master_key_old)
    return Keyring(_secret(found.master_key), [*old_keys, *([old] if old else [])], _secret(found.legacy_aes_key))


def _secret(value: SecretStr | None) -> Secret | None:
    return None if value is None else Secret(value.get_secret_value())


def emit_json(value: object) -> None:
    """One JSON document on one line of standard output. Decimals are strings, times ISO 8601 in UTC."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return formats.iso(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def emit_table(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Columns as wide as they must be; those numbered in `right` are aligned to the right. None shows as a dash."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headings, *cells, strict=True)]
    for number, line in enumerate((list(headings), *cells)):
        padded = []
        for column, cell in enumerate(line):
            space = " " * (widths[column] - _width(cell))
            padded.append(space + cell if column in right else cell + space)
        text = "  ".join(padded).rstrip()
        click.echo(click.style(text, bold=True) if number == 0 else text)


def _width(text: str) -> int:
    """Cells on a terminal: wide East Asian characters and emoji take two, combining marks none."""
    import unicodedata

    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
