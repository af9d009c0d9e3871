"""What workers have counted, held against the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

Sql = Callable[..., list[dict[str, Any]]]


def counted(sql: Sql, name: str) -> dict[tuple[int, str], float]:
    """The fleet's sums of a counter, by model and label."""
    rows = sql(
        "SELECT id_ai_model, label, SUM(value) AS n FROM worker_counter WHERE name = %s GROUP BY id_ai_model, label", [name]
    )
    return {(row["id_ai_model"], row["label"]): row["n"] for row in rows}


def assert_counted(sql: Sql) -> None:
    """All counters agree with the ledger: attempts by model, outcome and kind; tokens, cost and durations by model; minutes.

    Holds once every worker has written what it counted, that is after its end.
    """
    ledger = sql("SELECT * FROM task_attempt")
    attempts = counted(sql, "attempts_total")
    released = {key: n for key, n in attempts.items() if key[1] == "released/"}  # these leave no row in the ledger
    expected = Counter(
        (row["id_ai_model"], f"{row['outcome']}/{row['error_kind'] or ''}") for row in ledger if row["step"] is None
    )
    assert {key: n for key, n in attempts.items() if key not in released} == expected

    for kind in ("input", "output", "cached", "reasoning"):
        tokens: Counter[int] = Counter()
        for row in ledger:
            tokens[row["id_ai_model"]] += row[f"tokens_{kind}"]
        seen = {model: n for (model, label), n in counted(sql, "tokens_total").items() if label == kind}
        assert seen == {model: n for model, n in tokens.items() if n}, kind

    costs: Counter[int] = Counter()
    for row in ledger:
        costs[row["id_ai_model"]] += row["cost"] or Decimal(0)
    seen_costs = {model: n for (model, _), n in counted(sql, "cost_usd_total").items()}
    assert seen_costs == {model: pytest.approx(float(cost)) for model, cost in costs.items() if cost}

    timed = [row for row in ledger if row["step"] is None and row["lane"] != "cache" and row["latency_ms"] is not None]
    durations = counted(sql, "attempt_duration_seconds")
    assert sum(n for (_, label), n in durations.items() if label != "sum") == len(timed)
    seconds = sum(n for (_, label), n in durations.items() if label == "sum")
    assert seconds == pytest.approx(sum(row["latency_ms"] for row in timed) / 1000)

    names = ("processed", "failed", "retried", "tokens_input", "cost")
    (minutes,) = sql(f"SELECT {', '.join(f'COALESCE(SUM({name}), 0) AS {name}' for name in names)} FROM worker_minute")
    by_outcome = Counter(row["outcome"] for row in ledger if row["step"] is None)
    assert (minutes["processed"], minutes["failed"]) == (by_outcome["processed"], by_outcome["failed"])
    assert (minutes["retried"], minutes["tokens_input"]) == (by_outcome["retry"], sum(row["tokens_input"] for row in ledger))
    assert minutes["cost"] == sum((row["cost"] or Decimal(0) for row in ledger), Decimal(0))
