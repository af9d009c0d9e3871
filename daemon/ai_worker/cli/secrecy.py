"""Keeps the memory of this process to itself: keys and passwords, and the texts of rows, lie in it."""

from __future__ import annotations

import contextlib
import sys
from functools import cache
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


@cache
def keep_memory_private() -> None:
    """From now on no core dump is written of this process, wherever the system sends them, and nobody but root can read its
    memory and its environment (/proc/PID/mem, /proc/PID/environ, ptrace), also not other programs of the same user.

    Never raises: where the system does not let us, as a filter of system calls may not, its own settings stand. On Windows,
    where processes of one user are open to each other, it does nothing.
    """
    if sys.platform == "win32":
        return
    import resource

    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_CORE)  # left as it is: what hosts us may want it back
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # what this process starts inherits it
    if sys.platform == "linux":
        # The limit does not hold where cores are piped to a program (core(5)); this does, and it closes /proc (prctl(2)).
        with contextlib.suppress(ImportError, OSError, AttributeError, MemoryError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
