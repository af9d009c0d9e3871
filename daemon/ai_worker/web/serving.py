"""The web server: uvicorn, told to end what would never end by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI


class WebServer(uvicorn.Server):
    """Serves one application. Streams of live pages end as soon as it is asked to stop; requests under way are answered first."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server. Called by uvicorn when it was told to stop, before it waits for connections to end."""
        self._app.state.services.stopping.set()
        self._app.state.live.close()
        await super().shutdown(sockets)
