"""The database servers that the tests run on, and the programs that they start.

MariaDB is a private one, made for the session. MySQL is the one that AI_WORKER_TEST_MYSQL_URL names; a user who may create
databases is needed. Without that variable the tests run on MariaDB alone, unless AI_WORKER_TEST_REQUIRE_MYSQL is set, or
AI_WORKER_TEST_SERVER asks for MySQL alone: then a private one of the program AI_WORKER_TEST_MYSQLD will do.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pymysql
import pymysql.cursors

from ai_worker import embedded, migrate
from ai_worker.database_url import DatabaseUrl, parse_database_url
from ai_worker.db import Database, sql_folder

MYSQL_URL = "AI_WORKER_TEST_MYSQL_URL"
REQUIRE_MYSQL = "AI_WORKER_TEST_REQUIRE_MYSQL"
MYSQLD = "AI_WORKER_TEST_MYSQLD"  # a server program, of which tests may start private instances, and kill them
ONLY = "AI_WORKER_TEST_SERVER"  # mariadb or mysql: the tests run on that one alone

# What the migrations fill and nobody else: left alone between tests.
DICTIONARIES = {"schema_migration", "task_status", "task_item_status", "review_status"}

GRANTS = "AI_WORKER_TEST_GRANTS"
"""Set to 1, it has programs and workers under test run with the rights of sql/grants.sql and no more: see `as_role`."""

# The users of sql/grants.sql, and who gives which command.
ROLES = {"worker": "ai_worker", "web": "ai_worker_web", "app": "ai_worker_app", "prune": "ai_worker_prune"}
ROLE_PASSWORD = "Test.1-zxcvb"  # not a secret: of users of a database that lives for one test run
ROLE_OF_COMMAND = {
    **dict.fromkeys(("daemon", "run"), "worker"),
    **dict.fromkeys(("web", "status", "watch", "workers", "top", "results", "review"), "web"),
    **dict.fromkeys(("retry", "pause", "resume", "cancel", "priority"), "web"),
    "prune": "prune",
}

_granted: set[str] = set()  # databases that have these users
_numbers = itertools.count(1)


def settings_in_environment() -> list[str]:
    """The caller's settings for AI Worker itself, as opposed to those for its tests."""
    return [name for name in os.environ if name.startswith("AI_WORKER_") and not name.startswith("AI_WORKER_TEST_")]


def names() -> list[str]:
    """The servers to run on. A MySQL that is required but not named is in the list too, and fails there."""
    return asked_for(["mariadb", "mysql"] if os.environ.get(MYSQL_URL) or os.environ.get(REQUIRE_MYSQL) else ["mariadb"])


def asked_for(names: list[str]) -> list[str]:
    """Of these servers the one that AI_WORKER_TEST_SERVER names; all, where it names none. Whoever asks for one that is not at
    hand is told so by the tests that then fail."""
    only = os.environ.get(ONLY)
    return [only] if only else names


@dataclass(frozen=True)
class TestServer:
    """A server, as its administrator sees it. `admin` is the URL of a user who may do everything."""

    __test__ = False  # not a test case, whatever its name says

    name: str
    admin: DatabaseUrl

    def url(self, database: str, user: str | None = None, password: str = "") -> str:
        """The URL of a database on this server, for the administrator or for another user; unencrypted: saves 60 ms each."""
        ((host, port),) = self.admin.hosts
        credentials = f"{user}:{password}" if user else f"{self.admin.user}:{self.admin.password.reveal()}"
        return f"mysql://{credentials.removesuffix(':')}@{host}:{port}/{database}?ssl=off"

    def connect(self, database: str = "", user: str | None = None, password: str = "") -> pymysql.Connection[Any]:
        """A bare connection in autocommit mode, with rows as dicts: what another application would use."""
        ((host, port),) = self.admin.hosts
        return pymysql.connect(
            host=host,
            port=port,
            user=user or self.admin.user,
            password=password if user else self.admin.password.reveal(),
            database=database or None,
            charset="utf8mb4",
            autocommit=True,
            cursorclass=pymysql.cursors.DictCursor,
            ssl_disabled=True,
        )

    def execute(self, *statements: str) -> list[dict[str, Any]]:
        """Runs statements as the administrator; returns the rows of the last one."""
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """A new, empty database for the length of the block; yields its name."""
        name = f"ai_worker_test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE IF EXISTS {name}")
            if name in _granted:
                self.execute(f"DROP USER {', '.join(role_user(name, role) for role in ROLES)}")
                _granted.discard(name)


