"""The worker's threads for the database, and the way back from them into the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

from ai_worker.errors import DatabaseError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Thread:
    """One thread, with its own connection to the database. Used in the loop; what it is given, it does in that order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._begin)

    def _begin(self) -> None:
        self._thread = threading.current_thread()

    @property
    def is_dead(self) -> bool:
        """Whether it has ended before it was closed: then nothing that it is given is ever done, and nobody is told."""
        return self._thread is not None and not self._is_closed and not self._thread.is_alive()

    def __call__(self, verb: Callable[[*Ts], T], *arguments: *Ts) -> asyncio.Future[T]:
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

    def close(self, *, is_to_finish: bool = False) -> None:
        """Takes nothing more, and does not wait for what is under way. `is_to_finish`: still does what it was given."""
        self._is_closed = True  # one that is closed early, while the others finish their work, has not died
        self._executor.shutdown(wait=False, cancel_futures=not is_to_finish)


class Threads:
    """One thread for each kind of database work, so that a slow commit never holds up a claim; and one for work on long texts."""

    def __init__(self) -> None:
        names = ("claim", "express", "commit", "upkeep", "pace", "cache", "counts", "texts")
        self._all = [Thread(name) for name in names]
        self.claim, self.express, self.commit, self.upkeep, self.pace, self.cache, self.counts, self.texts = self._all
        self._watched = list(self._all)
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, *others: Thread) -> None:
        """These are the worker's too, though others close them."""
        self._watched += others

    def dead(self) -> list[str]:
        """The names of those that have died."""
        return [each.name for each in self._watched if each.is_dead]

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
