"""What `ai-worker service install` writes: units for this installation, settings, credentials. And what it asks of systemd."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

import ai_worker
from ai_worker.config import SERVICE_CREDENTIALS, SERVICE_ENV_FILE, SERVICE_FOLDER
from ai_worker.errors import AiWorkerError, ConfigurationError, UsageError

UNITS: Final = Path("/etc/systemd/system")
TARGET: Final = "ai-worker.target"
WORKER: Final = "ai-worker@"
WEB: Final = "ai-worker-web.service"
PRUNE: Final = "ai-worker-prune.service"
TIMER: Final = "ai-worker-prune.timer"
FILES: Final = ("ai-worker@.service", WEB, PRUNE, TIMER, TARGET)
# Units whose user of the database may be another than the workers': their settings beside the common ones, and their password.
OWN_SETTINGS: Final = {WEB: "ai-worker-web.env", PRUNE: "ai-worker-prune.env"}
OWN_PASSWORD: Final = {WEB: "credentials/db-password-web", PRUNE: "credentials/db-password-prune"}
BACKOFF: Final = "10-restart-backoff.conf"
BACKOFF_SINCE: Final = 254  # of systemd: before, its lines are unknown
PACKAGED: Final = "/opt/ai-worker/bin/ai-worker"  # what the unit files start, as they are shipped

_UNFIT: Final = re.compile(r"[\s\"'%$\\;]")  # of a path in ExecStart=
# The services see nothing of these folders (ProtectHome=, PrivateTmp=).
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 -- named to be refused


def units_folder() -> Path:
    """The folder with the unit files: inside the installed package, or beside `daemon/` in a checkout."""
    package = Path(ai_worker.__file__).parent
    packaged = package / "systemd"
    return packaged if packaged.is_dir() else package.parents[1] / "systemd"


def unit_text(name: str, program: Path, *, own_password: bool) -> str:
    """A unit file for this installation; `own_password`: it has a file with its own password of the database."""
    text = (units_folder() / name).read_text(encoding="utf-8").replace(PACKAGED, str(program))
    if own_password:  # systemd can load one file or another under a name, but not one where the other is missing
        text = text.replace(f":{credential('db_password')}\n", f":{SERVICE_FOLDER / OWN_PASSWORD[name]}\n")
    return text


def this_program() -> Path:
    """The command `ai-worker` of this installation."""
    return Path(sys.prefix) / "bin" / "ai-worker"


def check_path(program: Path) -> None:
    """Raises UsageError for a path that would mean something else in a unit file."""
    if not program.is_absolute() or _UNFIT.search(str(program)):
        raise UsageError(f"{program}: systemd starts programs by an absolute path, without blanks, quotes and any of % $ ; \\")


def check_readable(program: Path, root: Path | None) -> None:
    """Raises ConfigurationError where the services could not start the program: they run as a user of their own, which sees no
    home folders."""
    wanted = [program]
    if root is None:
        wanted += [program.resolve(), *_interpreter(program)]
        if program == this_program():
            wanted += [Path(sys.executable).resolve(), Path(ai_worker.__file__).resolve()]
    for path in wanted:
        if any(path.is_relative_to(folder) for folder in _HIDDEN):
            why = "which is hidden from services"
        elif root is None and not path.exists():
            why = "which is not there"
        elif root is None and (closed := _closed(path)) is not None:
            why = f"and other users may not read {closed}"
        else:
            continue
        raise ConfigurationError(
            f"the services would have to read {path}, {why}: install AI Worker where every user may read it, for example "
            f"with `python3 -m venv /opt/ai-worker` and /opt/ai-worker/bin/pip; --program names another installation"
        )


def _interpreter(program: Path) -> list[Path]:
    """The Python that a script is run by."""
    try:
        with program.open("rb") as file:
            line = file.readline(1000)
    except OSError:
        return []
    words = line[2:].split()
    return [Path(os.fsdecode(words[0])).resolve()] if line.startswith(b"#!") and words else []


def _closed(path: Path) -> Path | None:
    """The first of its folders, or the file itself, that users other than the owner may not read."""
    for each in (*reversed(path.parents), path):
        mode = each.stat().st_mode
        if not mode & (stat.S_IXOTH if each.is_dir() else stat.S_IROTH):
            return each
    return None


@dataclass
class Host:
    """The host, or below `root` the image of one; everything that is done to it. With `is_dry`, it is only told."""

    root: Path | None = None
    is_dry: bool = False
    done: list[str] = field(default_factory=list)

    def path(self, absolute: Path) -> Path:
        return absolute if self.root is None else self.root / absolute.relative_to("/")

    def read(self, absolute: Path) -> str | None:
        """A file's text; None where there is none."""
        try:
            return self.path(absolute).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def has_own_password(self, unit: str) -> bool | None:
        """Whether a unit has its own password of the database; None where this user may not look."""
        try:
            return unit in OWN_PASSWORD and stat.S_ISREG(self.path(SERVICE_FOLDER / OWN_PASSWORD[unit]).stat().st_mode)
        except FileNotFoundError:
            return False
        except PermissionError:
            return None

    def write(self, absolute: Path, text: str, mode: int = 0o644) -> bool:
        """Writes a file unless it is so already; whether it was not. Atomically, and never readable by more than `mode` says."""
        path = self.path(absolute)
        if self.read(absolute) == text:
            return False
        self._tell("write", absolute)
        if not self.is_dry:
            self.folder(absolute.parent)
            new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w", encoding="utf-8") as file:  # noqa: PTH123 -- a descriptor
                file.write(text)
            new.chmod(mode)  # whatever the umask says
            new.replace(path)
        return True

    def folder(self, absolute: Path, mode: int = 0o755) -> None:
        """Makes a folder, where there is none."""
        path = self.path(absolute)
        if not path.is_dir() and not self.is_dry:
            path.mkdir(mode=mode, parents=True)

    def remove(self, absolute: Path) -> bool:
        """Deletes a file, or a folder with all that is in it; whether it was there."""
        path = self.path(absolute)
        if not os.path.lexists(path):
            return False
        self._tell("delete", absolute)
        if not self.is_dry:
            # Of a link only the link goes: systemd's /var/lib/ai-worker is one.
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return True

    def systemctl(self, *arguments: str) -> None:
        """Raises AiWorkerError with what systemd says."""
        where = [] if self.root is None else [f"--root={self.root}"]
        self._tell("systemctl", *where, *arguments)
        if not self.is_dry:
            result = _run("systemctl", *where, *arguments)
            if result.returncode:
                said = " ".join((result.stderr or result.stdout).split())
                raise AiWorkerError(f"systemctl {' '.join(arguments)} failed: {said}; look at `journalctl -u 'ai-worker*' -n 20`")

    def instances(self) -> list[str]:
        """The workers' instances that are enabled."""
        wants = self.path(UNITS / f"{TARGET}.wants")
        names = [path.name for path in wants.glob(f"{WORKER}*.service")] if wants.is_dir() else []
        return sorted((name[len(WORKER) : -len(".service")] for name in names), key=lambda name: (len(name), name))

    def is_enabled(self, unit: str) -> bool:
        """Whether it starts with the host."""
        wanted_by = "multi-user.target" if unit == TARGET else TARGET
        return self.path(UNITS / f"{wanted_by}.wants" / unit).is_symlink()

    def _tell(self, *words: object) -> None:
        self.done.append(" ".join(map(str, words)))


