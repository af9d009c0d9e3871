"""The program among other programs: outputs in any encoding, full, closed or left early, and Ctrl-C at any moment.

None of these may end in a traceback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.servers import Programs, environment

TEXT = "Popraw: zażółć gęślą jaźń 🦊"
FULL = Path("/dev/full")

Environment = dict[str, str | None]

ENCODINGS: dict[str, Environment] = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "latin-1:strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "cp1250": {"PYTHONIOENCODING": "cp1250"},
    "C": {"LC_ALL": "C"},
    "C, not coerced": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
BUFFERED: dict[str, Environment] = {"buffered": {"PYTHONUNBUFFERED": None}, "unbuffered": {"PYTHONUNBUFFERED": "1"}}


@pytest.fixture
def task(sql: Sql) -> int:
    sql("INSERT INTO ai_model (name, provider, model) VALUES ('Łódź', 'echo', 'm')")
    sql("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, %s FROM ai_model", [TEXT])
    (row,) = sql("SELECT id_task FROM task")
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [row["id_task"], TEXT])
    id_task: int = row["id_task"]
    return id_task


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "ai_worker", *args]


def is_told_in_one_line(stderr: str, message: str) -> bool:
    lines = stderr.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("ai-worker: ") and message in lines[0]


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_an_output_in_any_encoding_is_readable_and_its_json_exact(
    programs: Programs, task: int, encoding: Environment, tmp_path: Path
) -> None:
    codec = (encoding.get("PYTHONIOENCODING") or "utf-8").partition(":")[0]

    def output(*args: str) -> str:
        ended = subprocess.run(
            command(*args),
            env=environment(programs.database_url, encoding),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        return ended.stdout.decode(codec)

    assert json.loads(output("status", "--json"))[0]["description"] == TEXT
    assert json.loads(output("run", "--dry-run", "--json").splitlines()[0])["model"] == "Łódź"
    assert "Popraw: za" in output("status")
    assert "Popraw: za" in output("status", str(task))
    assert "Popraw: za" in output("run", "--dry-run")


def test_an_error_can_be_told_in_any_encoding(programs: Programs) -> None:
    # Greek, which has none of these letters.
    ended = programs.run("run", "--model", "Żółw 🐢", env={"PYTHONIOENCODING": "iso8859-7:strict"})
    assert ended.returncode == 2
    assert is_told_in_one_line(ended.stderr, r"\u017b\u00f3\u0142w \ud83d\udc22")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffered", BUFFERED.values(), ids=BUFFERED)
@pytest.mark.parametrize(
    "args", ["status", "status --json", "results {}", "results {} --format jsonl", "run --dry-run", "--help"]
)
def test_a_full_disk_is_told_in_one_line(programs: Programs, task: int, args: str, buffered: Environment, tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        ended = subprocess.run(
            command(*args.format(task).split()),
            env=environment(programs.database_url, buffered),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1, ended.stderr
    assert is_told_in_one_line(ended.stderr, os.strerror(28)), ended.stderr


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffered", BUFFERED.values(), ids=BUFFERED)
def test_a_log_that_cannot_be_written_changes_no_exit_code(
    programs: Programs, task: int, buffered: Environment, tmp_path: Path
) -> None:
    """The interpreter makes it 120 where it finds something left to write at its end."""
    with FULL.open("wb") as full:
        ended = subprocess.run(
            command("run", "--task", str(task)),
            env=environment(programs.database_url, buffered),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 0


@pytest.mark.parametrize("buffered", BUFFERED.values(), ids=BUFFERED)
@pytest.mark.parametrize("args", ["status", "status --json", "results {}", "run --dry-run"])
def test_a_reader_who_leaves_early_is_no_error(
    programs: Programs, task: int, args: str, buffered: Environment, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            command(*args.format(task).split()),
            env=environment(programs.database_url, buffered),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize("program", [[sys.executable, "-m", "ai_worker"], [str(Path(sys.executable).with_name("ai-worker"))]])
@pytest.mark.parametrize("module", ["click", "pydantic_settings", "pymysql"])
def test_ctrl_c_while_the_program_still_loads_is_told_in_one_line(tmp_path: Path, program: list[str], module: str) -> None:
    """A library that stands in for the real one, and in whose import the signal comes: no timing, no chance."""
    (tmp_path / f"{module}.py").write_text(f"import os\nos.kill(os.getpid(), {signal.SIGINT:d})\n")
    ended = subprocess.run(
        [*program, "status"],
        env=environment("mysql://nobody@127.0.0.1:9/none", {"PYTHONPATH": str(tmp_path)}),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert is_told_in_one_line(ended.stderr, "interrupted"), ended.stderr
    assert ended.stdout == ""
