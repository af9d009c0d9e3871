"""What is different on Windows, as far as Python lets another system show it; `make test-windows` runs a Windows Python.

`make lint` beside it checks the package's types as they are on Windows: what exists on POSIX alone is an error there.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ai_worker import embedded
from ai_worker.cli.doctor_settings import check_settings
from ai_worker.cli.keys import read_secret
from ai_worker.config import load_settings
from ai_worker.errors import ConfigurationError
from ai_worker.library import read_source
from ai_worker.worker import runtime
from ai_worker.worker.signals import reload_signal, stop_signals

POLISH = "zażółć"

ENCODINGS = {
    "UTF-8": POLISH.encode(),
    "Notepad": codecs.BOM_UTF8 + POLISH.encode(),
    "PowerShell 5.1": codecs.BOM_UTF16_LE + POLISH.encode("utf-16-le"),
    "big-endian": codecs.BOM_UTF16_BE + POLISH.encode("utf-16-be"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: no .env but the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


def with_line_end(content: bytes) -> bytes:
    """The same text with Windows' line end."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if content.startswith(mark):
            return content + "\r\n".encode(encoding)
    return content + b"\r\n"


# ----- files as Windows' editors and shells write them


@pytest.mark.parametrize("content", ENCODINGS.values(), ids=ENCODINGS)
def test_secrets_are_read_as_windows_writes_them(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte order mark would be a part of the password, which nobody sees in the message about the failed login."""
    path = Path("db-password")
    path.write_bytes(with_line_end(content))
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD_FILE", str(path))
    password = load_settings().db_password
    assert password is not None
    assert password.get_secret_value() == POLISH
    assert read_secret(path) == POLISH


@pytest.mark.parametrize("content", ENCODINGS.values(), ids=ENCODINGS)
def test_a_prompt_is_read_as_windows_writes_it(content: bytes) -> None:
    path = Path("mine.md")
    path.write_bytes(with_line_end(content))
    assert read_source(path) == f"{POLISH}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_env_file_is_read_as_windows_writes_it(encoding: str) -> None:
    lines = 'AI_WORKER_WORKER_NAME="żółw"\r\n\r\n# comment\r\nAI_WORKER_CONCURRENCY=7\r\nAI_WORKER_FILES_FOLDER=/srv/dane\r\n'
    Path(".env").write_bytes(lines.encode(encoding))
    settings = load_settings()
    assert (settings.worker_name, settings.concurrency, str(settings.files_folder)) == ("żółw", 7, "/srv/dane")
    assert "problem" not in {finding.level for finding in check_settings() if finding.check != ".env"}


def test_paths_of_windows_stay_what_they_are_without_quotation_marks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""The doctor warns of those within: of "C:\new", \n would be a line end."""
    named = folder / r"C:\new\table"  # one file name here, and as good as another
    named.write_text("tajne")
    Path(".env").write_text(rf"AI_WORKER_DB_PASSWORD_FILE={named.name}" + "\r\n")
    password = load_settings().db_password
    assert password is not None
    assert password.get_secret_value() == "tajne"
    monkeypatch.setattr(sys, "platform", "win32")
    assert {finding.level for finding in check_settings()} == {"ok"}

    Path(".env").write_text(rf'AI_WORKER_DB_PASSWORD_FILE="{named.name}"' + "\r\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings()
    Path(".env").write_text(r'AI_WORKER_WORKER_NAME="a\b"' + "\r\n")
    assert [finding.message for finding in check_settings() if finding.level != "ok"] == [
        r".env, line 1: within quotation marks a backslash may begin an escape: \n becomes a line end"
    ]


# ----- the process


def test_control_break_stops_and_without_sighup_nothing_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGBREAK has no number here, so a free one stands in; SIGHUP has none on Windows."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.delattr(signal, "SIGHUP")
    before = signal.getsignal(signal.SIGUSR1)

    async def main() -> None:
        asked = asyncio.Event()
        with stop_signals(asked.set), reload_signal(lambda: pytest.fail("there is nothing that could ask for it")):
            signal.raise_signal(signal.SIGUSR1)
            await asyncio.wait_for(asked.wait(), 5)

    asyncio.run(main())
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_worker_runs_on_pythons_own_loop_where_uvloop_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows that is the proactor's; nor are there signal masks."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delattr(signal, "pthread_sigmask")

    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert runtime.run(main()).startswith("asyncio.")


def test_a_private_server_is_refused_before_anything_else_happens(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with (
        pytest.raises(ConfigurationError, match="not to be had on Windows; set AI_WORKER_DB_URL"),
        embedded.running(folder / "db"),
    ):
        pytest.fail("it runs")
    assert not (folder / "db").exists()


# Loads everything once, for the libraries' sake, and then the package again, in a Python that lacks what Windows lacks.
_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, socket, sys
import ai_worker

def names():
    return [each.name for each in pkgutil.walk_packages(ai_worker.__path__, "ai_worker.")]

for name in names():
    importlib.import_module(name)
for name in [name for name in sys.modules if name == "ai_worker" or name.startswith("ai_worker.")]:
    del sys.modules[name]
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "uvloop"):
    sys.modules[name] = None
for name in ("geteuid", "getuid", "getgid", "fork", "killpg", "setsid", "uname", "sysconf", "getloadavg", "O_NOFOLLOW"):
    delattr(os, name)
for name in [name for name in dir(os) if name.startswith("EX_") and name != "EX_OK"]:
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)
del socket.AF_UNIX
sys.platform = "win32"
os.environ["NOTIFY_SOCKET"] = "/run/nobody"
os.environ["PROGRAMDATA"] = "/data"
import ai_worker
for name in names():
    importlib.import_module(name)
from ai_worker import config, notify
assert config.SERVICE_FOLDER.parts[-2:] == ("data", "AI Worker")
assert not notify.is_heard() and not notify.tell(notify.READY)
print(len(names()))
"""


def test_every_module_can_be_imported_without_what_only_posix_has() -> None:
    ended = subprocess.run([sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100


def test_time_zones_are_known_where_the_system_has_none() -> None:
    """As on Windows: by the package tzdata."""
    code = "from ai_worker.cron import Cron; print(Cron('0 9 * * *', 'Europe/Warsaw').zone)"
    environment = {**os.environ, "PYTHONTZPATH": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.strip() == "Europe/Warsaw", ended.stderr


@pytest.mark.parametrize(
    ("code_page", "shown"), [("cp852", r"żółw\u2192\ud83d\udc22"), ("cp1252", r"\u017có\u0142w\u2192\ud83d\udc22")]
)
def test_a_console_of_windows_gets_what_it_can_show(code_page: str, shown: str) -> None:
    """The rest comes out as escapes, never as a traceback."""
    command = [sys.executable, "-m", "ai_worker", "status", "żółw→🐢"]
    environment = {**os.environ, "PYTHONIOENCODING": code_page, "PYTHONUTF8": "0"}
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert shown in ended.stderr.decode(code_page)
