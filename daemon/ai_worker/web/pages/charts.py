"""Charts as numbers: what the templates draw as SVG. Nothing here knows of HTML.

Lengths are in the units of the drawing: as wide as there are steps, 100 high. The labels stand beside it, as text of the page, so
that the drawing may be stretched to any width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from math import floor, log10
from typing import Final

from ai_worker import formats
from ai_worker.counts import LATENCY_BUCKETS, Work

HEIGHT: Final = 100.0
_BAR_HEIGHT: Final = 40.0


@dataclass(frozen=True, slots=True)
class Step:
    """What the whole fleet did in one step of time, from `at` on."""

    at: datetime
    work: Work

    def took(self, share: float) -> float | None:
        """In how many seconds this share of its attempts had ended; None without any."""
        return percentile(self.work.latencies, LATENCY_BUCKETS, share)


@dataclass(frozen=True, slots=True)
class Bar:
    """One column of a small chart; `height` of at most 40."""

    label: str
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a chart: pieces (css class, y, height) from the bottom up, and what it says."""

    x: int
    pieces: Sequence[tuple[str, float, float]]
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line in pieces: it has gaps where nothing was measured. Points are `x,y x,y`; a piece of one point is drawn as a dash."""

    kind: str
    pieces: Sequence[str]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its labels. `top`, `middle` and `now` are written numbers; `summary` tells the whole in one sentence."""

    key: str
    title: str
    top: str
    middle: str
    now: str
    summary: str
    width: int
    columns: Sequence[Column] = ()
    lines: Sequence[Line] = ()
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)


def steps_of(minutes: Iterable[tuple[datetime, Work]], first: datetime, count: int, length: timedelta) -> list[Step]:
    """Minutes added up to `count` steps of the same `length` from `first` on; what lies outside is left out."""
    works = [Work() for _ in range(count)]
    for minute, work in minutes:
        at = (minute - first) // length
        if 0 <= at < count:
            works[at] += work
    return [Step(first + length * at, work) for at, work in enumerate(works)]


