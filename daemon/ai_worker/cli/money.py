"""Amounts of money on the command line."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click


class Usd(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3, and we take 8.1
    """US dollars. `what` says of what, in the error message; zero is taken only where `zero` says so."""

    name = "USD"

    def __init__(self, what: str = "an amount above zero; give US dollars, for example 5.00", *, zero: bool = False) -> None:
        self._what = what
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal(-1)
        if not (amount.is_finite() and 0 <= amount < 100_000_000 and (amount or self._zero)):
            self.fail(f"{value!r} is not {self._what}", param, ctx)
        return amount
