"""One small real call to a model, by the same way that an item takes, and what its failure means in words."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from typing import Any

from ai_worker import errors
from ai_worker.errors import AiWorkerError, ConfigurationError, ProviderError
from ai_worker.log import excerpt
from ai_worker.models import NO_USAGE, Completion, Item, Limits, Model, Result, Secret, Task, TaskStatus, Usage
from ai_worker.prices import cost, price, source
from ai_worker.providers import Provider, ProviderConfig, provider_class
from ai_worker.task_types import task_type

# Both wrong to a model, and one of them to the spelling corrector, which knows no grammar.
SAMPLE = "He go to shcool every day."

# The first class that fits says what to do; {name} is the model's.
REMEDIES: tuple[tuple[type[ProviderError], str], ...] = (
    (
        errors.RateLimited,
        "Others may be using this account; try again in a minute, or take on less at a time: --max-in-flight.",
    ),
    (errors.Overloaded, "The provider is in trouble; try again later."),
    (errors.NetworkFailed, "Check --base-url, the network, proxies and the provider's certificate from this host."),
    (errors.QuotaExhausted, "Add credit, or raise the spend limit, in the provider's console; then run this again."),
    (errors.AccessDenied, "Set a valid key: `ai-worker model set {name} --api-key-file FILE`."),
    (errors.ModelUnknown, "Check --model (spelling, access) and --base-url: `ai-worker model set {name} --model ...`."),
    (errors.ContentRefused, "The provider's policy refuses even a harmless sentence; use another model."),
    (errors.InvalidRequest, "Check the options (`ai-worker model list --json`): the endpoint does not understand the request."),
    (errors.BadAnswer, "The model does not follow the answer's JSON schema; use another model, or another `structured` option."),
)


def make_provider(model: Model, api_key: Secret | None, request_timeout: float) -> None:
    """Makes the model's provider and closes it again. Raises ConfigurationError when that cannot be done. Calls nobody."""

    async def make() -> None:
        await _close(_provider(model, api_key, request_timeout))

    asyncio.run(make())


def try_model(model: Model, api_key: Secret | None, request_timeout: float) -> dict[str, Any]:
    """Lets the model correct one sentence.

    Returns a report with `ok`, the tokens, cost, latency, limits and price, and either the `answer` or `error_kind`, `error` and
    `remedy`.
    The kind of an error is the one that an item would get; `internal` is a mistake of the provider's own.
    Raises ConfigurationError when the model's configuration cannot work at all.
    """
    kind = task_type("correction")
    task = Task(0, model.id_ai_model, "correction", "", {}, 1, 0, TaskStatus.IN_PROGRESS)
    item = Item(0, task, SAMPLE, {}, 1, 0, b"", str(uuid.uuid4()))
    usage, result = NO_USAGE, None
    limits: Limits | None = None
    error: Exception | None = None
    began = time.perf_counter()

    async def call() -> Completion:
        provider = _provider(model, api_key, request_timeout)
        try:
            return await provider.complete(kind.prompt(item))
        except asyncio.CancelledError:
            raise RuntimeError("the provider broke off its own call") from None
        finally:
            await _close(provider)

    try:
        completion = asyncio.run(call())
        usage, limits = completion.usage, completion.limits
        result = kind.parse(item, completion)
    except ProviderError as caught:
        usage, error = usage + caught.usage, caught
    except AiWorkerError:  # nothing was tried: the configuration cannot work
        raise
    except Exception as caught:  # noqa: BLE001 -- a plug-in's bug, of whatever kind, is what a trial is to bring to light
        error = caught
    report = _report(model, usage, result, error, round((time.perf_counter() - began) * 1000))
    return report | {"limits": _limits(model, limits or getattr(error, "limits", None)), "price": _price(model)}


def _provider(model: Model, api_key: Secret | None, request_timeout: float) -> Provider:
    config = ProviderConfig(model.name, model.model, model.base_url, api_key, model.options, request_timeout, max_connections=1)
    make = provider_class(model.provider)
    try:
        return make(config)
    except AiWorkerError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(
            f"provider {model.provider!r} cannot be made ready: {reason}: a mistake in its package"
        ) from error


async def _close(provider: Provider) -> None:
    """One that cannot be closed is left to the end of the process, which is near: what was tried is its answer."""
    with suppress(Exception):
        await provider.aclose()


def _limits(model: Model, said: Limits | None) -> dict[str, int | None]:
    """What was set, and what the provider says of itself."""
    return {
        "requests_per_minute": model.max_requests_per_minute,
        "tokens_per_minute": model.max_tokens_per_minute,
        "in_flight": model.max_in_flight,
        "provider_requests_per_minute": said.requests_per_minute if said else None,
        "provider_tokens_per_minute": said.tokens_per_minute if said else None,
    }


def _price(model: Model) -> dict[str, Any] | None:
    """USD per million tokens, and where that is from (`set`, `list`, `free`); None when it is not known."""
    found = price(model)
    if found is None:
        return None
    return {"input": found.input, "cached": found.cached, "output": found.output, "source": source(model)}


def _report(model: Model, usage: Usage, result: Result | None, error: Exception | None, latency_ms: int) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": model.name,
        "ok": error is None,
        "latency_ms": latency_ms,
        "tokens_input": usage.tokens_input,
        "tokens_output": usage.tokens_output,
        "cost": cost(model, usage),
        "text": SAMPLE,
    }
    if error is not None and not isinstance(error, ProviderError):
        reason = f"{type(error).__name__}: {error}"
        remedy = f"This is a mistake in the provider {model.provider!r}: tell its makers, or use another version of its package."
        return report | {"error_kind": "internal", "error": reason, "remedy": remedy}
    if error is not None:
        fits = (text for cls, text in REMEDIES if isinstance(error, cls))
        remedy = next(fits, "Look at the message and at the options of the model.").format(name=model.name)
        return report | {"error_kind": error.kind, "error": str(error), "remedy": remedy}
    return report | {"answer": excerpt((result.text_corrected if result else None) or "", 500)}
