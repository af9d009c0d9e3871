"""A worker whose thread has died, or that is out of memory, ends: it must neither keep its items nor fail one after the other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures.thread import _WorkItem
from typing import Any

import pytest

from ai_worker.errors import BadAnswer, WorkerBroken
from ai_worker.log import Log
from ai_worker.providers._failures import unexpected
from ai_worker.worker.breakdown import NO_MEMORY, Breakdown
from ai_worker.worker.threads import Thread, Threads


def test_a_dead_thread_is_told_from_a_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies with what it has just taken, and whoever waits for that waits for ever."""

    def dies(_: _WorkItem[Any]) -> None:
        raise SystemExit

    async def work() -> None:
        threads, other = Threads(), Thread("other")
        threads.watch(other)
        assert threads.dead() == []
        assert await threads.claim(int, "1") + await other(int, "2") == 3
        assert threads.dead() == []
        with monkeypatch.context() as patch:
            patch.setattr(_WorkItem, "run", dies)
            waiting = other(int, "3")
            (thread,) = (each for each in threading.enumerate() if each.name.startswith("other"))
            thread.join(10)
        assert threads.dead() == ["other"]
        assert not waiting.done()
        threads.close()
        other.close()

    asyncio.run(work())


def test_a_thread_that_was_closed_has_not_died() -> None:
    """A worker that drains closes one or the other long before its last call ends."""

    async def work() -> None:
        threads, other = Threads(), Thread("other")
        threads.watch(other)
        assert await other(int, "1") == 1
        (thread,) = (each for each in threading.enumerate() if each.name.startswith("other"))
        other.close(is_to_finish=True)
        thread.join(10)
        assert not thread.is_alive()
        assert threads.dead() == []
        threads.close()

    asyncio.run(work())


def test_the_first_reason_ends_a_worker() -> None:
    async def work() -> None:
        breakdown = Breakdown(Log())
        waiting = asyncio.create_task(breakdown.came())
        await asyncio.sleep(0)
        assert not waiting.done()
        breakdown(NO_MEMORY)
        breakdown("another")
        with pytest.raises(WorkerBroken, match=NO_MEMORY):
            await waiting

    asyncio.run(work())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_no_item_is_blamed_for_what_the_process_lacks(error: Exception) -> None:
    with pytest.raises(MemoryError):
        unexpected(error, ())
    assert isinstance(unexpected(RuntimeError("something else"), ()), BadAnswer)
