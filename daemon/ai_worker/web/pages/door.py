"""Log in, log out, and what people see instead of a page that they may not or cannot have."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ai_worker.store.tokens import SESSION_SECONDS
from ai_worker.web.access import COOKIE
from ai_worker.web.pages.rendering import environment, render
from ai_worker.web.problems import Unauthorised, is_page
from ai_worker.web.services import Served

router = APIRouter(include_in_schema=False)

RETRY_SECONDS: Final = 5  # between two tries of a page while the database is away
_TITLES: Final = {
    HTTPStatus.FORBIDDEN: "Not allowed",
    HTTPStatus.NOT_FOUND: "Not found",
    HTTPStatus.UNPROCESSABLE_ENTITY: "That cannot be done",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests",
    HTTPStatus.SERVICE_UNAVAILABLE: "The database is away",
}


@router.get("/ui/login")
async def door(request: Request, next: str = "/") -> HTMLResponse:
    """The page that asks for a token."""
    return render(request, "login.html.j2", next=local(next), error=None)


@router.post("/ui/login")
async def log_in(
    request: Request,
    services: Served,
    token: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Begins a session, and goes to where the visitor wanted to go."""
    try:
        principal = await services.door.admit(token.strip(), request)
    except Unauthorised:
        error = "This token is not valid, or not any more."
        return render(request, "login.html.j2", status=HTTPStatus.UNAUTHORIZED, next=local(next), error=error)
    session = await services.ask(services.tokens.log_in, principal)
    response = RedirectResponse(local(next), HTTPStatus.SEE_OTHER)
    secure = services.options.cookies_secure or request.url.scheme == "https"
    response.set_cookie(COOKIE, session, max_age=SESSION_SECONDS, path="/", secure=secure, httponly=True, samesite="strict")
    return response


@router.post("/ui/logout")
async def log_out(request: Request, services: Served) -> Response:
    """Ends the session, here and in the database."""
    session = request.cookies.get(COOKIE)
    if session is not None:
        await services.ask(services.tokens.log_out, session)
    response = RedirectResponse("/ui/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


def local(address: str) -> str:
    """The address if it is one of our pages, else the overview: a link must not lead elsewhere by way of the login."""
    try:
        parts = urlsplit(address)
    except ValueError:  # `http://[` and the like
        return "/"
    is_ours = not parts.scheme and not parts.netloc and is_page(parts.path)
    return address if is_ours and address.isprintable() and "\\" not in address else "/"


def error_page(request: Request, status: HTTPStatus, detail: str, headers: dict[str, str]) -> Response:
    """An error as people see it: a page; for a part of a page, a notice in it; for nobody known, the login."""
    is_part = "hx-request" in request.headers
    if status is HTTPStatus.UNAUTHORIZED:
        return _to_login(request, is_part=is_part)
    title = _TITLES.get(status, status.phrase)
    if is_part:
        text = environment().get_template("_notice.html.j2").render(text=f"{title}: {detail}")
        return HTMLResponse(text, status, headers)
    # A form that was sent cannot be sent again by the page itself.
    retry = RETRY_SECONDS if status is HTTPStatus.SERVICE_UNAVAILABLE and request.method == "GET" else None
    if retry is not None:
        headers = {**headers, "Retry-After": str(retry)}
    response = render(request, "error.html.j2", status=status, title=title, detail=detail, retry=retry)
    response.headers.update(headers)
    return response


def _to_login(request: Request, *, is_part: bool) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if is_part:
        _, _, behind = request.headers.get("hx-current-url", "").partition("://")
        wanted = "/" + behind.partition("/")[2]
    elif request.method != "GET":
        wanted = "/"
    elif request.headers.get("sec-fetch-site") == "cross-site":
        # Who follows a link from elsewhere is not known even when logged in: a strict cookie stays at home. Asked for by a page
        # of our own, the same address brings it along.
        return HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0"><title>AI Worker</title>')
    login = f"/ui/login?next={quote(local(wanted), safe='/')}"
    if is_part:
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": login})
    return RedirectResponse(login, HTTPStatus.SEE_OTHER)
