"""The schema: which migrations there are, which ones the database has, and how it gets the others.

A migration is a file sql/migrations/NNNN_name.sql that a DBA may as well apply with the plain `mysql` client: its last statement
enters it into `schema_migration`. DDL commits by itself, so every statement may be repeated; one that was cut short is
simply run again from its start. A migration is never changed once it was applied anywhere: its checksum is kept with it.

Migrations only add, so that programs written for an earlier schema go on beside later ones. One that takes something away says
in a line at its top for which schema a program must have been written at least: `-- compatible from: 7`. That is kept in the
database, for programs that do not have the file.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ai_worker.db import Database, Row, Transaction, sql_folder
from ai_worker.errors import ConfigurationError, DatabaseError, SchemaMismatch

# Seconds. A host that finds another one at work waits for it, in slices well below the connection's read time-out.
LOCK_PATIENCE = 1800.0
STATEMENT_PATIENCE = 86400.0
_LOCK_SLICE = 10

# A DDL statement that waits for a table holds up everybody who comes after it: give way often, and try again.
_SESSION = "SET SESSION lock_wait_timeout = 15"
# One lock per database, of all those on the server. Lock names have at most 64 characters; MySQL 9.6 dropped MD5 and SHA1.
_LOCK = f"SELECT GET_LOCK(CONCAT('ai_worker_migrate_', LEFT(SHA2(DATABASE(), 256), 32)), {_LOCK_SLICE}) AS got"
# All columns: `compatible_from` has been there since 0004.
_APPLIED = "SELECT * FROM schema_migration ORDER BY version"

# What a server without named locks says: Percona XtraDB Cluster in its strict mode, MariaDB 10.6.13 on Galera, a proxy.
_NO_LOCKS = frozenset({1105, 1235, 1305})
# Somebody else made it between our look and our statement: a table, a column, a key, a row, a constraint; or took it away.
_MADE_MEANWHILE = frozenset({1050, 1060, 1061, 1062, 1091, 1826, 3822})
_RACES = 20

_NO_SUCH_DATABASE = 1049
_NO_SUCH_TABLE = 1146
_DENIED = frozenset({1044, 1142, 1143, 1227, 1370, 1410})
_RIGHTS = "CREATE, ALTER, DROP, INDEX, REFERENCES, SELECT, INSERT, UPDATE, DELETE"

_COMPATIBLE = re.compile(r"^-- compatible from:(.*)$", re.MULTILINE)

# The pieces of an SQL text, so that a semicolon inside of a string, a name or a comment does not end a statement.
_TOKEN = re.compile(
    r"""(?P<comment>--(?=\s|\Z)[^\n]*|\#[^\n]*|/\*(?!!).*?\*/)
      | (?P<end>;)
      | '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `[^`]*` | [^'"`;\#/-]+ | .""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations. `checksum` is the SHA-256 of its text with `\\n` line ends, in hex.

    `compatible_from`: programs written for the schema of this version, or a later one, can work with what it makes.
    """

    version: int
    name: str
    text: str
    compatible_from: int = 1

    @property
    def label(self) -> str:
        return f"{self.version:04}_{self.name}"

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations(folder: Path | None = None) -> list[Migration]:
    """The migrations that this version brings, in order; from sql/migrations unless another folder is named."""
    folder = folder or sql_folder() / "migrations"
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise ConfigurationError(f"{path}: migrations are named NNNN_name.sql and numbered 0001, 0002, … without a gap")
        text = path.read_text(encoding="utf-8")  # reads \r\n as \n
        found.append(Migration(int(match[1]), match[2], text, _compatible_from(path, text, int(match[1]))))
    if not found:
        raise ConfigurationError(f"no migrations in {folder}: the installation is incomplete")
    return found


def _compatible_from(path: Path, text: str, version: int) -> int:
    declared = _COMPATIBLE.findall(text)
    if not declared:
        return 1
    number = declared[0].strip()
    if len(declared) > 1 or not (number.isascii() and number.isdigit() and 0 < int(number) <= version):
        raise ConfigurationError(f"{path}: `-- compatible from: N` stands once, and N is the number of a schema up to {version}")
    return int(number)


def split(text: str) -> list[str]:
    """The statements of an SQL text, without comments and without the semicolons between them."""
    statements = [""]
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "end":
            statements.append("")
        elif token.lastgroup != "comment":
            statements[-1] += token[0]
    return [stripped for statement in statements if (stripped := statement.strip())]


def check(db: Database, folder: Path | None = None) -> int:
    """The version of the database's schema: the one that this version of AI Worker was written for, or a later one that it can
    work with.

    Raises SchemaMismatch when it cannot: where the schema is older, newer and not compatible, or made by another text of a
    migration.
    """
    known = migrations(folder)
    try:
        applied = db.transaction(_applied)
    except DatabaseError as error:
        raise _explained(error, db) from error
    pending = _pending(known, applied)
    if pending:
        have = pending[0].version - 1
        state = f"is at version {have}" if have else "is not there yet"
        raise SchemaMismatch(f"the schema in {db.url} {state}, this version needs {known[-1].version}: run `ai-worker migrate`")
    return _newest(applied)


def migrate(db: Database, folder: Path | None = None) -> list[str]:
    """Brings the schema up to date and returns what it applied, as in `["0001_core"]`; makes the database where there is none.

    May be called by any number of hosts at once: one does the work, the others wait and find it done. On the nodes of a cluster,
    whose named locks hold on one node or are refused, several may be at work: each statement may be repeated, and whoever finds
    that another one was quicker looks again. Raises SchemaMismatch
    when the database is ahead and not compatible, or holds another text of a migration, ConfigurationError when the user may
    not change the schema, DatabaseAway when the server cannot be reached or the lock is not to be had.
    """
    known = migrations(folder)

    done: dict[str, None] = {}  # in order; survives a repeat

    def work(transaction: Transaction) -> None:
        transaction.raw(_SESSION)
        _lock(transaction, db)
        applied = _applied(transaction)
        pending = _pending(known, applied)
        for migration in pending:
            for statement in split(migration.text):
                transaction.raw(statement)
            done[migration.label] = None
        unsigned = {row["version"] for row in applied if row["checksum"] is None} | {each.version for each in pending}
        for migration in known:
            if migration.version in unsigned:
                transaction.raw(_sign(migration))

    # A connection of its own, whose end frees the lock, and with time for statements that rebuild a large table.
    own = Database(replace(db.url, read_timeout=max(db.url.read_timeout, STATEMENT_PATIENCE)), patience=db.patience)
    try:
        _connect_or_create(own)
        _among_others(own, work)
        return list(done)
    except DatabaseError as error:
        raise _explained(error, db) from error
    finally:
        own.close()


def _connect_or_create(db: Database) -> None:
    try:
        db.connect()
    except DatabaseError as error:
        if error.code != _NO_SUCH_DATABASE:
            raise
        name = "`" + db.url.database.replace("`", "``") + "`"
        statement = f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4"
        server = Database(replace(db.url, database=""), patience=db.patience)
        try:
            server.transaction(lambda transaction: transaction.raw(statement))
        except DatabaseError as refusal:
            if refusal.code not in _DENIED:
                raise
            raise ConfigurationError(
                f"there is no database {db.url.database}, and {db.url.user} may not create it; have a DBA run: {statement};"
            ) from refusal
        finally:
            server.close()


def _among_others(db: Database, work: Callable[[Transaction], None]) -> None:
    """Runs `work` again where one that no lock keeps out has changed the schema between a look and the change that came of it."""
    for left in reversed(range(_RACES)):
        try:
            db.transaction(work)
        except DatabaseError as error:
            if error.code not in _MADE_MEANWHILE or not left:
                raise
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 -- jitter
        else:
            return


def _lock(transaction: Transaction, db: Database) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            if transaction.raw(_LOCK)[0]["got"] == 1:
                return
        except Exception as error:  # the driver's, by its number: its name is known to db alone
            if error.args[:1] and error.args[0] in _NO_LOCKS:
                return
            raise
        if time.monotonic() > deadline:
            raise DatabaseError(f"another process has been migrating {db.url} for {LOCK_PATIENCE / 60:.0f} minutes; is it stuck?")


def _applied(transaction: Transaction) -> list[Row]:
    try:
        return transaction.raw(_APPLIED)
    except Exception as error:  # the driver's, by its number: its name is known to db alone
        if error.args[:1] == (_NO_SUCH_TABLE,):
            return []
        raise


def _pending(known: list[Migration], applied: list[Row]) -> list[Migration]:
    """The migrations still to be applied. Raises SchemaMismatch when the database has some that are not ours and that we cannot
    work with."""
    ours = known[-1].version
    # A row without the column comes from a time when nobody could say so.
    needed = max((int(row.get("compatible_from") or row["version"]) for row in applied if row["version"] > ours), default=0)
    if needed > ours:
        raise SchemaMismatch(
            f"this version knows schema {ours}, the database has {_newest(applied)}, where programs for schema {needed} or later"
            " can work: upgrade ai-worker"
        )
    by_version = {row["version"]: row for row in applied}
    for migration in known:
        row = by_version.get(migration.version)
        if row and (row["name"] != migration.name or row["checksum"] not in (None, migration.checksum)):
            raise SchemaMismatch(
                f"the database was made with another text of migration {row['version']:04}_{row['name']} than "
                f"sql/migrations/{migration.label}.sql of this version; a migration is never changed after its release"
            )
    return [migration for migration in known if migration.version not in by_version]


def _newest(applied: list[Row]) -> int:
    return max((row["version"] for row in applied), default=0)


def _sign(migration: Migration) -> str:
    compatible = f", compatible_from = {migration.compatible_from}" if migration.compatible_from > 1 else ""
    return (
        f"UPDATE schema_migration SET checksum = '{migration.checksum}'{compatible} "  # noqa: S608 -- hex digits and numbers
        f"WHERE version = {migration.version} AND checksum IS NULL"
    )


def _explained(error: DatabaseError, db: Database) -> Exception:
    if error.code not in _DENIED:
        return error
    return ConfigurationError(
        f"{error}. Run `ai-worker migrate` as a user that has {_RIGHTS} on {db.url.database}, "
        "or have a DBA apply the files of sql/migrations with the mysql client"
    )
