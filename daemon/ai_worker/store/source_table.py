"""A table of somebody else's, on any server: its rows are read, and one column of them is written.

Names of the table and its columns are the caller's; they reach the statements as `Identifier`, never as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any, Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import ConfigurationError, DatabaseError, UsageError
from ai_worker.literals import Identifier, Identifiers, OperatorsSql
from ai_worker.store.new_tasks import NewItem, fits

LONGEST_KEY: Final = 190  # characters of task_item.external_key and context_key
LONGEST_TEXT: Final = 16_777_215  # bytes of task_item.text_original

_PAGE_ROWS: Final = 1000
_PAGE_BYTES: Final = 4_000_000  # of text in one page, but for a single row

_INTEGERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_STRINGS: Final = frozenset({"char", "varchar"})
_BYTES: Final = frozenset({"binary", "varbinary"})
_TEXTS: Final = _STRINGS | {"tinytext", "text", "mediumtext", "longtext"}
# What goes along as context: nothing that could be large, or has no form in JSON.
_SMALL: Final = (
    _INTEGERS
    | _STRINGS
    | {"tinytext", "text", "decimal", "float", "double", "enum", "set", "date", "datetime", "timestamp", "time", "year", "json"}
)
_MAY_BE_TOO_LONG: Final = frozenset({"mediumtext", "longtext"})
_DENIED: Final = frozenset({1044, 1142, 1143})
_WRONG_SQL: Final = frozenset({1054, 1064, 1305, 1630})  # a name or the syntax
_NO_TABLE: Final = 1146

_TABLE = re.compile(r"(`(?:[^`]|``)+`|[^.`]+)(?:\.(`(?:[^`]|``)+`|[^.`]+))?")


class ExportOutcome(StrEnum):
    """What became of a row; `task_item_export.outcome`, but for EXPIRED, which leaves none."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"  # there is nothing to write
    CONFLICT = "conflict"  # it does not hold the text that it must
    MISSING = "missing"
    FAILED = "failed"  # its server refused it
    EXPIRED = "expired"  # the result's time to live was over before it was exported


@dataclass(frozen=True, slots=True)
class Columns:
    """Which table, and which of its columns. `table` may name its database before a dot, and may stand in backticks.

    `key` None means the primary key, which must then be of one column. `context` are columns that go along with an item,
    `context_key` the one that says whom it is about.
    """

    table: str
    key: str | None
    text: str
    context: tuple[str, ...] = ()
    context_key: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of a table as items, and how many had no text; `through` is the key of the last row of both."""

    items: list[NewItem] = field(default_factory=list)
    skipped: int = 0
    through: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A text for the row of a key. `before` and `after` are SHA-256 of the text that the row must hold, and of `text`."""

    key: str
    text: str
    before: bytes
    after: bytes


