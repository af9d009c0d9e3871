"""What the numbers of the servers' errors mean: try again, wait, or give up."""

from __future__ import annotations

import ssl
from typing import Final

from ai_worker.database_url import DATABASE_SETTING, DatabaseUrl
from ai_worker.errors import DatabaseAway, DatabaseError, DatabaseRefused

# Error numbers: https://dev.mysql.com/doc/mysql-errors/9.0/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-codes/
CONFLICT: Final = frozenset(
    {
        1213,  # deadlock, also a certification failure on Galera
        1205,  # lock wait time-out: rolls back only the statement unless told otherwise, so roll back the whole
        1020,  # MariaDB: row changed since the snapshot
        3101,  # Group Replication: rolled back by the certifier
    }
)
READ_ONLY: Final = frozenset({1290, 1792, 1836})  # a former primary after a failover
LOST: Final = READ_ONLY | frozenset(
    {
        0,  # PyMySQL: the connection is closed already
        2002, 2003, 2006, 2013, 2014, 2055,  # the client cannot reach the server, or lost it
        1040, 1203,  # too many connections
        1047,  # Galera: not prepared for queries
        1053, 1077, 1079,  # the server shuts down
        1180,  # COMMIT failed half-way; on Galera, the node was cut off with it under way, and the others may have it
        1158, 1159, 1160, 1161,  # network errors as the server saw them
        1927, 3169, 4031,  # the connection was killed, or closed for being idle
    }
)  # fmt: skip
TROUBLED: Final = frozenset(
    {
        3, 1021, 1026, 1114,  # no room on a disk, or a file cannot be written
        1030,  # a storage engine's own error, for the same reasons
        1037, 1038, 1041, 1135, 1206,  # no memory, no thread, no room for locks
        1226,  # more statements or connections than this user may have for now
    }
)  # fmt: skip
REFUSED: Final = frozenset({1044, 1045, 1049, 1130, 1524, 1698, 2026, 2049, 2054, 2059, 2061, 3118, 3159})

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


class ConnectionLostError(Exception):
    """The connection broke before COMMIT was sent: nothing has landed."""


class CommitLostError(Exception):
    """The connection broke while COMMIT was under way: it may have landed."""


class TroubledError(Exception):
    """The server cannot do it now, for want of room, memory or the like. Somebody may mend that.

    `in_doubt`: it said so at the COMMIT, and nobody promises that nothing of it was written by then.
    """

    def __init__(self, reason: str, *, in_doubt: bool = False) -> None:
        super().__init__(reason)
        self.in_doubt = in_doubt


class ConflictError(Exception):
    """The server chose this transaction as the victim of a conflict.

    `in_doubt`: it said so at the COMMIT of a cluster's node, which says the same when it is cut off with that COMMIT under way:
    then the others may have it.
    """

    def __init__(self, reason: str, *, in_doubt: bool = False) -> None:
        super().__init__(reason)
        self.in_doubt = in_doubt


def code_of(error: BaseException) -> int:
    """The number of an error of the driver's; 0 where it has none."""
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def message_of(error: BaseException) -> str:
    """What the server said, without the number."""
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def name_of(host: tuple[str, int]) -> str:
    """A host with its port, for people."""
    return f"{host[0]}:{host[1]}" if host[1] else host[0]


def translated(error: BaseException, url: DatabaseUrl, host: tuple[str, int]) -> DatabaseError:
    """What a failed connection means: refused for good, or away for now."""
    code = code_of(error)
    # Other TLS errors happen to servers that are just going down.
    if code in REFUSED or isinstance(getattr(error, "original_exception", error), ssl.SSLCertVerificationError):
        is_own = url.setting == DATABASE_SETTING
        remedy = REMEDIES.get(code, "`ai-worker doctor` says more") if is_own else f"check {url.setting}"
        return DatabaseRefused(f"{name_of(host)} refused the connection: {message_of(error)}; {remedy}", code)
    return DatabaseAway(f"{name_of(host)}: {message_of(error)}", code)
