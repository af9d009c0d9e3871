"""Amounts of money on the command line."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click


class Usd(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3, and we take 8.1
    """US dollars. `what` says of what, in the error message; zero is taken only where `zero` says so.

    What is above zero and less than `10 ** -places`, the column's last digit, would be stored as zero: it is refused.
    """

    name = "USD"

    def __init__(
        self, what: str = "an amount above zero; give US dollars, for example 5.00", *, zero: bool = False, places: int = 9
    ) -> None:
        self._what = what
        self._zero = zero
        self._smallest = Decimal(1).scaleb(-places)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal(-1)
        if amount.is_nan():
            amount = Decimal(-1)
        if 0 < amount < self._smallest:
            self.fail(f"{value!r} is less than the smallest amount that is kept, {self._smallest:f}", param, ctx)
        if not (amount.is_finite() and 0 <= amount < 100_000_000 and (amount or self._zero)):
            self.fail(f"{value!r} is not {self._what}", param, ctx)
        return amount