class SourceTable:
    """A table, its columns looked up. Made by `look_up`."""

    def __init__(self, db: Database, schema: str, table: str, key: str, columns: Columns, types: dict[str, Row]) -> None:
        self._db = db
        self.schema = schema
        self.table = table
        self.key = key
        self.columns = columns
        self._types = types
        self._names = {
            "schema": Identifier(schema),
            "table": Identifier(table),
            "key": Identifier(key),
            "text": Identifier(columns.text),
        }

    @classmethod
    def look_up(cls, db: Database, columns: Columns) -> SourceTable:
        """Finds the table and its columns. Raises UsageError when one is not there, or is none that can be worked with."""
        match = _TABLE.fullmatch(columns.table.strip())
        if match is None:
            raise UsageError(f"{columns.table!r} is no name of a table; write table, database.table or `database`.`table`")
        *schemas, table = [_unquoted(part) for part in match.groups() if part is not None]
        schema = schemas[0] if schemas else db.url.database
        named = {"schema_name": schema, "table_name": table}
        found = {row["name"].casefold(): row for row in db.query("source_columns", named)}
        if not found:
            raise UsageError(f"{schema}.{table}: there is no such table on {db.url}, or this user has no rights on it")

        def column(name: str) -> Row:
            if name.casefold() not in found:
                raise UsageError(f"{schema}.{table} has no column {name!r}, or this user may not read it")
            return found[name.casefold()]

        primary = [row["name"] for row in found.values() if row["role"] == "PRI"]
        key = columns.key if columns.key is not None or len(primary) != 1 else primary[0]
        if key is None:
            parts = f"its primary key has several columns ({', '.join(primary)})" if primary else "it has no primary key"
            raise UsageError(f"{schema}.{table}: {parts}; name a column that is unique by itself with --key-column")
        types = {name: column(name) for name in (key, columns.text, *columns.context)}
        if columns.context_key is not None:
            types[columns.context_key] = column(columns.context_key)
        source = cls(db, schema, table, key, columns, types)
        source._refuse_types()
        if not db.query("source_unique_key", {**named, "key_name": types[key]["name"]}):
            raise UsageError(f"{source}: the key {key!r} must be unique by itself, and no index of the table says that it is")
        return source

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def qualified(self) -> str:
        """The table with its database, as `Columns.table` takes it."""
        return ".".join(
            "`" + part.replace("`", "``") + "`" if re.search(r"[.`\s]", part) else part for part in (self.schema, self.table)
        )

    def _refuse_types(self) -> None:
        key, text = self._types[self.key], self._types[self.columns.text]
        if key["type"] not in _INTEGERS | _STRINGS | _BYTES:
            raise UsageError(
                f"{self}: the key {key['name']!r} is of the type {key['type']}; it must be a whole number, CHAR or BINARY"
            )
        if key["nullable"] == "YES":
            raise UsageError(f"{self}: the key {key['name']!r} may be NULL; it must be NOT NULL")
        if key["type"] in _BYTES and key["length"] * 2 > LONGEST_KEY:
            raise UsageError(f"{self}: the key {key['name']!r} has {key['length']} bytes; {LONGEST_KEY // 2} are the most")
        if text["type"] not in _TEXTS:
            raise UsageError(
                f"{self}: the column {text['name']!r} is of the type {text['type']}; it must be CHAR, VARCHAR or a TEXT"
            )
        if text["name"] == key["name"]:
            raise UsageError(f"{self}: {text['name']!r} cannot be both the key and the text")
        for name in self.columns.context:
            if (kind := self._types[name]["type"]) not in _SMALL:
                remedy = "; MariaDB keeps JSON so: a generated column of what is needed will do" if kind == "longtext" else ""
                raise UsageError(f"{self}: the column {name!r} is of the type {kind}, which cannot go along as context{remedy}")
        for name in self._context_key():
            if self._types[name]["type"] not in _INTEGERS | _STRINGS:
                kind = self._types[name]["type"]
                raise UsageError(f"{self}: the context key {name!r} must be a whole number or CHAR, not {kind}")

    # ----- read

    def check(self, where: str | None, packet: int) -> None:
        """Finds out before anything is made whether the rows can be read, and their keys and texts kept.

        `where` is SQL of the operator's own. Raises UsageError in the server's own words, ConfigurationError for a missing right.
        """
        key, text = self._types[self.key], self._types[self.columns.text]
        values = {**self._names, **_where(where)}
        try:
            self._db.query("source_try", values)
            self._db.query("source_try_clause", values)
            if key["type"] in _STRINGS and key["length"] > LONGEST_KEY:
                for row in self._db.query("source_long_key", {**values, "longest": LONGEST_KEY}):
                    raise UsageError(f"{self}: the key {row['k'][:40]!r}… is longer than {LONGEST_KEY} characters")
            if text["type"] in _MAY_BE_TOO_LONG or packet < 1_000_000:
                longest = min(LONGEST_TEXT, packet)
                for row in self._db.query("source_long_text", {**values, "longest": longest}):
                    raise self._too_long(self._text_of(row["k"]), row["size"], longest)
        except DatabaseError as error:
            raise self._explained(error, "SELECT", where) from None

    def pages(self, where: str | None, after: str | None, packet: int) -> Iterator[Page]:
        """The rows behind the key `after`, in the order of the key: each page two short SELECTs without locks.

        What is inserted meanwhile behind the page just read is in, the rest is not.
        """
        value = None if after is None else self.key_value(after)
        extra = Identifiers(self._types[name]["name"] for name in (*self.columns.context, *self._context_key()))
        values = {**self._names, **_where(where), "extra": Identifiers((self.key, *extra))}
        try:
            while sizes := self._db.query("source_sizes", {**values, "after": value, "size": _PAGE_ROWS}):
                total = 0
                for row in sizes:
                    total += row["size"]
                    last = row["k"]
                    if total >= _PAGE_BYTES:
                        break
                rows = self._db.query("source_page", {**values, "after": value, "last": last, "size": _PAGE_ROWS})
                if rows:  # deleted meanwhile, otherwise
                    yield self._page(rows, packet)
                value = last
        except DatabaseError as error:
            raise self._explained(error, "SELECT", where) from None

    def _context_key(self) -> tuple[str, ...]:
        return () if self.columns.context_key is None else (self.columns.context_key,)

    def _page(self, rows: Sequence[Row], packet: int) -> Page:
        items = []
        for row in rows:
            text, key = row["source_text"], self._text_of(row["source_key"])
            if text is None or not text.strip():
                continue
            size = len(text.encode("utf-8"))
            if size > LONGEST_TEXT or not fits(text, size, packet):
                raise self._too_long(key, size, min(LONGEST_TEXT, packet))
            context = {name: _plain(self._types[name]["type"], row[self._types[name]["name"]]) for name in self.columns.context}
            about = None
            for name in self._context_key():
                value = row[self._types[name]["name"]]
                about = None if value is None else str(value)
                if about is not None and len(about) > LONGEST_KEY:
                    raise UsageError(f"{self}: the context key of the row {key} is longer than {LONGEST_KEY} characters")
            items.append(NewItem(text, key, json.dumps(context, ensure_ascii=False) if context else None, about))
        keys = [row["source_key"] for row in rows]
        if len(set(keys)) < len(keys):  # who may see only some columns of an index cannot see that it has others
            raise UsageError(f"{self}: the key {self.key!r} is not unique")
        return Page(items, len(rows) - len(items), self._text_of(keys[-1]))

    def _too_long(self, key: str, size: int, longest: int) -> UsageError:
        return UsageError(
            f"{self}: the text of the row {key} has {size:,} bytes, and at most {longest:,} can be kept; "
            "leave it out by --where, or split it"
        )

    # ----- keys

    def _text_of(self, value: Any) -> str:
        return value.hex() if isinstance(value, bytes) else str(value)

    def key_value(self, text: str) -> int | str | bytes | None:
        """A key as it stands in the table, of what is kept of it as text; None for what cannot be a key of this table."""
        kind = self._types[self.key]["type"]
        if kind in _INTEGERS:
            return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None
        if kind in _BYTES:
            return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9a-f]{2})*", text) else None
        return text

    # ----- write

    def write(self, changes: Sequence[Change]) -> list[tuple[ExportOutcome, str | None]]:
        """Writes texts in one transaction, each guarded by the text that its row must hold; what became of each, and why not.

        A row that holds the new text already was written by a run that was killed before it could say so: it counts as written,
        and is not written again. A row that its server refuses does not keep the others from being written.
        """
        try:
            return self._db.transaction(partial(self._write, changes))
        except DatabaseError as error:
            raise self._explained(error, f"UPDATE ({self.columns.text})", None) from None

    def _write(self, changes: Sequence[Change], tx: Transaction) -> list[tuple[ExportOutcome, str | None]]:
        outcomes: list[tuple[ExportOutcome, str | None]] = []
        for change in changes:
            values = {
                **self._names,
                "value": self.key_value(change.key),
                "after_text": change.text,
                "before": change.before.hex(),
            }
            written = 0 if values["value"] is None else tx.attempt("source_update", values)
            if isinstance(written, DatabaseError):
                outcomes.append((ExportOutcome.FAILED, str(written)))
            elif written > 1:
                raise UsageError(f"{self}: the key {change.key} is not unique; nothing was written to its rows")
            elif written:
                outcomes.append((ExportOutcome.WRITTEN, None))
            else:
                outcomes.append(
                    (self._standing(change, tx.query("source_hash", values) if values["value"] is not None else []), None)
                )
        return outcomes

    def foretell(self, changes: Sequence[Change]) -> list[tuple[ExportOutcome, str | None]]:
        """What `write` would do, as far as that can be known without doing it."""
        outcomes: list[tuple[ExportOutcome, str | None]] = []
        try:
            for change in changes:
                value = self.key_value(change.key)
                rows = [] if value is None else self._db.query("source_hash", {**self._names, "value": value})
                is_as_it_was = bool(rows) and rows[0]["hash"] == change.before.hex()
                outcomes.append((ExportOutcome.WRITTEN if is_as_it_was else self._standing(change, rows), None))
        except DatabaseError as error:
            raise self._explained(error, "SELECT", None) from None
        return outcomes

    @staticmethod
    def _standing(change: Change, rows: Sequence[Row]) -> ExportOutcome:
        if not rows:
            return ExportOutcome.MISSING
        return ExportOutcome.WRITTEN if rows[0]["hash"] == change.after.hex() else ExportOutcome.CONFLICT

    def _explained(self, error: DatabaseError, right: str, where: str | None) -> Exception:
        if error.code in _DENIED:
            user = self._db.url.user
            return ConfigurationError(f"{self}: {error}; `GRANT {right} ON {self.qualified} TO {user}@…` gives {user} the right")
        if error.code == _NO_TABLE or (error.code in _WRONG_SQL and where is None):
            return UsageError(f"{self}: {error}")
        return UsageError(f"--where {where!r}: {error}") if error.code in _WRONG_SQL else error


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`") if name.startswith("`") else name.strip()


def _where(clause: str | None) -> dict[str, OperatorsSql]:
    return {"where": OperatorsSql(clause or "1 = 1")}


def _plain(kind: str, value: Any) -> Any:
    """A column's value in JSON; decimals as text, for their digits."""
    if kind == "json" and isinstance(value, str):
        return json.loads(value)
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, date | datetime) else str(value)
