"""The steps of a batch, from one state in the database to the next."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ai_worker.errors import (
    AiWorkerError,
    CannotMask,
    DatabaseError,
    ItemRejected,
    ModelStopped,
    NetworkFailed,
    ProviderError,
    RateLimited,
    ValueRefused,
)
from ai_worker.library import Library
from ai_worker.log import Event
from ai_worker.models import Item, Outcome, Task, TaskStatus
from ai_worker.providers import BATCH_UNKNOWN, BatchProvider
from ai_worker.retry import attempt_delay, bounded
from ai_worker.store.batches import Batch, Batches, BatchStage
from ai_worker.worker.batch_rows import answered, bounds, rendered, row_id, size_of, undone
from ai_worker.worker.breaker import Breaker, Misconfigured
from ai_worker.worker.calls import CANNOT_MASK_SECONDS, PROBE_SECONDS
from ai_worker.worker.commits import COMMIT_ROWS, Commits
from ai_worker.worker.endpoints import Endpoint, Endpoints
from ai_worker.worker.lease import Lease
from ai_worker.worker.threads import Thread

HOLD_SECONDS: Final = 180.0  # how long a batch stays with a worker that has died; more than one exchange with a provider takes
# Handing in: given up well before the hold ends, so that whoever comes next looks for the batch after it can have been made.
SUBMIT_SECONDS, SUBMIT_HOLD = 300.0, 420.0
UNSURE_SECONDS: Final = 60.0  # after a submission without an answer: by then the provider shows the batch, if it has made it
LINGER_SECONDS: Final = 1.0  # for more items, before a batch that is not full is handed in
POLL_FIRST, POLL_LAST = 2.0, 60.0  # between two questions how a batch is; a tenth of its age, within these
FAILURES_AT_LEAST: Final = 5  # in a row, also when the lease is over: nobody may have been there to ask
CLAIM_ROWS: Final = 500
ROW_GUESS: Final = 4_000  # bytes of a prompt, before the first one is known
AWAY_SECONDS: Final = 1.0  # while the database is away


class NoBatches(ProviderError):
    """The model's provider takes no batches."""

    kind = "configuration"


