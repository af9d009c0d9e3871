"""Providers: the clients that talk to one API family each, found through the entry-point group `ai_worker.providers`.

A provider is a class taking `ProviderConfig` and having the two methods of `Provider`. The built-in ones (`openai`, `gemini`,
`offline`, `echo`) are registered in pyproject.toml exactly as a third party registers its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ai_worker.errors import ConfigurationError, ProviderError
from ai_worker.models import Completion, Prompt, Secret

ENTRY_POINT_GROUP = "ai_worker.providers"


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """What a provider is built from: the `ai_model` row, decrypted, and the worker's limits.

    `request_timeout` is in seconds and bounds one whole HTTP exchange; `max_connections` is at least the worker's concurrency.
    """

    name: str
    model: str | None = None
    base_url: str | None = None
    api_key: Secret | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    request_timeout: float = 120.0
    max_connections: int = 200


class Provider(Protocol):
    """One instance serves all concurrent calls of one model in one event loop."""

    def __init__(self, config: ProviderConfig) -> None:
        """Raises ConfigurationError when the configuration cannot work (no key, an unknown option)."""

    async def complete(self, prompt: Prompt) -> Completion:
        """One request, one answer; never retries. Raises a `ProviderError` and nothing else."""

    async def aclose(self) -> None:
        """Closes connections. The instance is not used afterwards."""


BATCH_UNKNOWN = "batch_unknown"  # `ProviderError.code` where the server does not know the batch, or has no Batch API


class BatchLimits(NamedTuple):
    """How much one batch takes: rows, and bytes of them all as they are sent (texts, instructions and schemas, each row anew)."""

    rows: int
    bytes: int


class BatchState(NamedTuple):
    """How a batch stands at its provider. `status` is the provider's own word; rows are counted as far as it tells."""

    ended: bool
    status: str
    done: int = 0
    failed: int = 0
    total: int = 0
    message: str | None = None


@runtime_checkable
class BatchProvider(Provider, Protocol):
    """A provider that also takes many prompts at once and answers within a day. Each method raises `ProviderError` and nothing
    else; for a batch, or a whole Batch API, that the server does not know, `InvalidRequest` with the code `BATCH_UNKNOWN`."""

    @property
    def batch_limits(self) -> BatchLimits:
        """What `submit_batch` takes at a time; above it, nothing is sent and `InvalidRequest` raised."""

    async def submit_batch(self, key: str, prompts: Sequence[tuple[str, Prompt]]) -> str:
        """Hands in prompts, each under an id of ours, and returns the provider's id of the batch.

        `key` names the batch on our side; the provider keeps it with the batch, so that `find_batch` finds it after a crash.
        """

    async def find_batch(self, key: str) -> str | None:
        """The provider's id of the batch that was handed in under this key; None when there is none."""

    async def batch_state(self, batch: str) -> BatchState:
        """How it stands."""

    def batch_results(self, batch: str) -> AsyncIterator[tuple[str, Completion | ProviderError]]:
        """The rows of an ended batch that have an answer or an error, in any order, by our ids. The others were not done."""

    async def cancel_batch(self, batch: str) -> None:
        """Asks for its end; what is done by then is kept, and billed. Nothing happens where it has ended."""

    async def forget_batch(self, batch: str) -> None:
        """Has the provider delete what it holds of an ended batch, as far as it does: for when the results are stored. Raises
        nothing, and may be called again."""


@cache
def provider_class(name: str) -> type[Provider]:
    """The class registered as `name`.

    Raises ConfigurationError when there is none, naming those there are, and when its package does not let itself be loaded.
    """
    found = entry_points(group=ENTRY_POINT_GROUP)
    if name not in found.names:
        raise ConfigurationError(f"unknown provider {name!r}; known ones: {', '.join(sorted(found.names))}")
    try:
        loaded: type[Provider] = found[name].load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"provider {name!r} cannot be loaded: {reason}: reinstall its package") from error
    return loaded


def takes_batches(name: str) -> bool:
    """Whether the provider registered as `name` is a `BatchProvider`. Raises ConfigurationError as `provider_class` does."""
    return hasattr(provider_class(name), "submit_batch")


def makes_pictures(name: str) -> bool:
    """Whether the provider registered as `name` may answer a prompt that asks for a picture: all but those whose class says
    `makes_pictures = False`. Raises ConfigurationError as `provider_class` does."""
    return bool(getattr(provider_class(name), "makes_pictures", True))


def provider_names() -> list[str]:
    """The names of all registered providers, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)
