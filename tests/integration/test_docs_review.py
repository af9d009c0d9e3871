"""docs/review-and-export.md runs as it stands, from the table to the rows that have changed."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.migrate import split
from tests.integration.commands import Commands
from tests.integration.source_tables import shop
from tests.servers import TestServer

PAGE = (Path(__file__).parents[2] / "docs" / "review-and-export.md").read_text(encoding="utf-8")


def test_the_page_runs_as_it_stands(
    server: TestServer, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", empty_database_url)
    ai_worker = Commands(monkeypatch, capsys)
    assert ai_worker("migrate").code == 0
    ((_, port),) = server.admin.hosts
    user = f"shop_ai_{os.getpid()}"
    own = parse_database_url(empty_database_url).database
    commands = 0
    with shop(server) as other, server.connect(own) as connection, connection.cursor() as cursor:
        try:
            for language, block in re.findall(r"^```(sql|sh)\n(.*?)^```", PAGE, re.M | re.S):
                text = re.sub(r"\bshop\.", f"{other.name}.", block).replace("shop_ai", user)
                text = text.replace("127.0.0.1:3306/shop", f"127.0.0.1:{port}/{other.name}?ssl=off")
                for statement in split(text) if language == "sql" else []:
                    cursor.execute(statement)
                for line in text.splitlines() if language == "sh" else []:
                    *settings, arguments = re.split(r"(?<=\S) (?=ai-worker )", line)
                    for setting in settings:
                        monkeypatch.setenv(*setting.split("=", 1))
                    ended = ai_worker(*shlex.split(arguments, comments=True)[1:])
                    assert ended.code == 0, (line, ended.everything)
                    commands += 1
                    if "export 1" in line and "--dry-run" not in line:
                        assert "2 written" in ended.out
                        assert other.bodies() == {
                            11: "Dziś otwieramy kawiarnię.",
                            12: "W ogóle nie zamykamy!",
                            13: "Poprostu pyszne ciasta.",
                            14: "Zapraszamy.",
                        }
        finally:
            server.execute(f"DROP USER IF EXISTS {user}@'%'")
    assert commands > 12
