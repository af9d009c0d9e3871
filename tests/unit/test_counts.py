"""What a worker counts: in memory, by the vocabulary."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest

from ai_worker.counts import (
    LATENCY_BUCKETS,
    MOST_KINDS,
    OTHER,
    Counts,
    Key,
    Kind,
    Metric,
    Work,
    bounds_of,
    labels_of,
)
from ai_worker.models import NO_USAGE, Item, Lane, Outcome, OutcomeKind, Result, Task, TaskStatus, Usage

TASK = Task(1, 7, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
ITEM = Item(1, TASK, "text", {}, 1, 0, bytes(16), "")
USAGE = Usage(100, 20, 40, 5)
COST = Decimal("0.000140")


def outcome(kind: OutcomeKind, error: str | None = None, latency: int | None = 70, lane: Lane = Lane.ONLINE) -> Outcome:
    return Outcome(ITEM, kind, USAGE, COST, Result("text", None, {}), error, latency_ms=latency, lane=lane)


def test_each_end_is_counted_by_how_and_why() -> None:
    counts = Counts()
    kinds = (OutcomeKind.PROCESSED, OutcomeKind.RETRY, OutcomeKind.FAILED, OutcomeKind.POSTPONED, OutcomeKind.PASSED_ON)
    counts.attempted([outcome(kind, None if kind is OutcomeKind.PROCESSED else "timeout") for kind in kinds])
    counts.attempted([Outcome.released(ITEM)])
    values = counts.read().values
    attempts = {key.label: value for key, value in values.items() if key.name == Metric.ATTEMPTS.key}
    assert attempts == {"processed/": 1, "retry/timeout": 1, "failed/timeout": 1, "postponed/timeout": 2, "released/": 1}
    assert values[Key("tokens_total", 7, "input")] == 500
    assert values[Key("tokens_total", 7, "output")] == 100
    assert values[Key("tokens_total", 7, "cached")] == 200
    assert values[Key("tokens_total", 7, "reasoning")] == 25
    assert values[Key("cost_usd_total", 7)] == float(5 * COST)
    assert values[Key("attempt_duration_seconds", 7, "0.1")] == 5
    assert values[Key("attempt_duration_seconds", 7, "sum")] == 0.35
    work = counts.read().work[7]
    assert (work.processed, work.failed, work.retried, work.cost) == (1, 1, 1, 5 * COST)


def test_a_failure_with_a_result_instead_counts_by_its_kind() -> None:
    counts = Counts()
    counts.attempted([outcome(OutcomeKind.PROCESSED), outcome(OutcomeKind.PROCESSED, "refused")])
    attempts = {key.label: value for key, value in counts.read().values.items() if key.name == Metric.ATTEMPTS.key}
    assert attempts == {"processed/": 1, "processed/refused": 1}
    assert counts.read().work[7].processed == 2


def test_what_came_too_late_counts_as_the_ledger_has_it() -> None:
    counts = Counts()
    unpaid = Outcome.retry(ITEM, "timeout", "", 1.0, NO_USAGE, None, 5)
    counts.attempted([], [outcome(OutcomeKind.PROCESSED), outcome(OutcomeKind.RETRY, "timeout"), unpaid])
    values = counts.read().values
    assert values[Key("claims_lost_total")] == 3
    attempts = {key.label: value for key, value in values.items() if key.name == Metric.ATTEMPTS.key}
    assert attempts == {"lost/late": 1, "lost/timeout": 1}  # nothing was paid for the third: it leaves no row
    assert values[Key("tokens_total", 7, "input")] == 200
    assert counts.read().work[7].processed == 0


def test_an_answer_from_the_cache_is_a_hit_and_no_call() -> None:
    counts = Counts()
    counts.attempted([outcome(OutcomeKind.PROCESSED, lane=Lane.CACHE)._replace(usage=NO_USAGE, cost=Decimal(0))])
    values = counts.read().values
    assert values[Key("cache_hits_total")] == 1
    assert values[Key("attempts_total", 7, "processed/")] == 1
    assert not any(key.name == Metric.ATTEMPT_DURATION.key for key in values)


def test_a_bucket_takes_what_is_no_longer_than_its_bound() -> None:
    counts = Counts()
    for latency in (0, 50, 51, 120_000, 120_001):
        counts.attempted([outcome(OutcomeKind.PROCESSED, latency=latency)])
    expected = [0] * (len(LATENCY_BUCKETS) + 1)
    expected[0], expected[1], expected[-2], expected[-1] = 2, 1, 1, 1
    assert counts.read().work[7].latencies == expected
    assert counts.read().values[Key("attempt_duration_seconds", 7, "+Inf")] == 1


def test_a_verb_is_timed_also_when_it_raises() -> None:
    counts = Counts()

    def fails() -> None:
        raise KeyError

    timed = counts.timed(Metric.CLAIM_DURATION, fails)
    with pytest.raises(KeyError):
        timed()
    buckets = {key.label: n for key, n in counts.read().values.items() if key.name == Metric.CLAIM_DURATION.key}
    assert sum(n for label, n in buckets.items() if label != "sum") == 1
    assert 0 < buckets["sum"] < 1


def test_kinds_without_end_become_one() -> None:
    counts = Counts()
    counts.attempted([outcome(OutcomeKind.RETRY, f"kind{number}") for number in range(MOST_KINDS + 5)])
    labels = [key.label for key in counts.read().values if key.name == Metric.ATTEMPTS.key]
    assert len(labels) == MOST_KINDS + 1
    assert counts.read().values[Key("attempts_total", 7, f"retry/{OTHER}")] == 5


def test_threads_lose_nothing() -> None:
    counts = Counts()
    group = [outcome(OutcomeKind.PROCESSED)] * 50

    def work() -> None:
        for _ in range(100):
            counts.attempted(group)
            counts.claimed(50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    values = counts.read().values
    assert values[Key("attempts_total", 7, "processed/")] == values[Key("claimed_items_total")] == 20_000
    assert values[Key("claims_total")] == 400


def test_work_is_added_and_taken_away() -> None:
    counts = Counts()
    counts.attempted([outcome(OutcomeKind.PROCESSED)])
    before = counts.read().work[7]
    counts.attempted([outcome(OutcomeKind.FAILED, "timeout", latency=3000)])
    after = counts.read().work[7]
    new = after - before
    assert (new.processed, new.failed, new.tokens_input, new.cost, new.milliseconds) == (0, 1, 100, COST, 3000)
    assert before + new == after
    assert Work() + after == after


def test_every_counter_is_named_by_convention() -> None:
    for metric in Metric:
        assert metric.key.endswith("_total") == (metric.kind is Kind.COUNTER), metric
        if metric.kind is Kind.HISTOGRAM:
            assert metric.key.endswith("_seconds")
            assert list(metric.buckets) == sorted(metric.buckets)
            assert len(bounds_of(metric)) == len(metric.buckets) + 1
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert not metric.help.endswith(".")


def test_labels_are_read_back_from_the_table() -> None:
    assert labels_of(Metric.ATTEMPTS, Key("attempts_total", 7, "retry/timeout"), "gpt") == ("gpt", "retry", "timeout")
    assert labels_of(Metric.ATTEMPTS, Key("attempts_total", 7, "processed/"), "gpt") == ("gpt", "processed", "")
    assert labels_of(Metric.TOKENS, Key("tokens_total", 7, "input"), "gpt") == ("gpt", "input")
    assert labels_of(Metric.COST, Key("cost_usd_total", 7), "gpt") == ("gpt",)
    assert labels_of(Metric.CLAIMS, Key("claims_total"), "") == ()
