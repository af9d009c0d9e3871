"""Providers: the clients that talk to one API family each, found through the entry-point group `ai_worker.providers`.

A provider is a class taking `ProviderConfig` and having the two methods of `Provider`. The built-in ones (`openai`, `gemini`,
`offline`, `echo`) are registered in pyproject.toml exactly as a third party registers its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from ai_worker.errors import ConfigurationError
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


def provider_names() -> list[str]:
    """The names of all registered providers, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)
