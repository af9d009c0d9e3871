"""A TCP proxy in front of a database server that breaks connections at chosen statements."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Literal

import pytest

from ai_worker.database_url import parse_database_url


class Proxy:
    """Passes bytes on. Unencrypted connections only: it looks for statements in what the client sends.

    `break_at("COMMIT", "before")` breaks the connection instead of passing the statement on; "after" passes it on, waits for the
    server's answer, and breaks the connection instead of passing that on.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._rules: list[tuple[bytes, str, bool]] = []
        self._sockets: list[socket.socket] = []
        self._frozen = threading.Event()
        self.broken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def break_at(self, statement: str, when: Literal["before", "after"], *, times: int = 1, then_down: bool = False) -> None:
        """Breaks the next `times` connections that send a statement beginning so. `then_down`: and takes no new ones."""
        with self._lock:
            self._rules += [(b"\x03" + statement.encode(), when, then_down)] * times

    def down(self) -> None:
        """Like a server that is down: no new connections, and the present ones are broken."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake the thread in accept()
        self._listener.close()
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            _break(each)

    def up(self) -> None:
        """The server is back, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def freeze(self) -> None:
        """A black hole, as when a cable is pulled: connections stay, and new ones are taken, but nothing comes through."""
        self._frozen.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            swallow = threading.Event()
            threading.Thread(target=self._to_server, args=[client, server, swallow], daemon=True).start()
            threading.Thread(target=self._to_client, args=[client, server, swallow], daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._frozen.is_set():
                    continue
                rule = self._rule_for(data)
                if rule is not None:
                    self.broken += 1
                    if rule[2]:
                        with contextlib.suppress(OSError):
                            self._listener.shutdown(socket.SHUT_RDWR)
                        self._listener.close()
                    if rule[1] == "before":
                        break
                    swallow.set()
                server.sendall(data)
        if not swallow.is_set():
            _break(client)
            _break(server)

    def _to_client(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self._frozen.is_set():
                    continue
                if swallow.is_set():
                    break
                client.sendall(data)
        _break(client)
        _break(server)

    def _rule_for(self, data: bytes) -> tuple[bytes, str, bool] | None:
        with self._lock:
            for rule in self._rules:
                if data[4:].startswith(rule[0]):  # behind the packet's length and number
                    self._rules.remove(rule)
                    return rule
        return None


def _break(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy in front of the server of `database_url`; for modules with "tests.integration.proxy" in `pytest_plugins`."""
    (target,) = parse_database_url(database_url).hosts
    proxy = Proxy(target)
    yield proxy
    proxy.down()
