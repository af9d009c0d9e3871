"""Prices: one's own first, then the list's, and None where nobody knows."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage as ListUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.models import Lane, Model, Usage
from ai_worker.prices import cost, price, source

MILLION = 1_000_000


def a_model(provider: str = "openai", model: str | None = "gpt-4o-mini", **values: Any) -> Model:
    return Model(1, "m", provider, model, **values)


def test_ones_own_prices_come_first() -> None:
    model = a_model(price_input=Decimal("2"), price_cached=Decimal("0.5"), price_output=Decimal("8"))
    assert cost(model, Usage(MILLION, MILLION, 0)) == Decimal(10)
    assert cost(model, Usage(MILLION, 0, tokens_cached=MILLION)) == Decimal("0.5")
    assert cost(model, Usage(1000, 100, 400)) == Decimal("0.0022")


def test_cached_tokens_cost_as_much_as_others_unless_told_otherwise() -> None:
    model = a_model(price_input=Decimal(2), price_output=Decimal(8))
    assert cost(model, Usage(MILLION, 0, tokens_cached=MILLION)) == Decimal(2)


def test_what_is_not_ones_own_is_the_lists() -> None:
    listed = price(a_model())
    mixed = price(a_model(price_output=Decimal(99)))
    assert listed is not None
    assert mixed is not None
    assert (mixed.input, mixed.cached, mixed.output) == (listed.input, listed.cached, Decimal(99))
    cached = price(a_model(price_cached=Decimal(0)))
    assert cached is not None
    assert (cached.input, cached.cached, cached.output) == (listed.input, Decimal(0), listed.output)


@pytest.mark.parametrize(
    "model",
    [
        a_model(model="no-such-model"),
        a_model(model=None),
        a_model(base_url="http://127.0.0.1:8000/v1"),
        a_model("a-plug-in", "gpt-4o-mini"),
        a_model("a-plug-in", "x", price_input=Decimal(1)),
        a_model("a-plug-in", "x", price_output=Decimal(1)),
        a_model(model="gpt-image-1", base_url="http://127.0.0.1:8000/v1", price_cached=Decimal(1)),
    ],
)
def test_an_unknown_price_is_none_and_not_nothing(model: Model) -> None:
    assert price(model) is None
    assert cost(model, Usage(10, 10)) is None


@pytest.mark.parametrize("provider", ["offline", "echo"])
def test_what_runs_here_is_free_unless_told_otherwise(provider: str) -> None:
    assert cost(a_model(provider, None), Usage(10, 10)) == 0
    assert cost(a_model(provider, None, price_input=Decimal(1)), Usage(MILLION, 0)) == 1


@pytest.mark.parametrize(
    ("model", "provider_id", "ref"),
    [
        (a_model(model="gpt-4o-mini"), "openai", "gpt-4o-mini"),
        (a_model("gemini", "gemini-2.5-pro"), "google", "gemini-2.5-pro"),
        (a_model(model="mistral-large-latest", base_url="https://api.mistral.ai/v1"), "mistral", "mistral-large-latest"),
    ],
)
@given(tokens_in=st.integers(0, 400_000), share=st.floats(0, 1), tokens_out=st.integers(0, 100_000))
def test_list_prices_are_what_the_package_says(
    model: Model, provider_id: str, ref: str, tokens_in: int, share: float, tokens_out: int
) -> None:
    """Also above the threshold at which gemini-2.5-pro gets dearer, which our own arithmetic leaves to the package."""
    cached = int(tokens_in * share)
    told = calc_price(
        ListUsage(input_tokens=tokens_in, cache_read_tokens=cached, output_tokens=tokens_out), ref, provider_id=provider_id
    )
    assert cost(model, Usage(tokens_in, tokens_out, cached)) == told.total_price.quantize(Decimal("0.000000001"))


def test_long_inputs_cost_more_where_the_list_says_so() -> None:
    model = a_model("gemini", "gemini-2.5-pro")
    short, long = cost(model, Usage(200_000, 0)), cost(model, Usage(200_001, 0))
    assert short is not None
    assert long is not None
    assert long > short * Decimal("1.5")


def test_costs_fit_their_column() -> None:
    amount = cost(a_model(price_input=Decimal("0.000001"), price_output=Decimal(0)), Usage(1, 0))
    assert amount == 0
    assert amount is not None
    assert amount.as_tuple().exponent == -9  # DECIMAL(18,9)


def test_it_is_cheap_enough_for_each_item() -> None:
    model = a_model(model="gpt-5.5")
    cost(model, Usage(1, 1))
    began = time.process_time()
    for _ in range(2000):
        cost(model, Usage(812, 300, 100))
    assert (time.process_time() - began) / 2000 < 50e-6  # the package itself takes 100 µs; ours about 4
    began = time.process_time()
    for _ in range(2000):
        cost(model, Usage(812, 300, 100), Lane.FLEX)
    assert (time.process_time() - began) / 2000 < 50e-6


# -- lanes -------------------------------------------------------------------------------------------------------------


def prices_of(model: Model, lane: Lane) -> tuple[Decimal, Decimal, Decimal]:
    found = price(model, lane)
    assert found is not None
    return found.input, found.cached, found.output


@pytest.mark.parametrize(
    ("model", "lane", "provider_id", "context"),
    [
        (a_model(model="gpt-5-mini"), Lane.BATCH, "openai", {"processing": "batch"}),
        (a_model(model="gpt-5-mini"), Lane.FLEX, "openai", {"service_tier": "flex"}),
        (a_model(model="gpt-4o-mini"), Lane.BATCH, "openai", {"processing": "batch"}),  # cached tokens are not cheaper there
        (a_model(model="gpt-5.5"), Lane.BATCH, "openai", {"processing": "batch"}),  # dearer above a threshold
        (a_model("gemini", "gemini-2.5-pro"), Lane.BATCH, "google", {"processing": "batch"}),
        (
            a_model(model="mistral-medium-latest", base_url="https://api.mistral.ai/v1"),
            Lane.BATCH,
            "mistral",
            {"processing": "batch"},
        ),
    ],
)
@pytest.mark.parametrize("usage", [Usage(1000, 500, 400), Usage(500_000, 1000), Usage(0, 7, 0, 5)])
def test_a_lane_that_the_list_knows_costs_what_the_list_says(
    model: Model, lane: Lane, provider_id: str, context: dict[str, str], usage: Usage
) -> None:
    counted = ListUsage(input_tokens=usage.tokens_input, cache_read_tokens=usage.tokens_cached, output_tokens=usage.tokens_output)
    told = calc_price(counted, model.model or "", provider_id=provider_id, price_context=context)
    online = cost(model, usage)
    in_lane = cost(model, usage, lane)
    assert in_lane == told.total_price.quantize(Decimal("0.000000001"))
    assert online is not None
    assert in_lane is not None
    assert in_lane < online


@pytest.mark.parametrize(
    ("model", "lane", "context"),
    [
        (a_model("gemini", "gemini-2.5-flash"), Lane.FLEX, {"service_tier": "flex"}),
        (a_model("gemini", "gemini-2.0-flash"), Lane.BATCH, {"processing": "batch"}),
    ],
)
def test_a_lane_that_the_list_passes_over_in_silence_costs_half(model: Model, lane: Lane, context: dict[str, str]) -> None:
    one = ListUsage(input_tokens=MILLION, output_tokens=MILLION)
    silent = calc_price(one, model.model or "", provider_id="google", price_context=context).total_price
    assert silent == cost(model, Usage(MILLION, MILLION))  # else the list knows it by now: take another model
    online_in, online_cached, online_out = prices_of(model, Lane.ONLINE)
    assert prices_of(model, lane) == (online_in / 2, online_cached, online_out / 2)


def test_half_also_above_the_threshold_and_of_cached_tokens_no_more_than_of_others() -> None:
    tiered = a_model("gemini", "gemini-2.5-pro")
    for usage in (Usage(100_000, 1000), Usage(300_000, 1000)):
        online, flex = cost(tiered, usage), cost(tiered, usage, Lane.FLEX)
        assert online is not None
        assert flex == online / 2
    cached = a_model(model="gpt-4o-mini")  # whose cached tokens cost half of others online already
    assert prices_of(cached, Lane.FLEX) == (Decimal("0.075"), Decimal("0.075"), Decimal("0.3"))


def test_an_explicit_price_of_a_lane_is_no_silence() -> None:
    """The list says of this model that a batch costs as much as single calls: so does OpenAI."""
    model = a_model(model="gpt-3.5-turbo-1106")
    assert prices_of(model, Lane.BATCH) == prices_of(model, Lane.ONLINE)
    assert prices_of(model, Lane.FLEX) < prices_of(model, Lane.ONLINE)


def test_of_other_vendors_lanes_nothing_is_assumed() -> None:
    model = a_model(model="mistral-large-latest", base_url="https://api.mistral.ai/v1")
    assert prices_of(model, Lane.FLEX) == prices_of(model, Lane.ONLINE)


def test_ones_own_prices_are_halved_in_the_cheaper_lanes() -> None:
    model = a_model(price_input=Decimal(2), price_cached=Decimal("0.5"), price_output=Decimal(8))
    assert prices_of(model, Lane.BATCH) == prices_of(model, Lane.FLEX) == (Decimal(1), Decimal("0.5"), Decimal(4))
    assert prices_of(a_model(price_input=Decimal(2), price_cached=Decimal("1.5"), price_output=Decimal(8)), Lane.FLEX)[1] == 1
    mixed = a_model(price_output=Decimal(99))
    listed = prices_of(a_model(), Lane.BATCH)
    assert prices_of(mixed, Lane.BATCH) == (*listed[:2], Decimal("49.5"))


@pytest.mark.parametrize("model", [a_model(), a_model(model="no-such-model"), a_model("offline", None)])
def test_an_answer_from_the_cache_costs_nothing(model: Model) -> None:
    amount = cost(model, Usage(1000, 1000), Lane.CACHE)
    assert amount == 0
    assert isinstance(amount, Decimal)


@pytest.mark.parametrize("lane", [Lane.FLEX, Lane.BATCH])
def test_an_unknown_price_is_none_in_every_lane(lane: Lane) -> None:
    assert cost(a_model(model="no-such-model"), Usage(10, 10), lane) is None
    assert cost(a_model("a-plug-in", "x", price_output=Decimal(1)), Usage(10, 10), lane) is None


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (a_model(), "list"),
        (a_model(price_output=Decimal(1)), "set"),
        (a_model(base_url="http://127.0.0.1:8000/v1", price_input=Decimal(0), price_output=Decimal(0)), "set"),
        (a_model("echo", None), "free"),
        (a_model("offline", None, price_input=Decimal(1)), "set"),
        (a_model(model="no-such-model"), None),
        (a_model(model="no-such-model", price_input=Decimal(1)), None),
    ],
)
def test_where_a_price_comes_from(model: Model, where: str | None) -> None:
    assert source(model) == where
