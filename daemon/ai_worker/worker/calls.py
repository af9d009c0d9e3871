"""One item's way through its model call: prompt, call, answer, outcome. Nothing here touches an item's row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal

from tenacity import RetryCallState

from ai_worker import prices
from ai_worker.errors import (
    ConfigurationError,
    DatabaseError,
    ItemRejected,
    ModelStopped,
    ProviderError,
    RateLimited,
    Transient,
    UsageError,
)
from ai_worker.log import DEBUG, WARNING, Event, Log, excerpt, of_item
from ai_worker.models import NO_USAGE, Completion, Item, Model, Outcome, OutcomeKind, Prompt, Result, Secret, Usage
from ai_worker.providers import Provider, ProviderConfig, provider_class
from ai_worker.retry import attempt_delay, bounded, call_retrying
from ai_worker.task_types import task_type
from ai_worker.worker import runtime

PROBE_SECONDS = 300.0  # until a stopped model is tried again, where the provider names no time
POSTPONED_AS = 4  # a postponed item waits as one that has failed this often: it has had its call retries already
MOST_TOKENS = 10_000_000  # of one call; no model takes or gives as many
FRESH_SECONDS = 30.0  # how long an `ai_model` row is trusted: a new key or limit is noticed within this time


class DrainedError(Exception):
    """The worker is stopping and this call was waiting to be made again: nothing is lost by giving the item back."""


@dataclass(slots=True)
class Endpoint:
    """A provider that is ready to be called, and the `ai_model` row that it was built from."""

    model: Model
    provider: Provider
    checked_at: float


class Endpoints:
    """The providers of this worker, one per model, built when first needed and rebuilt when their row changes."""

    def __init__(
        self,
        fetch: Callable[[int], Awaitable[Model]],
        decrypt: Callable[[int, bytes], Secret],
        *,
        request_timeout: float,
        max_connections: int,
    ) -> None:
        self._fetch = fetch
        self._decrypt = decrypt
        self._request_timeout = request_timeout
        self._max_connections = max_connections
        self._ready: dict[int, Endpoint] = {}
        self._names: dict[int, str] = {}
        self._retired: list[Provider] = []
        self._building = asyncio.Lock()  # of Python 3.10 and later: may be made outside of the loop

    async def get(self, id_ai_model: int) -> Endpoint:
        """The endpoint of a model. Raises ConfigurationError when its row, key or provider cannot work."""
        async with self._building:
            if (endpoint := self.fresh(id_ai_model)) is not None:
                return endpoint
            endpoint = self._ready.get(id_ai_model)
            model = await self._fetch(id_ai_model)
            self._names[id_ai_model] = model.name
            if endpoint is None or not _is_same(endpoint.model, model):
                if endpoint is not None:
                    self._retired.append(endpoint.provider)  # calls may still be under way on it
                endpoint = Endpoint(model, await self._build(model), 0.0)
                self._ready[id_ai_model] = endpoint
            endpoint.model, endpoint.checked_at = model, time.monotonic()
            return endpoint

    def fresh(self, id_ai_model: int) -> Endpoint | None:
        """The same, when it is there and need not be looked up: nearly always."""
        endpoint = self._ready.get(id_ai_model)
        return endpoint if endpoint is not None and time.monotonic() - endpoint.checked_at < FRESH_SECONDS else None

    def name(self, id_ai_model: int) -> str:
        """The model's name, for the log; its number while the row has not been read."""
        return self._names.get(id_ai_model, str(id_ai_model))

    def recheck(self, id_ai_model: int) -> None:
        """The next call reads the model's row again: somebody may have mended it."""
        if endpoint := self._ready.get(id_ai_model):
            endpoint.checked_at = float("-inf")

    async def aclose(self) -> None:
        """Closes all providers. One that cannot be closed is left to the end of the process, which is near."""
        for provider in [*self._retired, *(endpoint.provider for endpoint in self._ready.values())]:
            try:
                await provider.aclose()
            except Exception as error:  # noqa: BLE001 -- a plug-in's bug must not spoil the end of a run that has done its work
                Log()(Event.LIBRARY, exc_info=error, logger="plug-in", message=f"{type(error).__name__}: {error}")

    async def _build(self, model: Model) -> Provider:
        key = None if model.api_key_encrypted is None else self._decrypt(model.id_ai_model, model.api_key_encrypted)
        # An SDK takes seconds to import on a busy machine: in a thread, or the loop would stand still and lose its lease.
        provider = await asyncio.to_thread(_loaded, model)
        return provider(
            ProviderConfig(
                name=model.name,
                model=model.model,
                base_url=model.base_url,
                api_key=key,
                options=model.options,
                request_timeout=self._request_timeout,
                max_connections=self._max_connections,
            )
        )


