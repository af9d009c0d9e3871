"""What a call costs: from the model's own prices in `ai_model`, else from the list prices of the package `genai-prices`.

A price that is not known is None, and so is the cost: never zero, which would say "free". List prices are data of the installed
version; they are read offline and may be out of date, which is why the columns of `ai_model` come first.

Of the cheaper lanes, flex and batch, the list knows the prices of many models. Where it does not, tokens in and out cost half of
what they cost online: both vendors say so, of all models that can be had there. Cached tokens keep their price, as not every
model grants both discounts, but never cost more than others. Of other vendors' lanes nothing is assumed.
https://platform.openai.com/docs/guides/batch ("50% cost discount"), .../guides/flex-processing ("priced at Batch API rates"),
https://ai.google.dev/gemini-api/docs/optimization (flex and batch: "50% discount").
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal
from functools import lru_cache
from typing import Any, Final, Literal

from ai_worker.models import Lane, Model, Prompt, Usage
from ai_worker.text import estimate_tokens

MARGIN: Final = Decimal("1.2")  # on what is told before: money is set aside by it
FREE_PROVIDERS: Final = frozenset({"offline", "echo"})
_LIST_NAMES: Final = {"openai": "openai", "gemini": "google"}  # our providers at their own endpoints -> genai-prices' names
_HALF_PRICE: Final = frozenset({"openai", "google"})  # whose lanes are documented to cost half, where the list does not know
_CONTEXTS: Final = {Lane.FLEX: {"service_tier": "flex"}, Lane.BATCH: {"processing": "batch"}}  # as the list calls the lanes
_HALF: Final = Decimal("0.5")
_FRESH_SECONDS: Final = 300  # some list prices depend on the time of day
_PER_TOKEN: Final = Decimal("0.000001")
_COLUMN: Final = Decimal("0.000000001")  # task_item.cost is DECIMAL(18,9)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. `output_image`, where set, is that of tokens of pictures, which otherwise cost as much as others:
    the list has models of both kinds. `tiers`, where set, gives the price of calls with more than `tiers_above` input tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal
    tiers: Any = None  # a genai_prices ModelPrice
    tiers_above: int | None = None
    output_image: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        """USD for these tokens, rounded to nine decimals."""
        if self is _FREE:
            return _NOTHING
        if self.tiers_above is not None and usage.tokens_input > self.tiers_above:
            return _tiered(self.tiers, usage).quantize(_COLUMN)
        fresh = usage.tokens_input - usage.tokens_cached
        micros = fresh * self.input + usage.tokens_cached * self.cached + usage.tokens_output * self.output
        if self.output_image is not None and usage.tokens_image:
            micros += usage.tokens_image * (self.output_image - self.output)
        return (micros * _PER_TOKEN).quantize(_COLUMN)


_FREE: Final = Price(Decimal(0), Decimal(0), Decimal(0))
_NOTHING: Final = Decimal(0).quantize(_COLUMN)


def price(model: Model, lane: Lane = Lane.ONLINE) -> Price | None:
    """The price of a model in a lane, None when it is not known.

    The columns `price_input`, `price_output` and `price_cached` overrule the list price one by one; with `price_input` set and
    `price_cached` not, cached tokens cost as much as others. They are prices of the lane online: in flex and batch, tokens in and
    out cost half of them (see above for the source). List prices are looked up by `base_url` where one is set: a server of one's
    own has none.
    """
    if lane is Lane.CACHE:
        return _FREE
    listed = _FREE if model.provider in FREE_PROVIDERS else None
    is_set = model.price_input is not None and model.price_output is not None
    if listed is None and model.model is not None and not is_set:
        listed = _listed(model.provider, model.model, model.base_url, lane, int(time.monotonic() // _FRESH_SECONDS))
    own_in, own_out, own_cached = model.price_input, model.price_output, model.price_cached
    if own_in is None and own_out is None and own_cached is None:
        return listed
    if lane is not Lane.ONLINE:
        own_in, own_out = _halved(own_in), _halved(own_out)
    tokens_in = listed.input if own_in is None and listed else own_in
    tokens_out = listed.output if own_out is None and listed else own_out
    if tokens_in is None or tokens_out is None:
        return None
    cached = listed.cached if own_in is None and listed else tokens_in
    if own_cached is not None:
        cached = own_cached if lane is Lane.ONLINE else min(own_cached, tokens_in)
    image = listed.output_image if own_out is None and listed else None
    return Price(tokens_in, tokens_out, cached, output_image=image)


def cost(model: Model, usage: Usage, lane: Lane = Lane.ONLINE) -> Decimal | None:
    """USD for one call that was served in this lane, None when the price is not known; nothing for an answer from the cache.

    A few microseconds: it is asked for each item.
    """
    found = price(model, lane)
    return None if found is None else found.cost(usage)


def expected(model: Model, prompt: Prompt, lane: Lane = Lane.ONLINE, more_input: int = 0) -> Decimal | None:
    """USD that a call will about cost, None when the price is not known. `more_input` are tokens that the prompt will yet get."""
    wanted = prompt.tokens_output_expected or estimate_tokens(prompt.text)
    usage = Usage(
        estimate_tokens(prompt.system) + estimate_tokens(prompt.user) + more_input,
        wanted,
        tokens_image=0 if prompt.image is None else wanted,
    )
    return cost(model, usage, lane)


def with_margin(estimate: Decimal) -> Decimal:
    """What is set aside for it: rather too much than too little."""
    return (MARGIN * estimate).quantize(_COLUMN, ROUND_UP)


def source(model: Model) -> Literal["set", "list", "free"] | None:
    """Where the price of a model comes from, for people: at least one of its own columns, the list alone, or nothing is charged
    because it runs here. None: it is not known."""
    if price(model) is None:
        return None
    if model.price_input is not None or model.price_output is not None or model.price_cached is not None:
        return "set"
    return "free" if model.provider in FREE_PROVIDERS else "list"


def _halved(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else amount * _HALF


@lru_cache(maxsize=256)
def _listed(provider: str, model: str, base_url: str | None, lane: Lane, period: int) -> Price | None:  # noqa: ARG001 -- `period` ages the cache
    from genai_prices import Usage as ListUsage  # heavy, and not needed where prices are set by hand
    from genai_prices import calc_price

    if base_url is None and provider not in _LIST_NAMES:
        return None
    one, context = ListUsage(input_tokens=1, output_tokens=1), _CONTEXTS.get(lane)
    try:
        if base_url is None:
            found = calc_price(one, model, provider_id=_LIST_NAMES[provider], price_context=context)
        else:
            found = calc_price(one, model, provider_api_url=base_url, price_context=context)
    except LookupError:
        return None
    if context and found.provider.id in _HALF_PRICE and not _is_known(found.model.price_variants, context):
        return _price_of(_half(found.model_price))  # what came is, without a word, the price online
    return _price_of(found.model_price)


def _is_known(variants: Any, context: Mapping[str, str]) -> bool:
    """Whether one of a genai_prices model's variants is meant for this context, now."""
    now = datetime.now(UTC)
    return any(
        all(context.get(name) == value for name, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(now))
        for variant in variants or ()
    )


