"""The commands in docs/task-types.md run as written, and make tasks of the types that they name."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8")
SHOWN = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.replace("\\\n", "").splitlines()
]
FILES = {
    "opinie.csv": "text,klient\nNie działa!,Anna\n",
    "teksty.csv": "text\nUrząd gminy\n",
    "transakcje.csv": "tytul\nBiedronka 4521\n",
    "rozmowy.jsonl": json.dumps({"text": "A w sobotę?", "context_key": "klient 7"}),
    "obrazki.txt": "Rudy kot w ogrodzie\n",
    "tematy.txt": "Kompostownia gminna czy regionalna?\n",
    "opisy.txt": "Rodzinna piekarnia\n",
    "oferty.txt": "Udziały w browarze\n",
    "zmiany.jsonl": json.dumps({"text": "def f(): pass"}),
    "ogloszenia.csv": "text\nStół dębowy\n",
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, tmp_path: Path) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


def test_every_command_shown_runs(commands: Commands, sql: Sql, tmp_path: Path) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('gpt', 'echo'), ('obrazy', 'openai')")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert len(SHOWN) > 10
    for command in SHOWN:
        ended = commands(*command)
        assert ended.code == 0, (command, ended.err)
    types = {row["task_type"] for row in sql("SELECT task_type FROM task")}
    assert {"reply", "memory", "image_prompt", "image", "research", "swot", "investment", "technical_review", "custom"} < types
    keys = {row["context_key"] for row in sql("SELECT context_key FROM task_item")}
    assert keys == {None, "klient 7", "Anna"}
