"""How fast the models are going: rates against limits, and money per hour, from two looks at what the fleet has used."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from decimal import Decimal

from ai_worker import formats
from ai_worker.store.reports import ModelReport

WINDOW = 60.0  # seconds over which rates are taken


class Pace:
    """Remembers the looks of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, ModelReport]]] = deque()

    def look(self, models: Sequence[ModelReport]) -> None:
        """Adds what was seen just now."""
        now = time.monotonic()
        self._seen.append((now, {model.name: model for model in models}))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    def rows(self) -> list[tuple[object, ...]]:
        """A row per model that is in use, limited, stopped or has a budget; for `HEADINGS`."""
        if not self._seen:
            return []
        return [
            self._row(model)
            for model in self._seen[-1][1].values()
            if model.attempts or model.in_flight or model.stopped_kind or model.budget_per_day
        ]

    def _row(self, model: ModelReport) -> tuple[object, ...]:
        began, first = next(((at, seen) for at, models in self._seen if (seen := models.get(model.name))), (0.0, model))
        minutes = (self._seen[-1][0] - began) / 60
        is_known = minutes > 0 and first.day == model.day  # at midnight the counters begin anew
        attempts = (model.attempts - first.attempts) / minutes if is_known else None
        tokens = (model.tokens - first.tokens) / minutes if is_known else None
        spent = (model.cost or Decimal(0)) - (first.cost or Decimal(0))
        per_hour = None if not is_known or model.cost is None else spent / Decimal(minutes) * 60
        sign = "~" if model.is_learnt else ""
        return (
            model.name,
            state(model),
            _of(model.in_flight, model.max_in_flight),
            _of(attempts, model.requests_per_minute, sign),
            _of(tokens, model.tokens_per_minute, sign),
            None if per_hour is None else formats.money(per_hour),
            formats.money(model.cost) if model.budget_per_day is None else _money_of(model.cost, model.budget_per_day),
        )


HEADINGS = ("MODEL", "STATE", "IN FLIGHT", "CALLS/MIN", "TOKENS/MIN", "USD/H", "USD TODAY")


def state(model: ModelReport) -> str:
    """In a word: ready, stopped and why, or inactive."""
    if not model.is_active:
        return "inactive"
    return f"stopped: {model.stopped_kind}" if model.stopped_kind else "ready"


def _of(value: float | None, limit: int | None, sign: str = "") -> str:
    shown = "-" if value is None else formats.number(round(value))
    return shown if limit is None else f"{shown} of {sign}{formats.number(limit)}"


def _money_of(cost: Decimal | None, budget: Decimal) -> str:
    return f"{formats.money(cost or Decimal(0))} of {formats.money(budget)}"
