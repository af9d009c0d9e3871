"""A private server per folder: shared while in use, gone afterwards, whatever happened to the commands that used it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from ai_worker import embedded
from ai_worker.database_url import parse_database_url
from ai_worker.errors import ConfigurationError, DatabaseAway


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """The data of a new server, made once: the tests copy it."""
    with tempfile.TemporaryDirectory() as folder:
        with embedded.running(Path(folder)):
            pass
        yield Path(folder) / "data"


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with data, without a server; a server still running at the end is the test's failure."""
    folder = tmp_path / "private"
    folder.mkdir()
    shutil.copytree(template, folder / "data")
    yield folder
    leftover = embedded.Server(folder).pid
    if leftover:
        os.kill(leftover, signal.SIGKILL)
    assert not leftover, "a server was left running"


def ask(url: str, statement: str = "SELECT 1") -> object:
    """The one value that a statement gives on the server of this URL."""
    parsed = parse_database_url(url)
    with pymysql.connect(unix_socket=parsed.unix_socket, user=parsed.user) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def user_of(folder: Path) -> subprocess.Popen[str]:
    """Another process that uses the folder until its stdin is closed; it has the server when this returns."""
    program = (
        "import sys; from pathlib import Path; from ai_worker import embedded\n"
        "with embedded.running(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_new_folder_becomes_a_durable_server_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "zażółć gęślą" / "new"
    with embedded.running(folder) as url:
        assert ask(url, "SELECT @@innodb_flush_log_at_trx_commit") == 1
        assert ask(url, "SELECT @@skip_networking") == 1
        assert ask(url, "SELECT @@character_set_server") == "utf8mb4"
        assert folder.stat().st_mode & 0o077 == 0
    assert embedded.Server(folder).pid is None
    with pytest.raises(pymysql.err.OperationalError):
        ask(url)


def test_what_was_written_is_there_the_next_time(folder: Path) -> None:
    with embedded.running(folder) as url:
        parsed = parse_database_url(url)
        with pymysql.connect(unix_socket=parsed.unix_socket, user=parsed.user) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE kept")
    with embedded.running(folder) as url:
        assert ask(url, "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = 'kept'") == 1


def test_users_share_one_server_and_the_last_one_out_stops_it(folder: Path) -> None:
    with embedded.running(folder) as url:
        pid = embedded.Server(folder).pid
        other = user_of(folder)
        assert embedded.Server(folder).pid == pid
    assert ask(url) == 1, "the other process still uses it"
    other.communicate(timeout=30)
    assert other.returncode == 0
    assert embedded.Server(folder).pid is None


def test_many_that_start_at_once_get_one_server(folder: Path) -> None:
    pids: list[int | None] = []
    together = threading.Barrier(8)

    def use() -> None:
        together.wait()
        with embedded.running(folder) as url:
            ask(url)
            pids.append(embedded.Server(folder).pid)
            together.wait()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pids) == 8
    assert len(set(pids)) == 1


def test_in_and_out_all_the_time(folder: Path) -> None:
    """Leaving and coming cross each other: whoever is in has a server that answers."""
    answers: list[object] = []

    def use() -> None:
        for _ in range(4):
            with embedded.running(folder) as url:
                answers.append(ask(url))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [1] * 16


def test_a_server_that_a_killed_command_left_is_adopted_and_stopped(folder: Path) -> None:
    killed = user_of(folder)
    pid = embedded.Server(folder).pid
    killed.kill()
    killed.wait()
    assert embedded.Server(folder).pid == pid, "it survives its owner"
    with embedded.running(folder) as url:
        assert embedded.Server(folder).pid == pid
        assert ask(url) == 1
    assert embedded.Server(folder).pid is None


def test_a_server_that_was_killed_itself_is_started_anew(folder: Path) -> None:
    with embedded.running(folder):
        embedded.Server(folder).stop(signal.SIGKILL)
        assert (folder / "server.pid").exists(), "stale files are there"
        with embedded.running(folder) as url:
            assert ask(url) == 1


def test_ctrl_c_at_the_terminal_is_for_the_command_not_for_the_server(folder: Path) -> None:
    with embedded.running(folder):
        assert os.getsid(embedded.Server(folder).pid) != os.getsid(0)


def test_data_that_were_cut_short_while_being_made_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "data-new-1234").mkdir()
    (tmp_path / "data-new-1234" / "ibdata1").write_text("half")
    with embedded.running(tmp_path) as url:
        assert ask(url) == 1
    assert not list(tmp_path.glob("data-new-*"))


def test_a_long_path_gets_a_short_socket(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        shutil.copytree(template, folder / "data")
        with embedded.running(folder) as url:
            assert parse_database_url(url).unix_socket.startswith(runtime)
            assert ask(url) == 1
        assert list(Path(runtime).iterdir()) == []


def test_no_server_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    with (
        pytest.raises(ConfigurationError, match=r"(?s)apt-get install .*mariadb-server-core.*AI_WORKER_DB_URL"),
        embedded.running(tmp_path),
    ):
        pass


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(DatabaseAway, match="no-such-option"), embedded.running(folder, ["--no-such-option"]):
        pass


@pytest.mark.parametrize(
    ("name", "reason"), [("file", "File exists"), ("file/below", "Not a directory"), ("x" * 300, "File name too long")]
)
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match=f"cannot live in {tmp_path / name}: {reason}"),
        embedded.running(tmp_path / name),
    ):
        pass


def test_a_folder_whose_locks_cannot_be_had_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "users.lock").mkdir()  # as an unwritable folder, which does not stop root
    with pytest.raises(ConfigurationError, match=f"cannot live in {tmp_path}: Is a directory"), embedded.running(tmp_path):
        pass
