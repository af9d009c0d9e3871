"""The API's description of itself: OpenAPI for programs, a page for people that needs no other server and no script.

Both need a token like everything else, so that nobody else learns what there is; a person's login will do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from ai_worker import __version__
from ai_worker.web.access import Reader
from ai_worker.web.api.shapes import Problem
from ai_worker.web.pages.rendering import render
from ai_worker.web.problems import PROBLEM_TYPE

router = APIRouter(include_in_schema=False)

_SAYS: Final = """What `ai-worker` does on the command line, for programs. Everything but the health checks needs a token of
`ai-worker token add`, as `Authorization: Bearer …`. Errors are problem details (RFC 9457). Each answer has an `X-Request-ID`,
which stands in the server's log, too; you may send your own."""
_ALWAYS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
_WITH_TOKEN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
_WITH_BODY: Final = (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


@router.get("/openapi.json")
async def openapi(request: Request, _: Reader) -> dict[str, Any]:
    """The OpenAPI document."""
    description: dict[str, Any] = request.app.openapi()
    return description


@router.get("/docs")
async def page(request: Request, _: Reader) -> HTMLResponse:
    """The same to be read."""
    document = request.app.openapi()
    return render(request, "docs.html.j2", document=document, operations=list(_operations(document)), pretty=_pretty)


def describe(app: FastAPI) -> None:
    """Has the application describe its errors as they are."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title="AI Worker", version=__version__, description=_SAYS, routes=app.routes)
            _tell_problems(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _tell_problems(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            wanted = {*_ALWAYS, *(_WITH_TOKEN if operation.get("security") else ())}
            wanted |= {HTTPStatus.NOT_FOUND} if "{" in path or path == "/task/run" else set()
            wanted |= {HTTPStatus.UNPROCESSABLE_ENTITY} if operation.get("parameters") or "requestBody" in operation else set()
            wanted |= (
                set(_WITH_BODY) if any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ())) else set()
            )
            for status in sorted(wanted):
                operation["responses"][str(status.value)] = {
                    "description": status.phrase,
                    "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
