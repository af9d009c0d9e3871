"""Models: what each may and does take, what stops it, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ai_worker import prices
from ai_worker.models import Model
from ai_worker.store.reports import ModelDay, ModelReport, StoppedModel
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.pages.charts import Bar, bars
from ai_worker.web.pages.live import May, Topic
from ai_worker.web.pages.rendering import fragment, render
from ai_worker.web.services import Served, Services

router = APIRouter(include_in_schema=False, dependencies=[needs(Scope.READ)])

DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model as the page shows it. `days` are those of the last two weeks on which it did something, the latest first."""

    model: Model
    report: ModelReport
    stopped: StoppedModel | None
    price: prices.Price | None
    price_source: str | None
    days: Sequence[ModelDay]
    bars: Sequence[Bar]

    @property
    def spent(self) -> float | None:
        """Which share of today's budget is spent; None without a budget."""
        budget = self.report.budget_per_day
        return None if not budget else min(1.0, float((self.report.cost or Decimal(0)) / budget))


@router.get("/ui/models")
async def models(request: Request, services: Served) -> HTMLResponse:
    """The page."""
    return render(request, "models.html.j2", live="models", endpoints=await _endpoints(services))


async def _fragments(services: Services, may: May, _: str) -> Mapping[str, str]:
    return {"endpoints": fragment("_endpoints.html.j2", may, endpoints=await _endpoints(services))}


async def _endpoints(services: Services) -> list[Endpoint]:
    return await services.ask(_read, services)


def _read(services: Services) -> list[Endpoint]:
    """All of the page, one statement after the other in one thread: the page is to leave the others to other pages."""
    reports = {each.name: each for each in services.reports.models()}
    stopped = {each.name: each for each in services.reports.stopped_models()}
    days: dict[int, list[ModelDay]] = {}
    for day in services.reports.model_days(DAYS):
        days.setdefault(day.id_ai_model, []).append(day)
    return [
        _endpoint(model, reports[model.name], stopped.get(model.name), days.get(model.id_ai_model, []))
        for model in services.models.all()
        if model.name in reports  # unless it was made this very moment
    ]


def _endpoint(model: Model, report: ModelReport, stopped: StoppedModel | None, days: Sequence[ModelDay]) -> Endpoint:
    has_costs = any(day.cost for day in days)
    values: dict[Any, float] = {day.day: float((day.cost or 0) if has_costs else day.attempts) for day in days}
    return Endpoint(model, report, stopped, prices.price(model), prices.source(model), days, bars(values, report.day, DAYS))


TOPIC = Topic("models", _fragments, seconds=5.0)
