"""Whoever leads a pack, and however it fares, each of its items goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.errors import Overloaded, RateLimited
from ai_worker.log import Log
from ai_worker.models import Completion, Item, Lane, Model, Prompt, Result, Task, TaskStatus, Usage
from ai_worker.task_types import task_type
from ai_worker.worker.attempt import Attempt
from ai_worker.worker.endpoints import Endpoint
from ai_worker.worker.packs import Packs

TEXTS = ["pierwszy", "drugi dłuższy", "trzeci"]
MODEL = Model(1, "m", "openai", "fake", price_input=Decimal(1), price_output=Decimal(2))
ENDPOINT = Endpoint(MODEL, None, 0.0)  # type: ignore[arg-type] -- the provider is never asked


class Away:
    """Counts who is away."""

    def __init__(self) -> None:
        self.now = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1


def attempts(texts: list[str] = TEXTS, pack: int = 3, **task: Any) -> list[Attempt]:
    common = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.NEW, pack=pack, **task)
    made = [Attempt(Item(number, common, text, {}, 1, 0, b"", ""), Log()) for number, text in enumerate(texts, 1)]
    for attempt in made:
        attempt.model = MODEL
    return made


def asked(packs: Packs, attempt: Attempt) -> asyncio.Task[Result | None]:
    kind = task_type("correction")
    return asyncio.ensure_future(packs.result(attempt, ENDPOINT, kind, kind.prompt(attempt.item)))


Call = Callable[[Attempt, Endpoint, Prompt], Coroutine[Any, Any, Completion]]


def call_that(ends: Callable[[], Completion | Exception], usage: Usage = Usage(100, 50, 30, 7)) -> Call:  # noqa: B008 -- frozen
    async def call(attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        await asyncio.sleep(0)
        attempt.bill(usage, Lane.ONLINE)
        if isinstance(end := ends(), Exception):
            raise end
        return end

    return call


def answers(*texts: str | None) -> Completion:
    elements = [{"item": n, "corrected_text": t, "change_summary": ""} for n, t in enumerate(texts, 1) if t is not None]
    return Completion(json.dumps({"results": elements}))


async def ended(packs: Packs, own: list[Attempt]) -> list[Any]:
    found = await asyncio.gather(*(asked(packs, attempt) for attempt in own), return_exceptions=True)
    return [one.text_corrected if isinstance(one, Result) else one for one in found]


def test_each_item_gets_its_answer_and_its_share() -> None:
    own, away = attempts(), Away()
    packs = Packs(call_that(lambda: answers("Pierwszy", None, "Trzeci")), away)
    assert asyncio.run(ended(packs, own)) == ["Pierwszy", None, "Trzeci"]
    assert away.now == 0
    assert sum((attempt.usage for attempt in own), Usage()) == Usage(100, 50, 30, 7)
    assert sum(attempt.cost or 0 for attempt in own) == Decimal("0.000200000")
    assert own[1].usage.tokens_input > own[0].usage.tokens_input  # a share, missing or not


def test_what_says_nothing_of_the_items_ends_them_all_with_their_shares() -> None:
    own = attempts()
    error = RateLimited("slower", retry_after=7)
    assert asyncio.run(ended(Packs(call_that(lambda: error), Away()), own)) == [error] * 3
    assert sum((attempt.usage for attempt in own), Usage()) == Usage(100, 50, 30, 7)


def test_a_call_that_was_not_made_again_for_its_providers_sake_charges_none_of_them() -> None:
    own = attempts()

    async def call(attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        attempt.is_spared = True
        raise Overloaded("later")

    asyncio.run(ended(Packs(call, Away()), own))
    assert [attempt.is_spared for attempt in own] == [True] * 3


def test_a_bug_in_a_provider_sends_them_all_alone() -> None:
    own = attempts()
    assert asyncio.run(ended(Packs(call_that(lambda: ZeroDivisionError("oops")), Away()), own)) == [None] * 3


def test_a_price_that_is_not_known_stays_unknown_and_nothing_billed_costs_nothing() -> None:
    unpriced = Model(1, "m", "openai", "fake", base_url="http://localhost:1/v1")
    own = attempts()

    async def call(attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        attempt.model = unpriced
        attempt.bill(Usage(9, 9), Lane.ONLINE)
        return answers(*TEXTS)

    asyncio.run(ended(Packs(call, Away()), own))
    assert [attempt.cost for attempt in own] == [None] * 3
    own = attempts()
    asyncio.run(ended(Packs(call_that(lambda: Overloaded("later"), Usage()), Away()), own))
    assert {attempt.given_back("x").kind.value for attempt in own} == {"released"}


@pytest.mark.parametrize("begun", [False, True], ids=["while it collects", "in its call"])
def test_when_the_leader_is_cancelled_the_others_go_alone(begun: bool) -> None:
    calls = asyncio.Event()

    async def call(attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        calls.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async def run() -> list[Any]:
        packs = Packs(call, Away())
        leader, *others = [asked(packs, attempt) for attempt in attempts(pack=3 if begun else 4)]
        await (calls.wait() if begun else asyncio.sleep(0))
        leader.cancel()
        found = await asyncio.gather(leader, *others, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert not packs._open  # the next item begins a pack of its own
        return found[1:]

    assert asyncio.run(run()) == [None, None]


def test_when_a_follower_is_cancelled_the_others_get_their_answers() -> None:
    own = attempts()

    async def run() -> list[Any]:
        packs = Packs(call_that(lambda: answers(*TEXTS)), Away())
        each = [asked(packs, attempt) for attempt in own]
        await asyncio.sleep(0)
        each[1].cancel()
        return await asyncio.gather(*each, return_exceptions=True)

    one, cancelled, three = asyncio.run(run())
    assert (one.text_corrected, three.text_corrected) == ("pierwszy", "trzeci")
    assert isinstance(cancelled, asyncio.CancelledError)


def test_an_item_without_companions_goes_alone_after_a_moment() -> None:
    never = call_that(lambda: AssertionError("called"))
    assert asyncio.run(ended(Packs(never, Away()), attempts(["sam"]))) == [None]


def test_items_of_two_tasks_do_not_meet() -> None:
    never = call_that(lambda: AssertionError("called"))
    one, other = attempts(["sam"])[0], attempts(["sam"])[0]
    other.item = other.item._replace(task=Task(2, 1, "correction", "", {}, 3, 0, TaskStatus.NEW, pack=3))
    assert asyncio.run(ended(Packs(never, Away()), [one, other])) == [None, None]


def test_a_probe_and_a_single_go_alone_at_once() -> None:
    never = call_that(lambda: AssertionError("called"))
    own = attempts()
    own[0].item = own[0].item._replace(is_single=True)
    assert asyncio.run(ended(Packs(never, Away()), own[:1] + attempts(["x", "y", "z"], is_probe=True))) == [None] * 4