def show(*units: str, properties: Iterable[str]) -> list[dict[str, str]]:
    """What systemd knows of these units, or patterns of units."""
    result = _run("systemctl", "show", f"--property={','.join(properties)}", *units)
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in result.stdout.split("\n\n") if block.strip()]


def last_line(unit: str) -> str:
    """The last line of a unit's log; empty where it has said nothing, or where the log cannot be read."""
    try:
        return _run("journalctl", "--unit", unit, "--lines=1", "--output=cat", "--quiet", "--no-pager").stdout.strip()
    except AiWorkerError:
        return ""


def version() -> int:
    """systemd's."""
    found = re.search(r"systemd (\d+)", _run("systemctl", "--version").stdout)
    return int(found[1]) if found else 0


def check_host(root: Path | None, *, writes: bool) -> None:
    """Raises UsageError where there is no systemd to talk to, or no right to."""
    if shutil.which("systemctl") is None:
        hint = "; for Windows there are scripts in systemd/windows" if sys.platform == "win32" else ""
        raise UsageError(f"there is no systemd on this host (no systemctl){hint}")
    if root is None and not Path("/run/systemd/system").is_dir():
        raise UsageError("systemd does not run this host, a container perhaps; --root DIR writes into an image")
    if sys.platform != "win32" and writes and root is None and os.geteuid() != 0:
        raise UsageError("this needs root: run it with sudo, or look with --dry-run")


def settings_text(db_url: str) -> str:
    """The settings as they are first written."""
    template = (units_folder() / SERVICE_ENV_FILE).read_text(encoding="utf-8")
    return template.replace('AI_WORKER_DB_URL=""', f'AI_WORKER_DB_URL="{db_url}"')


def credential(name: str) -> Path:
    return SERVICE_FOLDER / SERVICE_CREDENTIALS[name]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603 -- systemd's own programs
    except OSError as error:
        raise AiWorkerError(f"{command[0]}: {error.strerror}") from None


def echo_done(host: Host) -> None:
    for line in host.done:
        click.echo(("would " if host.is_dry else "") + line)
