"""sql/queries.sql and the code agree: nothing unused, nothing missing, nothing unexplained."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

import ai_worker
from ai_worker.db import sql_folder, statements

BLOCKS = re.split(r"^-- name: ", (sql_folder() / "queries.sql").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
NAMES = [block.partition("\n")[0].strip() for block in BLOCKS]
USE = re.compile(r"\b(?:tx|statement|db|_db)\.(?:query|tuples|execute|execute_many|insert|pages)\(\s*\"(\w+)\"")


@cache
def sources() -> str:
    package = Path(ai_worker.__file__).parent
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))


def test_names_are_unique_and_all_read() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) == set(statements())


@pytest.mark.parametrize("name", NAMES)
def test_every_statement_is_used(name: str) -> None:
    assert f'"{name}"' in sources()


def test_every_name_used_is_there() -> None:
    used = set(USE.findall(sources()))
    assert len(used) > 50  # the pattern still finds what it is meant to find
    assert used <= set(NAMES)


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_every_statement_says_why(block: str) -> None:
    first, *_ = block.partition("\n")[2].splitlines()
    assert re.match(r"-- \w.{20,}", first), "its first line must be a comment that says why it is as it is"


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_every_statement_is_one_statement(block: str) -> None:
    """The driver sends one at a time; a second one would be refused by the server."""
    sql = "\n".join(line for line in block.splitlines()[1:] if not line.lstrip().startswith("--"))
    assert sql.rstrip().endswith(";")
    assert sql.count(";") == 1
    assert not re.search(r"%(?!\(\w+\)s|%|s[,)])", sql), "a lone percent sign is a broken placeholder"
    assert not ("%s" in sql and "%(" in sql), "either all placeholders have names or none has"


@pytest.mark.parametrize("name", NAMES)
def test_no_statement_asks_for_everything(name: str) -> None:
    """A column that a later migration adds must not change what old workers read."""
    assert not re.search(r"SELECT\s+(\w+\.)?\*(?! FROM r\b)", statements()[name])  # r: rows that the statement itself spells out
