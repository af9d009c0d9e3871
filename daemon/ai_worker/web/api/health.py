"""Whether this process lives, and whether it can do its work: without a token, and without a word about the data."""

from __future__ import annotations

from fastapi import APIRouter

from ai_worker.store.health import Health
from ai_worker.web.services import Served

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(services: Served) -> dict[str, str]:
    """The database answers too; 503 where it does not."""
    await services.ask(Health(services.db).now)
    return {"status": "ready"}
