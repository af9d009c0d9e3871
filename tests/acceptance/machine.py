"""A throwaway machine with a systemd of its own, over an overlay of this one: AI_WORKER_TEST_BOOT_SYSTEMD names what boots it.

That program knows `start FILES` (a folder that is copied over the machine's root first), `run CMD…` and `stop`, and keeps its
things in $BOOT_SYSTEMD_DIR. The machine has no network but its loopback: Python packages are copied from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TOOL = "AI_WORKER_TEST_BOOT_SYSTEMD"
REQUIRE = "AI_WORKER_TEST_REQUIRE_SYSTEMD"
ROOT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Python packages are there already, and there is no index: pip finds what is required, and builds without isolation.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/root",
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
}


class Machine:
    """A booted machine. Commands run as its root."""

    def __init__(self, tool: str, folder: Path) -> None:
        self._tool = tool
        self._env = {**os.environ, "BOOT_SYSTEMD_DIR": str(folder)}

    def run(
        self, *command: str, cwd: str = "/", input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """One command, to its end. Never raises for its exit code."""
        settings = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return subprocess.run(
            [self._tool, "run", "env", "-i", f"--chdir={cwd}", *settings, *command],
            env=self._env,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def must(self, *command: str, cwd: str = "/", input: str | None = None, timeout: float = 60) -> str:
        """One command that succeeds; what it printed."""
        result = self.run(*command, cwd=cwd, input=input, timeout=timeout)
        assert result.returncode == 0, (
            f"{' '.join(command)}: {result.stdout[-3000:]}{result.stderr[-3000:]}\n{self.journal()[-3000:]}"
        )
        return result.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.must("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def journal(self, unit: str = "ai-worker*") -> str:
        """What a unit's processes have written."""
        return self.run("journalctl", "--unit", unit, "--output=cat", "--no-pager").stdout

    def wait_until(self, condition: Callable[[], bool], timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout} s\n{self.journal()[-4000:]}"
            time.sleep(0.05)

    def start(self, files: Path) -> None:
        booted = subprocess.run(
            [self._tool, "start", files], env=self._env, capture_output=True, text=True, timeout=60, check=False
        )
        assert booted.returncode == 0, booted.stdout + booted.stderr

    def stop(self) -> None:
        subprocess.run([self._tool, "stop"], env=self._env, capture_output=True, timeout=60, check=False)


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A machine with this checkout in /root/ai-worker, and in /opt/ai-worker the packages that it needs, not itself. Skips the
    test where there is nothing that boots one; fails it where REQUIRE is set."""
    tool = os.environ.get(TOOL, "")
    reason = None
    if not (tool and os.access(tool, os.X_OK)):
        reason = f"{TOOL} names no program that boots a systemd"
    elif os.geteuid() != 0:
        reason = "only root can boot a systemd"
    elif subprocess.run([f"/usr/bin/{PYTHON}", "-c", "import ensurepip"], capture_output=True, check=False).returncode:
        reason = f"the machine would have no /usr/bin/{PYTHON} with python3-venv"
    if reason:
        assert not os.environ.get(REQUIRE), reason
        pytest.skip(reason)
    machine = Machine(str(Path(tool).resolve()), folder / "machine")
    files = folder / "files"
    _packages(files / "opt/ai-worker/lib" / PYTHON / "site-packages")
    _checkout(files / "root/ai-worker")
    try:
        machine.start(files)
        yield machine
    finally:
        machine.stop()


def _checkout(folder: Path) -> None:
    for name in ("daemon", "sql", "systemd", "tests/fake_provider"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "tests/__init__.py"):
        shutil.copy(ROOT / name, folder / name)


def _packages(folder: Path) -> None:
    """Copies what this project requires, with the extra `web`, and what it is built with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["web"]]
    wanted = [(Requirement(line), "") for line in (*lines, *project["build-system"]["requires"])]
    seen: set[tuple[str, str]] = set()
    while wanted:
        required, of_extra = wanted.pop()
        if required.marker is not None and not required.marker.evaluate({"extra": of_extra}):
            continue
        found = metadata.distribution(required.name)
        for extra in ("", *required.extras):
            if (found.name, extra) not in seen:
                seen.add((found.name, extra))
                wanted += [(Requirement(line), extra) for line in found.requires or []]
                if not extra:
                    _copy(found, folder)


def _copy(found: metadata.Distribution, folder: Path) -> None:
    for file in found.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue  # its commands: not needed
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(found.locate_file(file)), path)
