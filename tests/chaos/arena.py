"""A private database server that may be killed, frozen and filled up, with AI Worker's database and its users on it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pymysql

from ai_worker import embedded, migrate
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, sql_folder
from tests.servers import MYSQLD, TestServer, asked_for, free_port, tcp_options

DATABASE = "ai_worker"
PASSWORD = "Test.1-zxcvb"  # not a secret: of users of a server that lives for one test
ADMINISTRATOR = "tester"

LOST = frozenset({0, 1040, 1053, 2003, 2006, 2013, 2014})  # errors of a connection, or of the lack of one


def kinds() -> list[str]:
    """The servers to try: MariaDB, and MySQL where its program is at hand; of these the one that was asked for, if any was."""
    return asked_for(["mariadb", "mysql"] if os.environ.get(MYSQLD) else ["mariadb"])


def program_of(kind: str) -> str:
    """The server program of this kind; fails the test where there is none."""
    if kind == "mysql":
        program = os.environ.get(MYSQLD)
        assert program, f"set {MYSQLD} to the path of a MySQL server program"
        return program
    program = shutil.which("mariadbd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    assert program, "no mariadbd found"
    return program


class Patient:
    """`sql(statement, parameters=None)` over a connection that is made anew when the server has been away. For one thread.

    Waits for a server on its way up, for at most 60 s. A statement whose connection breaks is sent again: it must bear that.
    """

    def __init__(self, connect: Callable[[], pymysql.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: pymysql.Connection[Any] | None = None

    def __call__(self, statement: str, parameters: Any = None) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 60
        while True:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                with self._connection.cursor() as cursor:
                    cursor.execute(statement, parameters)
                    return list(cursor.fetchall())
            except (pymysql.err.OperationalError, pymysql.err.InterfaceError) as error:
                if error.args[0] not in LOST or time.monotonic() > deadline:
                    raise
                self.forget()
                time.sleep(0.05)

    def forget(self) -> None:
        """The next statement gets a new connection."""
        if self._connection is not None:
            self._connection._force_close()  # the server may not be there to be told
            self._connection = None


@dataclass
class Arena:
    """A server on a TCP port of 127.0.0.1 (or of `host`), with durability at its defaults.

    `worker_url` is the URL of the user `ai_worker` of sql/grants.sql, `admin_url` that of one who may do everything.
    """

    kind: str
    server: embedded.Server
    port: int
    host: str = "127.0.0.1"
    options: Sequence[str] = ()
    sql: Patient = field(init=False, repr=False)
    """Plain SQL as the administrator. For one thread; another one makes a `Patient(arena.connect)` of its own."""

    def __post_init__(self) -> None:
        self.sql = Patient(self.connect)

    @property
    def worker_url(self) -> str:
        return self.url_of("ai_worker")

    @property
    def admin_url(self) -> str:
        return self.url_of(ADMINISTRATOR)

    @property
    def test_server(self) -> TestServer:
        return TestServer(self.kind, replace(parse_database_url(self.admin_url), database="mysql"))

    def url_of(self, user: str) -> str:
        return f"mysql://{user}:{PASSWORD}@{self.host}:{self.port}/{DATABASE}?ssl=off"

    def start(self) -> None:
        """Starts the server, after a kill with all that was committed, and waits until it answers."""
        self.server.start([*tcp_options(self.port), *self.options])

    def kill(self) -> None:
        """SIGKILL: as when the power fails, but that the kernel still writes what it was given."""
        self.server.stop(signal.SIGKILL)

    def stop(self) -> None:
        """A shutdown in good order."""
        self.server.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP for the length of the block: connections stay, nothing answers."""
        pid = self.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def connect(self) -> pymysql.Connection[Any]:
        """A new connection of the administrator's, in autocommit mode, rows as dicts."""
        return self.test_server.connect(DATABASE)

    def forget_connection(self) -> None:
        """`sql` gets a new connection with its next statement."""
        self.sql.forget()

    def prepare(self) -> None:
        """Makes the administrator, the schema, and the users with the grants that are delivered."""
        url = parse_database_url(self.server.url)
        with pymysql.connect(unix_socket=url.unix_socket, user=url.user) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {ADMINISTRATOR}@'%' IDENTIFIED BY '{PASSWORD}'")
            cursor.execute(f"GRANT ALL ON *.* TO {ADMINISTRATOR}@'%' WITH GRANT OPTION")
        migrate_to(self.admin_url)
        text = (sql_folder() / "grants.sql").read_text(encoding="utf-8")
        for part in ("worker", "web", "app", "prune"):
            text = text.replace(f"CHANGE-ME-{part}-1", PASSWORD)
        self.test_server.execute(*migrate.split(text))


def migrate_to(url: str) -> None:
    """The schema of today, in the database of this URL, which is made where it is missing."""
    database = Database(replace(parse_database_url(url), read_timeout=600))
    try:
        migrate.migrate(database)
    finally:
        database.close()


@contextmanager
def arena_on(kind: str, *options: str) -> Iterator[Arena]:
    """A new server of this kind for the length of the block. `options`: further ones of the server's."""
    with tempfile.TemporaryDirectory(prefix="ai-worker-chaos-") as folder:
        arena = Arena(kind, embedded.Server(Path(folder), program_of(kind)), free_port(), options=options)
        arena.start()
        try:
            arena.prepare()
            yield arena
        finally:
            arena.forget_connection()
            arena.server.stop()
