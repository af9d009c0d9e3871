"""Single keys of a terminal, as they are pressed: on POSIX and in Windows consoles."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

_NAMES: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1bOC": "right",
    "\x1bOD": "left",
    "\x1b[Z": "left",
    "\t": "right",
}
_WINDOWS: Final = {"H": "up", "P": "down", "M": "right", "K": "left"}  # what follows a key without a character
_ESCAPE_SECONDS: Final = 0.05  # the characters of one key come together

Read = Callable[[float], str | None]
"""Waits at most so many seconds for a key; its name or character, None where there came none."""


@contextlib.contextmanager
def keys() -> Iterator[Read]:
    """Keys without Enter and without echo as long as it lasts; the terminal is as before at the end."""
    if sys.platform == "win32":
        yield _read_windows
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda seconds: _read_posix(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _read_posix(descriptor: int, seconds: float) -> str | None:
    import select

    if not select.select([descriptor], [], [], max(0.0, seconds))[0]:
        return None
    typed = os.read(descriptor, 1).decode(errors="replace")
    if not typed:
        return "q"  # the terminal has gone
    while typed in {"\x1b", "\x1b[", "\x1bO"} and select.select([descriptor], [], [], _ESCAPE_SECONDS)[0]:
        typed += os.read(descriptor, 1).decode(errors="replace")
    return _NAMES.get(typed, typed)


if sys.platform == "win32":

    def _read_windows(seconds: float) -> str | None:
        """Windows cannot wait for a key and for a time: a look every 20 milliseconds."""
        import msvcrt

        deadline = time.monotonic() + seconds
        while not msvcrt.kbhit():
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)
        typed = msvcrt.getwch()
        if typed in {"\x00", "\xe0"}:
            return _WINDOWS.get(msvcrt.getwch(), "")
        return _NAMES.get(typed, typed)
