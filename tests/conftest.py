"""Fixtures on real databases. Every test that asks for one runs once per server; see servers.py for where these come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from tests import servers
from tests.dashboard import Dashboard, serving
from tests.promtool import Promtool
from tests.servers import Programs, TestDatabase, TestServer

Sql = Callable[..., list[dict[str, Any]]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, each server's tests run in one process, one after the other: its server is started once. All other tests go, a
    file at a time, to whoever has time."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            server = re.search(r"\[(?:.*-)?(mariadb|mysql)(?:-.*)?\]$", nodeid)
            return server[1] if server else nodeid.split("::", maxsplit=1)[0]

    return ByServer(config, log)


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no AI_WORKER_ setting but their own."""
    for name in servers.settings_in_environment():
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", params=servers.names())
def server(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    """A database server: MariaDB, and MySQL where one is named."""
    with servers.running(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def _shared_database(server: TestServer) -> Iterator[TestDatabase]:
    with server.new_database() as name:
        database = TestDatabase(server, name)
        database.migrate()
        yield database


@pytest.fixture
def database_url(_shared_database: TestDatabase) -> Iterator[str]:
    """The URL of a migrated database without rows. AUTO_INCREMENT values go on from test to test: do not expect 1."""
    yield _shared_database.lend()
    _shared_database.empty()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A `Database` on `database_url`."""
    database = Database(parse_database_url(database_url))
    yield database
    database.close()


@pytest.fixture
def empty_database_url(server: TestServer) -> Iterator[str]:
    """The URL of a new database without tables, for tests that change the schema."""
    with server.new_database() as name:
        yield server.url(name)


@pytest.fixture
def sql(server: TestServer, database_url: str) -> Iterator[Sql]:
    """`sql(statement, parameters=None)`: plain SQL over a connection of its own, as another application would send it."""
    with server.connect(parse_database_url(database_url).database) as connection, connection.cursor() as cursor:

        def run(statement: str, parameters: Any = None) -> list[dict[str, Any]]:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

        yield run


@pytest.fixture
def programs(database_url: str, tmp_path: Path) -> Iterator[Programs]:
    """Starts `ai-worker` commands on the test's database: `programs.run("status", "--json")`, `programs.start("daemon")`."""
    programs = Programs(database_url, tmp_path)
    yield programs
    programs.close()


@pytest.fixture
def dashboard(database_url: str) -> Iterator[Dashboard]:
    """The web on a real port, on the test's database."""
    with serving(database_url) as dashboard:
        yield dashboard


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Prometheus's own checker; a test that asks for it is skipped, or in CI fails, where there is none."""
    return Promtool.found()
