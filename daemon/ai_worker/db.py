"""The database: a small class of our own on PyMySQL. Nothing else imports the driver.

`Database` stands for one logical database that may live on several hosts, of which one accepts writes. It can be used from any
thread: each thread that calls it gets a connection of its own, and a `Transaction` refuses to be used by another thread than
the one that it was made for, after its end, or inside another one.

Statements are the named blocks of sql/queries.sql. A transaction is a function that may be run again from its start: after a
deadlock, a lock time-out, a lost connection, or a COMMIT whose answer was lost. In the last case `Transaction.in_doubt` is true,
and the function has to look first whether its earlier run landed (by `operation_uuid`, claim token or key).
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import pymysql
import pymysql.cursors
from pymysql.constants import CLIENT
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from ai_worker.database_url import DATABASE_SETTING, DatabaseUrl
from ai_worker.errors import DatabaseAway, DatabaseError, DatabaseRefused, ValueRefused
from ai_worker.literals import literals, row_of_literals
from ai_worker.log import Event, Log

T = TypeVar("T")
Row = dict[str, Any]
Parameters = Mapping[str, Any]

log = Log()

# Error numbers: https://dev.mysql.com/doc/mysql-errors/9.0/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-codes/
CONFLICT: Final = frozenset(
    {
        1213,  # deadlock, also a certification failure on Galera
        1205,  # lock wait time-out: rolls back only the statement unless told otherwise, so roll back the whole
        1020,  # MariaDB: row changed since the snapshot
        3101,  # Group Replication: rolled back by the certifier
    }
)
LOST: Final = frozenset(
    {
        0,  # PyMySQL: the connection is closed already
        2002, 2003, 2006, 2013, 2014, 2055,  # the client cannot reach the server, or lost it
        1040, 1203,  # too many connections
        1047,  # Galera: not prepared for queries
        1053, 1077, 1079,  # the server shuts down
        1158, 1159, 1160, 1161,  # network errors as the server saw them
        1290, 1792, 1836,  # read-only: a former primary after a failover
        1927, 3169, 4031,  # the connection was killed, or closed for being idle
    }
)  # fmt: skip
REFUSED: Final = frozenset({1044, 1045, 1049, 1130, 1524, 1698, 2026, 2049, 2054, 2059, 2061, 3118, 3159})

# READ COMMITTED: under REPEATABLE READ, a poll of an empty queue locks the gap and blocks INSERTs.
# The lock wait is short because every transaction here is short; waiting longer only hides a conflict.
SESSION: Final = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 5, "
    "sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
)
WRITABLE: Final = "SELECT CAST(@@GLOBAL.read_only AS CHAR), CAST(@@GLOBAL.innodb_read_only AS CHAR), @@SESSION.max_allowed_packet"
IS_GALERA: Final = "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON'"
GALERA_STATE: Final = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_local_state_comment')"

VALUE: Final = frozenset(
    {
        1048, 1138,  # NULL
        1153, 1406, 1264, 1690,  # too long, out of range
        1265, 1292, 1366, 1300, 1411,  # of the wrong kind
        1441,  # a time overflows
        1644,  # SIGNAL, of somebody's trigger
        3140, 3141, 3157, 4025, 4038, 3819,  # no JSON, or nested too deep; against a CHECK
    }
)  # fmt: skip

HOPELESS: Final = frozenset({1044, 1142, 1143, 1227, 1370, 1054, 1064, 1146, 1036})  # of no row: rights, names, syntax, read-only

REMEDIES: Final = {
    1044: "this user may not use the database: see sql/grants.sql",
    1045: "check user and password in AI_WORKER_DB_URL",
    1049: "`ai-worker migrate` makes it",
    1698: "check user and password in AI_WORKER_DB_URL",
}

_STATEMENT_CHARACTERS: Final = (
    1_000_000  # of one statement of many rows; at four bytes each still well below the smallest packet in use
)

MAX_CONFLICTS: Final = 20
MAX_LOSSES: Final = 5


def sql_folder() -> Path:
    """The folder with queries.sql and migrations/: inside the installed package, or beside `daemon/` in a checkout."""
    packaged = Path(__file__).parent / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


@cache
def statements() -> Mapping[str, str]:
    """The named statements of sql/queries.sql, without their comments."""
    text = (sql_folder() / "queries.sql").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for block in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, _, body = block.partition("\n")
        lines = (line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--"))
        found[name.strip()] = "\n".join(lines).rstrip().removesuffix(";")
    return found


@cache
def _around_values(name: str) -> tuple[str, str, str]:
    """A named statement: what stands before its line of VALUES, the row in that line, and what stands after it."""
    statement = statements()[name]
    line = re.search(r"^VALUES (.*)$", statement, flags=re.MULTILINE)
    if line is None:
        raise KeyError(f"the statement {name} has no line of VALUES")
    return statement[: line.start()], line[1], statement[line.end() :]


class _ConnectionLostError(Exception):
    """The connection broke before COMMIT was sent: nothing has landed."""


class _CommitLostError(Exception):
    """The connection broke while COMMIT was under way: it may have landed."""


class _ConflictError(Exception):
    """The server chose this transaction as the victim of a conflict."""


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
        before, template, after = _around_values(name)
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
            code = _code(error)
            if code in LOST | CONFLICT | HOPELESS:
                raise
            return DatabaseError(_message(error), code)

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

    def _end(self) -> None:
        self._connection = None


class _Session:
    """One connection, used by one thread."""

    def __init__(self, url: DatabaseUrl, host: tuple[str, int], writable: bool = True) -> None:
        self.host = host
        self.in_transaction = False
        try:
            self.connection: Any = pymysql.connect(**_driver_arguments(url, host))
            with self.connection.cursor(pymysql.cursors.Cursor) as cursor:
                for statement in SESSION:
                    cursor.execute(statement)
                cursor.execute(WRITABLE)
                ((read_only, innodb_read_only, self.max_packet),) = cursor.fetchall()
                if cursor.execute(IS_GALERA):
                    cursor.execute(GALERA_STATE)
                galera = dict(cursor.fetchall())
            # The driver knows no time-out of the handshake alone.
            setattr(self.connection, "_read_timeout", url.read_timeout)  # noqa: B010 -- private to it, and to its type
        except (pymysql.err.Error, OSError) as error:
            raise _translated(error, url, host) from None
        problem = None
        if not writable:
            pass
        elif read_only not in {"0", "OFF"} or innodb_read_only not in {"0", "OFF"}:
            problem = "is read-only"
        elif galera.get("wsrep_ready", "ON") != "ON" or galera.get("wsrep_local_state_comment", "Synced") != "Synced":
            problem = f"is not synced with its cluster ({galera.get('wsrep_local_state_comment')})"
        if problem:
            self.close()
            raise DatabaseAway(f"{_name(host)} {problem}")

    def run(self, work: Callable[[Transaction], T], in_doubt: bool, autocommit: bool) -> T:
        """Runs `work` between BEGIN and COMMIT, or as it is when it is one statement."""
        transaction = Transaction(self.connection, self.max_packet, in_doubt)
        self.in_transaction = True
        committing = autocommit
        try:
            if not autocommit:
                self.connection.begin()
            result = work(transaction)
            if not autocommit:
                committing = True
                self.connection.commit()
        except (pymysql.err.Error, OSError) as error:
            code = _code(error)
            if code in LOST or isinstance(error, OSError):
                self.close()
                raise (_CommitLostError if committing else _ConnectionLostError)(str(error)) from error
            self._rollback()
            if code in CONFLICT:
                raise _ConflictError(str(error)) from error
            raise (ValueRefused if code in VALUE else DatabaseError)(_message(error), code) from error
        except BaseException:
            self._rollback()
            raise
        finally:
            transaction._end()
            self.in_transaction = False
        return result

    def _rollback(self) -> None:
        try:
            self.connection.rollback()
        except (pymysql.err.Error, OSError):
            self.close()  # the server rolls back what it loses

    @property
    def is_open(self) -> bool:
        is_open: bool = self.connection.open
        return is_open

    def interrupt(self) -> None:
        """Ends a wait of another thread for the server's answer: it finds the connection lost."""
        with contextlib.suppress(AttributeError, OSError):  # there is no connection any more
            self.connection._sock.shutdown(socket.SHUT_RDWR)  # the driver offers no other way

    def close(self) -> None:
        with contextlib.suppress(pymysql.err.Error, OSError):  # closed already, by the server or by the network
            self.connection.close()


