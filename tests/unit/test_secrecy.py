"""A process with secrets leaves no core dump, and its environment is read by root alone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")

SECRET = "canary-in-the-environment"
PLAIN = "import signal; print('ready', flush=True); signal.pause()"
OURS = f"from ai_worker.cli import context; context.settings(); {PLAIN}"
# Another user may not even be able to start this Python. Whoever becomes somebody else is closed to begin with; 1 opens it again.
AS_NOBODY = (
    "import ctypes, os, resource; from ai_worker.cli import context; os.setuid(65534); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); "
)


def started(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process that waits to be killed, and may leave as large a core as it likes."""

    def unlimited() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(None, {"AI_WORKER_MASTER_KEY": SECRET, "PYTHONPATH": os.pathsep.join(sys.path)}),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=unlimited,  # noqa: PLW1509 -- no thread of this test holds a lock
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def dumped_core(process: subprocess.Popen[str]) -> bool:
    """Whether the kernel dumped a core when this signal ended it; it says so wherever that core went."""
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT  # waited for already
    assert process.stdout is not None
    process.stdout.close()
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status)


def may_set_limits() -> bool:
    return resource.getrlimit(resource.RLIMIT_CORE)[1] == resource.RLIM_INFINITY or os.geteuid() == 0


@pytest.mark.skipif(not may_set_limits(), reason="this user may not let cores be written, so none is")
def test_a_process_with_settings_dumps_no_core(tmp_path: Path) -> None:
    if not dumped_core(started(PLAIN, tmp_path)):
        pytest.skip("this system dumps no core of any process")
    for left in tmp_path.iterdir():
        left.unlink()
    assert not dumped_core(started(OURS, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_inherited_by_what_it_starts() -> None:
    asking = "subprocess.run(['sh', '-c', 'ulimit -c'])"
    code = f"from ai_worker.cli import context; import subprocess; context.settings(); {asking}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(None))
    assert ended.stdout.split() == ["0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody, and compare")
def test_other_programs_of_the_same_user_do_not_read_its_environment(tmp_path: Path) -> None:
    def read_by_nobody(process: subprocess.Popen[str]) -> str:
        try:
            command = ["cat", f"/proc/{process.pid}/environ"]
            return subprocess.run(command, user=65534, cwd="/", capture_output=True, text=True, check=False).stdout
        finally:
            process.kill()
            process.communicate()

    assert SECRET in read_by_nobody(started(AS_NOBODY + PLAIN, tmp_path))
    assert read_by_nobody(started(AS_NOBODY + OURS, tmp_path)) == ""
