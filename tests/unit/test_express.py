"""New items of heavier queues, claimed while the claim loop is busy with lighter ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ai_worker.errors import DatabaseAway
from ai_worker.models import Filters, Item, QueueShare, Task, TaskStatus
from ai_worker.worker.express import Express, heavier

FILTERS = Filters(models=("gpt",), queues=(QueueShare("reply", 5), QueueShare("mail", 2)))
ITEM = Item(7, Task(1, 1, "reply", "", {}, 3, 0, TaskStatus.NEW, queue="reply"), "tekst", {}, 1, 0, bytes(16), "")


class Listening:
    """Stands in for the listener: hears what the test says; None is its time for a look."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[int | None] = asyncio.Queue()
        self.hears = True
        self.calls: list[str] = []
        self.thread = None  # of which the worker is told, so that it sees when it dies

    async def wait(self, woken: asyncio.Event) -> int | None:
        getting, waking = asyncio.create_task(self.heard.get()), asyncio.create_task(woken.wait())
        await asyncio.wait([getting, waking], return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()
        if getting.done():
            return getting.result()
        getting.cancel()
        return None

    def found(self) -> None:
        self.calls.append("found")

    def leave(self) -> None:
        self.calls.append("leave")


class Claims:
    """Stands in for the database: gives what the test puts there, and notes who was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Filters]] = []
        self.gives: Callable[[], Awaitable[list[Item]]] = self._one
        self.rooms = {"reply": 1, "mail": 1, "batch": 0}

    async def _one(self) -> list[Item]:
        return [ITEM]

    async def __call__(self, new_item: int, filters: Filters) -> list[Item]:
        self.asked.append((new_item, filters))
        return await self.gives()


def tried(scene: Callable[[Express, Listening, Claims, list[Any]], Awaitable[None]]) -> list[Any]:
    """What was begun, and "look" for each look that was asked for, of an express that runs through the scene."""
    happened: list[Any] = []

    async def run() -> None:
        listening, claims = Listening(), Claims()
        express = Express(FILTERS, listening, claims, lambda: claims.rooms)  # type: ignore[arg-type]
        running = asyncio.create_task(express.run(happened.append, lambda: happened.append("look")))
        await scene(express, listening, claims, happened)
        express.stop()
        await asyncio.wait_for(running, 5)

    asyncio.run(run())
    return happened


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_heavier_queues_are_all_but_the_lightest() -> None:
    three = Filters(models=("gpt",), queues=(QueueShare("batch"), *FILTERS.queues, QueueShare("nightly")))
    assert heavier(three) == FILTERS
    assert heavier(Filters(queues=(QueueShare("a", 3), QueueShare("b", 3)))).queues == ()
    assert heavier(Filters()).queues == ()


def test_what_is_heard_is_claimed_and_begun_while_the_worker_is_busy() -> None:
    async def scene(express: Express, listening: Listening, claims: Claims, happened: list[Any]) -> None:
        listening.heard.put_nowait(7)
        await settle()
        assert (claims.asked, express.is_listening) == ([], False), "until the worker is busy, the claim loop listens"
        express.listen()
        await settle()
        assert (claims.asked, express.is_listening, listening.calls) == ([(7, FILTERS)], True, ["found"])
        express.rest()
        listening.heard.put_nowait(8)
        await settle()
        assert (len(claims.asked), express.is_listening, listening.calls[1:]) == (1, False, ["leave"])

    assert tried(scene) == [[ITEM]]


def test_what_cannot_be_claimed_so_is_looked_for() -> None:
    async def nothing() -> list[Item]:
        return []

    async def away() -> list[Item]:
        raise DatabaseAway("just now")

    async def scene(express: Express, listening: Listening, claims: Claims, happened: list[Any]) -> None:
        express.listen()
        for count, gives in enumerate((nothing, away), 1):
            claims.gives = gives
            listening.heard.put_nowait(7)
            await settle()
            assert happened == ["look"] * count
        listening.heard.put_nowait(None)
        await settle()

    assert tried(scene) == ["look"] * 3


def test_only_queues_with_room_are_claimed_from() -> None:
    async def scene(express: Express, listening: Listening, claims: Claims, happened: list[Any]) -> None:
        express.listen()
        claims.rooms = {"reply": 0, "mail": 1}
        listening.heard.put_nowait(7)
        await settle()
        assert claims.asked == [(7, Filters(models=("gpt",), queues=(QueueShare("mail", 2),)))]
        claims.rooms = {}
        listening.heard.put_nowait(8)
        await settle()
        assert len(claims.asked) == 1
        assert listening.calls == ["found", "leave"], "it is another worker's turn, who may have room"

    assert tried(scene) == [[ITEM], "look"]


def test_what_is_being_claimed_at_the_end_is_begun() -> None:
    """Else nobody would work on it until the worker's lease is over."""

    async def scene(express: Express, listening: Listening, claims: Claims, happened: list[Any]) -> None:
        landed = asyncio.Event()

        async def slowly() -> list[Item]:
            await landed.wait()
            return [ITEM]

        claims.gives = slowly
        express.listen()
        listening.heard.put_nowait(7)
        await settle()
        express.stop()
        landed.set()

    assert tried(scene) == [[ITEM]]
