"""One item's way through its model call: prompt, call, answer, outcome. Nothing here touches an item's row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenacity import RetryCallState

from ai_worker.errors import (
    CannotMask,
    ConfigurationError,
    DatabaseAway,
    DatabaseError,
    ItemRejected,
    ModelStopped,
    PersonalDataFound,
    ProviderError,
    RateLimited,
    Shed,
    TimedOut,
    Transient,
    UsageError,
)
from ai_worker.library import Library
from ai_worker.log import DEBUG, Event, Log, excerpt, of_item
from ai_worker.models import NO_USAGE, Completion, Item, Lane, Outcome, Prompt
from ai_worker.retry import CALL_CAP, bounded, call_retrying
from ai_worker.task_types import TIME_LIMIT, TaskType, needs
from ai_worker.worker.attempt import INVALID_TASK, Attempt, GivenBackError, PutOffError, milliseconds, plausible
from ai_worker.worker.backgrounds import Backgrounds
from ai_worker.worker.breaker import Breaker, Misconfigured
from ai_worker.worker.congestion import Throttle
from ai_worker.worker.endpoints import Endpoint, Endpoints
from ai_worker.worker.files import with_described_files
from ai_worker.worker.learning import Learner
from ai_worker.worker.pacer import Pacer
from ai_worker.worker.packs import Packs
from ai_worker.worker.slots import Slots
from ai_worker.worker.steps import Complete, Parted, Stepped, Stepwise, in_lane, work_of
from ai_worker.worker.threads import Thread
from ai_worker.worker.tracing import Tracing
from ai_worker.worker.twins import TooManyTwinsError, Twins
from ai_worker.worker.under_way import UnderWay

PUT_OFF_SECONDS = 3.0  # one of too many twins
PUT_OFF_MOST = 30.0  # ... of very many: they come back in turn, or one long call would have all of them claimed every few seconds
REFUSED_SECONDS = 30.0  # for a right that is granted, or room on a full disk
# For a package or a file of names to be installed here, or for another worker. Longer than a `run` waits: it ends.
CANNOT_MASK_SECONDS = 120.0
LONG_TEXT = 50_000  # characters, which take some 15 ms to cut into parts
PROBE_SECONDS = 300.0  # until a stopped model is tried again, where the provider names no time


class Caller:
    """Takes items through their calls.

    Parameters
    ----------
    library: the task types.
    stopping: ends waits between calls.
    breaker: which models must not be called now; told when no item can succeed on one, before the item is given back.
    pacer: whose turn it is, of models that take so many calls a minute.
    throttle: told how calls end, and asked whether one may be made again.
    learner: told how calls end, for the next ones' pace.
    twins: whether a call need be made at all.
    backgrounds: what is drawn into prompts, for the tasks that ask for it.
    slots: where the call that waits gives its slot away.
    tracing: told of each call.
    stepwise: takes items through several calls, made of what makes one.
    under_way: told of each call when it begins and ends.
    aside: does what would hold up the loop.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        library: Library,
        stopping: asyncio.Event,
        breaker: Breaker,
        pacer: Pacer,
        throttle: Throttle,
        learner: Learner,
        twins: Twins,
        backgrounds: Backgrounds,
        slots: Slots,
        tracing: Tracing,
        stepwise: Callable[[Complete], Stepwise],
        under_way: UnderWay,
        aside: Thread,
        log: Log,
    ) -> None:
        self._endpoints = endpoints
        self._library = library
        self._twins = twins
        self._backgrounds = backgrounds
        self._stopping = stopping
        self._breaker = breaker
        self._pacer = pacer
        self._throttle = throttle
        self._learner = learner
        self._slots = slots
        self._one_call = tracing.calls(self._call)
        self._packs = Packs(self._complete, slots.away)
        self._stepwise = stepwise(self._complete)
        self._under_way = under_way
        self._aside = aside
        self._log = log

    async def outcome(self, item: Item) -> Outcome:  # noqa: PLR0911, PLR0912 -- one return per row of the error table
        """How the item's attempt ends. Never raises, but for cancellation and MemoryError."""
        attempt = Attempt(item, self._log)
        try:
            model = item.task.id_ai_model
            endpoint = self._endpoints.fresh(model) or await self._endpoints.get(model)
        except DatabaseError:  # it went away just now
            return Outcome.released(item)
        except Exception as error:  # noqa: BLE001 -- a provider that cannot be built, for whatever reason, can serve no item
            return await self._stopped(attempt, Misconfigured(str(error) or type(error).__name__))
        attempt.model = endpoint.model
        try:
            kind = attempt.type = self._library.fresh(item.task) or await self._library.get(item.task)
            if (wanted := needs(kind, item.task)) is not None:
                item = attempt.item = item._replace(background=await self._backgrounds.of(item, wanted))
            if (work := await self._work(kind, item, endpoint)) is not None:
                return await self._stepwise.outcome(attempt, endpoint, work)
            try:
                prompt = in_lane(kind.prompt(item), item)
            except ItemRejected as error:  # by its own text, whichever model it were for
                return attempt.failed(error.kind, str(error))
            key = self._twins.key(item, endpoint.model, prompt)
            if key is not None and (known := await self._twins.answer(item, key)) is not None:
                return attempt.from_cache(known)
            result = await self._packs.result(attempt, endpoint, kind, prompt) if item.task.pack > 1 else None
            if result is None:
                result = kind.parse(item, await self._complete(attempt, endpoint, prompt))
            return attempt.processed(await with_described_files(result) if result.files else result)
        except GivenBackError as error:
            return attempt.given_back(str(error))
        except DatabaseAway:  # the same: nobody could say whether a call need be made
            return attempt.given_back("database_away")
        except DatabaseError as error:  # it is there, and refuses: given back, the item would meet that again at once, for ever
            return attempt.waits(PutOffError("database", str(error), REFUSED_SECONDS))
        except PutOffError as error:
            return attempt.waits(error)
        except TooManyTwinsError as error:
            delay = min(PUT_OFF_MOST, PUT_OFF_SECONDS * error.turn)
            return attempt.put_off("twin", "too many items wait for the same work", delay)
        except ModelStopped as error:
            return await self._stopped(attempt, error)
        except UsageError as error:  # of the task's type or parameters: `submit` would have refused them
            return attempt.failed(INVALID_TASK, str(error))
        except CannotMask as error:  # another host may be able to, and this one when it is set up; until then nothing is sent
            return attempt.waits(PutOffError(PersonalDataFound.kind, str(error), CANNOT_MASK_SECONDS))
        except ConfigurationError as error:  # a task type's package that does not load here, and may on another host
            return attempt.retry("internal", str(error), None)
        except PersonalDataFound as error:  # by its own text, whichever model it were for
            return attempt.failed(error.kind, str(error))
        except ItemRejected as error:
            return attempt.refused(error.kind, str(error))
        except Transient as error:
            if isinstance(error, RateLimited) or attempt.is_spared or (error.retry_after or 0.0) > CALL_CAP:
                return attempt.postponed(error)  # that says nothing of the item
            return attempt.retry(error.kind, str(error), error.retry_after)
        except ProviderError as error:
            return attempt.retry(error.kind, str(error), error.retry_after)
        except MemoryError:  # of the worker, whichever item met it
            raise
        except Exception as error:  # noqa: BLE001 -- a plug-in's bug must cost its item, not the worker
            self._log(Event.LIBRARY, exc_info=error, logger="plug-in", message=f"{type(error).__name__}: {error}")
            return attempt.retry("internal", f"{type(error).__name__}: {error}", None)

    async def _work(self, kind: TaskType, item: Item, endpoint: Endpoint) -> Parted | Stepped | None:
        """The calls that the item takes. A long text is cut apart in a thread: some of them at once would hold up the loop for
        longer than its lease bears."""
        if len(item.text_original) < LONG_TEXT:
            return work_of(kind, item, endpoint.model)
        return await self._aside(work_of, kind, item, endpoint.model)

    async def _complete(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        """The call, made again within the attempt as the retry policy says; tokens of failed calls are counted."""
        log, item = attempt.log, attempt.item
        if is_debug := log.enabled(DEBUG) and log.keeps(item.id_task_item):
            log(Event.PROMPT, **of_item(item, endpoint.model.name), prompt=excerpt(prompt.user))
        began = time.monotonic()
        try:
            limit = time_limit(item)
            completion = await (
                self._called(attempt, endpoint, prompt) if limit is None else self._timed(attempt, endpoint, prompt, limit)
            )
        except asyncio.CancelledError:
            if (call := asyncio.current_task()) is not None and call.cancelling():
                raise
            # Nobody cancelled us: it leaked out of the provider, and taken for ours it would give the item back for ever.
            raise RuntimeError("the provider broke off its own call") from None
        except ProviderError as error:
            attempt.bill(error.usage, prompt.lane)
            raise
        usage = attempt.bill(completion.usage, completion.lane)
        if is_debug:
            fields = of_item(item, endpoint.model.name)
            fields["tokens_input"], fields["tokens_output"] = usage.tokens_input, usage.tokens_output
            log(Event.RESULT, **fields, latency_ms=milliseconds(began), answer=excerpt(completion.text))
        return completion

    async def _called(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        try:
            return await self._send(attempt, endpoint, prompt)
        except Transient as error:
            return await self._retried(attempt, endpoint, prompt, error)

    async def _timed(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt, limit: float) -> Completion:
        """The same, broken off when it has taken `limit` seconds; the time in which it waits for its turn does not count."""
        try:
            async with asyncio.timeout(limit) as attempt.timer:
                return await self._called(attempt, endpoint, prompt)
        except TimeoutError:
            if attempt.timer is None or not attempt.timer.expired():  # it is not ours
                raise
            raise TimedOut(f"no answer within {limit:g} s") from None
        finally:
            attempt.timer = None

    async def _send(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        """One request, one answer. Every call that this worker makes for an item goes through here, each retry too."""
        try:
            if attempt.item.task.id_ai_model in self._pacer:
                return await self._send_in_turn(attempt, endpoint, prompt)
            self._check(attempt)
            return await self._one_call(attempt, endpoint, prompt)
        except Shed:
            if prompt.lane is Lane.ONLINE:
                raise
            return await self._send(attempt, endpoint, prompt._replace(lane=Lane.ONLINE))

    def _check(self, attempt: Attempt) -> None:
        if not attempt.item.task.is_probe and self._breaker.is_shunned(attempt.item.task.id_ai_model):
            raise GivenBackError("the model was stopped")

    async def _call(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        model, began = attempt.item.task.id_ai_model, time.monotonic()
        number = self._under_way.begin(prompt, began)
        try:
            completion = await endpoint.provider.complete(prompt)
        except Transient as error:
            is_rate = isinstance(error, RateLimited) and self._pacer.paces(model)
            if not is_rate and not isinstance(error, Shed):  # else the pace is to be mended, or the cheap tier is full
                self._throttle.failed(model, error)
            if isinstance(error, RateLimited):
                self._learner.refused(attempt.item.task, error, began, self._throttle.of(model).latency)
            raise
        finally:
            self._under_way.end(number)
        self._throttle.answered(model, began)
        self._learner.answered(model, completion.limits)
        return completion

    async def _send_in_turn(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        """The same for a model whose calls are paced."""
        usage = NO_USAGE
        with _untimed(attempt.timer):
            turn = await self._pacer.turn(attempt.item.task, prompt, attempt.companions)
        if turn is None:
            raise GivenBackError("drained")
        try:
            self._check(attempt)
            completion = await self._one_call(attempt, endpoint, prompt)
            usage = completion.usage
        except ProviderError as error:
            usage = error.usage
            raise
        finally:
            turn.end(plausible(usage))
        return completion

    async def _retried(self, attempt: Attempt, endpoint: Endpoint, prompt: Prompt, first: Transient) -> Completion:
        """The calls after a first one that failed. Only then is the policy made: it costs as much as all else here."""
        failed: Transient | None = first

        async def complete() -> Completion:
            nonlocal failed
            if failed is not None:  # for the policy, the call that was made without it is the first of its calls
                error, failed = failed, None
                raise error
            return await self._send(attempt, endpoint, prompt)

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, ProviderError):
                attempt.bill(error.usage, prompt.lane)
                fields = of_item(attempt.item, endpoint.model.name)
                fields["call"], fields["delay"] = state.attempt_number, round(state.upcoming_sleep, 2)
                attempt.log(Event.RETRY, **fields, kind=error.kind, message=str(error))

        def may_retry() -> bool:
            attempt.is_spared = not self._throttle.of(attempt.item.task.id_ai_model).may_retry()
            return not attempt.is_spared

        completion: Completion = await call_retrying(before_sleep=note, sleep=self._sleep, may_retry=may_retry)(complete)
        return completion

    async def _sleep(self, seconds: float) -> None:
        """A wait without a slot, that a drain ends: the item is given back then, since nobody has been paid for it."""
        async with self._slots.away(keeps_place=True):
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                return
            raise GivenBackError("drained")

    async def _stopped(self, attempt: Attempt, error: ModelStopped) -> Outcome:
        self._endpoints.recheck(attempt.item.task.id_ai_model)
        self._throttle.restart(attempt.item.task.id_ai_model)
        probe_seconds = bounded(error.retry_after or PROBE_SECONDS)
        await self._breaker.trip(attempt.item.task, error, probe_seconds)
        if attempt.is_elsewhere:  # its task's model is well: claimed again at once, it would come here again at once
            return attempt.waits(PutOffError(error.kind, str(error), probe_seconds))
        return attempt.given_back(error.kind)


def time_limit(item: Item) -> float | None:
    """Seconds after which an attempt's calls are broken off; None: never. Every limit there is comes together here, the shortest
    counts: that of the task's queue or type, and its own, the parameter `time_limit`.

    What cannot be one was refused with the task's parameters.
    """
    own = item.task.parameters.get(TIME_LIMIT)
    if own is None and item.task.time_limit is None:  # nearly always
        return None
    limits = [each for each in (own, item.task.time_limit) if isinstance(each, int | float) and each > 0]
    return min(limits) if limits else None


@contextmanager
def _untimed(timer: asyncio.Timeout | None) -> Iterator[None]:
    """Stops an attempt's clock: what the fleet's pace has it wait for is not its own time."""
    if timer is None or (deadline := timer.when()) is None:
        yield
        return
    clock = asyncio.get_running_loop().time
    left = deadline - clock()
    timer.reschedule(None)
    try:
        yield
    finally:
        if not timer.expired():
            timer.reschedule(clock() + left)
