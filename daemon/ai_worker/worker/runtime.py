"""How a worker's process runs: its event loop, and when Python looks for garbage."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Each call in flight holds hundreds of objects, and next to none of them end in a cycle: reference counts free them. Python's
# default, a look after every 700 new objects, costs a quarter of the CPU time with a thousand calls in flight.
_THRESHOLDS: Final = (50_000, 50, 50)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a worker to its end in this thread, on uvloop's event loop where that is installed. Changes the whole process."""
    gc.set_threshold(*_THRESHOLDS)
    try:
        with _undisturbed():
            runner = asyncio.Runner(loop_factory=_loop_factory())
            runner.get_loop()
        with runner:
            return runner.run(main)
    finally:
        main.close()  # a signal may have come before it began


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds signals back: one that broke off the making of a loop would leave half of it behind, with a traceback."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle() -> None:
    """Code has been loaded that stays for good: the garbage collector need not look through it again, ever."""
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
