"""AI Worker's commands in a Windows Python."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.servers import TestDatabase
from tests.windows.machine import Machine, windows_path

pytestmark = pytest.mark.windows

_ALL_MODULES = """
import importlib, pkgutil, ai_worker
names = [each.name for each in pkgutil.walk_packages(ai_worker.__path__, "ai_worker.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

_LOOP = """
import asyncio, sys
from ai_worker.worker import runtime
async def main():
    return type(asyncio.get_running_loop()).__name__
print(sys.platform, runtime.run(main()))
"""


def test_it_starts_on_windows_event_loop(machine: Machine) -> None:
    ended = machine.run(machine.python, "-c", _LOOP)
    assert ended.stdout.split() == ["win32", "ProactorEventLoop"], ended.stderr


def test_every_module_can_be_imported(machine: Machine) -> None:
    ended = machine.run(machine.python, "-c", _ALL_MODULES)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100


def test_a_private_server_is_refused(machine: Machine) -> None:
    for arguments, env in ((["quickstart"], {}), (["status"], {"AI_WORKER_DB_URL": "embedded:///C:/data"})):
        ended = machine.ai_worker(*arguments, env=env)
        assert ended.returncode == 78, ended.stdout + ended.stderr
        assert "not to be had on Windows; set AI_WORKER_DB_URL" in ended.stderr
        assert ended.stdout == ""


def test_an_administrators_commands_use_the_services_settings(machine: Machine, database: TestDatabase) -> None:
    """As install.ps1 leaves them in C:\\ProgramData: the password is in a file of its own."""
    folder = machine.folder / "prefix" / "drive_c" / "ProgramData" / "AI Worker"
    (folder / "credentials").mkdir(parents=True)
    try:
        url = database.url
        assert ":tester@" in url
        (folder / "ai-worker.env").write_text(f"AI_WORKER_DB_URL={url.replace(':tester@', '@')}\r\n", newline="")
        assert machine.ai_worker("status").returncode != 0
        (folder / "credentials" / "db-password").write_text("tester\r\n", newline="")
        ended = machine.ai_worker("status")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        shutil.rmtree(folder)


def test_systemd_is_refused(machine: Machine) -> None:
    ended = machine.ai_worker("service", "status")
    assert ended.returncode == 2, ended.stderr
    assert "systemd/windows" in ended.stderr


def test_rows_go_in_and_come_out(machine: Machine, database: TestDatabase, tmp_path: Path) -> None:
    """The way of a CSV file as Windows' programs write it: CRLF, a folder with a space, paths with backslashes."""
    folder = tmp_path / "my files"
    folder.mkdir()
    settings = folder / "ai-worker.env"
    settings.write_bytes(f'AI_WORKER_DB_URL="{database.url}"\r\nAI_WORKER_WORKER_NAME=okno\r\n'.encode("utf-16"))
    env = {"AI_WORKER_ENV_FILE": windows_path(settings)}

    def run(*args: str, code: int = 0) -> str:
        ended = machine.ai_worker(*args, env=env)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    assert f"settings: read from {windows_path(settings)}" in run("doctor")
    run("model", "add", "echo", "--provider", "echo")
    texts = ["Zażółć gęślą jaźń", "dwa\r\nwiersze", "🐢"]
    with (folder / "texts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, dialect="excel").writerows([["text"], *([text] for text in texts)])
    task = json.loads(run("submit", windows_path(folder / "texts.csv"), "--type", "correction", "--model", "echo", "--json"))
    assert task["items"] == 3
    assert json.loads(run("run", "--json").splitlines()[-1])["processed"] == 3
    run("results", str(task["id_task"]), "--format", "csv", "-o", windows_path(folder / "out.csv"))
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text_original"] for row in rows] == texts
    assert [row["text_corrected"] for row in rows] == texts
    assert "okno" in run("workers", "--all")
