"""The overview: whether work flows, what it costs, who does it, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker.counts import Work
from ai_worker.store.backlog import QueueBacklog
from ai_worker.store.glance import TASKS_SEARCHED as FAILURES_SEARCHED
from ai_worker.store.reports import ModelReport
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.history import MINUTE
from ai_worker.web.pages.charts import Chart, Step, latency, spending, steps_of, throughput
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

_TASKS: Final = 8
_FAILURES: Final = 8
_ERROR_MINUTES: Final = 15  # over which the error rate is taken
_PARTS: Final = ("figures", "charts", "under-way", "failures", "workers", "models")


@dataclass(frozen=True, slots=True)
class Span:
    """How far back the charts go: `count` columns of `length` each; `row` is the length of a row of their table."""

    title: str
    count: int
    length: timedelta
    row: timedelta
    begin: str
    middle: str

    @property
    def minutes(self) -> int:
        return self.count * self.length // MINUTE


SPANS: Final[Mapping[str, Span]] = {
    "hour": Span("Last hour", 60, MINUTE, 5 * MINUTE, "1 h ago", "30 min ago"),
    "day": Span("Last day", 96, 15 * MINUTE, 60 * MINUTE, "24 h ago", "12 h ago"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers on top. None stands for what nothing is known of.

    `waiting` are items that wait, exactly or not; `oldest_seconds` for how long the oldest one that could be claimed has waited;
    `per_minute` have ended in the last full minute, or in the present one where that has more already;
    `failed_ratio` is of what ended in the last _ERROR_MINUTES; `cost_hour` is of the last hour, `cost_today` of the UTC day; USD.
    """

    waiting: int
    is_exact: bool
    paused: int
    oldest_seconds: float | None
    in_flight: int
    per_minute: float
    failed_ratio: float | None
    cost_hour: Decimal | None
    cost_today: Decimal | None

    @classmethod
    def of(cls, backlog: Sequence[QueueBacklog], minutes: Sequence[Work], models: Sequence[ModelReport]) -> Figures:
        """From the queues, the work of the last hour by minute, and the models."""
        recent = sum(minutes[-_ERROR_MINUTES:], Work())
        ended = recent.processed + recent.failed
        costs = [each.cost for each in models if each.cost is not None]
        return cls(
            waiting=sum(each.pending + each.deferred for each in backlog),
            is_exact=all(each.is_exact for each in backlog),
            paused=sum(each.paused for each in backlog),
            oldest_seconds=max((each.oldest_seconds for each in backlog if each.oldest_seconds is not None), default=None),
            in_flight=sum(each.in_progress for each in backlog),
            per_minute=max(each.processed + each.failed for each in minutes[-2:]),
            failed_ratio=recent.failed / ended if ended else None,
            cost_hour=sum(minutes, Work()).cost,
            cost_today=sum(costs, Decimal(0)) if costs else None,
        )


@router.get("/")
async def overview(request: Request, services: Served, span: str = "hour") -> HTMLResponse:
    """The page."""
    span = span if span in SPANS else "hour"
    return render(request, "overview.html.j2", live=f"overview?{span}", **await _facts(services, span))


async def _fragments(services: Services, may: May, key: str) -> Mapping[str, str]:
    facts = await _facts(services, key if key in SPANS else "hour")
    return {part: fragment(f"overview/_{part}.html.j2", may, **facts) for part in _PARTS}


async def _facts(services: Services, name: str) -> dict[str, Any]:
    facts = await services.ask(read, services, name)
    return {**facts, "tasks": [services.item_counts.complete(each) for each in facts["tasks"]]}


def read(services: Services, name: str) -> dict[str, Any]:
    """All of the page, one statement after the other in one thread: so it never keeps other pages from theirs."""
    span = SPANS[name]
    minutes = services.history.minutes(max(60, span.minutes))
    present = minutes[-1][0]
    last = present - present.minute * MINUTE % span.length  # columns begin at full quarters of an hour
    first = last - (span.count - 1) * span.length
    steps = steps_of(minutes, first, span.count, span.length)
    rows = steps_of(minutes, first, span.minutes * MINUTE // span.row, span.row)
    reports = services.reports
    models = reports.models()
    return {
        "figures": Figures.of(services.backlog.look(), [work for _, work in minutes[-60:]], models),
        "charts": _charts(steps, span),
        "rows": [(row, row.took(0.5), row.took(0.95)) for row in rows],
        "span": name,
        "spans": [(each, SPANS[each].title) for each in SPANS],
        "from": span.begin,
        "halfway": span.middle,
        "tasks": services.browsing.these(services.glance.under_way(_TASKS)),
        "failures": services.glance.failures(_FAILURES),
        "failures_of": FAILURES_SEARCHED,
        "workers": reports.workers(),
        "models": models,
        "stopped": reports.stopped_models(),
    }


def _charts(steps: Sequence[Step], span: Span) -> list[Chart]:
    return [throughput(steps, span.length), latency(steps), spending(steps, span.length)]


TOPIC: Final = Topic("overview", _fragments)
