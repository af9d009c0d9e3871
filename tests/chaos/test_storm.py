"""Everything at once: nothing lost, nothing twice, every sum exact. The whole storm is `make chaos`; CI runs a gust of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.arena import kinds
from tests.chaos.storm import storm_on
from tests.chaos.storm_plan import SHORT, WHOLE


@pytest.mark.parametrize("kind", kinds())
def test_a_gust_loses_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    storm_on(kind, SHORT, seed, tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", kinds())
def test_a_storm_loses_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    storm_on(kind, WHOLE, seed, tmp_path)
