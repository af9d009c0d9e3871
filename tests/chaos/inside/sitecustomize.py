"""Faults that strike from inside a worker's process. Python imports this at its start where this folder leads PYTHONPATH.

At SIGUSR1 the process does what stands in the file `order-PID` of the folder CHAOS_ORDERS: `block SECONDS` holds up the main
thread, which is the event loop's; `end NAME` ends the threads whose names begin so, as soon as they have something to do;
`exhaust MEGABYTES` leaves the process no more memory than that, and takes what it had left in its own arenas.
"""

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time
from concurrent.futures.thread import _WorkItem
from pathlib import Path
from types import FrameType
from typing import Any

_ballast: list[bytearray] = []
_ended: list[str] = []
_run = _WorkItem.run


def _run_or_end(item: _WorkItem[Any]) -> None:
    """In place of an executor's own: what a thread has taken goes with it, and nobody is told."""
    if threading.current_thread().name.startswith(tuple(_ended)):
        raise SystemExit
    _run(item)


def _strike(_number: int, _frame: FrameType | None) -> None:
    what, argument = Path(os.environ["CHAOS_ORDERS"], f"order-{os.getpid()}").read_text(encoding="utf-8").split()
    if what == "block":
        time.sleep(float(argument))
    elif what == "end":
        _ended.append(argument)
        for thread in threading.enumerate():
            if thread.name == argument:  # one that no executor has
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    elif what == "exhaust":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + int(argument) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with contextlib.suppress(MemoryError):
            while True:
                _ballast.append(bytearray(16_384))
        del _ballast[-int(argument) * 64 :]


_WorkItem.run = _run_or_end  # type: ignore[method-assign, assignment]
signal.signal(signal.SIGUSR1, _strike)