class BatchSteps:
    """Takes the steps of one batch at a time, which this worker holds.

    Parameters
    ----------
    in_thread: does database verbs.
    library: the task types.
    stopping: nothing more is handed in.
    room: how many more items this worker may claim.
    on_claimed: told how many were, by task.
    on_change: told when it may be worth looking for other work.
    """

    def __init__(
        self,
        batches: Batches,
        endpoints: Endpoints,
        breaker: Breaker,
        lease: Lease,
        commits: Commits,
        in_thread: Thread,
        library: Library,
        *,
        stopping: asyncio.Event,
        room: Callable[[], int],
        on_claimed: Callable[[Mapping[int, int]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._batches = batches
        self._endpoints = endpoints
        self._breaker = breaker
        self._lease = lease
        self._commits = commits
        self._in_thread = in_thread
        self._library = library
        self._stopping = stopping
        self._room = room
        self._on_claimed = on_claimed
        self._on_change = on_change
        self.holder = 0  # this worker, under the id that it had when it took the batch
        self.online: set[int] = set()  # models whose provider takes no batches
        self.unsent: set[int] = set()  # batches that this process has made, and certainly not handed in
        self.fruitless: set[int] = set()  # tasks whose latest batch got no item: others were quicker, or no money was left
        self.due: dict[int, float] = {}  # those that it has let go of: when they may go on
        self.processed = self.failed = 0  # of the present batch's items

    async def step(self, batch: Batch) -> Batch | None:  # noqa: PLR0911, PLR0912 -- a state machine: one return per way out
        """One step; the batch as it stands then, or None when nothing more is to be done now."""
        task = await self._in_thread(self._batches.task, batch)
        if task is None:
            return await self._give_up(batch, None, "its task was deleted")
        endpoint = await self.endpoint(task)
        if endpoint is None:
            await self._leave(batch, 0.0, failures=batch.failures)
            return None
        if (lack := await self._lack(task)) is not None:  # neither its prompts nor its answers can be made out here
            await self._leave(batch, CANNOT_MASK_SECONDS, failures=batch.failures, message=lack)
            return None
        provider = endpoint.provider
        if not isinstance(provider, BatchProvider):  # somebody has changed the model's row
            if batch.stage is BatchStage.COLLECTING:
                return await self._end(batch, task, "not handed in", Outcome.released)
            error: ProviderError = NoBatches(f"the provider {endpoint.model.provider} takes no batches")
            return await self._delay(batch, endpoint, error)
        try:
            match batch.stage:
                case BatchStage.COLLECTING:
                    return await self._collect(batch, task, provider)
                case BatchStage.SUBMITTING:
                    return await self._submit(batch, task, endpoint, provider)
                case BatchStage.SUBMITTED:
                    return await self._ask(batch, provider)
                case _:
                    return await self._store(batch, task, endpoint, provider)
        except DatabaseError:
            raise
        except ProviderError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 -- a plug-in's bug must not stop the other batches
            error = ProviderError(f"{type(failure).__name__}: {failure}")
            self._lease.log(Event.LIBRARY, exc_info=failure, logger="plug-in", message=str(error))
        if isinstance(error, ModelStopped):
            await self._stop_model(task, error)
        return await self._delay(batch, endpoint, error)

    async def _lack(self, task: Task) -> str | None:
        """Reads the task's type, and says where this host must not use it."""
        try:
            await self._library.get(task)
        except CannotMask as error:
            return str(error)
        except AiWorkerError:  # each of its items will end by it, and say so
            pass
        return None

    # ----- the steps

    async def _collect(self, batch: Batch, task: Task, provider: BatchProvider) -> Batch | None:
        """Claims items until the batch is full, or nothing more has come in for a moment."""
        held = [] if batch.id_batch in self.unsent else await self._in_thread(self._batches.items, batch, task)
        limit, rows, size = bounds(provider), len(held), self._size(held)
        after, has_lingered = 0, False
        while rows < limit.rows and size < limit.bytes and not self._is_off(batch) and (room := self._room()) > 0:
            fitting = (limit.bytes - size) // (size // rows + 1 if rows else ROW_GUESS)
            wanted = min(CLAIM_ROWS, limit.rows - rows, max(1, fitting), room)
            items = await self._in_thread(self._batches.claim, batch, task, wanted, after)
            if items:
                self._on_claimed({task.id_task: len(items)})
                rows, size, after = rows + len(items), size + self._size(items), items[-1].id_task_item
                has_lingered = False
            if len(items) < wanted:
                if has_lingered or not rows:
                    break
                after, has_lingered = 0, True
                await self._sleep(LINGER_SECONDS)
            if not await self._in_thread(self._batches.renew, batch, self.holder, HOLD_SECONDS):
                return None
        if not rows:
            self.fruitless.add(batch.id_task)
        if not rows or self._is_off(batch):
            return await self._end(batch, task, "not handed in", Outcome.released)
        if not await self._in_thread(self._batches.submitting, batch, self.holder, rows):
            return None
        return await self._went_on(batch)

    def _size(self, items: Sequence[Item]) -> int:
        return sum([size_of(item, self._library.kind) for item in items])

    async def _submit(  # noqa: PLR0911 -- one return per way out
        self, batch: Batch, task: Task, endpoint: Endpoint, provider: BatchProvider
    ) -> Batch | None:
        """Hands it in; but first looks whether somebody has done so already."""
        if batch.id_batch in self.unsent:
            self.unsent.discard(batch.id_batch)
        elif (there := await self._found(batch, provider)) is not None:
            return await self._submitted(batch, there, endpoint, provider)
        if self._is_off(batch):
            return await self._end(batch, task, "not handed in", Outcome.released)
        items = await self._in_thread(self._batches.items, batch, task)
        ready = await rendered(items, endpoint.model, bounds(provider), self._lease.log, self._library.kind)
        for outcome in (*ready.outcomes, *map(Outcome.released, ready.left)):
            self._commits.put(outcome)
        await self._commits.settled()
        if not ready.prompts:
            return await self._end(batch, task, "nothing to hand in", Outcome.released)
        if not await self._in_thread(self._batches.submitting, batch, self.holder, len(ready.prompts)):
            return None
        if not await self._in_thread(self._batches.renew, batch, self.holder, SUBMIT_HOLD):
            return None
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                there = await provider.submit_batch(batch.key, ready.prompts)
        except TimeoutError:
            raise NetworkFailed(f"no answer to a batch within {SUBMIT_SECONDS:.0f} s") from None
        except ModelStopped as error:
            await self._stop_model(task, error)
            return await self._end(batch, task, f"{error.kind}: {error}", Outcome.released)
        except ItemRejected as error:
            if error.code == BATCH_UNKNOWN:
                self.without_batches(endpoint)
                return await self._end(batch, task, str(error), Outcome.released)
            message = f"the provider refused the batch: {error}"
            return await self._end(batch, task, message, lambda item: undone(item, message))
        return await self._submitted(batch, there, endpoint, provider)

    @staticmethod
    async def _found(batch: Batch, provider: BatchProvider) -> str | None:
        """Its id at the provider, if it was handed in. A server that has no Batch API at all has none of ours."""
        try:
            return await provider.find_batch(batch.key)
        except ItemRejected as error:
            if error.code == BATCH_UNKNOWN:
                return None
            raise

    async def _submitted(self, batch: Batch, there: str, endpoint: Endpoint, provider: BatchProvider) -> Batch | None:
        """Stores the provider's id, before anything else, and for as long as it takes: it has been paid for."""
        while True:
            try:
                stands = await self._in_thread(self._batches.submitted, batch, there)
            except ValueRefused as error:
                raise ProviderError(f"the provider's id of the batch, {there!r}, cannot be stored: {error}") from error
            except DatabaseError as error:
                self._lease.log(Event.DATABASE_AWAY, reason=f"batch {there} has to wait: {error}", commit_in_doubt=False)
                await asyncio.sleep(AWAY_SECONDS)
            else:
                break
        if not stands:
            self._lease.log(
                Event.BATCH_LOST, **self._fields(batch, endpoint), message=f"handed in twice, the other time as {there}"
            )
            await provider.cancel_batch(there)
            return None
        self._lease.log(
            Event.BATCH, **{**self._fields(batch, endpoint), "state": BatchStage.SUBMITTED.value, "provider_batch": there}
        )
        await self._leave(batch, POLL_FIRST, reached=True)
        return None

    async def _ask(self, batch: Batch, provider: BatchProvider) -> Batch | None:
        """How it is by now; whose task was cancelled meanwhile is cancelled there too."""
        there = batch.provider_batch_id or ""
        state = await provider.batch_state(there)
        said = f"{state.status}: {state.done} of {state.total} done" + (f", {state.failed} failed" if state.failed else "")
        if state.message:
            said = f"{said}: {state.message}"
        if not state.ended:
            if batch.is_unwanted and not batch.is_cancelled:
                await provider.cancel_batch(there)
                await self._in_thread(self._batches.cancelled, batch)
            await self._leave(batch, min(POLL_LAST, max(POLL_FIRST, batch.age / 10)), message=said, reached=True)
            return None
        await self._in_thread(self._batches.storing, batch, said)
        return await self._went_on(batch, message=said)

    async def _store(self, batch: Batch, task: Task, endpoint: Endpoint, provider: BatchProvider) -> Batch | None:
        """Fetches its results and stores them; what has none comes back to be sent alone."""
        kind_of = self._library.kind
        waiting = {row_id(item, kind_of): item for item in await self._in_thread(self._batches.items, batch, task)}
        answers = provider.batch_results(batch.provider_batch_id or "")
        stopped: ModelStopped | None = None
        async for key, answer in answers:
            item = waiting.pop(key, None)
            if item is None:
                continue  # stored before a crash
            self._commits.put(answered(item, endpoint.model, answer, self._lease.log, kind_of))
            if isinstance(answer, ModelStopped):
                stopped = answer
            if len(self._commits) % 50 == 0:
                await asyncio.sleep(0)  # the others' turn
            if len(self._commits) >= COMMIT_ROWS:
                await self._commits.settled()
                is_ours = await self._in_thread(self._batches.renew, batch, self.holder, HOLD_SECONDS)
                if self._stopping.is_set() or not is_ours:
                    await self._leave(batch, 0.0)
                    return None
        await self._commits.settled()
        if stopped is not None:
            await self._stop_model(task, stopped)
        message = f"{len(waiting)} items came back without a result" if waiting else None
        # What a person cancelled, and may have resumed meanwhile, is for another batch: the half price was asked for.
        left = partial(undone, message="its batch ended without a result for it", single=not batch.is_cancelled)
        await self._end(batch, task, message, left)
        await provider.forget_batch(batch.provider_batch_id or "")
        return None

    # ----- ends and delays

    async def _end(self, batch: Batch, task: Task, message: str | None, make: Callable[[Item], Outcome]) -> Batch | None:
        """Gives back what it still holds, each as `make` says, and ends it."""
        for _ in range(FAILURES_AT_LEAST):
            for item in await self._in_thread(self._batches.items, batch, task):
                self._commits.put(make(item))
            await self._commits.settled()
            if await self._in_thread(self._batches.finish, batch, message, self.processed, self.failed):
                break
        else:
            await self._in_thread(self._batches.give_up, batch, message or "it could not be ended")
        self.due.pop(batch.id_batch, None)
        self._lease.log(Event.BATCH, **{**self._fields(batch, message=message), "state": BatchStage.DONE.value})
        self._on_change()
        return None

    async def _delay(self, batch: Batch, endpoint: Endpoint, error: ProviderError) -> Batch | None:
        """The provider could not be asked: later again; or not any more, when nobody has reached it for as long as the lease."""
        failures = batch.failures + 1
        is_gone = batch.is_unwanted and error.code == BATCH_UNKNOWN
        if is_gone or (batch.is_overdue and failures >= FAILURES_AT_LEAST):
            return await self._give_up(batch, endpoint, f"{error.kind}: {error}")
        delay = max(POLL_FIRST, attempt_delay(min(failures, 6), error.retry_after))
        if batch.stage is BatchStage.SUBMITTING and not isinstance(error, RateLimited):
            delay = max(delay, UNSURE_SECONDS)
        fields = self._fields(batch, endpoint)
        del fields["items"]
        self._lease.log(Event.BATCH_DELAYED, **fields, kind=error.kind, message=str(error), delay=round(delay, 1))
        await self._leave(batch, delay, failures=failures, message=f"{error.kind}: {error}")
        return None

    async def _give_up(self, batch: Batch, endpoint: Endpoint | None, message: str) -> Batch | None:
        """Its items are given back by the next rescue. Whatever the provider may still do of it is not wanted any more."""
        self._lease.log(Event.BATCH_LOST, **self._fields(batch, endpoint), message=f"given up: {message}")
        if endpoint is not None and isinstance(endpoint.provider, BatchProvider) and batch.provider_batch_id is not None:
            with contextlib.suppress(ProviderError):
                await endpoint.provider.cancel_batch(batch.provider_batch_id)
        await self._in_thread(self._batches.give_up, batch, f"given up: {message}")
        self.due.pop(batch.id_batch, None)
        self._on_change()
        return None

    async def _leave(
        self, batch: Batch, delay: float, *, failures: int = 0, message: str | None = None, reached: bool = False
    ) -> None:
        self.due[batch.id_batch] = time.monotonic() + delay
        await self._in_thread(
            lambda: self._batches.leave(batch, self.holder, delay, failures=failures, message=message, reached=reached)
        )

    async def _went_on(self, batch: Batch, message: str | None = None) -> Batch | None:
        """The batch in its new state, still held."""
        new = await self._in_thread(self._batches.hold, batch.id_batch, self.holder, HOLD_SECONDS)
        if new is not None:
            self._lease.log(Event.BATCH, **self._fields(new, message=message))
        return new

    async def _stop_model(self, task: Task, error: ModelStopped) -> None:
        self._endpoints.recheck(task.id_ai_model)
        await self._breaker.trip(task, error, bounded(error.retry_after or PROBE_SECONDS))

    def without_batches(self, endpoint: Endpoint) -> None:
        """Leaves a model's items to the lane online from now on."""
        self.online.add(endpoint.model.id_ai_model)
        self._lease.log(Event.NO_BATCHES, model=endpoint.model.name)

    async def endpoint(self, task: Task) -> Endpoint | None:
        """The model's endpoint; None when this process cannot use it, which is then left to others for a while."""
        try:
            return await self._endpoints.get(task.id_ai_model)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 -- as for calls: whatever is wrong with it
            await self._stop_model(task, Misconfigured(str(error) or type(error).__name__))
            return None

    def _is_off(self, batch: Batch) -> bool:
        """Whether nothing is to be handed in now."""
        return self._stopping.is_set() or batch.task_status in {TaskStatus.PAUSED, TaskStatus.CANCELLED}

    def _fields(self, batch: Batch, endpoint: Endpoint | None = None, message: str | None = None) -> dict[str, Any]:
        name = endpoint.model.name if endpoint else self._endpoints.name(batch.id_ai_model)
        fields: dict[str, Any] = {"batch": batch.id_batch, "task": batch.id_task, "model": name, "state": batch.stage.value}
        fields["items"] = batch.items
        if batch.provider_batch_id is not None:
            fields["provider_batch"] = batch.provider_batch_id
        if message is not None:
            fields["message"] = message
        return fields

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
