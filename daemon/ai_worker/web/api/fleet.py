"""What works, and with what: models, workers, schedules, and who may look."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ai_worker.output.reports import worker_as_dict
from ai_worker.web.access import Admin, Reader
from ai_worker.web.api.shapes import ModelOut, ScheduleOut, TokenOut, WorkerOut
from ai_worker.web.services import Served

router = APIRouter(tags=["fleet"])


@router.get("/model")
async def models(_: Reader, services: Served) -> list[ModelOut]:
    """All models with their limits, whether they are stopped, and what they have used today."""
    return [ModelOut.model_validate(each) for each in await services.ask(services.reports.models)]


@router.get("/worker")
async def workers(
    _: Reader, services: Served, ended: Annotated[bool, Query(description="Of the last day, too.")] = False
) -> list[WorkerOut]:
    """Which workers are alive, and what they hold."""
    found = await services.ask(services.reports.workers, with_ended=ended)
    return [WorkerOut.model_validate(worker_as_dict(each)) for each in found]


@router.get("/schedule")
async def schedules(_: Reader, services: Served) -> list[ScheduleOut]:
    """Tasks that come again and again, and when the next one is due."""
    return [ScheduleOut.model_validate(each) for each in await services.ask(services.schedules.all)]


@router.get("/token")
async def tokens(_: Admin, services: Served) -> list[TokenOut]:
    """All tokens, revoked ones too; only `ai-worker token` makes and revokes them."""
    return [TokenOut.model_validate(each) for each in await services.ask(services.tokens.all)]
