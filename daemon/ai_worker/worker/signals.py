"""Signals that ask a worker to stop, on Unix and on Windows alike, and the one that asks it to read its settings anew."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any


class OneAtATime:
    """Work that signals ask for. Asked for while it is under way, it is done once more: it may have looked too early."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._doing: asyncio.Task[None] | None = None
        self._is_asked = False

    def ask(self) -> None:
        """Begins it soon. Call it in the loop."""
        self._is_asked = True
        if self._doing is None or self._doing.done():
            self._doing = asyncio.create_task(self._do())

    async def _do(self) -> None:
        while self._is_asked:
            self._is_asked = False
            await self._work()


@contextlib.contextmanager
def stop_signals(handler: Callable[[], None]) -> Iterator[None]:
    """Calls `handler` in the running loop for each SIGTERM, SIGINT or (Windows) SIGBREAK.

    `signal.signal` instead of the loop's `add_signal_handler`, which Windows' event loops do not have. Outside of the main
    thread there are no signals, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(("SIGTERM", "SIGINT", "SIGBREAK"), handler):
        yield


@contextlib.contextmanager
def reload_signal(handler: Callable[[], None]) -> Iterator[None]:
    """The same for each SIGHUP. On a terminal that says that it is gone, and keeps its meaning; on Windows there is none."""
    if threading.current_thread() is not threading.main_thread() or (sys.stdin is not None and sys.stdin.isatty()):
        yield
        return
    with _handled(("SIGHUP",), handler):
        yield


@contextlib.contextmanager
def _handled(names: Iterable[str], handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler)) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
