"""Items that take several calls: the steps of their prompt one after the other, or the parts of a long text side by side.

Each finished one is stored, and paid for, at once. The next attempt, here or in another process, goes on from there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from ai_worker import prices
from ai_worker.counts import Counts
from ai_worker.errors import DatabaseError, ItemRejected, ValueRefused
from ai_worker.models import NO_USAGE, Completion, Item, Lane, Model, Outcome, Prompt, Result, Step, StepResult, Task
from ai_worker.store.budgets import SetAside
from ai_worker.store.steps import MOST_PARTS, ClaimLostError, Finished, Place, Steps, new_operation
from ai_worker.task_types import SplittingTaskType, SteppedTaskType, TaskType, splitting, stepped
from ai_worker.worker.attempt import Attempt, GivenBackError, PutOffError
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.commits import AWAY_SECONDS, UNSTORABLE
from ai_worker.worker.endpoints import Endpoint, Endpoints
from ai_worker.worker.lease import Lease
from ai_worker.worker.parts import Parts
from ai_worker.worker.slots import Slots
from ai_worker.worker.step_models import StepModels
from ai_worker.worker.threads import Thread

SHORT_SECONDS: Final = 30.0  # until an item comes back for whose step all money of the day is set aside

T = TypeVar("T")

Complete = Callable[[Attempt, Endpoint, Prompt], Awaitable[Completion]]


class Unstorable(ItemRejected):
    """The database does not take what the model answered."""

    kind = UNSTORABLE


class Parted(NamedTuple):
    """An item whose text is sent in parts."""

    kind: SplittingTaskType
    parts: Sequence[str]


class Stepped(NamedTuple):
    """An item that takes several steps."""

    kind: SteppedTaskType
    steps: Sequence[Step]


def work_of(kind: TaskType, item: Item, model: Model) -> Parted | Stepped | None:
    """The calls that an item takes; None where it is one, as nearly always. Raises UsageError as the type's `validate` does."""
    by_steps = stepped(kind)
    if by_steps is not None and len(steps := by_steps.steps(item.task)) > 1:
        return Stepped(by_steps, steps)
    by_parts = splitting(kind)
    if by_parts is None:
        return None
    most = model.options.get("max_output_tokens")
    parts = by_parts.split(item, most // 2 if isinstance(most, int) else None)
    if not 1 < len(parts) <= MOST_PARTS or item.text_original.isspace():
        return None
    return Parted(by_parts, parts)


def digests_of(work: Parted | Stepped, item: Item) -> dict[Place, bytes]:
    """What is stored of the calls that an item takes, each with what it is made of; blank parts are copied and take none."""
    if isinstance(work, Stepped):
        return {Place(number): _digest(work.kind, item, number, step.name) for number, step in enumerate(work.steps, 1)}
    return {
        Place(1, number): _digest(work.kind, item._replace(text_original=part), 1, "")
        for number, part in enumerate(work.parts, 1)
        if not part.isspace()
    }


def in_lane(prompt: Prompt, item: Item) -> Prompt:
    """The prompt for the lane in which the item is sent by itself."""
    is_flex = item.task.lane is Lane.FLEX and not item.is_single
    return prompt._replace(lane=Lane.FLEX) if is_flex else prompt


class Stepwise:
    """Takes items through their several calls. Used in the loop.

    Parameters
    ----------
    complete: makes one call, again and again as the retry policy says, and puts what it costs on the attempt's books.
    begin, store: what `store.steps.Steps` does, awaited.
    reserve: what `store.queue.Queue.reserve_for_step` does, awaited.
    turn: turns the running call to a step's model: the item for it, and its endpoint. See `StepModels.turn`.
    parts: does parts side by side.
    stopping: no step or part begins any more.
    on_answer: told of an item that tried a stopped model, and has its answer.
    on_booked: told of each finished step, when what it cost is on the books.
    """

    def __init__(
        self,
        complete: Complete,
        begin: Callable[[Item, Mapping[Place, bytes]], Awaitable[dict[Place, StepResult]]],
        reserve: Callable[[Item, Decimal | None], Awaitable[SetAside]],
        store: Callable[[Finished], Awaitable[bool]],
        turn: Callable[[Item, Step, Endpoint], Awaitable[tuple[Item, Endpoint]]],
        parts: Parts,
        stopping: asyncio.Event,
        on_answer: Callable[[Item], None],
        on_booked: Callable[[Finished], None],
    ) -> None:
        self._complete = complete
        self._begin = begin
        self._reserve = reserve
        self._store = store
        self._turn = turn
        self._parts = parts
        self._stopping = stopping
        self._on_answer = on_answer
        self._on_booked = on_booked

    async def outcome(self, attempt: Attempt, endpoint: Endpoint, work: Parted | Stepped) -> Outcome:
        """How the item's attempt ends that succeeds; raises what a single call would.

        What was billed and could not be stored is on the attempt's books by then, also when it is broken off.
        """
        try:
            if isinstance(work, Parted):
                result = await self._by_parts(attempt, endpoint, work)
                return attempt.processed(result)._replace(is_joined=True)
            return _without_probe(attempt.processed(await self._by_steps(attempt, endpoint, work)))
        except asyncio.CancelledError:
            if attempt.usage == NO_USAGE:
                raise
            return attempt.given_back("drained")

    async def _by_steps(self, attempt: Attempt, endpoint: Endpoint, work: Stepped) -> Result:
        item, kind = attempt.item, work.kind
        digests = digests_of(work, item)
        stored = await self._resumed(item, digests)
        results: dict[str, StepResult] = {}
        goes_on, payer = True, item.task.id_ai_model  # on whose day its money is set aside
        for place, step in zip(digests, work.steps, strict=True):
            if place in stored:
                results[step.name] = stored[place]
                continue
            self._check(goes_on=goes_on)
            theirs, its_endpoint = await self._turn(item, step, endpoint)
            one = attempt.for_step(theirs, its_endpoint.model)
            try:
                prompt = kind.step_prompt(theirs, place.step, results)
                if theirs.task.budget_per_day is not None and theirs.task.id_ai_model != payer:
                    await self._set_aside(one, prices.expected(its_endpoint.model, prompt))
                    payer = theirs.task.id_ai_model
                results[step.name], goes_on = await self._one(one, its_endpoint, kind, place, digests[place], prompt)
            except BaseException:
                attempt.end_with(one)
                raise
            if theirs.task.is_probe:
                self._on_answer(theirs)
        return kind.combined(item, results)

    async def _by_parts(self, attempt: Attempt, endpoint: Endpoint, work: Parted) -> Result:
        item, kind = attempt.item, work.kind
        items = {Place(1, number): item._replace(text_original=part) for number, part in enumerate(work.parts, 1)}
        digests = digests_of(work, item)
        results = await self._resumed(item, digests)
        halts: set[Place] = set()

        async def one(place: Place) -> None:
            self._check(goes_on=not halts)
            part = attempt.for_step(items[place], endpoint.model)
            try:
                prompt = kind.step_prompt(part.item, place.step, {})
                results[place], goes_on = await self._one(part, endpoint, kind, place, digests[place], prompt)
                if not goes_on:
                    halts.add(place)
            finally:
                attempt.add(part)

        await self._parts.work_off(item, [place for place in digests if place not in results], one)
        in_order = [results.get(Place(1, number), StepResult(part, {})) for number, part in enumerate(work.parts, 1)]
        return kind.joined(item, in_order)

    def _check(self, *, goes_on: bool) -> None:
        """Before each call."""
        if self._stopping.is_set():
            raise GivenBackError("drained")
        if not goes_on:  # its task was paused or cancelled: no more money is to be spent on it
            raise GivenBackError("halted")

    async def _one(
        self,
        attempt: Attempt,
        endpoint: Endpoint,
        kind: SteppedTaskType,
        place: Place,
        digest: bytes,
        prompt: Prompt,
    ) -> tuple[StepResult, bool]:
        """The result, and whether the item goes on."""
        completion = await self._complete(attempt, endpoint, in_lane(prompt, attempt.item))
        result = kind.parse_step(attempt.item, place.step, completion)
        return result, await self._keep(attempt, Finished(attempt.item, place, digest, result))

    async def _set_aside(self, attempt: Attempt, cost: Decimal | None) -> None:
        """Before a step's call on a model which the claim has set nothing aside for: its day may be spent."""
        item = attempt.item
        try:
            found = await self._reserve(item, None if cost is None else prices.with_margin(cost))
        except ClaimLostError:
            raise GivenBackError("late") from None
        if found.short:
            name = attempt.model.name if attempt.model else item.task.id_ai_model
            raise PutOffError(
                "budget", f"all money that is left of the day of model {name} is set aside for calls in flight", SHORT_SECONDS
            )
        if not found.items:
            raise GivenBackError("halted")

    async def _resumed(self, item: Item, digests: Mapping[Place, bytes]) -> dict[Place, StepResult]:
        try:
            return await self._begin(item, digests)
        except ClaimLostError:
            raise GivenBackError("late") from None

    async def _keep(self, attempt: Attempt, done: Finished) -> bool:
        """Returns what `store` does when the result is stored, however long the database is away: it has been paid for."""
        done = done._replace(
            usage=attempt.usage,
            cost=attempt.total(),
            latency_ms=attempt.latency_ms,
            lane=attempt.lane,
            operation=new_operation(attempt.item),
        )

        def booked() -> None:
            attempt.clear()
            self._on_booked(done)

        while True:
            try:
                return await _to_its_end(self._store(done), booked)
            except ClaimLostError as lost:
                if lost.is_booked:
                    booked()
                raise GivenBackError("late") from None
            except (ValueRefused, TypeError, ValueError) as error:
                raise Unstorable(f"the database refused the result: {error}") from None
            except DatabaseError:  # said by whoever lost the connection
                done = done._replace(again=True)
                await asyncio.sleep(AWAY_SECONDS)


def stepwise(
    complete: Complete,
    *,
    steps: Steps,
    reserve: Callable[[Item, Decimal | None], SetAside],
    take_probe: Callable[[int], bool],
    lease: Lease,
    thread: Thread,
    endpoints: Endpoints,
    slots: Slots,
    saw: Callable[[Iterable[Task]], None],
    stopping: asyncio.Event,
    breaker: Breaker,
    counts: Counts,
) -> Stepwise:
    """A worker's, of its own pieces. `thread` stores the steps."""

    async def endpoint(id_ai_model: int) -> Endpoint:
        return endpoints.fresh(id_ai_model) or await endpoints.get(id_ai_model)

    models = StepModels(
        thread.doing(steps.models),
        endpoint,
        saw=saw,
        turn_to=slots.turn_to,
        away=slots.away,
        is_shunned=breaker.is_shunned,
        take_probe=thread.doing(take_probe),
    )
    return Stepwise(
        complete,
        thread.doing(steps.begin),
        thread.doing(reserve),
        thread.doing(lease.own(steps.store)),
        models.turn,
        Parts(slots.beside, slots.away),
        stopping,
        breaker.answered,
        lambda done: counts.booked(done.item.task.id_ai_model, done.usage, done.cost),
    )


def _without_probe(outcome: Outcome) -> Outcome:
    """Which models have answered was told step by step; the task's own need not be one of them."""
    item = outcome.item
    return outcome._replace(item=item._replace(task=replace(item.task, is_probe=False))) if item.task.is_probe else outcome


async def _to_its_end(storing: Awaitable[T], on_stored: Callable[[], None]) -> T:
    """Waits for a transaction, also while being cancelled: what it has booked must not be booked again."""
    transaction = asyncio.ensure_future(storing)
    cancelled: asyncio.CancelledError | None = None
    while not transaction.done():
        try:
            await asyncio.wait([transaction])
        except asyncio.CancelledError as error:
            cancelled = error
    if transaction.exception() is None:
        on_stored()
    if cancelled is not None:
        raise cancelled
    return transaction.result()


def _digest(kind: SteppedTaskType, item: Item, number: int, name: str) -> bytes:
    """Stands for what a step is made of, beside its model.

    What was drawn for the prompt is not in it, as that may change by the hour: a finished step stays finished.
    """
    text = item.text_original.encode("utf-8", "surrogatepass")
    about = json.dumps([name, dict(item.context)], sort_keys=True, default=repr).encode()
    return sha256(b"%b%d:%b%b" % (kind.step_identity(item.task, number), len(about), about, text)).digest()
