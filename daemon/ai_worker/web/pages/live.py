"""Live pages: one look at the database per process and topic, however many people watch, and none when nobody does.

A topic is a name and a function that gives fragments: pieces of HTML by the id of their outermost element. The page includes the
same pieces and says `live='name'` or `live='name?key'` (a task's number, a filter). What has changed since the last look is sent
to everybody who watches (GET /ui/events/name?key=…), and morphed into their pages by app.js.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import format_sse_event

from ai_worker.errors import AiWorkerError, DatabaseAway, NotFound, UsageError
from ai_worker.log import Event, Log
from ai_worker.web.access import Reader, look
from ai_worker.web.pages.rendering import environment, permits
from ai_worker.web.problems import Refused, TooMany, told
from ai_worker.web.services import Served, Services

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ai_worker.store.tokens import Principal

STREAMS_AT_MOST: Final = 200  # per process; a page without a stream is as it was when it was asked for
HEARTBEAT_SECONDS: Final = 15.0  # a comment, so that proxies keep the connection; then, too, the session is looked at again
SLOW_SECONDS: Final = 30.0  # a browser that takes nothing for so long is dropped

May = Callable[[str], bool]
Fragments = Callable[[Services, May, str], Awaitable[Mapping[str, str]]]

router = APIRouter(include_in_schema=False)
_log = Log()


@dataclass(frozen=True, slots=True)
class Topic:
    """What can be watched.

    Parameters
    ----------
    name: of the topic, in its address.
    fragments: gives `{element id: HTML of that element}`; is handed the services, `may` of the templates, and the key. All
        watchers with the same scopes see the same, so it must depend on nothing else. Raises NotFound where there is
        nothing to see any more: the pages are then loaded anew.
    seconds: between two looks.
    """

    name: str
    fragments: Fragments
    seconds: float = 2.0


class Watcher:
    """One browser. What it has not been sent yet waits here, the newest of each fragment only, so a slow one costs no memory."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._events: dict[str, bytes] = {}
        self._stirred = asyncio.Event()
        self.is_over = False

    def tell(self, key: str, event: bytes) -> None:
        """Has something sent; what has the same key and was not sent yet is replaced."""
        self._events[key] = event
        self._stirred.set()

    def end(self) -> None:
        """There is nothing more to be sent."""
        self.is_over = True
        self._stirred.set()

    async def next(self, seconds: float) -> bytes:
        """What is to be sent, empty after so many seconds without anything or at the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        self._stirred.clear()
        events, self._events = self._events, {}
        return b"".join(events.values())

    def close(self) -> None:
        """Watches no more."""
        self._channel.leave(self)


class _Channel:
    """A topic and a key, as people with the same scopes see it."""

    def __init__(self, topic: Topic, key: str, may: May, services: Services) -> None:
        self._topic, self._key, self._may, self._services = topic, key, may, services
        self._shown: dict[str, str] = {}
        self._is_away = False
        self._task: asyncio.Task[None] | None = None
        self.watchers: set[Watcher] = set()

    @property
    def is_looking(self) -> bool:
        return self._task is not None and not self._task.done()

    def join(self) -> Watcher:
        watcher = Watcher(self)
        self.watchers.add(watcher)
        if not self.is_looking:
            self._shown.clear()
            self._task = asyncio.create_task(self._look_on())
        else:
            self._send([watcher], self._shown)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self.watchers.discard(watcher)
        if not self.watchers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look_on(self) -> None:
        while True:
            try:
                found = await self._topic.fragments(self._services, self._may, self._key)
            except NotFound:
                self._tell_all("reload", "")
            except (UsageError, DatabaseAway) as error:
                self._is_away = True
                self._tell_all("away", told(error))
            except Exception as error:  # noqa: BLE001 -- a mistake of ours: the log tells it, and those who watch are not left waiting
                _log(Event.LIVE_FAILED, topic=self._topic.name, message=str(error), exc_info=error)
                self._is_away = True
                self._tell_all("away", "this page cannot be kept up to date; see the server's log")
            else:
                if self._is_away:
                    self._is_away = False
                    self._tell_all("back", "")
                self._send(self.watchers, {name: html for name, html in found.items() if self._shown.get(name) != html})
                self._shown = dict(found)
            await asyncio.sleep(self._topic.seconds)

    def _tell_all(self, event: str, text: str) -> None:
        for watcher in self.watchers:
            watcher.tell(" state", format_sse_event(data_str=text, event=event))

    @staticmethod
    def _send(watchers: Iterable[Watcher], fragments: Mapping[str, str]) -> None:
        for name, html in fragments.items():
            event = format_sse_event(data_str=environment().get_template("_live.html.j2").render(name=name, html=html))
            for watcher in watchers:
                watcher.tell(name, event)


class Live:
    """All who watch, of one process."""

    def __init__(self, services: Services, topics: Iterable[Topic]) -> None:
        self._services = services
        self._topics = {topic.name: topic for topic in topics}
        self._channels: dict[tuple[str, str, frozenset[str]], _Channel] = {}
        self._is_closed = False

    @property
    def watchers(self) -> int:
        """How many browsers are connected."""
        return sum(len(channel.watchers) for channel in self._channels.values())

    @property
    def looking(self) -> int:
        """How many topics are being looked at."""
        return sum(channel.is_looking for channel in self._channels.values())

    def watch(self, name: str, key: str, who: Principal) -> Watcher:
        """A new watcher. Raises NotFound for a topic that is none, and Refused while there are too many or none is wanted."""
        if name not in self._topics:
            raise NotFound(f"no live topic {name!r}")
        if self._is_closed:
            raise Refused("the server is about to stop")
        self._channels = {each: channel for each, channel in self._channels.items() if channel.watchers}
        if self.watchers >= STREAMS_AT_MOST:
            raise TooMany(f"{STREAMS_AT_MOST} pages are being watched on this instance; this one is not kept up to date")
        address = name, key, frozenset(map(str, who.scopes))
        if (channel := self._channels.get(address)) is None:
            channel = self._channels[address] = _Channel(self._topics[name], key, permits(who), self._services)
        return channel.join()

    def close(self) -> None:
        """Ends all streams, and begins no other: a server that stops waits for what it has begun."""
        self._is_closed = True
        for channel in self._channels.values():
            for watcher in channel.watchers:
                watcher.end()


class _EventStream(Response):
    """Server-sent events for as long as somebody takes them and may."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, services: Services, watcher: Watcher) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._services, self._watcher = request, services, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI's signature
        """Streams until somebody ends it: the browser, the session, the server."""
        left = asyncio.create_task(self._until_left(receive))
        try:
            async with asyncio.timeout(None) as patience:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                more = b"retry: 2000\n\n"
                while not self._watcher.is_over:
                    patience.reschedule(asyncio.get_running_loop().time() + SLOW_SECONDS)
                    await send({"type": "http.response.body", "body": more, "more_body": True})
                    patience.reschedule(None)
                    more = await self._watcher.next(HEARTBEAT_SECONDS) or await self._heartbeat()
                await send({"type": "http.response.body", "body": more, "more_body": False})
        except TimeoutError:
            pass  # the connection is closed with this, as its answer has not ended
        finally:
            left.cancel()
            self._watcher.close()

    async def _heartbeat(self) -> bytes:
        """Keeps the connection, or ends it with the session."""
        try:
            await look(self._request, self._services)
        except Refused:
            self._watcher.end()
            return format_sse_event(data_str="", event="reload")
        except AiWorkerError:  # the database is away, and the session as it was
            return b": away\n\n"
        return b": alive\n\n"

    async def _until_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._watcher.end()


@router.get("/ui/events/{topic}")
async def events(request: Request, services: Served, who: Reader, topic: str, key: str = "") -> Response:
    """What changes on a page, as it changes."""
    live: Live = request.app.state.live
    return _EventStream(request, services, live.watch(topic, key[:200], who))
