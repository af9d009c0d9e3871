"""What a run came to, in one block that people can read and quote."""

from __future__ import annotations

import math
from collections.abc import Sequence

blocks: list[str] = []
"""All blocks of this process; pytest shows them at its end."""


def show(title: str, figures: dict[str, object]) -> str:
    """Prints a block of figures and keeps it for the end of the test run; the block. Whole numbers get their thousands apart."""
    width = max(map(len, figures))
    lines = [f"  {name:<{width}}  {_shown(value)}" for name, value in figures.items()]
    block = "\n".join([title, *lines])
    print(f"\n{block}", flush=True)  # noqa: T201 -- the figures are what the run is for
    blocks.append(block)
    return block


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them (0 to 1) do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def spread(values: Sequence[float]) -> str:
    """Seconds in a line: median, 95 of 100, and the most."""
    if not values:
        return "none"
    median, most = percentile(values, 0.5), max(values)
    return f"p50 {median:.2f} s, p95 {percentile(values, 0.95):.2f} s, max {most:.2f} s ({len(values)} times)"
