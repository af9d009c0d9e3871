"""SQL literals, as both servers read them back."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.literals import Identifier, Identifiers, literals
from ai_worker.models import ItemStatus, OutcomeKind
from tests.servers import TestServer

VALUES: list[Any] = [
    None,
    0,
    -(2**63),
    2**64 - 1,
    1.5,
    1e-300,
    Decimal("0.000000001"),
    Decimal("1E+3"),
    "",
    "Zażółć gęślą jaźń 🙂",
    "'; DROP TABLE task; --",
    "\\' \\\\ \\n \" ` % %% %(x)s %s {}",
    "tab\t line\n return\r\n NUL\0 substitute\x1a end",
    b"",
    bytes(range(256)),
    datetime.fromisoformat("2026-11-22 03:04:05.000678"),
    datetime.fromisoformat("0999-01-02"),
]

NAMES = ["order", "treść", "a`b``", "x'; DROP TABLE t; --", '"', "%s %(x)s", "back\\slash", " a.b"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_server_reads_what_was_written(server: TestServer, value: Any) -> None:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {literals({'x': value})['x']} AS x")
        ((read),) = [row["x"] for row in cursor.fetchall()]
    if isinstance(value, datetime):
        assert datetime.fromisoformat(read) == value
    else:
        assert read == value


def test_a_list_is_what_stands_after_in(server: TestServer) -> None:
    written = literals({"x": ["a'b", "c"], "y": (1, 2)})
    assert written == {"x": "('a\\'b','c')", "y": "(1,2)"}
    assert server.execute(f"SELECT 'a\\'b' IN {written['x']} AND 2 IN {written['y']} AS x")[0]["x"] == 1


def test_subclasses_are_written_as_their_bases() -> None:
    assert literals({"a": ItemStatus.DEFERRED, "b": OutcomeKind.LOST, "c": True}) == {"a": "4", "b": "'lost'", "c": "1"}


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_of_a_column_is_that_name_alone(server: TestServer, name: str) -> None:
    with server.new_database() as database, server.connect(database) as connection, connection.cursor() as cursor:
        written = literals({"one": Identifier(name), "all": Identifiers((name, "other"))})
        assert cursor.execute(f"CREATE TABLE t ({written['one']} INT, other INT)") == 0
        cursor.execute(f"SELECT {written['all']} FROM t")
        assert [column[0] for column in cursor.description] == [name, "other"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {}, set()], ids=repr)
def test_what_has_no_literal_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        literals({"x": value})
