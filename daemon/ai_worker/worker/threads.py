"""The worker's threads for the database, and the way back from them into the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

from ai_worker.errors import DatabaseError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Thread:
    """One thread, with its own connection to the database. Used in the loop; what it is given, it does in that order."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def __call__(self, verb: Callable[[*Ts], T], *arguments: *Ts) -> Awaitable[T]:
        """Does a verb, and gives what it returns to whoever awaits it."""
        return asyncio.get_running_loop().run_in_executor(self._executor, verb, *arguments)

    def doing(self, verb: Callable[[*Ts], T]) -> Callable[[*Ts], Awaitable[T]]:
        """The verb as the loop can call it: each time, it is done in this thread."""

        def done(*arguments: *Ts) -> Awaitable[T]:
            return self(verb, *arguments)

        return done

    def aside(self, verb: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Does what nobody waits for. Without a database it is not worth doing later."""

        def work() -> None:
            with contextlib.suppress(DatabaseError):
                verb(*arguments, **named)

        with contextlib.suppress(RuntimeError):  # the worker has just ended
            self._executor.submit(work)

    def close(self) -> None:
        """Begins nothing more, and does not wait for what is under way."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Threads:
    """One thread for each kind of database work, so that a slow commit never holds up a claim."""

    def __init__(self) -> None:
        names = ("claim", "express", "commit", "upkeep", "pace", "cache", "counts")
        self._all = [Thread(name) for name in names]
        self.claim, self.express, self.commit, self.upkeep, self.pace, self.cache, self.counts = self._all
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Call it in the loop, before any thread has work that leads back into it."""
        self._loop = asyncio.get_running_loop()

    def in_loop(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action as any thread can call it: it is done in the loop, soon."""

        def call() -> None:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop has just closed
                    self._loop.call_soon_threadsafe(action)

        return call

    def close(self) -> None:
        for each in self._all:
            each.close()
