"""The soak: its line finds what grows and forgives what only swings; and some seconds of the real thing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.arena import Arena
from tests.chaos.soak import soak
from tests.chaos.soak_samples import MEMORY, THREADS, Bound, Series


def series(bound: Bound, *values: float) -> Series:
    return Series("measure", "MB", bound, [5.0 * number for number in range(len(values))], list(values))


def test_a_small_leak_is_found_under_a_lot_of_noise() -> None:
    rng = random.Random(7)  # noqa: S311 -- made-up samples
    leak = series(MEMORY, *[100 + 0.02 * number + rng.uniform(-3, 3) for number in range(360)])  # 7 MB in half an hour
    assert leak.drift() == pytest.approx(7.2, abs=1.0)
    assert not leak.verdict().is_flat


def test_bursts_are_no_leak() -> None:
    bursts = series(MEMORY, *[100 + (40 if number % 17 == 0 else 0) for number in range(360)])
    assert bursts.drift() == 0
    assert bursts.verdict().is_flat


def test_one_thread_more_every_few_minutes_is_found() -> None:
    assert not series(THREADS, *[19 + number // 90 for number in range(360)]).verdict().is_flat
    assert series(THREADS, *[19 + number % 2 for number in range(360)]).verdict().is_flat


def test_what_goes_down_is_flat() -> None:
    assert series(MEMORY, *[200 - number for number in range(100)]).verdict().is_flat


def test_the_warm_up_is_left_out() -> None:
    assert series(MEMORY, *range(50), *[50] * 150).after(50 * 5.0).verdict().is_flat


def test_a_soak_of_some_seconds_loses_nothing_and_leaves_nothing(arena: Arena, tmp_path: Path, seed: int) -> None:
    """Too short to see a leak; long enough to see that every part of the long run works on this server."""
    done = soak(arena, tmp_path, 5, seed, workers=2, step=0.5)
    assert done.faults == []
    assert done.items >= 3000
    assert done.requests > 0
    assert {"w1: memory", "w2: threads", "web: file descriptors", "connections of ai_worker", "file of task_item"} <= {
        verdict.name for verdict in done.verdicts
    }
    assert "lost 0, twice 0" in done.report()