def _half(online: Any) -> Any:
    """A genai_prices ModelPrice with half the prices for tokens in and out."""
    from genai_prices.types import Tier, TieredPrices

    def halved(value: Decimal | TieredPrices | None) -> Decimal | TieredPrices | None:
        if isinstance(value, TieredPrices):
            return TieredPrices(value.base * _HALF, [Tier(tier.start, tier.price * _HALF) for tier in value.tiers])
        return _halved(value)

    half = copy(online)
    half.input_mtok, half.output_mtok = halved(online.input_mtok), halved(online.output_mtok)
    half.output_image_mtok = halved(online.output_image_mtok)
    if isinstance(half.input_mtok, Decimal) and isinstance(half.cache_read_mtok, Decimal):
        half.cache_read_mtok = min(half.cache_read_mtok, half.input_mtok)
    return half


def _price_of(found: Any) -> Price | None:
    """Our price from a genai_prices ModelPrice; None for what is priced by image, by second, ..."""
    from genai_prices.types import TieredPrices

    thresholds: list[int] = []

    def base(value: Decimal | TieredPrices | None) -> Decimal | None:
        if isinstance(value, TieredPrices):
            thresholds.extend(tier.start for tier in value.tiers)
            return value.base
        return value

    tokens_in, tokens_out, cached = base(found.input_mtok), base(found.output_mtok), base(found.cache_read_mtok)
    if tokens_in is None or tokens_out is None:
        return None
    image = base(found.output_image_mtok)
    above = min(thresholds) if thresholds else None
    return Price(tokens_in, tokens_out, tokens_in if cached is None else cached, found if thresholds else None, above, image)


def _tiered(tiers: Any, usage: Usage) -> Decimal:
    from genai_prices import Usage as ListUsage

    counted = ListUsage(
        input_tokens=usage.tokens_input,
        cache_read_tokens=usage.tokens_cached or None,
        output_tokens=usage.tokens_output,
        output_image_tokens=usage.tokens_image or None,
    )
    total: Decimal = tiers.calc_price(counted)["total_price"]
    return total