def _loaded(model: Model) -> type[Provider]:
    """The class of a model's provider, with all imported that its calls will need."""
    provider = provider_class(model.provider)
    prices.price(model)
    runtime.settle()
    return provider


def _is_same(one: Model, other: Model) -> bool:
    """Whether two readings of a row make the same provider: limits, prices and the breaker do not matter."""
    return (one.provider, one.model, one.base_url, one.api_key_encrypted, dict(one.options)) == (
        other.provider,
        other.model,
        other.base_url,
        other.api_key_encrypted,
        dict(other.options),
    )


class Caller:
    """Takes items through their calls.

    `stopping` ends waits between calls; `on_model_stopped(item, error, probe_seconds)` is awaited when no item can succeed on a
    model now, before the item is given back.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        stopping: asyncio.Event,
        on_model_stopped: Callable[[Item, ModelStopped, float], Awaitable[None]],
        log: Callable[[], Log],
    ) -> None:
        self._endpoints = endpoints
        self._stopping = stopping
        self._on_model_stopped = on_model_stopped
        self._log = log

    async def outcome(self, item: Item) -> Outcome:  # noqa: PLR0911 -- one return per row of the error table
        """How the item's attempt ends. Never raises, but for cancellation."""
        attempt = _Attempt(item, self._log())
        try:
            model = item.task.id_ai_model
            endpoint = self._endpoints.fresh(model) or await self._endpoints.get(model)
        except DatabaseError:  # it went away just now
            return Outcome.released(item)
        except Exception as error:  # noqa: BLE001 -- a provider that cannot be built, for whatever reason, can serve no item
            return await self._stopped(attempt, Misconfigured(str(error) or type(error).__name__))
        attempt.model = endpoint.model
        try:
            kind = task_type(item.task.task_type)
            completion = await self._complete(attempt, endpoint, kind.prompt(item))
            return attempt.processed(kind.parse(item, completion))
        except DrainedError:
            return attempt.given_back("drained")
        except ModelStopped as error:
            return await self._stopped(attempt, error)
        except UsageError as error:  # of the task's type or parameters: `submit` would have refused them
            return attempt.failed("invalid_task", str(error))
        except ConfigurationError as error:  # a task type's package that does not load here, and may on another host
            return attempt.retry("internal", str(error), None)
        except ItemRejected as error:
            return attempt.failed(error.kind, str(error))
        except RateLimited as error:
            return attempt.postponed(error)
        except ProviderError as error:
            return attempt.retry(error.kind, str(error), error.retry_after)
        except Exception as error:  # noqa: BLE001 -- a plug-in's bug must cost its item, not the worker
            self._log()(Event.LIBRARY, exc_info=error, logger="plug-in", message=f"{type(error).__name__}: {error}")
            return attempt.retry("internal", f"{type(error).__name__}: {error}", None)

    async def _complete(self, attempt: _Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
        """The call, made again within the attempt as the retry policy says; tokens of failed calls are counted."""
        log, item = attempt.log, attempt.item
        if is_debug := log.enabled(DEBUG):
            log(Event.PROMPT, **of_item(item, endpoint.model.name), prompt=excerpt(prompt.user))
        began = time.monotonic()
        try:
            try:
                completion = await endpoint.provider.complete(prompt)
            except Transient as error:
                completion = await self._retried(attempt, endpoint, prompt, error)
        except asyncio.CancelledError:
            if (call := asyncio.current_task()) is not None and call.cancelling():
                raise
            # Nobody cancelled us: it leaked out of the provider, and taken for ours it would give the item back for ever.
            raise RuntimeError("the provider broke off its own call") from None
        except ProviderError as error:
            attempt.usage += _plausible(error.usage)
            raise
        usage = _plausible(completion.usage)
        attempt.usage += usage
        if is_debug:
            fields = of_item(item, endpoint.model.name)
            fields["tokens_input"], fields["tokens_output"] = usage.tokens_input, usage.tokens_output
            log(Event.RESULT, **fields, latency_ms=_milliseconds(began), answer=excerpt(completion.text))
        return completion

    async def _retried(self, attempt: _Attempt, endpoint: Endpoint, prompt: Prompt, first: Transient) -> Completion:
        """The calls after a first one that failed. Only then is the policy made: it costs as much as all else here."""
        failed: Transient | None = first

        async def complete() -> Completion:
            nonlocal failed
            if failed is not None:  # for the policy, the call that was made without it is the first of its calls
                error, failed = failed, None
                raise error
            return await endpoint.provider.complete(prompt)

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, ProviderError):
                attempt.usage += _plausible(error.usage)
                fields = of_item(attempt.item, endpoint.model.name)
                fields["call"], fields["delay"] = state.attempt_number, round(state.upcoming_sleep, 2)
                attempt.log(Event.RETRY, **fields, kind=error.kind, message=str(error))

        completion: Completion = await call_retrying(before_sleep=note, sleep=self._sleep)(complete)
        return completion

    async def _sleep(self, seconds: float) -> None:
        """A wait that a drain ends: the item is given back, since nobody has been paid for it."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise DrainedError

    async def _stopped(self, attempt: _Attempt, error: ModelStopped) -> Outcome:
        self._endpoints.recheck(attempt.item.task.id_ai_model)
        await self._on_model_stopped(attempt.item, error, bounded(error.retry_after or PROBE_SECONDS))
        return attempt.given_back(error.kind)


class Misconfigured(ModelStopped):
    """This process cannot use the model: it lacks the master key or the provider. Others may have them."""

    kind = "configuration"


_TEXT = (str, type(None))


class _Attempt:
    """One attempt under way: what it has cost so far, and its possible ends."""

    __slots__ = ("_began", "item", "log", "model", "usage")

    def __init__(self, item: Item, log: Log) -> None:
        self.item = item
        self.log = log
        self.usage = NO_USAGE  # of the answer, and of failed calls that were billed all the same
        self.model: Model | None = None
        self._began = time.monotonic()

    def processed(self, result: Result) -> Outcome:
        """Raises TypeError when a plug-in made a result that is none."""
        if not isinstance(result.text_corrected, _TEXT):
            raise TypeError(f"the result's text is of the type {type(result.text_corrected).__name__}")
        return Outcome.processed(self.item, result, self.usage, self._cost(), _milliseconds(self._began))

    def postponed(self, error: RateLimited) -> Outcome:
        """Being told to slow down says nothing about the item: it waits, and its attempt is not charged."""
        delay = attempt_delay(POSTPONED_AS, error.retry_after)
        return self._logged(self._postponed(error.kind, str(error), delay))

    def given_back(self, why: str) -> Outcome:
        """Not charged, and claimable at once; on the books where calls were billed all the same."""
        if self.usage == NO_USAGE:
            return Outcome.released(self.item)
        return self._postponed(why, "given back after calls that were billed", 0.0)

    def _postponed(self, kind: str, message: str, delay: float) -> Outcome:
        latency = _milliseconds(self._began)
        return Outcome.postponed(self.item, _column(kind), message, delay, self.usage, self._cost(), latency)

    def retry(self, kind: str, message: str, retry_after: float | None) -> Outcome:
        delay = attempt_delay(self.item.tries, retry_after)
        latency = _milliseconds(self._began)
        return self._logged(Outcome.retry(self.item, _column(kind), message, delay, self.usage, self._cost(), latency))

    def failed(self, kind: str, message: str) -> Outcome:
        latency = _milliseconds(self._began)
        return self._logged(Outcome.failed(self.item, _column(kind), message, self.usage, self._cost(), latency))

    def _cost(self) -> Decimal | None:
        return prices.cost(self.model, self.usage) if self.model else None

    def _logged(self, outcome: Outcome) -> Outcome:
        self.log(
            Event.ERROR,
            level=None if outcome.kind is OutcomeKind.FAILED else WARNING,
            **of_item(self.item, self.model.name if self.model else str(self.item.task.id_ai_model)),
            kind=outcome.error_kind,
            message=outcome.error_message,
            outcome=outcome.kind.value,
            tokens_input=self.usage.tokens_input,
            tokens_output=self.usage.tokens_output,
        )
        return outcome


def _plausible(usage: Usage) -> Usage:
    """The tokens that a provider says it used, within what the columns take: an absurd number must not cost the answer."""
    if (
        0 <= usage.tokens_cached <= usage.tokens_input <= MOST_TOKENS
        and 0 <= usage.tokens_reasoning <= usage.tokens_output <= MOST_TOKENS
    ):
        return usage
    tokens_input, tokens_output, cached, reasoning = (
        min(max(0, tokens), MOST_TOKENS)
        for tokens in (usage.tokens_input, usage.tokens_output, usage.tokens_cached, usage.tokens_reasoning)
    )
    return Usage(tokens_input, tokens_output, min(cached, tokens_input), min(reasoning, tokens_output))


def _column(kind: str) -> str:
    """An error's kind as its column takes it: a plug-in may name its own."""
    return kind.encode("ascii", "replace").decode()[:32]


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
