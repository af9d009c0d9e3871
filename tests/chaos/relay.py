"""A TCP relay between workers and a server, which can be cut and held: network faults without root, for one server at a time.

It knows nothing of what it passes on. Faults at chosen statements are tests/integration/proxy.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Relay:
    """Listens on a port of `host` and passes on what comes, in a thread of its own; a context manager.

    target: host and port of the server, which need not be up. delay: seconds that everything takes, either way.
    """

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1", delay: float = 0.0) -> None:
        self._target = target
        self._host = host
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._connections: dict[int, _Connection] = {}
        self._is_cut = False
        self.port = 0

    def cut(self) -> int:
        """Breaks every connection and takes no new one until `mend`; how many of them waited for an answer."""

        async def act() -> int:
            self._is_cut = True
            for connection in self._connections.values():
                connection.abort()
            return sum(connection.waits for connection in self._connections.values())

        return self._run(act())

    def mend(self) -> None:
        """New connections get through again."""

        async def act() -> None:
            self._is_cut = False

        self._run(act())

    def hold(self) -> None:
        """A black hole: connections stay and new ones are taken, but nothing comes through until `release`."""

        async def act() -> None:
            self._flow.clear()

        self._run(act())

    def release(self) -> None:
        """What was held goes on, as when a cable is put in again soon enough."""

        async def act() -> None:
            self._flow.set()

        self._run(act())

    def __enter__(self) -> Self:
        self._thread.start()

        async def start() -> int:
            self._flow = asyncio.Event()
            self._flow.set()
            self._server = await asyncio.start_server(self._serve, self._host, 0, backlog=1024)
            port: int = self._server.sockets[0].getsockname()[1]
            return port

        self.port = self._run(start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.cut()

        async def end() -> None:
            self._server.close()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client's, to its end on both sides."""
        with contextlib.suppress(OSError):
            if not self._is_cut:
                server_reader, server_writer = await asyncio.open_connection(*self._target)
                connection = self._connections[id(writer)] = _Connection(writer, server_writer)
                try:
                    if not self._is_cut:  # meanwhile
                        ways = (
                            self._pass_on(reader, server_writer, connection, waits=True),
                            self._pass_on(server_reader, writer, connection, waits=False),
                        )
                        await asyncio.wait([asyncio.ensure_future(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    del self._connections[id(writer)]
                    connection.abort()
        writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection, *, waits: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flow.wait()
                connection.waits = waits
                writer.write(data)
                await writer.drain()
            writer.close()  # flushes first: an answer may end with the connection
            await writer.wait_closed()


@dataclass
class _Connection:
    """Both sides of one connection. `waits`: whether the client spoke last."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    waits: bool = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()
