"""Signals that ask a worker to stop, on Unix and on Windows alike."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals(handler: Callable[[], None]) -> Iterator[None]:
    """Calls `handler` in the running loop for each SIGTERM, SIGINT or (Windows) SIGBREAK.

    `signal.signal` instead of the loop's `add_signal_handler`, which Windows' event loops do not have. Outside of the main
    thread there are no signals, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler)) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