def percentile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """The duration that this share of attempts did not exceed, in seconds, by a straight line within its bucket; None for none.

    What is longer than the last bound counts as that bound: there is no knowing how much longer.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for at, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= wanted:
            low = bounds[at - 1] if at else 0.0
            return low + (bounds[at] - low) * (wanted - below) / count
        below += count
    return bounds[-1]


def throughput(steps: Sequence[Step], length: timedelta) -> Chart:
    """Items per minute that were processed, and that failed."""
    minutes = length.total_seconds() / 60
    top = _ceiling(max(((step.work.processed + step.work.failed) / minutes for step in steps), default=0.0), least=10)
    columns = [
        Column(
            at,
            _stacked([("good-fill", step.work.processed / minutes), ("bad-fill", step.work.failed / minutes)], top),
            f"{step.at:%H:%M} UTC: {formats.number(step.work.processed)} processed, {formats.number(step.work.failed)} failed",
        )
        for at, step in enumerate(steps)
        if step.work.processed or step.work.failed
    ]
    processed, failed = sum(step.work.processed for step in steps), sum(step.work.failed for step in steps)
    now = _lately(steps, lambda step: (step.work.processed + step.work.failed) / minutes)
    return Chart(
        "throughput", "Throughput", *_labels(top, lambda value: f"{value:,.0f}"), f"{now:,.0f} items/min",
        f"{formats.number(processed)} items processed and {formats.number(failed)} failed, at most {top:,.0f} a minute.",
        len(steps), columns, legend=(("good-fill", "processed"), ("bad-fill", "failed")),
    )  # fmt: skip


def latency(steps: Sequence[Step]) -> Chart:
    """How long attempts took: half of them, and 95 of 100."""
    shares = {"first": 0.5, "second": 0.95}
    found = {kind: [step.took(share) for step in steps] for kind, share in shares.items()}
    top = _ceiling(max((value for values in found.values() for value in values if value is not None), default=0.0), least=0.2)
    whole = Step(steps[0].at, sum((step.work for step in steps), Work()))
    half, most = (whole.took(share) for share in shares.values())
    said = f"Half of the attempts took {formats.duration(half)} or less, 95 of 100 took {formats.duration(most)} or less."
    return Chart(
        "latency", "Latency", *_labels(top, _seconds), f"p95 {formats.duration(most)}" if most is not None else "–",
        said if half is not None else "No attempt was measured.", len(steps),
        lines=[Line(kind, _pieces(values, top)) for kind, values in found.items()],
        legend=(("busy-fill", "half (p50)"), ("warn-fill", "95 of 100 (p95)")),
    )  # fmt: skip


def spending(steps: Sequence[Step], length: timedelta) -> Chart:
    """USD per hour, as far as prices are known."""
    hours = length.total_seconds() / 3600
    rates = [float(step.work.cost or 0) / hours for step in steps]
    top = _ceiling(max(rates, default=0.0), least=0.01)
    columns = [
        Column(at, _stacked([("busy-fill", rate)], top), f"{step.at:%H:%M} UTC: {formats.money(step.work.cost)}")
        for at, (step, rate) in enumerate(zip(steps, rates, strict=True))
        if rate
    ]
    total = sum((step.work.cost or Decimal(0) for step in steps), Decimal(0))
    now = _lately(steps, lambda step: float(step.work.cost or 0) / hours)
    return Chart(
        "spending", "Spending", *_labels(top, _dollars), f"{_dollars(now)}/h",
        f"{formats.money(total)} spent, at most {_dollars(top)} an hour.", len(steps), columns,
        legend=(("busy-fill", "USD per hour"),),
    )  # fmt: skip


def bars(values: Mapping[date, float], last: date, days: int) -> list[Bar]:
    """The last `days` days, `last` included, each beside the highest."""
    most = max(values.values(), default=0.0)
    found = []
    for back in range(days - 1, -1, -1):
        day = last - timedelta(days=back)
        value = values.get(day, 0.0)
        height = max(1.5, value / most * _BAR_HEIGHT) if value else 0.0
        found.append(Bar(f"{day}", height))
    return found


def _stacked(parts: Sequence[tuple[str, float]], top: float) -> list[tuple[str, float, float]]:
    pieces, y = [], HEIGHT
    for kind, value in parts:
        if value:
            height = max(1.0, value / top * HEIGHT)  # one failure in a thousand is to be seen
            y -= height
            pieces.append((kind, max(0.0, y), height))
    return pieces


def _pieces(values: Sequence[float | None], top: float) -> list[str]:
    pieces = []
    for is_there, group in groupby(enumerate(values), key=lambda pair: pair[1] is not None):
        if is_there:
            points = [(at + 0.5, HEIGHT - (value or 0.0) / top * HEIGHT) for at, value in group]
            if len(points) == 1:
                ((x, y),) = points
                points = [(x - 0.4, y), (x + 0.4, y)]
            pieces.append(" ".join(f"{x:g},{y:.1f}" for x, y in points))
    return pieces


def _ceiling(value: float, least: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    value = max(value, least)
    power = 10.0 ** floor(log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999999)


def _labels(top: float, written: Callable[[float], str]) -> tuple[str, str]:
    return written(top), written(top / 2)


def _lately(steps: Sequence[Step], value: Callable[[Step], float]) -> float:
    """Of the last full step, or of the present one, which has only begun, where that has more already."""
    return max((value(step) for step in steps[-2:]), default=0.0)


def _seconds(value: float) -> str:
    """A mark of an axis: the half of 0.5 s is 0.25 s."""
    return f"{value:g} s" if value < 1 else formats.duration(value)


def _dollars(amount: float) -> str:
    return formats.money(Decimal(f"{amount:.7f}"))
