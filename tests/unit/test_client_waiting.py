"""What waits of the client do between one look into the database and the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from ai_worker.client import waiting
from ai_worker.client.waiting import Waiting
from ai_worker.errors import DatabaseAway, DatabaseError, ItemMissing


class Looks:
    """A database of which a test says what it answers, look by look; afterwards that nothing has ended."""

    def __init__(self, *answers: Mapping[int, Any] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[set[int]] = []

    async def __call__(self, items: Collection[int]) -> Mapping[int, Any]:
        self.asked.append(set(items))
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        return answer


async def outcomes(looks: Looks, *items: int, seconds: float = 5.0) -> list[Any]:
    """What each wait came to: a value, an error, or None."""
    futures = Waiting(looks).begin(items)
    await asyncio.wait(futures, timeout=seconds)
    return [future.exception() or future.result() if future.done() else None for future in futures]


def test_all_are_asked_about_at_once_and_only_those_that_still_wait() -> None:
    looks = Looks({1: "a"}, {}, {2: "b", 3: None})
    first, second, third, same = asyncio.run(outcomes(looks, 1, 2, 3, 2))
    assert (first, second, same) == ("a", "b", "b")
    assert isinstance(third, ItemMissing)
    assert looks.asked == [{1, 2, 3}, {2, 3}, {2, 3}]


def test_nobody_is_asked_when_nobody_waits() -> None:
    async def talk() -> None:
        looks = Looks({1: "a"})
        them = Waiting(looks)
        assert await them.begin([1])[0] == "a"
        await asyncio.sleep(0.1)
        assert len(looks.asked) == 1
        (given_up,) = them.begin([2])
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0.1)
        asked = len(looks.asked)
        await asyncio.sleep(0.1)
        assert len(looks.asked) == asked
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(talk())


def test_long_waits_ask_ever_less_often_until_somebody_comes() -> None:
    async def talk() -> tuple[int, float]:
        looks = Looks()
        them = Waiting(looks)
        them.begin([1])
        await asyncio.sleep(1.2)
        asked = len(looks.asked)
        looks.answers = [{2: "b"}]
        begun = time.monotonic()
        assert await them.begin([2])[0] == "b"  # who has just come need not wait for the others' next look
        return asked, time.monotonic() - begun

    asked, seconds = asyncio.run(talk())
    assert asked <= 28  # 40 without
    assert seconds < 1


def test_however_many_come_the_looks_keep_their_distance() -> None:
    async def talk() -> int:
        looks = Looks()
        them = Waiting(looks)
        for number in range(150):
            them.begin([number])
            await asyncio.sleep(0.002)
        return len(looks.asked)

    begun = time.monotonic()
    asked = asyncio.run(talk())
    assert asked <= (time.monotonic() - begun) / 0.03 + 2


def test_looks_are_few_however_waiters_come_and_go() -> None:
    """A result each few milliseconds, and a new waiter after each: the database must not notice how many they are."""

    async def talk() -> tuple[int, float]:
        looks = Looks()
        them = Waiting(looks)
        begun = time.monotonic()
        number = 0
        while time.monotonic() - begun < 2:
            number += 1
            looks.answers = [{number: "a"}]
            assert await them.begin([number])[0] == "a"
        return len(looks.asked), time.monotonic() - begun

    asked, seconds = asyncio.run(talk())
    assert asked <= 11 + 8 * seconds


def test_a_database_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_AWAY", 0.01)
    looks = Looks(DatabaseAway("gone"), DatabaseAway("gone"), {1: "a"})
    assert asyncio.run(outcomes(looks, 1)) == ["a"]


def test_any_other_error_is_everybody_s_and_the_next_wait_begins_anew() -> None:
    async def talk() -> None:
        looks = Looks(DatabaseError("denied"), {3: "c"})
        them = Waiting(looks)
        futures = them.begin([1, 2])
        await asyncio.wait(futures)
        assert [str(future.exception()) for future in futures] == ["denied", "denied"]
        assert await them.begin([3])[0] == "c"

    asyncio.run(talk())
