"""Hostile files: what is packed is refused, and links are not written through."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.worker_runs import add_model, add_task


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, tmp_path: Path) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.chdir(tmp_path)
    return Commands(monkeypatch, capsys)


def test_packed_files_are_not_opened(ai_worker: Commands, sql: Sql, tmp_path: Path) -> None:
    """Neither by their name nor when they pretend to be text: a clear error, at once, and nothing stored."""
    add_model(sql, None, "echo", "echo")
    zeros = bytes(50 << 20)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/sharedStrings.xml", zeros)
    for name, content in (
        ("rows.csv.gz", gzip.compress(zeros)),
        ("rows.zip", packed.getvalue()),
        ("rows.xlsx", packed.getvalue()),
        ("gzip.csv", gzip.compress(zeros)),
        ("zip.csv", packed.getvalue()),
        ("zip.jsonl", packed.getvalue()),
        ("gzip.txt", gzip.compress(zeros)),
    ):
        (tmp_path / name).write_bytes(content)
        ended = ai_worker("submit", name, "--model", "echo")
        assert (ended.code, ended.out) == (2, ""), name
        assert ended.err.count("\n") == 1
        assert name in ended.err
    assert sql("SELECT COUNT(*) AS n FROM task")[0]["n"] == 0
    assert sql("SELECT COUNT(*) AS n FROM task_item")[0]["n"] == 0


def test_results_do_not_follow_a_link(ai_worker: Commands, sql: Sql, tmp_path: Path) -> None:
    """A link in the place of the file is replaced, not written through."""
    id_task = add_task(sql, add_model(sql, None, "echo", "echo"), ["Ala"])
    victim = tmp_path / "victim.csv"
    victim.write_text("kept", encoding="utf-8")
    (tmp_path / "out.csv").symlink_to(victim)
    assert ai_worker("results", str(id_task), "-o", "out.csv").code == 0
    assert victim.read_text(encoding="utf-8") == "kept"
    assert "Ala" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert not (tmp_path / "out.csv").is_symlink()
