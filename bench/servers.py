"""The servers that benchmarks run on: private ones, with durability as shipped, or servers of yours."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pymysql

from ai_worker import embedded, migrate
from ai_worker.database_url import DatabaseUrl, parse_database_url
from ai_worker.db import Database

NAMES = ("mariadb", "mysql")

# Memory as a small production server has it. What makes a commit durable is left alone; what `embedded` switches off for a
# laptop's sake (MySQL's binary log and performance schema) is on again, as shipped.
_OPTIONS = {
    "mariadb": ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=96M", "--max-connections=500"),
    "mysql": ("--innodb-buffer-pool-size=1G", "--log-bin", "--performance-schema=ON", "--max-connections=500"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, with an empty, migrated database of its own. `url` names that database."""

    name: str
    version: str
    url: str

    def connect(self) -> pymysql.Connection[Any]:
        """A bare connection in autocommit mode under READ COMMITTED: what the baselines use."""
        return connect(parse_database_url(self.url))


def connect(url: DatabaseUrl) -> pymysql.Connection[Any]:
    """The same for any URL."""
    host, port = url.hosts[0] if url.hosts else ("localhost", 0)
    return pymysql.connect(
        host=host,
        port=port,
        unix_socket=url.unix_socket,
        user=url.user,
        password=url.password.reveal(),
        database=url.database or None,
        charset="utf8mb4",
        autocommit=True,
        ssl_disabled=True,
        init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )


def available() -> dict[str, str | None]:
    """The kinds there are to run on, with the URL of AI_WORKER_BENCH_{MARIADB,MYSQL}_URL, None for a private one."""
    found: dict[str, str | None] = {}
    for name in NAMES:
        url = os.environ.get(f"AI_WORKER_BENCH_{name.upper()}_URL")
        if url or _program(name):
            found[name] = url
    return found


@contextlib.contextmanager
def running(name: str, url: str | None = None) -> Iterator[Server]:
    """A server of this kind with an empty, migrated database, which is dropped at the end."""
    with contextlib.ExitStack() as stack:
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ai-worker-bench-"))
            url = stack.enter_context(embedded.running(Path(folder), _OPTIONS[name], program=_program(name)))
        # A name of its own: two runs on one server must not drop each other's.
        parsed = replace(parse_database_url(url), database=f"ai_worker_bench_{os.urandom(4).hex()}")
        with connect(replace(parsed, database="")) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {parsed.database} CHARACTER SET utf8mb4")
            cursor.execute("SELECT VERSION()")
            ((version,),) = cursor.fetchall()
        stack.callback(_drop, parsed)
        db = Database(parsed)
        migrate.migrate(db)
        db.close()
        yield Server(name, version, _rendered(parsed))


def _program(name: str) -> str | None:
    """The server program of this kind, also in /usr/sbin, which is not on everybody's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("mariadbd" if name == "mariadb" else "mysqld", path=path)
    if program is None:
        return None
    version = subprocess.run([program, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout
    return program if ("mariadb" in version.lower()) == (name == "mariadb") else None  # Debian's mysqld is a link to mariadbd


def _drop(url: DatabaseUrl) -> None:
    with connect(replace(url, database="")) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {url.database}")


def _rendered(url: DatabaseUrl) -> str:
    where = "" if url.unix_socket else ",".join(f"{host}:{port}" for host, port in url.hosts)
    options = f"?socket={url.unix_socket}" if url.unix_socket else "?ssl=off"
    return f"mysql://{url.user}:{url.password.reveal()}@{where}/{url.database}{options}"
