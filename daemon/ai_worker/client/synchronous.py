"""The client as plain calls: `AsyncClient` in an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from ai_worker.client.asynchronous import AsyncClient

if TYPE_CHECKING:
    from ai_worker.config import Settings

P = ParamSpec("P")
T = TypeVar("T")


def _plain(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Client, P], T]:
    """The method of AsyncClient as a plain call, with its parameters and its documentation."""

    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._client, *args, **kwargs))

    return call


def _plain_iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """The same of a method that yields."""

    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        values, end = method(self._client, *args, **kwargs), object()

        async def following() -> Any:
            return await anext(values, end)

        while (value := self._run(following())) is not end:
            yield value

    return call


class Client:
    """AI Worker from plain code. Make one for the life of the application; any number of threads may share it.

    The parameters and methods are those of `AsyncClient`. Make it after a fork, not before: it has threads.
    """

    def __init__(
        self,
        url: str | None = None,
        settings: Settings | None = None,
        *,
        patience: float = 10.0,
        connections: int = 4,
    ) -> None:
        self._client = AsyncClient(url, settings, patience=patience, connections=connections)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all waits with a RuntimeError, lets statements under way end, and closes the connections."""
        with self._starting:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            asyncio.run(self._client.close())
            return
        for end in (self._client.close(), loop.shutdown_asyncgens(), loop.shutdown_default_executor()):
            asyncio.run_coroutine_threadsafe(end, loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    submit = _plain(AsyncClient.submit)
    wait = _plain(AsyncClient.wait)
    wait_all = _plain(AsyncClient.wait_all)
    result = _plain(AsyncClient.result)
    results = _plain_iterator(AsyncClient.results)
    ids = _plain(AsyncClient.ids)
    status = _plain(AsyncClient.status)
    file = _plain(AsyncClient.file)
    add_group = _plain(AsyncClient.add_group)
    close_group = _plain(AsyncClient.close_group)
    cancel = _plain(AsyncClient.cancel)
    pause = _plain(AsyncClient.pause)
    resume = _plain(AsyncClient.resume)
    retry = _plain(AsyncClient.retry)
    review = _plain(AsyncClient.review)
    group = _plain(AsyncClient.group)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._started())
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        finally:
            future.cancel()  # changes nothing where it is done; a Ctrl-C ends the wait on the other side, too

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._client._refuse_closed()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="ai-worker-client-loop", daemon=True)
                self._thread.start()
            return self._loop
