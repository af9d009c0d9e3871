"""One connection, as one thread uses it: how it is made, and one transaction on it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pymysql
import pymysql.cursors
from pymysql.constants import CLIENT

from ai_worker.database_url import DatabaseUrl
from ai_worker.db.failures import (
    CONFLICT,
    LOST,
    TROUBLED,
    VALUE,
    CommitLostError,
    ConflictError,
    ConnectionLostError,
    TroubledError,
    code_of,
    message_of,
    name_of,
    translated,
)
from ai_worker.db.transaction import Transaction
from ai_worker.errors import DatabaseAway, DatabaseError, ValueRefused

T = TypeVar("T")

# READ COMMITTED: under REPEATABLE READ, a poll of an empty queue locks the gap and blocks INSERTs.
# The lock wait is short because every transaction here is short; waiting longer only hides a conflict.
# A client that has lost its power or its network in mid-transaction holds its locks until the server ends the session: by the
# servers' own default that is eight hours, in which nobody could commit to that task.
SILENCE: Final = 60  # seconds without a word
SESSION: Final = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 5, "
    f"wait_timeout = {SILENCE}, "
    "sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
)
WRITABLE: Final = "SELECT CAST(@@GLOBAL.read_only AS CHAR), CAST(@@GLOBAL.innodb_read_only AS CHAR), @@SESSION.max_allowed_packet"
IS_GALERA: Final = "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON'"
GALERA_STATE: Final = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_local_state_comment')"
# What one node has committed, the next one applies a little later. Whoever changes nodes with a COMMIT in doubt, or has a thread
# on each, must see it all the same: reads and BEGIN (1), UPDATE and DELETE (2), INSERT (4) wait for what was committed before.
CAUSAL: Final = "SET SESSION wsrep_sync_wait = 7"


class Session:
    """One connection, used by one thread."""

    def __init__(self, url: DatabaseUrl, host: tuple[str, int], writable: bool = True) -> None:
        self.host = host
        self.in_transaction = False
        self.move = 0
        """How often the thread's `Database` had moved to another host when this was made."""
        self._used_at = time.monotonic()
        try:
            self.connection: Any = pymysql.connect(**_driver_arguments(url, host))
            with self.connection.cursor(pymysql.cursors.Cursor) as cursor:
                for statement in SESSION:
                    cursor.execute(statement)
                cursor.execute(WRITABLE)
                ((read_only, innodb_read_only, self.max_packet),) = cursor.fetchall()
                self._is_galera = bool(cursor.execute(IS_GALERA))
                if self._is_galera:
                    cursor.execute(CAUSAL)
                    cursor.execute(GALERA_STATE)
                galera = dict(cursor.fetchall())
            # The driver knows no time-out of the handshake alone.
            setattr(self.connection, "_read_timeout", url.read_timeout)  # noqa: B010 -- private to it, and to its type
        except (pymysql.err.Error, OSError) as error:
            raise translated(error, url, host) from None
        problem = None
        if not writable:
            pass
        elif read_only not in {"0", "OFF"} or innodb_read_only not in {"0", "OFF"}:
            problem = "is read-only"
        elif galera.get("wsrep_ready", "ON") != "ON" or galera.get("wsrep_local_state_comment", "Synced") != "Synced":
            problem = f"is not synced with its cluster ({galera.get('wsrep_local_state_comment')})"
        if problem:
            self.close()
            raise DatabaseAway(f"{name_of(host)} {problem}")

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
            code = code_of(error)
            if code in LOST or isinstance(error, OSError):
                self.close()
                raise (CommitLostError if committing else ConnectionLostError)(str(error)) from error
            self._rollback()
            if code in CONFLICT:
                raise ConflictError(str(error), in_doubt=committing and self._is_galera) from error
            if code in TROUBLED:
                raise TroubledError(str(error), in_doubt=committing) from error
            raise (ValueRefused if code in VALUE else DatabaseError)(message_of(error), code) from error
        except BaseException:
            self._rollback()
            raise
        finally:
            transaction.end()
            self.in_transaction = False
            self._used_at = time.monotonic()
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

    @property
    def is_stale(self) -> bool:
        """Whether it has been idle for so long that the server may be about to end it, or already has."""
        return time.monotonic() - self._used_at > SILENCE / 2

    def interrupt(self) -> None:
        """Ends a wait of another thread for the server's answer: it finds the connection lost."""
        with contextlib.suppress(AttributeError, OSError):  # there is no connection any more
            self.connection._sock.shutdown(socket.SHUT_RDWR)  # the driver offers no other way

    def close(self) -> None:
        with contextlib.suppress(pymysql.err.Error, OSError):  # closed already, by the server or by the network
            self.connection.close()


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
