"""What the tests of the vendors' providers share: a fake server, ways to ask a provider on it, what a fault must look like."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ai_worker.errors import ProviderError
from ai_worker.models import NO_USAGE, Completion, Prompt, Usage
from ai_worker.providers import Provider, ProviderConfig
from tests.fake_provider import FakeProvider
from tests.fake_provider.samples import prompt


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


def ask(kind: type[Provider], config: ProviderConfig, *prompts: Prompt) -> list[Completion]:
    """The answers to the prompts, asked one after the other of one provider."""

    async def run() -> list[Completion]:
        provider = kind(config)
        try:
            return [await provider.complete(one) for one in prompts or (prompt(),)]
        finally:
            await provider.aclose()

    return asyncio.run(run())


def refused(kind: type[Provider], config: ProviderConfig) -> ProviderError:
    """The error that the usual prompt ends in."""
    with pytest.raises(ProviderError) as caught:
        ask(kind, config)
    return caught.value


@dataclass(frozen=True)
class Expected:
    """How a fault of the server must look to the worker."""

    kind: type[ProviderError]
    code: str | None
    usage: Usage = NO_USAGE
    retry_after: float | None = None
    says: str = ""
