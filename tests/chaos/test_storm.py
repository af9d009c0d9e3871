"""Everything at once: nothing lost, nothing twice, every sum exact. The whole storm is `make chaos`; CI runs a gust of it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.arena import kinds
from tests.chaos.fleet import LEASE_SECONDS
from tests.chaos.storm import storm_on
from tests.chaos.storm_plan import SHORT, WHOLE, plan


def test_the_seed_decides_what_happens_and_when() -> None:
    drawn = [plan(WHOLE, random.Random(seed), LEASE_SECONDS) for seed in (7, 7, 8)]  # noqa: S311 -- chance that can be repeated
    assert drawn[0] == drawn[1] != drawn[2]
    assert Counter(fault.kind for fault in drawn[0].workers)["kill"] == WHOLE.kills
    for lane in (drawn[0].workers, drawn[0].database, drawn[0].provider):
        times = [fault.at for fault in lane]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= WHOLE.seconds


@pytest.mark.parametrize("kind", kinds())
def test_a_gust_loses_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    storm_on(kind, SHORT, seed, tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", kinds())
def test_a_storm_loses_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    storm_on(kind, WHOLE, seed, tmp_path)
