"""The providers of a worker, each ready to be called, and the `ai_model` rows that they were built from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ai_worker import prices
from ai_worker.log import Event, Log
from ai_worker.models import Model, Secret
from ai_worker.providers import Provider, ProviderConfig, provider_class
from ai_worker.worker import runtime

FRESH_SECONDS = 30.0  # how long an `ai_model` row is trusted: a new key or limit is noticed within this time


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