def role_user(database: str, role: str) -> str:
    """The user of sql/grants.sql for this database, by a name of its own."""
    return f"{database}_{role}"


def grant(server: TestServer, database: str) -> None:
    """Makes the users of sql/grants.sql for this database, with just these grants."""
    text = (sql_folder() / "grants.sql").read_text(encoding="utf-8").replace(" ai_worker.", f" {database}.")
    for role, user in ROLES.items():
        text = text.replace(f" {user}@'%'", f" {role_user(database, role)}@'%'").replace(f"CHANGE-ME-{role}-1", ROLE_PASSWORD)
    server.execute(*migrate.split(text))
    _granted.add(database)


def as_role(url: str, role: str) -> str:
    """The same URL for one of these users; as it is where nobody asked for them, or the database has none."""
    database = parse_database_url(url).database
    if not os.environ.get(GRANTS) or database not in _granted:
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{role_user(database, role)}:{ROLE_PASSWORD}@{rest.rpartition('@')[2]}"


def sessions(cursor: pymysql.cursors.Cursor, database: str) -> dict[int, str]:
    """Who is connected to a database: connection ids, and the state that each is in.

    Not by SHOW PROCESSLIST: it cuts everybody's statements, also in the middle of a letter, which the driver cannot read.
    """
    cursor.execute("SELECT ID AS id, STATE AS state FROM information_schema.processlist WHERE DB = %s", [database])
    return {row["id"]: row["state"] for row in cursor.fetchall()}


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def private_mariadb(port: int, *options: str) -> AbstractContextManager[tuple[TestServer, embedded.Server]]:
    """A private server on a TCP port, also as a handle that can stop, kill and start it again (with `options(port)`)."""
    return _private("mariadb", None, port, *options)


