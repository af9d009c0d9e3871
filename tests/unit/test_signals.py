"""What signals ask a worker to do, one thing at a time."""

from __future__ import annotations

import asyncio

from ai_worker.worker.signals import OneAtATime


def test_what_is_asked_for_meanwhile_is_done_once_more() -> None:
    began: list[int] = []

    async def asked() -> None:
        may_end = asyncio.Event()

        async def work() -> None:
            began.append(len(began))
            await may_end.wait()

        reading = OneAtATime(work)
        reading.ask()
        await asyncio.sleep(0)
        assert began == [0]
        for _ in range(3):  # settings have changed again
            reading.ask()
        await asyncio.sleep(0)
        assert began == [0]
        may_end.set()
        await asyncio.sleep(0.01)
        assert began == [0, 1]
        reading.ask()
        await asyncio.sleep(0.01)
        assert began == [0, 1, 2]

    asyncio.run(asked())
