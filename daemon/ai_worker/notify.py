"""What a service manager is told of this process: systemd's notification protocol, sd_notify(3).

Where nobody listens (`$NOTIFY_SOCKET` is not set) all of it does nothing. No library: it is one datagram to one socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

EXTENSION_SECONDS: Final = 30.0  # asked for at a time; repeated well before it is over
REPEAT_SECONDS: Final = 1.0

READY: Final = "READY=1"
ALIVE: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"


def is_heard() -> bool:
    """Whether a service manager listens to this process."""
    return sys.platform != "win32" and bool(os.environ.get("NOTIFY_SOCKET"))


def tell(*lines: str) -> bool:
    """Sends these assignments, `READY` and the like, in one message; whether it was taken. Never raises: a service manager that
    is being replaced must not stop the work."""
    address = os.environ.get("NOTIFY_SOCKET")
    if sys.platform == "win32" or not address:  # the protocol is Linux's; Python has no Unix sockets on Windows
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # a full queue must not hold the loop up
            sender.connect(address)
            sender.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def status(text: str) -> str:
    """The line that `systemctl status` shows."""
    return "STATUS=" + " ".join(text.split())


def extend(seconds: float = EXTENSION_SECONDS) -> str:
    """Asks for so many more seconds from now on to start or to stop in."""
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}"


def reloading() -> str:
    """The settings are being read anew; `READY` says that this is over."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_seconds() -> float | None:
    """After so many seconds without `ALIVE` this process is killed; None: never."""
    pid = os.environ.get("WATCHDOG_PID")
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000 or None


@contextlib.contextmanager
def waiting(reason: Callable[[], str | None]) -> Iterator[None]:
    """Inside, asks for more time to start for as long as `reason` gives one, and has it shown. For what blocks its thread."""
    if not is_heard():
        yield
        return
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(REPEAT_SECONDS):
            if (text := reason()) is not None:
                tell(extend(), status(text))

    asking = threading.Thread(target=ask, name="notify", daemon=True)
    asking.start()
    try:
        yield
    finally:
        is_over.set()
        asking.join()
