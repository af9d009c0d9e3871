"""A private MariaDB or MySQL server in a folder, on a socket of its own: to try things out without touching any other database.

What lies in the folder:

    data/                     the server's tables, made on first use
    tmp/ server.log server.pid server.sock
    change.lock               held by a process while it starts or stops the server
    users.lock                held (shared) by every process that uses the server; the last one out stops it
    alive.lock                held by the server itself, which inherits it: the kernel's word on whether a server is running

All three are `flock` locks: the kernel drops them with their process, so nothing has to be cleaned up after a SIGKILL. A server
that a killed command left behind is found alive by the next one, used, and stopped at its end.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ai_worker.errors import ConfigurationError, DatabaseAway

if sys.platform != "win32":
    import fcntl

APT_LINE = "apt-get install --no-install-recommends mariadb-server-core mariadb-client-core"
DATABASE_NAME = "ai_worker"

# Seconds. Generous: crash recovery and a busy machine take their time, and a wait that succeeds ends at once.
_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 60.0
_POLL = 0.02

_SOCKET_PATH_LIMIT = 103  # bytes in sockaddr_un.sun_path without the final NUL: 107 on Linux, 103 on macOS and the BSDs

# Small, because it shares a laptop. What makes a commit durable stays at the server's defaults.
_OPTIONS = (
    "--skip-networking",
    "--performance-schema=OFF",
    "--innodb-buffer-pool-size=64M",
    "--character-set-server=utf8mb4",
)
_OPTIONS_MARIADB = ("--innodb-log-file-size=48M",)
_OPTIONS_MYSQL = ("--mysqlx=OFF", "--skip-log-bin", "--secure-file-priv=NULL")


def require() -> None:
    """Raises ConfigurationError where there can be no private server: Python has neither `flock` nor Unix sockets on Windows."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "a private server (embedded://, quickstart) is not to be had on Windows; set AI_WORKER_DB_URL to a database that you "
            "have: mysql://user:password@host:3306/ai_worker"
        )


@contextmanager
def running(folder: Path, options: Sequence[str] = (), *, program: str | None = None) -> Iterator[str]:
    """A private server in `folder`, for the length of the block; yields its database URL.

    Parameters
    ----------
    folder: made when missing; holds all that belongs to the server.
    options: further options for the server, used only if this call is the one that starts it.
    program: the path of the server program; without one, the first that is found of `mariadbd` and `mysqld`.

    Several processes (and threads) may use one folder at the same time; they share the server. The URL names the database
    `ai_worker`, which `migrate` makes.

    Raises ConfigurationError when there is no server program or it cannot work here, DatabaseAway when it does not come up.
    """
    require()
    server = Server(folder, program)
    with _locked(server.folder / "users.lock", fcntl.LOCK_SH) as users:
        try:
            with _locked(server.folder / "change.lock", fcntl.LOCK_EX):
                server.start(options)
            yield server.url
        finally:
            # Asking for more than one holds may lose what one holds; nobody minds, for this user is leaving.
            with _locked(server.folder / "change.lock", fcntl.LOCK_EX), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()


