"""The statements of one transaction."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pymysql
import pymysql.cursors

from ai_worker.db.failures import CONFLICT, HOPELESS, LOST, TROUBLED, code_of, message_of
from ai_worker.db.statements import around_values, statements
from ai_worker.errors import DatabaseError, ValueRefused
from ai_worker.literals import literals, row_of_literals

Row = dict[str, Any]
Parameters = Mapping[str, Any]

_STATEMENT_CHARACTERS: Final = (
    1_000_000  # of one statement of many rows; at four bytes each still well below the smallest packet in use
)


class Transaction:
    """Statements of one transaction. Valid only in the thread and during the call that it was made for."""

    def __init__(self, connection: Any, max_packet: int, in_doubt: bool) -> None:
        self._connection: Any = connection
        self._thread = threading.get_ident()
        self._max_packet = max_packet
        self.in_doubt: Final = in_doubt

    @property
    def max_packet(self) -> int:
        """The server's max_allowed_packet: the longest statement that it takes, and the longest value that it makes, in bytes."""
        return self._max_packet

    def query(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """The rows of a named SELECT."""
        rows: list[Row] = list(self._run(name, parameters).fetchall())
        return rows

    def tuples(self, name: str, parameters: Parameters | None = None) -> Sequence[tuple[Any, ...]]:
        """The same as tuples, in the order of the columns: for many rows at a time."""
        rows: Sequence[tuple[Any, ...]] = self._run(name, parameters, pymysql.cursors.Cursor).fetchall()
        return rows

    def execute(self, name: str, parameters: Parameters | None = None) -> int:
        """Runs a named statement; the number of rows that it matched (not: changed)."""
        count: int = self._run(name, parameters).rowcount
        return count

    def execute_many(self, name: str, rows: Sequence[Parameters | Sequence[Any]]) -> int:
        """A named statement with a line `VALUES (…)`, for many rows, sent as few long statements; how many rows it matched.

        The rows are mappings where the line's placeholders have names, sequences where they have none.
        """
        cursor = self._cursor()
        before, template, after = around_values(name)
        texts = [template % (literals(row) if isinstance(row, Mapping) else row_of_literals(row)) for row in rows]
        count = start = size = 0
        for end, text in enumerate(texts, 1):
            size += len(text)
            if end == len(texts) or size + len(texts[end]) > _STATEMENT_CHARACTERS:
                sql = f"{before}VALUES {','.join(texts[start:end])}{after}"
                self._refuse_too_long(name, sql)
                cursor.execute(sql)
                count += cursor.rowcount
                start, size = end, 0
        return count

    def insert(self, name: str, parameters: Parameters | None = None) -> int:
        """Runs a named INSERT of one row; the AUTO_INCREMENT value it was given."""
        key: int = self._run(name, parameters).lastrowid
        return key

    def execute_for_id(self, name: str, parameters: Parameters | None = None) -> tuple[int, int]:
        """Runs a named UPDATE; the number of rows that it matched, and the value that it gave to LAST_INSERT_ID(…)."""
        cursor = self._run(name, parameters)
        return cursor.rowcount, cursor.lastrowid

    def attempt(self, name: str, parameters: Parameters) -> int | DatabaseError:
        """Runs a named statement on one row; the number of rows that it matched, or why the server does not take this row.

        For tables of others, whose triggers and constraints may refuse anything: the transaction goes on. What no other row would
        fare better with is raised: a right that is missing, a table or a column that is not there.
        """
        try:
            return self.execute(name, parameters)
        except ValueRefused as error:
            return error
        except pymysql.err.Error as error:
            code = code_of(error)
            if code in LOST | CONFLICT | TROUBLED | HOPELESS:
                raise
            return DatabaseError(message_of(error), code)

    def raw(self, sql: str) -> list[Row]:
        """Runs a statement given as text: for migrations and for EXPLAIN only."""
        cursor = self._cursor()
        cursor.execute(sql)
        rows: list[Row] = list(cursor.fetchall())
        return rows

    def _cursor(self, kind: type[pymysql.cursors.Cursor] | None = None) -> Any:
        if self._connection is None:
            raise RuntimeError("the transaction is over")
        if self._thread != threading.get_ident():
            raise RuntimeError("a transaction belongs to the thread that began it")
        return self._connection.cursor(kind)

    def _run(self, name: str, parameters: Parameters | None, kind: type[pymysql.cursors.Cursor] | None = None) -> Any:
        cursor = self._cursor(kind)
        sql = statements()[name] % literals(parameters or {})
        self._refuse_too_long(name, sql)
        cursor.execute(sql)
        return cursor

    def _refuse_too_long(self, name: str, sql: str) -> None:
        """A statement that is too long is answered by a closed connection, which looks like a network fault and is retried."""
        if len(sql) * 4 > self._max_packet and len(sql.encode("utf-8", "surrogatepass")) > self._max_packet:
            raise ValueRefused(
                f"the statement {name} is larger than the server's max_allowed_packet ({self._max_packet} bytes)", 1153
            )

    def end(self) -> None:
        """No statement more: whoever has kept it meanwhile is told so."""
        self._connection = None
