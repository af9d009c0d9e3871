"""Charts: what is drawn of what was counted."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from ai_worker.counts import LATENCY_BUCKETS, Work
from ai_worker.web.pages.charts import Step, latency, percentile, spending, steps_of, throughput
from ai_worker.web.pages.overview import Figures

BEGIN = datetime(2026, 11, 23, 1, 0)  # noqa: DTZ001 -- as the database has it: UTC, without a zone
MINUTE = timedelta(minutes=1)


def work(processed: int = 0, failed: int = 0, bucket: int = 5, cost: str | None = None) -> Work:
    latencies = [0] * (len(LATENCY_BUCKETS) + 1)
    latencies[bucket] = processed + failed
    return Work(processed, failed, cost=None if cost is None else Decimal(cost), latencies=latencies)


def test_minutes_are_added_up_to_steps_and_what_lies_outside_is_left_out() -> None:
    minutes = [(BEGIN + at * MINUTE, work(1 + at, 1, cost="0.5")) for at in range(-1, 7)]
    steps = steps_of(minutes, BEGIN, 2, 3 * MINUTE)
    assert [step.at for step in steps] == [BEGIN, BEGIN + 3 * MINUTE]
    assert [(step.work.processed, step.work.failed, step.work.cost) for step in steps] == [
        (6, 3, Decimal("1.5")),
        (15, 3, Decimal("1.5")),
    ]


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [([0, 0, 0], 0.5, None), ([10, 0, 0], 0.5, 0.5), ([0, 10, 0], 0.5, 1.5), ([5, 5, 0], 0.95, 1.9), ([0, 0, 7], 0.5, 2.0)],
)
def test_percentiles_lie_on_a_line_within_their_bucket(counts: list[int], share: float, seconds: float | None) -> None:
    assert percentile(counts, [1.0, 2.0], share) == (seconds if seconds is None else pytest.approx(seconds))


def test_columns_stand_on_one_another_and_a_single_failure_is_seen() -> None:
    chart = throughput([Step(BEGIN, work(1000, 1)), Step(BEGIN + MINUTE, Work())], MINUTE)
    (column,) = chart.columns
    (good, bad) = column.pieces
    assert (chart.top, chart.now) == ("2,000", "1,001 items/min")
    assert (good[0], good[1] + good[2]) == ("good-fill", 100.0)
    assert (bad[0], bad[1] + bad[2], bad[2]) == ("bad-fill", good[1], 1.0)


def test_lines_have_gaps_where_nothing_was_measured() -> None:
    steps = [Step(BEGIN, each) for each in (work(4), Work(), work(4), work(4))]
    half, _ = latency(steps).lines
    assert [piece.count(",") for piece in half.pieces] == [2, 2]  # a lone point is a dash


def test_spending_is_per_hour_and_unknown_prices_count_as_nothing() -> None:
    steps = [Step(BEGIN, work(1, cost="0.5")), Step(BEGIN, work(1)), Step(BEGIN, Work())]
    chart = spending(steps, timedelta(minutes=15))
    assert (chart.top, len(chart.columns), chart.now) == ("$2.00", 1, "$0/h")


def test_what_was_done_just_now_counts_at_once() -> None:
    """The present minute has only begun: before its end it says more than the last one, or nothing."""
    for before, present, said in ((0, 162, "162 items/min"), (162, 3, "162 items/min")):
        assert throughput([Step(BEGIN, work(before)), Step(BEGIN + MINUTE, work(present))], MINUTE).now == said
        assert Figures.of([], [work(before), work(present)], []).per_minute == 162


def test_the_middle_of_an_axis_is_half_of_its_top() -> None:
    quick = latency([Step(BEGIN, work(4, bucket=3))])
    assert (quick.top, quick.middle) == ("0.5 s", "0.25 s")
