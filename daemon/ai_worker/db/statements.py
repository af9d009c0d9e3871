"""The named statements of sql/queries.sql."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def sql_folder() -> Path:
    """The folder with queries.sql and migrations/: inside the installed package, or beside `daemon/` in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "sql"
    return packaged if packaged.is_dir() else package.parents[1] / "sql"


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
def around_values(name: str) -> tuple[str, str, str]:
    """A named statement: what stands before its line of VALUES, the row in that line, and what stands after it."""
    statement = statements()[name]
    line = re.search(r"^VALUES (.*)$", statement, flags=re.MULTILINE)
    if line is None:
        raise KeyError(f"the statement {name} has no line of VALUES")
    return statement[: line.start()], line[1], statement[line.end() :]
