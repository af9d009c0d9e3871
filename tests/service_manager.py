"""The other end of `$NOTIFY_SOCKET`: a service manager that only listens."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Manager:
    """What a process has told, in order: one message each, as a dict."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener = listener
        self.env = {"NOTIFY_SOCKET": str(path)}
        self.told: list[dict[str, str]] = []

    def wait_for(self, wanted: Callable[[dict[str, str]], bool], timeout: float = 20) -> dict[str, str]:
        """The next message of this kind; those before it are kept in `told`."""
        deadline = time.monotonic() + timeout
        while True:
            message = self._next(deadline - time.monotonic())
            assert message is not None, f"not told within {timeout} s; told was {self.told[-20:]}"
            if wanted(message):
                return message

    def rest(self) -> list[dict[str, str]]:
        """All that has been told by now and was not waited for."""
        before = len(self.told)
        while self._next(0.0) is not None:
            pass
        return self.told[before:]

    def _next(self, seconds: float) -> dict[str, str] | None:
        self._listener.settimeout(max(0.001, seconds))
        try:
            lines = self._listener.recv(65536).decode().splitlines()
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in lines)
        self.told.append(message)
        return message


@contextmanager
def listening(folder: Path) -> Iterator[Manager]:
    """A manager whose socket is in `folder`."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        yield Manager(listener, path)
