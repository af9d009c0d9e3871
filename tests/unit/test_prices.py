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

from ai_worker.models import Model, Usage
from ai_worker.prices import cost, price

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
