"""The web server: uvicorn, told to end what would never end by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import uvicorn

from ai_worker import notify

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI


TICKS_PER_SECOND: Final = 10  # of uvicorn's main loop
FEEDS: Final = 3  # of a watchdog in its time


class WebServer(uvicorn.Server):
    """Serves one application. Streams of live pages end as soon as it is asked to stop; requests under way are answered first.

    A service manager is told when it listens and when it stops; its watchdog is fed by the event loop, as long as that turns.
    """

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.app = app
        self._feeds_every = max(1, int((notify.watchdog_seconds() or 60) / FEEDS * TICKS_PER_SECOND))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen. Called by uvicorn."""
        await super().startup(sockets)
        if self.started:
            notify.tell(notify.READY, notify.ALIVE, notify.status("listens"))

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to end."""
        if counter % self._feeds_every == 0:
            notify.tell(notify.ALIVE)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server. Called by uvicorn when it was told to stop, before it waits for connections to end."""
        self.app.state.services.stopping.set()
        self.app.state.live.close()
        notify.tell(notify.STOPPING)
        asking = asyncio.create_task(self._ask_for_time())
        try:
            await super().shutdown(sockets)
        finally:
            asking.cancel()

    @staticmethod
    async def _ask_for_time() -> None:
        """Until it is cancelled: uvicorn has a time limit of its own for requests under way."""
        while True:
            notify.tell(notify.ALIVE, notify.extend(), notify.status("ends requests under way"))
            await asyncio.sleep(notify.REPEAT_SECONDS)
