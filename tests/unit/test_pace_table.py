"""What `watch` says of the models: rates against limits, from two looks."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from ai_worker.cli import pace
from ai_worker.cli.pace import Pace
from ai_worker.store.reports import ModelReport

TODAY = date(2026, 11, 22)


def report(attempts: int, tokens: int, cost: str | None, **changes: object) -> ModelReport:
    fields: dict[str, object] = {
        "name": "gpt",
        "is_active": True,
        "stopped_kind": None,
        "requests_per_minute": 600,
        "tokens_per_minute": None,
        "is_learnt": False,
        "in_flight": 7,
        "max_in_flight": None,
        "day": TODAY,
        "attempts": attempts,
        "tokens": tokens,
        "cost": None if cost is None else Decimal(cost),
        "budget_per_day": None,
    }
    return ModelReport(**{**fields, **changes})  # type: ignore[arg-type]  # made of the fields above


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_rates_are_taken_between_looks(clock: list[float]) -> None:
    looked = Pace()
    looked.look([report(1000, 50_000, "1.00")])
    assert looked.rows() == [("gpt", "ready", "7", "- of 600", "-", None, "$1.00")]
    clock[0] += 30
    looked.look([report(1290, 64_500, "1.50")])
    assert looked.rows() == [("gpt", "ready", "7", "580 of 600", "29,000", "$60.00", "$1.50")]


def test_what_was_seen_more_than_a_minute_ago_no_longer_counts(clock: list[float]) -> None:
    looked = Pace()
    for attempts in (0, 600, 600):
        looked.look([report(attempts, 0, "0")])
        clock[0] += 45
    assert looked.rows()[0][3] == "0 of 600"


def test_learnt_limits_budgets_and_stopped_models_show(clock: list[float]) -> None:
    looked = Pace()
    changes = {"is_learnt": True, "budget_per_day": Decimal(5), "stopped_kind": "quota_exhausted", "max_in_flight": 20}
    looked.look([report(0, 0, None, **changes), report(0, 0, None, name="idle", in_flight=0)])
    assert looked.rows() == [("gpt", "stopped: quota_exhausted", "7 of 20", "- of ~600", "-", None, "$0 of $5.00")]


def test_midnight_is_no_negative_rate(clock: list[float]) -> None:
    looked = Pace()
    looked.look([report(1000, 50_000, "1.00")])
    clock[0] += 30
    looked.look([report(3, 100, "0.01", day=date(2026, 11, 23))])
    assert looked.rows()[0][3:6] == ("- of 600", "-", None)
