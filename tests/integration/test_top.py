"""`top` on a database, and in a terminal of its own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from typing import Any

import pytest

from ai_worker.cli.top_look import Look
from ai_worker.db import Database, Transaction
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application
from tests.servers import environment


def questions(database: Database) -> int:
    def ask(tx: Transaction) -> int:
        return int(tx.raw("SHOW SESSION STATUS LIKE 'Questions'")[0]["Value"])

    return database.transaction(ask)


def test_a_look_shows_the_fleet_in_few_statements(database: Database, sql: Sql) -> None:
    application = Application(sql)
    id_task = application.task(application.model())
    application.items(id_task, 1200)  # more than a look counts one by one
    sql("UPDATE task SET status_id = 1, started_at = NOW(6)")
    look = Look(database)
    first = look()
    assert [(each.report.id_task, each.report.open, each.is_exact) for each in first.tasks] == [(id_task, 1200, True)]
    assert first.tasks[0].rate is None
    sql("UPDATE task_item SET status_id = 1, finished_at = NOW(6) ORDER BY id_task_item LIMIT 300")
    sql("UPDATE task SET records_processed = 300")
    before = questions(database)
    second = look()
    assert questions(database) - before < 25
    assert (second.tasks[0].report.open, second.tasks[0].done) == (900, 300)
    assert second.tasks[0].rate is not None
    assert [each.pending for each in second.queues] == [900]


def test_once_and_json_need_no_terminal(
    sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    ai_worker = Commands(monkeypatch, capsys)
    application = Application(sql)
    application.items(application.task(application.model("korektor")), 3)
    ended = ai_worker("top")
    assert (ended.code, "no workers" in ended.out, "\x1b" in ended.out) == (0, True, False)
    told: dict[str, Any] = ai_worker("top", "--json").json
    assert [(each["model"], each["open"], each["open_is_exact"]) for each in told["tasks"]] == [("korektor", 3, True)]
    assert told["queues"][0]["pending"] == 3
    monkeypatch.setitem(sys.modules, "rich.console", None)
    missing = ai_worker("top")
    assert (missing.code, "pip install 'ai-worker[top]'" in missing.err) == (78, True)


@pytest.mark.skipif(os.name != "posix", reason="a POSIX terminal")
def test_in_a_terminal_it_takes_keys_and_a_new_size_and_leaves_all_as_it_was(database_url: str, sql: Sql) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()

    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(24, 80)
    before = termios.tcgetattr(theirs)
    # pytest-xdist sets COLUMNS, which would stand above the size of the terminal.
    settings = environment(database_url, {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": None, "LINES": None})
    process = subprocess.Popen(
        [sys.executable, "-m", "ai_worker", "top"], stdin=theirs, stdout=theirs, stderr=theirs, env=settings
    )
    seen = ""

    def wait_for(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while words not in seen:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen[-2000:]
            seen += os.read(ours, 65536).decode(errors="replace")
        seen = seen.partition(words)[2]

    wait_for("q quit")
    os.write(ours, b"p")
    wait_for("PAUSED")
    resize(30, 120)
    wait_for("VERSION")  # a column for which there is room now
    os.write(ours, b"\x1b[B\tq")
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:  # what it writes must be read, or it could not end
        if select.select([ours], [], [], 0.05)[0]:
            seen += os.read(ours, 65536).decode(errors="replace")
    assert process.wait(1) == 0
    assert not re.search(r"\x1b\[(?:3|9)\dm", seen)  # no colours
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
