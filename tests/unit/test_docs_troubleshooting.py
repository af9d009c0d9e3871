"""docs/troubleshooting.md quotes what the programs really print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ai_worker
from ai_worker.db import sql_folder
from ai_worker.log import Event

TEXT = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [row for row in re.findall(r"^\| (.+?) \| .+? \| .+ \|$", TEXT, re.MULTILINE) if row not in {"symptom", "---"}]
QUOTED = [quoted for row in ROWS for quoted in re.findall(r"`([^`]+)`", row)]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in (*Path(ai_worker.__file__).parent.rglob("*.py"), sql_folder() / "queries.sql")
)


def test_there_is_enough_of_it() -> None:
    assert len(ROWS) >= 25
    assert len(QUOTED) >= 25


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_message_that_is_quoted_is_printed_somewhere(quoted: str) -> None:
    if quoted.isupper() and quoted not in {"INSERT"}:
        assert quoted in Event.__members__
    else:
        assert quoted in SOURCES
