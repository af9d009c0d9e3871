"""What a call costs: from the model's own prices in `ai_model`, else from the list prices of the package `genai-prices`.

A price that is not known is None, and so is the cost: never zero, which would say "free". List prices are data of the installed
version; they are read offline and may be out of date, which is why the columns of `ai_model` come first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from ai_worker.models import Model, Usage

_FREE_PROVIDERS: Final = frozenset({"offline", "echo"})
_LIST_NAMES: Final = {"openai": "openai", "gemini": "google"}  # our providers at their own endpoints -> genai-prices' names
_FRESH_SECONDS: Final = 300  # some list prices depend on the time of day
_PER_TOKEN: Final = Decimal("0.000001")
_COLUMN: Final = Decimal("0.000000001")  # task_item.cost is DECIMAL(18,9)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. `tiers`, where set, gives the price of calls with more than `tiers_above` input tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal
    tiers: Any = None  # a genai_prices ModelPrice
    tiers_above: int | None = None

    def cost(self, usage: Usage) -> Decimal:
        """USD for these tokens, rounded to nine decimals."""
        if self is _FREE:
            return _NOTHING
        if self.tiers_above is not None and usage.tokens_input > self.tiers_above:
            return _tiered(self.tiers, usage).quantize(_COLUMN)
        fresh = usage.tokens_input - usage.tokens_cached
        micros = fresh * self.input + usage.tokens_cached * self.cached + usage.tokens_output * self.output
        return (micros * _PER_TOKEN).quantize(_COLUMN)


_FREE: Final = Price(Decimal(0), Decimal(0), Decimal(0))
_NOTHING: Final = Decimal(0).quantize(_COLUMN)


def price(model: Model) -> Price | None:
    """The price of a model, None when it is not known.

    The columns `price_input`, `price_output` and `price_cached` overrule the list price one by one; with `price_input` set and
    `price_cached` not, cached tokens cost as much as others. List prices are looked up by `base_url` where one is set: a server
    of one's own has none.
    """
    listed = _FREE if model.provider in _FREE_PROVIDERS else None
    is_set = model.price_input is not None and model.price_output is not None
    if listed is None and model.model is not None and not is_set:
        listed = _listed(model.provider, model.model, model.base_url, int(time.monotonic() // _FRESH_SECONDS))
    if model.price_input is None and model.price_output is None and model.price_cached is None:
        return listed
    tokens_in = listed.input if model.price_input is None and listed else model.price_input
    tokens_out = listed.output if model.price_output is None and listed else model.price_output
    if tokens_in is None or tokens_out is None:
        return None
    cached = listed.cached if model.price_input is None and listed else tokens_in
    return Price(tokens_in, tokens_out, cached if model.price_cached is None else model.price_cached)


def cost(model: Model, usage: Usage) -> Decimal | None:
    """USD for one call, None when the price is not known. A few microseconds: it is asked for each item."""
    found = price(model)
    return None if found is None else found.cost(usage)


@lru_cache(maxsize=256)
def _listed(provider: str, model: str, base_url: str | None, period: int) -> Price | None:  # noqa: ARG001 -- `period` ages the cache
    from genai_prices import Usage as ListUsage  # heavy, and not needed where prices are set by hand
    from genai_prices import calc_price
    from genai_prices.types import TieredPrices

    if base_url is None and provider not in _LIST_NAMES:
        return None
    one = ListUsage(input_tokens=1, output_tokens=1)
    try:
        if base_url is None:
            found = calc_price(one, model, provider_id=_LIST_NAMES[provider]).model_price
        else:
            found = calc_price(one, model, provider_api_url=base_url).model_price
    except LookupError:
        return None
    thresholds: list[int] = []

    def base(value: Decimal | TieredPrices | None) -> Decimal | None:
        if isinstance(value, TieredPrices):
            thresholds.extend(tier.start for tier in value.tiers)
            return value.base
        return value

    tokens_in, tokens_out, cached = base(found.input_mtok), base(found.output_mtok), base(found.cache_read_mtok)
    if tokens_in is None or tokens_out is None:
        return None  # priced by image, by second, ...
    above = min(thresholds) if thresholds else None
    return Price(tokens_in, tokens_out, tokens_in if cached is None else cached, found if thresholds else None, above)


def _tiered(tiers: Any, usage: Usage) -> Decimal:
    from genai_prices import Usage as ListUsage

    counted = ListUsage(
        input_tokens=usage.tokens_input, cache_read_tokens=usage.tokens_cached or None, output_tokens=usage.tokens_output
    )
    total: Decimal = tiers.calc_price(counted)["total_price"]
    return total
