"""The API's description of itself: OpenAPI for programs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from ai_worker.web.access import Reader

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request, _: Reader) -> dict[str, Any]:
    """The OpenAPI document."""
    description: dict[str, Any] = request.app.openapi()
    return description
