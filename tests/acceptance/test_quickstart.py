"""`ai-worker quickstart`: what a stranger sees first."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from ai_worker import embedded
from ai_worker.database_url import parse_database_url
from tests.servers import Programs


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for the private database; a server still running at the end is the test's failure."""
    yield tmp_path / "próba" / "quickstart"
    leftover = embedded.Server(tmp_path / "próba" / "quickstart").pid
    if leftover:
        os.kill(leftover, signal.SIGKILL)
    assert not leftover, "a server was left running"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Programs]:
    """Starts commands without any setting, as a stranger does."""
    shell = Programs(None, tmp_path)
    yield shell
    shell.close()


def rows(folder: Path, statement: str) -> list[tuple[object, ...]]:
    with embedded.running(folder) as url:
        parsed = parse_database_url(url)
        with (
            pymysql.connect(unix_socket=parsed.unix_socket, user=parsed.user, database=parsed.database) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return list(cursor.fetchall())


def test_rows_are_corrected_and_the_second_run_is_quick(shell: Programs, folder: Path) -> None:
    first = shell.run("quickstart", "--folder", str(folder))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "applied" not in first.stderr
    assert "[-goverment-]{+government+}" in first.stdout
    assert "{+książka+}" in first.stdout
    assert re.search(r"is COMPLETED: 12 rows PROCESSED, 0 failed", first.stdout)
    assert first.stderr == "", "nothing but the story itself"

    began = time.monotonic()
    second = shell.run("quickstart", "--folder", str(folder))
    assert second.returncode == 0
    assert time.monotonic() - began < 15
    assert embedded.Server(folder).pid is None

    counted = rows(
        folder,
        "SELECT t.id_task, t.records_processed, t.finished_at IS NOT NULL, COUNT(i.text_corrected), "
        "SUM(i.text_corrected <> i.text_original) FROM task t JOIN task_item i USING (id_task) GROUP BY t.id_task",
    )
    assert [(row[1], row[2], row[3]) for row in counted] == [(12, 1, 12)] * 2
    assert all(row[4] >= 8 for row in counted), "most of the sentences hold mistakes"
    assert rows(folder, "SELECT name, provider, api_key_encrypted FROM ai_model") == [("offline", "offline", None)]


def test_what_it_says_about_going_on_is_true(shell: Programs, folder: Path) -> None:
    said = shell.run("quickstart", "--folder", str(folder), "--rows", "3").stdout
    url = re.search(r"export AI_WORKER_DB_URL=(\S+)", said)[1]
    id_task = re.search(r" status (\d+)", said)[1]
    assert " results " in said
    for part in ("keygen", "--api-key-stdin", "submit", "migrate"):
        assert part in said

    env = {"AI_WORKER_DB_URL": url}
    status = shell.run("status", id_task, env=env)
    assert status.returncode == 0, status.stderr
    assert "COMPLETED" in status.stdout
    page = shell.run("results", id_task, "--format", "html", "-o", "changes.html", env=env)
    assert page.returncode == 0, page.stderr
    assert "government" in (shell.folder / "changes.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [1, 30])
def test_as_many_rows_as_asked_for(shell: Programs, folder: Path, count: int) -> None:
    done = shell.run("quickstart", "--folder", str(folder), "--rows", str(count))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} rows PROCESSED" in done.stdout
    assert rows(folder, "SELECT COUNT(*) FROM task_item") == [(count,)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_leaves_nothing_running(shell: Programs, folder: Path, number: signal.Signals) -> None:
    quickstart = shell.start("quickstart", "--folder", str(folder), "--rows", "5000")
    quickstart.wait_for("Processing")
    quickstart.process.send_signal(number)
    quickstart.wait()
    assert "Traceback" not in quickstart.text()
    assert embedded.Server(folder).pid is None
    assert rows(folder, "SELECT COUNT(*) FROM task_item WHERE status_id = 2") == [(0,)]


def test_after_a_kill_the_next_run_cleans_up(shell: Programs, folder: Path) -> None:
    killed = shell.start("quickstart", "--folder", str(folder), "--rows", "5000")
    killed.wait_for("Processing")
    killed.process.kill()
    killed.wait()
    again = shell.run("quickstart", "--folder", str(folder))
    assert again.returncode == 0, again.stdout + again.stderr
    assert embedded.Server(folder).pid is None


def test_without_a_server_program(shell: Programs, folder: Path, tmp_path: Path) -> None:
    """On a machine where none is installed: stands in for it a PATH, and a look into /usr/sbin, that find nothing."""
    (tmp_path / "sitecustomize.py").write_text("import shutil\nshutil.which = lambda *args, **kwargs: None\n")
    done = shell.run("quickstart", "--folder", str(folder), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 78
    assert "apt-get install --no-install-recommends mariadb-server-core" in done.stderr
    assert "AI_WORKER_DB_URL" in done.stderr