@contextmanager
def _private(name: str, program: str | None, port: int, *options: str) -> Iterator[tuple[TestServer, embedded.Server]]:
    with tempfile.TemporaryDirectory(prefix="ai-worker-test-") as folder:
        server = embedded.Server(Path(folder), program)
        server.start(tcp_options(port, *options))
        try:
            url = parse_database_url(server.url)
            with (
                pymysql.connect(unix_socket=url.unix_socket, user=url.user) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("CREATE USER tester@'%' IDENTIFIED BY 'tester'")
                cursor.execute("GRANT ALL ON *.* TO tester@'%' WITH GRANT OPTION")
            yield TestServer(name, parse_database_url(f"mysql://tester:tester@127.0.0.1:{port}/mysql")), server
        finally:
            server.stop()


def tcp_options(port: int, *options: str) -> list[str]:
    """What makes a private server listen on a TCP port of 127.0.0.1."""
    return [
        "--skip-networking=0",
        "--bind-address=127.0.0.1",
        f"--port={port}",
        "--skip-name-resolve",
        "--max-connections=500",
        *options,
    ]


@contextmanager
def running(name: str) -> Iterator[TestServer]:
    """The server of this name, for the length of the block."""
    if name == "mariadb":
        with private_mariadb(free_port()) as (server, _):
            yield server
        return
    url, program = os.environ.get(MYSQL_URL), os.environ.get(MYSQLD)
    if program and not url:
        with _private(name, program, free_port()) as (server, _):
            yield server
        return
    assert url, f"a MySQL server is asked for, but neither {MYSQL_URL} nor {MYSQLD} names one"
    yield TestServer("mysql", parse_database_url(url.rstrip("/") + "/mysql"))


@dataclass
class TestDatabase:
    """A migrated database that many tests use one after the other: emptied between them, which is cheaper than a new one."""

    __test__ = False

    server: TestServer
    name: str
    _tables: list[str] = field(default_factory=list)
    _is_used: bool = False

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def migrate(self) -> None:
        database = Database(replace(parse_database_url(self.url), read_timeout=600))
        try:
            migrate.migrate(database)
        finally:
            database.close()
        grant(self.server, self.name)

    def lend(self) -> str:
        """Its URL, for one test. What an earlier one left because emptying failed is not this one's to stumble over."""
        if self._is_used:
            self.empty()
        self._is_used = True
        return self.url

    def empty(self) -> None:
        """Deletes all rows, and throws out everybody who is still connected: a transaction left open would hold locks."""
        with self.server.connect(self.name) as connection, connection.cursor() as cursor:
            for session in sessions(cursor, self.name).keys() - {connection.thread_id()}:
                self._kill(cursor, session)
            if not self._tables:
                cursor.execute("SELECT table_name AS t FROM information_schema.tables WHERE table_schema = %s", [self.name])
                self._tables = [row["t"] for row in cursor.fetchall() if row["t"] not in DICTIONARIES]
            cursor.execute("SET foreign_key_checks = 0")
            connection.begin()
            for table in self._tables:
                cursor.execute(f"DELETE FROM {table}")
            connection.commit()
        self._is_used = False

    @staticmethod
    def _kill(cursor: pymysql.cursors.Cursor, connection_id: int) -> None:
        try:
            cursor.execute(f"KILL {connection_id}")
        except pymysql.err.OperationalError as error:
            if error.args[0] != 1094:  # gone by itself in the meantime
                raise


def environment(database_url: str | None, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment of a program under test: none of the caller's settings, but the database and `extra` (None removes one)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AI_WORKER_")}
    changes = {"AI_WORKER_DB_URL": database_url, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **(extra or {})}
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


@dataclass
class Programs:
    """Starts `ai-worker` on one database from an otherwise empty folder; whatever still runs at the end is killed.

    With AI_WORKER_TEST_GRANTS, a command that sql/grants.sql has a user for runs as that user.
    """

    database_url: str | None
    folder: Path
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self, *args: str, env: Mapping[str, str | None] | None = None, input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """One command, to its end. Never raises for its exit code."""
        return subprocess.run(
            self._command(args),
            env=environment(self._url(args), env),
            cwd=self.folder,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    def start(self, *args: str, env: Mapping[str, str | None] | None = None) -> Background:
        """One command in the background, in a process group of its own; its output goes to a file."""
        output = self.folder / f"output-{len(self._started) + 1}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._command(args),
                env=environment(self._url(args), env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started.append(process)
        return Background(process, output)

    def _url(self, args: tuple[str, ...]) -> str | None:
        """That of whoever gives this command in production; the administrator's for what only a person does."""
        role = ROLE_OF_COMMAND.get(args[0]) if args else None
        return self.database_url if role is None or self.database_url is None else as_role(self.database_url, role)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()

    @staticmethod
    def _command(args: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "ai_worker", *args]


@dataclass(frozen=True)
class Background:
    """A program in the background. `process` takes the signals."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        """What it has written so far, stdout and stderr together."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = 60) -> int:
        """Waits for its end; its exit code. Fails the test, showing the output, when it takes longer than `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.text()[-3000:]}") from None

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Waits until it has written `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.text():
            assert self.process.poll() is None, f"ended without writing {text!r}:\n{self.text()[-3000:]}"
            assert time.monotonic() < deadline, f"did not write {text!r} within {timeout} s:\n{self.text()[-3000:]}"
            time.sleep(0.01)
