"""What ends a worker that cannot go on, from whichever of its parts it comes."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from ai_worker.errors import WorkerBroken
from ai_worker.log import Event, Log

NO_MEMORY: Final = "no memory, or no thread, is left for it"


class Breakdown:
    """Called with the reason by whoever finds that the worker cannot go on. The first one counts. Used in the loop.

    A worker that stayed would keep its items from others, by its heartbeat, or fail one after the other: it gives back what it
    can, and ends, to be started anew by its service manager.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reason: str | None = None
        self._said = asyncio.Event()

    def __call__(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self._log(Event.BROKEN, reason=reason)
            self._said.set()

    async def came(self) -> NoReturn:
        """Raises WorkerBroken when it has come."""
        await self._said.wait()
        raise WorkerBroken(f"this worker cannot go on: {self._reason}")