class Database:
    """A database on one of several hosts.

    Parameters
    ----------
    url: where it is; see `config.parse_database_url`.
    patience: seconds to go on trying when no host can be reached or written to, before `DatabaseAway` is raised. Waiting ends
        at once after `give_up()`.
    writable: whether a host that is read-only, or not synced with its cluster, will not do.
    """

    def __init__(self, url: DatabaseUrl, *, patience: float = 10.0, writable: bool = True) -> None:
        self.url = url
        self._writable = writable
        self.patience = patience
        self._local = threading.local()
        self._sessions: set[_Session] = set()
        self._lock = threading.Lock()
        self._preferred = 0
        self._has_been_in = False
        self._given_up = threading.Event()

    def connect(self) -> None:
        """Connects this thread now instead of at its first statement. Raises DatabaseAway or DatabaseRefused."""
        self._session()

    def query(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """The rows of a named SELECT, outside of any transaction."""
        return self._repeat(lambda statement: statement.query(name, parameters), autocommit=True)

    def execute(self, name: str, parameters: Parameters | None = None) -> int:
        """Runs one named statement as a transaction of its own; it must be safe to repeat. The number of rows it matched."""
        return self._repeat(lambda statement: statement.execute(name, parameters), autocommit=True)

    def execute_for_id(self, name: str, parameters: Parameters | None = None) -> tuple[int, int]:
        """The same with the value that the statement gave to LAST_INSERT_ID(…), 0 where it came to none: an answer of one number,
        from an UPDATE, without a SELECT."""
        return self._repeat(lambda statement: statement.execute_for_id(name, parameters), autocommit=True)

    def execute_many(self, name: str, rows: Sequence[Parameters | Sequence[Any]]) -> int:
        """A named statement for many rows, see `Transaction`: each of its statements a transaction of its own, safe to repeat."""
        return self._repeat(lambda statement: statement.execute_many(name, rows), autocommit=True)

    def pages(self, name: str, parameters: Parameters, *, key: str, size: int = 1000) -> Iterator[Row]:
        """All rows of a named SELECT that goes on after `%(after)s` and stops at `%(size)s`, ordered by the column `key`.

        Streams without a long transaction: each page is a statement of its own.
        """
        after = 0
        while True:
            rows = self.query(name, {**parameters, "after": after, "size": size})
            yield from rows
            if len(rows) < size:
                return
            after = rows[-1][key]

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in one transaction and returns what it returns. `work` may be run several times: see the module's text."""
        return self._repeat(work, autocommit=False)

    def give_up(self) -> None:
        """From now on nobody waits for a database that is away, nor for an answer; callable from any thread."""
        self._given_up.set()
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.interrupt()

    def close(self) -> None:
        """Closes the connections of all threads. Call it when none of them is at work any more."""
        with self._lock:
            sessions, self._sessions = self._sessions, set()
        for session in sessions:
            session.close()

    def _repeat(self, work: Callable[[Transaction], T], *, autocommit: bool) -> T:
        in_doubt = False
        conflicts = losses = 0
        while True:
            session = self._session()
            if session.in_transaction:
                raise RuntimeError("a transaction inside a transaction")
            try:
                return session.run(work, in_doubt, autocommit)
            except (_ConnectionLostError, _CommitLostError) as error:
                if self._given_up.is_set():  # nobody wants the answer any more: it may be `give_up` that broke the connection
                    raise DatabaseAway(f"{_name(session.host)}: given up: {error}") from error
                in_doubt = in_doubt or isinstance(error, _CommitLostError)
                losses += 1
                log(Event.DATABASE_AWAY, host=_name(session.host), reason=str(error), commit_in_doubt=in_doubt)
                if losses >= MAX_LOSSES:
                    raise DatabaseAway(f"{_name(session.host)}: the connection was lost {losses} times: {error}") from error
            except _ConflictError as error:
                conflicts += 1
                log(Event.CONFLICT, attempt=conflicts, reason=str(error))
                if conflicts >= MAX_CONFLICTS:
                    raise DatabaseAway(f"gave up after {conflicts} conflicts: {error}", 1213) from error
                time.sleep(random.uniform(0.0, 0.002 * 2 ** min(conflicts, 7)))  # noqa: S311 -- jitter

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._local, "session", None)
        if session is not None and session.is_open:
            return session
        if session is not None:
            self._forget(session)
        session = self._connect()
        self._local.session = session
        with self._lock:
            self._sessions.add(session)
        return session

    def _forget(self, session: _Session) -> None:
        with self._lock:
            self._sessions.discard(session)
        session.close()

    def _connect(self) -> _Session:
        def note(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                log(Event.DATABASE_AWAY, reason=str(state.outcome.exception()), commit_in_doubt=False)

        retrying = Retrying(
            retry=retry_if_exception_type(DatabaseAway),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            stop=stop_after_delay(self.patience) | stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            before_sleep=note,
            reraise=True,
        )
        session = retrying(self._connect_once)
        if retrying.statistics.get("attempt_number", 1) > 1:
            log(Event.DATABASE_BACK, host=_name(session.host))
        return session

    def _connect_once(self) -> _Session:
        """Tries each host once, beginning with the one that worked last.

        Refused for good is who is refused by all hosts before any has let him in. Later it is a password being changed, or a
        replica being made anew: a worker with results in hand waits for that.
        """
        hosts = self.url.hosts or ((self.url.unix_socket or "localhost", 0),)
        problems: list[DatabaseError] = []
        for step in range(len(hosts)):
            index = (self._preferred + step) % len(hosts)
            try:
                session = _Session(self.url, hosts[index], self._writable)
            except (DatabaseAway, DatabaseRefused) as error:
                problems.append(error)
                continue
            self._preferred = index
            self._has_been_in = True
            return session
        text = "; ".join(map(str, problems))
        if all(isinstance(problem, DatabaseRefused) for problem in problems) and not self._has_been_in:
            raise DatabaseRefused(text, problems[0].code)
        raise DatabaseAway(f"no database server to work with: {text}")


def _driver_arguments(url: DatabaseUrl, host: tuple[str, int]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "user": url.user,
        "password": url.password.reveal().encode(),  # as bytes: PyMySQL would encode a str in Latin-1, which has no ł
        "database": url.database,
        "charset": "utf8mb4",
        "autocommit": True,
        # "matched", not "changed": an UPDATE that changes nothing must not look like a lost lease
        "client_flag": CLIENT.FOUND_ROWS,
        "cursorclass": pymysql.cursors.DictCursor,
        "connect_timeout": url.connect_timeout,
        "read_timeout": url.connect_timeout,  # until the session is set up: nobody can break off a wait before
        "write_timeout": url.write_timeout,
    }
    if url.unix_socket:
        arguments["unix_socket"] = url.unix_socket
    else:
        arguments["host"], arguments["port"] = host
    if url.ssl == "off" or url.unix_socket or (url.ssl == "prefer" and not url.is_remote):
        arguments["ssl_disabled"] = True  # on loopback encryption protects nothing, and setting it up costs 60 ms a connection
    elif url.ssl == "verify":
        arguments["ssl"] = context = ssl.create_default_context(cafile=url.ssl_ca)
        if url.ssl_cert:
            context.load_cert_chain(url.ssl_cert, url.ssl_key)
    elif url.ssl == "required":
        arguments["ssl"] = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if url.ssl_cert:
            context.load_cert_chain(url.ssl_cert, url.ssl_key)
    return arguments  # "prefer" is what the driver does when it is told nothing


def _code(error: BaseException) -> int:
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def _message(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def _name(host: tuple[str, int]) -> str:
    return f"{host[0]}:{host[1]}" if host[1] else host[0]


def _translated(error: BaseException, url: DatabaseUrl, host: tuple[str, int]) -> DatabaseError:
    """What a failed connection means: refused for good, or away for now."""
    code = _code(error)
    # Other TLS errors happen to servers that are just going down.
    if code in REFUSED or isinstance(getattr(error, "original_exception", error), ssl.SSLCertVerificationError):
        is_own = url.setting == DATABASE_SETTING
        remedy = REMEDIES.get(code, "`ai-worker doctor` says more") if is_own else f"check {url.setting}"
        return DatabaseRefused(f"{_name(host)} refused the connection: {_message(error)}; {remedy}", code)
    return DatabaseAway(f"{_name(host)}: {_message(error)}", code)
