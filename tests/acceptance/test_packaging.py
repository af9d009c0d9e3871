"""The wheel, installed into an empty environment, has all it needs."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from ai_worker.db import sql_folder
from tests.servers import environment

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a program that must succeed; what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(None, {"PYTHONPATH": None, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sql = {f"ai_worker/sql/{path.relative_to(sql_folder())}" for path in sql_folder().rglob("*.sql")}
    systemd = {f"ai_worker/{path.relative_to(ROOT)}" for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    package = {
        f"ai_worker/{path.relative_to(ROOT / 'daemon' / 'ai_worker')}"
        for path in (ROOT / "daemon" / "ai_worker").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "ai_worker/sql/migrations/0001_core.sql" in sql
    assert {name for name in names if ".dist-info/" not in name} == sql | systemd | package
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_quickstart_from_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    story = run(programs / "ai-worker", "quickstart", "--folder", tmp_path / "data", cwd=empty)
    assert "12 rows PROCESSED, 0 failed" in story
    assert "{+książka+}" in story
    assert list(empty.iterdir()) == []
    assert "migrate" in run(programs / "ai-worker", "--help", cwd=empty)
