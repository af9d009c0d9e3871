"""These tests take minutes and fetch a Windows Python: they are left alone unless `-m windows` asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import TestDatabase, free_port, private_mariadb
from tests.windows.machine import Machine, running


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if "windows" in config.option.markexpr else True


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A Windows of sorts."""
    with running() as machine:
        yield machine


@pytest.fixture(scope="session")
def _server_database() -> Iterator[TestDatabase]:
    with private_mariadb(free_port()) as (server, _), server.new_database() as name:
        database = TestDatabase(server, name)
        database.migrate()
        yield database


@pytest.fixture
def database(_server_database: TestDatabase) -> Iterator[TestDatabase]:
    """A migrated database without rows, over TCP: nothing else reaches a MariaDB from Windows."""
    _server_database.lend()
    yield _server_database
    _server_database.empty()
