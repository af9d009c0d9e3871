"""Errors over HTTP: problem details (RFC 9457) for programs, a page for people."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any, ClassVar, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ai_worker.errors import AiWorkerError, DatabaseAway, NotFound, UsageError, ValueRefused

PROBLEM_TYPE = "application/problem+json"

_PLAIN: Final = {
    "missing": "This field is missing",
    "extra_forbidden": "There is no such field",
    "model_attributes_type": "An object is expected",
    "dict_type": "An object is expected",
}
_TAGS: Final = {"(text)", "(object)"}  # which of an item's shapes was meant: see bodies.ItemIn


class Refused(AiWorkerError):
    """A request that cannot be served. `headers` go along with the answer."""

    status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST

    def __init__(self, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}


class Unauthorised(Refused):
    """Nobody knows who asks."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, message: str) -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})


class Forbidden(Refused):
    """Who asks may not do this."""

    status = HTTPStatus.FORBIDDEN


class TooMany(Refused):
    """Too many wrong tokens from this address."""

    status = HTTPStatus.TOO_MANY_REQUESTS


class _Json(JSONResponse):
    def render(self, content: object) -> bytes:
        """As ASCII: what is said of a request may hold what no encoding has, such as half a surrogate pair."""
        return json.dumps(content).encode()


def add_problems(app: FastAPI) -> None:
    """Has the application answer every error in one shape."""

    @app.exception_handler(AiWorkerError)
    async def _of_ours(request: Request, error: Exception) -> Response:
        status = status_of(error)
        if isinstance(error, Refused):
            return problem(request, status, str(error), error.headers)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            raise error  # to be told in the log, with its traceback
        return problem(request, status, told(error), {"Retry-After": "5"} if isinstance(error, DatabaseAway) else {})

    @app.exception_handler(HTTPException)
    async def _of_starlette(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return problem(request, HTTPStatus(error.status_code), str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _of_fields(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        is_json = "json" in request.headers.get("content-type", "")
        fields = [_field(each, is_json=is_json) for each in error.errors()]
        detail = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, {}, errors=fields)


def _field(error: dict[str, Any], *, is_json: bool) -> dict[str, str]:
    """What pydantic says of a field, in the words of the API: its own kinds of types are nothing that who asks can know."""
    kind, place = error["type"], [str(part) for part in error["loc"]]
    message = _PLAIN.get(kind, error["msg"])
    if kind == "json_invalid":
        place, message = ["body"], f"No JSON: {error['ctx']['error']}, at character {place[-1]}"
    elif place == ["body"]:
        message = "A JSON object is expected" if is_json else "JSON is expected, with the header `Content-Type: application/json`"
    return {"field": ".".join(part for part in place if part not in _TAGS), "message": message}


def status_of(error: Exception) -> HTTPStatus:
    """The HTTP status that says what an error means."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, NotFound):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, UsageError | ValueRefused):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, DatabaseAway):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


def told(error: Exception) -> str:
    """What those who asked are told of an error. What the database said, and where it is, is for the log alone."""
    if isinstance(error, DatabaseAway):
        return "the database cannot be reached; try again"
    return "see the server's log" if status_of(error) is HTTPStatus.INTERNAL_SERVER_ERROR else str(error)


def is_page(path: str) -> bool:
    """Whether people look at what is there, as opposed to programs."""
    return path in {"/", "/docs"} or path.startswith("/ui/")


def _is_astray(request: Request) -> bool:
    """Whether a browser asks for an address that leads nowhere: neither to a page nor to anything of the API."""
    return request.method == "GET" and "endpoint" not in request.scope and "text/html" in request.headers.get("accept", "")


def problem(request: Request, status: HTTPStatus, detail: str, headers: dict[str, str], **more: object) -> Response:
    """An answer that says what is wrong: a page where pages are, else problem details."""
    if is_page(request.url.path) or (status is HTTPStatus.NOT_FOUND and _is_astray(request)):
        page: Response = request.app.state.error_page(request, status, detail, headers)
        return page
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail, "instance": request.url.path}
    return _Json({**body, **more}, status.value, headers, media_type=PROBLEM_TYPE)
