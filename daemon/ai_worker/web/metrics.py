"""The fleet's numbers for Prometheus, out of the database: one look every ten seconds at the most, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from ai_worker import exposition
from ai_worker.counts import Metric, Source
from ai_worker.exposition import Exposition, Gauge, Sample
from ai_worker.models import TaskStatus
from ai_worker.store import gauges
from ai_worker.store.backlog import QueueBacklog
from ai_worker.store.counters import Counters
from ai_worker.store.reports import ModelReport
from ai_worker.store.tokens import Scope
from ai_worker.web.access import needs
from ai_worker.web.services import Served, Services

if TYPE_CHECKING:
    from ai_worker.db import Database

LOOK_SECONDS: Final = 10.0
WORKER_STATES: Final = ("alive", "draining", "late", "lost")

router = APIRouter(tags=["metrics"], dependencies=[needs(Scope.READ)])


class Metrics:
    """One per process. Used in the loop."""

    def __init__(self, db: Database) -> None:
        self._exposition = Exposition(Source.FLEET, lambda: _read(db))
        self._looking = asyncio.Lock()
        self._text = b""
        self._looked_at = float("-inf")

    async def text(self, services: Services) -> bytes:
        """The metrics, ten seconds old at the most. Raises DatabaseError."""
        async with self._looking:
            if time.monotonic() - self._looked_at >= LOOK_SECONDS:
                self._text = await services.ask(exposition.text, self._exposition)
                self._looked_at = time.monotonic()
            return self._text


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "The text format of Prometheus."}},
)
async def metrics(request: Request, services: Served) -> Response:
    """How the fleet stands and what it has done, for Prometheus: at most ten seconds old."""
    known: Metrics = request.app.state.metrics
    return Response(await known.text(services), media_type=exposition.CONTENT_TYPE)


def _read(db: Database) -> tuple[list[Sample], list[Gauge]]:
    seen = gauges.look(db)
    found = [
        Gauge(Metric.SCHEDULE_OVERDUE, (), seen.schedule_overdue),
        Gauge(Metric.SCHEMA_VERSION, (), seen.schema_version),
        *(Gauge(Metric.WORKERS, (state,), seen.workers.get(state, 0)) for state in WORKER_STATES),
        *(Gauge(Metric.TASKS, (_name(status),), tasks) for status, tasks in seen.tasks.items()),
        *(each for queue in seen.queues for each in _of_queue(queue)),
        *(each for model in seen.models for each in _of_model(model)),
    ]
    if seen.budget_used is not None:
        found.append(Gauge(Metric.BUDGET_USED, (), seen.budget_used))
    return [Sample(*total) for total in Counters(db).sums()], found


def _of_queue(queue: QueueBacklog) -> Iterable[Gauge]:
    for status in ("pending", "deferred", "in_progress"):
        yield Gauge(Metric.ITEMS, (queue.queue, status), getattr(queue, status))
    yield Gauge(Metric.PAUSED_ITEMS, (queue.queue,), queue.paused)
    yield Gauge(Metric.OLDEST_AGE, (queue.queue,), queue.oldest_seconds or 0.0)


def _of_model(model: ModelReport) -> Iterable[Gauge]:
    name = (model.name,)
    yield Gauge(Metric.IN_FLIGHT, name, model.in_flight)
    yield Gauge(Metric.SPENT_TODAY, name, float(model.cost or 0))
    if model.stopped_kind is not None:
        yield Gauge(Metric.MODEL_STOPPED, (model.name, model.stopped_kind), 1)
    limits = (
        (Metric.REQUEST_LIMIT, model.requests_per_minute),
        (Metric.TOKEN_LIMIT, model.tokens_per_minute),
        (Metric.FLIGHT_LIMIT, model.max_in_flight),
        (Metric.DAY_BUDGET, model.budget_per_day),
    )
    for metric, limit in limits:
        if limit is not None:
            yield Gauge(metric, name, float(limit))


def _name(status: TaskStatus) -> str:
    return status.name.lower()