class Server:
    """The server of one folder. `running` is what shares it between processes; tests start, stop and kill it themselves."""

    def __init__(self, folder: Path, program: str | None = None) -> None:
        self._given_program = program
        self.folder = folder.expanduser().resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        self._data = self.folder / "data"
        self._pid_file = self.folder / "server.pid"
        self._log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        """Where the server listens. A folder with a long name gets a short path elsewhere: a socket's has little room."""
        path = self.folder / "server.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
            return path
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"ai-worker-{os.geteuid()}-{name}"
        parent.mkdir(mode=0o700, exist_ok=True)
        if parent.stat().st_uid != os.geteuid() or parent.is_symlink():  # the name can be guessed, and /tmp is everybody's
            raise ConfigurationError(f"{parent} belongs to somebody else; use a folder with a shorter name than {self.folder}")
        return parent / "s.sock"

    @property
    def url(self) -> str:
        """The URL of the database `ai_worker` on this server: as the system's user, without a password, by the socket only."""
        user = "root" if self._made_by_mysql() else getpass.getuser()
        return f"mysql://{quote(user, safe='')}@/{DATABASE_NAME}?socket={quote(str(self.socket_path))}"

    @property
    def pid(self) -> int | None:
        """The process id of the running server, None when there is none."""
        if not self.is_alive():
            return None
        with suppress(FileNotFoundError, ValueError):  # alive, but not yet so far as to have written it
            return int(self._pid_file.read_text())
        return self._process.pid if self._process else None

    def is_alive(self) -> bool:
        """Whether a server process of this folder exists, answering or not."""
        try:
            with _locked(self.folder / "alive.lock", fcntl.LOCK_SH | fcntl.LOCK_NB):  # shared: two who ask do not see each other
                return False
        except BlockingIOError:
            return True

    def start(self, options: Sequence[str] = ()) -> None:
        """Starts the server unless it runs, and waits until it answers. Makes the data on first use."""
        if not self.is_alive():
            program, is_mysql = self._program()
            if not self._data.exists():
                self._initialise(program, is_mysql)
            self._spawn(program, is_mysql, options)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if not self.is_alive():
                raise DatabaseAway(
                    f"the private database server ended while starting; {self._log} ends with:\n{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise DatabaseAway(f"the private database server did not answer within {_START_TIMEOUT:.0f} s; see {self._log}")
            time.sleep(_POLL)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Stops the server and waits for its end. With SIGKILL it crashes it: for tests."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal_number)
            while self.is_alive() and time.monotonic() < deadline:
                time.sleep(_POLL)
            signal_number = signal.SIGKILL  # it had its time
            deadline += _STOP_TIMEOUT
        if self._process:
            self._process.wait()
            self._process = None
        if self.socket_path.parent != self.folder:
            self.socket_path.unlink(missing_ok=True)
            self.socket_path.parent.rmdir()

    def _spawn(self, program: str, is_mysql: bool, options: Sequence[str]) -> None:
        (self.folder / "tmp").mkdir(exist_ok=True)
        self._pid_file.unlink(missing_ok=True)  # a stale one would name a stranger
        command = [
            *(program, "--no-defaults", *_as_root(), f"--datadir={self._data}", f"--tmpdir={self.folder / 'tmp'}"),
            *(f"--socket={self.socket_path}", f"--pid-file={self._pid_file}"),
            *(*_OPTIONS, *(_OPTIONS_MYSQL if is_mysql else _OPTIONS_MARIADB), *options),
        ]
        with _locked(self.folder / "alive.lock", fcntl.LOCK_EX) as alive, self._log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal is for the command, which then stops the server in good order.
            self._process = subprocess.Popen(  # noqa: S603 -- a program found by us, with arguments made by us
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[alive], start_new_session=True
            )

    def _initialise(self, program: str, is_mysql: bool) -> None:
        """Makes the data beside its final place and moves it there when complete: what was cut short is not mistaken for data."""
        for leftover in self.folder.glob("data-new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="data-new-", dir=self.folder))
        if is_mysql:
            command = [program, "--no-defaults", *_as_root(), "--initialize-insecure", f"--datadir={new}"]
        else:
            install = _which("mariadb-install-db", "mysql_install_db")
            if install is None:
                raise ConfigurationError(f"found {program} but not mariadb-install-db; install it with\n  {APT_LINE}")
            # By a relative path, for the script takes one with a space in it apart.
            command = [install, "--no-defaults", *_as_root(), f"--datadir=./{new.name}", "--skip-name-resolve", "--skip-test-db"]
            command += ["--force"]  # also where the host's own name cannot be looked up: nobody will come by it
            command += ["--auth-root-authentication-method=socket"]  # the system's user gets in without a password, nobody else
        result = subprocess.run(  # noqa: S603 -- as above
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            tail = "\n".join(result.stdout.strip().splitlines()[-15:])
            raise ConfigurationError(f"the private database could not be made in {self.folder}:\n{tail}")
        new.rename(self._data)

    def _program(self) -> tuple[str, bool]:
        """The server program, and whether it is MySQL's; of the kind that made the data, where there are data."""
        for name in (self._given_program,) if self._given_program else ("mariadbd", "mysqld"):
            program = _which(name)
            if program is None:
                continue
            is_mysql = "mariadb" not in _version(program).lower()  # Debian's mysqld is a link to mariadbd
            if not self._data.exists() or is_mysql == self._made_by_mysql():
                return program, is_mysql
        if self._data.exists():
            kind = "MySQL's mysqld" if self._made_by_mysql() else "mariadbd"
            raise ConfigurationError(f"the data in {self.folder} were made by {kind}, which is no longer here; install it again")
        raise ConfigurationError(
            "no database server program (mariadbd or mysqld) found. Install one, which starts no service, with\n"
            f"  {APT_LINE}\nor set AI_WORKER_DB_URL to a database that you have: mysql://user:password@host:3306/ai_worker"
        )

    def _made_by_mysql(self) -> bool:
        return (self._data / "mysql.ibd").exists()  # MySQL 8 and later; MariaDB keeps its system tables in Aria

    def _answers(self) -> bool:
        """Whether the server sends its greeting (https://mariadb.com/kb/en/connection/): only then does it take logins."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.settimeout(5)
            probe.connect(str(self.socket_path))
            return len(probe.recv(5)) == 5
        return False

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    """Holds a lock on the file `path`; yields its descriptor. Raises BlockingIOError when it was not to wait."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise _unusable(path.parent, error) from None
    with file:
        fcntl.flock(file, how)
        yield file.fileno()


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"the private database cannot live in {folder}: {error.strerror or error}; use another folder")


def _which(*names: str) -> str | None:
    """The first of these programs that there is, also in /usr/sbin, which is not on everybody's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _version(program: str) -> str:
    return subprocess.run([program, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603 -- found by us


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []  # both servers refuse to run as root unless told so
