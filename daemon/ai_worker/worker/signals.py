"""Signals that ask a worker to stop, on Unix and on Windows alike, and the one that asks it to read its settings anew."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator


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
